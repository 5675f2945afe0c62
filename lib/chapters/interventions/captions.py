"""What the figures of chapter 06 show, in words: from their tables to titles, sentences and alternative texts.

Every number is computed; where an effect is missing, the sentence says so.
"""

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from lib.base.errors import capital
from lib.chapters.interventions.candidates import NullSpace, late_neurons
from lib.chapters.interventions.neuron_sets import CHOSEN, MOST, UNIVERSAL, Ranking, first_layer, ranking
from lib.chapters.interventions.single_neurons import FIXED_FREQUENCY, FROZEN_SCALE, Removed, at_largest_value, removed
from lib.display.captions import Caption, count, p_words, percent, signed, signed_percent
from lib.display.claims import SIGNIFICANT

NULL_DEPTH = 0.1  # largest singular value of a null space, as a share of the median one
SINK_RATIO = 2.0  # other tokens' ‖W_O v‖ over that of BOS in the median head, above which BOS is an attention sink
FEW_LATE = "There are too few neurons in the last layers for candidates and controls."


def name_of(row) -> str:
    """A neuron as the paper writes it: L4.313."""
    return f"L{int(row.layer)}.{int(row.neuron)}"


def pair_name(row: pd.Series) -> str:
    """A neuron and the head that it acts on: L4.3594 → L5H0."""
    return f"{name_of(row)} → L{int(row['head_layer'])}H{int(row['head'])}"


def unsupported(reason: str) -> str:
    """What the chapter leaves out for models that interventions do not support."""
    return f"**Left out for these models:** everything that needs interventions. {capital(reason)}"


def _number(number: int, noun: str, one: str, many: str) -> str:
    """1 neuron has, 2 neurons have, at the start of a sentence."""
    return f"{capital(count(number, noun))} {one if number <= 1 else many}"


def _named(chosen: pd.DataFrame) -> str:
    return ", ".join(name_of(row) for row in chosen.itertuples())


def _range(values: pd.Series) -> str:
    return f"{signed(values.min(), 3)} to {signed(values.max(), 3)}"


def entropy_selection(weights: pd.DataFrame, chosen: pd.DataFrame, space: NullSpace) -> Caption:
    """From one seed's `weight_columns` and candidates: who satisfies the rule, how much lies in the null space."""
    late = late_neurons(weights)
    alt = "Scatter plots of logit variance and of null-space share against norm of w_out, for the last layers' neurons."
    if chosen.empty:
        title = "No neuron writes anything in the last layers"
        return Caption(title, "All output weights of the last layers are 0.", alt)
    neurons = _number(int(late["entropy"].sum()), "neuron", "has", "have")
    title = f"{neurons} large norm and small logit variance in the last layers"
    norm = chosen["null_share"].mean(), late["null_share"].mean()
    text = (
        f"Candidates: {_named(chosen)}. Their mean share $\\rho({space.basis.shape[1]})$ where $W_U$ reads least is "
        f"**{norm[0]:.2f}** against {norm[1]:.2f} for the last layers and {space.chance:.2f} for a random direction."
    )
    if space.depth >= NULL_DEPTH:
        depth = f"{percent(space.depth, 0)} of the median one"
        text += f" But **$W_U$ has no null space here**: the largest singular value of these directions is {depth}."
    return Caption(title, text, f"{alt} {title}.")


