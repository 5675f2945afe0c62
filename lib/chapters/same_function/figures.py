"""Figures of chapter 08's ladder and transplants."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.chapters.same_function import summary
from lib.chapters.same_function.maps import CLASSES, MOST, SOME
from lib.display.plots import (
    BASELINE,
    CORRELATION,
    DASHED,
    NEUTRAL,
    PALE,
    PERCENT,
    WIDE,
    canvas,
    heatmap,
    legend_below,
    note,
)

RUNGS = {
    "one": "one",
    "few_2": "two",
    "few_4": "four",
    "few_8": "eight",
    "all": "all",
    "one_to_one": "one to one",
    "orthogonal": "rotation",
}
NESTED = 5  # of these each map may use what the one before may
APART = 0.6  # between these and the maps of whole layers
LINES = {"one": ":", "few_8": "--", "all": "-"}
KINDS = dict(zip(CLASSES, ("#3F2A78", "#7D5BBE", "#B9A3E3", "#c8c8c8", "#9A7B2D"), strict=True))
PARTNERS = {  # with their words, colours and markers
    "match": ("best match", CORRELATION, "o"),
    "second": ("second-best", "#7D5BBE", "s"),
    "random": ("random, like the match", BASELINE, "D"),
    "all": ("all neurons of a layer", "#117733", "^"),
}


def rungs(table: pd.DataFrame, reference: str) -> Figure:
    """Left: mean R² of each rung and of the rotated basis, of the reference and, pale, of other seeds. Right: share of
    the reference's neurons above each R²."""
    fig, (left, right) = canvas(1, 2, (WIDE, 4.2))
    places = [place + APART * (place >= NESTED) for place in range(len(RUNGS))]
    own, found = summary.own_rows(table, reference), summary.means(table[~table["full"]])
    for prefix, colour, words in (
        ("", CORRELATION, "layer of the other seed"),
        ("null_", BASELINE, "its rotated basis"),
    ):
        for _, row in found.iterrows():
            values = [row[prefix + name] for name in RUNGS]
            left.plot(range(NESTED), values[:NESTED], color=colour, alpha=0.3, linewidth=1)
        row = summary.means(own).loc[reference]
        values = [row[prefix + name] for name in RUNGS]
        left.plot(range(NESTED), values[:NESTED], "o-", color=colour, label=words)
        left.plot(places[NESTED:], values[NESTED:], "D", color=colour)
        for name, line in LINES.items():
            values = np.sort(own[f"{prefix}r2_{name}"].dropna().astype(float))
            share = 1 - np.arange(len(values)) / max(1, len(values))
            right.plot(values, share, line, color=colour)
    for name, line in LINES.items():
        left.plot([], [], line, color=NEUTRAL, label=f"right: {RUNGS[name]}")
    left.axvline((places[NESTED - 1] + places[NESTED]) / 2, color=PALE, linewidth=1)
    left.set_xticks(places, list(RUNGS.values()), rotation=30)
    left.set(xlabel="neurons that a map may use | whole layers", ylabel="mean R² on held-out text", ylim=(0, None))
    for bound in (SOME, MOST):
        right.axvline(bound, **DASHED)
    right.set(xlabel="R² on held-out text", ylabel="neurons with at least this R²", xlim=(-0.05, 1), ylim=(0, 1))
    right.yaxis.set_major_formatter(PERCENT)
    legend_below(fig, columns=5)
    return fig


def layers(table: pd.DataFrame, reference: str) -> Figure:
    """Heat maps by layer of both seeds: linear CKA, mean R² from all neurons, and the same in the rotated basis."""
    own = summary.own_rows(table, reference)
    panels = {"cka": "linear CKA", "all": "R², all neurons", "null_all": "R², all, rotated basis"}
    fig, axes = canvas(1, 3, (WIDE, 3.3), sharey=True)
    most = float(own[["all", "null_all"]].max().max())
    for axis, (name, title) in zip(axes, panels.items(), strict=True):
        values = own.pivot(index="layer", columns="other_layer", values=name).astype(float)
        looks = {"annot": values.size <= 64, "fmt": ".2f", "annot_kws": {"size": 8}, "cbar": False, "cmap": "viridis"}
        heatmap(axis, values, vmin=0, vmax=1 if name == "cka" else most, **looks)
        axis.set(title=title, xlabel=f"layer of {own['model'].iloc[0]}", ylabel="")
        axis.tick_params(axis="y", rotation=0)
    axes[0].set_ylabel(f"layer of {reference}")
    return fig


