"""Chapter 7's figures: what seeds are like from checkpoint to checkpoint.

Training runs along the x axis, on a log axis of tokens where these are known. Lines are means over seeds, shading is
their range; the grey span is the decay of the learning rate, where its schedule is known.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from lib.chapters.circuits.roles import PUBLISHED_CUTS
from lib.chapters.emergence.statistics import COUNTS, HEAD_BAR
from lib.display.captions import count
from lib.display.plots import (
    BASELINE,
    COLOURS,
    CORRELATION,
    EXCESS,
    HEIGHT,
    NEUTRAL,
    PERCENT,
    PLAIN,
    ROLE_COLOURS,
    WIDE,
    canvas,
    heatmap,
    layer_axis,
    note,
    seed_looks,
)

HEAD_SCORES = {"bos": "attention to BOS", "previous": "attention to the previous token", "induction": "induction score"}
OTHERS = "#bbbbbb"  # lines of domains that are not named
DECAY = {"color": NEUTRAL, "alpha": 0.25, "linewidth": 0, "zorder": 0}
WHEN_COLOURS = {"early": "#44AA99", "late": "#B0407F"}


class Timeline(NamedTuple):
    """Where each point of training is on the x axis, the axis's label, and from where on the learning rate decays."""

    at: pd.Series  # point → x
    label: str
    log: bool
    decay: float | None = None

    def decayed(self, point: str) -> bool:
        """Whether the learning rate has begun to decay before the point."""
        return self.decay is not None and self.at[point] > self.decay

    @property
    def decaying(self) -> str:
        """How much of the end of training has a decaying learning rate: "35M tokens"; only where that is known."""
        return f"{short(self.at.iloc[-1] - self.decay)} {self.label.removeprefix('training ')}"

    @property
    def span(self) -> str:
        """The sentence that explains the span, with a space before it; empty where there is none."""
        return "" if self.decay is None else " In the grey span the learning rate decays."

    def tick(self, point: str) -> str:
        """The point's tokens or steps, short; its name where neither is known."""
        return short(self.at[point]) if self.log else point

    def moment(self, point: str) -> str:
        """The same with its unit."""
        return f"{self.tick(point)} {self.label.removeprefix('training ')}" if self.log else point


def timeline(points: pd.DataFrame, constant_until: int | None = None) -> Timeline:
    """From rows point, step, tokens: tokens where all are known, else steps, else the points' order.

    The learning rate is constant up to the step `constant_until`.
    """
    for column, label in (("tokens", "training tokens"), ("step", "training steps")):
        values = pd.to_numeric(points[column]).astype(float)
        if values.notna().all() and (values > 0).all():
            at, steps = pd.Series(values.to_numpy(), points["point"]), pd.to_numeric(points["step"]).to_numpy(float)
            decays = constant_until is not None and steps[-1] > constant_until
            return Timeline(at, label, True, at.iloc[-1] * constant_until / steps[-1] if decays else None)
    return Timeline(pd.Series(np.arange(1.0, len(points) + 1), points["point"]), "checkpoint, in order", False)