def fixed_activation(table: pd.DataFrame) -> Caption:
    """From `fixed_activations` (figures 7, 25): do the candidates change entropy more than the controls do?"""
    alt = "Line plots of the change of scale, entropy, loss and reciprocal rank against the fixed activation."
    top = at_largest_value(table)
    own, others = top[top["group"] == "entropy"], top[top["group"] == "control"]
    if own.empty or others.empty:
        return Caption("No candidates or no controls to compare", FEW_LATE, alt)
    beyond = own[own["entropy_change"].abs() > others["entropy_change"].abs().max()]
    text = (
        f"Held at {top['value'].iloc[0]:g} on {int(top['tokens'].iloc[0]):,} tokens, the candidates change the entropy "
        f"by **{_range(own['entropy_change'])}** nats, the controls by **{_range(others['entropy_change'])}**."
    )
    if beyond.empty:
        title = "No candidate changes entropy more than every control does"
        return Caption(title, f"{text} So this run shows no clear entropy neuron.", f"{alt} {title}.")
    title = f"{_number(len(beyond), 'candidate', 'changes', 'change')} entropy more than every control"
    calm = int((beyond["reciprocal_rank_change"].abs() < others["reciprocal_rank_change"].abs().median()).sum())
    exceed = _number(len(beyond), "candidate", "exceeds", "exceed")
    text += f" **{exceed}** every control, {calm} of them with less change of the rank than the median control."
    return Caption(title, text, f"{alt} {title}.")


def _removes(found: Removed, effect: str) -> str:
    difference = "too few neurons to compare"
    if np.isfinite(found.p_value):
        significant, more = found.p_value < SIGNIFICANT, "more" if found.delta > 0 else "less"
        difference = f"{f'clearly {more}' if significant else 'no clear difference'} ({p_words(found.p_value)})"
    return (
        f"removes **{signed_percent(found.candidates)}** of the median candidate's effect on {effect} and "
        f"**{signed_percent(found.controls)}** of the median control's: {difference}."
    )


def mean_ablation(table: pd.DataFrame) -> Caption:
    """From `mean_ablations`: how much of an effect goes through the final scale, how much along token frequency."""
    alt = "Scatter plots of mean-ablation effects: total against direct, with the final scale or the frequency fixed."
    if table.empty:
        return Caption("No neuron to ablate", FEW_LATE, alt)
    scale = removed(table, "entropy", FROZEN_SCALE, "entropy")
    frequency = removed(table, "kl_unigram", FIXED_FREQUENCY, "frequency")
    gone = signed_percent(scale.candidates) if scale.candidates > 0 else "nothing"
    title = f"Freezing the final scale removes {gone} of the median candidate's effect on entropy"
    if np.isnan(scale.candidates):
        title = "No candidate's mean ablation changes entropy"
    text = (
        f"Freezing the final scale {_removes(scale, 'entropy')} Fixing the projection on the frequency direction "
        f"{_removes(frequency, 'KL(prediction ‖ unigram)')}"
    )
    if min(*scale[:2], *frequency[:2]) < 0:
        text += " A negative share means that the effect grows."
    if max(*scale[:2], *frequency[:2]) > 1:
        text += " Above 100 % the effect changes sign."
    return Caption(title, text, f"{alt} {title}.")


def frequency_selection(weights: pd.DataFrame, chosen: pd.DataFrame) -> str:
    """The token-frequency candidates, and their cosines with the frequency direction beside the other neurons'."""
    if chosen.empty:
        return "No neuron of the last layers changes any logit."
    cosines, median = chosen["frequency_share"].abs(), late_neurons(weights)["frequency_share"].abs().median()
    return (
        f"The token-frequency candidates are {_named(chosen)}. Their logit effects have an absolute cosine of "
        f"**{cosines.min():.2f}** to **{cosines.max():.2f}** with the frequency direction, against "
        f"{median:.2f} for the median neuron of the last layers."
    )


