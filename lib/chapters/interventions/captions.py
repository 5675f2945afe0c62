"""What the figures of chapter 06 show, in words: from their tables to titles, sentences and alternative texts.

Every number is computed; where an effect is missing, the sentence says so. Figures show the reference seed, and
sentences add the other seeds.
"""

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from lib.base.errors import capital, listed
from lib.chapters.families.summary import FAMILIES
from lib.chapters.interventions.candidates import CONTROL_OF, LARGE, NullSpace, late_neurons
from lib.chapters.interventions.neuron_sets import UNIVERSAL, family_parts, shares_below
from lib.chapters.interventions.single_neurons import (
    FIXED_FREQUENCY,
    FROZEN_SCALE,
    TOTAL,
    Removed,
    at_largest_value,
    removed,
)
from lib.chapters.universality.properties import TOP_SHARE
from lib.display.captions import Caption, count, percent, signed, signed_percent

NULL_DEPTH = 0.1  # largest singular value of a null space, as a share of the median one
SINK_RATIO = 2.0  # other tokens' ‖W_O (v + b_V)‖ over BOS's in the median head, above which BOS is an attention sink
GROUPS = ("entropy", CONTROL_OF["entropy"])
NO_CANDIDATES = "No neuron of at least median norm in the last layers writes into the null space of W_U beyond chance."


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


def _span(values: pd.Series, digits: int = 3) -> str:
    """The smallest and the largest of the seeds' values."""
    low, high = (signed(value, digits) for value in (values.min(), values.max()))
    return low if low == high else f"{low} to {high}"


def entropy_selection(weights: pd.DataFrame, chosen: pd.DataFrame, space: NullSpace) -> Caption:
    """From one seed's `weight_columns` and candidates: who satisfies the rule, how much lies in the null space."""
    late = late_neurons(weights)
    alt = "Scatter plots of null-space share and of logit variance against norm of w_out, for the last layers' neurons."
    if late.empty:
        title = "No neuron writes anything in the last layers"
        return Caption(title, "All output weights of the last layers are 0.", alt)
    number = _number(
        int(late["entropy"].sum()), "neuron", "of at least median norm writes", "of at least median norm write"
    )
    title = f"{number} into the null space of W_U beyond chance"
    large = late[late["w_out_norm"] >= late["w_out_norm"].quantile(LARGE)]
    text = (
        f"A random direction has a share of {space.chance:.2f} where $W_U$ reads least, one in a thousand more than "
        f"{space.chance_bound:.2f}; {int(late['entropy'].sum())} of the {len(large):,} neurons of at least median norm "
        "have more."
    )
    if len(chosen):
        shares = chosen["null_share"]
        text += f" The candidates, {_named(chosen)}, have **{shares.min():.2f}** to **{shares.max():.2f}**."
    if space.depth >= NULL_DEPTH:
        depth = f"{percent(space.depth, 0)} of the median one"
        text += f" **$W_U$ has no true null space here**: the largest singular value of these directions is {depth}."
    return Caption(title, text, f"{alt} {title}.")


def fixed_activation(table: pd.DataFrame, reference: str) -> Caption:
    """From `fixed_activations` (figures 7, 25): do the candidates change entropy more than controls of equal norm?"""
    alt = "Line plots of the change of scale, entropy, loss and reciprocal rank against the fixed activation."
    top = at_largest_value(table)
    changes = top["entropy_change"].astype(float), top["reciprocal_rank_change"].astype(float).abs()
    entropy, rank = (own.groupby([top["seed"], top["group"]]).median().unstack().dropna() for own in changes)
    if not {"entropy", CONTROL_OF["entropy"]} <= set(entropy) or entropy.empty:
        return Caption("No candidates or no controls to compare", NO_CANDIDATES, alt)
    own = top[top["seed"] == reference]
    sizes = own["group"].value_counts().reindex(list(GROUPS), fill_value=0)
    title = f"No candidate in seed {reference}"
    text = ""
    if reference in entropy.index:
        ours, others = (entropy.loc[reference, group] for group in GROUPS)
        held = f"Held at {top['value'].iloc[0]:g}, the median candidate changes entropy by {signed(ours, 3)} nats"
        title = f"{held}, the control by {signed(others, 3)}; "
        title += f"reciprocal rank moves by {' and '.join(f'{rank.loc[reference, group]:.3f}' for group in GROUPS)}"
        text = (
            f"In seed {reference}, on {int(own['tokens'].iloc[0]):,} tokens, the median of {sizes.iloc[0]} candidates "
            f"changes the entropy by **{signed(ours, 3)}** nats, the median of {sizes.iloc[1]} controls by "
            f"**{signed(others, 3)}**."
        )
    differences, ranks = (one["entropy"] - one[CONTROL_OF["entropy"]] for one in (entropy, rank))
    text += (
        f" Candidate less control over {count(len(differences), 'seed')}: {_span(differences)} nats of entropy, "
        f"{_span(ranks, 4)} in the size of the change of reciprocal rank."
    )
    return Caption(title, text.strip(), f"{alt} {title}.")


