"""Captions of chapter 4, families of neurons, from what `lib.chapters.families.summary` computes."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from lib.base.errors import capital, listed
from lib.chapters.families import scoring
from lib.chapters.families.scoring import UNEXPLAINED
from lib.chapters.families.summary import EXPLAINED, FAMILIES, LOWER_HALF, TOP, whose
from lib.display.captions import Caption, count, percent, signed

MAX_TITLE = 130  # characters
MAX_LEFT_OUT = 3  # labels that are named
ALIKE = 0.05  # shares of layers that differ by less are about the same
FEWEST_PAIRS = 20  # below, a family's agreement is not named
NO_PROSE = "Syntax is labelled only in domains that are known as English prose (`domains` in the parameters)."


def _tenth(share: float) -> str:
    return percent(share, 1)


def _whole(share: float) -> str:
    return percent(share, 0)


def _range(low: float, high: float) -> str:
    return _whole(high) if _whole(low) == _whole(high) else f"{_whole(low)} to {_whole(high)}"


def _name(row) -> str:
    return f"layer {row['layer']} neuron {row['neuron']}"


def labels(table: pd.DataFrame, left_out: Sequence[str] = (), run: str = "", sampled: tuple[int, int] = (0, 0)) -> str:
    """How many labels there are, by family; `table` is labels.parquet. `left_out` are labels that the statistics of
    the run do not know. `sampled` are the counted tokens that labels are known on, and all of the text."""
    by_family = table["family"].value_counts()
    parts = [f"{by_family[name]:,} for {words}" for name, words in FAMILIES.items() if name in by_family]
    text = f"Every neuron is scored on **{len(table):,} labels**: {listed(parts)}."
    if sampled[0] < sampled[1]:
        text += f" Scores are estimated on **a sample of {sampled[0]:,}** of the text's {sampled[1]:,} counted tokens."
    if left_out:
        names = listed(f"*{one}*" for one in left_out[:MAX_LEFT_OUT])
        text += (
            f" Left out: {count(len(left_out), 'label')} added after the pass over the text, such as {names}. "
            f"To include all labels, run `make clean RUN={run}` and `make report RUN={run}`."
        )
    return text


def family_counts(counts: pd.DataFrame, reference: str) -> Caption:
    """Which families the reference's neurons fall into."""
    named = counts.set_index("family").loc[list(EXPLAINED)]
    total, explained = counts["all"].sum(), named["all"].sort_values(ascending=False)
    title = f"{_whole(explained.sum() / total)} of the neurons of seed {reference} exceed the chance level"
    title += f", which {_whole(1 - scoring.CHANCE_QUANTILE)} of rotated neurons do"
    largest = [f"{FAMILIES[name]} ({number:,})" for name, number in explained.head(3).items() if number]
    text = f"**{explained.sum():,}** of {count(total, 'neuron')} exceed the chance level"
    text += f"; the largest families are {listed(largest)}. " if largest else ". "
    text += f"{_whole(named[f'{TOP} share'].sum())} of the {TOP} by excess exceed it"
    universal = counts["universal"].sum()
    if universal:
        text += f", and {_whole(named['universal share'].sum())} of the {count(universal, 'universal neuron')}."
    else:
        text += ". No neuron is universal at this run's threshold."
    return Caption(title, text, f"Bars: share of neurons in each family, by group of neurons. {title}.")


def published(table: pd.DataFrame) -> pd.DataFrame:
    """`summary.published_comparison` beside the paper's counts, in words."""
    counts = scoring.PUBLISHED_UNIVERSAL, scoring.PUBLISHED_UNEXPLAINED, scoring.PUBLISHED_WELL_EXPLAINED
    rows = [("paper's universal (GPT2-medium)", *counts), *table[["group", "neurons", "low", "high"]].to_numpy()]
    heads = ["neurons", "number", f"best score below {scoring.PUBLISHED_LOW:g}", f"{scoring.PUBLISHED_HIGH:g} or more"]
    cells = [
        (group, f"{total:,}", *(f"{part:,} ({_tenth(part / total)})" if total else "–" for part in parts))
        for group, total, *parts in rows
    ]
    return pd.DataFrame(cells, columns=heads)


