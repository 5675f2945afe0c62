"""Figures of chapter 5: what the output weights of neurons do to logits, and how universal that is.

From the tables of `tables`, `role_agreement` and `next_token`, with the theme of lib/display/plots.py.
"""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from lib.chapters.circuits.role_agreement import WRITTEN
from lib.chapters.circuits.roles import PUBLISHED_CUTS, ROLES, last_layers, layer_quantiles, role_counts
from lib.chapters.universality.properties import TOP_SHARE
from lib.display.captions import count, signed
from lib.display.plots import (
    BASELINE,
    CORRELATION,
    NEUTRAL,
    PERCENT,
    PLAIN,
    ROLE_COLOURS,
    WIDE,
    canvas,
    layer_axis,
    legend_below,
    note,
)

CUTS = {"role_published": "published cuts", "role_learned": "calibrated cuts"}  # by column of roles.parquet
SHADES = ("#c6c6c6", "#a6bddb", "#74a9cf", "#2b8cbe", "#7b62b5")  # from the middle of a distribution outwards
LOGIT_EFFECT, NOBODY, LIGHT, DARK = "cos(w_out, W_U)", "no neuron of any seed", "#cccccc", "#222222"


def moments_by_layer(circuits: pd.DataFrame) -> Figure:
    """Figures 6a and 6b, and the variance: percentiles by layer, mean over seeds with the seeds' range shaded."""
    fig, grid = canvas(1, 3, (WIDE + 2, 4.2))
    outer, both_sides = (0.5, 0.75, 0.9, 0.99, 0.999), (0.01, 0.1, 0.5, 0.9, 0.99)
    panels = (
        ("learned_kurt", "kurtosis", outer, SHADES, "null_kurt", PUBLISHED_CUTS.kurtosis),
        ("learned_skew", "skew", both_sides, (*SHADES[4::-2], *SHADES[2::2]), None, None),
        ("learned_var", "variance", outer, SHADES, "null_var", PUBLISHED_CUTS.variance),
    )
    for axes, (column, name, quantiles, shades, null, published) in zip(grid, panels, strict=True):
        table = layer_quantiles(circuits, column, quantiles)
        labelled: list[float] = []
        for quantile, shade in zip(quantiles, shades, strict=True):
            rows = table[table["quantile"] == quantile]
            axes.fill_between(rows["layer"], rows["low"], rows["high"], color=shade, alpha=0.3, linewidth=0)
            axes.plot(rows["layer"], rows["mean"], color=shade, marker="o", markersize=3)
            at = rows["layer"].iloc[0], rows["mean"].iloc[0]
            if null and any(abs(np.log(at[1] / other)) < 0.04 for other in labelled):
                continue  # the labels would overlap
            labelled.append(at[1])
            _write(axes, f"{100 * quantile:g}", at, (-5, 0), va="center", ha="right", color=NEUTRAL)
        if null:
            axes.axhline(published, color=NEUTRAL, linestyle=":", label="published cut")
            axes.axhline(circuits[null].mean(), color=BASELINE, linestyle="--", label="99.9 % of random directions")
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
            axes.yaxis.set_major_formatter(PLAIN)
            axes.yaxis.set_minor_locator(NullLocator())
        else:
            axes.axhline(0, color=NEUTRAL, linewidth=1)
        axes.set(ylabel=f"{name} of {LOGIT_EFFECT}")
        layer_axis(axes, circuits["layer"].nunique())
        axes.margins(x=0.15)
    legend_below(fig)
    return fig


