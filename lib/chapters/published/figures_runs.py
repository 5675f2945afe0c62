"""Figures of several runs side by side."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from lib.display.plots import COLOURS, DASHED, NARROW, NEUTRAL, PERCENT, WIDE, canvas, legend_right, seed_looks


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


def sizes(table: pd.DataFrame, fit: pd.Series | None) -> Figure:
    """From `runs.sizes` and `runs.exponent`: share and number of universal neurons against the neurons of the model."""
    fig, (left, right) = canvas(1, 2, (WIDE, 3.6))
    neurons = sorted(table["neurons"].unique())
    for axes, column, scale in ((left, "share", 100), (right, "universal", 1)):
        known = table[table[column] > 0]
        axes.scatter(known["neurons"], scale * known[column], s=18, color=COLOURS["universal"], alpha=0.6, linewidths=0)
        means = scale * known.groupby("neurons")[column].mean()
        axes.scatter(means.index, means, s=160, marker="_", color=NEUTRAL, zorder=3, label="mean over references")
        axes.set(xscale="log", yscale="log", xlabel="neurons of the model (log axis)")
        axes.set_xticks(neurons, [f"{number:,}" for number in neurons], fontsize="small")
        axes.set_xticks([], minor=True)
        for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            which(LogFormatter(minor_thresholds=(2, 0.5)))
    if fit is not None:
        ends = np.array([neurons[0], neurons[-1]], dtype=float)
        law = np.exp(fit["constant"]) * ends ** fit["alpha"]
        right.plot(ends, law, color=NEUTRAL, linewidth=1, label=f"neurons to the power {fit['alpha']:.2f}")
        left.plot(ends, 100 * law / ends, color=NEUTRAL, linewidth=1)
    left.set_ylabel("share universal [%] (log axis)")
    right.set_ylabel("universal neurons (log axis)")
    right.legend(frameon=False, fontsize="small")
    return fig