def short(number: float) -> str:
    """2,048 as "2k", 4,194,304 as "4.2M" and 3 billion as "3B"."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.2g}{unit}" if number < 100 * size else f"{number / size:.0f}{unit}"
    return f"{number:.0f}"


def _time_axis(axes: Axes, time: Timeline) -> None:
    axes.set_xlabel(time.label)
    if not time.log:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return
    axes.set_xscale("log")
    if time.at.max() / time.at.min() > 30:
        axes.xaxis.set_major_locator(LogLocator(10))
    axes.xaxis.set_major_formatter(lambda value, _: short(value))
    axes.xaxis.set_minor_locator(NullLocator())


def _shade_decay(axes: Axes, time: Timeline) -> None:
    if time.decay is not None:
        axes.axvspan(time.decay, time.at.max(), **DECAY)


def _over_seeds(
    axes: Axes, table: pd.DataFrame, column: str, time: Timeline, weight: str | None = None, **line
) -> None:
    """The mean over seeds, weighted by the column `weight` if named, as a `line`, and the range. Rows seed, point."""
    over = table.groupby("point", sort=False)[column].agg(["min", "max"])
    over = over.reindex([point for point in time.at.index if point in over.index])
    weights = table[weight] if weight else pd.Series(1, table.index)
    mean = (table[column] * weights).groupby(table["point"]).sum() / weights.groupby(table["point"]).sum()
    x = time.at[over.index]
    axes.fill_between(
        x, over["min"].astype(float), over["max"].astype(float), color=line["color"], alpha=0.2, linewidth=0
    )
    axes.plot(x, mean[over.index], **{"marker": "o", "markersize": 4} | line)


def losses(table: pd.DataFrame, time: Timeline) -> Figure:
    """Held-out loss of all text and of each domain (mean over seeds) against training."""
    fig, axes = canvas(size=(WIDE, 4))
    domains = table[table["domain"] != "all"].groupby(["point", "domain"], sort=False)["loss"].mean().unstack()
    domains = domains.reindex(time.at.index)
    ordered = domains.iloc[-1].sort_values().index
    special = {name: "other domains" for name in ordered[1:2]}
    bold = {"color": NEUTRAL, "linewidth": 1.5}
    ends = {name: bold | {"linestyle": "--", "label": f"hardest: {name}"} for name in ordered[-1:]}
    ends |= {name: bold | {"linestyle": ":", "label": f"easiest: {name}"} for name in ordered[:1]}
    for domain in ordered:
        look = {"color": OTHERS, "linewidth": 0.8, "label": special.get(domain)}
        axes.plot(time.at[domains.index], domains[domain], **(look | ends.get(domain, {})))
    _over_seeds(axes, table[table["domain"] == "all"], "loss", time, color="#222222", label="all text")
    _time_axis(axes, time)
    _shade_decay(axes, time)
    axes.set_ylabel("held-out loss [nats per token]")
    axes.legend()
    return fig


def shares(seeds: pd.DataFrame, time: Timeline) -> Figure:
    """Share of universal neurons and median excess correlation against training, every seed as reference."""
    fig, (left, right) = canvas(1, 2, (WIDE, HEIGHT))
    _over_seeds(left, seeds, "share", time, color=COLOURS["universal"])
    _over_seeds(right, seeds, "median_excess", time, color=EXCESS)
    left.set(ylabel="universal neurons")
    left.yaxis.set_major_formatter(PERCENT)
    left.set_ylim(0, max(1.1 * seeds["share"].max(), 1e-3))
    right.set(ylabel="median excess correlation")
    for axes in (left, right):
        _time_axis(axes, time)
        _shade_decay(axes, time)
    return fig


def by_layer(shares: pd.DataFrame, time: Timeline) -> Figure:
    """Share of universal neurons by layer (x) and point of training (y, later on top), mean over seeds."""
    wide = shares.groupby(["point", "layer"], sort=False)["share"].mean().unstack().reindex(time.at.index)[::-1]
    layers = wide.shape[1]
    fig, axes = canvas(size=(max(5.5, 2.5 + 0.65 * layers), 1.6 + 0.32 * len(wide)))
    look = {"cmap": "cividis", "vmin": 0, "vmax": max(1e-3, 100 * np.nanmax(wide.to_numpy()))}
    bar = {"label": "universal neurons [%]"}
    heatmap(axes, 100 * wide, annot=layers <= 12, fmt=".1f", cbar_kws=bar, **look)
    ticks = [time.tick(point) + (", decayed" if time.decayed(point) else "") for point in wide.index]
    axes.set_yticks(np.arange(len(wide)) + 0.5, ticks, rotation=0)
    axes.set(xlabel="layer", ylabel=time.label)
    return fig


def births_and_deaths(changes: pd.DataFrame, kept: pd.DataFrame, time: Timeline) -> Figure:
    """Universal neurons that stay, are born and die between points; and how many are still universal at the end.

    Shares are over all seeds' neurons, as in the caption, so a seed with few neurons does not weigh as much as others.
    """
    fig, (left, right) = canvas(1, 2, (WIDE + 1, 4.4))
    mean = changes.groupby("point", sort=False)[["stay", "births", "deaths"]].mean().reindex(time.at.index[1:])
    x = np.arange(len(mean))
    left.bar(x, mean["stay"], color=COLOURS["universal"], label="stay")
    left.bar(x, mean["births"], bottom=mean["stay"], color=COLOURS["universal"], alpha=0.45, label="births")
    left.bar(x, -mean["deaths"], color=NEUTRAL, label="deaths")
    for place in np.flatnonzero([time.decayed(point) for point in mean.index]):
        left.axvspan(place - 0.5, place + 0.5, **DECAY)
    left.axhline(0, color=NEUTRAL, linewidth=1)
    left.set_xticks(x, map(time.tick, mean.index), rotation=45, fontsize="small")
    left.set(xlabel=f"{time.label}, later checkpoint", ylabel="deaths ↓ neurons ↑ universal\nmean over seeds")
    left.yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    if not mean.to_numpy().any():
        note(left, "no universal neuron at any checkpoint")
    left.legend(loc="upper left")
    chance = {"color": NEUTRAL, "marker": "", "linestyle": ":"}
    partners = {"color": CORRELATION, "marker": "s", "linestyle": "--"}
    lines = (  # column, its weight, label, look
        ("persistence", "universal", "universal at the end too", {"color": COLOURS["universal"]}),
        ("chance", "universal", "chance: neurons of the same layers", chance),
        ("same_partner", "kept", "of these: best match is the same neuron", partners),
    )
    for column, weight, label, look in lines:
        known = kept[kept[column].notna()]
        if len(known):
            _over_seeds(right, known, column, time, weight, label=label, **look)
    known = kept.loc[kept["persistence"].notna(), "point"].unique()
    if len(known):
        _time_axis(right, time)
        if time.log and len(known) <= 6:
            right.set_xticks(time.at[known], map(time.tick, known))
        place = {"loc": "outside lower center", "ncols": 3, "frameon": False, "fontsize": "small"}
        fig.legend(*right.get_legend_handles_labels(), **place)
    else:
        note(right, "no universal neuron before the end")
    right.set(ylabel="share of a checkpoint's\nuniversal neurons", ylim=(-0.03, 1.03))
    right.yaxis.set_major_formatter(PERCENT)
    return fig


def early_and_late(groups: pd.DataFrame, kinds: pd.DataFrame, layers: int, kind: str) -> Figure:
    """Where the early and the late universal neurons of the end are, and what they are.

    `groups`: rows seed, layer, when (early, late); `kinds`: rows when, kind, share, of; `kind` names what they are.
    """
    fig, (left, right) = canvas(1, 2, (WIDE + 1, 4))
    below, seeds = np.zeros(layers), max(1, groups["seed"].nunique())
    for when, colour in WHEN_COLOURS.items():
        own = groups[groups["when"] == when].groupby("layer").size().reindex(range(layers), fill_value=0)
        left.bar(range(layers), own / seeds, bottom=below, color=colour, label=when)
        below = below + own.to_numpy() / seeds
    layer_axis(left, layers)
    left.set_ylabel("universal neurons at the end\nmean over seeds")
    left.set_ylim(0, max(1.15 * below.max(), 1e-3))
    left.legend()
    if groups.empty:
        note(left, "no universal neuron")
    if kinds.empty:
        note(right, "no universal neuron whose kind is known")
        return fig
    wide = kinds.pivot(index="kind", columns="when", values="share").reindex(columns=list(WHEN_COLOURS)).fillna(0)
    wide = wide.loc[wide.max(axis=1).sort_values().index]
    number = kinds.groupby("when")["of"].first()
    for index, (when, colour) in enumerate(WHEN_COLOURS.items()):
        label = f"{when}, {count(number.get(when, 0), 'neuron')}"
        right.barh(np.arange(len(wide)) + 0.4 * (0.5 - index), wide[when], 0.38, color=colour, label=label)
    right.legend(title=None if number.sum() == len(groups) else "of the reference seed")
    right.set_yticks(range(len(wide)), [str(name).replace("_", " ") for name in wide.index])
    right.set(xlabel="share of the early, or late, universal neurons", ylabel=kind)
    right.xaxis.set_major_formatter(PERCENT)
    right.grid(False, axis="y")
    return fig


def circuits_appear(heads: pd.DataFrame, layers: pd.DataFrame, time: Timeline) -> Figure:
    """Six indicators against training: best heads above, neurons that act on few or on no tokens below."""
    fig, grid = canvas(2, 3, (WIDE + 2, 6), sharex=True)
    keys = ["point", "seed"]
    best = heads.groupby(keys, sort=False)[list(HEAD_SCORES)].max().reset_index()
    for axes, (name, label) in zip(grid[0], HEAD_SCORES.items(), strict=True):
        _over_seeds(axes, best, name, time, color=CORRELATION)
        axes.axhline(HEAD_BAR, color=NEUTRAL, linestyle=":", linewidth=1, label="bar of the table below")
        axes.set(title=label, ylim=(-0.02, 1.02), ylabel="best head of a seed" if name == "bos" else "")
    grid[0, 0].legend(fontsize="x-small", loc="upper left")
    total = layers.groupby(keys, sort=False).agg(dict.fromkeys(COUNTS, "sum") | {"max_kurt": "max"}).reset_index()
    kurtosis, peaked, variance = grid[1]
    _over_seeds(kurtosis, total, "max_kurt", time, color=NEUTRAL)
    kurtosis.axhline(PUBLISHED_CUTS.kurtosis, color=NEUTRAL, linestyle=":", label="published cut")
    kurtosis.axhline(layers["null_kurt"].mean(), color=BASELINE, linestyle="--", label="99.9 % of random directions")
    kurtosis.set(title="largest W_U kurtosis", ylabel="kurtosis", yscale="log")
    kurtosis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    kurtosis.yaxis.set_major_formatter(PLAIN)
    kurtosis.yaxis.set_minor_locator(NullLocator())
    for role in ("prediction", "suppression"):
        _over_seeds(peaked, total, role, time, color=ROLE_COLOURS[role], label=role)
    peaked.set(title="W_U kurtosis above the null's")
    _over_seeds(variance, total, "low_variance", time, color=CORRELATION)
    variance.set(title="logit variance below the null's")
    for axes in (kurtosis, peaked):
        axes.legend(fontsize="x-small")
    for axes in (peaked, variance):
        axes.set(ylabel="neurons of a seed", ylim=(0, max(1, axes.get_ylim()[1])))
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    for axes in grid[1]:
        _time_axis(axes, time)
    for axes in grid.flat:
        _shade_decay(axes, time)
    return fig


def heads_at_the_end(heads: pd.DataFrame) -> Figure:
    """Every head's three scores at the last point by layer, one dot a head, one shape a seed."""
    last = heads[heads["point"] == heads["point"].iloc[-1]]
    fig, grid = canvas(1, len(HEAD_SCORES), (WIDE + 1, HEIGHT), sharey=True)
    looks = seed_looks(last["seed"].unique())
    for axes, (name, label) in zip(grid, HEAD_SCORES.items(), strict=True):
        for index, (seed, look) in enumerate(looks.items()):
            own = last[last["seed"] == seed]
            x = own["layer"] + 0.1 * (index - (len(looks) - 1) / 2)
            axes.plot(x, own[name], linestyle="none", markersize=4, label=seed, **look)
        axes.set(title=label, ylim=(-0.02, 1.02))
        layer_axis(axes, int(last["layer"].max()) + 1)
    grid[0].set_ylabel("share of attention\none dot a head")
    grid[-1].legend(title="seed", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return fig
