"""Figures of several runs side by side."""

import pandas as pd
from matplotlib.figure import Figure

from lib.display.plots import DASHED, NARROW, PERCENT, canvas, legend_right, seed_looks


def curves(table: pd.DataFrame, shares: pd.DataFrame, neurons: int) -> Figure:
    """From `runs.curves` and `runs.shares`: share of neurons above each threshold, a line a run, with a dot at the
    run's own threshold and a bar from its lowest to its highest reference. `neurons` are those of the largest seed."""
    fig, axes = canvas(size=(NARROW + 2.5, 4.2))
    for threshold in shares["threshold"].unique():
        axes.axvline(threshold, **DASHED)
    for (run, look), row in zip(seed_looks(table).items(), shares.itertuples(), strict=True):
        colour = look["color"]
        axes.plot(table.index, table[run].where(table[run] > 0), label=run, markevery=0.1, markersize=5, **look)
        if row.universal > 0:
            axes.plot(
                [row.threshold] * 2, [max(row.low, 0.5 / neurons), row.high], color=colour, linewidth=3, alpha=0.5
            )
            axes.plot(row.threshold, row.universal, **look)
    axes.set(xlabel="threshold of the excess correlation", xlim=(0, 1), yscale="log", ylim=(0.5 / neurons, 1.3))
    axes.set_ylabel("share of neurons above (log axis)")
    axes.yaxis.set_major_formatter(PERCENT)
    legend_right(axes)
    return fig
