"""The figures of chapter 03: how many neurons are universal, where they are and how they differ."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from lib.chapters.universality import matching, measures, properties
from lib.chapters.universality.properties import PROPERTIES, PUBLISHED_MEDIANS, PUBLISHED_MODELS, PUBLISHED_SHARES
from lib.display.claims import Decision
from lib.display.plots import (
    BASELINE,
    COLOURS,
    CORRELATION,
    DASHED,
    EXCESS,
    HEIGHT,
    MARKERS,
    NARROW,
    NEUTRAL,
    PERCENT,
    WIDE,
    boxes,
    canvas,
    folded,
    groups,
    heatmap,
    layer_axis,
    legend_below,
    legend_right,
    note,
    scatter,
    seed_looks,
    whole_numbers,
)

FILLED = {"histtype": "stepfilled"}
CLIQUE = "#7D5BBE"
OPEN = {"color": NEUTRAL, "markerfacecolor": "white", "linestyle": "none"}  # signs of published values
MEASURE_LOOKS = (  # of the columns of `measures.share_curves`
    {"color": EXCESS, "linewidth": 2.5},
    {"color": "#B0407F", "linewidth": 2},
    {"color": CORRELATION, "linewidth": 2},
    {"color": NEUTRAL, "linewidth": 1.5, "linestyle": "--"},
    {"color": NEUTRAL, "linewidth": 1.5, "linestyle": ":"},
)


def _percent_axis(axes: Axes, top: float) -> None:
    axes.yaxis.set_major_formatter(PERCENT)
    axes.set_ylim(0, max(top, 1e-3))


def excess(neurons: pd.DataFrame, threshold: float) -> Figure:
    """Figures 2a and 11: best match against baseline (left), excess with the threshold (right)."""
    fig, (left, right) = canvas(1, 2)
    bins = np.linspace(0, 1, 61)
    for column, label, colour in (
        ("mean_corr", "best match", CORRELATION),
        ("mean_baseline", "rotated baseline", BASELINE),
    ):
        left.hist(neurons[column].clip(0, 1), bins, color=colour, alpha=0.65, label=label, **FILLED)
    left.set(xlabel="correlation, mean over compared seeds", ylabel="neurons", xlim=(0, 1))
    left.legend()
    low, high = min(0.0, neurons["excess_corr"].min()), max(threshold, neurons["excess_corr"].max())
    step = max(high - low, 1e-3) / 60
    bins = threshold + step * np.arange(np.floor((low - threshold) / step), np.ceil((high - threshold) / step) + 1)
    for group, look, _ in groups(neurons):
        right.hist(group["excess_corr"], bins, **FILLED, **look)
    right.axvline(threshold, **DASHED)
    right.set(xlabel="excess correlation", ylabel="neurons (log axis)", yscale="log")
    right.legend()
    return fig


def share_by_reference(
    shares: pd.DataFrame, intervals: pd.DataFrame | None = None, over_seeds: Decision | None = None
) -> Figure:
    """Share of universal neurons with each seed as reference, with the `uncertainty.share_intervals`; their mean, with
    its interval over seeds (a band)."""
    fig, axes = canvas(size=(NARROW + 1.5, 3.4))
    axes.axhline(shares["share"].mean(), zorder=0, label="mean", **DASHED)
    bars = axes.bar(shares["seed"], shares["share"], color=COLOURS["universal"], width=0.6)
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    axes.bar_label(bars, [f"{number:,}" for number in shares["universal"]], padding=3, bbox=box)
    top = shares["share"].max()
    if over_seeds is not None and np.isfinite(over_seeds.low):
        low, high = max(0.0, over_seeds.low), over_seeds.high
        axes.axhspan(low, high, color="#e8e8e8", zorder=0, label="95 % interval of the mean, over seeds")
        top = max(top, high)
    if intervals is not None:
        own = intervals.set_index("seed").loc[shares["seed"]]
        at = np.arange(len(shares)) + 0.2  # beside the middle, which has the number of neurons
        axes.vlines(
            at, own["low"], own["high"], color="black", linewidth=1.5, label="95 % interval, text and rotations"
        )
        top = max(top, own["high"].max())
    axes.set(xlabel="reference seed", ylabel="universal neurons")
    _percent_axis(axes, 1.15 * top)
    legend_below(fig, 1)
    return fig


def share_by_compared(table: pd.DataFrame) -> Figure:
    """From `measures.share_by_compared`: share of universal neurons against the number of compared seeds."""
    fig, axes = canvas(size=(NARROW + 2.5, HEIGHT))
    looks = seed_looks(table["seed"].unique())
    for seed, own in table.groupby("seed", sort=False):
        thin = looks[seed] | {"linewidth": 1, "markersize": 4}
        axes.plot(own["compared"], own["share"], label=f"seed {seed}", **thin)
    mean = table.groupby("compared")["share"].mean()
    axes.plot(mean.index, mean, color=COLOURS["universal"], linewidth=2.5, label="mean over seeds")
    for model, published in PUBLISHED_SHARES.iterrows():
        label = f"published, {PUBLISHED_MODELS[model]}"
        axes.plot(published["compared"], published["share"], MARKERS[model], label=label, **OPEN)
    axes.set(xlabel="number of compared seeds", ylabel="universal neurons (log axis)", yscale="log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(PERCENT)
    axes.yaxis.set_minor_formatter(NullFormatter())
    legend_right(axes)
    return fig


def share_by_threshold(neurons_all_seeds: pd.DataFrame, threshold: float) -> Figure:
    """Share of universal neurons against the threshold: by excess for every reference seed, with the published shares
    at 0.5; by every measure, averaged over references."""
    fig, (axes, beside) = canvas(1, 2, (WIDE, 4.6), sharey=True)
    thresholds = np.linspace(0, 1, 201)
    seeds = neurons_all_seeds.groupby("seed", sort=False)["excess_corr"]
    looks = seed_looks(seeds.groups)
    for index, (seed, values) in enumerate(seeds):
        share, signs = properties.shares_above(values, thresholds), {"markevery": (4 * index, 20), "markersize": 4}
        look = looks[seed] | signs | {"linewidth": 1, "label": f"seed {seed}"}
        axes.plot(thresholds, np.where(share > 0, share, np.nan), **look)
    for model, share in PUBLISHED_SHARES["share"].items():
        axes.plot(0.5, share, MARKERS[model], label=f"published, {PUBLISHED_MODELS[model]}", **OPEN)
    curves = measures.share_curves(neurons_all_seeds, thresholds)
    for (name, share), look in zip(curves.items(), MEASURE_LOOKS, strict=False):
        beside.plot(thresholds, share.where(share > 0), label=name, **look)
    for panel, title in ((axes, "excess, by reference"), (beside, "by measure, mean over references")):
        panel.axvline(threshold, **DASHED)
        panel.set(xlabel="threshold", xlim=(0, 1), yscale="log", title=title)
        panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2, frameon=False, fontsize="small")
    axes.set(ylabel="share of neurons above (log axis)", ylim=(0.5 / max(1, seeds.size().max()), 1.3))
    axes.yaxis.set_major_formatter(PERCENT)
    return fig


def ceiling(neurons: pd.DataFrame, threshold: float) -> Figure:
    """Mean best match against mean baseline, with the lines of equal excess and equal adjusted excess."""
    fig, axes = canvas(size=(NARROW + 2.5, 4.2))
    scatter(axes, neurons, "mean_baseline", "mean_corr")
    baseline = np.linspace(0, 1, 101)
    for look, name, room in zip(MEASURE_LOOKS, ("excess", "adjusted excess"), (1, 1 - baseline), strict=False):
        line = baseline + threshold * room
        axes.plot(baseline, np.where(line <= 1, line, np.nan), label=f"{name} of {threshold:g}", **look)
    axes.axhline(measures.HIGH_MATCH, label=f"best match of {measures.HIGH_MATCH:g}", **DASHED)
    axes.set(xlabel="rotated baseline, mean over compared seeds", ylabel="best match, mean over compared seeds")
    axes.set(xlim=(0, max(0.8, neurons["mean_baseline"].max())), ylim=(0, 1))
    legend_right(axes, markerscale=3)
    return fig


def share_by_layer(shares: pd.DataFrame, reference: str) -> Figure:
    """Universal neurons by layer: the reference's bars and the other seeds' dots; beside the published models.

    Dots of a seed with more or fewer layers stand at the same share of the depth.
    """
    fig, (axes, beside) = canvas(1, 2, width_ratios=(3, 2))
    own, rest = shares[shares["seed"] == reference], shares[shares["seed"] != reference]
    look = {"color": COLOURS["universal"], "label": f"reference {reference}"}
    axes.bar(own["layer"], own["share"], width=0.7, **look)
    if len(rest):
        stretch = len(own) / rest.groupby("seed")["layer"].transform("nunique")
        at, dots = (rest["layer"] + 0.5) * stretch - 0.5, {"color": NEUTRAL, "markersize": 4}
        axes.plot(at, rest["share"], "o", label="other seeds as reference", **dots)
    if not shares["universal"].any():
        note(axes, "no universal neuron")
    axes.set_ylabel("universal neurons of the layer")
    _percent_axis(axes, 1.3 * shares["share"].max())
    layer_axis(axes, len(own))
    thin = {"color": NEUTRAL, "alpha": 0.45, "linewidth": 1, "markersize": 3}
    for model, theirs in properties.published_layer_shares().groupby("model", sort=False):
        label = f"published, {PUBLISHED_MODELS[model]}"
        beside.plot(theirs["depth"], theirs["share"], f"{MARKERS[model]}-", label=label, **thin)
    beside.plot((own["layer"] + 0.5) / len(own), own["share"], linewidth=2, **look)
    beside.set(xlabel="relative depth", xlim=(0, 1), ylim=(0, None))
    beside.yaxis.set_major_formatter(PERCENT)
    legend_below(fig, 3, fontsize="small")
    return fig


def seed_agreement(neurons: pd.DataFrame) -> Figure:
    """Figure 2b: smallest against largest best match over the compared seeds."""
    fig, axes = canvas(size=(NARROW, NARROW * 0.85))
    axes.plot([0, 1], [0, 1], color=NEUTRAL, linewidth=1)
    scatter(axes, neurons, "min_corr", "max_corr", loc="lower right")
    axes.set(xlabel="smallest best-match correlation", ylabel="largest best-match correlation")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    return fig


def agreeing(neurons: pd.DataFrame, compared: int) -> Figure:
    """Neurons by the number of compared seeds in which their excess is above the threshold (`k_of_m`)."""
    fig, axes = canvas(size=(NARROW, 3.2))
    places, below = np.arange(1, compared + 1), 0
    for name, flag in (("universal", True), ("other", False)):
        own = neurons.loc[neurons["is_universal"] == flag, "k_of_m"]
        number = own.value_counts().reindex(places, fill_value=0).to_numpy()
        axes.bar(places, number, bottom=below, width=0.6, color=COLOURS[name], label=name)
        below = below + number
    axes.bar_label(axes.containers[-1], [f"{number:,}" for number in below], padding=3)
    axes.set(xlabel=f"compared seeds in which the neuron passes, of {compared}", ylabel="neurons", xticks=places)
    axes.set_ylim(0, 1.15 * max(1, below.max()))
    whole_numbers(axes)
    axes.legend(title="by mean excess")
    return fig


def layer_agreement(matrix: pd.DataFrame) -> Figure:
    """Figure 2c, from `match_layer_percent`: in which layers of the other seed the best matches lie."""
    layers = len(matrix)
    size = max(3.6, min(7.5, 1.6 + 0.5 * layers))
    fig, axes = canvas(size=(max(NARROW, size + 1.2), size))
    look = {"cmap": "cividis", "vmin": 0, "vmax": 100, "square": True, "annot": layers <= 12, "fmt": ".0f"}
    heatmap(axes, matrix.T, cbar_kws={"label": "percent of the layer's neurons"}, **look)
    where = properties.place_words(matrix.index.name == "depth")[0]
    axes.set(xlabel=f"{where} of the neuron", ylabel=f"{where} of its best match")
    axes.invert_yaxis()
    axes.tick_params(rotation=0)
    return fig


def partners(table: pd.DataFrame, cliques: pd.DataFrame, threshold: float) -> Figure:
    """From `matching.partner_table`: mutual matches and neurons in a clique by excess; cliques by depth."""
    fig, (left, right) = canvas(1, 2)
    rows = matching.by_excess(table, np.arange(-0.5, 1.05, 0.1).round(2))
    left.plot(rows["excess"], rows["mutual"], "o-", color=CORRELATION, label="mutual best matches")
    if len(cliques):
        left.plot(rows["excess"], rows["in_clique"], "s-", color=CLIQUE, label="neurons in a clique of all seeds")
    left.axvline(threshold, **DASHED)
    left.set(xlabel="excess correlation, in bins of 0.1", ylabel="share", ylim=(-0.02, 1.02))
    left.yaxis.set_major_formatter(PERCENT)
    left.legend(loc="upper left")
    by_depth = "depth" in table
    (where, several), layers = properties.place_words(by_depth), int(table["depth" if by_depth else "layer"].max()) + 1
    if len(cliques):
        depths = matching.clique_depths(cliques, layers)
        same, spread = depths["same"], depths["spread"]
        right.bar(depths["layer"], same, color=CLIQUE, label=f"all in one {where}")
        right.bar(depths["layer"], spread, bottom=same, color="#bbbbbb", label=f"over several {several}")
        right.set_ylim(0, 1.15 * (same + spread).max())
        right.legend()
    else:
        note(right, "no clique of all seeds is known")
    layer_axis(right, layers)
    right.set(xlabel=f"{where} (mean over the clique, rounded)", ylabel="cliques of all seeds")
    whole_numbers(right)
    return fig


def property_percentiles(neurons: pd.DataFrame) -> Figure:
    """Figure 3: percentile of universal neurons within their own layer, beside the published medians."""
    columns = list(PUBLISHED_MEDIANS.index)
    percentiles = properties.layer_percentiles(neurons, columns)[neurons["is_universal"]]
    fig, axes = canvas(size=(WIDE, 4.2))
    axes.axhline(50, **DASHED)
    if len(percentiles):
        boxes(axes, percentiles.melt(), "variable", "value", color=COLOURS["universal"], order=columns)
    else:
        note(axes, "no universal neuron to rank")
    for model, name in PUBLISHED_MODELS.items():
        at = np.arange(len(columns)) + 0.33
        axes.plot(at, PUBLISHED_MEDIANS[model], MARKERS[model], label=f"published median, {name}", **OPEN)
    axes.set(xlabel=None, ylabel="percentile within the layer", ylim=(-2, 102), xlim=(-0.6, len(columns) - 0.4))
    axes.set_xticks(range(len(columns)), [folded(PROPERTIES[column]) for column in columns], fontsize="small")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=3, frameon=False)
    return fig


def frequency_and_cosine(neurons: pd.DataFrame, by_layer: pd.DataFrame, reference: str) -> Figure:
    """Figure 9: activation frequency against cos(w_in, w_out), one dot a neuron; beside it their correlation within
    each layer, from `frequency_cosine_by_layer`."""
    fig, (left, right) = canvas(1, 2, (WIDE, 4.0))
    scatter(left, neurons, "sparsity", "in_out_sim", loc="upper right")
    if neurons["in_out_sim"].isna().all():
        note(left, "a gated neuron has no single w_in")
    left.set(xlabel="activation frequency (share of tokens above 0)", ylabel="cos(w_in, w_out)")
    left.set(xlim=(0, 1), ylim=(-1, 1))
    own, rest = by_layer[by_layer["seed"] == reference], by_layer[by_layer["seed"] != reference]
    right.bar(own["layer"], own["correlation"], width=0.7, color=CORRELATION, label=f"reference {reference}")
    if len(rest):
        right.plot(rest["layer"], rest["correlation"], "o", color=NEUTRAL, markersize=4, label="other seeds")
    layer_axis(right, len(own))
    right.set(ylabel="correlation within the layer", ylim=(-1, 1))
    right.legend(loc="upper right")
    for axes in (left, right):
        axes.axhline(0, color=NEUTRAL, linewidth=1)
    return fig


def redundancy(neurons: pd.DataFrame) -> Figure:
    """Figure 10: cumulative share of neurons by the largest cosine with another neuron of the same model."""
    fig, grid = canvas(1, 2, sharey=True)
    for axes, column, weights in zip(grid, ("max_cos_in", "max_cos_out"), ("w_in", "w_out"), strict=True):
        for group, look, _ in groups(neurons):
            if group[column].notna().any():
                axes.ecdf(group[column], linewidth=2, **look)
        if neurons[column].isna().all():
            note(axes, f"a gated neuron has no single {weights}")
        axes.set_xlabel(f"largest cosine with another neuron's {weights}")
        axes.set_xlim(np.nanmin([0, neurons[column].min()]), 1)
    grid[0].set_ylabel("share of neurons at or below")
    grid[1].legend(loc="lower right")
    return fig
