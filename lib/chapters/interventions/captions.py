"""What the figures of chapter 05's causal runs show, in words: from their tables to titles, sentences and descriptions.

As in lib/display/captions.py every number is computed; where an effect is not there, the sentence says so.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import mannwhitneyu, spearmanr

from lib.base.errors import capital
from lib.chapters.interventions.candidates import NullSpace
from lib.chapters.interventions.neuron_sets import CHOSEN, DRAWS, MOST, UNIVERSAL, Ranking, first_layer, ranking
from lib.chapters.interventions.single_neurons import FIXED_FREQUENCY, FROZEN_SCALE, TOTAL
from lib.display.captions import Caption, count, p_words, percent, signed, signed_percent
from lib.display.claims import SIGNIFICANT

GROUPS = ("entropy", "frequency", "control")
SHALLOW = 0.1  # a null space is told as one if its largest singular value is below this share of the median
RESTING = 2.0  # other tokens' ‖W_O v‖ in units of that of BOS, in the median head, from which BOS is a resting place


def name_of(row) -> str:
    """A neuron as the paper writes it: L4.313."""
    return f"L{int(row.layer)}.{int(row.neuron)}"


def entropy_selection(weights: pd.DataFrame, chosen: pd.DataFrame, space: NullSpace) -> Caption:
    """From one seed's `weight_columns` and its candidates: who satisfies the rule, and how much lies in the null space."""
    late = weights[weights["entropy_score"].notna()]
    passing = int(late["entropy"].sum())
    k = space.basis.shape[1]
    alt = "Scatter plots of logit variance against norm of w_out, and of null-space share against norm, for the last layers' neurons."
    if chosen.empty:
        return Caption(
            "No neuron writes anything in the last layers", "All output weights of the last layers are 0.", alt
        )
    title = f"{capital(count(passing, 'neuron'))} of the last layers {'has' if passing <= 1 else 'have'} large norm and small logit variance"
    best = chosen.iloc[0]
    partner = f"L{int(best['partner_layer'])}.{int(best['partner_neuron'])}"
    text = (
        f"**{capital(count(passing, 'neuron'))}** of {len(late):,} in the last layers {'satisfies' if passing <= 1 else 'satisfy'} the rule; "
        f"the {count(len(chosen), 'neuron')} looked at below {'is' if len(chosen) == 1 else 'are'} {', '.join(name_of(row) for row in chosen.itertuples())}"
        f"{'' if chosen['entropy'].all() else ', of which ' + str(int(chosen['entropy'].sum())) + ' satisfy it'}. "
        f"The first, {name_of(best)}, has norm {best['w_out_norm']:.2f} and logit variance {best['vocab_var']:.2e}, where the layers' medians are "
        f"{late['w_out_norm'].median():.2f} and {late['vocab_var'].median():.2e}; the neuron most opposite to it is {partner} with cosine {signed(best['partner_cos'])}. "
        f"The share $\\rho(k)$ of their norm in the bottom {count(k, 'direction')} of $W_U$ is **{chosen['null_share'].mean():.2f}** for the candidates on average, {late['null_share'].mean():.2f} for "
        f"the last layers' neurons and {space.chance:.2f} for a random direction. "
    )
    if space.depth < SHALLOW:
        text += f"These directions are a null space: the unembedding reads the largest of them with {percent(space.depth, 1)} of its median singular value."
    else:
        text += (
            f"But **this unembedding has no null space** worth the name: it reads the largest of these directions with {percent(space.depth, 1)} of its median "
            "singular value, so that little can be written without changing logits."
        )
    return Caption(title, text, f"{alt} {title}.")


