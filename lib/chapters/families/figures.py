"""Figures of chapter 4, families of neurons, from what `lib.chapters.families.summary` computes."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lib.chapters.families.scoring import PUBLISHED_HIGH, PUBLISHED_LOW, UNEXPLAINED
from lib.chapters.families.summary import EXPLAINED, FAMILIES, TOP, groups_of
from lib.display.plots import (
    BASELINE,
    CORRELATION,
    HEIGHT,
    LABEL,
    NEUTRAL,
    PERCENT,
    SEED_MARKERS,
    WIDE,
    canvas,
    heatmap,
    layer_axis,
    legend_below,
    note,
    seed_looks,
)
from lib.display.plots import COLOURS as UNIVERSAL_COLOURS
from lib.labels.labels import WORD_PLACES

# Paul Tol's muted colours, made lighter where a dark page needs it
HUES = ("#CC6677", "#44AA99", "#DDCC77", "#A8477F", "#117733", "#999933", "#8C6CD0", "#B07A4B", "#222222", "#d0d0d0")
COLOURS = dict(zip(FAMILIES, HUES, strict=True))
GROUP_COLOURS = {"all": "#a3a3a3", TOP: "#4d4d4d", "universal": UNIVERSAL_COLOURS["universal"]}
PLACE_MARKERS = dict(zip(WORD_PLACES, SEED_MARKERS, strict=False))


def _empty(text: str = "no neuron to show") -> Figure:
    fig, axes = canvas(size=(WIDE, 1.6))
    axes.set_axis_off()
    note(axes, text)
    return fig


def _rows(axes: Axes, labels: list[str], **options) -> None:
    """Labels the y axis of a figure with one named row each, the first on top."""
    axes.set_yticks(range(len(labels)), labels, **options)
    axes.invert_yaxis()
    axes.grid(False, axis="y")


def _legend_right(fig: Figure, axes: Axes, **options) -> None:
    fig.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False, **options)


def family_counts(counts: pd.DataFrame) -> Figure:
    """Share of neurons in each family: all neurons, the top 5 % by excess, and universal ones if there are any."""
    groups = [name for name in GROUP_COLOURS if counts[name].sum()]
    fig, axes = canvas(size=(WIDE, 0.8 + 0.42 * len(counts)))
    height = 0.8 / len(groups)
    for index, name in enumerate(groups):
        at = np.arange(len(counts)) + (index - (len(groups) - 1) / 2) * height
        label = f"{name} ({counts[name].sum():,})"
        bars = axes.barh(at, counts[f"{name} share"], height, color=GROUP_COLOURS[name], label=label)
        axes.bar_label(bars, [f"{number:,}" for number in counts[name]], padding=2, fontsize="x-small")
    _rows(axes, list(counts["label"]))
    largest = max(counts[f"{name} share"].max() for name in groups)
    axes.set(xlabel="share of the group's neurons", ylabel="family", xlim=(0, 1.12 * largest))
    axes.xaxis.set_major_formatter(PERCENT)
    axes.legend(loc="center right", title="neurons")
    return fig


def families_by_layer(everyone: pd.DataFrame, top: pd.DataFrame) -> Figure:
    """Families stacked by layer, of all neurons and of the top 5 % by excess; `layer_counts` of each."""
    fig, panels = canvas(1, 2, (WIDE, 4.4), sharey=True)
    for axes, table, group in zip(panels, (everyone, top), ("all neurons", TOP), strict=True):
        share = table.div(table.sum(axis=1).replace(0, np.nan), axis=0).fillna(0)
        bottom = share.cumsum(axis=1) - share
        for name, label in FAMILIES.items():
            axes.bar(share.index, share[name], 0.8, bottom[name], color=COLOURS[name], label=label, linewidth=0)
        for layer in share.index[~share.any(axis=1)]:
            axes.text(layer, 0.02, "none", ha="center", va="bottom", rotation=90, color=NEUTRAL)
        layer_axis(axes, len(everyone))
        axes.set(title=f"{group} ({int(table.to_numpy().sum()):,})", xlim=(-0.6, len(everyone) - 0.4), ylim=(0, 1))
        axes.yaxis.set_major_formatter(PERCENT)
        axes.grid(False, axis="x")
    panels[0].set_ylabel("share of the layer's neurons")
    _legend_right(fig, panels[0])
    return fig


def scores(rows: pd.DataFrame) -> Figure:
    """Held-out best scores (left) and against the scores on the half that chose the label (right)."""
    fig, (left, right) = canvas(1, 2)
    bins, groups = np.linspace(0, 1, 41), groups_of(rows)
    left.hist(rows["score"], bins, density=True, alpha=0.5, color=GROUP_COLOURS["all"], label="all", zorder=0)
    for name in (TOP, "universal"):
        style = {"histtype": "step", "linewidth": 2, "color": GROUP_COLOURS[name], "label": name}
        if groups[name].any():
            left.hist(rows.loc[groups[name], "score"], bins, density=True, **style)
    for at in (PUBLISHED_LOW, PUBLISHED_HIGH):
        left.axvline(at, color=NEUTRAL, linestyle=":", linewidth=1)
    left.set(xlabel="best score on held-out text", ylabel="density of neurons", xlim=(0, 1))
    left.legend()
    right.plot([0, 1], [0, 1], color=NEUTRAL, linewidth=1)
    for name in (UNEXPLAINED, *EXPLAINED):
        own = rows[rows["family"] == name]
        style = {"s": 5, "color": COLOURS[name], "linewidths": 0, "rasterized": True}
        if len(own):
            right.scatter(own["chosen_score"], own["score"], label=FAMILIES[name], **style)
    _legend_right(fig, right, markerscale=3)
    right.set(xlabel="score where the label was chosen", ylabel="score on held-out text", xlim=(0, 1), ylim=(0, 1))
    return fig


def chance_level(rows: pd.DataFrame, levels: pd.DataFrame) -> Figure:
    """Best held-out score of neurons by layer, with the median and the 95th percentile of rotated neurons."""
    fig, axes = canvas()
    box = {"whis": (5, 95), "showfliers": False, "linewidth": 0.8, "width": 0.5, "color": GROUP_COLOURS["all"]}
    sns.boxplot(rows, x="layer", y="score", ax=axes, **box)
    style = {"color": BASELINE, "markeredgewidth": 2, "linestyle": "none"}
    for column, label, marker, size in (
        ("chance", "95 % of rotated neurons are below", "_", 24),
        ("median", "median rotated neuron", ".", 10),
    ):
        axes.plot(levels["layer"], levels[column], marker, markersize=size, label=label, **style)
    top = max(rows.groupby("layer")["score"].quantile(0.95).max(), levels["chance"].max())
    axes.set(xlabel="layer", ylabel="best score on held-out text", ylim=(0, max(0.05, 1.35 * top)))
    axes.legend(loc="upper right")
    return fig


def seed_shares(shares: pd.DataFrame) -> Figure:
    """Share of explained neurons by family, a dot a seed."""
    fig, axes = canvas(size=(WIDE, HEIGHT))
    at = np.arange(len(EXPLAINED))
    for index, (seed, look) in enumerate(seed_looks(shares.index).items()):
        shift, own = 0.1 * (index - (len(shares) - 1) / 2), shares.loc[seed, list(EXPLAINED)]
        axes.plot(at + shift, own, linestyle="none", markersize=5, label=seed, **look)
    axes.set_xticks(at, [FAMILIES[name].replace(" or ", "\nor ") for name in EXPLAINED], fontsize="small")
    axes.set(xlabel="family", ylabel="share of the seed's neurons", ylim=(0, None))
    axes.yaxis.set_major_formatter(PERCENT)
    axes.legend(title="seed", ncols=5)
    return fig


def family_agreement(table: pd.DataFrame) -> Figure:
    """Share of matched pairs across seeds with the same family and the same label, with the chance level."""
    fig, panels = canvas(1, 2, (WIDE, 1.1 + 0.36 * len(table)), sharey=True)
    at = range(len(table))
    for axes, what in zip(panels, ("family", "label"), strict=True):
        axes.barh(at, table[f"same_{what}"].fillna(0), color=CORRELATION, height=0.6, label="matched pairs")
        style = {"color": BASELINE, "markersize": 14, "markeredgewidth": 3}
        axes.plot(table[f"chance_{what}"], at, "|", label="chance level", **style)
        axes.set(xlabel=f"pairs with the same {what}", xlim=(0, 1))
        axes.xaxis.set_major_formatter(PERCENT)
        axes.grid(False, axis="y")
    pairs = zip(table["pairs_of"], table["pairs"], strict=True)
    _rows(panels[0], [f"{FAMILIES.get(name, name)} ({number:,})" for name, number in pairs])
    panels[0].set_ylabel("pairs, by the first neuron's family")
    legend_below(fig)
    return fig


def activation_by_label(table: pd.DataFrame) -> Figure:
    """Mean activation, ± one standard deviation, with the label and without it, a row a neuron."""
    if table.empty:
        return _empty()
    fig, axes = canvas(size=(WIDE, 1.0 + 0.42 * len(table)))
    at = np.arange(len(table))
    for shift, column, colour, label in ((-0.12, "on", LABEL, "with the label"), (0.12, "off", NEUTRAL, "without")):
        style = {"fmt": "o", "color": colour, "capsize": 2, "label": label}
        axes.errorbar(table[column], at + shift, xerr=table[f"{column}_spread"], **style)
    axes.axvline(0, color=NEUTRAL, linewidth=1, linestyle="--")
    names = [f"{row.label}\nL{row.layer}.{row.neuron}, score {row.score:.2f}" for row in table.itertuples()]
    _rows(axes, names, fontsize="small")
    axes.set(xlabel="activation, mean ± standard deviation over tokens", ylabel="label and neuron")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)
    return fig


def activation_by_word_place(table: pd.DataFrame) -> Figure:
    """Figures 4a, 15, 16: unigram neurons' mean activation on their word by where its tokens stand."""
    if table.empty:
        return _empty("no unigram neuron to show")
    fig, axes = canvas(size=(WIDE, HEIGHT + 0.4))
    at = table.groupby(["layer", "neuron"], sort=False).ngroup()
    neurons, table = table.drop_duplicates(["layer", "neuron"]), table.assign(at=at)[table["tokens"] > 0]
    for index, place in enumerate(WORD_PLACES):
        own, style = table[table["place"] == place], {"fmt": PLACE_MARKERS[place], "color": LABEL, "capsize": 2}
        if len(own):
            axes.errorbar(own["at"] + 0.18 * (index - 1.5), own["mean"], yerr=own["spread"], label=place, **style)
    axes.axhline(0, color=NEUTRAL, linewidth=1, linestyle="--")
    names = [f"{row.label}\nL{row.layer}.{row.neuron}" for row in neurons.itertuples()]
    axes.set_xticks(range(len(names)), names, fontsize="small")
    axes.set(xlabel="word and neuron", ylabel="activation,\nmean ± standard deviation")
    axes.legend(title="the token stands", ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.22), frameon=False)
    return fig


