"""The figures of chapters 01 and 02: the text, activations, correlations and their baseline."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from lib.chapters.universality import properties
from lib.display.plots import (
    BASELINE,
    COLOURS,
    CORRELATION,
    DASHED,
    EXCESS,
    NEUTRAL,
    WIDE,
    boxes,
    canvas,
    groups,
    layer_axis,
    legend_right,
    note,
    scatter,
    seed_looks,
    whole_numbers,
)

FILLED = {"histtype": "stepfilled"}


def _domains(rows: int) -> tuple[Figure, Axes]:
    """A canvas with one row per domain of text, the first on top."""
    fig, axes = canvas(size=(WIDE, 1.2 + 0.3 * rows))
    axes.set_ylabel("domain of text")
    axes.invert_yaxis()
    return fig, axes


# ---------------------------------------------------------------- notebook 01: the text and its activations


def losses(table: pd.DataFrame) -> Figure:
    """Loss in nats per token by domain, one dot per seed; all domains together on top."""
    mean = table.groupby("domain")["loss"].mean().sort_values()
    order = sorted(mean.index, key=lambda name: name != "all")  # stable
    fig, axes = _domains(len(order))
    looks = seed_looks(table["seed"].unique())
    for index, (seed, own) in enumerate(table.groupby("seed", sort=False)):
        at = own["domain"].map(order.index) + 0.08 * (index - (len(looks) - 1) / 2)
        axes.plot(own["loss"], at, linestyle="none", markersize=5, label=seed, **looks[seed])
    axes.set_xlabel("loss [nats per token]")
    axes.set_yticks(range(len(order)), ["all domains" if name == "all" else name for name in order])
    legend_right(axes, title="seed")
    return fig


def composition(text_table: pd.DataFrame) -> Figure:
    """Counted tokens by domain, in front of all tokens."""
    rows = text_table.sort_values("counted", ascending=False).reset_index(drop=True)
    fig, axes = _domains(len(rows))
    axes.barh(rows.index, rows["tokens"], color="#dddddd", label="not counted")
    axes.barh(rows.index, rows["counted"], color=CORRELATION, label="counted")
    axes.set_xlabel("tokens")
    axes.set_yticks(rows.index, rows["domain"])
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(False, axis="y")
    axes.legend(loc="lower right")
    return fig


def activation_histograms(histogram: dict[str, np.ndarray], seed: str, chosen: pd.DataFrame) -> Figure:
    """Pre-activation histograms of a few neurons (rows with layer, neuron), counts on a log axis.

    `histogram` is the run's accumulator: `<seed>.counts` (layers, d_mlp, bins), `<seed>.low`, `<seed>.high`
    (layers, d_mlp); the outer bins also hold everything beyond the range.
    """
    columns = min(4, len(chosen))
    rows = -(-len(chosen) // columns)
    fig, grid = canvas(rows, columns, (WIDE, 0.6 + 2.2 * rows), squeeze=False)
    for axes in grid.flat[len(chosen) :]:
        axes.set_visible(False)
    for axes, neuron in zip(grid.flat, chosen.itertuples(), strict=False):
        at = (int(neuron.layer), int(neuron.neuron))
        counts = histogram[f"{seed}.counts"][at]
        edges = np.linspace(histogram[f"{seed}.low"][at], histogram[f"{seed}.high"][at], len(counts) + 1)
        axes.stairs(counts, edges, fill=True, color=CORRELATION, alpha=0.7)
        axes.axvline(0, **DASHED)
        axes.set(yscale="log", title=f"layer {at[0]} neuron {at[1]}")
    for axes in grid[:, 0]:
        axes.set_ylabel("tokens")
    for axes in grid[-1]:
        axes.set_xlabel("pre-activation")
    return fig


# ---------------------------------------------------------------- notebook 02: correlation and its baseline


def correlation_by_layer(neurons: pd.DataFrame) -> Figure:
    """Best match and rotated baseline by layer: median, quartiles, 5th and 95th percentile."""
    fig, axes = canvas()
    named = {"mean_corr": "neurons", "mean_baseline": "rotated basis"}
    long = neurons.melt("layer", list(named), var_name="basis", value_name="correlation").replace({"basis": named})
    palette = {"neurons": CORRELATION, "rotated basis": BASELINE}
    boxes(axes, long, "layer", "correlation", hue="basis", palette=palette)
    axes.set(ylabel="correlation of the best match", ylim=(0, 1))
    layer_axis(axes, neurons["layer"].nunique())
    axes.legend(title=None, loc="upper right", ncols=2)
    return fig


def draws(summary: pd.DataFrame, spread: pd.Series) -> Figure:
    """Spread of each neuron's baseline over rotation draws, and universal neurons by draw."""
    fig, (left, right) = canvas(1, 2)
    if spread.notna().any():
        left.hist(spread.dropna(), bins=60, color=BASELINE, **FILLED)
    else:
        note(left, "one draw: no spread")
    left.set(xlabel="standard deviation of the baseline over draws", ylabel="neurons")
    right.bar(summary["draw"], summary["universal"], color=COLOURS["universal"], width=0.6)
    if not summary["universal"].any():
        note(right, "no universal neuron with any draw")
    right.set(xlabel="rotation draw", ylabel="universal neurons\nwith this draw alone")
    right.set_xticks(summary["draw"])
    whole_numbers(right)
    return fig


