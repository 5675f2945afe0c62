"""Figures of chapter 5's first half: what the output weights of neurons do to logits, and how universal that is.

From the tables of lib/chapters/circuits/tables.py, lib/chapters/circuits/role_agreement.py and lib/chapters/circuits/next_token.py; theme and helpers are those of lib/display/plots.py.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from lib.chapters.circuits.role_agreement import ASPECTS
from lib.chapters.circuits.roles import PUBLISHED_CUTS, ROLES, last_layers, layer_quantiles, role_counts
from lib.display.captions import signed
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
    note,
)

CUTS = {"role_published": "published cuts", "role_calibrated": "calibrated cuts"}
SHADES = ("#c6c6c6", "#9ecae1", "#56B4E9", "#0072B2", "#003f66")  # from the middle of a distribution outwards


def moments_by_layer(circuits: pd.DataFrame) -> Figure:
    """Figures 6a and 6b, and the variance: percentiles by layer, mean over seeds with the seeds' range shaded."""
    fig, grid = canvas(1, 3, (WIDE + 2, 4.2))
    panels = (
        ("vocab_kurt", "kurtosis", (0.5, 0.75, 0.9, 0.99, 0.999), "null_kurt", PUBLISHED_CUTS.kurtosis),
        ("vocab_skew", "skew", (0.01, 0.1, 0.5, 0.9, 0.99), None, None),
        ("vocab_var", "variance", (0.5, 0.75, 0.9, 0.99, 0.999), "null_var", PUBLISHED_CUTS.variance),
    )
    for axes, (column, name, quantiles, null, published) in zip(grid, panels, strict=True):
        table = layer_quantiles(circuits, column, quantiles)
        labelled: list[float] = []
        shades = SHADES if null else (SHADES[4], SHADES[2], SHADES[0], SHADES[2], SHADES[4])
        for quantile, shade in zip(quantiles, shades, strict=True):
            rows = table[table["quantile"] == quantile]
            axes.fill_between(rows["layer"], rows["low"], rows["high"], color=shade, alpha=0.3, linewidth=0)
            axes.plot(rows["layer"], rows["mean"], color=shade, marker="o", markersize=3)
            place = rows["mean"].iloc[0]
            if null and any(abs(np.log(place / other)) < 0.04 for other in labelled):
                continue  # one label would lie on the other
            labelled.append(place)
            axes.annotate(
                f"{100 * quantile:g}",
                (rows["layer"].iloc[0], place),
                (-5, 0),
                textcoords="offset points",
                va="center",
                ha="right",
                fontsize="x-small",
                color=NEUTRAL,
            )
        if null:
            axes.axhline(published, color=NEUTRAL, linestyle=":", label="published cut")
            axes.axhline(circuits[null].mean(), color=BASELINE, linestyle="--", label="99.9 % of random directions")
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
            axes.yaxis.set_major_formatter(PLAIN)
            axes.yaxis.set_minor_locator(NullLocator())
        else:
            axes.axhline(0, color=NEUTRAL, linewidth=1)
        axes.set(ylabel=f"{name} of cos(w_out, W_U)")
        layer_axis(axes, circuits["layer"].nunique())
        axes.margins(x=0.15)
    handles, labels = grid[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return fig


def skew_of_peaked(circuits: pd.DataFrame) -> Figure:
    """Figure 6c: skew of the neurons with kurtosis above a cut in the last layers; mean over seeds, range shaded."""
    layers = last_layers(circuits["layer"].nunique())
    fig, grid = canvas(2, len(layers), (WIDE, 5), sharex=True, squeeze=False)
    extent = max(1.0, circuits.loc[circuits["layer"].isin(layers), "vocab_skew"].abs().max())
    edges = np.linspace(-extent, extent, 31)
    for row, (cut, name) in zip(
        grid, ((PUBLISHED_CUTS.kurtosis, "published"), (circuits["null_kurt"], "calibrated")), strict=True
    ):
        peaked = circuits[circuits["vocab_kurt"] > cut]
        for axes, layer in zip(row, layers, strict=True):
            counts = np.array(
                [
                    np.histogram(
                        peaked.loc[(peaked["seed"] == seed) & (peaked["layer"] == layer), "vocab_skew"], edges
                    )[0]
                    for seed in circuits["seed"].unique()
                ]
            )  # (seeds, bins)
            axes.set_title(f"layer {layer}, kurtosis above the {name} cut", fontsize="small")
            axes.axvline(0, color=NEUTRAL, linewidth=1, linestyle="--")
            if not counts.any():
                note(axes, "no neuron of any seed")
                axes.set_yticks([])
                continue
            axes.stairs(
                counts.max(0),
                edges,
                baseline=counts.min(0),
                fill=True,
                color=CORRELATION,
                alpha=0.3,
                label="range over seeds",
            )
            axes.stairs(counts.mean(0), edges, color=CORRELATION, linewidth=1.5, label="mean over seeds")
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        row[0].set_ylabel("neurons")
    for axes in grid[-1]:
        axes.set_xlabel("skew of cos(w_out, W_U)")
    handles = {
        label: handle for axes in grid.flat for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if handles:
        fig.legend(handles.values(), handles, loc="outside lower center", ncols=2, frameon=False)
    return fig


def roles_by_layer(circuits: pd.DataFrame) -> Figure:
    """Neurons of each role by layer under both cuts: mean over seeds, range over seeds as a line; suppression downwards."""
    fig, grid = canvas(2, 2, (WIDE, 6), sharex=True, sharey="row", squeeze=False)
    for (upper, lower), (column, name) in zip(grid.T, CUTS.items(), strict=True):
        counts = role_counts(circuits, column)
        for axes, role, sign in ((upper, "prediction", 1), (upper, "suppression", -1), (lower, "partition", 1)):
            over = counts.groupby("layer")[role].agg(["mean", "min", "max"])
            axes.bar(over.index, sign * over["mean"], color=ROLE_COLOURS[role], width=0.7, label=role)
            axes.vlines(over.index, sign * over["min"], sign * over["max"], color="#222222", linewidth=1.5)
            for layer, row in over.iterrows():
                _number(axes, layer, sign * row["max"], row["mean"], sign)
        upper.axhline(0, color=NEUTRAL, linewidth=1)
        upper.set_title(name)
        upper.yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
        if not counts[["prediction", "suppression"]].to_numpy().any():
            note(upper, "no neuron of any seed")
        if not counts["partition"].any():
            note(lower, "no neuron of any seed")
        layer_axis(lower, circuits["layer"].nunique())
    for axes in grid[:, 0]:
        axes.margins(y=0.15)
    grid[0, 0].set_ylabel("suppression ↓ neurons ↑ prediction")
    grid[1, 0].set_ylabel("partition neurons")
    return fig


def _number(axes: Axes, x: float, y: float, value: float, sign: int) -> None:
    if value:
        axes.annotate(
            f"{value:,.0f}" if value >= 100 else f"{value:.3g}",
            (x, y),
            (0, 3 * sign),
            textcoords="offset points",
            ha="center",
            fontsize="x-small",
            va="bottom" if sign > 0 else "top",
        )


def logit_effects(examples: pd.DataFrame, effects: np.ndarray, members: np.ndarray) -> Figure:
    """Figures 5 and 23: cos(w_out, W_U[:, v]) over the tokens v, those of the neuron's class on top of the others.

    `examples` has rows layer, neuron, role, label, label_score, vocab_kurt, vocab_skew, vocab_var; `effects` and
    `members` are (examples, vocabulary). One column of panels per role.
    """
    deepest = max(1, int(examples.groupby("role").size().max()) if len(examples) else 1)
    fig, grid = canvas(deepest, len(ROLES), (WIDE + 1, 0.5 + 2.7 * deepest), squeeze=False)
    for column, role in zip(grid.T, ROLES, strict=True):
        places = np.flatnonzero(examples["role"] == role)
        for axes in column[max(1, len(places)) :]:
            axes.set_visible(False)
        if not len(places):
            note(column[0], f"no {role} neuron")
            column[0].set(xticks=[], yticks=[])
        for axes, place in zip(column, places, strict=False):
            row, values, inside = examples.iloc[place], effects[place], members[place].astype(bool)
            edges = np.linspace(values.min(), values.max(), 61)
            axes.hist(
                values[inside], edges, color=ROLE_COLOURS[role], histtype="stepfilled", alpha=0.6, label=row["label"]
            )
            axes.hist(values[~inside], edges, color="#222222", histtype="step", linewidth=1.3, label="other tokens")
            axes.set_yscale("log")
            axes.axvline(0, color=NEUTRAL, linewidth=1, linestyle="--")
            axes.set_title(
                f"{role}: layer {row['layer']} neuron {row['neuron']}\nkurtosis {row['vocab_kurt']:.1f}, skew "
                f"{signed(row['vocab_skew'])}, variance {row['vocab_var']:.3f}",
                fontsize="small",
            )
            axes.legend(
                fontsize="x-small",
                loc="upper left" if row["vocab_skew"] > 0 else "upper right",
                handlelength=1,
                title=f"score {row['label_score']:.2f}",
                title_fontsize="x-small",
            )
            low, high = axes.get_ylim()
            axes.set_ylim(low, high * 30)  # room for the legend
    for axes in grid[:, 0]:
        axes.set_ylabel("tokens (log axis)")
    for axes in grid.flat:
        if axes.get_visible():
            axes.set_xlabel("cos(w_out, W_U[:, v])")
    return fig


def next_token(table: pd.DataFrame) -> Figure:
    """Figure 24: activation by whether the next token is in the neuron's class, and the effect beside its layer's.

    Suppression neurons stand above prediction neurons; grey bars are the 5th to 95th percentile of the other neurons of the
    same layer on the same split.
    """
    rows = table.sort_values(["role", "effect"], ascending=[False, False], na_position="last").reset_index(drop=True)
    fig, (left, right) = canvas(1, 2, (WIDE + 1, 1.6 + 0.27 * max(4, len(rows))), sharey=True)
    if not len(rows):
        for axes in (left, right):
            note(axes, "no suppression or prediction neuron\nwhose class explains more than chance")
    for axes in (left, right):
        axes.axvline(0, color=NEUTRAL, linewidth=1)
    right.hlines(
        rows.index,
        rows["layer_low"],
        rows["layer_high"],
        color="#cccccc",
        linewidth=6,
        zorder=1,
        label="other neurons of the layer, 5 to 95 %",
    )
    left.hlines(rows.index, rows["mean_out"], rows["mean_in"], color="#cccccc", linewidth=1.5, zorder=1)
    for role, own in rows.groupby("role", sort=False):
        colour = ROLE_COLOURS[role]
        left.plot(own["mean_in"], own.index, "o", color=colour, label=f"{role}, next token in the class")
        left.plot(
            own["mean_out"], own.index, "o", markerfacecolor="white", markeredgecolor=colour, label=f"{role}, any other"
        )
        right.plot(own["effect"], own.index, "o", color=colour, zorder=2)
    names = [f"{row.label} · {row.seed} L{row.layer}.{row.neuron}" for row in rows.itertuples()]
    left.set_yticks(rows.index, names, fontsize="x-small")
    left.invert_yaxis()
    left.set(xlabel="mean activation", ylabel="token class · seed, layer.neuron")
    right.set(xlabel="difference in standard deviations (Cohen's d)")
    if rows["effect"].abs().max() > 5:  # the smaller ones, whose sign is asked for, would be dots on the line
        right.set_xscale("symlog", linthresh=1)
        right.margins(x=0.08)
        right.xaxis.set_major_formatter(PLAIN)
    handles, labels = (
        left_part + right_part
        for left_part, right_part in zip(
            left.get_legend_handles_labels(), right.get_legend_handles_labels(), strict=True
        )
    )
    if len(rows):
        fig.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    return fig


def universal_roles(shares: dict[str, pd.DataFrame], threshold: float, top: float) -> Figure:
    """Share of each role's neurons that are universal, and that are among the most universal, with what depth explains.

    `shares` maps the column of a cut to `roles.universal_shares`.
    """
    fig, (left, right) = canvas(1, 2, (WIDE + 1, 4))
    columns = list(shares)
    width = 0.8 / len(columns)
    for index, column in enumerate(columns):
        table = shares[column]
        at = np.arange(len(table)) + width * (index - (len(columns) - 1) / 2)
        for axes, share, number in ((left, "share", "universal"), (right, "top_share", "top")):
            axes.bar(
                at,
                table[share].fillna(0),
                width * 0.92,
                color=[ROLE_COLOURS[role] for role in table["role"]],
                alpha=1 if column == "role_calibrated" else 0.45,
                hatch=None if column == "role_calibrated" else "//",
                edgecolor="white",
                label=CUTS[column],
            )
            for place, (_, row) in zip(at, table.iterrows(), strict=True):
                top_edge = np.nanmax([0, row[share], row["expected"] if axes is right else 0])
                axes.annotate(
                    f"{row[number]:,}\nof {row['neurons']:,}",
                    (place, top_edge),
                    (0, 3),
                    textcoords="offset points",
                    ha="center",
                    fontsize="x-small",
                )
        right.plot(
            at,
            table["expected"],
            "_",
            color="black",
            markersize=16,
            markeredgewidth=2,
            linestyle="none",
            label="expected from depth alone" if index == 0 else None,
        )
    left.set(ylabel=f"universal (excess above {threshold:g})")
    right.set(ylabel=f"among the {100 * top:g} % of largest excess")
    for axes, share in ((left, "share"), (right, "top_share")):
        axes.set_xticks(range(len(ROLES)), ROLES)
        axes.set_xlabel("role of the neuron")
        columns_shown = [share] + ["expected"] * (axes is right)
        highest = max(
            [
                0.0,
                *(
                    value
                    for table in shares.values()
                    for value in table[columns_shown].to_numpy().flat
                    if value == value
                ),
            ]
        )
        axes.set_ylim(0, max(1.35 * highest, 1e-3))
        axes.yaxis.set_major_formatter(PERCENT)
    handles, labels = right.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return fig


def match_agreement(table: pd.DataFrame, aspects: Sequence[str] = tuple(ASPECTS)) -> Figure:
    """How often a neuron's best match in another seed has the same role, sign of skew and class, beside chance."""
    groups = list(dict.fromkeys(table["group"]))
    fig, grid = canvas(1, len(aspects), (WIDE + 2, 1.6 + 0.42 * len(groups)), sharey=True, squeeze=False)
    for axes, aspect in zip(grid[0], aspects, strict=True):
        rows = table[table["aspect"] == aspect].set_index("group").reindex(groups)
        at = np.arange(len(rows))
        axes.hlines(
            at,
            rows["chance_low"],
            rows["chance_high"],
            color="#bbbbbb",
            linewidth=7,
            label="neurons exchanged within the layer",
        )
        axes.plot(rows["agreement"], at, "o", linestyle="none", color=CORRELATION, label="best match")
        for place, (pairs, agreement) in enumerate(zip(rows["pairs"], rows["agreement"], strict=True)):
            beyond = agreement > 0.75
            axes.annotate(
                f"{pairs:,.0f} pairs",
                (agreement if np.isfinite(agreement) else 0, place),
                (-6 if beyond else 6, 7),
                textcoords="offset points",
                fontsize="x-small",
                color=NEUTRAL,
                ha="right" if beyond else "left",
            )
        axes.set(xlabel=f"pairs with the same {aspect}", xlim=(-0.02, 1.02))
        axes.set_xticks([0, 0.5, 1])
        axes.xaxis.set_major_formatter(PERCENT)
        axes.set_yticks(at, groups)
    grid[0, 0].invert_yaxis()
    grid[0, 0].set_ylabel("group of the neuron")
    grid[0, 0].margins(y=0.15)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return fig