def skew_of_peaked(circuits: pd.DataFrame) -> Figure:
    """Figure 6c: skew of the neurons with kurtosis above a cut in the last layers; mean over seeds, range shaded."""
    layers = last_layers(circuits["layer"].nunique())
    fig, grid = canvas(2, len(layers), (WIDE, 5), sharex=True, squeeze=False)
    extent = max(1.0, circuits.loc[circuits["layer"].isin(layers), "learned_skew"].abs().max())
    edges = np.linspace(-extent, extent, 31)
    cuts = {"published": PUBLISHED_CUTS.kurtosis, "calibrated": circuits["null_kurt"]}
    for row, (name, cut) in zip(grid, cuts.items(), strict=True):
        skews = circuits["learned_skew"].where(circuits["learned_kurt"] > cut)
        for axes, layer in zip(row, layers, strict=True):
            by_seed = skews[circuits["layer"] == layer].groupby(circuits["seed"])
            counts = np.array([np.histogram(own.dropna(), edges)[0] for _, own in by_seed])  # (seeds, bins)
            axes.set_title(f"layer {layer}, kurtosis above the {name} cut", fontsize="small")
            axes.axvline(0, color=NEUTRAL, linewidth=1, linestyle="--")
            if not counts.any():
                note(axes, NOBODY)
                axes.set_yticks([])
                continue
            shading = {"fill": True, "color": CORRELATION, "alpha": 0.3, "label": "range over seeds"}
            axes.stairs(counts.max(0), edges, baseline=counts.min(0), **shading)
            axes.stairs(counts.mean(0), edges, color=CORRELATION, linewidth=1.5, label="mean over seeds")
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        row[0].set_ylabel("neurons")
    for axes in grid[-1]:
        axes.set_xlabel(f"skew of {LOGIT_EFFECT}")
    legend_below(fig)
    return fig


def roles_by_layer(circuits: pd.DataFrame) -> Figure:
    """Neurons of each role by layer under both cuts: mean over seeds, range as a line; suppression downwards."""
    fig, grid = canvas(2, 2, (WIDE, 6), sharex=True, sharey="row", squeeze=False)
    for (upper, lower), (column, name) in zip(grid.T, CUTS.items(), strict=True):
        counts = role_counts(circuits, column)
        for axes, role, sign in ((upper, "prediction", 1), (upper, "suppression", -1), (lower, "partition", 1)):
            over = counts.groupby("layer")[role].agg(["mean", "min", "max"])
            axes.bar(over.index, sign * over["mean"], color=ROLE_COLOURS[role], width=0.7, label=role)
            axes.vlines(over.index, sign * over["min"], sign * over["max"], color=DARK, linewidth=1.5)
            for layer, row in over[over["mean"] > 0].iterrows():
                number = f"{row['mean']:,.0f}" if row["mean"] >= 100 else f"{row['mean']:.3g}"
                side = "bottom" if sign > 0 else "top"
                _write(axes, number, (layer, sign * row["max"]), (0, 3 * sign), ha="center", va=side)
        upper.axhline(0, color=NEUTRAL, linewidth=1)
        upper.set_title(name)
        upper.yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
        for axes, shown in ((upper, ["prediction", "suppression"]), (lower, ["partition"])):
            if not counts[shown].to_numpy().any():
                note(axes, NOBODY)
        layer_axis(lower, circuits["layer"].nunique())
    for axes, label in zip(grid[:, 0], ("suppression ↓ neurons ↑ prediction", "partition neurons"), strict=True):
        axes.margins(y=0.15)
        axes.set_ylabel(label)
    return fig