def matched_ablation(table: pd.DataFrame) -> Caption:
    """From `matched_ablations`: do a neuron's best matches in other seeds change entropy as it does?"""
    alt = "Scatter plot of the change of entropy by a neuron's mean ablation against that by its best match's."
    if table.empty:
        text = "No ablated neuron has a best match in another seed whose mean activation is known."
        return Caption("No matches to compare", text, alt)
    parts, found = [], {}
    for group, name in (("entropy", "candidates"), ("control", "controls")):
        own = table[table["group"] == group]
        one, other = own["reference_change"], own["entropy_change"]
        if len(own) >= 3 and one.nunique() > 1 and other.nunique() > 1:
            found[group] = signed(spearmanr(one, other).statistic)
            same = percent(float((np.sign(one) == np.sign(other)).mean()), 0)
            parts.append(f"**{found[group]}** for the {name}, the same sign in **{same}** of {len(own)} pairs")
    title = "Too few matches of the candidates to compare their effects"
    if "entropy" in found:
        beside = f" (controls {found['control']})" if "control" in found else ""
        title = f"Effects on entropy of candidates and matches: rank correlation {found['entropy']}{beside}"
    text = f"Rank correlation of the effects of a neuron and its match: {'; '.join(parts) or 'too few pairs'}. "
    text += "Pairs that share a neuron are not independent, so there is no test."
    return Caption(title, text, f"{alt} {title}.")


def attention_scores(weights: pd.DataFrame, chance: pd.DataFrame) -> Caption:
    """From one seed's `weight_columns` (figure 8a): are neurons more aligned with BOS keys than random vectors are?

    `chance` is `tables.random_scores`: as many random vectors in the same layers.
    """
    alt = "Histogram of each neuron's best attention score beside random vectors', and scores by layer of the head."
    reached = weights[weights["attention_score"].notna()]
    if reached.empty:
        text = "The model has one layer, so that no head reads a neuron."
        return Caption("No later head that a neuron could reach", text, alt)
    deviations, largest = reached["attention_deviations"], chance["attention_deviations"].abs().max()
    beyond = int((deviations.abs() > largest).sum())
    title = f"{_number(beyond, 'neuron', 'is', 'are')} aligned with a later head's BOS key beyond chance"
    high, low = (
        f"{name_of(row)} for L{int(row['attention_head_layer'])}H{int(row['attention_head'])} "
        f"({signed(row['attention_deviations'], 1)})"
        for row in (reached.loc[deviations.idxmax()], reached.loc[deviations.idxmin()])
    )
    text = (
        f"Of {len(reached):,} neurons that a later head reads, **{beyond:,}** ({percent(beyond / len(reached), 1)}) "
        f"score beyond all of as many random vectors (±{largest:.1f} standard deviations). The highest score, of "
        f"{high}, means that the neuron *deactivates* the head; the lowest, of {low}, that it *activates* it."
    )
    return Caption(title, text, f"{alt} {title}.")


def value_norms(table: pd.DataFrame) -> Caption:
    """From `value_norms`: is BOS an attention sink, with values smaller than other tokens'?"""
    ratio, smaller = table["ratio"].median(), int((table["ratio"] > 1).sum())
    sink, above = ("an", "above") if ratio > SINK_RATIO else ("**no**", "not above")
    title = f"In the median head other tokens' ‖W_O v‖ is {ratio:.2f} times that of BOS"
    text = (
        f"In **{smaller}** of {count(len(table), 'head')} ‖W_O v‖ is smaller for BOS than for other tokens on average; "
        f"the median ratio is **{ratio:.2f}**, against 19.4 in the paper's GPT2-medium. BOS is {sink} attention sink "
        f"here: the ratio is {above} {SINK_RATIO:g}."
    )
    alt = "Scatter plot of the norm of W_O v for BOS against its mean over other tokens, one dot a head."
    return Caption(title, text, f"{alt} {title}.")


def query_paths(summary: pd.DataFrame) -> Caption:
    """From `ablation_summary` (figures 8b, 8c, 26): does cutting the path change attention as the score predicts?"""
    alt = "Scatter plots of the changes of attention to BOS and of the head's output norm against the activation."
    if summary.empty:
        text = "No head reads a neuron in this model, so that there is no path to cut."
        return Caption("No pair of neuron and head", text, alt)
    predicted = np.where(summary["role"] == "deactivation", -1.0, 1.0)  # cutting the path undoes it
    moved = int(((summary["bos_change_corr"] * predicted) > 0.5).sum())
    moving = _number(moved, "pair", f"of {len(summary)} moves", f"of {len(summary)} move")
    title = f"{moving} attention to BOS as the weights predict (|ρ| > 0.5)"
    parts = [
        f"{pair_name(row)} ({row['role']}) **{signed(row['bos_change_corr'])}**, **{signed(row['norm_change_corr'])}**"
        for _, row in summary.iterrows()
    ]
    text = (
        f"Correlations ρ of the activation with the changes of attention to BOS and of ‖W_O z‖, over "
        f"{int(summary['destinations'].max()):,} destinations: {'; '.join(parts)}. The best pair of the paper's "
        "GPT2-medium has −0.93 and +0.89."
    )
    return Caption(title, text, f"{alt} {title}.")