def _removes(table: pd.DataFrame, reference: str, outcome: str, variant: str, group: str, effect: str) -> str:
    """How much a variant removes from candidates and controls of the reference, and Cliff's delta over seeds."""
    groups = group, CONTROL_OF[group]
    found = {seed: removed(own, outcome, variant, groups) for seed, own in table.groupby("seed")}
    own = found.get(reference, Removed(np.nan, np.nan, (0, 0), np.nan))
    deltas = pd.Series({seed: one.delta for seed, one in found.items()}, dtype=float).dropna()
    parts = [
        f"**{signed_percent(share)}** of the median {name}'s effect on {effect} ({number} with a clear one)"
        for share, name, number in zip(own[:2], ("candidate", "control"), own.neurons, strict=True)
        if number
    ]
    said = f"removes {' and '.join(parts)}" if parts else f"cannot be judged: nobody has a clear effect on {effect}"
    over = f"; Cliff's delta over {count(len(deltas), 'seed')} {_span(deltas, 2)}" if len(deltas) else ""
    return f"{said}{over}."


def mean_ablation(table: pd.DataFrame, reference: str) -> Caption:
    """From `mean_ablations`: how much of an effect goes through the final scale, how much along token frequency."""
    alt = "Scatter plots of mean-ablation effects: total against direct, with the final scale or the frequency fixed."
    own = table[table["seed"] == reference]
    if own.empty:
        return Caption("No neuron to ablate", NO_CANDIDATES, alt)
    scale = removed(own, "entropy", FROZEN_SCALE, ("entropy", CONTROL_OF["entropy"]))
    title = "No candidate's mean ablation clearly changes entropy"
    if scale.neurons[0]:
        gone = signed_percent(scale.candidates) if scale.candidates > 0 else "nothing"
        title = f"Freezing the final scale removes {gone} of the median candidate's effect on entropy"
    frequency = removed(own, "kl_unigram", FIXED_FREQUENCY, ("frequency", CONTROL_OF["frequency"]))
    if frequency.neurons[0]:
        title += f"; fixing the frequency {signed_percent(frequency.candidates)} of that on KL"
    along = _removes(table, reference, "kl_unigram", FIXED_FREQUENCY, "frequency", "KL(prediction ‖ unigram)")
    text = (
        f"In seed {reference}, freezing the final scale "
        f"{_removes(table, reference, 'entropy', FROZEN_SCALE, 'entropy', 'entropy')} "
        f"Fixing the projection on the frequency direction {along} An effect is clear if it is beyond two standard "
        "errors; above 100 % it changes sign, and a negative share means that it grows."
    )
    return Caption(title, text, f"{alt} {title}.")


def frequency_size(table: pd.DataFrame, reference: str) -> str:
    """How large the effects of token-frequency neurons are beside their controls', from `mean_ablations`."""
    total = table[(table["seed"] == reference) & (table["variant"] == TOTAL)]
    sizes = total["kl_unigram_change"].astype(float).abs().groupby(total["group"]).max()
    groups = "frequency", CONTROL_OF["frequency"]
    if not set(groups) <= set(sizes.index):
        return ""
    ours, others = (sizes[group] for group in groups)
    size = "larger than that of every control" if ours > 2 * others else "about as small as that of controls"
    size = "**negligible** beside that of controls" if ours <= others else size
    return (
        f"They are chosen by the alignment that fixing the projection tests, so that they act along it holds by "
        f"construction. Their effect is {size}: the largest change of KL(prediction ‖ unigram) is **{ours:.4f}** nats "
        f"by a candidate and **{others:.4f}** by a control of equal norm."
    )


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
    for group, name in zip(GROUPS, ("candidates", "controls"), strict=True):
        own = table[table["group"] == group]
        one, other = own["reference_change"], own["entropy_change"]
        if len(own) >= 3 and one.nunique() > 1 and other.nunique() > 1:
            found[group] = signed(spearmanr(one, other).statistic)
            same = percent(float((np.sign(one) == np.sign(other)).mean()), 0)
            parts.append(f"**{found[group]}** for the {name}, the same sign in **{same}** of {len(own)} pairs")
    title = "Too few matches of the candidates to compare their effects"
    if "entropy" in found:
        beside = f" (controls {found[GROUPS[1]]})" if GROUPS[1] in found else ""
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