def scores(rows: pd.DataFrame, held_out: pd.DataFrame) -> Caption:
    """Do scores hold on text that did not choose the label? `held_out` is `summary.held_out_counts`."""
    above = rows[rows["first_score"] > rows["chance"]]
    title, text = "No neuron exceeds the chance level on the blocks that choose its label", ""
    if len(above):
        kept = (above["first_held_out"] > above["chance"]).mean()
        title = f"{_whole(kept)} of the neurons above chance on the text that chose their label are so on held-out text"
        change = signed((above["first_held_out"] - above["first_score"]).median(), 3)
        text = f"**{len(above):,}** neurons exceed the chance level on the even blocks, which chose label and family. "
        text += f"**{_whole(kept)}** exceed it on the odd ones; the median change of their score is {change}. "
    kept = held_out[held_out["chosen"] > 0]
    lost = kept[kept["held_out"] == 0]
    if len(lost):
        families = listed(f"{row.label} ({row.chosen})" for row in lost.itertuples())
        text += f"None of {families} exceeds chance on the odd ones. "
    elif len(kept):
        weakest = kept.loc[(kept["held_out"] / kept["chosen"]).idxmin()]
        left = f"{weakest['held_out']:,} of {count(weakest['chosen'], 'neuron')}"
        text += f"Every family keeps some; {weakest['label']} keeps the smallest share, {left}. "
    explained = rows[rows["family"] != UNEXPLAINED]
    if len(explained) and "near_tie" in rows:
        ties = f"{explained['near_tie'].sum():,} of {len(explained):,}"
        text += f"For {ties} explained neurons another family's score is within 10 % of the best."
    text = text.strip() or f"{title}."
    return Caption(title, text, f"Histogram of held-out scores, and scatter against the chosen ones. {title}.")


def chance_level(rows: pd.DataFrame, levels: pd.DataFrame) -> Caption:
    """What rotated neurons reach with the same labels; `levels` is family_chance.parquet."""
    by_layer = levels.set_index("layer")
    median, rotated = rows["score"].median(), levels["median"].median()
    title = f"The median neuron scores {median:.2f}, the median rotated one {rotated:.2f}"
    explained, level = (rows["family"] != UNEXPLAINED).mean(), by_layer["chance"]
    text = (
        "Boxes: quartiles of each layer's neurons; whiskers: 5th and 95th percentile. The chance level lies between "
        f"{level.min():.3f} (layer {level.idxmin()}) and {level.max():.3f} (layer {level.idxmax()}). "
        f"**{_whole(explained)}** of the neurons exceed it; by chance 5 % would."
    )
    behind = by_layer.index[by_layer["median"] > rows.groupby("layer")["score"].median()]
    if len(behind):
        text += (
            f" In {listed(f'layer {layer}' for layer in behind)} the median neuron scores below the median rotated one."
        )
    if not levels["nonlinear"].all():
        text += " These are gated neurons, whose activations were rotated without the nonlinearity: a lower level."
    return Caption(title, text, f"Box plots of held-out scores by layer, with those of rotated neurons. {title}.")


def families_by_layer(everyone: pd.DataFrame) -> Caption:
    """At what depth each family sits; `everyone` is `summary.layer_counts`."""
    explained = everyone[list(EXPLAINED)]
    share = explained.sum(axis=1) / everyone.sum(axis=1)
    high, low = share.idxmax(), share.idxmin()
    title = f"Layer {high} has the largest share of explained neurons, {_whole(share.max())}"
    if share.max() - share.min() < ALIKE:
        title = f"All layers have about the same share of explained neurons, {_range(share.min(), share.max())}"
    text = (
        f"**{_whole(share[high])}** of the neurons are explained in layer {high}, {_whole(share[low])} in layer {low}. "
        "Each layer has its own chance level."
    )
    fullest = [
        f"{FAMILIES[name]}, layer {own.idxmax()} ({own.max():,} of {own.sum():,})"
        for name, own in explained.items()
        if own.any()
    ]
    text += f" The layer with most neurons of each family: {'; '.join(fullest)}." if fullest else ""
    return Caption(title, text, f"Stacked bars of families by layer, of all neurons and of the {TOP}. {title}.")


