"""The findings that open chapter 07, from its tables of training checkpoints; without them, that there are none."""

import numpy as np
import pandas as pd
from IPython.display import HTML

from lib.chapters.emergence.captions import layer_names
from lib.chapters.emergence.figures import Timeline
from lib.chapters.emergence.statistics import fullest_layers, middle_point
from lib.display.captions import percent
from lib.display.findings import Finding, in_short

NO_TABLES = in_short(
    [Finding("There are **no tables of training checkpoints** for these seeds, so this run cannot say. See below.")]
)


def emergence(
    points: pd.DataFrame, shares: pd.DataFrame, layers: pd.DataFrame, kept: pd.DataFrame, time: Timeline
) -> HTML:
    """From `reference_shares` and `layer_shares` by checkpoint, and `persistence`; shares are means over seeds."""
    start, share = middle_point(points), shares.groupby("point", sort=False)["share"].mean()
    if not share.any():
        return in_short([Finding("**No neuron** is universal at any checkpoint.", "emergence_shares")])
    grows = "grows through training" if share[start] < share.iloc[-1] else "does **not** grow in the second half"
    text = f"The share of universal neurons {grows}: **{percent(share[start])}** halfway, at {time.moment(start)}, and "
    text += f"**{percent(share.iloc[-1])}** at the end."
    return in_short([Finding(text, "emergence_shares"), *_persistence(kept, start), *_depth(layers, time)])


def _persistence(kept: pd.DataFrame, start: str) -> list[Finding]:
    """Whether universal neurons stay; nothing if none was universal halfway."""
    halfway = kept[(kept["point"] == start) & kept["persistence"].notna()]
    if halfway.empty:
        return []
    number, stayed = halfway["universal"].sum(), halfway["kept"].sum()
    chance = np.average(halfway["chance"], weights=halfway["universal"])
    text = "Most of them stay" if stayed > number / 2 else "Most of them do **not** stay"
    text += f": **{percent(stayed / number, 0)}** of those universal halfway are so at the end, against "
    return [Finding(f"{text}{percent(chance, 1)} of random neurons of the same layers.", "emergence_births")]


def _depth(layers: pd.DataFrame, time: Timeline) -> list[Finding]:
    """Where the first ones are and where the last; nothing if none is left at the end."""
    fullest, numbers = fullest_layers(layers)
    totals, held = numbers.sum(axis=1), numbers[fullest].sum(axis=1)
    if not totals.iloc[-1]:
        return []
    first = totals[totals > 0].index[0]
    text = f"At the end **{held.iloc[-1]:,}** of the {totals.iloc[-1]:,} universal neurons of all seeds are in "
    text += layer_names(fullest)
    if first != numbers.index[-1]:
        text += f"; **{held[first] or 'none'}** of the first {totals[first]:,}, by {time.moment(first)}, are there"
    return [Finding(f"{text}.", "emergence_layers")]
