"""Figures of the comparison with a published table."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lib.chapters.published.comparison import COLUMNS
from lib.display.plots import ALPHA, COLOURS, NEUTRAL, WIDE, canvas, folded, heatmap, layer_axis, note

PANELS_PER_ROW = 4


def overlap(by_layer: pd.DataFrame) -> Figure:
    """Universal neurons by layer: in both, in this run only, in the published table only."""
    fig, axes = canvas()
    bottom = np.zeros(len(by_layer))
    parts = (
        ("both", by_layer["both"], COLOURS["universal"]),
        ("this run only", by_layer["universal"] - by_layer["both"], "#7D5BBE"),
        ("published only", by_layer["published"] - by_layer["both"], "#BBBBBB"),
    )
    for name, neurons, colour in parts:
        height = neurons.to_numpy(dtype=float)
        label = f"{name} ({height.sum():,.0f})"
        axes.bar(by_layer["layer"], height, bottom=bottom, color=colour, width=0.7, label=label)
        bottom += height
    if not bottom.any():
        note(axes, "no universal neuron on either side")
    axes.set(ylabel="universal neurons", ylim=(0, max(1, 1.05 * bottom.max())))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    layer_axis(axes, len(by_layer))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return fig


def values(table: pd.DataFrame, rows: pd.DataFrame) -> Figure:
    """This run against the published value of each column in `rows` (of `column_correlations`), listed neurons only."""
    listed = table[table["listed"]]
    lines = max(1, -(-len(rows) // PANELS_PER_ROW))
    fig, grid = canvas(lines, PANELS_PER_ROW, (WIDE, 0.4 + 2.35 * lines), squeeze=False)
    groups = {"other": ~listed["universal"], "universal": listed["universal"]}
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
    for axes, row in zip(grid.flat, rows.itertuples(), strict=False):
        ours, theirs = listed[row.column], listed[f"{row.column}_published"]
        for name, group in groups.items():
            look = {"color": COLOURS[name], "alpha": ALPHA[name], "linewidths": 0, "rasterized": True}
            axes.scatter(theirs[group], ours[group], s=4, **look)
        ends = [min(ours.min(), theirs.min()), max(ours.max(), theirs.max())]
        axes.plot(ends, ends, color=NEUTRAL, linewidth=0.8, linestyle="--")
        axes.set_title(folded(row.label) if len(row.label) > 20 else row.label, fontsize="small")
        r = f"r = {row.pearson:.3f}" if np.isfinite(row.pearson) else "r undefined"
        axes.text(0.04, 0.95, r, transform=axes.transAxes, va="top", fontsize="small", bbox=box)
        axes.tick_params(labelsize="x-small")
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_locator(MaxNLocator(4))
    for axes in grid.flat[max(1, len(rows)) :]:
        axes.set_visible(False)
    if not len(rows):
        note(grid[0, 0], "no shared\ncolumn")
    fig.supxlabel("published", fontsize="medium")
    fig.supylabel("this run", fontsize="medium")
    for name in ("universal", "other"):
        grid[0, 0].scatter([], [], s=25, color=COLOURS[name], label=f"{name} in this run")
    fig.legend(loc="outside lower right", ncols=2, frameon=False, fontsize="small")
    return fig


def layers(matrix: pd.DataFrame) -> Figure:
    """Correlation with the published values of each column within each layer; white where it is undefined."""
    fig, axes = canvas(size=(WIDE, 1.2 + 0.3 * len(matrix)))
    least = min(0, np.nanmin(matrix.to_numpy(), initial=0))
    numbers = {"annot": len(matrix.columns) <= 12, "fmt": ".2f", "annot_kws": {"fontsize": "x-small"}}
    scale = {"cmap": "cividis", "vmin": least, "vmax": 1, "cbar_kws": {"label": "correlation"}}
    heatmap(axes, matrix.rename(index=COLUMNS), **scale, **numbers)
    axes.set(xlabel="layer", ylabel=None)
    axes.tick_params(rotation=0)
    return fig
