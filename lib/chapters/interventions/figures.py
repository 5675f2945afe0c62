"""Figures of chapter 05's causal runs: entropy, token-frequency and attention neurons, sets of universal ones, and what changing them does.

From the tables of lib/chapters/interventions/tables.py; theme and helpers are those of lib/display/plots.py.
"""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from lib.chapters.interventions.captions import SETS, name_of
from lib.chapters.interventions.neuron_sets import CHOSEN, KINDS, RANDOM
from lib.chapters.interventions.single_neurons import FIXED_FREQUENCY, FROZEN_SCALE, TOTAL
from lib.display.plots import (
    BASELINE,
    COLOURS,
    CORRELATION,
    EXCESS,
    NEUTRAL,
    PLAIN,
    SEED_COLOURS,
    WIDE,
    canvas,
    layer_axis,
    note,
)

GROUP_COLOURS = {"control": "#999999", "entropy": "#D55E00", "frequency": "#0072B2"}
SET_MARKERS, HELD_AT = {"mean": "o", "zero": "D"}, {"mean": "their means", "zero": "zero"}
OUTCOME_LABELS = {
    "scale": "final LayerNorm scale",
    "entropy": "entropy [nats]",
    "loss": "loss [nats]",
    "reciprocal_rank": "reciprocal rank",
}


def entropy_selection(weights: pd.DataFrame, chosen: pd.DataFrame, chance: float) -> Figure:
    """Figure 7, left: logit variance and null-space share against the norm of w_out; last layers dark, candidates on top.

    `chance` is the null-space share of a random direction.
    """
    fig, grid = canvas(1, 2, (WIDE, 4))
    late = weights[weights["entropy_score"].notna()]
    for axes, column, label in zip(
        grid, ("vocab_var", "null_share"), ("logit variance", "null-space share ρ(k) of w_out"), strict=True
    ):
        rest = weights[weights["entropy_score"].isna()]
        axes.scatter(
            rest["w_out_norm"],
            rest[column],
            s=4,
            color="#cccccc",
            linewidths=0,
            rasterized=True,
            label="earlier layers",
        )
        axes.scatter(
            late["w_out_norm"],
            late[column],
            s=5,
            color=CORRELATION,
            alpha=0.5,
            linewidths=0,
            rasterized=True,
            label="last layers",
        )
        axes.scatter(
            chosen["w_out_norm"],
            chosen[column],
            s=28,
            color=GROUP_COLOURS["entropy"],
            edgecolors="black",
            linewidths=0.5,
            label="candidates",
        )
        axes.set(xlabel="norm of w_out", ylabel=label)
    if len(late):
        norm, variance = late["w_out_norm"].quantile(0.9), late["vocab_var"].quantile(0.1)
        for line in (grid[0].axvline(norm), grid[0].axhline(variance)):
            line.set(color=NEUTRAL, linestyle="--", linewidth=1)
    if (weights["vocab_var"] > 0).all():
        grid[0].set_yscale("log")
        grid[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        grid[0].yaxis.set_major_formatter(PLAIN)
        grid[0].yaxis.set_minor_locator(NullLocator())
    grid[1].axhline(chance, color=BASELINE, linestyle=":", label="random direction")
    handles, labels = grid[1].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, markerscale=2)
    return fig


def fixed_activation(table: pd.DataFrame) -> Figure:
    """Figures 7 and 25: each outcome's change against the value the neuron is held at; candidates over grey controls."""
    fig, grid = canvas(2, 2, (WIDE, 6.2), sharex=True)
    own, others = table[table["group"] == "entropy"], table[table["group"] == "control"]
    for axes, (outcome, label) in zip(grid.flat, OUTCOME_LABELS.items(), strict=True):
        for index, (_, rows) in enumerate(others.groupby(["layer", "neuron"])):
            axes.plot(
                rows["value"],
                rows[f"{outcome}_change"],
                color=GROUP_COLOURS["control"],
                alpha=0.5,
                linewidth=1,
                label="controls" if index == 0 else None,
            )
        for index, (_, rows) in enumerate(own.groupby(["layer", "neuron"], sort=False)):
            axes.errorbar(
                rows["value"],
                rows[f"{outcome}_change"],
                rows[f"{outcome}_error"],
                color=SEED_COLOURS[index % len(SEED_COLOURS)],
                marker="o",
                markersize=3,
                linewidth=1.5,
                capsize=2,
                label=name_of(rows.iloc[0]),
            )
        axes.axhline(0, color=NEUTRAL, linewidth=1)
        axes.set_ylabel(f"change of {label}")
        if table.empty:
            note(axes, "no neuron to hold")
    for axes in grid[-1]:
        axes.set_xlabel("activation held at")
    handles, labels = grid.flat[0].get_legend_handles_labels()
    if handles:
        fig.legend(handles, labels, loc="outside right center", frameon=False)
    return fig


