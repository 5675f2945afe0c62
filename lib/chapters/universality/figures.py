"""The figures of chapters 01 to 03."""

from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lib.chapters.universality import matching, properties
from lib.chapters.universality.properties import (
    PROPERTIES,
    PUBLISHED_MEDIANS,
    PUBLISHED_MODELS,
    PUBLISHED_SHARES,
)
from lib.display.plots import (
    ALPHA,
    BASELINE,
    COLOURS,
    CORRELATION,
    EXCESS,
    HEIGHT,
    MARKERS,
    NARROW,
    NEUTRAL,
    PERCENT,
    PLAIN,
    SEED_COLOURS,
    WIDE,
    canvas,
    folded,
    layer_axis,
    note,
)


def _groups(neurons: pd.DataFrame, threshold: float) -> dict[str, pd.DataFrame]:
    """Other neurons first, so that universal ones are drawn on top."""
    chosen = neurons["is_universal"]
    return {"other": neurons[~chosen], "universal": neurons[chosen]}


def _seed_colours(seeds: Sequence[str]) -> dict[str, str]:
    return {seed: SEED_COLOURS[index % len(SEED_COLOURS)] for index, seed in enumerate(seeds)}


def losses(table: pd.DataFrame) -> Figure:
    """Loss in nats per token by domain, one dot per seed; the mean over all domains on top."""
    order = table[table["domain"] != "all"].groupby("domain")["loss"].mean().sort_values().index.tolist()
    order = (["all"] if (table["domain"] == "all").any() else []) + order
    fig, axes = canvas(size=(WIDE, 1.2 + 0.3 * len(order)))
    colours = _seed_colours(table["seed"].unique())
    for index, (seed, own) in enumerate(table.groupby("seed", sort=False)):
        at = own["domain"].map(order.index) + 0.08 * (index - (len(colours) - 1) / 2)
        axes.plot(own["loss"], at, "o", color=colours[seed], markersize=5, label=seed)
    axes.set(xlabel="loss [nats per token]", ylabel="domain of text")
    axes.set_yticks(range(len(order)), ["all domains" if name == "all" else name for name in order])
    axes.invert_yaxis()
    axes.legend(title="seed", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return fig


def composition(text_table: pd.DataFrame) -> Figure:
    """Counted tokens by domain, and the positions left out behind them."""
    rows = text_table.sort_values("counted", ascending=False).reset_index(drop=True)
    fig, axes = canvas(size=(WIDE, 1.2 + 0.3 * len(rows)))
    axes.barh(rows.index, rows["tokens"], color="#dddddd", label="not counted")
    axes.barh(rows.index, rows["counted"], color=CORRELATION, label="counted")
    axes.set(xlabel="tokens", ylabel="domain of text")
    axes.set_yticks(rows.index, rows["domain"])
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:,.0f}"))
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
        axes.set_yscale("log")
        axes.axvline(0, color=NEUTRAL, linewidth=1, linestyle="--")
        axes.set_title(f"layer {at[0]} neuron {at[1]}")
    for axes in grid[:, 0]:
        axes.set_ylabel("tokens")
    for axes in grid[-1]:
        axes.set_xlabel("pre-activation")
    return fig


def correlation_by_layer(neurons: pd.DataFrame) -> Figure:
    """Best-match correlation and its rotated baseline by layer: median, quartiles, 5th and 95th percentile."""
    fig, axes = canvas()
    named = {"mean_corr": "neurons", "mean_baseline": "rotated basis"}
    long = neurons.melt("layer", list(named), var_name="basis", value_name="correlation").replace({"basis": named})
    palette = {"neurons": CORRELATION, "rotated basis": BASELINE}
    _boxes(axes, long, "layer", "correlation", "basis", palette)
    axes.set(ylabel="correlation of the best match", ylim=(0, 1))
    layer_axis(axes, neurons["layer"].nunique())
    axes.legend(title=None, loc="upper right", ncols=2)
    return fig


def draws(summary: pd.DataFrame, spread: pd.Series) -> Figure:
    """Spread of each neuron's baseline over rotation draws, and universal neurons by draw."""
    fig, (left, right) = canvas(1, 2)
    if spread.notna().any():
        left.hist(spread.dropna(), bins=60, color=BASELINE, histtype="stepfilled")
    else:
        note(left, "one draw: no spread")
    left.set(xlabel="standard deviation of the baseline over draws", ylabel="neurons")
    right.bar(summary["draw"], summary["universal"], color=COLOURS["universal"], width=0.6)
    if not summary["universal"].any():
        note(right, "no universal neuron with any draw")
    right.set(xlabel="rotation draw", ylabel="universal neurons\nwith this draw alone")
    right.set_xticks(summary["draw"])
    right.yaxis.set_major_locator(MaxNLocator(integer=True))
    return fig


