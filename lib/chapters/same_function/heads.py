"""Do attention heads recur? From what each head writes to its best match in another seed, its null and its type.

Two heads of different seeds write into different bases. Their correlation is √RV, with RV the coefficient of Robert and
Escoufier (the linear CKA of the two outputs), which no rotation of either basis changes: for heads that write along one
direction each it is |ρ|. The null cuts a layer's rotated outputs into as many heads again (docs/method.md §7).
"""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lib.base.hub import seed_source
from lib.cache import kept
from lib.chapters.emergence.statistics import HEAD_BAR, HEAD_BLOCKS, head_table, repeated_tokens
from lib.chapters.interventions.tables import model_of
from lib.chapters.universality.measures import neuron_measures
from lib.chapters.universality.null_tables import Sample
from lib.kernels.correlation import haar_rotation
from lib.kernels.forward import causal_attention
from lib.kernels.fused import OPERAND_DTYPES
from lib.kernels.sketch import product
from lib.models.processed import Processed
from lib.models.trunk import load_model
from lib.run import Run
from lib.text.blocks import evenly_spaced

MAX_TOKENS = 12_288  # positions of text that heads are compared on
HELD_BYTES = 2**31  # of all seeds' outputs in memory: longer outputs on fewer tokens
BATCH_TOKENS = 2_048  # positions in a forward pass
DRAWS = 5  # rotations of each layer
ROTATION_DRAW = 3_000  # the first; none of chapters 2 to 4
TYPES = {
    "induction": "induction head",
    "previous": "previous-token head",
    "bos": "BOS sink",
}  # the first that fits names a head
NO_TYPE = "none"
HEAD = ["layer", "head"]
NULLS = ("baseline", "equal_baseline")  # columns: outputs as they are, and of heads scaled to the same ‖Σ‖
Turns = Sequence[Float[Tensor, "width width"]]  # rotations of the outputs of a layer


# ---------------------------------------------------------------- outputs


