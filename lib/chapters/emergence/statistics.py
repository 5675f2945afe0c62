"""What changes while seeds train: from tables of checkpoints to indicators, persistence, births and deaths.

A neuron keeps its layer and index while its model trains, so it can be followed from checkpoint to checkpoint
(docs/method.md §7; arXiv 2508.00903). `neurons` has the rows of all checkpoints, in order, with the columns `point` and
`is_universal`.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy.stats import binom
from torch import Tensor, nn

from lib.chapters.circuits.roles import NULL_QUANTILE, PUBLISHED_CUTS, Cuts, null_cuts, roles
from lib.chapters.universality.properties import reference_shares
from lib.display.claims import SIGNIFICANT

HEAD_BLOCKS = 8  # blocks of text on which heads are scored, and as many of random tokens
KEYS = ["seed", "layer", "neuron"]
HEAD_BAR = 0.5  # share of its attention from which a head counts as one of a kind
COUNTS = ["prediction", "suppression", "peaked_positive", "peaked_negative", "low_variance"]  # of neurons, by layer
LEAST_UNIVERSAL = 0.01  # share of universal neurons from which they have appeared


# ---------------------------------------------------------------- heads


def bos_attention(pattern: Float[Tensor, "blocks heads context context"]) -> Float[Tensor, "heads"]:
    """Mean attention to the first token from the second half of the context (chapter 6: from counted positions)."""
    return pattern[:, :, pattern.shape[-1] // 2 :, 0].mean(dim=(0, 2))


def previous_token_score(pattern: Float[Tensor, "blocks heads context context"]) -> Float[Tensor, "heads"]:
    """Mean attention to the token before, from the third token on: that of the second token is BOS."""
    return pattern.diagonal(offset=-1, dim1=2, dim2=3)[..., 1:].mean(dim=(0, 2))


def induction_score(pattern: Float[Tensor, "blocks heads context context"], length: int) -> Float[Tensor, "heads"]:
    """Mean attention of a repeat's tokens to the token after their first occurrence (arXiv 2209.11895).

    The blocks are those of `repeated_tokens`: BOS, `length` tokens, the same tokens again. The repeat of the token at
    position i stands at i + length, and the token after its first occurrence at i + 1.
    """
    return pattern.diagonal(offset=1 - length, dim1=2, dim2=3)[..., -length:].mean(dim=(0, 2))


def repeated_tokens(
    blocks: int, context: int, allowed: Int[Tensor, "ids"], bos_id: int, random_seed: int
) -> Int[Tensor, "blocks context"]:
    """BOS, random tokens out of `allowed`, then the same tokens again; an odd last position is left out."""
    length = (context - 1) // 2
    generator = torch.Generator().manual_seed(random_seed)
    drawn = allowed[torch.randint(len(allowed), (blocks, length), generator=generator)]
    return torch.cat([torch.full((blocks, 1), bos_id), drawn, drawn], dim=1)


@torch.no_grad()
def head_table(
    model: nn.Module, tokens: Int[Tensor, "blocks context"], repeated: Int[Tensor, "blocks twice"]
) -> pd.DataFrame:
    """One row per head: layer, head, bos and previous (on text), induction (on repeated random tokens).

    Eager attention, block by block: the fused kernels do not return the pattern.
    """
    model.set_attn_implementation("eager")
    length = (repeated.shape[1] - 1) // 2

    def means(text: Tensor, *scores: Callable[[Tensor], Tensor]) -> list[Float[Tensor, "layers heads"]]:
        found = []
        for block in text.split(1):
            patterns = model(block, output_attentions=True, use_cache=False).attentions  # one a layer
            found.append([torch.stack([score(own.float()) for own in patterns]) for score in scores])
        return [torch.stack(blocks).mean(0).cpu().double() for blocks in zip(*found, strict=True)]

    bos, previous = means(tokens, bos_attention, previous_token_score)
    (induction,) = means(repeated, lambda pattern: induction_score(pattern, length))
    layers, heads = bos.shape
    table = pd.DataFrame({"layer": np.repeat(np.arange(layers), heads), "head": np.tile(np.arange(heads), layers)})
    named = {"bos": bos, "previous": previous, "induction": induction}
    return table.assign(**{name: values.flatten().numpy() for name, values in named.items()})


# ---------------------------------------------------------------- neurons at one checkpoint


def layer_indicators(
    neurons: pd.DataFrame, matches: pd.DataFrame, null: dict[str, Float[Tensor, "directions"]]
) -> pd.DataFrame:
    """One row per layer of one seed, from its neurons, its matches and its random directions.

    Columns: layer, neurons; prediction, suppression, partition (counts, calibrated cuts); peaked_positive,
    peaked_negative (counts, published kurtosis cut, by sign of the skew); low_variance (count, logit variance below
    that of 99.9 % of random directions); max_kurt, null_kurt, null_var, null_low; same_layer, the share of best matches
    in the neuron's own layer (of those with a correlation above 0).
    """
    cuts = null_cuts(null)
    low = float(np.quantile(null["vocab_var"].numpy(), 1 - NULL_QUANTILE))
    peaked = neurons["vocab_kurt"] > PUBLISHED_CUTS.kurtosis
    found = matches[matches["corr"] > 0]
    flagged = neurons[["layer"]].assign(
        **{role: roles(neurons, cuts) == role for role in ("prediction", "suppression", "partition")},
        peaked_positive=peaked & (neurons["vocab_skew"] > 0),
        peaked_negative=peaked & (neurons["vocab_skew"] < 0),
        low_variance=neurons["vocab_var"] < low,
    )
    table = flagged.groupby("layer").sum()
    table.insert(0, "neurons", neurons.groupby("layer").size())
    table["max_kurt"] = neurons.groupby("layer")["vocab_kurt"].max()
    table["same_layer"] = (found["layer"] == found["match_layer"]).groupby(found["layer"]).mean()
    return table.reset_index().assign(null_kurt=cuts.kurtosis, null_var=cuts.variance, null_low=low)


def neuron_rows(neurons: pd.DataFrame, matches: pd.DataFrame, cuts: dict[str, Cuts]) -> pd.DataFrame:
    """What is kept of every neuron of every seed at one checkpoint, in few bytes.

    Columns: seed, layer, neuron, max_corr, excess_corr (four decimals), dead, role (calibrated cuts of its seed) and
    partner_<seed>, its best match in each compared seed as a flat index (−1 in its own seed).
    """
    width = int(neurons["neuron"].max()) + 1
    rows = neurons[[*KEYS, "max_corr", "excess_corr", "dead"]].copy()
    rows["role"] = pd.concat([roles(own, cuts[seed]) for seed, own in neurons.groupby("seed", sort=False)])
    flat = matches.assign(partner=matches["match_layer"] * width + matches["match_neuron"])
    wide = flat.pivot(index=KEYS, columns="model", values="partner").fillna(-1).astype("int32").add_prefix("partner_")
    rows = rows.merge(wide.reset_index(), on=KEYS, validate="one_to_one")
    rows[["max_corr", "excess_corr"]] = rows[["max_corr", "excess_corr"]].round(4).astype("float32")
    return rows.astype({"layer": "int16", "neuron": "int32", "role": "category"})


# ---------------------------------------------------------------- from checkpoint to checkpoint


def middle_point(points: pd.DataFrame) -> str:
    """The last point at no more than half of the training: where persistence starts. Rows point, step, tokens."""
    for column in ("tokens", "step"):
        values = pd.to_numeric(points[column]).astype(float)
        if values.notna().all():
            before = points.loc[values <= values.iloc[-1] / 2, "point"]
            return before.iloc[-1] if len(before) else points["point"].iloc[0]
    return points["point"].iloc[-2:].iloc[0]


def constant_rate(points: pd.DataFrame) -> pd.DataFrame:
    """The points at a constant learning rate (column `constant`); none where the schedule is not known."""
    return points[points["constant"]]


def shares_by_seed(neurons: pd.DataFrame) -> pd.DataFrame:
    """Share of universal neurons of each seed (rows) at each point (columns, in order of training)."""
    return _flags(neurons).groupby(level="seed").mean()


def seed_shares(neurons: pd.DataFrame) -> pd.DataFrame:
    """`reference_shares` of one point, with the median excess of each seed (median_excess)."""
    median = neurons.groupby("seed")["excess_corr"].median()
    return reference_shares(neurons).assign(median_excess=lambda table: table["seed"].map(median))


def fullest_layers(layers: pd.DataFrame) -> tuple[list[int], pd.DataFrame]:
    """The fewest layers that hold half of the universal neurons of the last point, and numbers by point and layer.

    `layers`: rows point, layer and universal, in the order of training; numbers are summed over seeds.
    """
    numbers = layers.groupby(["point", "layer"], sort=False)["universal"].sum().unstack()
    ordered = numbers.iloc[-1].sort_values(ascending=False, kind="stable")
    missing = ordered.cumsum().shift(fill_value=0) < ordered.sum() / 2
    return sorted(ordered.index[missing]), numbers


def transitions(neurons: pd.DataFrame) -> pd.DataFrame:
    """One row per seed and checkpoint after the first: seed, point, and counts against the checkpoint before it.

    before, after: universal neurons then and now; stay: at both; births, deaths: at the later or earlier one only.
    excess_before: mean excess of the births at the checkpoint before; NaN without any.
    """
    rows = []
    excess = neurons.pivot(index=KEYS, columns="point", values="excess_corr")
    for seed, flags in _flags(neurons).groupby(level="seed"):
        for earlier, later in pairwise(flags):
            before, after = flags[earlier], flags[later]
            born = after & ~before
            masks = (before, after, before & after, born, before & ~after)
            stood = excess.loc[born.index[born], earlier].mean()
            rows.append((seed, later, *(int(mask.sum()) for mask in masks), stood))
    columns = ["seed", "point", "before", "after", "stay", "births", "deaths", "excess_before"]
    return pd.DataFrame(rows, columns=columns)


def persistence(neurons: pd.DataFrame) -> pd.DataFrame:
    """One row per seed and checkpoint s before the last: P(s → end) of arXiv 2508.00903, with chance and partners.

    Columns: seed, point; universal (at s); kept (also at the end); persistence = kept / universal; chance, the same for
    as many random neurons of the same layers; same_partner, the share of kept neurons' best matches, over compared
    seeds, that are the same neuron at s and at the end (of those that the table has). NaN where there is none.
    """
    flags = _flags(neurons)
    *earlier, last = flags
    chance = flags[last].groupby(level=["seed", "layer"]).transform("mean")
    partners = neurons.set_index(["point", *KEYS]).filter(like="partner_")
    after = partners.loc[last].reindex(flags.index)
    columns = ["seed", "point", "universal", "kept", "persistence", "chance", "same_partner"]
    parts = [pd.DataFrame(columns=columns)] if not earlier else []
    for point in earlier:
        then, before = flags[point], partners.loc[point].reindex(flags.index)
        kept = then & flags[last]
        known = (before >= 0) & (after >= 0) & kept.to_numpy()[:, None]
        same = known & (before == after)
        counted = {"universal": then, "kept": kept, "pairs": known.sum(axis=1), "same": same.sum(axis=1)}
        rows = pd.DataFrame(counted).groupby(level="seed").sum()
        rows["persistence"] = rows["kept"] / rows["universal"].where(rows["universal"] > 0)
        rows["chance"] = chance[then].groupby(level="seed").mean()
        rows["same_partner"] = rows["same"] / rows["pairs"].where(rows["pairs"] > 0)
        parts.append(rows.assign(point=point).reset_index()[columns])
    return pd.concat(parts, ignore_index=True)


def layer_persistence(neurons: pd.DataFrame, start: str) -> pd.DataFrame:
    """One row per seed and layer: seed, layer, universal (neurons at `start`) and kept (at the end too)."""
    flags = _flags(neurons)
    counts = pd.DataFrame({"universal": flags[start], "kept": flags[start] & flags.iloc[:, -1]})
    return counts.groupby(level=["seed", "layer"]).sum().reset_index()


def first_universal(neurons: pd.DataFrame) -> pd.DataFrame:
    """The universal neurons of the last point and `since`, the point from which they have been so without a break.

    Columns: seed, layer, neuron, order (place of `since` among the points), since, role (at the end).
    """
    flags = _flags(neurons)
    backwards = flags.to_numpy()[:, ::-1]
    streak = np.where(backwards.all(1), backwards.shape[1], backwards.argmin(1))
    table = flags.index.to_frame(index=False).assign(order=len(flags.columns) - streak)[streak > 0]
    end = neurons.loc[neurons["point"] == flags.columns[-1], [*KEYS, "role"]]
    return table.assign(since=flags.columns[table["order"]]).merge(end, on=KEYS, validate="one_to_one")


def _flags(neurons: pd.DataFrame) -> pd.DataFrame:
    """Whether each neuron (index KEYS) is universal at each point (columns, in order of training)."""
    wide = neurons.set_index([*KEYS, "point"])["is_universal"].unstack("point")
    return wide[list(dict.fromkeys(neurons["point"]))]


# ---------------------------------------------------------------- summaries over checkpoints


def by_point(neurons: pd.DataFrame, summarise) -> pd.DataFrame:
    """`summarise(rows of one point)` of every point in order, one table with a column point."""
    parts = [summarise(own).assign(point=point) for point, own in neurons.groupby("point", sort=False)]
    return pd.concat(parts, ignore_index=True)


def appearances(indicators: dict[str, tuple[pd.Series, float]]) -> pd.DataFrame:
    """From which point on an indicator stays above its bar in every seed.

    `indicators`: name → (values with index seed, point, in order of training; bar). Columns: indicator, bar, first (a
    point, or None), any_first (the same for at least one seed), low, mean, high (over seeds at the last point).
    """
    rows = []
    for name, (values, bar) in indicators.items():
        wide = values.unstack("point")[list(dict.fromkeys(values.index.get_level_values("point")))]
        above, last = wide > bar, wide.iloc[:, -1]
        first, any_first = _from_here_on(above.all()), _from_here_on(above.any())
        rows.append((name, bar, first, any_first, last.min(), last.mean(), last.max()))
    return pd.DataFrame(rows, columns=["indicator", "bar", "first", "any_first", "low", "mean", "high"])


def _from_here_on(above: pd.Series) -> str | None:
    """The first point from which on all values are true."""
    stays = above[::-1].cummin()[::-1]
    return stays.idxmax() if stays.any() else None


def indicators(heads: pd.DataFrame, layers: pd.DataFrame, shares: pd.DataFrame) -> dict[str, tuple[pd.Series, float]]:
    """The indicators of `appearances` with their bars, which are conventions.

    A count of neurons must exceed what one random direction in a thousand gives in no seed, with 95 % probability. The
    published kurtosis cut is none of them: over the whole vocabulary never-learned tokens alone can exceed it.
    """
    keys = ["seed", "point"]
    best = heads.groupby(keys, sort=False)[["previous", "induction", "bos"]].max()
    total = layers.groupby(keys, sort=False)[["neurons", *COUNTS]].sum()
    seeds = total.index.get_level_values("seed").nunique()
    chance = float(binom.ppf(1 - SIGNIFICANT / seeds, total["neurons"].max(), 1 - NULL_QUANTILE))
    return {
        "best head's attention to the previous token": (best["previous"], HEAD_BAR),
        "best head's induction score": (best["induction"], HEAD_BAR),
        "best head's attention to BOS": (best["bos"], HEAD_BAR),
        "neurons with W_U kurtosis above the calibrated cut": (total["prediction"] + total["suppression"], chance),
        "neurons with a logit variance below the null's": (total["low_variance"], chance),
        "share of universal neurons": (shares.set_index(keys)["share"], LEAST_UNIVERSAL),
    }


def kinds_of(groups: pd.DataFrame, kinds: pd.Series) -> pd.DataFrame:
    """Share of each kind among early and late neurons: when, kind, share, of (how many neurons).

    `kinds` is aligned with `groups`; neurons without a kind are left out.
    """
    known = groups.assign(kind=kinds).dropna(subset="kind")
    shares = known.groupby("when")["kind"].value_counts(normalize=True).rename("share")
    return shares.reset_index().merge(known["when"].value_counts().rename("of"), on="when")
