"""The figures of heads: their best matches beside rotated heads, and their scores beside those of the matches."""

import pandas as pd
from matplotlib.figure import Figure

from lib.chapters.same_function.heads import HEAD, NULLS, TYPES, by_head
from lib.display.plots import BASELINE, CORRELATION, HEIGHT, NEUTRAL, PALE, WIDE, canvas, legend_below

BASELINES = {
    NULLS[0]: {"marker": "_", "markersize": 13, "label": "rotated heads"},
    NULLS[1]: {"marker": "x", "markersize": 6, "label": "rotated heads of equal power"},
}
SCORES = {"bos": "attention to BOS", "previous": "attention to the previous token", "induction": "induction"}


def head_matches(table: pd.DataFrame, reference: str) -> Figure:
    """Each head's mean best match and baselines, in order of depth."""
    own = table[table["seed"] == reference]
    fig, axes = canvas(1, 1, (WIDE, HEIGHT))
    measures = {null: by_head(own, null).sort_values(HEAD, ignore_index=True) for null in NULLS}
    first = measures[NULLS[0]]
    axes.vlines(first.index, first["mean_baseline"], first["mean_corr"], color=PALE, linewidth=1)
    for null, look in BASELINES.items():
        axes.plot(measures[null]["mean_baseline"], color=BASELINE, linestyle="none", zorder=3, **look)
    axes.plot(first["mean_corr"], "o", color=CORRELATION, markersize=5, label="best match in another seed")
    starts = first.groupby("layer").apply(lambda rows: rows.index.min(), include_groups=False)
    for start in starts.iloc[1:]:
        axes.axvline(start - 0.5, color=PALE, linewidth=0.5)
    middles = first.groupby("layer").apply(lambda rows: rows.index.to_numpy().mean(), include_groups=False)
    axes.set_xticks(middles, middles.index)
    axes.grid(visible=False, axis="x")
    axes.set(xlabel="layer (heads in order)", ylabel="√RV with another seed's heads", ylim=(0, 1.02))
    legend_below(fig, columns=3)
    return fig


def head_scores(table: pd.DataFrame) -> Figure:
    """Scores of every reference's heads against those of their best matches."""
    fig, grid = canvas(1, len(TYPES), (WIDE, HEIGHT), sharey=True)
    for axes, (name, words) in zip(grid, SCORES.items(), strict=True):
        axes.plot([0, 1], [0, 1], color=NEUTRAL, linewidth=1)
        look = {"s": 10, "alpha": 0.4, "linewidths": 0, "color": CORRELATION, "rasterized": True}
        axes.scatter(table[name], table[f"match_{name}"], **look)
        axes.set(xlabel=words, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    grid[0].set_ylabel("the same score of the match")
    return fig
