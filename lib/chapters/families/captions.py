"""Chapter 4 in words: from what `lib.chapters.families.summary` computes to titles, sentences and alternative texts.

As in `lib.display.captions`, every number is computed, and there are words for the cases in which there is nothing to show.
"""

import numpy as np
import pandas as pd

from lib.base.errors import capital, listed
from lib.chapters.families.scoring import (
    PUBLISHED_BEST,
    PUBLISHED_HIGH,
    PUBLISHED_LAYERS,
    PUBLISHED_LOW,
    PUBLISHED_POSITION,
    PUBLISHED_UNEXPLAINED,
    PUBLISHED_UNIVERSAL,
    PUBLISHED_WELL_EXPLAINED,
    UNEXPLAINED,
)
from lib.chapters.families.summary import FAMILIES, TOP
from lib.chapters.universality.properties import PUBLISHED_SOURCE
from lib.display.captions import Caption, count, percent, signed

PUBLISHED_DEPTHS = (
    f"In the paper, which looks among universal neurons only, word neurons sit {PUBLISHED_LAYERS['unigram']}, position neurons in {PUBLISHED_LAYERS['position']} and "
    f"previous-token neurons in {PUBLISHED_LAYERS['previous_token']}; no layer stands out for syntax neurons."
)
NO_PROSE = (
    "Syntax is labelled in English prose only, and none of the text is of a domain that `lib/text/domains.yaml` knows as such; a line there for each domain that is makes "
    "the labels, with a new pass over the text."
)


def labels(table: pd.DataFrame) -> str:
    """From `labels`: how many labels there are, by family, as a sentence."""
    by_family = table["family"].value_counts()
    parts = [f"{by_family[name]:,} of the family *{words}*" for name, words in FAMILIES.items() if name in by_family]
    return f"Every neuron is scored on **{len(table):,} labels**: {listed(parts)}."


def family_counts(counts: pd.DataFrame, reference: str) -> Caption:
    """From `family_summary.family_counts`: which families the reference's neurons fall into."""
    named = counts.set_index("family")
    total, explained = int(named["all"].sum()), named["all"].drop(UNEXPLAINED)
    share = explained.sum() / total
    title = f"{percent(share, 0)} of the neurons of seed {reference} are explained better than a random direction"
    largest = explained[explained > 0].sort_values(ascending=False)
    text = f"Of {total:,} neurons **{int(explained.sum()):,}** ({percent(share, 1)}) pass the level of chance. "
    if len(largest):
        text += (
            "The families are " + listed([f"{FAMILIES[name]} ({number:,})" for name, number in largest.items()]) + ". "
        )
    empty = [FAMILIES[name] for name, number in explained.items() if not number]
    if empty:
        text += f"No neuron falls into {listed(empty).replace(' and ', ' or ')}. "
    text += _group_sentence(named, TOP, f"the {named[TOP].sum():,} neurons of largest excess ({TOP})")
    universal = int(named["universal"].sum())
    text += (
        _group_sentence(named, "universal", count(universal, "universal neuron"))
        if universal
        else "No neuron is universal at this run's threshold."
    )
    return Caption(
        title, text.strip(), f"Bar chart of the share of neurons in each family, by group of neurons. {title}."
    )


def _group_sentence(named: pd.DataFrame, group: str, words: str) -> str:
    number = named[group]
    apart = (named[f"{group} share"] - named["all share"]).drop(UNEXPLAINED)
    own = number.sum() - number[UNEXPLAINED]
    over = apart[apart > 0].sort_values(ascending=False)
    sentence = f"Of {words} **{percent(own / number.sum(), 1)}** pass it"
    if len(over):
        name = over.index[0]
        sentence += f"; most over-represented is {FAMILIES[name]} ({percent(named.loc[name, f'{group} share'], 1)} against {percent(named.loc[name, 'all share'], 1)} of all)"
    return sentence + ". "


