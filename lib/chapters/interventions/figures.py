"""Figures of chapter 06: entropy, token-frequency and attention neurons, sets of universal ones, and their effects.

From the tables of lib/chapters/interventions/tables.py, with the theme and helpers of lib/display/plots.py.
"""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from lib.chapters.families.summary import FAMILIES
from lib.chapters.interventions.candidates import CONTROL_OF, LARGE, late_neurons
from lib.chapters.interventions.captions import GROUPS, name_of, pair_name
from lib.chapters.interventions.neuron_sets import KINDS, RANDOM, UNIVERSAL, family_parts, shares_below
from lib.chapters.interventions.single_neurons import FIXED_FREQUENCY, FROZEN_SCALE, TOTAL
from lib.display.captions import signed
from lib.display.plots import (
    BASELINE,
    COLOURS,
    CORRELATION,
    NEUTRAL,
    PERCENT,
    PLAIN,
    SEED_MARKERS,
    WIDE,
    canvas,
    layer_axis,
    legend_below,
    note,
)

GROUP_COLOURS = {"entropy": "#B0407F", "control": "#999999", "frequency": "#7D5BBE", "frequency control": "#444444"}
EACH = ("#B0407F", "#117733", "#9A7B2D", "#7D5BBE", "#44AA99", "#CC6677")  # candidates held at fixed activations
SET_MARKERS, HELD_AT = {"mean": "o", "zero": "D"}, {"mean": "their means", "zero": "zero"}
OUTCOME_LABELS = {
    "scale": "final LayerNorm scale",
    "entropy": "entropy [nats]",
    "loss": "loss [nats]",
    "reciprocal_rank": "reciprocal rank",
}
CLOUD = {"linewidths": 0, "rasterized": True}  # a dense scatter
FRAMED = {"edgecolors": "black", "linewidths": 0.5}
REFERENCE_LINE = {"color": NEUTRAL, "linewidth": 1}
TABLE_COLUMNS = {"loss_change": ("Δloss [nats]", 4), "kl": ("KL [nats]", 4), "residual_power": ("power", 2)}  # digits
TABLE_RANKS = {"loss_change": "Δloss", "kl": "KL"}
WRITING_PROPERTIES = {
    "vocab_kurt": "kurtosis of cos(w_out, W_U)",
    "vocab_skew": "skew of cos(w_out, W_U)",
    "vocab_var": "variance of cos(w_out, W_U)",
    "w_out_norm": "norm of w_out",
    "frequency_share": "cosine with token frequency",
    "null_share": "share in the null space of W_U",
    "entropy_score": "length written into the null space",
    "entropy": "entropy rule",
    "attention_deviations": "attention score",
}


def _legend(fig: Figure, axes: Axes, place: str = "outside lower center", **options) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        fig.legend(handles, labels, loc=place, frameon=False, **options)


def entropy_selection(weights: pd.DataFrame, chosen: pd.DataFrame, bound: float) -> Figure:
    """Figure 7, left: null-space share and logit variance against the norm of w_out, the rule's neurons on top.

    `bound` is the null-space share that one random direction in a thousand exceeds.
    """
    fig, grid = canvas(1, 2, (WIDE, 4))
    late, rest = late_neurons(weights), weights[weights["entropy_score"].isna()]
    passing = late[late["entropy"]].drop(index=chosen.index, errors="ignore")
    colour = GROUP_COLOURS["entropy"]
    drawn = (
        (rest, "earlier layers", {"s": 4, "color": "#cccccc"} | CLOUD),
        (late, "last layers", {"s": 5, "color": "#777777", "alpha": 0.7} | CLOUD),
        (passing, f"more that satisfy the rule ({len(passing)})", {"s": 24, "facecolor": "none", "edgecolor": colour}),
        (chosen, f"candidates ({len(chosen)})", {"s": 28, "color": colour} | FRAMED),
    )
    for axes, column in zip(grid, ("null_share", "vocab_var"), strict=True):
        for rows, label, look in drawn:
            axes.scatter(rows["w_out_norm"], rows[column], label=label, **look)
    grid[0].set(xlabel="norm of w_out", ylabel="null-space share ρ(k) of w_out")
    grid[1].set(xlabel="norm of w_out", ylabel="logit variance")
    if len(late):
        grid[0].axvline(late["w_out_norm"].quantile(LARGE), linestyle="--", **REFERENCE_LINE)
    if (weights["vocab_var"] > 0).all():
        grid[1].set_yscale("log")
        grid[1].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        grid[1].yaxis.set_major_formatter(PLAIN)
        grid[1].yaxis.set_minor_locator(NullLocator())
    grid[0].axhline(bound, color=BASELINE, linestyle=":", label="99.9 % of random directions")
    _legend(fig, grid[0], ncols=3, markerscale=1.5)
    return fig