def convergence(summary: pd.DataFrame, reference: str, candidates: int) -> Figure:
    """From `convergence_summary`, against tokens: the reference's means, and the universal neurons of every seed.

    `candidates` is the number of neurons of a model, for the noise floor.
    """
    fig, (left, right) = canvas(1, 2, (WIDE, 4.4))
    own = summary[summary["seed"] == reference].sort_values("tokens")
    lines = {"best match": "mean_corr", "rotated baseline": "baseline", "excess": "excess_corr"}
    for (label, column), colour in zip(lines.items(), (CORRELATION, BASELINE, EXCESS), strict=True):
        left.plot(own["tokens"], own[column], "o-", color=colour, label=label)
    floor = properties.noise_floor(candidates, own["tokens"])
    left.plot(own["tokens"], floor, ":", color=NEUTRAL, label="noise floor √(2 ln N / tokens)")
    left.set_ylabel("correlation, mean over neurons")
    left.set_ylim(bottom=0)
    looks = seed_looks(summary["seed"].unique())
    for seed, rows in summary.groupby("seed", sort=False):
        right.plot(rows["tokens"], rows["universal"], label=seed, **looks[seed])
    right.set(ylabel="universal neurons", ylim=(0, max(1, 1.1 * summary["universal"].max())))
    whole_numbers(right)
    for axes, title, columns in ((left, None, 2), (right, "reference", 3)):
        axes.set(xscale="log", xlabel="counted tokens")
        axes.set_xticks(own["tokens"], [_short(tokens) for tokens in own["tokens"]])
        axes.set_xticks([], minor=True)
        axes.legend(title=title, loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=columns, frameon=False)
    return fig


def _short(number: float) -> str:
    """38,306 as "38.3k" and 1,000,000 as "1M"."""
    return f"{number / 1e6:.3g}M" if number >= 1e6 else f"{number / 1e3:.3g}k" if number >= 1e3 else f"{number:.0f}"


def sampling(table: pd.DataFrame, neurons: pd.DataFrame) -> Figure:
    """Best match against the correlation with the partner chosen on other text; standard error of the excess.

    `table` has the reference's rows of `sampling`.
    """
    fig, (left, right) = canvas(1, 2, (WIDE, 4.0))
    joined = neurons[["layer", "neuron", "mean_corr", "is_universal"]].merge(table, on=["layer", "neuron"])
    left.plot([0, 1], [0, 1], color=NEUTRAL, linewidth=1)
    scatter(left, joined, "mean_corr", "held_out_corr", loc="upper left")
    left.set(xlabel="best match on all these parts", ylabel="partner chosen on some parts,\nmeasured on the others")
    bins = np.linspace(0, joined["excess_se"].quantile(0.995), 60)
    for group, look, _ in groups(joined):
        right.hist(group["excess_se"].clip(upper=bins[-1]), bins, **FILLED, **look)
    right.set(xlabel="standard error of the excess\n(last bin: all larger ones)", ylabel="neurons (log axis)")
    right.set_yscale("log")
    right.xaxis.set_major_locator(MaxNLocator(5))
    right.legend()
    return fig
