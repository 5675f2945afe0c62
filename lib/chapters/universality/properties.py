"""Statistics of universal neurons: from the run's per-neuron tables to small tables.

A neuron is universal if its excess correlation exceeds the threshold (docs/method.md §3); tables carry that as the
column `is_universal` (`lib.run.with_universal`). Every function also works without any universal neuron.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import mannwhitneyu

from lib.display.claims import FEWEST

PROPERTIES = {
    "sparsity": "activation frequency",
    "mean": "mean pre-activation",
    "var": "variance of pre-activation",
    "skew": "skew of pre-activation",
    "kurt": "kurtosis of pre-activation",
    "input_bias": "input bias",
    "w_in_norm": "norm of w_in",
    "w_out_norm": "norm of w_out",
    "in_out_sim": "cos(w_in, w_out)",
    "l2_penalty": "L2 penalty",
    "vocab_mean": "mean of cos(w_out, W_U)",
    "vocab_var": "variance of cos(w_out, W_U)",
    "vocab_skew": "skew of cos(w_out, W_U)",
    "vocab_kurt": "kurtosis of cos(w_out, W_U)",
}

NEAR = 0.05  # of mean matches that count as equal
TOP_SHARE = 0.05  # most universal neurons of a seed: the top 5 % by excess, which exists at any threshold

# Gurnee et al., arXiv 2401.12181: universal neurons and compared seeds (from the published per-neuron tables; their
# mean matches are quarters, of Pythia thirds, of rounded ones), correlation of activation frequency with
# cos(w_in, w_out) (figure 9), median percentile of universal neurons within their layer (figure 3). A median above 50
# is published as "high", below as "low".
PUBLISHED_MODELS = {"pythia": "Pythia-160M", "small": "GPT2-small", "medium": "GPT2-medium"}
PUBLISHED_SHARES = pd.DataFrame(
    {
        "universal": [465, 1533, 1211],
        "neurons": [36864, 36864, 98304],
        "compared": [3, 4, 4],
        "frequency_cosine": [-0.58, -0.69, -0.63],
    },
    index=list(PUBLISHED_MODELS),
)
PUBLISHED_SHARES["share"] = PUBLISHED_SHARES["universal"] / PUBLISHED_SHARES["neurons"]
PUBLISHED_BY_LAYER = {  # universal neurons of each layer
    "pythia": (64, 14, 19, 5, 27, 34, 43, 39, 67, 50, 50, 53),
    "small": (222, 244, 101, 110, 71, 72, 56, 112, 101, 142, 125, 177),
    "medium": (132, 140, 44, 40, 40, 30, 23, 21, 26, 24, 25, 17, 36, 36, 57, 52, 53, 56, 49, 55, 46, 52, 61, 96),
}
PUBLISHED_MEDIANS = pd.DataFrame.from_dict(
    {
        "sparsity": (3, 24, 11),
        "mean": (4, 20, 8),
        "skew": (98, 94, 98),
        "kurt": (97, 93, 96),
        "input_bias": (22, 18, 7),
        "in_out_sim": (95, 71, 88),
        "l2_penalty": (97, 83, 94),
        "vocab_kurt": (91, 86, 94),
    },
    orient="index",
    columns=list(PUBLISHED_MODELS),
)


def most_universal(neurons: pd.DataFrame) -> pd.Series:
    """True for the TOP_SHARE of each seed's neurons with the largest excess correlation."""
    return neurons.groupby("seed")["excess_corr"].rank(ascending=False, method="first", pct=True) <= TOP_SHARE


def shares_above(excess: pd.Series, thresholds: Sequence[float]) -> np.ndarray:
    """Share of neurons whose excess correlation is above each threshold, shape (thresholds,)."""
    ordered = np.sort(np.asarray(excess, dtype=float))  # NaN sorts last and must not count as above
    known = int(np.isfinite(ordered).sum())
    above = known - np.searchsorted(ordered[:known], np.asarray(thresholds, dtype=float), side="right")
    return above / max(1, len(ordered))


def reference_shares(neurons_all_seeds: pd.DataFrame) -> pd.DataFrame:
    """One row per seed as reference: seed, neurons, universal, share, mean_excess, dead."""
    found = {"universal": ("is_universal", "sum"), "share": ("is_universal", "mean")}
    found |= {"mean_excess": ("excess_corr", "mean"), "dead": ("dead", "sum")}
    return neurons_all_seeds.groupby("seed", sort=False).agg(neurons=("neuron", "size"), **found).reset_index()


def layer_shares(neurons: pd.DataFrame) -> pd.DataFrame:
    """One row per layer (and seed, where the table has several): layer, neurons, universal, share."""
    keys = [key for key in ("seed", "layer") if key in neurons]
    found = {"universal": ("is_universal", "sum"), "share": ("is_universal", "mean")}
    return neurons.groupby(keys, sort=False).agg(neurons=("neuron", "size"), **found).reset_index()


