"""Entropy and token-frequency neurons: found from weights by a stated rule, with the controls to hold them against.

An entropy neuron writes much, but almost nothing that the unembedding reads: it acts through the final LayerNorm's
scale. A token-frequency neuron moves the logits along the direction of unigram frequency. METHOD §6 and §7.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from lib.chapters.interventions.single_neurons import Readout
from lib.models.processed import Processed
from lib.models.weights import CHUNK

LAST_LAYERS = 2
CANDIDATES = 6
CONTROLS = 20
GRID = (-0.17, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)  # METHOD §6; −0.17 is GELU's minimum
NULL_SHARE = 64  # the null space is the bottom d_model / 64 directions: 12 for GPT2-small, as in arXiv 2406.16254


class NullSpace(NamedTuple):
    """Directions of the residual stream that the unembedding reads least."""

    basis: Float[Tensor, "d_model k"]
    singular_values: Float[Tensor, "directions"]  # of W_U, falling, without the direction that centring removes

    @property
    def chance(self) -> float:
        """The null-space share of a random direction, √(k / directions), about."""
        return (self.basis.shape[1] / len(self.singular_values)) ** 0.5

    @property
    def depth(self) -> float:
        """Largest singular value inside the null space as a share of the median one: far below 1 if it is one."""
        k = self.basis.shape[1]
        return float(self.singular_values[-k] / self.singular_values.median())


def null_space(unembedding: Float[Tensor, "d_model vocabulary"]) -> NullSpace:
    """The k bottom left singular vectors of W_U, k = d_model / 64 and at least 1 (METHOD §7).

    The all-ones direction is left out: centred weights neither write nor read it.
    """
    d_model = len(unembedding)
    k = max(1, d_model // NULL_SHARE)
    ones = torch.ones(d_model, dtype=torch.float64, device=unembedding.device) / d_model**0.5
    wide = unembedding.double()
    wide = wide - ones[:, None] * (ones @ wide)
    # the covariance of size d_model² has the same vectors; all-ones goes to the top, out of the way
    gram = wide @ wide.T
    values, vectors = torch.linalg.eigh(gram + 2 * gram.trace() * torch.outer(ones, ones))
    return NullSpace(vectors[:, :k].to(unembedding.dtype), values[:-1].clamp(min=0).sqrt().flip(0).float())


def null_share(w_out: Float[Tensor, "neurons d_model"], space: NullSpace) -> Float[Tensor, "neurons"]:
    """ρ(k) = ‖projection of w_out on the null space‖ / ‖w_out‖; 0 for a neuron that writes nothing."""
    return (normalize(w_out, dim=1) @ space.basis).norm(dim=1)


def most_opposite(vectors: Float[Tensor, "neurons d_model"]) -> tuple[Tensor, Tensor]:
    """For each vector the index of the one with the lowest cosine to it (its antipodal partner), and that cosine."""
    unit = normalize(vectors, dim=1)
    lowest = [(part @ unit.T).min(dim=1) for part in unit.split(max(1, CHUNK // len(unit)))]
    return torch.cat([low.indices for low in lowest]), torch.cat([low.values for low in lowest])


def frequency_share(w_out: Float[Tensor, "neurons d_model"], reading: Readout) -> Float[Tensor, "neurons"]:
    """Cosine of a neuron's logit effect w_out·W_U with the frequency direction; 0 without any effect on logits."""
    gram = reading.unembedding @ reading.unembedding.T  # ‖w W_U‖² = w gram wᵀ
    length = ((w_out @ gram) * w_out).sum(1).clamp(min=0).sqrt()
    along = w_out @ (reading.unembedding @ reading.frequency)
    return torch.where(length > 1e-12, along / length.clamp(min=1e-12), 0.0)


