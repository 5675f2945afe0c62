"""Function without text: does a map of the residual stream, fitted on tokens alone, lead a neuron to its match?

The seeds share their tokens, so the rows of their embeddings and unembeddings correspond. One rotation takes those of
seed a to those of seed b (orthogonal Procrustes). It also takes a neuron's w_in and w_out into b, where the neurons of
b are ranked by their cosines with them. No activation is used (docs/method.md §7).
"""

from hashlib import sha256
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree
from torch import Tensor, nn
from torch.nn.functional import normalize

from lib.base.hub import seed_source
from lib.base.machine import device_of
from lib.base.params import read_params
from lib.cache import kept
from lib.chapters.circuits.roles import unlearned_tokens
from lib.models.folded import folded
from lib.models.trunk import load_model
from lib.run import Run, with_universal
from lib.text.tokens import token_bytes

KEY = ["seed", "layer", "neuron"]
DRAWN = {
    True: 16_384,
    False: 1_024,
}  # neurons ranked beside the universal ones: of the run's reference, of another seed
ROWS = 256  # neurons whose cosines are in memory at once
CONTROLS = ("exchanged", "matched")  # neurons that are ranked in the match's place


class Space(NamedTuple):
    """One seed's residual stream: where the tokens lie, and what neurons read and write, layer after layer.

    Of folded weights, centred over the residual stream where the norms are. A gated neuron has no single w_in, so that
    `neurons` has w_out alone.
    """

    embedding: Float[Tensor, "tokens d_model"]
    unembedding: Float[Tensor, "tokens d_model"]
    learned: Bool[Tensor, "tokens"]
    neurons: Float[Tensor, "total parts d_model"]


@torch.no_grad()
def space(model: nn.Module, pieces: list[bytes]) -> Space:
    """The space of a plain model; `pieces` are the bytes of the tokens that the seeds share."""
    weights, tokens = folded(model), len(pieces)
    embedding = model.get_input_embeddings().weight.detach().float().cpu()[:tokens]
    unembedding = weights.unembedding[:, :tokens]
    if weights.centred:  # every reader is blind to the mean of the residual stream
        embedding = embedding - embedding.mean(1, keepdim=True)
    parts = [torch.cat(part) for part in (weights.w_in, weights.w_out) if part is not None]
    learned = ~unlearned_tokens(normalize(unembedding, dim=0), pieces)
    return Space(embedding, unembedding.T, learned, torch.stack(parts, 1))


def token_map(a: Space, b: Space) -> Float[Tensor, "d_a d_b"]:
    """The orthogonal Q that brings a's token embeddings and unembeddings closest to b's.

    It minimises ‖E_a Q − E_b‖² + ‖U_a Q − U_b‖² over the tokens that both seeds have learned. Each of the four
    matrices is centred over tokens and has the Frobenius norm 1, so that embeddings and unembeddings weigh alike. In
    fp64.
    """
    kept_tokens = a.learned & b.learned
    products = [
        _scaled(own[kept_tokens]).T @ _scaled(other[kept_tokens])
        for own, other in ((a.embedding, b.embedding), (a.unembedding, b.unembedding))
    ]
    left, _, right = torch.linalg.svd(sum(products), full_matrices=False)
    return left @ right


def _scaled(rows: Float[Tensor, "tokens d_model"]) -> Float[Tensor, "tokens d_model"]:
    centred = rows.double() - rows.double().mean(0)
    return centred / centred.norm()


def side_by_side(neurons: Float[Tensor, "some parts d_model"]) -> Float[Tensor, "some d"]:
    """Each neuron's vectors with unit length, side by side.

    The product of two such rows is the sum of the cosines of w_in and of w_out, which weigh alike.
    """
    return normalize(neurons, dim=-1).flatten(1)


def ranks(
    x: Float[Tensor, "some d"], y: Float[Tensor, "total d"], targets: Int[Tensor, "some kinds"]
) -> Int[Tensor, "some kinds"]:
    """The place of each target, a row of y, among all rows of y by their product with a row of x; 1 is the largest.

    Rows with an equal product count before the target, so that a constant has the last place.
    """
    found = torch.empty_like(targets)
    for start in range(0, len(x), ROWS):
        rows = slice(start, start + ROWS)
        product = x[rows] @ y.T
        for kind, target in enumerate(targets[rows].T):
            value = product.gather(1, target[:, None])
            found[rows, kind] = (product >= value).to(torch.uint8).sum(1)
    return found


# ---------------------------------------------------------------- controls


