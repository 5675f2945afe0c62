"""What changes while seeds train: from tables of one checkpoint after another to indicators, persistence, births, deaths.

A neuron keeps its place (layer, index) while its model trains, so that a neuron that is universal at one checkpoint can
be asked for at the next (METHOD §7; arXiv 2508.00903). Functions take tables and patterns and read nothing.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy.stats import binom
from torch import Tensor, nn

from lib.chapters.circuits.roles import PUBLISHED_CUTS, QUANTILE, Cuts, null_cuts, roles
from lib.chapters.universality.properties import universal
from lib.display.claims import SIGNIFICANT

HEAD_BLOCKS = 8  # blocks of text, and as many of random tokens, on which heads are scored
KEYS = ["seed", "layer", "neuron"]
HALF = 0.5  # of its attention: what a head must give to count as one of a kind


# ---------------------------------------------------------------- heads


def bos_attention(pattern: Float[Tensor, "blocks heads context context"]) -> Float[Tensor, "heads"]:
    """Mean attention to the first token from all positions in the second half of the context; chapter 5 takes the counted ones only."""
    return pattern[:, :, pattern.shape[-1] // 2 :, 0].mean(dim=(0, 2))


def previous_token_score(pattern: Float[Tensor, "blocks heads context context"]) -> Float[Tensor, "heads"]:
    """Mean attention to the token before, from the third token on: the second's is BOS, which has its own score."""
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
    """BOS, then random tokens out of `allowed`, then the same tokens again; an odd one is left out at the end."""
    length = (context - 1) // 2
    generator = torch.Generator().manual_seed(random_seed)
    drawn = allowed[torch.randint(len(allowed), (blocks, length), generator=generator)]
    return torch.cat([torch.full((blocks, 1), bos_id), drawn, drawn], dim=1)


@torch.no_grad()
def head_table(
    model: nn.Module, tokens: Int[Tensor, "blocks context"], repeated: Int[Tensor, "blocks twice"]
) -> pd.DataFrame:
    """One row per head: layer, head, bos and previous (on text), induction (on repeated random tokens).

    Attention is computed in full, block by block, since the fused kernels do not give it.
    """
    model.set_attn_implementation("eager")
    length = (repeated.shape[1] - 1) // 2
    bos, previous, induction = [], [], []
    for one in tokens.split(1):
        patterns = model(one, output_attentions=True, use_cache=False).attentions  # per layer
        bos.append(torch.stack([bos_attention(pattern.float()) for pattern in patterns]))
        previous.append(torch.stack([previous_token_score(pattern.float()) for pattern in patterns]))
    for one in repeated.split(1):
        patterns = model(one, output_attentions=True, use_cache=False).attentions
        induction.append(torch.stack([induction_score(pattern.float(), length) for pattern in patterns]))
    scores = {
        name: torch.stack(parts).mean(0)
        for name, parts in (("bos", bos), ("previous", previous), ("induction", induction))
    }
    layers, heads = scores["bos"].shape
    table = pd.DataFrame({"layer": np.repeat(np.arange(layers), heads), "head": np.tile(np.arange(heads), layers)})
    return table.assign(**{name: values.flatten().cpu().double().numpy() for name, values in scores.items()})


# ---------------------------------------------------------------- neurons at one checkpoint


def layer_indicators(
    neurons: pd.DataFrame, matches: pd.DataFrame, null: dict[str, Float[Tensor, "directions"]]
) -> pd.DataFrame:
    """One row per layer of one seed, from its rows of the tables of neurons and matches and its random directions.

    Columns: layer, neurons; prediction, suppression, partition (numbers by the calibrated cuts); peaked_positive,
    peaked_negative (kurtosis above the published 10 by sign of the skew); low_variance (logit variance below what one
    random direction in a thousand falls short of); max_kurt, null_kurt, null_var, null_low; same_layer, the share of
    best matches that lie in the neuron's own layer (of those with a correlation above 0).
    """
    cuts = null_cuts(null)
    low = float(np.quantile(null["vocab_var"].numpy(), 1 - QUANTILE))
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

    Columns: seed, layer, neuron, max_corr, excess_corr (four decimals), dead, role by the calibrated cuts of its seed, and
    partner_<seed>, its best match in each compared seed as a flat index (−1 in its own).
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