def convergence(summary: pd.DataFrame, reference: str, candidates: int) -> Figure:
    """`universality.convergence_summary` against tokens: the reference's means, and every seed's universal count."""
    fig, (left, right) = canvas(1, 2, (WIDE, 4.4))
    own = summary[summary["seed"] == reference].sort_values("tokens")
    for column, label, colour in (
        ("mean_corr", "best match", CORRELATION),
        ("baseline", "rotated baseline", BASELINE),
        ("excess_corr", "excess", EXCESS),
    ):
        left.plot(own["tokens"], own[column], "o-", color=colour, label=label)
    floor = properties.noise_floor(candidates, own["tokens"])
    left.plot(own["tokens"], floor, ":", color=NEUTRAL, label="noise floor √(2 ln N / tokens)")
    left.set(ylabel="correlation, mean over neurons")
    left.set_ylim(bottom=0)
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2, frameon=False)
    colours = _seed_colours(summary["seed"].unique())
    for seed, rows in summary.groupby("seed", sort=False):
        right.plot(rows["tokens"], rows["universal"], "o-", color=colours[seed], label=seed)
    right.set(ylabel="universal neurons")
    right.set_ylim(0, max(1, 1.1 * summary["universal"].max()))
    right.yaxis.set_major_locator(MaxNLocator(integer=True))
    right.legend(title="reference", loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=3, frameon=False)
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xticks(own["tokens"], [_short(tokens) for tokens in own["tokens"]])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("counted tokens")
    return fig


def _short(number: float) -> str:
    """38,306 as "38.3k" and 1,000,000 as "1M"."""
    return f"{number / 1e6:.3g}M" if number >= 1e6 else f"{number / 1e3:.3g}k" if number >= 1e3 else f"{number:.0f}"


def distributions(neurons: pd.DataFrame, threshold: float) -> Figure:
    """Figures 2a and 11: best match against baseline (left), excess with the threshold (right)."""
    fig, (left, right) = canvas(1, 2)
    bins = np.linspace(0, 1, 61)
    for column, label, colour in (
        ("mean_corr", "best match", CORRELATION),
        ("mean_baseline", "rotated baseline", BASELINE),
    ):
        left.hist(neurons[column].clip(0, 1), bins, color=colour, alpha=0.65, label=label, histtype="stepfilled")
    left.set(xlabel="correlation, mean over compared seeds", ylabel="neurons", xlim=(0, 1))
    left.legend()
    low, high = min(0.0, neurons["excess_corr"].min()), max(threshold, neurons["excess_corr"].max())
    step = max(high - low, 1e-3) / 60
    bins = threshold + step * np.arange(np.floor((low - threshold) / step), np.ceil((high - threshold) / step) + 1)
    for name, group in _groups(neurons, threshold).items():
        right.hist(
            group["excess_corr"], bins, color=COLOURS[name], label=f"{name} ({len(group):,})", histtype="stepfilled"
        )
    right.axvline(threshold, color=NEUTRAL, linestyle="--", linewidth=1)
    right.set(xlabel="excess correlation", ylabel="neurons (log axis)", yscale="log")
    right.legend()
    return fig


def gap(neurons: pd.DataFrame, threshold: float) -> Figure:
    """Figure 2b: smallest against largest best-match correlation over the compared seeds."""
    fig, axes = canvas(size=(NARROW, NARROW * 0.85))
    axes.plot([0, 1], [0, 1], color=NEUTRAL, linewidth=1)
    for name, group in _groups(neurons, threshold).items():
        axes.scatter(
            group["min_corr"],
            group["max_corr"],
            s=5,
            alpha=ALPHA[name],
            color=COLOURS[name],
            rasterized=True,
            linewidths=0,
            label=f"{name} ({len(group):,})",
        )
    axes.set(
        xlabel="smallest best-match correlation", ylabel="largest best-match correlation", xlim=(0, 1), ylim=(0, 1)
    )
    axes.legend(loc="lower right", markerscale=3)
    return fig