def at_top(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `fixed_activations` at the largest value of the grid, total effects only."""
    return table[(table["variant"] == TOTAL) & (table["value"] == table["value"].max())]


def _told(values: pd.Series, digits: int = 4) -> str:
    low, high = values.min(), values.max()
    return f"{signed(low, digits)} to {signed(high, digits)}"


def fixed_activation(table: pd.DataFrame) -> Caption:
    """From `fixed_activations` (figures 7, 25): do the candidates move scale and entropy more than the controls do?"""
    alt = "Line plots of the change of LayerNorm scale, entropy, loss and reciprocal rank against the fixed activation, candidates over controls."
    top = at_top(table)
    own, others = top[top["group"] == "entropy"], top[top["group"] == "control"]
    if own.empty or others.empty:
        return Caption(
            "No candidates or no controls to compare",
            "There are too few neurons in the last layers for candidates and controls.",
            alt,
        )
    beyond = own[own["entropy_change"].abs() > others["entropy_change"].abs().max()]
    value, tokens = top["value"].iloc[0], int(top["tokens"].iloc[0])
    if beyond.empty:
        title = "No candidate changes entropy more than every control does"
    else:
        title = f"{capital(count(len(beyond), 'candidate'))} of {len(own)} {'changes' if len(beyond) == 1 else 'change'} entropy more than every control"
    largest = own.loc[own["entropy_change"].abs().idxmax()]
    text = (
        f"Held at {value:g} on {tokens:,} tokens the candidates change the final scale by {_told(own['scale_change'])} (controls {_told(others['scale_change'])}), the entropy by "
        f"**{_told(own['entropy_change'])}** nats (controls **{_told(others['entropy_change'])}**), the loss by {_told(own['loss_change'])} nats (controls {_told(others['loss_change'])}) and the "
        f"reciprocal rank of the true token by {_told(own['reciprocal_rank_change'])} (controls {_told(others['reciprocal_rank_change'])}). "
        f"The largest change of entropy among the candidates is that of {name_of(largest)}, {signed(largest['entropy_change'], 4)} ± {largest['entropy_error']:.4f} (standard error over blocks); "
    )
    if len(beyond):
        calm = int((beyond["reciprocal_rank_change"].abs() < others["reciprocal_rank_change"].abs().median()).sum())
        text += (
            f"**{count(len(beyond), 'candidate')}** {'goes' if len(beyond) == 1 else 'go'} beyond every control, {calm} of them with less change of the true token's "
            "reciprocal rank than the controls' median: the paper's entropy neuron moves entropy and hardly the rank."
        )
    else:
        lowest = own.loc[own["entropy_change"].idxmin()]
        lower = lowest["entropy_change"] < min(0, others["entropy_change"].min())
        text += "**none changes it more than every control does**, so that this run shows no clear entropy neuron."
        text += f" ({name_of(lowest)} lowers it more than any control does.)" if lower else ""
    return Caption(title, text, f"{alt} {title}.")


def _largest(table: pd.DataFrame, outcome: str) -> dict[str, str]:
    """By group: the largest size of an outcome's total change."""
    change = table.loc[table["variant"] == TOTAL].set_index("group")[f"{outcome}_change"].abs()
    return {
        group: f"{change[change.index == group].max():.4f}" if group in change.index else "undefined"
        for group in GROUPS
    }


def share_taken(table: pd.DataFrame, outcome: str, variant: str) -> pd.Series:
    """Per neuron: the share of an outcome's total effect that is gone in a variant; NaN where there is no total effect."""
    wide = table.pivot_table(index=["group", "layer", "neuron"], columns="variant", values=f"{outcome}_change")
    total = wide[TOTAL].where(wide[TOTAL].abs() > 1e-9)
    return 1 - wide[variant] / total


class Taken(NamedTuple):
    """Shares of an effect that a variant takes away: the medians of candidates and controls, and Mann–Whitney's test between them.

    NaN where none of a group has an effect.
    """

    ours: float
    others: float
    delta: float  # Cliff's
    p_value: float


def taken(table: pd.DataFrame, outcome: str, variant: str, group: str) -> Taken:
    """Of the candidates in `group` beside the controls."""
    shares = share_taken(table, outcome, variant).dropna()
    ours, others = (shares[shares.index.get_level_values("group") == name] for name in (group, "control"))
    if not len(ours) or not len(others):
        return Taken(ours.median(), others.median(), np.nan, np.nan)
    test = mannwhitneyu(ours, others)
    return Taken(ours.median(), others.median(), 2 * test.statistic / (len(ours) * len(others)) - 1, test.pvalue)


def _acting(found: Taken, where: str) -> str:
    """Do candidates act along `where` more than other neurons do?"""
    if np.isnan(found.p_value):
        return f"whether the candidates act {where} more than other neurons do cannot be said"
    if found.p_value >= SIGNIFICANT:
        return f"this run cannot tell whether the candidates act {where} more than other neurons do ({p_words(found.p_value)})"
    return f"the candidates act {where} {'more' if found.delta > 0 else 'less'} than other neurons do ({p_words(found.p_value)})"


def mean_ablation(table: pd.DataFrame) -> Caption:
    """From `mean_ablations`: how much of an effect goes through the final scale, how much along the frequency direction."""
    alt = "Scatter plots of mean-ablation effects: total against direct with the final scale frozen, and with the frequency direction fixed."
    if table.empty:
        return Caption(
            "No neuron to ablate", "There are too few neurons in the last layers for candidates and controls.", alt
        )
    scale, frequency = (
        taken(table, "entropy", FROZEN_SCALE, "entropy"),
        taken(table, "kl_unigram", FIXED_FREQUENCY, "frequency"),
    )
    through = {"entropy": signed_percent(scale.ours), "control": signed_percent(scale.others)}
    along = {"frequency": signed_percent(frequency.ours), "control": signed_percent(frequency.others)}
    entropy, unigram = _largest(table, "entropy"), _largest(table, "kl_unigram")
    gone = through["entropy"] if scale.ours > 0 else "nothing"
    title = f"Freezing the final scale takes away {gone} of the median candidate's effect on entropy"
    if through["entropy"] == "undefined":
        title = "No candidate's mean ablation changes entropy"
    tokens = int(table["tokens"].iloc[0])
    text = (
        f"On {tokens:,} tokens, freezing the final scale takes away **{through['entropy']}** of the median entropy candidate's effect on entropy and **{through['control']}** of the median control's: "
        f"{_acting(scale, 'through the scale')}. The largest effects are {entropy['entropy']} nats among the candidates and "
        f"{entropy['control']} among the controls. Putting the logits' projection on the frequency direction back takes away **{along['frequency']}** of the median token-frequency "
        f"candidate's effect on KL(prediction ‖ unigram) and **{along['control']}** of the median control's: "
        f"{_acting(frequency, 'along the frequency direction')}. "
        f"The largest change of that divergence is {unigram['frequency']} nats among the candidates, {unigram['control']} among the controls."
    )
    if any(share.startswith("−") for share in (*through.values(), *along.values())):
        text += " A negative share means that the effect grows."
    return Caption(title, text, f"{alt} {title}.")


def matched_ablation(table: pd.DataFrame) -> Caption:
    """From `matched_ablations`: do a neuron's best matches in other seeds change entropy as it does?"""
    alt = "Scatter plot of the change of entropy by a neuron's mean ablation against that by its best match's in another seed."
    if table.empty:
        return Caption(
            "No matches to compare",
            "No neuron that was ablated has a best match in another seed whose mean activation is known.",
            alt,
        )
    told, found = [], {}
    for group, name in (("entropy", "candidates"), ("control", "controls")):
        own = table[table["group"] == group]
        if len(own) < 3 or own["reference_change"].nunique() < 2 or own["entropy_change"].nunique() < 2:
            told.append(f"For the {name} there are too few matches to tell.")
            continue
        found[group] = spearmanr(own["reference_change"], own["entropy_change"]).statistic
        same = float((np.sign(own["reference_change"]) == np.sign(own["entropy_change"])).mean())
        told.append(
            f"For the {name} the rank correlation of the two effects is **{signed(found[group])}** and the sign the same in **{percent(same, 0)}** of {len(own)} pairs "
            f"of neuron and match (median correlation of activations {own['corr'].median():.2f})."
        )
    if "entropy" not in found:
        title = "Too few matches of the candidates to compare their effects"
    else:
        beside = f" (controls {signed(found['control'])})" if "control" in found else ""
        title = f"Effects on entropy of candidates and of their matches: rank correlation {signed(found['entropy'])}{beside}"
    told.append("Pairs that share a neuron are not independent, so no test is made of these numbers.")
    return Caption(title, " ".join(told), f"{alt} {title}.")


def frequency_selection(weights: pd.DataFrame, chosen: pd.DataFrame) -> str:
    """One sentence on the token-frequency candidates: their cosines with the frequency direction beside the other neurons'."""
    late = weights[weights["entropy_score"].notna()]
    if chosen.empty:
        return "No neuron of the last layers changes any logit."
    return (
        f"The token-frequency candidates are {', '.join(name_of(row) for row in chosen.itertuples())}: the cosines of their logit effects with the frequency direction reach "
        f"from **{chosen['frequency_share'].abs().min():.2f}** to **{chosen['frequency_share'].abs().max():.2f}** in size, where the median neuron of the last layers has {late['frequency_share'].abs().median():.2f}."
    )


def attention_scores(weights: pd.DataFrame, chance: pd.DataFrame) -> Caption:
    """From one seed's `weight_columns` (figure 8a): are neurons aligned with BOS keys beyond what random vectors are?

    `chance` is `causal.random_scores`: as many random vectors in the same layers.
    """
    alt = "Histogram of each neuron's best attention score in standard deviations of random vectors, beside random vectors, and scores by layer of the head."
    reached = weights[weights["attention_score"].notna()]
    if reached.empty:
        return Caption(
            "No later head that a neuron could reach", "The model has one layer, so that no head reads a neuron.", alt
        )
    random_largest = chance["attention_deviations"].abs().max()
    beyond = reached[reached["attention_deviations"].abs() > random_largest]
    title = f"{capital(count(len(beyond), 'neuron'))} {'is' if len(beyond) <= 1 else 'are'} aligned with a later head's BOS key beyond chance"
    high, low = (
        reached.loc[reached["attention_deviations"].idxmax()],
        reached.loc[reached["attention_deviations"].idxmin()],
    )
    text = (
        f"Of {len(reached):,} neurons that a later head reads, **{len(beyond):,}** ({percent(len(beyond) / len(reached), 1)}) have a best score larger in size than the largest of as many random vectors, {random_largest:.1f} standard "
        f"deviations. The highest is that of {name_of(high)} for L{int(high['attention_head_layer'])}H{int(high['attention_head'])}, {signed(high['attention_score'], 3)} or {signed(high['attention_deviations'], 1)} standard deviations (more attention to BOS, the "
        f"head *deactivated*); the lowest that of {name_of(low)} for L{int(low['attention_head_layer'])}H{int(low['attention_head'])}, {signed(low['attention_score'], 3)} or {signed(low['attention_deviations'], 1)} (the head *activated*)."
    )
    return Caption(title, text, f"{alt} {title}.")


def value_norms(table: pd.DataFrame) -> Caption:
    """From `value_norms`: is BOS a resting place, with values smaller than other tokens'?"""
    ratio = table["ratio"].median()
    smaller = int((table["ratio"] > 1).sum())
    title = f"In the median head other tokens' ‖W_O v‖ is {ratio:.2f} times that of BOS"
    text = (
        f"In **{smaller}** of {count(len(table), 'head')} BOS has a smaller ‖W_O v‖ than other tokens have on average; the median ratio is **{ratio:.2f}** and the largest {table['ratio'].max():.1f}, where the paper reports "
        "a median of 19.4 for GPT2-medium. "
    )
    text += (
        "Attention to BOS is a resting place here: a head that attends to it writes little."
        if ratio > RESTING
        else f"So **attention to BOS is not the resting place that it is there**: the median head writes for BOS {percent(1 / ratio)} of what it writes for another "
        "token, and moving its attention there does not switch it off."
    )
    return Caption(
        title,
        text,
        f"Scatter plot of the norm of W_O v for BOS against its mean over other tokens, one dot a head. {title}.",
    )


def query_paths(summary: pd.DataFrame) -> Caption:
    """From `ablation_summary` with role and score (figures 8b, 8c, 26): does cutting the path undo what the score predicts?"""
    alt = "Scatter plots of the change of attention to BOS and of the norm of the head's output against the neuron's activation, one column a pair."
    if summary.empty:
        return Caption(
            "No pair of neuron and head", "No head reads a neuron in this model, so that there is no path to cut.", alt
        )
    sign = np.where(
        summary["role"] == "deactivation", -1.0, 1.0
    )  # a deactivation neuron's loss lowers attention to BOS
    as_told = (summary["bos_change_corr"] * sign) > 0.5
    strongest = summary.loc[summary["bos_change"].abs().idxmax()]
    title = f"{capital(count(int(as_told.sum()), 'pair'))} of {len(summary)} {'moves' if as_told.sum() <= 1 else 'move'} attention to BOS as the weights predict (|ρ| > 0.5)"
    parts = [
        f"{name_of(row)} → L{int(row.head_layer)}H{int(row.head)} ({row.role}): ρ(activation, Δp) = **{signed(row.bos_change_corr)}**, ρ(activation, Δ‖W_O z‖) = **{signed(row.norm_change_corr)}**"
        for row in summary.itertuples()
    ]
    text = (
        f"Over {int(summary['destinations'].max()):,} destinations in the second half of the context: {'; '.join(parts)}. "
        f"The largest mean change is that of {name_of(strongest)}: attention to BOS, {percent(strongest['bos'], 1)} on average, changes by {signed(100 * strongest['bos_change'])} percentage points, and "
        f"‖W_O z‖, {strongest['norm']:.2f} on average, by {signed(strongest['norm_change'], 3)}. In the paper the best pair of GPT2-medium has −0.93 and 0.89."
    )
    if not as_told.any():
        text += " **No pair of this run is a clear attention (de)activation neuron.**"
    return Caption(title, text, f"{alt} {title}.")


SETS = {UNIVERSAL: "universal neurons", MOST: f"the {MOST.removeprefix('top ')} of largest excess"}


def _against_random(found: Ranking) -> str:
    return f"above **{found.below:g} of {found.draws}** random sets ({p_words(found.p_value)})"


def _more(found: Ranking) -> bool:
    return found.p_value < SIGNIFICANT and found.share > 0.5


def _importance_title(group: str, found: Ranking) -> str:
    sets = f"{found.below:g} of {found.draws} random sets"
    if found.p_value >= SIGNIFICANT:
        return f"Ablating {SETS[group]} is not clearly unlike random ones: above {sets}"
    return (
        f"Ablating {SETS[group]} costs more loss than {sets} do"
        if _more(found)
        else f"Ablating {SETS[group]} costs less loss: more than only {sets}"
    )


def _first_layer(held: pd.DataFrame) -> str:
    found = first_layer(held)
    if found is None:
        return ""
    sure = "clearly" if abs(found.difference) > found.half else "not clearly"
    where = "above that of every other layer" if found.difference > 0 else f"below that of layer {found.other}"
    half = f" ± {found.half:.4f}" if np.isfinite(found.half) else ""  # one block of text gives no error
    return (
        f" The first layer's excess over random sets, {signed(found.excess, 4)} nats, is {sure} {where}: the others reach {signed(found.other_excess, 4)}, and the difference is "
        f"{signed(found.difference, 4)}{half}."
    )


def importance(compared: pd.DataFrame) -> Caption:
    """From `ablation.comparisons`: do a layer's universal neurons matter more than random ones, and where most?"""
    alt = "Dot plots by layer of the change of loss and of the KL divergence when sets of neurons are ablated, universal ones over grey random ones."
    told, titles = [], []
    for group in CHOSEN:
        own = compared[compared["group"] == group]
        held, zero = own[own["kind"] == "mean"], own[own["kind"] == "zero"]
        if held.empty:
            told.append(f"**Not compared:** {SETS[group]}; there are none, or too few others in their layer.")
            continue
        loss, kl = ranking(held, "loss_change"), ranking(held, "kl")
        titles.append(_importance_title(group, loss))
        few, many = held["neurons"].min(), held["neurons"].max()
        power = (held["residual_power"] / held["residual_power_random"]).median()
        told.append(
            f"**{capital(SETS[group])}**, {few if few == many else f'{few} to {many}'} in each of {count(len(held), 'layer')}: held at their means they change the loss by {_told(held['loss_change'])} nats, "
            f"as many random neurons on average by {_told(held['loss_change_random'])}. Over all layers they are {_against_random(loss)} in loss and {_against_random(kl)} in KL; held at zero, {_against_random(ranking(zero, 'loss_change'))} in loss. "
            f"In the median layer their ablation has **{power:.2f}** times the power of the random sets'; per unit of it they are {_against_random(ranking(held, 'kl_per_power'))} in KL.{_first_layer(held)}"
        )
    told.append(
        f"In arXiv 2508.00903, on GPT2-small, ablating the first layer's universal neurons hurts most. With {DRAWS} draws no single layer's p-value can be below {1 / (DRAWS + 1):.2f}, so that only the layers together are tested; "
        "and the test is on this text alone: a set of few neurons, each of which seldom fires, may rank otherwise on another."
    )
    title = titles[0] if titles else "No set of universal neurons to ablate beside random ones"
    return Caption(title, "\n\n".join(told), f"{alt} {title}.")


def importance_table(compared: pd.DataFrame) -> pd.DataFrame:
    """The mean ablations of `ablation.comparisons` as a reader's table: one row per set and layer, numbers as text.

    The columns "random" are means over random sets, the last ones say how many of these lie below the set.
    """
    held = compared[compared["kind"] == "mean"].sort_values(["group", "layer"], ascending=[False, True])
    columns = {"set": held["group"], "layer": held["layer"], "neurons": held["neurons"]}
    for outcome, label, digits in (
        ("loss_change", "Δloss [nats]", 4),
        ("kl", "KL [nats]", 4),
        ("residual_power", "power", 2),
    ):
        for name, source in ((label, outcome), (f"{label}, random", f"{outcome}_random")):
            columns[name] = [signed(value, digits).removeprefix("+") for value in held[source]]
    for outcome, label in {"loss_change": "Δloss", "kl": "KL", "kl_per_power": "KL per power"}.items():
        columns[f"of {DRAWS} below in {label}"] = held[f"{outcome}_below"]
    return pd.DataFrame(columns)


def property_agreement(table: pd.DataFrame, labels: dict[str, str]) -> Caption:
    """Which properties of a neuron's writing weights does its best match share? `labels` names the columns."""
    alt = "Dot plots of the correlation between a neuron's rank and its best match's for properties of writing weights, beside chance."
    known = table[table["correlation"].notna()]
    if known.empty:
        return Caption(
            "No property is known of both neurons of any pair",
            "No pair of matched neurons has a property to compare.",
            alt,
        )
    parts = []
    for group, rows in known.groupby("group", sort=False):
        beyond = rows["correlation"] > rows["chance_high"]
        best = rows.loc[rows["correlation"].idxmax()]
        parts.append(
            f"For {group} neurons **{int(beyond.sum())}** of {count(len(rows), 'property').replace('propertys', 'properties')} correlate more than every permutation; most "
            f"alike is the {labels[best['property']]} ({signed(best['correlation'])})."
        )
    entropy = known[(known["property"] == "entropy") & (known["group"] == "all")]
    if len(entropy):
        row = entropy.iloc[0]
        verdict = "more often than chance" if row["correlation"] > row["chance_high"] else "no more often than chance"
        parts.append(
            f"Matches of neurons that satisfy the entropy rule satisfy it too {verdict} (correlation {signed(row['correlation'], 3)}, {p_words(row['p_value'])})."
        )
    best = known.loc[known["correlation"].idxmax()]
    title = f"Best matches are most alike in the {labels[best['property']]}: {signed(best['correlation'])} ({best['group']} neurons)"
    return Caption(title, " ".join(parts), f"{alt} {title}.")