def logit_variance(
    w_out: Float[Tensor, "neurons d_model"], unembedding: Float[Tensor, "d_model vocabulary"]
) -> Float[Tensor, "neurons"]:
    """Variance over the vocabulary of cos(w_out, W_U[:, v]), as `lib.models.weights.vocabulary_moments` has it; 0 for a neuron that writes nothing.

    A quadratic form in the covariance of the unembedding's unit columns, so that no neuron meets every token.
    """
    columns = normalize(unembedding, dim=0)
    columns = columns - columns.mean(dim=1, keepdim=True)
    unit = normalize(w_out, dim=1)
    return ((unit @ (columns @ columns.T / columns.shape[1])) * unit).sum(dim=1).clamp(min=0)


@torch.no_grad()
def weight_columns(model: Processed, reading: Readout) -> pd.DataFrame:
    """One row per neuron: `w_out_norm`, `vocab_var`, `null_share`, `partner_layer`, `partner_neuron`, `partner_cos`,
    `frequency_share`, `entropy_score` and `entropy` (does it satisfy the rule).

    The rule: among the neurons of the last two layers, norm of w_out in the top decile and logit variance (that of
    cos(w_out, W_U) over the vocabulary) in the bottom decile. The score that ranks them is
    ‖w_out‖ / √logit variance. Neurons of earlier layers have score and flag, NaN and False.
    """
    w_out = model.w_out
    layers, neurons = len(model.blocks), len(model.blocks[0].w_out)
    flat = np.arange(len(w_out))
    partner, cosine = most_opposite(w_out)
    table = pd.DataFrame({"layer": flat // neurons, "neuron": flat % neurons})
    table["w_out_norm"] = w_out.norm(dim=1).numpy()
    table["vocab_var"] = logit_variance(w_out, model.unembedding).numpy()
    table["null_share"] = null_share(w_out, null_space(model.unembedding)).numpy()
    table["partner_layer"], table["partner_neuron"] = partner.numpy() // neurons, partner.numpy() % neurons
    table["partner_cos"] = cosine.numpy()
    table["frequency_share"] = frequency_share(w_out, reading).numpy()
    late = table["layer"] >= layers - LAST_LAYERS
    score = table["w_out_norm"] / np.sqrt(table["vocab_var"].clip(lower=1e-30))
    table["entropy_score"] = score.where(late & (table["w_out_norm"] > 0))
    large = table["w_out_norm"] >= table.loc[late, "w_out_norm"].quantile(0.9)
    small = table["vocab_var"] <= table.loc[late, "vocab_var"].quantile(0.1)
    table["entropy"] = late & large & small & (table["w_out_norm"] > 0)
    return table


def entropy_candidates(table: pd.DataFrame, number: int = CANDIDATES) -> pd.DataFrame:
    """The `number` best neurons of `weight_columns`: those that satisfy the rule first, then by score."""
    late = table[table["entropy_score"].notna()]
    return late.sort_values(["entropy", "entropy_score"], ascending=False, kind="stable").head(number)


def frequency_candidates(table: pd.DataFrame, number: int = CANDIDATES) -> pd.DataFrame:
    """The `number` neurons of the last two layers whose logit effect lies most along ± the frequency direction."""
    late = table[table["entropy_score"].notna()]
    return late.loc[late["frequency_share"].abs().sort_values(ascending=False, kind="stable").index].head(number)


def controls(table: pd.DataFrame, chosen: pd.DataFrame, random_seed: int, number: int = CONTROLS) -> pd.DataFrame:
    """Random neurons of the last two layers outside the top decile of norm and the bottom decile of logit variance.

    METHOD §6; `chosen` neurons are never drawn. Fewer than `number` where there are no more.
    """
    late = table[table["entropy_score"].notna()]
    ordinary = late[
        (late["w_out_norm"] < late["w_out_norm"].quantile(0.9)) & (late["vocab_var"] > late["vocab_var"].quantile(0.1))
    ]
    ordinary = ordinary.drop(index=chosen.index, errors="ignore")
    return ordinary.sample(min(number, len(ordinary)), random_state=random_seed).sort_index()
