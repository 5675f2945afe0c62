"""Figures of chapter 4: families of neurons. Functions take what `lib.chapters.families.summary` computes and return figures."""

from html import escape

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lib.chapters.families.scoring import PUBLISHED_HIGH, PUBLISHED_LOW, UNEXPLAINED
from lib.chapters.families.summary import FAMILIES, TOP, groups_of
from lib.display.html import STYLE, Examples
from lib.display.plots import CORRELATION, HEIGHT, NEUTRAL, PERCENT, SEED_COLOURS, WIDE, canvas, note
from lib.labels.labels import WORD_PLACES

COLOURS = dict(zip(FAMILIES, (*SEED_COLOURS[:-1], "#882255", "#000000", "#d0d0d0"), strict=True))
GROUP_COLOURS = {"all": "#999999", TOP: CORRELATION, "universal": "#D55E00"}


def _empty(text: str) -> Figure:
    fig, axes = canvas(size=(WIDE, 1.6))
    axes.set_axis_off()
    note(axes, text)
    return fig


def family_counts(counts: pd.DataFrame) -> Figure:
    """Share of neurons in each family: all neurons, those of largest excess, and universal ones if there are any."""
    groups = [name for name in GROUP_COLOURS if counts[name].sum()]
    fig, axes = canvas(size=(WIDE, 0.8 + 0.42 * len(counts)))
    height = 0.8 / len(groups)
    for index, name in enumerate(groups):
        at = np.arange(len(counts)) + (index - (len(groups) - 1) / 2) * height
        bars = axes.barh(
            at, counts[f"{name} share"], height, color=GROUP_COLOURS[name], label=f"{name} ({counts[name].sum():,})"
        )
        axes.bar_label(bars, [f"{number:,}" for number in counts[name]], padding=2, fontsize="x-small")
    axes.set_yticks(range(len(counts)), counts["label"])
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.set(
        xlabel="share of the group's neurons",
        ylabel="family",
        xlim=(0, 1.12 * max(counts[f"{name} share"].max() for name in groups)),
    )
    axes.xaxis.set_major_formatter(PERCENT)
    axes.legend(loc="center right", title="neurons")
    return fig


def families_by_layer(everyone: pd.DataFrame, top: pd.DataFrame) -> Figure:
    """Families stacked by layer: explained neurons of all, and those of largest excess; `layer_counts` of each."""
    fig, (left, right) = canvas(1, 2, (WIDE, 4.4), sharey=True)
    for axes, table, what in ((left, everyone, "all neurons"), (right, top, TOP)):
        share = table.div(table.sum(axis=1).replace(0, np.nan), axis=0).fillna(0)
        bottom = np.zeros(len(share))
        for name in FAMILIES:
            axes.bar(
                share.index,
                share[name],
                bottom=bottom,
                color=COLOURS[name],
                width=0.8,
                label=FAMILIES[name],
                linewidth=0,
            )
            bottom += share[name].to_numpy()
        for layer in share.index[~share.any(axis=1)]:
            axes.text(layer, 0.02, "none", ha="center", va="bottom", rotation=90, color=NEUTRAL)
        axes.set(
            xlabel="layer",
            title=f"{what} ({int(table.to_numpy().sum()):,})",
            xlim=(-0.6, len(everyone) - 0.4),
            ylim=(0, 1),
        )
        axes.set_xticks(range(0, len(everyone), 1 if len(everyone) <= 12 else 2))
        axes.yaxis.set_major_formatter(PERCENT)
        axes.grid(False, axis="x")
    left.set_ylabel("share of the layer's neurons")
    handles, labels = left.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside right center", frameon=False)
    return fig


def scores(rows: pd.DataFrame, threshold: float) -> Figure:
    """Held-out best scores (left) and against the scores on the half they were chosen on (right)."""
    fig, (left, right) = canvas(1, 2)
    masks = groups_of(rows, threshold)
    bins = np.linspace(0, 1, 41)
    for name, mask in ((TOP, masks[TOP]), ("universal", masks["universal"])):
        if mask.any():
            left.hist(
                rows.loc[mask, "score"],
                bins,
                density=True,
                histtype="step",
                linewidth=2,
                color=GROUP_COLOURS[name],
                label=name,
            )
    left.hist(
        rows["score"],
        bins,
        density=True,
        histtype="stepfilled",
        alpha=0.5,
        color=GROUP_COLOURS["all"],
        label="all",
        zorder=0,
    )
    for at in (PUBLISHED_LOW, PUBLISHED_HIGH):
        left.axvline(at, color=NEUTRAL, linestyle=":", linewidth=1)
    left.set(xlabel="best score on held-out text", ylabel="density of neurons", xlim=(0, 1))
    left.legend()
    right.plot([0, 1], [0, 1], color=NEUTRAL, linewidth=1)
    order = rows.sort_values("family", key=lambda family: family != UNEXPLAINED, kind="stable")
    for name, own in order.groupby("family", sort=False):
        right.scatter(
            own["chosen_score"],
            own["score"],
            s=5,
            color=COLOURS[name],
            linewidths=0,
            rasterized=True,
            label=FAMILIES[name],
        )
    fig.legend(*right.get_legend_handles_labels(), loc="outside right center", frameon=False, markerscale=3)
    right.set(xlabel="score where the label was chosen", ylabel="score on held-out text", xlim=(0, 1), ylim=(0, 1))
    return fig


