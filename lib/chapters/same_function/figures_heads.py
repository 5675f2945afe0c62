"""The figures of heads: their best matches beside rotated heads, and their scores beside those of the matches."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lib.chapters.same_function.heads import HEAD, NULLS, TYPES, by_head, mutual
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
    """Ranks by score of every reference's heads within their layers against those of their best matches."""
    fig, grid = canvas(1, len(TYPES), (WIDE, HEIGHT), sharey=True)
    both = mutual(table).fillna(False).astype(bool)
    jitter = np.random.default_rng(0).uniform(-0.03, 0.03, (2, len(table)))  # ranks are few
    groups = {"best match of each other": (both, CORRELATION, 9), "other": (~both, BASELINE, 6)}
    for axes, (name, words) in zip(grid, SCORES.items(), strict=True):
        axes.plot([-0.5, 0.5], [-0.5, 0.5], color=NEUTRAL, linewidth=1, label="line: equal ranks")
        for label, (chosen, colour, size) in groups.items():
            x, y = (table[f"{side}{name}_rank"] + moved for side, moved in zip(("", "match_"), jitter, strict=True))
            look = {"s": size, "alpha": 0.8, "linewidths": 0, "color": colour, "rasterized": True, "label": label}
            axes.scatter(x[chosen], y[chosen], **look)
        axes.set(xlabel=words, xlim=(-0.55, 0.55), ylim=(-0.55, 0.55))
    grid[0].set_ylabel("rank of the match, less the mean")
    legend_below(fig, columns=3)
    return fig