def explained_by_excess(rows: pd.DataFrame) -> Caption:
    """Are neurons that other seeds share better explained?"""
    explained = rows["family"] != UNEXPLAINED
    top = rows["excess_corr"].rank(ascending=False) <= len(rows) / 10
    shares = _whole(explained[top].mean()), _whole(explained[~top].mean())
    title = f"{shares[0]} of the top 10 % by excess exceed the chance level, {shares[1]} of the rest"
    rank = signed(rows["excess_corr"].corr(rows["score"], method="spearman"))
    text = (
        "Neurons are grouped into tenths by excess correlation. The rank correlation of excess and best held-out score "
        f"is **{rank}**."
    )
    return Caption(title, text, f"Lines: share of explained neurons by excess correlation. {title}.")


def seed_shares(shares: pd.DataFrame) -> Caption:
    """Do seeds have families in the same proportions?"""
    explained = shares[list(EXPLAINED)]
    total = explained.sum(axis=1)
    low, high, alt = total.idxmin(), total.idxmax(), "Dots: share of neurons in each family, one per seed."
    if len(shares) < 2:
        text = f"Seed {low} has {_tenth(total[low])} explained neurons."
        return Caption("One seed: no comparison of seeds", text, alt)
    title = f"From {_whole(total[low])} to {_whole(total[high])} of a seed's neurons are explained"
    least, most = explained.min(), explained.max()
    name = (most - least).idxmax()
    text = (
        f"In seed {low} {_tenth(total[low])} of the neurons are explained, in seed {high} {_tenth(total[high])}. "
        f"Seeds differ most in {FAMILIES[name]}: {_tenth(least[name])} to {_tenth(most[name])}."
    )
    return Caption(title, text, f"{alt} {title}.")


def family_agreement(table: pd.DataFrame, references: int) -> Caption:
    """Do matched neurons respond to the same thing? `references` is the number of seeds that have families."""
    named = table.set_index("pairs_of")
    pairs = named.iloc[0]
    alt = "Bars: share of matched pairs with the same family and label, with the chance level."
    if references < 2:
        text = (
            "Families exist for seeds that serve as reference, here one; `compare: all` makes every seed a reference."
        )
        return Caption("Only one seed has families, so that none can be compared", text, alt)
    if not pairs["pairs"]:
        return Caption("No explained neuron has a match", "There is no pair to compare.", alt)
    known, weak = np.isfinite(pairs["chance_label"]), named.loc[LOWER_HALF]
    title = f"{_whole(pairs['same_label'])} of matched pairs share their label"
    title += f" (chance {_whole(pairs['chance_label'])})" if known else ""
    text = (
        f"Of {pairs['pairs']:,.0f} best matches of an explained neuron "
        f"**{_tenth(pairs['same_label'])}** share its label"
        + (f" (chance {_tenth(pairs['chance_label'])})" if known else "")
        + f", and {_tenth(pairs['same_family'])} its family"
        + (f" (chance {_tenth(pairs['chance_family'])})." if known else ".")
    )
    if weak["pairs"]:
        title += f", {_whole(weak['same_label'])} in the half with the lower scores"
        text += f" Of the half with the lower scores **{_tenth(weak['same_label'])}** share the label."
    families = named[named.index.isin(FAMILIES) & (named["pairs"] >= FEWEST_PAIRS)]
    if len(families):
        best = families["same_label"].idxmax()
        share = _whole(families.loc[best, "same_label"])
        text += f" Pairs of {FAMILIES[best]} agree most: {share} share the label."
    return Caption(title, text, f"{alt} {title}.")


