"""What the explorer notebook computes from a run for another threshold and for a typed label.

Both are algebra on tables and grouped moments, fast enough to follow a slider. Functions return tables, figures or
sentences; lib/lab/widgets.py has the controls.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from matplotlib.figure import Figure
from torch import Tensor

from lib.base.errors import InputError
from lib.chapters.families.scoring import ALL_TOKENS, EVEN, FEWEST_TOKENS, ODD, variance_reduction
from lib.chapters.universality.properties import layer_shares, shares_above
from lib.display.captions import count, percent
from lib.display.plots import COLOURS, NEUTRAL, PERCENT, layer_axis
from lib.labels.token_classes import looks, words

GRID = np.linspace(0, 1, 201)  # thresholds of the curve
SINGLE = ("token.count", "token.mean", *(f"{ALL_TOKENS}.{key}" for key in ("tokens", "center", "variance")))


# ---------------------------------------------------------------- another threshold


def threshold_figure(own: pd.DataFrame, threshold: float, layer: int) -> Figure:
    """Share of universal neurons by threshold and by layer, and the chosen layer's excess correlations.

    `own` has one seed's rows of neurons_all_seeds, with `is_universal` for the threshold.
    """
    fig = Figure(figsize=(11.0, 3.1))  # a fixed layout: a slider waits for it
    curve, depth, here = fig.subplots(1, 3)
    fig.subplots_adjust(left=0.085, right=0.99, bottom=0.19, top=0.89, wspace=0.33)
    colour = COLOURS["universal"]
    for axes in (curve, here):
        axes.axvline(threshold, color=colour, linestyle="--", linewidth=1)
    curve.plot(GRID, shares_above(own["excess_corr"], GRID), color=NEUTRAL)
    curve.plot([threshold], [own["is_universal"].mean()], "o", color=colour)
    curve.set(xlabel="threshold of the excess correlation", ylim=(0.5 / max(len(own), 1), 1.3), yscale="log")
    shares = layer_shares(own)
    for bar, one in zip(depth.bar(shares["layer"], shares["share"], color=colour), shares["layer"], strict=True):
        bar.set_alpha(1 if one == layer else 0.45)
    layer_axis(depth, int(own["layer"].max()) + 1)
    for axes in (curve, depth):
        axes.yaxis.set_major_formatter(PERCENT)
        axes.set(ylabel="share of universal neurons")
    rows = own[(own["layer"] == layer) & own["excess_corr"].notna()]
    if len(rows):
        values = rows["excess_corr"]
        edges = np.linspace(min(values.min(), threshold), max(values.max(), threshold) + 1e-9, 61)
        for name, part in (("other", values[~rows["is_universal"]]), ("universal", values[rows["is_universal"]])):
            here.stairs(np.histogram(part, edges)[0], edges, fill=True, color=COLOURS[name], label=name)
        here.legend(loc="upper right")
    here.set(xlabel="excess correlation", ylabel="neurons")
    for axes, title in zip((curve, depth, here), ("by threshold", "by layer", f"layer {layer}"), strict=True):
        axes.set_title(title, y=1.02)  # a given height saves a search for it
    return fig


def threshold_sentence(own: pd.DataFrame, seed: str, threshold: float, layer: int) -> str:
    """What `threshold_figure` shows, in numbers (Markdown)."""
    chosen, here = own["is_universal"], own["layer"] == layer
    number, within = int(chosen.sum()), int((chosen & here).sum())
    return (
        f"Above **{threshold:g}**, {count(number, 'neuron')} of {len(own):,} of seed {seed} "
        f"{'is' if number <= 1 else 'are'} universal (**{percent(chosen.mean())}**); in layer {layer} "
        f"{count(within, 'neuron')} of {int(here.sum()):,}."
    )


# ---------------------------------------------------------------- a typed label


def typed_label(typed: str, texts: Sequence[str]) -> Bool[np.ndarray, "groups"]:
    """Which tokens a typed label means: `/…/` is a regular expression for the whole token text with its leading space,
    anything else a list of words, in any case, with or without a leading space.

    Raises InputError for an empty label, a broken expression, and one that matches no token or every token.
    """
    typed = typed.strip()
    if not typed.strip("/ ,"):
        raise InputError(
            "Type words, such as `monday tuesday`, or a regular expression between slashes, such as `/ ?[0-9]+/`."
        )
    expression = len(typed) > 2 and typed.startswith("/") and typed.endswith("/")
    one = looks(typed, typed[1:-1]) if expression else words(typed, typed.replace(",", " "))
    member = np.array(one.members(list(texts)), dtype=bool)
    if not member.any() or member.all():
        matched = "Every token of the text is" if member.any() else "No token of the text is"
        raise InputError(f"{matched} `{typed}`; the label needs some tokens with it and some without.")
    return member


def label_scores(own: Mapping[str, Tensor], member: Bool[np.ndarray, "rows"]) -> pd.DataFrame:
    """Scores of one label (docs/method.md §5) in one layer, a row per neuron: `chosen_score` on even and `score` on odd
    blocks, and `difference` on odd ones, mean z with the label minus mean z without. NaN if too few tokens have or
    lack the label.

    `own` has the layer's compact grouped moments SINGLE, and `member` the rows of single tokens that carry the label.
    """
    rows = torch.from_numpy(np.flatnonzero(member))
    made: dict[str, Float[np.ndarray, "neurons"]] = {}
    for half, name in ((EVEN, "chosen_score"), (ODD, "score")):
        tokens, number = own[f"{ALL_TOKENS}.tokens"][half].double(), own["token.count"][half, rows].double()
        positive = number.sum()
        center, variance = (own[f"{ALL_TOKENS}.{key}"][half].double() for key in ("center", "variance"))
        if min(positive, tokens - positive) < FEWEST_TOKENS:
            made[name] = made["difference"] = np.full(len(center), np.nan)
            continue
        mean = number @ own["token.mean"][half][rows].double() / positive
        share = positive / tokens
        difference = (mean - center) / (1 - share)
        made[name] = variance_reduction(share, difference, variance).numpy()
        made["difference"] = difference.numpy()
    return pd.DataFrame(made)


def explained_sentence(scores: pd.DataFrame, typed: str, tokens: int, share: float, rare: int = 0) -> str:
    """What a typed label explains (Markdown). `scores` has layer, neuron, score and chance; `share` of all counted
    tokens carry the label, without its `rare` ones, which have no sums of their own."""
    known = scores.dropna(subset=["score"])
    start = f"`{typed}` matches {count(tokens, 'token')} of the text, **{percent(share)}** of what is counted."
    if rare:
        start += f" {count(rare, 'rare token')} more are summed with all *other* ones and count as without the label."
    if known.empty:
        needed = f"each half of the text needs {FEWEST_TOKENS} tokens with it and as many without"
        return f"{start} That is too few or too many to score: {needed}."
    passed, best = int((known["score"] > known["chance"]).sum()), known.loc[known["score"].idxmax()]
    return (
        f"{start} It explains {count(passed, 'neuron')} of {len(known):,} above chance level, best of all "
        f"layer {int(best['layer'])} neuron {int(best['neuron'])}: **{percent(best['score'], 1)}** of its variance on "
        f"held-out blocks (chance level {percent(best['chance'], 1)})."
    )