def published_layer_shares() -> pd.DataFrame:
    """One row per layer of each published model: model, layer, depth (its middle, 0 to 1), universal, share."""
    parts = []
    for model, counts in PUBLISHED_BY_LAYER.items():
        layer, universal = np.arange(len(counts)), np.array(counts)
        share = universal / (PUBLISHED_SHARES.loc[model, "neurons"] / len(counts))
        depth = (layer + 0.5) / len(counts)
        parts.append(
            pd.DataFrame({"model": model, "layer": layer, "depth": depth, "universal": universal, "share": share})
        )
    return pd.concat(parts, ignore_index=True)


def corr_gap(neurons: pd.DataFrame) -> pd.Series:
    """Figure 2b: largest minus smallest best-match correlation over the compared seeds, per neuron."""
    return neurons["max_corr"] - neurons["min_corr"]


def gap_at_equal_match(neurons: pd.DataFrame) -> np.ndarray:
    """For each universal neuron its gap of figure 2b minus that of another, not universal neuron of about the same
    mean match, shape (compared,).

    That is the neuron of the same seed with the nearest mean match; universal neurons with none within NEAR are left
    out.
    """
    ordered = neurons.sort_values("mean_corr", kind="stable")
    match, gap = ordered["mean_corr"].to_numpy(), corr_gap(ordered).to_numpy()
    own, rest = np.flatnonzero(ordered["is_universal"]), np.flatnonzero(~ordered["is_universal"])
    if not len(own) or not len(rest):
        return np.zeros(0)
    after = np.searchsorted(rest, own)  # rows are in the order of their matches
    beside = rest[np.stack([after - 1, after]).clip(0, len(rest) - 1)]
    away = np.abs(match[beside] - match[own])
    nearest, found = np.take_along_axis(beside, away.argmin(0)[None], 0)[0], away.min(0) <= NEAR
    return (gap[own] - gap[nearest])[found]


def depth_of(layer: np.ndarray, layers: int, parts: int) -> np.ndarray:
    """In which of `parts` equal parts of a model's depth the middle of a layer lies, (layer + ½) / layers, from 0."""
    return (2 * layer + 1) * parts // (2 * layers)


def depth_columns(matches: pd.DataFrame) -> tuple[str, str]:
    """The columns that tell a neuron's depth and its match's: their layers, or parts of the depth (`depth_of`) where
    the seeds have different numbers of layers."""
    return ("depth", "match_depth") if "depth" in matches else ("layer", "match_layer")


def place_words(by_depth: bool) -> tuple[str, str]:
    """What a place in a model is called, one and several: a layer, or a part of the depth."""
    return ("part of the depth", "parts of the depth") if by_depth else ("layer", "layers")


def match_layer_percent(matches: pd.DataFrame) -> pd.DataFrame:
    """Figure 2c: percent of the neurons of layer l (rows) whose best match lies in layer l′ (columns).

    Rows sum to 100, over all compared seeds. A correlation of 0 or less, as of a dead neuron, is no match; a layer
    without matches has a row of NaN. Layers are parts of the depth where seeds differ in it (`depth_columns`).
    """
    own, other = depth_columns(matches)
    layers = range(int(max(matches[own].max(), matches[other].max())) + 1)
    found = matches[matches["corr"] > 0]
    counts = pd.crosstab(found[own], found[other]).reindex(index=layers, columns=layers, fill_value=0)
    return 100 * counts.div(counts.sum(axis=1).replace(0, np.nan), axis=0)


def own_layer_excess(same_layer: pd.Series) -> float:
    """Mean share of best matches in the neuron's own layer, minus chance (one over the number of layers).

    `same_layer` has one share (0 to 1) per layer, the diagonal of figure 2c. NaN for models of one layer.
    """
    return float(same_layer.mean() - 1 / len(same_layer)) if len(same_layer) > 1 else np.nan


