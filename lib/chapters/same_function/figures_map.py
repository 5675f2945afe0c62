"""The figure of function without text: how many neurons a map of tokens leads to their match."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.chapters.same_function.residual_map import by_layer, hits, selected
from lib.display.plots import BASELINE, COLOURS, CORRELATION, HEIGHT, PERCENT, WIDE, canvas, layer_axis, legend_below

UNIVERSAL = "match, universal neurons of all seeds (how many)"
BINS = np.linspace(0, 1, 11)  # of the correlation
FEW = 20  # pairs below which a bin is not drawn
LOOKS = {
    "top1": {"color": CORRELATION, "marker": "o", "label": "match, all neurons"},
    "exchanged_top1": {"color": BASELINE, "linestyle": "--", "label": "another neuron's match"},
    "matched_top1": {"color": BASELINE, "linestyle": ":", "label": "nearest in depth and norm"},
}


def residual_map(table: pd.DataFrame, reference: str) -> Figure:
    """Share of a seed's neurons whose match comes first: by layer (left), by the match's correlation (right)."""
    own = table[table["seed"] == reference]
    fig, (left, right) = canvas(1, 2, (WIDE, HEIGHT), sharey=True)
    _universal(left, selected(table, universal=True))
    _lines(left, by_layer(own).groupby("layer")[list(LOOKS)].mean())
    layer_axis(left, int(own["layer"].max()) + 1)
    rows = hits(selected(own, universal=False))
    bins = np.digitize(rows["corr"], BINS[1:-1])
    means, sizes = rows.groupby(bins)[list(LOOKS)].mean(), np.bincount(bins, minlength=len(BINS) - 1)
    means = means[sizes[means.index] >= min(FEW, sizes.max())]
    _lines(right, means.set_axis((BINS[means.index] + BINS[means.index + 1]) / 2))
    right.set(xlabel="correlation of the match", xlim=(0, 1))
    left.set(ylabel="comes first", ylim=(-0.02, 1.02))
    left.yaxis.set_major_formatter(PERCENT)
    legend_below(fig)
    return fig


def _universal(axes: Axes, rows: pd.DataFrame) -> None:
    """The share of the universal neurons of all references, with 95 % intervals, and how many there are."""
    if rows.empty:
        return
    neurons = hits(rows).groupby(["layer", "seed", "neuron"])["top1"].mean().groupby("layer")
    share, number = neurons.mean(), neurons.size()
    half = 1.96 * np.sqrt(share * (1 - share) / number)  # the matches of one neuron are one trial
    ends = np.stack([half, half]).clip(0, np.stack([share, 1 - share]))
    axes.errorbar(share.index, share, yerr=ends, color=COLOURS["universal"], marker="s", label=UNIVERSAL)
    for layer, value in share.items():
        axes.annotate(f"{number[layer]}", (layer, value), (4, 5), textcoords="offset points", fontsize=7)


def _lines(axes: Axes, means: pd.DataFrame) -> None:
    for name, look in LOOKS.items():
        axes.plot(means.index, means[name], markersize=4, **look)