def mean_ablation(table: pd.DataFrame) -> Figure:
    """Total effect of mean ablation (x) against what is left with the scale frozen, or the frequency fixed (y)."""
    fig, grid = canvas(1, 2, (WIDE, 4.2))
    _against_total(grid[0], table, "entropy", FROZEN_SCALE, "final scale frozen")
    _against_total(grid[1], table, "kl_unigram", FIXED_FREQUENCY, "projection on frequency fixed")
    grid[0].set_xlabel("total change of entropy [nats]")
    grid[1].set_xlabel("total change of KL(prediction ‖ unigram) [nats]")
    handles, labels = grid[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return fig


def _against_total(axes: Axes, table: pd.DataFrame, outcome: str, variant: str, what: str) -> None:
    wide = table.pivot_table(index=["group", "layer", "neuron"], columns="variant", values=f"{outcome}_change")
    for group, colour in GROUP_COLOURS.items():
        if group in wide.index.get_level_values("group"):
            rows = wide.loc[group]
            axes.plot(
                rows[TOTAL], rows[variant], "o", color=colour, markersize=5, alpha=0.8, label=f"{group} ({len(rows)})"
            )
    if wide.empty:
        note(axes, "no neuron to ablate")
    axes.axline((0, 0), slope=1, color=NEUTRAL, linewidth=1, linestyle="--", label="nothing taken away")
    axes.axhline(0, color=NEUTRAL, linewidth=1)
    axes.set_ylabel(f"change with the\n{what} [nats]")
    axes.locator_params(nbins=6)


def matched_ablation(table: pd.DataFrame) -> Figure:
    """A neuron's total effect on entropy (x) against that of its best match in each other seed (y), with standard errors."""
    fig, axes = canvas(size=(WIDE * 0.62, 4.2))
    for group in ("control", "entropy"):
        rows = table[table["group"] == group]
        axes.errorbar(
            rows["reference_change"],
            rows["entropy_change"],
            rows["entropy_error"],
            rows["reference_error"],
            fmt="o",
            linestyle="none",
            markersize=4,
            linewidth=0.8,
            alpha=0.7,
            color=GROUP_COLOURS[group],
            label={"control": "controls", "entropy": "entropy candidates"}[group],
        )
    axes.axhline(0, color=NEUTRAL, linewidth=1)
    axes.axvline(0, color=NEUTRAL, linewidth=1)
    typical = table[["reference_change", "entropy_change"]].abs().median().max()
    if typical > 0:  # few large effects would press the others onto a point
        axes.set_xscale("symlog", linthresh=2 * typical)
        axes.set_yscale("symlog", linthresh=2 * typical)
    axes.set(
        xlabel="change of entropy, neuron of the reference seed [nats]",
        ylabel="change of entropy,\nbest match in another seed [nats]",
    )
    if table.empty:
        note(axes, "no match to ablate")
    else:
        axes.legend(loc="best")
    return fig


def attention_scores(weights: pd.DataFrame, chance: pd.DataFrame) -> Figure:
    """Figure 8a: best score of each neuron in standard deviations of random vectors, and scores by layer of the head."""
    fig, (left, right) = canvas(1, 2, (WIDE, 4))
    named = (("random vectors", chance, BASELINE), ("neurons", weights, CORRELATION))
    largest = max((table["attention_deviations"].abs().max() for _, table, _ in named), default=1.0)
    bins = np.linspace(-1.05, 1.05, 61) * (largest if np.isfinite(largest) and largest > 0 else 1.0)
    for offset, (label, table, colour) in zip((-0.14, 0.14), named, strict=True):
        reached = table[table["attention_score"].notna()]
        left.hist(reached["attention_deviations"], bins, color=colour, alpha=0.6, histtype="stepfilled", label=label)
        right.scatter(
            reached["attention_head_layer"] + offset,
            reached["attention_score"],
            s=6,
            color=colour,
            alpha=0.4,
            linewidths=0,
            rasterized=True,
        )
        if reached.empty:
            note(left, "no head reads a neuron")
    left.set(
        xlabel="largest score h of a neuron\n[standard deviations of random vectors]",
        ylabel="neurons (log axis)",
        yscale="log",
    )
    left.set_ylim(bottom=0.7)
    handles, labels = left.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    right.axhline(0, color=NEUTRAL, linewidth=1)
    right.set_ylabel("largest score h of a neuron")
    layer_axis(right, int(weights["layer"].nunique()))
    right.set_xlabel("layer of the head")
    right.set_xlim(0.5, max(1.5, weights["layer"].nunique() - 0.5))
    return fig


def value_norms(table: pd.DataFrame) -> Figure:
    """‖W_O v‖ of BOS against its mean over other tokens, one dot a head coloured by layer."""
    fig, axes = canvas(size=(WIDE * 0.62, 4))
    dots = axes.scatter(
        table["others"], table["bos"], c=table["layer"], cmap="viridis", s=30, edgecolors="black", linewidths=0.4
    )
    low, high = table[["bos", "others"]].min().min(), table[["bos", "others"]].max().max()
    axes.plot([low, high], [low, high], color=NEUTRAL, linewidth=1, linestyle="--", label="equal")
    if low > 0:
        axes.set(xscale="log", yscale="log")
    axes.set(xlabel="‖W_O v‖, mean over other tokens", ylabel="‖W_O v‖ of BOS")
    fig.colorbar(dots, ax=axes, label="layer", ticks=sorted(table["layer"].unique()))
    axes.legend(loc="upper left")
    return fig


def query_paths(rows: pd.DataFrame) -> Figure:
    """Figures 8b, 8c and 26: change of attention to BOS and of ‖W_O z‖ against the activation, one column a pair."""
    pairs = list(rows.groupby(["role", "layer", "neuron", "head_layer", "head"], sort=False)) if len(rows) else []
    fig, grid = canvas(2, max(1, len(pairs)), (WIDE + 1, 5), sharex="col", squeeze=False)
    colours = {"deactivation": EXCESS, "activation": CORRELATION}
    for column, (_, own) in enumerate(pairs):
        first = own.iloc[0]
        shown = own.iloc[:: max(1, len(own) // 2000)]
        for axes, quantity in zip(grid[:, column], ("bos_change", "norm_change"), strict=True):
            axes.scatter(
                shown["activation"],
                shown[quantity],
                s=4,
                color=colours[first["role"]],
                alpha=0.4,
                linewidths=0,
                rasterized=True,
            )
            axes.axhline(0, color=NEUTRAL, linewidth=1)
            axes.locator_params(nbins=4)
            axes.yaxis.set_major_formatter(PLAIN)
        grid[0, column].set_title(
            f"{name_of(first)} → L{first['head_layer']}H{first['head']}\n{first['role']}, h = {first['attention_score']:.2f}".replace(
                "-", "−"
            )
        )
    for axes in grid[1]:
        axes.set_xlabel("activation")
    if not pairs:
        note(grid[0, 0], "no head reads a neuron")
    grid[0, 0].set_ylabel("change of attention\nto BOS")
    grid[1, 0].set_ylabel("change of ‖W_O z‖")
    return fig


def importance(table: pd.DataFrame) -> Figure:
    """Change of loss and KL by layer, a column a kind of set: the set over the grey random sets of its size; means left, zeros right of the layer.

    Effects differ by orders of magnitude between layers, so the axes are logarithmic, that of the loss linear below the median random set.
    """
    fig, grid = canvas(2, len(CHOSEN), (WIDE, 6), sharex=True, sharey="row")
    layers = int(table["layer"].max()) + 1 if len(table) else 1
    sizes = table.loc[(table["loss_change"] != 0) & (table["group"] == RANDOM), "loss_change"].abs()
    if len(sizes):
        grid[0, 0].set_yscale("symlog", linthresh=10 ** np.floor(np.log10(sizes.median())))
    if (table["kl"] > 0).any():
        grid[1, 0].set_yscale("log")
    for axes, label in zip(grid[:, 0], ("change of loss [nats]", "KL(unchanged ‖ ablated)\n[nats]"), strict=True):
        axes.set_ylabel(label)
        axes.yaxis.set_major_formatter(PLAIN)
    for column, group in zip(grid.T, CHOSEN, strict=True):
        own = table[table["group"] == group]
        others = table[table["group"] == RANDOM].merge(own[["kind", "layer", "neurons"]])  # of the same size
        for kind, offset in zip(KINDS, (-0.17, 0.17), strict=True):
            drawn, chosen = others[others["kind"] == kind], own[own["kind"] == kind]
            jitter = 0.02 * (drawn["draw"] - drawn["draw"].mean())
            for axes, outcome in zip(column, ("loss_change", "kl"), strict=True):
                axes.plot(
                    drawn["layer"] + offset + jitter,
                    drawn[outcome],
                    SET_MARKERS[kind],
                    color=GROUP_COLOURS["control"],
                    markersize=4,
                    alpha=0.7,
                    markeredgewidth=0,
                    label=f"random, held at {HELD_AT[kind]}",
                )
                axes.errorbar(
                    chosen["layer"] + offset,
                    chosen[outcome],
                    chosen[f"{outcome}_error"],
                    fmt=SET_MARKERS[kind],
                    color=COLOURS["universal"],
                    markersize=6,
                    markeredgecolor="black",
                    markeredgewidth=0.5,
                    linewidth=1,
                    label=f"the set, held at {HELD_AT[kind]}",
                )
        column[0].set_title(SETS[group])
        if own.empty:
            for axes in column:
                note(axes, "no set to ablate")
        layer_axis(column[1], layers)
    for axes in grid[0]:
        axes.axhline(0, color=NEUTRAL, linewidth=1)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return fig


WRITING_PROPERTIES = {
    "vocab_kurt": "kurtosis of cos(w_out, W_U)",
    "vocab_skew": "skew of cos(w_out, W_U)",
    "vocab_var": "variance of cos(w_out, W_U)",
    "w_out_norm": "norm of w_out",
    "frequency_share": "cosine with token frequency",
    "null_share": "share in the null space of W_U",
    "entropy_score": "entropy score",
    "entropy": "entropy rule",
    "attention_deviations": "attention score",
}


def property_agreement(table: pd.DataFrame, labels: dict[str, str]) -> Figure:
    """Correlation between a neuron's rank and its best match's by property, beside chance; `labels` names the columns."""
    groups = list(dict.fromkeys(table["group"]))
    fig, grid = canvas(1, len(groups), (WIDE + 1, 1.6 + 0.34 * len(labels)), sharey=True, sharex=True, squeeze=False)
    for axes, group in zip(grid[0], groups, strict=True):
        rows = table[table["group"] == group].set_index("property").reindex(list(labels))
        at = np.arange(len(rows))
        axes.axvline(0, color=NEUTRAL, linewidth=1)
        axes.hlines(
            at,
            rows["chance_low"],
            rows["chance_high"],
            color="#bbbbbb",
            linewidth=7,
            label="neurons exchanged within the layer",
        )
        axes.plot(rows["correlation"], at, "o", linestyle="none", color=CORRELATION, label="best match")
        axes.set_yticks(at, list(labels.values()))
        axes.set(
            xlabel="correlation of within-layer ranks", title=f"{group} neurons, up to {rows['pairs'].max():,} pairs"
        )
    grid[0, 0].invert_yaxis()
    grid[0, 0].set_ylabel("property of the neuron")
    handles, names = grid[0, 0].get_legend_handles_labels()
    fig.legend(handles, names, loc="outside lower center", ncols=2, frameon=False)
    return fig