def exchanged(layer: np.ndarray, partner: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Partners exchanged among the neurons of each layer: each one gets that of another neuron (if there is one)."""
    made = partner.copy()
    for one in np.unique(layer):
        order = random.permutation(np.flatnonzero(layer == one))
        made[order] = partner[np.roll(order, 1)]
    return made


def nearest_in_norm(neurons: Float[Tensor, "total parts d_model"], layers: int) -> np.ndarray:
    """For each neuron of a seed the other neuron of its layer with the nearest norms of w_in and w_out, flat."""
    norms = neurons.norm(dim=-1).double().numpy()
    size, made = len(norms) // layers, []
    for first in range(0, len(norms), size):
        own = norms[first : first + size]
        own = own / np.maximum(own.std(0), 1e-30)
        near = cKDTree(own).query(own, k=min(2, size))[1].reshape(size, -1)
        # of two neurons with equal norms, either may be found first
        made.append(first + np.where(near[:, 0] == np.arange(size), near[:, -1], near[:, 0]))
    return np.concatenate(made)


# ---------------------------------------------------------------- the table


def asked_of(neurons: pd.DataFrame, matches: pd.DataFrame, reference: str, random_seed: int) -> pd.DataFrame:
    """Which neurons are ranked, in which compared seed: rows of `matches` with `excess_corr` and `sampled`.

    All universal neurons of every reference, and neurons drawn at random (`sampled`), as many in each layer, as DRAWN
    says. A neuron without a match, of correlation 0 with all others, is not asked.
    """
    parts = []
    for seed, own in neurons.groupby("seed", sort=False):
        number = -(-DRAWN[seed == reference] // own["layer"].nunique())
        drawn = [
            pool.sample(min(number, len(pool)), random_state=np.random.default_rng([random_seed, layer])).index
            for layer, pool in own.groupby("layer")
        ]
        sampled = own.index.isin(np.concatenate(drawn))
        parts.append(own.assign(sampled=sampled)[sampled | own["is_universal"]])
    chosen = pd.concat(parts)[[*KEY, "sampled", "excess_corr"]]
    found = chosen.merge(matches[[*KEY, "model", "match_layer", "match_neuron", "corr"]], on=KEY)
    return found[found["corr"] > 0].sort_values([*KEY, "model"], ignore_index=True)


@torch.inference_mode()
def measured(run: Run, asked: pd.DataFrame) -> pd.DataFrame:
    """The rows that are asked for with `rank`, `exchanged` and `matched`, and the number of `candidates`."""
    pieces, device = token_bytes(run.tokenizer)[: run.text.vocab_size], device_of(run.params)
    wide = torch.float64 if run.done["precision"] == "fp64" else torch.float32
    seeds = sorted({*asked["seed"], *asked["model"]})
    spaces = {seed: space(load_model(seed_source(run.params, seed)), pieces) for seed in seeds}
    near = {seed: nearest_in_norm(own.neurons, run.done["shapes"][seed][0]) for seed, own in spaces.items()}
    maps, parts = {}, []
    for (seed, model), own in asked.groupby(["seed", "model"]):
        (_, n_a), (_, n_b) = (run.done["shapes"][one] for one in (seed, model))
        random = np.random.default_rng([run.params.random_seed, seeds.index(seed), seeds.index(model)])
        partner = (own["match_layer"] * n_b + own["match_neuron"]).to_numpy()
        others = exchanged(own["layer"].to_numpy(), partner, random), near[model][partner]
        targets = torch.from_numpy(np.stack([partner, *others], 1)).to(device)
        chosen = spaces[seed].neurons[torch.tensor((own["layer"] * n_a + own["neuron"]).tolist())]
        if (seed, model) not in maps:
            maps[seed, model] = token_map(spaces[seed], spaces[model]).to(device, wide)
            maps[model, seed] = maps[seed, model].T
        turn = maps[seed, model]
        there = side_by_side(spaces[model].neurons.to(turn))
        found = ranks(side_by_side(chosen.to(turn) @ turn), there, targets).cpu().numpy()
        made = dict(zip(("rank", *CONTROLS), found.T, strict=True))
        parts.append(own.assign(**made, candidates=len(there)))
    return pd.concat(parts, ignore_index=True)


def residual_map(run: Run) -> pd.DataFrame:
    """residual_map.parquet, made once and kept with the run: one row per neuron that is asked and compared seed.

    Columns: seed, layer, neuron, sampled, excess_corr, model, match_layer, match_neuron, corr: the run's match;
    `rank`: its place among all `candidates`, the neurons of the compared seed, by the sum of the cosines of mapped w_in
    and w_out; `exchanged` and `matched`: the places of the match of another neuron of the layer, and of the neuron of
    the match's layer that is nearest in the norms of w_in and w_out.
    """
    neurons, matches = run.table("neurons_all_seeds"), run.table("matches_all_seeds")
    own = run.folder / "params.yaml"  # a session may look at another reference or threshold; this sample serves it too
    asking = read_params(own) if own.exists() else run.params
    asked = asked_of(with_universal(neurons, asking.threshold), matches, asking.reference, run.params.random_seed)
    contents = pd.util.hash_pandas_object(asked, index=False).to_numpy()
    made_from = {"asked": sha256(contents.tobytes()).hexdigest(), "random_seed": run.params.random_seed}
    made_from |= {"precision": run.done["precision"]}
    return kept(run, "residual_map", __name__, made_from, lambda: measured(run, asked))


# ---------------------------------------------------------------- summaries


def selected(table: pd.DataFrame, universal: bool) -> pd.DataFrame:
    """The rows of universal neurons, or those that stand for all neurons."""
    return table[table["is_universal"] if universal else table["sampled"]]


def hits(table: pd.DataFrame) -> pd.DataFrame:
    """The table with `top1` and `reciprocal`, and the same of both controls: `exchanged_top1` and so on."""
    made = {}
    for name, prefix in {"rank": "", **{control: f"{control}_" for control in CONTROLS}}.items():
        made |= {f"{prefix}top1": (table[name] == 1).astype(float), f"{prefix}reciprocal": 1 / table[name]}
    return table.assign(**made)


def by_layer(table: pd.DataFrame, universal: bool = False) -> pd.DataFrame:
    """One row per seed, compared seed and layer: neurons, the shares whose match comes first (top1), and the mean
    reciprocal ranks, of the match and of both controls."""
    rows = hits(selected(table, universal))
    columns = [f"{prefix}{name}" for prefix in ("", "exchanged_", "matched_") for name in ("top1", "reciprocal")]
    grouped = rows.groupby(["seed", "model", "layer"])
    return grouped[columns].mean().assign(neurons=grouped.size()).reset_index()