def classes(table: pd.DataFrame, neurons: pd.DataFrame, families: dict[str, str], reference: str) -> Figure:
    """Shares of the classes by layer (left) and by family (right), each in one bar.

    `neurons` has layer, neuron, is_universal and family of the reference; `families` their words.
    """
    own = summary.own_rows(table, reference)
    fig, (left, right) = canvas(1, 2, (WIDE, 4.4), width_ratios=(1, 1.1))
    shares = summary.class_shares(own[own["sampled"]], own["layer"])
    _stacked(left.bar, "bottom", shares)
    left.set(xlabel="layer", ylabel=f"neurons of {reference}", ylim=(0, 1))
    left.set_xticks(range(len(shares)), shares.index)
    left.yaxis.set_major_formatter(PERCENT)
    rows = by_family(own, neurons, families)
    _stacked(right.barh, "left", rows)
    right.set_yticks(range(len(rows)), [f"{name} ({number:,})" for name, number in rows["neurons"].items()])
    right.invert_yaxis()
    right.set(xlabel=f"neurons of {reference}", xlim=(0, 1))
    right.xaxis.set_major_formatter(PERCENT)
    legend_below(fig, columns=len(CLASSES))
    return fig


def by_family(own: pd.DataFrame, neurons: pd.DataFrame, families: dict[str, str]) -> pd.DataFrame:
    """Class shares of all neurons, in the rotated basis, of universal and other ones, and by family, the largest
    first."""
    joined = own.merge(neurons[["layer", "neuron", "is_universal", "family"]], on=["layer", "neuron"])
    universal = joined["is_universal"].map({True: "universal", False: "not universal"})
    named = joined["family"].map(families)
    drawn = joined[joined["sampled"]]
    groups = (("all", drawn), ("rotated basis", summary.null_kinds(drawn)))
    parts = [summary.class_shares(of, pd.Series(words, of.index)) for words, of in groups]
    parts.append(summary.class_shares(joined, universal))
    named = summary.class_shares(drawn[named[drawn.index].notna()], named)
    parts.append(named.sort_values("neurons", ascending=False))
    return pd.concat(parts)


def _stacked(bars, start: str, shares: pd.DataFrame) -> None:
    """One bar per row, of the classes in order."""
    before = np.zeros(len(shares))
    for name, colour in KINDS.items():
        values = shares[name].to_numpy(float)
        bars(range(len(shares)), values, **{start: before}, color=colour, label=name, linewidth=0)
        before += values


def transplants(table: pd.DataFrame, reference: str) -> Figure:
    """Left: recovered share R of three sets by partner, and of each layer's universal neurons. Right: R of all neurons
    in groups by their correlation with the match. Bars are 95 % intervals over blocks."""
    own = summary.own_rows(table, reference)
    own = own[own["recovered"].notna()]
    fig, (left, right) = canvas(1, 2, (WIDE, 4.6), width_ratios=(1.2, 1))
    grouped = own["set"].str.startswith("group")
    names = list(dict.fromkeys(own.loc[~grouped, "set"]))
    labels = [f"{name} ({own.loc[own['set'] == name, 'neurons'].iloc[0]:,})" for name in names]
    places = {name: place for place, name in enumerate(names)}
    for index, (partner, (words, colour, marker)) in enumerate(PARTNERS.items()):
        look = {"fmt": marker, "color": colour, "linestyle": "none", "markersize": 5, "label": words}
        rows = own[~grouped & (own["partner"] == partner)]
        at = rows["set"].map(places).astype(float) + 0.16 * (index - 1.5)
        left.errorbar(rows["recovered"], at, xerr=_bars(rows), **look)
        rows = own[grouped & (own["partner"] == partner)]
        if len(rows):
            right.errorbar(rows["r2"], rows["recovered"], yerr=_bars(rows), **(look | {"linestyle": "-"}))
    left.set_yticks(range(len(names)), labels)
    left.set_ylim(max(1, len(names)) - 0.5, -0.5)
    left.margins(x=0.08)
    left.set(xlabel="recovered share R", ylabel="neurons replaced")
    right.set(xlabel="squared correlation with the match", ylabel="recovered share R")
    right.locator_params(axis="x", nbins=5)
    for line in (left.axvline, right.axhline):
        line(0, **DASHED)
        line(1, color=NEUTRAL, linewidth=1)
    for axes, empty in ((left, not names), (right, not grouped.any())):
        _if_empty(axes, empty)
    legend_below(fig, columns=2)
    return fig


def _bars(rows: pd.DataFrame) -> np.ndarray:
    return np.stack([rows["recovered"] - rows["low"], rows["high"] - rows["recovered"]]).astype(float).clip(0)


def _if_empty(axes: Axes, empty: bool) -> None:
    if empty:
        note(axes, "no set whose mean ablation\ncosts loss beyond two errors")