def published(table: pd.DataFrame) -> str:
    """From `family_summary.published_comparison`: a sentence beside the paper's counts for its universal neurons."""
    theirs = f"In the paper {PUBLISHED_UNEXPLAINED} of {PUBLISHED_UNIVERSAL:,} universal neurons of GPT2-medium ({percent(PUBLISHED_UNEXPLAINED / PUBLISHED_UNIVERSAL, 1)}) have a best score below {PUBLISHED_LOW:g} and about {PUBLISHED_WELL_EXPLAINED} ({percent(PUBLISHED_WELL_EXPLAINED / PUBLISHED_UNIVERSAL, 1)}) of at least {PUBLISHED_HIGH:g} ({PUBLISHED_SOURCE})."
    parts = []
    for row in table.itertuples():
        if not row.neurons:
            parts.append(f"no neuron is {row.group}")
            continue
        words = {"universal": "universal neurons", "rest": "all others"}.get(
            row.group, f"neurons of the {row.group} by excess"
        )
        parts.append(
            f"of {row.neurons:,} {words} **{row.low:,}** ({percent(row.low / row.neurons, 1)}) are below {PUBLISHED_LOW:g} and {row.high:,} ({percent(row.high / row.neurons, 1)}) reach {PUBLISHED_HIGH:g}"
        )
    return f"{theirs} Here " + "; ".join(parts) + ". The scores here are held out, the paper's are not."


def scores(rows: pd.DataFrame, table: pd.DataFrame) -> Caption:
    """From one seed's families and `family_summary.held_out`: do scores hold on text that did not choose the label?"""
    passed = rows[rows["family"] != UNEXPLAINED]
    gap, own, first = (
        rows["gap"].median(),
        passed["gap"].median(),
        (rows["first_score"] - rows["first_held_out"]).median(),
    )
    title = f"Held-out scores differ from those of the choice by {signed(gap, 3)} in the median"
    text = (
        f"The median gap between the score on the half that chose the label and on the held-out half is **{signed(gap, 4)}** over all "
        f"{len(rows):,} neurons"
        + (f" and {signed(own, 4)} over the explained ones" if len(passed) else "")
        + f"; where the family is chosen on the first half, too, not by the best held-out score, it is {signed(first, 4)}. "
    )
    lost = table[(table["chosen"] > 0) & (table["held_out"] == 0)]
    kept = table[table["chosen"] > 0]
    if len(lost):
        text += f"With label and family chosen on one half, nothing is left on the other of {listed([f'{row.label} ({row.chosen})' for row in lost.itertuples()])}. "
    elif len(kept):
        weakest = kept.loc[(kept["held_out"] / kept["chosen"]).idxmin()]
        text += f"With label and family chosen on one half, no family vanishes on the other; the one that keeps least is {weakest['label']} ({weakest['held_out']:,} of the {weakest['chosen']:,} neurons that pass chance where they were chosen pass it there). "
    ties = int(rows["near_tie"].sum()) if "near_tie" in rows else 0
    if len(passed):
        text += f"For {ties:,} of {len(passed):,} explained neurons a label of another family comes within a tenth of the best score, so their family is a near-tie. "
    text += f"The best score of all is {rows['score'].max():.3f} (layer {rows.loc[rows['score'].idxmax(), 'layer']} neuron {rows.loc[rows['score'].idxmax(), 'neuron']}, {rows.loc[rows['score'].idxmax(), 'label']})."
    return Caption(
        title, text, f"Histogram of the best held-out scores and scatter against the scores of the choice. {title}."
    )


def chance(rows: pd.DataFrame, levels: pd.DataFrame) -> Caption:
    """From one seed's families and `family_chance`: what random directions reach with the same labels."""
    median, typical = rows["score"].median(), levels["median"].median()
    low, high = levels["chance"].min(), levels["chance"].max()
    title = f"The median neuron scores {median:.2f}, the median random direction {typical:.2f}"
    text = (
        f"A random direction of the same layer reaches {typical:.3f} in the median by the same choice among all labels, since labels that "
        f"move whole layers, such as the language, move any direction. The level that 95 % of them stay below lies between **{low:.3f}** "
        f"(layer {levels.loc[levels['chance'].idxmin(), 'layer']}) and **{high:.3f}** (layer {levels.loc[levels['chance'].idxmax(), 'layer']}); "
        f"{percent((rows['family'] != UNEXPLAINED).mean(), 1)} of the neurons are above it, where chance alone would put 5 %."
    )
    behind = levels.set_index("layer")["median"] > rows.groupby("layer")["score"].median()
    if behind.any():
        text += f" In {listed([f'layer {layer}' for layer in behind.index[behind]])} the median neuron scores less than the median random direction."
    return Caption(
        title, text, f"Box plots of best held-out scores by layer with the scores of rotated neurons. {title}."
    )