def chance(rows: pd.DataFrame, levels: pd.DataFrame) -> Figure:
    """Best held-out score of neurons by layer, with the median and the 95th percentile of rotated neurons."""
    fig, axes = canvas()
    sns.boxplot(
        rows, x="layer", y="score", ax=axes, whis=(5, 95), showfliers=False, linewidth=0.8, width=0.5, color="#56B4E9"
    )
    for column, label, marker in (
        ("chance", "95 % of rotated neurons are below", "_"),
        ("median", "median rotated neuron", "."),
    ):
        axes.plot(
            levels["layer"],
            levels[column],
            marker,
            markersize=24 if marker == "_" else 10,
            markeredgewidth=2,
            color="#E69F00",
            label=label,
            linestyle="none",
        )
    top = max(rows.groupby("layer")["score"].quantile(0.95).max(), levels["chance"].max())
    axes.set(xlabel="layer", ylabel="best score on held-out text", ylim=(0, max(0.05, 1.35 * top)))
    axes.legend(loc="upper right")
    return fig


def seeds(shares: pd.DataFrame) -> Figure:
    """Share of explained neurons by family, a dot a seed (`seed_shares`)."""
    fig, axes = canvas(size=(WIDE, HEIGHT))
    explained = [name for name in FAMILIES if name != UNEXPLAINED]
    for index, seed in enumerate(shares.index):
        at = np.arange(len(explained)) + 0.1 * (index - (len(shares) - 1) / 2)
        axes.plot(
            at,
            shares.loc[seed, explained],
            "o",
            color=SEED_COLOURS[index % len(SEED_COLOURS)],
            markersize=5,
            label=seed,
        )
    axes.set_xticks(
        range(len(explained)), [FAMILIES[name].replace(" or ", "\nor ") for name in explained], fontsize="small"
    )
    axes.set(xlabel="family", ylabel="share of the seed's neurons", ylim=(0, None))
    axes.yaxis.set_major_formatter(PERCENT)
    axes.legend(title="seed", ncols=5)
    return fig


def agreement(table: pd.DataFrame) -> Figure:
    """Share of matched pairs across seeds with the same family and label, with chance (`family_summary.agreement`)."""
    fig, grid = canvas(1, 2, (WIDE, 1.1 + 0.36 * len(table)), sharey=True)
    names = [
        f"{FAMILIES.get(name, name)} ({pairs:,})" for name, pairs in zip(table["pairs_of"], table["pairs"], strict=True)
    ]
    for axes, what in zip(grid, ("family", "label"), strict=True):
        axes.barh(
            range(len(table)), table[f"same_{what}"].fillna(0), color=CORRELATION, height=0.6, label="matched pairs"
        )
        axes.plot(
            table[f"chance_{what}"],
            range(len(table)),
            "|",
            color="#E69F00",
            markersize=14,
            markeredgewidth=3,
            label="chance",
        )
        axes.set(xlabel=f"pairs with the same {what}", xlim=(0, 1))
        axes.xaxis.set_major_formatter(PERCENT)
        axes.grid(False, axis="y")
    grid[0].set_yticks(range(len(table)), names)
    grid[0].set_ylabel("pairs, by the first neuron's family")
    grid[0].invert_yaxis()
    handles, labels = grid[1].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return fig


def on_and_off(table: pd.DataFrame) -> Figure:
    """Mean activation, ± one standard deviation, with the label and without it, a row a neuron (`on_and_off`)."""
    if table.empty:
        return _empty("no neuron to show")
    fig, axes = canvas(size=(WIDE, 1.0 + 0.42 * len(table)))
    at = np.arange(len(table))
    for shift, column, colour, label in ((-0.12, "on", "#D55E00", "with the label"), (0.12, "off", NEUTRAL, "without")):
        axes.errorbar(
            table[column], at + shift, xerr=table[f"{column}_spread"], fmt="o", color=colour, capsize=2, label=label
        )
    axes.axvline(0, color=NEUTRAL, linewidth=1, linestyle="--")
    axes.set_yticks(
        at,
        [f"{row.label}\nL{row.layer}.{row.neuron}, score {row.score:.2f}" for row in table.itertuples()],
        fontsize="small",
    )
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.set(xlabel="activation, mean ± standard deviation over tokens", ylabel="label and neuron")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)
    return fig