def fixed_activation(table: pd.DataFrame) -> Figure:
    """Figures 7 and 25: each outcome's change against the fixed activation; candidates over grey controls."""
    fig, grid = canvas(2, 2, (WIDE, 6.2), sharex=True)
    own, others = (list(table[table["group"] == group].groupby(["layer", "neuron"], sort=False)) for group in GROUPS)
    for axes, (outcome, label) in zip(grid.flat, OUTCOME_LABELS.items(), strict=True):
        for index, (_, rows) in enumerate(others):
            look = {"color": GROUP_COLOURS[GROUPS[1]], "alpha": 0.5, "linewidth": 1}
            axes.plot(rows["value"], rows[f"{outcome}_change"], label=None if index else "controls", **look)
        for index, (_, rows) in enumerate(own):
            look = {"color": EACH[index % len(EACH)], "marker": SEED_MARKERS[index % 8], "markersize": 4, "capsize": 2}
            change, error = rows[f"{outcome}_change"], rows[f"{outcome}_error"]
            axes.errorbar(rows["value"], change, error, linewidth=1.5, label=name_of(rows.iloc[0]), **look)
        axes.axhline(0, **REFERENCE_LINE)
        axes.set_ylabel(f"change of {label}")
        if table.empty:
            note(axes, "no neuron to hold")
    for axes in grid[-1]:
        axes.set_xlabel("activation held at")
    _legend(fig, grid.flat[0], "outside right center")
    return fig


def mean_ablation(table: pd.DataFrame) -> Figure:
    """Total effect of mean ablation (x) against what is left with the scale frozen, or the frequency fixed (y).

    Each panel has the candidates that it tests over their controls.
    """
    fig, grid = canvas(1, 2, (WIDE, 4.2))
    panels = (
        ("entropy", "entropy", FROZEN_SCALE, "entropy", "final scale frozen"),
        ("frequency", "kl_unigram", FIXED_FREQUENCY, "KL(prediction ‖ unigram)", "projection on frequency fixed"),
    )
    for axes, (tested, outcome, variant, label, fixed) in zip(grid, panels, strict=True):
        wide = table.pivot_table(index=["group", "layer", "neuron"], columns="variant", values=f"{outcome}_change")
        for group in (CONTROL_OF[tested], tested):
            rows = wide[wide.index.get_level_values("group") == group]
            if len(rows):
                look = {"color": GROUP_COLOURS[group], "markersize": 5, "alpha": 0.8}
                axes.plot(rows[TOTAL], rows[variant], "o", label=f"{group} ({len(rows)})", **look)
        if wide.empty:
            note(axes, "no neuron to ablate")
        axes.axline((0, 0), slope=1, linestyle="--", label="nothing removed", **REFERENCE_LINE)
        axes.axhline(0, **REFERENCE_LINE)
        axes.set(xlabel=f"total change of {label} [nats]", ylabel=f"change with the\n{fixed} [nats]")
        axes.locator_params(axis="x", nbins=4)  # long numbers
        axes.locator_params(axis="y", nbins=6)
    legend_below(fig, 3)
    return fig


