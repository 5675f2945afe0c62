"""The figures of chapter 6: what seeds are like at one checkpoint after another.

Training runs along the x axis, on a log axis of tokens where these are known; lines are means over seeds and the shading
is their range.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from lib.chapters.circuits.roles import PUBLISHED_CUTS
from lib.chapters.emergence.statistics import HALF
from lib.display.captions import count
from lib.display.plots import (
    BASELINE,
    COLOURS,
    CORRELATION,
    EXCESS,
    HEIGHT,
    NEUTRAL,
    PERCENT,
    ROLE_COLOURS,
    SEED_COLOURS,
    WIDE,
    canvas,
    layer_axis,
    note,
)

HEAD_SCORES = {"bos": "attention to BOS", "previous": "attention to the previous token", "induction": "induction score"}
WHEN = {"early": "#0072B2", "late": "#E69F00"}


class Timeline(NamedTuple):
    """Where each point of training stands on the x axis, and the axis's label."""

    at: pd.Series  # point → x
    label: str
    log: bool


def timeline(points: pd.DataFrame) -> Timeline:
    """From rows point, step, tokens: tokens where all are known, else steps, else the points' order."""
    for column, label in (("tokens", "training tokens"), ("step", "training step")):
        values = pd.to_numeric(points[column]).astype(float)
        if values.notna().all() and (values > 0).all():
            return Timeline(pd.Series(values.to_numpy(), points["point"]), label, True)
    return Timeline(pd.Series(np.arange(1.0, len(points) + 1), points["point"]), "checkpoint, in order", False)


