"""Are these the seeds that they are called? What a first look at their weights and logits says before the pass.

Published seeds and checkpoints are not always what their names say: runs that share an initialisation, and revisions
that hold one checkpoint under several names (github.com/EleutherAI/pythia issues 83, 198, 203, 205 and 206). Equal
seeds are refused elsewhere; what is found here is named in chapters 01 and 07.
"""

from hashlib import sha256
from itertools import combinations

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize

from lib.base.errors import listed
from lib.models.folded import is_projection, matrix
from lib.models.trunk import mlps

BLOCKS, POSITIONS = 2, 512  # of the text, on which logits are compared
# Seeds share an initialisation if w_in of one index is more alike than w_in of two indices by more than this, in the
# mean cosine and in its standard errors. Measured: docs/models-and-text.md, "Are these the seeds that they are called?"
SHARED, ERRORS = 0.05, 10


def first_w_in(model: nn.Module) -> Float[Tensor, "neurons d_model"]:
    """What the first layer's neurons read, as stored; of gated neurons the gate's vectors.

    Where seeds share an initialisation, training moves the first layer's w_in least.
    """
    _, mlp, _, writer = mlps(model)[0]
    return matrix(next(one for one in mlp.modules() if is_projection(one) and one is not writer)).T.contiguous()


def initialisation_table(w_in: dict[str, Float[Tensor, "neurons d_model"]]) -> pd.DataFrame:
    """One row for each pair of seeds of one shape: seed, model, same_index, other_index, errors, shared.

    `same_index` is the mean cosine of w_in of the same index, `other_index` that of all other pairs of neurons,
    `errors` their difference in standard errors of the former.
    """
    unit, rows = {name: normalize(weight, dim=1) for name, weight in w_in.items()}, []
    for one, two in combinations(sorted(unit), 2):
        a, b = unit[one], unit[two]
        if a.shape != b.shape or len(a) < 2:
            continue
        same, neurons = (a * b).sum(1).double(), len(a)
        every = float(a.mean(0).double() @ b.mean(0).double())  # the mean cosine of all pairs of neurons
        other = (every * neurons - float(same.mean())) / (neurons - 1)
        apart = float(same.mean()) - other
        errors = apart / max(float(same.std()) / neurons**0.5, 1e-9)
        rows.append((one, two, float(same.mean()), other, errors, apart > SHARED and errors > ERRORS))
    return pd.DataFrame(rows, columns=["seed", "model", "same_index", "other_index", "errors", "shared"])


def shared_groups(table: pd.DataFrame) -> list[list[str]]:
    """The groups of seeds that share an initialisation, from `initialisation_table`."""
    groups: list[set[str]] = []
    for pair in table.loc[table["shared"].astype(bool), ["seed", "model"]].to_numpy().tolist():
        met = [group for group in groups if group & set(pair)]
        groups = [group for group in groups if group not in met] + [set(pair).union(*met)]
    return sorted(map(sorted, groups))


def groups_in_words(groups: list[list[str]]) -> str:
    """a, b and c; d and e."""
    return "; ".join(map(listed, groups))


def digest(weight: Float[Tensor, "neurons d_model"]) -> str:
    """SHA-256 of weights' values in fp32; a zero counts as +0, whatever its sign."""
    return sha256((weight.float() + 0.0).contiguous().numpy().tobytes()).hexdigest()


@torch.inference_mode()
def logits_of(model: nn.Module, tokens: Int[Tensor, "blocks context"]) -> Float[Tensor, "blocks context vocabulary"]:
    """A model's logits on the first BLOCKS blocks, on the CPU."""
    tokens = tokens[:BLOCKS, :POSITIONS].to(model.device)
    return torch.cat([model(block, use_cache=False).logits.float().cpu() for block in tokens.split(1)])


def plain_logits(model: nn.Module, tokens: Int[Tensor, "blocks context"]) -> Float[Tensor, "blocks context vocabulary"]:
    """`logits_of` a model just loaded, with the attention that transformers writes out (eager)."""
    model.set_attn_implementation("eager")
    return logits_of(model, tokens)


def seed_check(name: str, w_in: Tensor, plain: Tensor, found: Tensor) -> dict:
    """One seed's row of tables/seed_checks.parquet: the largest difference of its logits, their standard deviation, and
    the digest of its first w_in."""
    difference = float((found - plain).abs().max())
    return {
        "seed": name,
        "blocks": len(plain),
        "logit_difference": difference,
        "logit_spread": float(plain.std()),
        "w_in_sha256": digest(w_in),
    }