def logit_effects(examples: pd.DataFrame, effects: np.ndarray, members: np.ndarray) -> Figure:
    """Figures 5 and 23: cos(w_out, W_U[:, v]) over the tokens v, those of the neuron's class on top of the others.

    `examples` has rows layer, neuron, role, label, label_score, learned_kurt, learned_skew, learned_var; `effects`
    (NaN for tokens that were never learned) and `members` are (examples, vocabulary). One column of panels per role.
    """
    deepest = int(examples["role"].value_counts().max()) if len(examples) else 1
    fig, grid = canvas(deepest, len(ROLES), (WIDE + 1, 0.5 + 2.7 * deepest), squeeze=False)
    for column, role in zip(grid.T, ROLES, strict=True):
        places = np.flatnonzero(examples["role"] == role)
        for axes in column[max(1, len(places)) :]:
            axes.set_visible(False)
        if not len(places):
            note(column[0], f"no {role} neuron")
            column[0].set(xticks=[], yticks=[])
        for axes, place in zip(column, places, strict=False):
            learned = np.isfinite(effects[place])
            row, values, inside = examples.iloc[place], effects[place][learned], members[place][learned].astype(bool)
            edges = np.linspace(values.min(), values.max(), 61)
            filled = {"color": ROLE_COLOURS[role], "histtype": "stepfilled", "alpha": 0.6, "label": row["label"]}
            axes.hist(values[inside], edges, **filled)
            axes.hist(values[~inside], edges, color=DARK, histtype="step", linewidth=1.3, label="other tokens")
            axes.set_yscale("log")
            axes.axvline(0, color=NEUTRAL, linewidth=1, linestyle="--")
            axes.set_title(
                f"{role}: layer {row['layer']} neuron {row['neuron']}\nkurtosis {row['learned_kurt']:.1f}, skew "
                f"{signed(row['learned_skew'])}, variance {row['learned_var']:.3f}",
                fontsize="small",
            )
            side, small = "left" if row["learned_skew"] > 0 else "right", "x-small"
            title = f"score {row['label_score']:.2f}"
            axes.legend(fontsize=small, loc=f"upper {side}", handlelength=1, title=title, title_fontsize=small)
            low, high = axes.get_ylim()
            axes.set_ylim(low, high * 30)  # room for the legend
        for axes in column:
            axes.set_xlabel("cos(w_out, W_U[:, v])")
    for axes in grid[:, 0]:
        axes.set_ylabel("tokens (log axis)")
    return fig


def next_token(table: pd.DataFrame) -> Figure:
    """Figure 24: activation by whether the next token is in the neuron's class, and the effect beside its layer's.

    Suppression neurons stand above prediction neurons. Grey bars are the 5th to 95th percentile of the other neurons
    of the same layer on the same split.
    """
    rows = table.sort_values(["role", "effect"], ascending=[False, False], na_position="last").reset_index(drop=True)
    fig, (left, right) = canvas(1, 2, (WIDE + 1, 1.6 + 0.27 * max(4, len(rows))), sharey=True)
    for axes in (left, right):
        axes.axvline(0, color=NEUTRAL, linewidth=1)
        if rows.empty:
            note(axes, "no suppression or prediction neuron\nwhose class explains more than chance")
    bars = {"color": LIGHT, "linewidth": 6, "zorder": 1, "label": "other neurons of the layer, 5 to 95 %"}
    right.hlines(rows.index, rows["layer_low"], rows["layer_high"], **bars)
    left.hlines(rows.index, rows["mean_out"], rows["mean_in"], color=LIGHT, linewidth=1.5, zorder=1)
    for role, own in rows.groupby("role", sort=False):
        filled, hollow = {"color": ROLE_COLOURS[role]}, {"mfc": "white", "mec": ROLE_COLOURS[role]}
        left.plot(own["mean_in"], own.index, "o", **filled, label=f"{role}, next token in the class")
        left.plot(own["mean_out"], own.index, "o", **hollow, label=f"{role}, any other next token")
        right.plot(own["effect"], own.index, "o", **filled, zorder=2)
    names = [f"{row.label} · {row.seed} L{row.layer}.{row.neuron}" for row in rows.itertuples()]
    left.set_yticks(rows.index, names, fontsize="x-small")
    left.invert_yaxis()
    left.set(xlabel="mean activation", ylabel="token class · seed, layer.neuron")
    right.set(xlabel="difference in standard deviations (Cohen's d)")
    if rows["effect"].abs().max() > 5:  # a linear axis would hide the sign of small effects
        right.set_xscale("symlog", linthresh=1)
        right.margins(x=0.08)
        right.xaxis.set_major_formatter(PLAIN)
    if len(rows):
        legend_below(fig, fontsize="small")
    return fig