def value_norms(table: pd.DataFrame, reference: str) -> Caption:
    """From `value_norms`: does a head that attends to BOS alone write little?"""
    own, medians = table[table["seed"] == reference], table.groupby("seed")["ratio"].median()
    ratio, smaller = own["ratio"].median(), int((own["ratio"] > 1).sum())
    sink, above = ("an", "above") if ratio > SINK_RATIO else ("**no**", "not above")
    title = f"In the median head other tokens' ‖W_O (v + b_V)‖ is {ratio:.2f} times that of BOS"
    text = (
        f"In **{smaller}** of {count(len(own), 'head')} of seed {reference} ‖W_O (v + b_V)‖ is smaller for BOS than on "
        f"average for other tokens; the median ratio is **{ratio:.2f}** ({medians.min():.2f} to {medians.max():.2f} "
        f"over {count(len(medians), 'seed')}), and {own['ratio_without_bias'].median():.2f} without the value bias. "
        f"BOS is {sink} attention sink here: the ratio is {above} {SINK_RATIO:g}."
    )
    alt = "Scatter plot of the norm of what a head writes for BOS against its mean over other tokens, one dot a head."
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


def importance(compared: pd.DataFrame, table: pd.DataFrame, reference: str) -> Caption:
    """From `neuron_sets.comparisons` and `ablations`: do universal neurons matter more than others of equal power?"""
    alt = "Dot plots by layer of the change of loss and of KL when universal neurons are ablated, over random sets."
    held = compared[compared["kind"] == "mean"]
    own = held[held["seed"] == reference]
    if held.empty:
        text = "**Not compared:** there are no universal neurons, or too few others in their layer."
        return Caption("No set of universal neurons to ablate beside random ones", text, alt)
    shares = shares_below(held)
    over = f"**{percent(shares.mean(), 0)}**" + (f" ({percent(shares.min(), 0)} to {percent(shares.max(), 0)})")
    title = f"Universal neurons cost more loss than {percent(shares.mean(), 0)} of random sets of equal power"
    text = f"Over {count(len(shares), 'seed')}, universal neurons cost more loss than {over} of the random sets."
    others = held[held["seed"] != reference]["blocks"]
    if len(own):
        below = own["loss_change_below"].sum() + own["loss_change_level"].sum() / 2
        text = (
            f"In seed {reference}, on {own['tokens'].iloc[0]:,} tokens of {count(own['blocks'].iloc[0], 'block')}, the "
            f"universal neurons of {count(len(own), 'layer')} cost more loss than **{below:g} of "
            f"{own['draws'].sum()}** random sets; the mean over {count(len(shares), 'seed')}"
            f"{f' (others: {others.min()} blocks)' if len(others) else ''} is {over}, and a half is chance. "
            f"The random sets have {own['power_low'].min():.2f} to {own['power_high'].max():.2f} times the power of "
            f"theirs.{_unmatched(own, table, reference)}"
        )
    return Caption(title, f"{text}{_first_layer(own, table, reference)}", f"{alt} {title}.")


def _unmatched(own: pd.DataFrame, table: pd.DataFrame, reference: str) -> str:
    """Which layers of the reference have universal neurons that no other neurons match in power."""
    sets = table[(table["seed"] == reference) & (table["kind"] == "mean") & (table["group"] == UNIVERSAL)]
    left = sorted(set(sets["layer"]) - set(own["layer"]))
    if not left:
        return ""
    return f" Left out, since no other neurons match their power: {listed([f'layer {layer}' for layer in left])}."


def _first_layer(own: pd.DataFrame, table: pd.DataFrame, reference: str) -> str:
    """What the first layer's set costs, and how much of it its largest family makes alone."""
    first = own[own["layer"] == 0]
    if first.empty:
        return ""
    row = first.iloc[0]
    half = f" ± {2 * row['loss_change_excess_error']:.4f}" if np.isfinite(row["loss_change_excess_error"]) else ""
    text = f"\n\nThe first layer's set costs **{signed(row['loss_change'], 4)}** nats, and beyond its random sets "
    text += f"{signed(row['loss_change_excess'], 4)}{half}."
    parts = family_parts(table)
    parts = parts[parts["seed"] == reference]
    if len(parts):
        part = parts.iloc[0]
        family = f"of family “{FAMILIES.get(part['family'], part['family'])}”"
        text += (
            f" Its {count(part['neurons'], 'neuron')} {family} alone cost **{signed(part['loss_change'], 4)}**, more "
            "than those of any other family."
        )
    return text


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
    text += (
        f"*Most universal* means the top {100 * TOP_SHARE:g} % by excess; their matches are closer than those of other "
        "neurons, so more agreement is expected."
    )
    best = known.loc[known["correlation"].idxmax()]
    alike = f"{labels[best['property']]}: {signed(best['correlation'])}"
    title = f"Best matches agree beyond chance in {beyond.sum()} of {len(known)} cases, most in the {alike}"
    return Caption(title, text, f"{alt} {title}.")