def matched_ablation(table: pd.DataFrame) -> Figure:
    """A neuron's total effect on entropy (x) against its best match's in each other seed (y), with standard errors."""
    fig, axes = canvas(size=(WIDE * 0.62, 4.2))
    look = {"fmt": "o", "linestyle": "none", "markersize": 4, "linewidth": 0.8, "alpha": 0.7}
    for group, label in zip(GROUPS[::-1], ("controls", "entropy candidates"), strict=True):
        own = table[table["group"] == group]
        places = own[["reference_change", "entropy_change", "entropy_error", "reference_error"]].T.to_numpy()
        axes.errorbar(*places, color=GROUP_COLOURS[group], label=label, **look)
    axes.axhline(0, **REFERENCE_LINE)
    axes.axvline(0, **REFERENCE_LINE)
    typical = table[["reference_change", "entropy_change"]].abs().median().max()
    if typical > 0:  # on a linear axis a few large effects would hide the others
        axes.set_xscale("symlog", linthresh=2 * typical)
        axes.set_yscale("symlog", linthresh=2 * typical)
    axes.set_xlabel("change of entropy, neuron of the reference seed [nats]")
    axes.set_ylabel("change of entropy,\nbest match in another seed [nats]")
    if table.empty:
        note(axes, "no match to ablate")
    else:
        legend_below(fig)
    return fig


def attention_scores(weights: pd.DataFrame, chance: pd.DataFrame) -> Figure:
    """Figure 8a: each neuron's best score in standard deviations of random vectors, and scores by layer of the head."""
    fig, (left, right) = canvas(1, 2, (WIDE, 4))
    named = (("random vectors", chance, BASELINE, -0.14), ("neurons", weights, CORRELATION, 0.14))
    largest = max(table["attention_deviations"].abs().max() for _, table, *_ in named)
    bins = np.linspace(-1.05, 1.05, 61) * (largest if np.isfinite(largest) and largest > 0 else 1.0)
    for label, table, colour, offset in named:
        reached = table[table["attention_score"].notna()]
        left.hist(reached["attention_deviations"], bins, color=colour, alpha=0.6, histtype="stepfilled", label=label)
        layer = reached["attention_head_layer"] + offset
        right.scatter(layer, reached["attention_score"], s=6, color=colour, alpha=0.4, **CLOUD)
        if reached.empty:
            note(left, "no head reads a neuron")
    left.set_xlabel("largest score h of a neuron\n[standard deviations of random vectors]")
    left.set(ylabel="neurons (log axis)", yscale="log")
    left.set_ylim(bottom=0.7)
    _legend(fig, left, ncols=2)
    right.axhline(0, **REFERENCE_LINE)
    layers = int(weights["layer"].nunique())
    layer_axis(right, layers)
    right.set(xlabel="layer of the head", ylabel="largest score h of a neuron", xlim=(0.5, max(1.5, layers - 0.5)))
    return fig


def value_norms(table: pd.DataFrame) -> Figure:
    """‖W_O (v + b_V)‖ of BOS against its mean over other tokens, one dot a head coloured by layer."""
    fig, axes = canvas(size=(WIDE * 0.62, 4))
    dots = axes.scatter(table["others"], table["bos"], c=table["layer"], cmap="viridis", s=30, **FRAMED)
    ends = np.array([table[["bos", "others"]].min().min(), table[["bos", "others"]].max().max()])
    axes.plot(ends, ends, linestyle="--", label="equal", **REFERENCE_LINE)
    if ends[0] > 0:
        axes.set(xscale="log", yscale="log")
    axes.set(xlabel="‖W_O (v + b_V)‖, mean over other tokens", ylabel="‖W_O (v + b_V)‖ of BOS")
    fig.colorbar(dots, ax=axes, label="layer", ticks=sorted(table["layer"].unique()))
    axes.legend(loc="upper left")
    return fig