def layer_agreement(matrix: pd.DataFrame) -> Figure:
    """Figure 2c: percent of a layer's neurons whose best match lies in each layer of the other seed."""
    layers = len(matrix)
    size = max(3.6, min(7.5, 1.6 + 0.5 * layers))
    fig, axes = canvas(size=(max(NARROW, size + 1.2), size))
    sns.heatmap(
        matrix.T,
        ax=axes,
        cmap="cividis",
        vmin=0,
        vmax=100,
        annot=layers <= 12,
        fmt=".0f",
        square=True,
        cbar_kws={"label": "percent of the layer's neurons"},
    )
    axes.set(xlabel="layer of the neuron", ylabel="layer of its best match")
    axes.invert_yaxis()
    axes.tick_params(rotation=0)
    return fig


def references(shares: pd.DataFrame, intervals: pd.DataFrame | None = None) -> Figure:
    """Share of universal neurons with each seed as reference, with the interval of `sampling.share_intervals`, and their mean."""
    fig, axes = canvas(size=(NARROW, 3.2))
    axes.axhline(shares["share"].mean(), color=NEUTRAL, linestyle="--", linewidth=1, zorder=0, label="mean")
    bars = axes.bar(shares["seed"], shares["share"], color=COLOURS["universal"], width=0.6)
    axes.bar_label(
        bars,
        [f"{number:,}" for number in shares["universal"]],
        padding=3,
        label_type="edge",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
    )
    top = shares["share"].max()
    if intervals is not None:
        of_seed = intervals.set_index("seed").loc[shares["seed"]]
        # beside the middle, where the number of neurons stands
        axes.vlines(
            np.arange(len(shares)) + 0.2,
            of_seed["low"],
            of_seed["high"],
            color="black",
            linewidth=1.5,
            label="95 % interval",
        )
        top = max(top, of_seed["high"].max())
    axes.set(xlabel="reference seed", ylabel="universal neurons")
    axes.yaxis.set_major_formatter(PERCENT)
    axes.set_ylim(0, max(1.35 * top, 1e-3))
    axes.legend(loc="upper right", ncols=2)
    return fig


def partners(table: pd.DataFrame, found: pd.DataFrame, threshold: float) -> Figure:
    """From `matching.partners` and `matching.cliques`: share of mutual matches and of neurons in a clique against the excess (left),
    cliques by depth (right)."""
    fig, (left, right) = canvas(1, 2)
    rows = matching.by_excess(table, np.arange(-0.5, 1.05, 0.1).round(2))
    left.plot(rows["excess"], rows["mutual"], "o-", color=CORRELATION, label="mutual best matches")
    if len(found):
        left.plot(rows["excess"], rows["in_clique"], "s-", color=EXCESS, label="neurons in a clique of all seeds")
    left.axvline(threshold, color=NEUTRAL, linestyle="--", linewidth=1)
    left.set(xlabel="excess correlation, in bins of 0.1", ylabel="share", ylim=(-0.02, 1.02))
    left.yaxis.set_major_formatter(PERCENT)
    left.legend(loc="upper left")
    layers = int(table["layer"].max()) + 1
    if len(found):
        depths = matching.clique_depths(found, layers)
        right.bar(depths["layer"], depths["same"], color=EXCESS, label="all in one layer")
        right.bar(
            depths["layer"], depths["spread"], bottom=depths["same"], color="#bbbbbb", label="over several layers"
        )
        right.set_ylim(0, 1.15 * (depths["same"] + depths["spread"]).max())
        right.legend()
    else:
        note(right, "no clique of all seeds is known")
    right.set(ylabel="cliques of all seeds")
    right.yaxis.set_major_locator(MaxNLocator(integer=True))
    layer_axis(right, layers)
    right.set_xlabel("layer (mean over the clique, rounded)")
    return fig


def sampling(table: pd.DataFrame, neurons: pd.DataFrame, threshold: float) -> Figure:
    """Best match against the correlation with the partner chosen on other text (left), standard error of the excess (right).

    `table` has the reference's rows of `sampling`, in the order of `neurons`.
    """
    fig, (left, right) = canvas(1, 2, (WIDE, 4.0))
    joined = neurons[["layer", "neuron", "mean_corr", "excess_corr", "is_universal"]].merge(table, on=["layer", "neuron"])
    left.plot([0, 1], [0, 1], color=NEUTRAL, linewidth=1)
    bins = np.linspace(0, joined["excess_se"].quantile(0.995), 60)
    for name, group in _groups(joined, threshold).items():
        left.scatter(
            group["mean_corr"],
            group["held_out_corr"],
            s=5,
            alpha=ALPHA[name],
            color=COLOURS[name],
            rasterized=True,
            linewidths=0,
            label=f"{name} ({len(group):,})",
        )
        right.hist(
            group["excess_se"].clip(upper=bins[-1]), bins, color=COLOURS[name], histtype="stepfilled", label=name
        )
    left.set(xlabel="best match on all text", ylabel="partner chosen on one part,\nmeasured on the others")
    left.legend(loc="upper left", markerscale=3)
    right.set(
        xlabel="standard error of the excess\n(last bin: all larger ones too)",
        ylabel="neurons (log axis)",
        yscale="log",
    )
    right.xaxis.set_major_locator(MaxNLocator(5))
    right.legend()
    return fig