def short(number: float) -> str:
    """2,048 as "2k", 4,194,304 as "4.2M" and 3 billion as "3B"."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.2g}{unit}" if number < 100 * size else f"{number / size:.0f}{unit}"
    return f"{number:.0f}"


def _time_axis(axes: Axes, time: Timeline) -> None:
    axes.set_xlabel(time.label)
    if time.log:
        axes.set_xscale("log")
        if time.at.max() / time.at.min() > 30:
            axes.xaxis.set_major_locator(LogLocator(10))
        axes.xaxis.set_major_formatter(lambda value, _: short(value))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _over_seeds(
    axes: Axes,
    table: pd.DataFrame,
    column: str,
    time: Timeline,
    colour: str,
    label: str | None = None,
    style: str = "o-",
    weight: str | None = None,
) -> None:
    """Mean over seeds, by a column of weights if one is named, as a line and the range as shading; `table` has rows seed, point and the column."""
    over = table.groupby("point", sort=False)[column].agg(["min", "max"])
    over = over.reindex([point for point in time.at.index if point in over.index])
    weights = table[weight] if weight else pd.Series(1, table.index)
    mean = (table[column] * weights).groupby(table["point"]).sum() / weights.groupby(table["point"]).sum()
    x = time.at[over.index]
    axes.fill_between(x, over["min"].astype(float), over["max"].astype(float), color=colour, alpha=0.2, linewidth=0)
    axes.plot(x, mean[over.index], style, color=colour, markersize=4, label=label)


def losses(table: pd.DataFrame, time: Timeline) -> Figure:
    """Held-out loss of all text, and of each domain (mean over seeds), against training."""
    fig, axes = canvas(size=(WIDE, 4))
    domains = table[table["domain"] != "all"].groupby(["point", "domain"], sort=False)["loss"].mean().unstack()
    domains = domains.reindex(time.at.index)
    last = domains.iloc[-1].sort_values()
    for index, domain in enumerate(last.index):
        shown = (
            {"label": f"easiest: {domain}"}
            if index == 0
            else {"label": f"hardest: {domain}"}
            if index == len(last) - 1
            else {}
        )
        colour = EXCESS if index == 0 else BASELINE if index == len(last) - 1 else "#cccccc"
        axes.plot(time.at[domains.index], domains[domain], color=colour, linewidth=1.5 if shown else 0.8, **shown)
    _over_seeds(axes, table[table["domain"] == "all"], "loss", time, CORRELATION, "all text")
    _time_axis(axes, time)
    axes.set_ylabel("held-out loss [nats per token]")
    axes.legend()
    return fig


def shares(seeds: pd.DataFrame, time: Timeline) -> Figure:
    """Share of universal neurons and mean excess correlation against training, every seed as reference."""
    fig, (left, right) = canvas(1, 2, (WIDE, HEIGHT))
    _over_seeds(left, seeds, "share", time, COLOURS["universal"])
    _over_seeds(right, seeds, "mean_excess", time, EXCESS)
    left.set(ylabel="universal neurons")
    left.yaxis.set_major_formatter(PERCENT)
    left.set_ylim(0, max(1.1 * seeds["share"].max(), 1e-3))
    right.set(ylabel="mean excess correlation")
    for axes in (left, right):
        _time_axis(axes, time)
    return fig


def by_layer(shares: pd.DataFrame, time: Timeline) -> Figure:
    """Share of universal neurons by layer (x) and point of training (y, later ones on top), mean over seeds; rows point, layer, share."""
    wide = shares.groupby(["point", "layer"], sort=False)["share"].mean().unstack().reindex(time.at.index)[::-1]
    layers = wide.shape[1]
    fig, axes = canvas(size=(max(5.5, 2.5 + 0.65 * layers), 1.6 + 0.32 * len(wide)))
    sns.heatmap(
        100 * wide,
        ax=axes,
        cmap="cividis",
        vmin=0,
        vmax=max(1e-3, 100 * np.nanmax(wide.to_numpy())),
        annot=layers <= 12,
        fmt=".1f",
        cbar_kws={"label": "universal neurons [%]"},
    )
    names = [short(time.at[point]) if time.log else point for point in wide.index]
    axes.set_yticks(np.arange(len(wide)) + 0.5, names, rotation=0)
    axes.set(xlabel="layer", ylabel=time.label)
    return fig


def births_and_deaths(changes: pd.DataFrame, kept: pd.DataFrame, time: Timeline) -> Figure:
    """Universal neurons that stay, are born and die between points; and how many are still universal at the end.

    Shares are over all seeds' neurons, as in the text, so that a seed with few does not weigh as much as one with many.
    """
    fig, (left, right) = canvas(1, 2, (WIDE + 1, 4.4))
    mean = changes.groupby("point", sort=False)[["stay", "births", "deaths"]].mean().reindex(time.at.index[1:])
    x = np.arange(len(mean))
    left.bar(x, mean["stay"], color=COLOURS["universal"], label="stay")
    left.bar(x, mean["births"], bottom=mean["stay"], color=EXCESS, label="births")
    left.bar(x, -mean["deaths"], color=NEUTRAL, label="deaths")
    left.axhline(0, color=NEUTRAL, linewidth=1)
    left.set_xticks(
        x, [short(time.at[point]) if time.log else point for point in mean.index], rotation=45, fontsize="small"
    )
    left.set(xlabel=f"{time.label}, later checkpoint", ylabel="deaths ↓ neurons ↑ universal\nmean over seeds")
    left.yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    if not mean.to_numpy().any():
        note(left, "no universal neuron at any checkpoint")
    left.legend(loc="upper left")
    known = kept[kept["persistence"].notna()]
    if known.empty:
        note(right, "no universal neuron before the end")
    else:
        _over_seeds(
            right, known, "persistence", time, COLOURS["universal"], "universal at the end too", weight="universal"
        )
        _over_seeds(right, known, "chance", time, NEUTRAL, "chance: neurons of the same layers", ":", "universal")
        if known["same_partner"].notna().any():
            _over_seeds(
                right,
                known[known["same_partner"].notna()],
                "same_partner",
                time,
                CORRELATION,
                "of these: best match is the same neuron",
                "s--",
                "kept",
            )
        _time_axis(right, time)
        if time.log and known["point"].nunique() <= 6:
            right.set_xticks(*zip(*((at, short(at)) for at in time.at[known["point"].unique()]), strict=True))
        handles, labels = right.get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    right.set(ylabel="share of a checkpoint's\nuniversal neurons", ylim=(-0.03, 1.03))
    right.yaxis.set_major_formatter(PERCENT)
    return fig


def early_and_late(groups: pd.DataFrame, kinds: pd.DataFrame, layers: int, kind: str) -> Figure:
    """Where the early and the late universal neurons of the end sit, and what they are.

    `groups`: rows seed, layer, when (early, late); `kinds`: rows when, kind, share, of; `kind` names what they are.
    """
    fig, (left, right) = canvas(1, 2, (WIDE + 1, 4))
    below = np.zeros(layers)
    for when, colour in WHEN.items():
        own = groups[groups["when"] == when]
        number = own.groupby("layer").size().reindex(range(layers), fill_value=0).to_numpy() / max(
            1, groups["seed"].nunique()
        )
        left.bar(range(layers), number, bottom=below, color=colour, label=when)
        below = below + number
    layer_axis(left, layers)
    left.set_ylabel("universal neurons at the end\nmean over seeds")
    left.set_ylim(0, max(1.15 * below.max(), 1e-3))
    left.legend()
    if groups.empty:
        note(left, "no universal neuron")
    if kinds.empty:
        note(right, "no universal neuron whose kind is known")
        return fig
    wide = kinds.pivot(index="kind", columns="when", values="share").reindex(columns=list(WHEN)).fillna(0)
    wide = wide.loc[wide.max(axis=1).sort_values().index]
    number = kinds.groupby("when")["of"].first()
    for index, when in enumerate(WHEN):
        label = f"{when}, {count(number.get(when, 0), 'neuron')}"
        right.barh(np.arange(len(wide)) + 0.4 * (0.5 - index), wide[when], 0.38, color=WHEN[when], label=label)
    right.legend(title=None if number.sum() == len(groups) else "of the reference seed")
    right.set_yticks(range(len(wide)), [str(name).replace("_", " ") for name in wide.index])
    right.set(xlabel="share of the early, or late, universal neurons", ylabel=kind)
    right.xaxis.set_major_formatter(PERCENT)
    right.grid(False, axis="y")
    return fig


def circuits_appear(heads: pd.DataFrame, layers: pd.DataFrame, time: Timeline) -> Figure:
    """Six indicators against training: best heads above, neurons that act on few or on no tokens below."""
    fig, grid = canvas(2, 3, (WIDE + 2, 6), sharex=True)
    best = heads.groupby(["point", "seed"], sort=False)[list(HEAD_SCORES)].max().reset_index()
    for axes, (name, label) in zip(grid[0], HEAD_SCORES.items(), strict=True):
        _over_seeds(axes, best, name, time, CORRELATION)
        axes.axhline(HALF, color=NEUTRAL, linestyle=":", linewidth=1)
        axes.set(title=label, ylim=(-0.02, 1.02))
        axes.set_ylabel("best head of a seed" if name == "bos" else "")
    total = layers.groupby(["point", "seed"], sort=False)[
        ["prediction", "suppression", "peaked_positive", "peaked_negative", "low_variance"]
    ].sum()
    total = total.assign(max_kurt=layers.groupby(["point", "seed"], sort=False)["max_kurt"].max()).reset_index()
    _over_seeds(grid[1, 0], total, "max_kurt", time, NEUTRAL)
    grid[1, 0].axhline(PUBLISHED_CUTS.kurtosis, color=NEUTRAL, linestyle=":", label="published cut")
    grid[1, 0].axhline(layers["null_kurt"].mean(), color=BASELINE, linestyle="--", label="99.9 % of random directions")
    grid[1, 0].set(title="largest W_U kurtosis", ylabel="kurtosis", yscale="log")
    grid[1, 0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    grid[1, 0].yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    grid[1, 0].yaxis.set_minor_locator(NullLocator())
    grid[1, 0].legend(fontsize="x-small")
    for role in ("prediction", "suppression"):
        _over_seeds(grid[1, 1], total, role, time, ROLE_COLOURS[role], role)
    grid[1, 1].set(title="W_U kurtosis above the null's", ylabel="neurons of a seed")
    grid[1, 1].legend(fontsize="x-small")
    _over_seeds(grid[1, 2], total, "low_variance", time, CORRELATION)
    grid[1, 2].set(title="logit variance below the null's", ylabel="neurons of a seed")
    for axes in grid[1, 1:]:
        axes.set_ylim(0, max(1, axes.get_ylim()[1]))
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    for axes in grid[1]:
        _time_axis(axes, time)
    return fig


def heads_at_the_end(heads: pd.DataFrame) -> Figure:
    """Every head's three scores at the last point by layer, one dot a head, one colour a seed."""
    last = heads[heads["point"] == heads["point"].iloc[-1]]
    fig, grid = canvas(1, len(HEAD_SCORES), (WIDE + 1, HEIGHT), sharey=True)
    seeds = list(dict.fromkeys(last["seed"]))
    for axes, (name, label) in zip(grid, HEAD_SCORES.items(), strict=True):
        for index, seed in enumerate(seeds):
            own = last[last["seed"] == seed]
            shift = 0.1 * (index - (len(seeds) - 1) / 2)
            axes.plot(
                own["layer"] + shift,
                own[name],
                "o",
                color=SEED_COLOURS[index % len(SEED_COLOURS)],
                markersize=4,
                label=seed,
            )
        axes.set(title=label, ylim=(-0.02, 1.02))
        layer_axis(axes, int(last["layer"].max()) + 1)
    grid[0].set_ylabel("share of attention\none dot a head")
    grid[-1].legend(title="seed", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return fig
