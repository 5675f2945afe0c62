"""The figure of function without text: how many neurons a map of tokens leads to their match."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.chapters.same_function.residual_map import by_layer, hits, selected
from lib.display.plots import BASELINE, COLOURS, CORRELATION, HEIGHT, PERCENT, WIDE, canvas, layer_axis, legend_below

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
    universal = by_layer(own, universal=True)
    if len(universal):
        share = universal["top1"] * universal["neurons"]
        pooled = share.groupby(universal["layer"]).sum() / universal.groupby("layer")["neurons"].sum()
        left.plot(pooled.index, pooled, color=COLOURS["universal"], marker="s", label="match, universal neurons")
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


def _lines(axes: Axes, means: pd.DataFrame) -> None:
    for name, look in LOOKS.items():
        axes.plot(means.index, means[name], markersize=4, **look)