def universal_roles(shares: dict[str, pd.DataFrame], threshold: float) -> Figure:
    """Share of each role's neurons that are universal, and that are among the most universal, beside their depth's.

    `shares` maps the column of a cut to `role_agreement.universal_shares`.
    """
    fig, (left, right) = canvas(1, 2, (WIDE + 1, 4))
    width = 0.8 / len(shares)
    highest = {left: 0.0, right: 0.0}
    for index, (column, table) in enumerate(shares.items()):
        at = np.arange(len(table)) + width * (index - (len(shares) - 1) / 2)
        style = {} if column == "role_learned" else {"alpha": 0.45, "hatch": "//"}
        style |= {"color": [ROLE_COLOURS[role] for role in table["role"]], "edgecolor": "white", "label": CUTS[column]}
        marks = {"color": "black", "markersize": 16, "markeredgewidth": 2, "linestyle": "none"}
        for axes, share, number, expected in (
            (left, "share", "universal", "expected_universal"),
            (right, "top_share", "top", "expected"),
        ):
            axes.bar(at, table[share].fillna(0), width * 0.92, **style)
            axes.plot(at, table[expected], "_", **marks, label=None if index else "expected from depth alone")
            tops = table[[share, expected]].max(axis=1).fillna(0)
            highest[axes] = max(highest[axes], tops.max())
            for place, top, some, every in zip(at, tops, table[number], table["neurons"], strict=True):
                _write(axes, f"{some:,}\nof {every:,}", (place, top), (0, 3), ha="center")
    left.set(ylabel=f"universal (excess above {threshold:g})")
    right.set(ylabel=f"in the top {100 * TOP_SHARE:g} % by excess")
    for axes in (left, right):
        axes.set_xticks(range(len(ROLES)), ROLES)
        axes.set_xlabel("role of the neuron")
        axes.set_ylim(0, max(1.35 * highest[axes], 1e-3))
        axes.yaxis.set_major_formatter(PERCENT)
    legend_below(fig, 3)
    return fig


def match_agreement(table: pd.DataFrame) -> Figure:
    """How often a neuron's best match in another seed has the same role, sign of skew and class, beside chance."""
    groups = list(dict.fromkeys(table["group"]))
    fig, (grid,) = canvas(1, len(WRITTEN), (WIDE + 2, 1.6 + 0.42 * len(groups)), sharey=True, squeeze=False)
    at = np.arange(len(groups))
    bars = {"color": "#bbbbbb", "linewidth": 7, "label": "neurons permuted within their layer"}
    for axes, name in zip(grid, WRITTEN, strict=True):
        rows = table[table["property"] == name].set_index("group").reindex(groups)
        axes.hlines(at, rows["chance_low"], rows["chance_high"], **bars)
        axes.plot(rows["agreement"], at, "o", linestyle="none", color=CORRELATION, label="best match")
        for place, pairs, agreement in zip(at, rows["pairs"], rows["agreement"].fillna(0), strict=True):
            offset, side = ((-6, 7), "right") if agreement > 0.75 else ((6, 7), "left")
            _write(axes, count(pairs, "pair"), (agreement, place), offset, color=NEUTRAL, ha=side)
        axes.set(xlabel=f"pairs with the same {name}", xlim=(-0.02, 1.02), xticks=[0, 0.5, 1])
        axes.xaxis.set_major_formatter(PERCENT)
        axes.set_yticks(at, groups)
    grid[0].invert_yaxis()
    grid[0].set_ylabel("group of the neuron")
    grid[0].margins(y=0.15)
    legend_below(fig)
    return fig


def _write(axes: Axes, text: str, at: tuple[float, float], offset: tuple[float, float], **options) -> None:
    """Small text beside a point; `offset` in points."""
    axes.annotate(text, at, offset, textcoords="offset points", fontsize="x-small", **options)
