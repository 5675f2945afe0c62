"""The opening figure of chapter 4, like the paper's first: a neuron of letters, of the previous token, of position."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lib.base.errors import capital
from lib.chapters.families import summary
from lib.chapters.families.scoring import FEWEST_TOKENS, Statistics
from lib.display.captions import Caption
from lib.display.plots import CORRELATION, LABEL, PALE, WIDE, canvas, note
from lib.labels.labels import LabelSet

LABELS_SHOWN = 8  # of the previous token
PANELS = {"alphabet": "first letter", "previous_token": "previous token", "position": "position"}
UNITS = "mean activation\n[deviations from the mean]"


class Opening(NamedTuple):
    """A neuron of each of PANELS, None without one; by what it responds to its mean activation, in deviations."""

    neurons: dict[str, pd.Series | None]
    means: dict[str, pd.Series]


def opening(rows: pd.DataFrame, statistics: Statistics, sets: list[LabelSet]) -> Opening:
    """The best neuron of each family among the universal ones, or among all where no universal one is of the family.

    `rows` are one seed's families with `is_universal`.
    """
    neurons, means = {}, {}
    for family in PANELS:
        universal = rows[rows["is_universal"] & (rows["family"] == family)]
        best = summary.best_neurons(universal if len(universal) else rows, family, 1)
        neurons[family] = best.iloc[0] if len(best) else None
        means[family] = _means(family, best, statistics, sets) if len(best) else pd.Series(dtype=float)
    return Opening(neurons, means)


def _means(family: str, best: pd.DataFrame, statistics: Statistics, sets: list[LabelSet]) -> pd.Series:
    row = best.iloc[0]
    if family == "alphabet":
        return summary.activation_by_letter(best, statistics, sets).iloc[0].dropna()
    own, table = statistics[row["layer"]], summary.label_row(sets, row["label"])[0]
    tokens, z = summary.row_means(own, "position" if family == "position" else table, row["neuron"])
    if family == "position":
        return pd.Series(np.where(tokens > 0, z, np.nan))
    labels = next(one for one in sets if one.table == table).labels["label"]
    found = pd.Series(z, labels)[tokens >= 2 * FEWEST_TOKENS].nlargest(LABELS_SHOWN)
    return found.rename(lambda label: label.removeprefix("previous: "))


def figure(shown: Opening) -> Figure:
    """A panel a neuron; the bar of its label is coloured."""
    fig, grid = canvas(1, 3, (WIDE, 3.4), width_ratios=(1.3, 1, 1))
    for axes, (family, words) in zip(grid, PANELS.items(), strict=True):
        row, means = shown.neurons[family], shown.means[family]
        if row is None:
            note(axes, f"no neuron of the family {words}")
            continue
        axes.set_title(f"L{row['layer']}.{row['neuron']}, {row['label']}", fontsize="small")
        if family == "position":
            axes.plot(means.index, means, color=CORRELATION)
            axes.set(xlabel="position in the block", ylabel=UNITS)
            continue
        own = [row["label"].removeprefix("previous: ").removeprefix("first letter ") == name for name in means.index]
        colours = [LABEL if one else PALE for one in own]
        if family == "alphabet":
            axes.bar(means.index, means, color=colours)
            axes.set(xlabel="first letter of the token", ylabel=UNITS)
            axes.tick_params(axis="x", labelsize="x-small")
        else:
            axes.barh(range(len(means)), means, color=colours)
            axes.set_yticks(range(len(means)), means.index, fontsize="small")
            axes.set_xlabel(UNITS)
            axes.invert_yaxis()
    return fig


def caption(shown: Opening) -> Caption:
    """Who they are, and how much of their variance their label explains."""
    alt = "Three panels: mean activation of one neuron by first letter, of one by previous token, of one by position."
    found = {PANELS[family]: row for family, row in shown.neurons.items() if row is not None}
    if not found:
        return Caption("No letter, previous-token or position neuron", "This run has no label of these families.", alt)
    names = [row["label"] if row["assigned"] else f"{row['label']} ({summary.whose(row)})" for row in found.values()]
    title = f"One neuron each for {', '.join(names)}"
    parts = []
    for words, row in found.items():
        part = f"*{capital(words)}*: layer {row['layer']}, neuron {row['neuron']}; the label explains "
        part += f"**{100 * row['score']:.0f} %** of its variance"
        if not row["assigned"]:
            part += f"; it is {summary.whose(row, '*')}: no neuron of this seed belongs to the family"
        parts.append(f"{part}.")
    return Caption(
        title, f"Mean activation of three neurons by what they respond to. {' '.join(parts)}", f"{alt} {title}."
    )