def best_neurons(chosen: pd.DataFrame, family: str) -> Caption:
    """The neurons that a family explains best; `chosen` is `summary.best_neurons`."""
    words = FAMILIES[family]
    alt = f"Best neurons of the family {words}, and what they respond to."
    if chosen.empty:
        text = f"This run has no label of the family {words}, so that no neuron is shown."
        text += f" {NO_PROSE}" if family == "syntax" else ""
        return Caption(f"No label of the family {words} in this run", text, alt)
    own = chosen["assigned"].sum()
    best = (chosen[chosen["assigned"]] if own else chosen).nlargest(1, "score").iloc[0]
    title = f"{capital(words)}: the best score is {best['score']:.2f}, for {best['label']}"
    explained = f"**{_whole(best['score'])}** of the held-out variance of {_name(best)}"
    text = f"The label *{best['label']}* explains {explained}"
    if not own:
        title += f", of {whose(best)}"
        text += f", {whose(best, '*')}"
    if family == "syntax" and best.get("context_score", 0) > 0:
        text += f", and *{best['context_label']}* alone {_whole(best['context_score'])}"
    if family in scoring.PUBLISHED_BEST:
        label, score = scoring.PUBLISHED_BEST[family]
        text += f" (the paper's best neuron for *{label}*: {score:g}, not held out)"
    if own == len(chosen):
        text += ". All neurons shown belong to this family."
    else:
        belong = f"{own} of the {len(chosen)} neurons shown" if own else "None of the neurons shown"
        text += f". {belong} {'belongs' if own < 2 else 'belong'} to this family"
        text += "; the others score higher in another one or are unexplained."
    return Caption(title if len(title) <= MAX_TITLE else f"{title[: MAX_TITLE - 1]}…", text, f"{alt} {title}.")


def word_neurons(chosen: pd.DataFrame, shared: pd.DataFrame, places: pd.DataFrame) -> Caption:
    """The neurons of one word; `shared` is `summary.shared_words`, `places` `summary.activation_by_word_place`."""
    caption = best_neurons(chosen, "unigram")
    text = f" {capital(count(len(shared), 'word'))} {'explains' if len(shared) == 1 else 'explain'} several neurons"
    text += f", {shared['label'].iloc[0]} {shared['neurons'].iloc[0]} of them" if len(shared) else ""
    means = places.dropna(subset=["mean"]).groupby(["layer", "neuron", "label"])["mean"].agg(["min", "max", "size"])
    means = means[means["size"] > 1]
    if len(means):
        layer, neuron, label = widest = (means["max"] - means["min"]).idxmax()
        low, high = means.loc[widest, ["min", "max"]]
        text += (
            f". Place matters most for layer {layer} neuron {neuron} ({label}): its mean activation ranges from "
            f"{low:.2f} to {high:.2f}"
        )
    return caption._replace(text=f"{caption.text}{text}.")


def activation_by_position(chosen: pd.DataFrame, rows: pd.DataFrame) -> Caption:
    """The neurons whose firing tells most about the position (figure 19)."""
    alt = "Lines: mean activation by position in the block, a panel a neuron."
    if chosen.empty:
        return Caption("No neuron to show", "No neuron's firing can be related to position.", alt)
    best, number = chosen.iloc[0], (rows["is_universal"] & (rows["family"] == "position")).sum()
    median = rows["position_information"].median()
    title = f"Firing carries at most {best['position_information']:.2f} bits of information about position"
    text = (
        f"Firing of {_name(best)} has **{best['position_information']:.2f} bits** of mutual information with position, "
        f"firing of the median neuron {median:.4f}. Position is the family of {count(number, 'universal neuron')} of "
        f"this seed; the paper finds {scoring.PUBLISHED_POSITION} in GPT2-small."
    )
    return Caption(title, text, f"{alt} {title}.")