def by_layer(everyone: pd.DataFrame) -> Caption:
    """From `family_summary.layer_counts`: at what depth each family sits."""
    explained = everyone.drop(columns=UNEXPLAINED)
    share = explained.sum(axis=1) / everyone.sum(axis=1)
    title = f"Layer {share.idxmax()} has the largest share of explained neurons, {percent(share.max(), 0)}"
    parts = []
    for name in explained:
        own = explained[name]
        if own.sum():
            parts.append(f"{FAMILIES[name]} in layer {own.idxmax()} ({own.max():,} of {own.sum():,})")
    text = f"The share of explained neurons is largest in layer **{share.idxmax()}** ({percent(share.max(), 1)}) and smallest in layer {share.idxmin()} ({percent(share.min(), 1)}). "
    text += f"Each family has most neurons here: {listed(parts)}. " if parts else ""
    text += PUBLISHED_DEPTHS
    return Caption(
        title, text, f"Stacked bars of families by layer, for all neurons and for those of largest excess. {title}."
    )


def by_excess(rows: pd.DataFrame) -> Caption:
    """Do neurons that other seeds share have better explanations?"""
    explained = rows["family"] != UNEXPLAINED
    rank = rows["excess_corr"].corr(rows["score"], method="spearman")
    top = rows["excess_corr"].rank(ascending=False) <= len(rows) / 10
    shares = explained[top].mean(), explained[~top].mean()
    title = (
        f"{percent(shares[0], 0)} of the tenth with the largest excess pass chance, {percent(shares[1], 0)} of the rest"
    )
    text = f"The rank correlation of excess correlation and best held-out score is **{signed(rank)}** over {len(rows):,} neurons. Of the tenth with the largest excess {percent(shares[0], 1)} pass the level of chance, of the rest {percent(shares[1], 1)}."
    return Caption(title, text, f"Lines of the share of explained neurons by excess correlation. {title}.")


def seeds(shares: pd.DataFrame) -> Caption:
    """From `family_summary.seed_shares`: do seeds hold families in the same proportions?"""
    explained = shares.drop(columns=UNEXPLAINED)
    total = explained.sum(axis=1)
    if len(shares) < 2:
        title = "One seed: no comparison of seeds"
        return Caption(
            title,
            f"Seed {shares.index[0]} has {percent(total.iloc[0], 1)} explained neurons.",
            f"Dots of the share of each family. {title}.",
        )
    low, high = total.min(), total.max()
    title = f"From {percent(low, 0)} to {percent(high, 0)} of a seed's neurons are explained"
    spread = (explained.max() - explained.min()).sort_values(ascending=False)
    name = spread.index[0]
    text = (
        f"The share of explained neurons is {percent(low, 1)} in seed {total.idxmin()} and {percent(high, 1)} in seed {total.idxmax()}. "
        f"Seeds differ most in {FAMILIES[name]}: {percent(explained[name].min(), 1)} to {percent(explained[name].max(), 1)}. "
    )
    if len(shares) > 2:
        text += (
            f"The largest standard deviation over seeds of any family's share is {percent(explained.std().max(), 2)}."
        )
    return Caption(title, text.strip(), f"Dots of the share of neurons in each family, one per seed. {title}.")


def agreement(table: pd.DataFrame, references: int) -> Caption:
    """From `family_summary.agreement`: do matched neurons of two seeds answer to the same thing? `references` are the seeds that have families."""
    named = table.set_index("pairs_of")
    first = named.iloc[0]
    alt = "Bars of the share of matched pairs across seeds with the same family and label, with the share expected by chance."
    if references < 2:
        text = "Families are computed for seeds that serve as reference, here for one, so that those of matched neurons cannot be compared; `compare: all` asks it."
        return Caption("One seed has families: none to compare them with", text, alt)
    if not first["pairs"]:
        return Caption(
            "No explained neuron has a match", "There is no pair of matched neurons with an explained one.", alt
        )
    title = f"{percent(first['same_label'], 0)} of matched pairs share their label, {percent(first['chance_label'], 0)} would by chance"
    if not np.isfinite(first["chance_label"]):
        title = f"{percent(first['same_label'], 0)} of matched pairs share their label"
    text = (
        f"Of {first['pairs']:,.0f} best matches of an explained neuron in another seed **{percent(first['same_family'], 1)}** are of the same family "
        f"(chance {percent(first['chance_family'], 1)}) and **{percent(first['same_label'], 1)}** have the very same label (chance {percent(first['chance_label'], 1)}). "
    )
    strongest = named.iloc[1]
    text += f"Of the {strongest['pairs']:,.0f} strongest matches {percent(strongest['same_family'], 1)} share the family and {percent(strongest['same_label'], 1)} the label. "
    own = named[named.index.isin(FAMILIES) & (named["pairs"] >= 20)]
    if len(own):
        best = own["same_label"].idxmax()
        text += f"Among families with at least 20 pairs, {FAMILIES[best]} is the most universal: {percent(own.loc[best, 'same_label'], 1)} of its {own.loc[best, 'pairs']:,.0f} pairs share the label."
    return Caption(title, text.strip(), f"{alt} {title}.")


