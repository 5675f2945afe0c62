"""The figure of the nulls: how many neurons pass each threshold, and matches within domains and within positions."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lib.chapters.universality import nulls
from lib.display.plots import CORRELATION, DASHED, EXCESS, NEUTRAL, PERCENT, canvas, legend_below

LINES = {"raw": "-", "zscored": ":", "activation": "--"}  # all of the excess
WITHIN = {"domain": ("o", CORRELATION), "position": ("^", "#B0407F")}


def nulls_figure(table: pd.DataFrame, reference: str, threshold: float) -> Figure:
    """Share of a seed's neurons against the threshold under each null (left); matches with the run's partner within
    domains and positions against the match on all tokens (right), of universal neurons and the top 5 % by excess."""
    rows = nulls.by_neuron(table[table["seed"] == reference])
    fig, (left, right) = canvas(1, 2)
    thresholds = np.linspace(0, 1, 201)
    for name in nulls.known(table):
        share = nulls.shares_above(rows[f"excess_{name}"], rows["weight"], thresholds)
        look = {"color": EXCESS, "linestyle": LINES[name], "label": f"rotated {nulls.NULLS[name]}"}
        left.plot(thresholds, np.where(share > 0, share, np.nan), **look)
    left.axvline(threshold, **DASHED)
    left.set(xlabel="threshold of excess correlation", ylabel="neurons above (log axis)", yscale="log", xlim=(0, 1))
    left.set_ylim(0.5 / rows["weight"].sum(), 1.3)
    left.yaxis.set_major_formatter(PERCENT)
    added = rows[~rows["sampled"]]
    right.plot([0, 1], [0, 1], color=NEUTRAL, linewidth=1)
    for name, (marker, colour) in WITHIN.items():
        look = {"s": 12, "alpha": 0.7, "linewidths": 0, "rasterized": True, "label": f"within {nulls.WITHIN[name]}"}
        right.scatter(added["partner"], added[name], marker=marker, color=colour, **look)
    low = min(0.0, added[list(WITHIN)].min().min()) if len(added) else 0.0
    right.set(xlabel="match on all tokens", ylabel="same partner, within groups", xlim=(0, 1), ylim=(low, 1))
    legend_below(fig, columns=3)
    return fig
