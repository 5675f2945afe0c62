"""The figure of designed seeds, its caption, and the table beside it."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lib.chapters.universality.designed import RELATIONS, STAGES, by_pair, over_pairs
from lib.display.captions import Caption, percent
from lib.display.plots import PERCENT, WIDE, canvas, folded, legend_below

SHOWN = {
    "share": "share of neurons\nwith an excess above 0.5",
    "same_index": "share of neurons whose\nbest match has the same index",
}
STAGE_LOOKS = {
    "constant": {"color": "#8c8c8c", "marker": "o", "label": "at the end of the constant learning rate"},
    "decayed": {"color": "#222222", "marker": "s", "label": "after its decay"},
}
HEADS = {
    "share": "excess above 0.5",
    "adjusted_share": "adjusted excess above 0.5",
    "mean_excess": "mean excess",
    "same_index": "best match has the same index",
    "same_index_universal": "… of those with an excess above 0.5",
}
SAME, OTHER = RELATIONS[0], RELATIONS[3]  # of the same text in another order
SAME_ELSEWHERE, OTHER_ELSEWHERE = RELATIONS[1], RELATIONS[4]  # of another text


def designed(pairs: pd.DataFrame) -> Figure:
    """By what two models share: a dot for each pair of models, and the mean over pairs."""
    fig, axes = canvas(1, 2, size=(WIDE, 4.2), sharey=True)
    dots = by_pair(pairs, list(SHOWN))
    for panel, (column, label) in zip(axes, SHOWN.items(), strict=True):
        for shift, stage in zip((-0.15, 0.15), STAGES, strict=True):
            own, look = dots[dots["stage"] == stage], STAGE_LOOKS[stage]
            at = own["relation"].map(RELATIONS.index) + shift
            panel.plot(own[column], at, look["marker"], color=look["color"], markersize=4, alpha=0.45, linestyle="none")
            means = own.groupby("relation")[column].mean().reindex(RELATIONS)
            place = np.arange(len(RELATIONS)) + shift
            panel.plot(means, place, "|", color=look["color"], markersize=16, markeredgewidth=2.5, label=look["label"])
        panel.set_xlabel(label)
        panel.xaxis.set_major_formatter(PERCENT)
    axes[0].set_yticks(range(len(RELATIONS)), [folded(name) for name in RELATIONS])
    axes[0].invert_yaxis()
    legend_below(fig)
    return fig


def caption(pairs: pd.DataFrame) -> Caption:
    """What decides: whether initial weights or text make neurons recur."""
    own = pairs[pairs["stage"] == "decayed"]
    share, index = (over_pairs(own, name).set_index("relation") for name in SHOWN)
    same, other = share["mean"][SAME], share["mean"][OTHER]
    title = f"{percent(same)} of neurons recur with shared initial weights, {percent(other)} without"
    same_text, other_text = (percent(share["mean"][name]) for name in (SAME_ELSEWHERE, OTHER_ELSEWHERE))
    own_index, other_index = percent(index["mean"][SAME], 0), percent(index["mean"][OTHER])
    text = (
        "Eight small models; dots are pairs of models, bars their means. With the same text in another order, after "
        f"the decay, **{percent(same)}** of the neurons recur if initial weights are shared ({_interval(share, SAME)}, "
        f"95 % over pairs), and **{percent(other)}** if not ({_interval(share, OTHER)}). With another text they are "
        f"{same_text} and {other_text}. Best matches have the same "
        f"index in {own_index} of the neurons with shared initial weights, in {other_index} without."
    )
    alt = f"Dots for {len(by_pair(own, list(SHOWN)))} pairs of models in five rows by what they share, in two panels."
    return Caption(title, text, f"{alt} {title}.")


def _interval(over: pd.DataFrame, relation: str) -> str:
    return f"{percent(max(0.0, over['low'][relation]))} to {percent(over['high'][relation])}"


def table(pairs: pd.DataFrame) -> pd.DataFrame:
    """Means over pairs of decayed models with 95 % intervals, in words, a row for each relation."""
    own = pairs[pairs["stage"] == "decayed"]
    found = {column: over_pairs(own, column).set_index("relation").reindex(RELATIONS) for column in HEADS}
    made = {"the two models share": RELATIONS, "pairs": found["share"]["pairs"].to_numpy()}
    for column, head in HEADS.items():
        words = "{:.3f}".format if column == "mean_excess" else percent
        means, halves = found[column]["mean"], found[column]["high"] - found[column]["mean"]
        made[head] = [f"{words(mean)} ± {words(half)}" for mean, half in zip(means, halves, strict=True)]
    return pd.DataFrame(made)