def examples_of(chosen: pd.DataFrame, family: str) -> Caption:
    """From `family_summary.shown`: the neurons that a family explains best."""
    words = FAMILIES[family]
    alt = f"Best neurons of the family {words}, with what they answer to."
    if chosen.empty:
        text = f"This run has no label of the family {words}, so no neuron is shown."
        return Caption(
            f"No label of the family {words} in this run", f"{text} {NO_PROSE}" if family == "syntax" else text, alt
        )
    best = chosen.loc[chosen["score"].idxmax()]
    own = int(chosen["assigned"].sum())
    title = f"{capital(words)}: the best score is {best['score']:.2f}, for {best['label']}"
    text = f"The best is layer {best['layer']} neuron {best['neuron']}, of which *{best['label']}* explains **{percent(best['score'], 1)}** of the variance on held-out text. "
    if own == len(chosen):
        text += "All neurons shown belong to this family."
    elif own:
        text += f"{capital(count(own, 'neuron'))} of the {len(chosen)} shown belong to this family; the others are explained better by another, or no better than chance."
    else:
        text += "None of the neurons shown belongs to this family: another explains them better, or chance does as well. They are the nearest that this seed has."
    if family in PUBLISHED_BEST:
        label, score = PUBLISHED_BEST[family]
        text += f" The paper's best neuron for *{label}* has {score:g}, not held out."
    return Caption(title if len(title) <= 95 else title[:94] + "…", text, f"{alt} {title}.")


def duplicates(table: pd.DataFrame, places: pd.DataFrame) -> str:
    """From `family_summary.near_duplicates` and `by_word_place`: a sentence on neurons that share a word."""
    if table.empty:
        text = "No two neurons of this seed are explained best by the same word."
    else:
        first = table.iloc[0]
        text = f"{capital(count(len(table), 'word'))} {'explains' if len(table) == 1 else 'explain'} more than one neuron of this seed; *{first['label']}* explains {first['neurons']}."
    spread = places.dropna(subset=["mean"]).groupby(["layer", "neuron", "label"])["mean"].agg(["min", "max", "size"])
    spread = spread[spread["size"] > 1]
    if len(spread):
        wide = (spread["max"] - spread["min"]).idxmax()
        text += f" Of those shown, layer {wide[0]} neuron {wide[1]} ({wide[2]}) depends most on where the token stands: its mean activation goes from {spread.loc[wide, 'min']:.2f} to {spread.loc[wide, 'max']:.2f}."
    return text


def position(chosen: pd.DataFrame, rows: pd.DataFrame) -> Caption:
    """The neurons whose firing tells most about the position (figure 19)."""
    alt = "Lines of the mean activation by position in the block, one panel a neuron."
    if chosen.empty:
        return Caption("No neuron to show", "There is no neuron whose firing could be related to position.", alt)
    best = chosen.iloc[0]
    number = int((rows["family"] == "position").sum())
    title = f"Firing tells at most {best['position_information']:.3f} bits about the position in the block"
    text = (
        f"The largest mutual information of firing and position is **{best['position_information']:.4f} bits**, of layer {best['layer']} neuron {best['neuron']}; "
        f"the median neuron has {rows['position_information'].median():.4f}. {capital(count(number, 'neuron'))} of this seed "
        f"{'is' if number == 1 else 'are'} explained best by position, universal or not. The paper, which looks among universal neurons only, finds {PUBLISHED_POSITION} position "
        f"neurons in GPT2-small, and position neurons in {PUBLISHED_LAYERS['position']}."
    )
    return Caption(title, text, f"{alt} {title}.")