SETS = {UNIVERSAL: "universal neurons", MOST: f"the {MOST} by excess"}


def _above(found: Ranking) -> str:
    return f"**{found.below:g} of {found.draws}** random sets ({p_words(found.p_value)})"


def _importance_title(group: str, found: Ranking) -> str:
    sets = f"{found.below:g} of {found.draws} random sets"
    if found.p_value >= SIGNIFICANT:
        return f"Ablating {SETS[group]} does not clearly differ from random ones: above {sets}"
    return f"Ablating {SETS[group]} costs more loss than {'' if found.share > 0.5 else 'only '}{sets} do"


def _first_layer(held: pd.DataFrame) -> str:
    found = first_layer(held)
    if found is None:
        return ""
    half = f" ± {found.half:.4f}" if np.isfinite(found.half) else ""  # one block of text gives no error
    excess = f"The first layer's excess over random sets is {signed(found.excess, 4)} nats"
    difference = f"its difference from the largest of the others (layer {found.other})"
    return f" {excess}; {difference} is {signed(found.difference, 4)}{half}."


def importance(compared: pd.DataFrame) -> Caption:
    """From `neuron_sets.comparisons`: do a layer's universal neurons matter more than random ones, and where most?"""
    alt = "Dot plots by layer of the change of loss and of KL when universal neurons are ablated, over random sets."
    paragraphs, titles = [], []
    for group in CHOSEN:
        held = compared[(compared["group"] == group) & (compared["kind"] == "mean")]
        if held.empty:
            paragraphs.append(f"**Not compared:** {SETS[group]}; there are none, or too few others in their layer.")
            continue
        loss, kl_per_power = ranking(held, "loss_change"), ranking(held, "kl_per_power")
        paragraphs.append(
            f"**{capital(SETS[group])}** of {count(len(held), 'layer')}, held at their means, cost more loss than "
            f"{_above(loss)} and more KL per unit of power than {_above(kl_per_power)}."
            + ("" if titles else _first_layer(held))
        )
        titles.append(_importance_title(group, loss))
    title = titles[0] if titles else "No set of universal neurons to ablate beside random ones"
    return Caption(title, "\n\n".join(paragraphs), f"{alt} {title}.")


def property_agreement(table: pd.DataFrame, labels: dict[str, str]) -> Caption:
    """Which properties of a neuron's writing weights does its best match share? `labels` names the columns."""
    alt = "Dot plots of the correlation between a neuron's rank and its best match's by property, beside chance."
    known = table[table["correlation"].notna()]
    if known.empty:
        title = "No property is known of both neurons of any pair"
        return Caption(title, "No pair of matched neurons has a property to compare.", alt)
    beyond = known["correlation"] > known["chance_high"]
    shares = beyond.groupby(known["group"], sort=False).agg(["sum", "size"])
    parts = [f"**{number}** of {total} for {group} neurons" for group, number, total in shares.itertuples()]
    text = f"Number of properties in which best matches agree beyond every permutation: {', '.join(parts)}. "
    text += f"*Most universal* means the {MOST} by excess."
    best = known.loc[known["correlation"].idxmax()]
    alike = f"{labels[best['property']]}: {signed(best['correlation'])}"
    title = f"Best matches are most alike in the {alike} ({best['group']} neurons)"
    return Caption(title, text, f"{alt} {title}.")