def activation_heatmap(table: pd.DataFrame, columns: str) -> Figure:
    """Neurons (rows) by groups, which `columns` names: mean activation in deviations from each neuron's own mean."""
    if table.empty:
        return _empty()
    largest = max(1e-3, np.nanmax(np.abs(table.to_numpy())))
    fig, axes = canvas(size=(WIDE, 1.6 + 0.32 * len(table)))
    bar = {"label": "mean activation\n[standard deviations]"}
    norm = TwoSlopeNorm(0, -largest, largest)
    heatmap(axes, table, cmap="RdBu_r", norm=norm, linewidths=0.3, cbar_kws=bar)
    axes.set(xlabel=columns, ylabel="neuron")
    short = max(map(len, table.columns)) < 3
    turned = {"rotation": 0, "ha": "center"} if short else {"rotation": 40, "ha": "right"}
    axes.set_xticks(np.arange(table.shape[1]) + 0.5, table.columns, fontsize="small", **turned)
    axes.set_yticks(np.arange(len(table)) + 0.5, table.index, rotation=0, fontsize="small")
    return fig


def activation_by_position(chosen: pd.DataFrame, curves: np.ndarray) -> Figure:
    """Figure 19: mean activation by position in the block, a panel a neuron; `curves` (neurons, positions)."""
    if chosen.empty:
        return _empty()
    columns = min(3, len(chosen))
    rows = -(-len(chosen) // columns)
    fig, grid = canvas(rows, columns, (WIDE, 0.6 + 2.1 * rows), squeeze=False, sharex=True)
    for axes in grid.flat[len(chosen) :]:
        axes.set_visible(False)
    for axes, row, curve in zip(grid.flat, chosen.itertuples(), curves, strict=False):
        axes.plot(range(len(curve)), curve, color=CORRELATION, linewidth=1.2)
        axes.set_title(f"L{row.layer}.{row.neuron}, {row.position_information:.3f} bits")
        axes.yaxis.set_major_locator(MaxNLocator(4))
    for axes in grid[:, 0]:
        axes.set_ylabel("mean activation")
    for axes in grid[-1]:
        axes.set_xlabel("position in the block")
    return fig


def explained_by_excess(rows: pd.DataFrame) -> Figure:
    """Share of explained neurons by excess correlation, in tenths of the neurons."""
    fig, axes = canvas(size=(WIDE, HEIGHT))
    ordered = rows.sort_values("excess_corr")
    tenths = [ordered.iloc[part] for part in np.array_split(np.arange(len(ordered)), 10)]
    at = [own["excess_corr"].mean() for own in tenths]
    for passes, marker, colour, label in (
        (lambda own: own["family"] != UNEXPLAINED, "o-", LABEL, "above chance level"),
        (lambda own: own["score"] >= PUBLISHED_HIGH, "s--", LABEL, f"score ≥ {PUBLISHED_HIGH:g}"),
        (lambda own: own["score"] < PUBLISHED_LOW, "^-", NEUTRAL, f"score < {PUBLISHED_LOW:g}"),
    ):
        axes.plot(at, [passes(own).mean() for own in tenths], marker, color=colour, label=label)
    axes.set(xlabel="excess correlation, mean of a tenth of the neurons", ylabel="share of the tenth", ylim=(0, 1))
    axes.yaxis.set_major_formatter(PERCENT)
    axes.legend()
    return fig