def word_places(table: pd.DataFrame) -> Figure:
    """Figures 4a, 15, 16: unigram neurons' mean activation on their word by where its tokens stand (`by_word_place`)."""
    if table.empty:
        return _empty("no unigram neuron to show")
    neurons = list(table.groupby(["layer", "neuron", "label"], sort=False))
    fig, axes = canvas(size=(WIDE, HEIGHT + 0.4))
    palette = dict(zip(WORD_PLACES, ("#0072B2", "#E69F00", "#009E73", "#CC79A7"), strict=True))
    for index, (_, own) in enumerate(neurons):
        for place, row in own.set_index("place").iterrows():
            if row["tokens"]:
                at = index + 0.18 * (WORD_PLACES.index(place) - 1.5)
                axes.errorbar(at, row["mean"], yerr=row["spread"], fmt="o", color=palette[place], capsize=2)
    for place, colour in palette.items():
        if table.loc[table["place"] == place, "tokens"].any():
            axes.plot([], [], "o", color=colour, label=place)
    axes.axhline(0, color=NEUTRAL, linewidth=1, linestyle="--")
    axes.set_xticks(
        range(len(neurons)), [f"{label}\nL{layer}.{neuron}" for (layer, neuron, label), _ in neurons], fontsize="small"
    )
    axes.set(xlabel="word and neuron", ylabel="activation,\nmean ± standard deviation")
    axes.legend(title="the token stands", ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.22), frameon=False)
    return fig


def heat(table: pd.DataFrame, what: str) -> Figure:
    """Neurons (rows) by groups (columns): mean activation in deviations from each neuron's own mean. `what` names the groups."""
    if table.empty:
        return _empty("no neuron to show")
    largest = max(1e-3, np.nanmax(np.abs(table.to_numpy())))
    fig, axes = canvas(size=(WIDE, 1.6 + 0.32 * len(table)))
    sns.heatmap(
        table,
        ax=axes,
        cmap="RdBu_r",
        norm=TwoSlopeNorm(0, -largest, largest),
        linewidths=0.3,
        cbar_kws={"label": "mean activation\n[standard deviations]"},
    )
    axes.set(xlabel=what, ylabel="neuron")
    axes.set_xticks(
        np.arange(table.shape[1]) + 0.5,
        table.columns,
        rotation=0 if max(map(len, table.columns)) < 3 else 40,
        ha="center" if max(map(len, table.columns)) < 3 else "right",
        fontsize="small",
    )
    axes.set_yticks(np.arange(len(table)) + 0.5, table.index, rotation=0, fontsize="small")
    return fig


def position_curves(chosen: pd.DataFrame, curves: np.ndarray) -> Figure:
    """Figure 19: mean activation by position in the block for the neurons that tell most about it; (neurons, positions)."""
    if chosen.empty:
        return _empty("no neuron to show")
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
    fig, own = canvas(size=(WIDE, HEIGHT))
    ordered = rows.sort_values("excess_corr")
    parts = [ordered.iloc[part] for part in np.array_split(np.arange(len(ordered)), 10)]
    at = [part["excess_corr"].mean() for part in parts]
    own.plot(
        at, [(part["family"] != UNEXPLAINED).mean() for part in parts], "o-", color=CORRELATION, label="pass chance"
    )
    own.plot(
        at,
        [(part["score"] >= PUBLISHED_HIGH).mean() for part in parts],
        "s-",
        color="#009E73",
        label=f"score ≥ {PUBLISHED_HIGH:g}",
    )
    own.plot(
        at,
        [(part["score"] < PUBLISHED_LOW).mean() for part in parts],
        "^-",
        color=NEUTRAL,
        label=f"score < {PUBLISHED_LOW:g}",
    )
    own.set(xlabel="excess correlation, mean of a tenth of the neurons", ylabel="share of the tenth", ylim=(0, 1))
    own.yaxis.set_major_formatter(PERCENT)
    own.legend()
    return fig


def contexts_html(examples: Examples, chosen: pd.DataFrame, contexts: int = 3) -> str:
    """Three strongest contexts of each neuron (rows with layer, neuron, label, score), tokens shaded by activation."""
    parts = [
        f"<h4>layer {row.layer} neuron {row.neuron}: {escape(row.label)}, score {row.score:.2f}</h4>"
        f"{examples.html(int(row.layer), int(row.neuron), contexts)}"
        for row in chosen.itertuples()
    ]
    return STYLE + ("".join(parts) or "<p>No neuron to show.</p>")