def layer_percentiles(neurons: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Percentile of each value within its own layer, 0 to 100 with the median at 50 (docs/method.md §4).

    It is 100·(rank − ½)/n, ties sharing their mean rank; NaN stays NaN and is not ranked.
    """
    grouped = neurons.groupby("layer")[list(columns)]
    return 100 * (grouped.rank() - 0.5) / grouped.transform("count")


def property_medians(neurons: pd.DataFrame) -> pd.Series:
    """Median within-layer percentile of a seed's universal neurons by published property; NaN with fewer than FEWEST
    of them."""
    columns, chosen = [column for column in PUBLISHED_MEDIANS.index if column in neurons], neurons["is_universal"]
    medians = layer_percentiles(neurons, columns)[chosen].median()
    return medians if chosen.sum() >= FEWEST else medians * np.nan


def property_tests(neurons: pd.DataFrame) -> pd.DataFrame:
    """One row per property: do universal neurons rank differently from the rest of their own layer?

    Two-sided Mann–Whitney U on within-layer percentiles. `effect` is Cliff's delta 2U/(n₁n₂) − 1, the chance that a
    universal neuron ranks above another one minus the chance of the opposite. `p_corrected` is Holm's over properties.
    `published` is the side of 50 on which all published medians lie, empty where nothing was published. The verdict on
    it is the ledger's, which uses all seeds.
    """
    columns = [column for column in PROPERTIES if column in neurons]
    percentiles, chosen = layer_percentiles(neurons, columns), neurons["is_universal"]
    rows = []
    for column in columns:
        ours, others = (percentiles.loc[mask, column].dropna() for mask in (chosen, ~chosen))
        effect, p_value = np.nan, np.nan
        if len(ours) and len(others):
            test = mannwhitneyu(ours, others, alternative="two-sided")
            effect, p_value = 2 * test.statistic / (len(ours) * len(others)) - 1, test.pvalue
        rows.append((column, PROPERTIES[column], len(ours), len(others), ours.median(), effect, p_value))
    heads = ["property", "label", "universal", "other", "median_percentile", "effect", "p_value"]
    tests = pd.DataFrame(rows, columns=heads).join(PUBLISHED_MEDIANS.add_prefix("published_"), on="property")
    tests["p_corrected"] = holm(tests["p_value"])
    published = tests[[f"published_{model}" for model in PUBLISHED_MODELS]]
    tests["published"] = np.select([(published > 50).all(axis=1), (published < 50).all(axis=1)], ["high", "low"], "")
    return tests


def holm(p_values: pd.Series) -> pd.Series:
    """Holm's correction; missing p-values stay missing and do not count.

    statsmodels has it too, but collects garbage at every call: a second in a notebook's process.
    """
    tested = p_values.dropna().astype(float).sort_values()
    corrected = (tested * np.arange(len(tested), 0, -1)).cummax().clip(upper=1)
    return corrected.reindex(p_values.index)


def frequency_cosine_correlation(neurons: pd.DataFrame) -> float:
    """Figure 9: Pearson correlation over neurons of activation frequency and cos(w_in, w_out); NaN if undefined."""
    pairs = neurons[["sparsity", "in_out_sim"]].dropna()
    if len(pairs) < 2 or (pairs.std() == 0).any():
        return float("nan")
    return float(np.corrcoef(pairs["sparsity"], pairs["in_out_sim"])[0, 1])


def frequency_cosine_by_layer(neurons_all_seeds: pd.DataFrame) -> pd.DataFrame:
    """`frequency_cosine_correlation` within each layer: seed, layer, correlation.

    Over all layers together, differences between layers are mixed with it.
    """
    groups = neurons_all_seeds.groupby(["seed", "layer"], sort=False)
    rows = [(*where, frequency_cosine_correlation(own)) for where, own in groups]
    return pd.DataFrame(rows, columns=["seed", "layer", "correlation"])


def noise_floor(candidates: int, tokens: float | np.ndarray) -> float | np.ndarray:
    """The best of `candidates` correlations if all true ones are 0, about √(2 ln N / tokens) (docs/method.md §7)."""
    return np.sqrt(2 * np.log(candidates) / tokens)


def convergence_summary(convergence: pd.DataFrame) -> pd.DataFrame:
    """One row per seed and share of the text, with means over neurons.

    Columns: seed, tokens, mean_corr, baseline, excess_corr, universal (count), agreement: of the neurons universal on
    this share or at the end, the share universal at both (NaN without any).
    """
    rows = []
    for seed, of_seed in convergence.set_index(["layer", "neuron"]).groupby("seed", sort=False):
        final = of_seed.loc[of_seed["tokens"] == of_seed["tokens"].max(), "is_universal"]
        for tokens, frame in of_seed.groupby("tokens"):
            now, last = frame["is_universal"].align(final, fill_value=False)
            both, either = int((now & last).sum()), int((now | last).sum())
            means = frame[["mean_corr", "baseline", "excess_corr"]].mean()
            agreement = both / either if either else np.nan
            rows.append({"seed": seed, "tokens": tokens, **means, "universal": int(now.sum()), "agreement": agreement})
    return pd.DataFrame(rows)


def draw_summary(draws: pd.DataFrame, neurons: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """One row per rotation draw of one reference: draw, baseline (mean over neurons), universal (by this draw)."""
    joined = draws.merge(neurons[["layer", "neuron", "mean_corr"]], on=["layer", "neuron"])
    joined["universal"] = joined["mean_corr"] - joined["baseline"] > threshold
    return joined.groupby("draw").agg({"baseline": "mean", "universal": "sum"}).reset_index()


def draw_spread(draws: pd.DataFrame) -> pd.Series:
    """Standard deviation (ddof 1) of each neuron's baseline over rotation draws; NaN with a single draw."""
    return draws.groupby(["layer", "neuron"])["baseline"].std()


def representatives(neurons: pd.DataFrame, number: int) -> pd.DataFrame:
    """The neuron with the largest excess of each layer, for up to `number` layers spread over the depth."""
    best = neurons.loc[neurons.groupby("layer")["excess_corr"].idxmax()].sort_values("layer")
    spread = np.unique(np.linspace(0, len(best) - 1, min(number, len(best))).round().astype(int))
    return best.iloc[spread].reset_index(drop=True)