def transitions(neurons: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """One row per seed and checkpoint after the first: births, deaths and what stays between it and the one before.

    `neurons` has the rows of all points in order of training, with a column point. Columns: seed, point, before, after
    (universal then and now), stay, births, deaths.
    """
    flags = _flags(neurons, threshold)
    rows = []
    for (seed, earlier), (_, later) in _neighbours(flags):
        rows.append(
            {
                "seed": seed,
                "point": later.name,
                "before": int(earlier.sum()),
                "after": int(later.sum()),
                "stay": int((earlier & later).sum()),
                "births": int((~earlier & later).sum()),
                "deaths": int((earlier & ~later).sum()),
            }
        )
    return pd.DataFrame(rows, columns=["seed", "point", "before", "after", "stay", "births", "deaths"])


def persistence(neurons: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """One row per seed and checkpoint s before the last: P(s → end) of arXiv 2508.00903 with chance and partners.

    Columns: seed, point; universal (at s); kept (also at the end); persistence = kept / universal, NaN without any;
    chance, what as many neurons of the same layers chosen at random would give; same_partner, over kept neurons and compared
    seeds the share of pairs whose best match is the same neuron at s and at the end, of those whose matches the table has;
    NaN without any.
    """
    names = list(dict.fromkeys(neurons["point"]))
    rows = [
        _kept(seed, name, at, end, threshold)
        for name in names[:-1]
        for seed, at, end in _pairs(neurons, name, names[-1])
    ]
    columns = ["seed", "point", "universal", "kept", "persistence", "chance", "same_partner"]
    return pd.DataFrame(rows, columns=columns)


def layer_persistence(neurons: pd.DataFrame, threshold: float, start: str) -> pd.DataFrame:
    """`persistence` from one checkpoint to the end for each seed and layer: seed, layer, universal, kept, persistence."""
    last = neurons["point"].iloc[-1]
    parts = []
    for seed, at, end in _pairs(neurons, start, last):
        flags = pd.DataFrame({"layer": at["layer"].to_numpy(), "universal": universal(at, threshold).to_numpy()})
        flags["kept"] = flags["universal"] & universal(end, threshold).to_numpy()
        own = flags.groupby("layer", as_index=False).sum()
        parts.append(own.assign(seed=seed, persistence=own["kept"] / own["universal"].where(own["universal"] > 0)))
    return pd.concat(parts, ignore_index=True)


def first_universal(neurons: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """The neurons that are universal at the last point, with `since`, the point from which on they have been without a break.

    Columns: seed, layer, neuron, role (at the end), since (its name), order (its place among the points).
    """
    names = list(dict.fromkeys(neurons["point"]))
    flags = _flags(neurons, threshold).unstack("point")[names]  # (neurons, points)
    ever = flags.to_numpy()[:, ::-1]
    run_length = np.where(ever.all(1), ever.shape[1], ever.argmin(1))
    table = flags.index.to_frame(index=False).assign(order=len(names) - run_length)
    table = table[run_length > 0].reset_index(drop=True)
    end = neurons.loc[neurons["point"] == names[-1], [*KEYS, "role"]]
    table["since"] = [names[order] for order in table["order"]]
    return table.merge(end, on=KEYS, validate="one_to_one")


def _flags(neurons: pd.DataFrame, threshold: float) -> pd.Series:
    flagged = neurons.assign(universal=universal(neurons, threshold))
    return flagged.set_index([*KEYS, "point"])["universal"]


def _neighbours(flags: pd.Series):
    """((seed, flags), (seed, flags)) of each seed's neighbouring points, the points in the order in which they come."""
    names = list(dict.fromkeys(flags.index.get_level_values("point")))
    for seed, own in flags.groupby(level="seed", sort=False):
        wide = own.unstack("point")[names]
        for earlier, later in zip(names, names[1:], strict=False):
            yield (seed, wide[earlier]), (seed, wide[later])


def _pairs(neurons: pd.DataFrame, start: str, last: str):
    """(seed, its rows at the start, its rows at the end), both in the same order of neurons."""
    for seed, own in neurons.groupby("seed", sort=False):
        at, end = (
            own[own["point"] == name].sort_values(["layer", "neuron"]).reset_index(drop=True) for name in (start, last)
        )
        yield seed, at, end


def _kept(seed: str, name: str, at: pd.DataFrame, end: pd.DataFrame, threshold: float) -> dict:
    then, now = universal(at, threshold).to_numpy(), universal(end, threshold).to_numpy()
    kept, number = then & now, int(then.sum())
    by_layer = pd.Series(now).groupby(at["layer"]).mean()
    partners = [column for column in at if column.startswith("partner_") and column != f"partner_{seed}"]
    before, after = (rows.loc[kept, partners].to_numpy() for rows in (at, end))
    same = (before == after)[(before >= 0) & (after >= 0)]
    return {
        "seed": seed,
        "point": name,
        "universal": number,
        "kept": int(kept.sum()),
        "persistence": kept.sum() / number if number else np.nan,
        "chance": float(at.loc[then, "layer"].map(by_layer).mean()) if number else np.nan,
        "same_partner": float(same.mean()) if same.size else np.nan,
    }


# ---------------------------------------------------------------- summaries over checkpoints


def by_point(neurons: pd.DataFrame, summarise) -> pd.DataFrame:
    """`summarise(rows of one point)` of every point in order, one table with a column point."""
    parts = [summarise(own).assign(point=point) for point, own in neurons.groupby("point", sort=False)]
    return pd.concat(parts, ignore_index=True)


def appearances(indicators: dict[str, tuple[pd.Series, float]]) -> pd.DataFrame:
    """From which point on an indicator stays above its bar in every seed.

    `indicators`: name → (values with index seed, point, in order of training; bar). Columns: indicator, bar, first (a point, or None),
    any_first (the same for at least one seed), low, mean, high (at the last point, over seeds).
    """
    rows = []
    for name, (values, bar) in indicators.items():
        wide = values.unstack("point")[list(dict.fromkeys(values.index.get_level_values("point")))]
        above, last = wide > bar, wide.iloc[:, -1]
        rows.append(
            {
                "indicator": name,
                "bar": bar,
                "first": _from_here_on(above.all()),
                "any_first": _from_here_on(above.any()),
                "low": last.min(),
                "mean": last.mean(),
                "high": last.max(),
            }
        )
    return pd.DataFrame(rows)


def _from_here_on(above: pd.Series) -> str | None:
    """The first point from which on all values are true."""
    stays = above[::-1].cummin()[::-1]
    return stays.idxmax() if stays.any() else None


def indicators(heads: pd.DataFrame, layers: pd.DataFrame, shares: pd.DataFrame) -> dict[str, tuple[pd.Series, float]]:
    """What `appearances` is asked about, with the bars: conventions, stated in the table.

    A head counts that gives half of its attention; a number of neurons that one in a thousand random directions would reach in
    no seed, with 95 % probability; one neuron in a hundred universal.
    """
    keys = ["seed", "point"]
    best = heads.groupby(keys, sort=False)[["previous", "induction", "bos"]].max()
    total = layers.groupby(keys, sort=False)[
        ["neurons", "prediction", "suppression", "peaked_positive", "peaked_negative", "low_variance"]
    ].sum()
    seeds = total.index.get_level_values("seed").nunique()
    chance = float(binom.ppf(1 - SIGNIFICANT / seeds, total["neurons"].max(), 1 - QUANTILE))
    return {
        "a previous-token head": (best["previous"], HALF),
        "an induction head": (best["induction"], HALF),
        "a head that attends to BOS": (best["bos"], HALF),
        "neurons with W_U kurtosis above the calibrated cut": (total["prediction"] + total["suppression"], chance),
        f"neurons with W_U kurtosis above {PUBLISHED_CUTS.kurtosis:g}": (
            total["peaked_positive"] + total["peaked_negative"],
            0.0,
        ),
        "neurons with a logit variance below the null's": (total["low_variance"], chance),
        "one universal neuron in a hundred": (shares.set_index(keys)["share"], 0.01),
    }


def kinds_of(groups: pd.DataFrame, kinds: pd.Series, name: Callable[[str], str] = str) -> pd.DataFrame:
    """Share of each kind among the early and among the late: when, kind, share, and of how many neurons (`of`); `kinds` is aligned with `groups`."""
    known = groups.assign(kind=kinds.map(name))
    known = known[known["kind"].notna()]
    shares = known.groupby("when")["kind"].value_counts(normalize=True).rename("share")
    number = known["when"].value_counts().rename("of")
    return (
        shares.reset_index().merge(number, on="when")
        if len(known)
        else pd.DataFrame(columns=["when", "kind", "share", "of"])
    )