def query_paths(rows: pd.DataFrame) -> Figure:
    """Figures 8b, 8c and 26: change of attention to BOS and of ‖W_O z‖ against the activation, one column a pair."""
    pairs = list(rows.groupby(["role", "layer", "neuron", "head_layer", "head"], sort=False)) if len(rows) else []
    fig, grid = canvas(2, max(1, len(pairs)), (WIDE + 1, 5), sharex="col", squeeze=False)
    colours = {"deactivation": "#117733", "activation": "#9A7B2D"}
    for column, (_, own) in enumerate(pairs):
        first, shown = own.iloc[0], own.iloc[:: max(1, len(own) // 2000)]
        for axes, quantity in zip(grid[:, column], ("bos_change", "norm_change"), strict=True):
            colour = colours[first["role"]]
            axes.scatter(shown["activation"], shown[quantity], s=4, color=colour, alpha=0.4, **CLOUD)
            axes.axhline(0, **REFERENCE_LINE)
            axes.locator_params(nbins=4)
            axes.yaxis.set_major_formatter(PLAIN)
        score = f"{first['attention_score']:.2f}".replace("-", "−")
        grid[0, column].set_title(f"{pair_name(first)}\n{first['role']}, h = {score}")
    for axes in grid[1]:
        axes.set_xlabel("activation")
    if not pairs:
        note(grid[0, 0], "no head reads a neuron")
    grid[0, 0].set_ylabel("change of attention\nto BOS")
    grid[1, 0].set_ylabel("change of ‖W_O z‖")
    return fig


def importance(table: pd.DataFrame, compared: pd.DataFrame, reference: str) -> Figure:
    """Left: change of loss and KL by layer in the reference, universal neurons over random sets of equal power.

    Right: the first layer's universal neurons by family; and by seed the share of random sets with less change of loss.
    Means lie left and zeros right of the layer. Effects differ by orders of magnitude between layers, so the axes are
    logarithmic, that of the loss linear below the median random set.
    """
    fig, grid = canvas(2, 2, (WIDE, 6), width_ratios=(1.25, 1))
    own = table[table["seed"] == reference]
    drawn, chosen = (own[own["group"] == group] for group in (RANDOM, UNIVERSAL))
    sizes = drawn.loc[drawn["loss_change"] != 0, "loss_change"].astype(float).abs()
    if len(sizes):
        grid[0, 0].set_yscale("symlog", linthresh=10 ** np.floor(np.log10(sizes.median())))
    if (own["kl"] > 0).any():
        grid[1, 0].set_yscale("log")
    outcomes = {"loss_change": "change of loss [nats]", "kl": "KL(unchanged ‖ ablated)\n[nats]"}
    for axes, (outcome, label) in zip(grid[:, 0], outcomes.items(), strict=True):
        axes.set_ylabel(label)
        axes.yaxis.set_major_formatter(PLAIN)
        for kind, offset in zip(KINDS, (-0.17, 0.17), strict=True):
            pair = (rows[rows["kind"] == kind] for rows in (drawn, chosen))
            _random_and_set(axes, *pair, outcome, kind, offset)
        layer_axis(axes, int(own["layer"].max()) + 1 if len(own) else 1)
        if own.empty:
            note(axes, "no set to ablate")
    grid[0, 0].axhline(0, **REFERENCE_LINE)
    _families(grid[0, 1], table, reference)
    _by_seed(grid[1, 1], compared[compared["kind"] == "mean"])
    _legend(fig, grid[0, 0], ncols=2)
    return fig


def _random_and_set(axes: Axes, drawn: pd.DataFrame, chosen: pd.DataFrame, outcome: str, kind: str, offset: float):
    look = {"markersize": 4, "color": GROUP_COLOURS[GROUPS[1]], "alpha": 0.7, "markeredgewidth": 0}
    place = drawn["layer"] + offset + 0.02 * (drawn["draw"] - drawn["draw"].mean())
    axes.plot(place, drawn[outcome], SET_MARKERS[kind], label=f"random of equal power, held at {HELD_AT[kind]}", **look)
    look = {"markersize": 6, "color": COLOURS["universal"], "markeredgecolor": "black", "markeredgewidth": 0.5}
    change, error = chosen[outcome], chosen[f"{outcome}_error"]
    label = f"universal, held at {HELD_AT[kind]}"
    axes.errorbar(chosen["layer"] + offset, change, error, fmt=SET_MARKERS[kind], linewidth=1, label=label, **look)


def _families(axes: Axes, table: pd.DataFrame, reference: str) -> None:
    """The first layer's universal neurons in the reference, together and by family."""
    parts = family_parts(table)
    parts = parts[parts["seed"] == reference]
    axes.axvline(0, **REFERENCE_LINE)
    axes.set(xlabel="change of loss [nats]", ylabel="part of layer 0's set")
    if parts.empty:
        note(axes, "no set of several families")
        axes.set_yticks([])
        return
    own = table[(table["seed"] == reference) & (table["layer"] == 0) & (table["kind"] == "mean")]
    rows = pd.concat([own[own["group"] == UNIVERSAL].assign(family="all"), parts])
    names = [f"{FAMILIES.get(row.family, row.family)} ({row.neurons})" for row in rows.itertuples()]
    look = {"fmt": "o", "linestyle": "none", "color": COLOURS["universal"]}
    axes.errorbar(rows["loss_change"].astype(float), range(len(rows)), xerr=rows["loss_change_error"], **look)
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()


def _by_seed(axes: Axes, compared: pd.DataFrame) -> None:
    """By seed the share of random sets that cost less loss than their layer's universal neurons."""
    shares = shares_below(compared)
    axes.axhline(0.5, linestyle="--", **REFERENCE_LINE)
    axes.plot(range(len(shares)), shares, "o", color=COLOURS["universal"])
    axes.set_xticks(range(len(shares)), list(shares.index))
    axes.set(xlabel="seed", ylabel="random sets that\ncost less loss", ylim=(-0.03, 1.03))
    axes.yaxis.set_major_formatter(PERCENT)
    if shares.empty:
        note(axes, "no set to ablate")


def importance_table(compared: pd.DataFrame) -> pd.DataFrame:
    """One seed's mean ablations of `neuron_sets.comparisons` for readers: one row per layer, numbers as text.

    The columns "random" are means over random sets; the last ones say how many of these lie below the set.
    """
    held = compared[compared["kind"] == "mean"].sort_values("layer")
    table = held[["layer", "neurons", "draws"]].rename(columns={"draws": "random sets"})
    for outcome, (label, digits) in TABLE_COLUMNS.items():
        for name, source in ((label, outcome), (f"{label}, random", f"{outcome}_random")):
            table[name] = [signed(value, digits).removeprefix("+") for value in held[source]]
    ranks = {f"below in {label}": held[f"{outcome}_below"] for outcome, label in TABLE_RANKS.items()}
    return table.assign(**ranks)


def property_agreement(table: pd.DataFrame, labels: dict[str, str]) -> Figure:
    """Correlation between a neuron's rank and its best match's by property, beside chance; `labels` names columns."""
    groups = list(dict.fromkeys(table["group"]))
    fig, grid = canvas(1, len(groups), (WIDE + 1, 1.6 + 0.34 * len(labels)), sharey=True, sharex=True, squeeze=False)
    for axes, group in zip(grid[0], groups, strict=True):
        rows, at = table[table["group"] == group].set_index("property").reindex(list(labels)), np.arange(len(labels))
        axes.axvline(0, **REFERENCE_LINE)
        chance = {"color": "#bbbbbb", "linewidth": 7, "label": "neurons permuted within their layer"}
        axes.hlines(at, rows["chance_low"], rows["chance_high"], **chance)
        axes.plot(rows["correlation"], at, "o", linestyle="none", color=CORRELATION, label="best match")
        axes.set_yticks(at, list(labels.values()))
        axes.set_xlabel("correlation of within-layer ranks")
        axes.set_title(f"{group} neurons, up to {rows['pairs'].max():,} pairs")
    grid[0, 0].invert_yaxis()
    grid[0, 0].set_ylabel("property of the neuron")
    _legend(fig, grid[0, 0], ncols=2)
    return fig