@torch.inference_mode()
def head_outputs(
    model: Processed, tokens: Int[Tensor, "blocks context"], counted: Bool[Tensor, "blocks context"]
) -> Float[Tensor, "tokens layers heads d_head"]:
    """What each head writes on the counted tokens, W_O z, less its mean, in an orthonormal basis of the head's own.

    W_O = R Q with orthonormal rows Q: z R has the lengths and angles of W_O z in d_head numbers. What is constant over
    tokens, as the values' bias, goes with the mean.
    """
    bases = [torch.linalg.qr(block.out.transpose(1, 2))[1].transpose(1, 2) for block in model.blocks]
    parts = []
    for some, keep in zip(
        *(of.split(max(1, BATCH_TOKENS // tokens.shape[1])) for of in (tokens, counted)), strict=True
    ):
        residual, written = model.embed(some), []
        for layer, block in enumerate(model.blocks):
            qkv = model.heads(residual, layer)
            z = causal_attention(*qkv, scale=block.attention_scale)[keep]  # (tokens, heads, d_head)
            written.append(torch.einsum("the,hef->thf", z, bases[layer]))
            if layer + 1 < len(model.blocks):
                _, residual = model.layer(residual, layer, qkv)
        parts.append(torch.stack(written, 1))
    found = torch.cat(parts)
    return found - found.mean(0)


class Outputs(NamedTuple):
    """One seed's heads on a sample, as `compared` takes them: an operand of products, and norms of covariances.

    `scales` are what the outputs are multiplied with before a rotation, a row for each of NULLS.
    """

    values: Float[Tensor, "tokens total"]  # layer after layer, head after head
    heads: int
    d_head: int
    norm: Float[Tensor, "all_heads"]
    scales: Float[Tensor, "nulls total"]
    turned_norm: Float[Tensor, "nulls draws all_heads"]

    @property
    def width(self) -> int:
        """Numbers that one layer's heads write."""
        return self.heads * self.d_head

    @classmethod
    def of(cls, found: Float[Tensor, "tokens layers heads d_head"], turns: Turns, dtype: torch.dtype) -> "Outputs":
        """From `head_outputs` and rotations; `dtype` is that of the products' operands."""
        heads, d_head = found.shape[2:]
        width, values = heads * d_head, found.flatten(1).to(dtype)
        within = [product(own, own).to(turns[0]) for own in values.split(width, 1)]
        norm = torch.cat([own_norms(own, d_head) for own in within])
        equal = torch.where(norm > 0, norm.rsqrt(), 0).repeat_interleave(d_head)
        scales = torch.stack([torch.ones_like(equal), equal])  # in the order of NULLS
        turned = norm.new_empty(len(scales), len(turns), len(norm))
        for null, scale in enumerate(scales):
            for draw, turn in enumerate(turns):
                maps = (turn * part for part in scale.split(width))
                turned[null, draw] = torch.cat(
                    [own_norms(m @ own @ m.T, d_head) for m, own in zip(maps, within, strict=True)]
                )
        return cls(values, heads, d_head, norm, scales, turned)


# ---------------------------------------------------------------- correlations


def squares(products: Float[Tensor, "a b"], size_a: int, size_b: int) -> Float[Tensor, "heads_a heads_b"]:
    """‖C_ij‖² of the blocks of a matrix, of size_a rows and size_b columns each."""
    return products.unflatten(0, (-1, size_a)).unflatten(2, (-1, size_b)).square().sum((1, 3))


def own_norms(within: Float[Tensor, "width width"], d_head: int) -> Float[Tensor, "heads"]:
    """‖Σ_i‖ of the heads of one layer."""
    return squares(within, d_head, d_head).diagonal().sqrt()


def root_rv(
    squared: Float[Tensor, "heads_a heads_b"], norm_a: Float[Tensor, "heads_a"], norm_b: Float[Tensor, "heads_b"]
) -> Float[Tensor, "heads_a heads_b"]:
    """√(‖C_ij‖² / (‖Σ_i‖ ‖Σ_j‖)); 0 for a head that writes a constant."""
    scale = torch.outer(norm_a, norm_b)
    return torch.where(scale > 0, squared / scale, 0).sqrt()


class Compared(NamedTuple):
    """√RV of the heads of two seeds, and the best match of each head of one among the other's rotated heads."""

    corr: Float[Tensor, "heads_a heads_b"]
    a_baseline: Float[Tensor, "nulls draws heads_a"]
    b_baseline: Float[Tensor, "nulls draws heads_b"]


def compared(a: Outputs, b: Outputs, turns_a: Turns, turns_b: Turns) -> Compared:
    """All heads of seed a with all of seed b, from one product for each layer of a.

    The null cuts R · scale · [o_1 … o_H], a layer's rotated outputs, into H heads again.
    """
    corr, forward = [], a.norm.new_zeros(len(NULLS), len(turns_b), len(a.norm))
    back = a.norm.new_zeros(len(NULLS), len(turns_a), len(b.norm))
    for layer, own in enumerate(a.values.split(a.width, 1)):
        at = slice(layer * a.heads, (layer + 1) * a.heads)
        products = product(own, b.values).to(a.norm)  # (width, total)
        corr.append(root_rv(squares(products, a.d_head, b.d_head), a.norm[at], b.norm))
        for null, (scale_a, scale_b) in enumerate(zip(a.scales, b.scales, strict=True)):
            scaled = (products * scale_b).unflatten(1, (-1, b.width))
            for draw, turn in enumerate(turns_b):
                squared = squares((scaled @ turn.T).flatten(1), a.d_head, b.d_head)
                forward[null, draw, at] = root_rv(squared, a.norm[at], b.turned_norm[null, draw]).amax(1)
            for draw, turn in enumerate(turns_a):
                squared = squares((turn * scale_a.split(a.width)[layer]) @ products, a.d_head, b.d_head)
                found = root_rv(squared, a.turned_norm[null, draw, at], b.norm).amax(0)
                back[null, draw] = torch.maximum(back[null, draw], found)
    return Compared(torch.cat(corr), forward, back)


# ---------------------------------------------------------------- tables


def head_types(run: Run) -> pd.DataFrame:
    """head_types.parquet: one row per head of every seed: seed, layer, head; bos, previous, induction; type.

    The scores are those of chapter 07 (docs/method.md §7), on HEAD_BLOCKS blocks spread over the text. A score above
    HEAD_BAR makes a type; of two the first of TYPES, since an induction head rests on BOS where nothing repeats.
    """
    text, random_seed = run.text, run.params.random_seed

    def make() -> pd.DataFrame:
        allowed = torch.tensor(sorted(set(range(text.vocab_size)) - {text.bos_id, *text.newline_ids}))
        repeated = repeated_tokens(HEAD_BLOCKS, text.context, allowed, text.bos_id, random_seed)
        tokens, parts = text.tokens[evenly_spaced(len(text.tokens), HEAD_BLOCKS)], []
        for seed in sorted(run.params.seeds):
            table = head_table(load_model(seed_source(run.params, seed)), tokens, repeated)
            fits = [table[name] > HEAD_BAR for name in TYPES]
            parts.append(table.assign(type=np.select(fits, list(TYPES.values()), NO_TYPE), seed=seed))
        return pd.concat(parts, ignore_index=True)[["seed", *HEAD, "bos", "previous", "induction", "type"]]

    return kept(run, "head_types", __name__, {"tokens": text.tokens.numel(), "random_seed": random_seed}, make)


def measured(run: Run) -> pd.DataFrame:
    """One row per head of every reference and compared seed: seed, layer, head, model; match_layer, match_head, corr;
    the mean over DRAWS rotations of each of NULLS; and the number of counted `tokens`."""
    models = {seed: model_of(run, seed) for seed in sorted(run.params.seeds)}
    dtype, references = OPERAND_DTYPES[run.done["precision"]], run.done["references"]
    width = {seed: one.blocks[0].out.shape[:2].numel() for seed, one in models.items()}
    held = dtype.itemsize * sum(width[seed] * len(one.blocks) for seed, one in models.items())  # bytes of each token
    sample = Sample.of(run.text, min(MAX_TOKENS, HELD_BYTES // held))
    draws, wide = range(ROTATION_DRAW, ROTATION_DRAW + DRAWS), torch.promote_types(dtype, torch.float32)
    turns = {n: [haar_rotation(n, run.params.random_seed, draw).to(wide) for draw in draws] for n in width.values()}
    outputs = {
        seed: Outputs.of(head_outputs(model, sample.tokens, sample.counted), turns[width[seed]], dtype)
        for seed, model in models.items()
    }
    parts = []
    for a, b in combinations(outputs, 2):
        if not {a, b} & {*references}:
            continue
        corr, *baselines = compared(outputs[a], outputs[b], turns[width[a]], turns[width[b]])
        for own, other, matrix, baseline in zip((a, b), (b, a), (corr, corr.T), baselines, strict=True):
            best, match = matrix.max(1)
            made = _places(torch.arange(len(matrix)), outputs[own].heads)
            made |= _places(match, outputs[other].heads, "match_") | {"corr": best}
            made |= dict(zip(NULLS, baseline.mean(1), strict=True))
            table = pd.DataFrame({name: values.numpy() for name, values in made.items()})
            parts.append(table.assign(seed=own, model=other))
    table = pd.concat(parts).sort_values(["seed", "model", *HEAD], ignore_index=True)
    return table[table["seed"].isin(references)].assign(tokens=len(sample.position))


def _places(index: Int[Tensor, "some"], heads: int, prefix: str = "") -> dict[str, Tensor]:
    return {f"{prefix}layer": index // heads, f"{prefix}head": index % heads}


def heads(run: Run) -> pd.DataFrame:
    """heads.parquet, made once and kept with the run: the rows of `measured`, with types and scores.

    `type`, the scores bos, previous and induction, and `<score>_rank`, the score's rank within the layer as a share,
    less the layer's mean, and `<score>_first`, whether it is the largest of the seed, of the head; the same of its
    match as `match_type` and so on. `type_share` is the share of the compared seed's heads that have the head's type.
    """
    text, types = run.text, head_types(run)

    def make() -> pd.DataFrame:
        ranks = types.groupby(["seed", "layer"])[list(TYPES)].rank(pct=True)
        ranks -= ranks.groupby([types["seed"], types["layer"]]).transform("mean")
        first = types.groupby("seed")[list(TYPES)].transform("max") == types[list(TYPES)]
        ranked = types.join(ranks.add_suffix("_rank")).join(first.add_suffix("_first"))
        match = ranked.rename(columns={name: f"match_{name}" for name in ranked if name != "seed"})
        match = match.rename(columns={"seed": "model"})
        table = measured(run).merge(ranked, on=["seed", *HEAD])
        table = table.merge(match, on=["model", *(f"match_{name}" for name in HEAD)])
        share = types.groupby("seed")["type"].value_counts(normalize=True)
        pairs = pd.MultiIndex.from_frame(table[["model", "type"]])
        table = table.assign(type_share=share.reindex(pairs).fillna(0).to_numpy())
        return table.sort_values(["seed", "model", *HEAD], ignore_index=True)

    return kept(run, "heads", __name__, {"tokens": text.tokens.numel(), "random_seed": run.params.random_seed}, make)


# ---------------------------------------------------------------- summaries


def by_head(table: pd.DataFrame, null: str = NULLS[0]) -> pd.DataFrame:
    """One row per head of every reference: seed, layer, head, type and the measures of docs/method.md §2, from its best
    matches and baselines in the compared seeds: mean_corr, mean_baseline, excess_corr, adjusted_excess and so on."""
    parts = []
    for _, own in table.groupby("seed", sort=False):
        ordered = own.sort_values(["model", *HEAD])
        number = ordered["model"].nunique()
        arrays = (ordered[name].to_numpy(float).reshape(number, -1) for name in ("corr", null))
        first = ordered.iloc[: len(ordered) // number][["seed", *HEAD, "type"]].reset_index(drop=True)
        parts.append(first.assign(**neuron_measures(*arrays)))
    return pd.concat(parts, ignore_index=True)


def used_room(measures: pd.DataFrame) -> float:
    """The adjusted excess of a group of heads or neurons: their mean excess over their mean room above the baseline.

    A mean of single ones would be decided by those whose baseline is near 1.
    """
    return float(measures["excess_corr"].mean() / (1 - measures["mean_baseline"]).mean())


def mutual(table: pd.DataFrame) -> pd.Series:
    """Whether a head is its match's best match in turn; NA where the match's seed is no reference."""
    back = table.set_index(["seed", *HEAD, "model"])[[f"match_{name}" for name in HEAD]]
    there = pd.MultiIndex.from_frame(table[["model", *(f"match_{name}" for name in HEAD), "seed"]])
    found = back.reindex(there)
    same = (found.to_numpy() == table[HEAD].to_numpy()).all(1)
    return pd.Series(same, table.index, dtype="boolean").mask(found.isna().any(axis=1).to_numpy())


def score_agreement(table: pd.DataFrame) -> pd.DataFrame:
    """One row per reference, one column per score: the correlation between the ranks of a head and of its best match
    within their layers. Depth adds nothing to it: exchanged within its layer, a match gives 0 in expectation."""
    return pd.DataFrame({seed: rank_correlation(own) for seed, own in table.groupby("seed")}).T.rename_axis("seed")


def rank_correlation(table: pd.DataFrame) -> pd.Series:
    """By score the correlation of ranks of `score_agreement` over all rows; NaN where nothing varies."""
    parts = {}
    for name in TYPES:
        x, y = table[f"{name}_rank"], table[f"match_{name}_rank"]
        single = (x * x).sum() * (y * y).sum()
        parts[name] = (x * y).sum() / single**0.5 if single > 0 else np.nan
    return pd.Series(parts)


def first_agreement(table: pd.DataFrame) -> pd.DataFrame:
    """By score: of the heads with the largest score of their seed, the share whose match has that of the other seed
    (`share`), and what the match exchanged within its layer would give (`chance`), where the other is a reference."""
    rows, heads = {}, table["head"].max() + 1
    for name in TYPES:
        own, firsts = table[table[f"{name}_first"]], table[table[f"{name}_first"]].drop_duplicates("seed")
        layer = own["model"].map(firsts.set_index("seed")["layer"])
        chance = (own["match_layer"] == layer)[layer.notna()].mean() / heads
        rows[name] = {"share": own[f"match_{name}_first"].mean(), "chance": chance}
    return pd.DataFrame(rows).T