def share_curve(neurons_all_seeds: pd.DataFrame, threshold: float) -> Figure:
    """Share of universal neurons against the threshold for every reference seed, with the published shares at 0.5."""
    fig, axes = canvas(size=(WIDE, HEIGHT))
    thresholds = np.linspace(0, 1, 201)
    seeds = neurons_all_seeds.groupby("seed", sort=False)
    colours = _seed_colours(list(seeds.groups))
    smallest = 1 / max(1, seeds.size().max())
    for seed, own in seeds:
        share = properties.share_curve(own["excess_corr"], thresholds)
        axes.plot(thresholds, np.where(share > 0, share, np.nan), color=colours[seed], label=f"seed {seed}")
    for model, row in PUBLISHED_SHARES.iterrows():
        axes.plot(
            0.5,
            row["share"],
            MARKERS[model],
            markerfacecolor="white",
            markeredgecolor=NEUTRAL,
            linestyle="none",
            label=f"published, {PUBLISHED_MODELS[model]}",
        )
    axes.axvline(threshold, color=NEUTRAL, linestyle="--", linewidth=1)
    axes.set(xlabel="threshold of excess correlation", ylabel="universal neurons (log axis)", yscale="log", xlim=(0, 1))
    axes.set_ylim(smallest / 2, 1.3)
    axes.yaxis.set_major_formatter(PERCENT)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return fig


def layers(shares: pd.DataFrame, reference: str) -> Figure:
    """Universal neurons by layer: bars for the reference, dots for the other seeds; on the right by depth, over the published models."""
    fig, (axes, beside) = canvas(1, 2, width_ratios=(3, 2))
    own, rest = shares[shares["seed"] == reference], shares[shares["seed"] != reference]
    axes.bar(own["layer"], own["share"], color=COLOURS["universal"], width=0.7, label=f"reference {reference}")
    if len(rest):
        axes.plot(rest["layer"], rest["share"], "o", color=NEUTRAL, markersize=4, label="other seeds as reference")
    if not shares["universal"].any():
        note(axes, "no universal neuron")
    axes.set(ylabel="universal neurons of the layer")
    axes.yaxis.set_major_formatter(PERCENT)
    axes.set_ylim(0, max(1.3 * shares["share"].max(), 1e-3))
    layer_axis(axes, shares["layer"].nunique())
    axes.legend()
    for model, theirs in properties.published_layer_shares().groupby("model", sort=False):
        beside.plot(
            theirs["depth"],
            theirs["share"],
            MARKERS[model],
            linestyle="-",
            linewidth=1,
            markersize=3,
            color=NEUTRAL,
            alpha=0.45,
            label=f"published, {PUBLISHED_MODELS[model]}",
        )
    beside.plot(
        (own["layer"] + 0.5) / len(own),
        own["share"],
        color=COLOURS["universal"],
        linewidth=2,
        label=f"reference {reference}",
    )
    beside.set(xlabel="relative depth", xlim=(0, 1), ylim=(0, None))
    beside.yaxis.set_major_formatter(PERCENT)
    beside.legend(fontsize="small")
    return fig


def property_percentiles(neurons: pd.DataFrame, threshold: float) -> Figure:
    """Figure 3: percentile of universal neurons within their own layer, with the published medians beside the boxes."""
    columns = list(PUBLISHED_MEDIANS.index)
    percentiles = properties.layer_percentiles(neurons, columns)[neurons["is_universal"]]
    fig, axes = canvas(size=(WIDE, 4.2))
    axes.axhline(50, color=NEUTRAL, linewidth=1, linestyle="--")
    if len(percentiles):
        _boxes(
            axes,
            percentiles.melt(var_name="property", value_name="percentile"),
            "property",
            "percentile",
            palette=COLOURS["universal"],
            order=columns,
        )
    else:
        note(axes, "no universal neuron to rank")
    for model, name in PUBLISHED_MODELS.items():
        axes.plot(
            np.arange(len(columns)) + 0.33,
            PUBLISHED_MEDIANS[model],
            MARKERS[model],
            color=NEUTRAL,
            linestyle="none",
            markerfacecolor="white",
            label=f"published median, {name}",
        )
    axes.set(xlabel=None, ylabel="percentile within the layer", ylim=(-2, 102), xlim=(-0.6, len(columns) - 0.4))
    axes.set_xticks(range(len(columns)), [folded(PROPERTIES[column]) for column in columns], fontsize="small")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=3, frameon=False)
    return fig


def raw_values(neurons: pd.DataFrame, threshold: float, columns: Sequence[str]) -> Figure:
    """Figure 14: raw values by layer, universal beside other neurons; median, quartiles, 5th and 95th percentile."""
    rows = -(-len(columns) // 2)
    fig, grid = canvas(rows, 2, (WIDE, 0.8 + 2.1 * rows), sharex=True, squeeze=False)
    chosen = neurons["is_universal"]
    group = pd.Series(np.where(chosen, "universal", "other"), neurons.index, name="group")
    for axes, column in zip(grid.flat, columns, strict=False):
        if neurons[column].isna().all():
            note(axes, "left out of a gated neuron")
            axes.set(ylabel=folded(PROPERTIES[column]), xlabel=None, yticks=[])
            continue
        long = neurons[["layer", column]].join(group)
        _boxes(axes, long, "layer", column, "group", COLOURS, hue_order=list(COLOURS))
        axes.set(ylabel=folded(PROPERTIES[column]), xlabel=None)
        if column in ("kurt", "vocab_kurt"):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(PLAIN)
            axes.yaxis.set_minor_formatter(PLAIN)
            axes.tick_params(axis="y", which="minor", labelsize="x-small")
        axes.get_legend().remove()
    for axes in grid.flat[len(columns) :]:
        axes.set_visible(False)
    for axes in grid[-1]:
        layer_axis(axes, neurons["layer"].nunique())
    handles, labels = grid.flat[0].get_legend_handles_labels()
    if not handles:
        handles = [matplotlib.patches.Patch(color=colour) for colour in COLOURS.values()]
        labels = list(COLOURS)
    fig.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return fig


def _boxes(axes: Axes, data: pd.DataFrame, x: str, y: str, hue: str | None = None, palette=None, **options) -> None:
    """Boxes of the quartiles with whiskers at the 5th and 95th percentile, without single outliers."""
    colour = {"color": palette} if hue is None else {"hue": hue, "palette": palette}
    sns.boxplot(
        data,
        x=x,
        y=y,
        ax=axes,
        whis=(5, 95),
        showfliers=False,
        linewidth=0.8,
        saturation=1,
        width=0.6,
        gap=0.1 if hue else 0,
        **colour,
        **options,
    )


def frequency_and_cosine(neurons: pd.DataFrame, threshold: float) -> Figure:
    """Figure 9: activation frequency against cos(w_in, w_out), one dot a neuron."""
    fig, axes = canvas(size=(NARROW + 1, HEIGHT))
    for name, group in _groups(neurons, threshold).items():
        axes.scatter(
            group["sparsity"],
            group["in_out_sim"],
            s=5,
            alpha=ALPHA[name],
            color=COLOURS[name],
            rasterized=True,
            linewidths=0,
            label=f"{name} ({len(group):,})",
        )
    if neurons["in_out_sim"].isna().all():
        note(axes, "a gated neuron has no single w_in")
    axes.axhline(0, color=NEUTRAL, linewidth=1)
    axes.set(
        xlabel="activation frequency (share of tokens above 0)", ylabel="cos(w_in, w_out)", xlim=(0, 1), ylim=(-1, 1)
    )
    axes.legend(markerscale=3, loc="upper right")
    return fig


def redundancy(neurons: pd.DataFrame, threshold: float) -> Figure:
    """Figure 10: cumulative share of neurons by the largest cosine with another neuron of the same model."""
    fig, grid = canvas(1, 2, sharey=True)
    for axes, column, weights in zip(grid, ("max_cos_in", "max_cos_out"), ("w_in", "w_out"), strict=True):
        for name, group in _groups(neurons, threshold).items():
            if group[column].notna().any():
                axes.ecdf(group[column], color=COLOURS[name], linewidth=2, label=f"{name} ({len(group):,})")
        if neurons[column].isna().all():
            note(axes, f"a gated neuron has no single {weights}")
        axes.set(
            xlabel=f"largest cosine with another neuron's {weights}", xlim=(np.nanmin([0, neurons[column].min()]), 1)
        )
    grid[0].set_ylabel("share of neurons at or below")
    grid[1].legend(loc="lower right")
    return fig
