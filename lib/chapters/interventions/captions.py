"""What the figures of chapter 06 show, in words: from their tables to titles, sentences and alternative texts.

Every number is computed; where an effect is missing, the sentence says so. Figures show the reference seed, and
sentences add the other seeds.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from lib.base.errors import capital, listed
from lib.chapters.interventions.candidates import CONTROL_OF, LARGE, NullSpace, late_neurons
from lib.chapters.interventions.heads import PAIR, ablation_summary
from lib.chapters.interventions.single_neurons import FIXED_FREQUENCY, FROZEN_SCALE, TOTAL, at_largest_value, removed
from lib.chapters.universality.properties import TOP_SHARE
from lib.display.captions import Caption, count, percent, signed, signed_percent
from lib.display.claims import statements
from lib.display.over_seeds import in_brackets, over_seeds

NULL_DEPTH = 0.1  # largest singular value of a null space, as a share of the median one
GROUP_NAMES = {"all": "all neurons"}
LEAST_ATTENTION = 0.1  # of a head to BOS; a head with less has none to lose
CUTTING = {FROZEN_SCALE: "freezing the final scale", FIXED_FREQUENCY: "fixing the frequency"}
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
    large = late[late["w_out_norm"] >= late["w_out_norm"].quantile(LARGE)]
    beyond, depth = int(late["entropy"].sum()), percent(space.depth, 0)
    some = f"{beyond:,} of {count(len(large), 'neuron')} {'writes' if beyond == 1 else 'write'}"
    title = f"{some} beyond chance where W_U reads least, at {depth} of its usual strength"
    text = (
        f"Of random directions one in a thousand has a share above {space.chance_bound:.2f} (mean "
        f"{space.chance:.2f}). The title counts the neurons of at least median norm that have more."
    )
    if len(chosen):
        low, high = (percent(share, 0) for share in chosen["null_share"].agg(["min", "max"]) ** 2)
        text += f" The candidates, {_named(chosen)}, write **{low}** to **{high}** of their squared length there."
    if space.depth >= NULL_DEPTH:
        text += " **$W_U$ has no true null space here**: its largest singular value in these directions is "
        text += f"{depth} of the median one."
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
    parts = []
    if reference in entropy.index:
        sizes = own["group"].value_counts()
        medians = (
            f"**{signed(entropy.loc[reference, group], 3)}** for {count(sizes[group], name)}"
            for group, name in zip(GROUPS, ("candidate", "control"), strict=True)
        )
        spread = own.loc[own["group"] == GROUPS[1], "entropy_change"].astype(float)
        parts.append(
            f"In seed {reference}, on {int(own['tokens'].iloc[0]):,} tokens, the median change of entropy in nats is "
            f"{' and '.join(medians)}; single controls have {_span(spread)}."
        )
    else:
        parts.append(f"Seed {reference} has no candidate.")
    differences = [one[GROUPS[0]] - one[GROUPS[1]] for one in (entropy, rank)]
    beyond, nearer = (
        over_seeds(values, name, words)
        for values, name, words in zip(differences, ("entropy_entropy", "entropy_order"), (_three, _four), strict=True)
    )
    parts.append(
        f"Median candidate less median control over {count(len(entropy), 'seed')}: **{_three(beyond.mean)}** nats of "
        f"entropy{in_brackets(beyond)} and **{_four(nearer.mean)}** in the size of the change of reciprocal "
        f"rank{in_brackets(nearer)}."
    )
    said = [
        f"{verb} {'more' if found.mean > 0 else 'less'} than controls{in_brackets(found)}"
        for found, verb in ((nearer, "move reciprocal rank"), (beyond, "raise entropy"))
        if found.side
    ]
    open_ = [name for found, name in ((nearer, "reciprocal rank"), (beyond, "entropy")) if not found.side]
    title = f"Held at {top['value'].iloc[0]:g}, candidates {' and '.join(said)}" if said else ""
    if open_:
        undecided = f"for {' and '.join(open_)} the seeds cannot tell"
        title = f"{title}; {undecided}" if title else capital(undecided)
    return Caption(title, " ".join(parts), f"{alt} {title}.")


def _three(value: float) -> str:
    return signed(value, 3)


def _four(value: float) -> str:
    return signed(value, 4)


class _Carried(NamedTuple):
    """What a variant removes of one group's effect: in numbers of neurons, in words, and over seeds (Cliff's delta)."""

    clear: str
    text: str
    side: int


def _carried(table: pd.DataFrame, reference: str, name: str, tested: tuple[str, str, str]) -> _Carried:
    """`name` is the ledger's row, `tested` the outcome, the variant and the group of candidates."""
    outcome, variant, group = tested
    groups = group, CONTROL_OF[group]
    by_seed = {seed: removed(own, outcome, variant, groups) for seed, own in table.groupby("seed")}
    own, sizes = by_seed[reference], table[(table["seed"] == reference) & (table["variant"] == TOTAL)]["group"]
    clear = [f"{number} of {int((sizes == one).sum())}" for number, one in zip(own.neurons, groups, strict=True)]
    shares = [
        f"**{signed_percent(share)}** in the median {word}"
        for share, word in zip(own[:2], ("candidate", "control"), strict=True)
        if np.isfinite(share)
    ]
    text = f"{clear[0]} candidates and {clear[1]} controls have a clear effect"
    text += f", of which {CUTTING[variant]} removes {' and '.join(shares)}." if shares else "."
    deltas = pd.Series({seed: one.delta for seed, one in by_seed.items()}, dtype=float).dropna()
    found = over_seeds(deltas, name, signed)
    if len(deltas):
        agree = (deltas > 0).all() or (deltas < 0).all()
        undecided = "" if found.side else "undecided" if agree else "the seeds disagree"
        text += f" Cliff's delta over {count(len(deltas), 'seed')} is {signed(found.mean)}"
        text += f"{in_brackets(found, undecided)}."
    return _Carried(clear[0], text, found.side)


def mean_ablation(table: pd.DataFrame, reference: str) -> Caption:
    """From `mean_ablations`: how much of an effect goes through the final scale, how much along token frequency."""
    alt = "Scatter plots of mean-ablation effects: total against direct, with the final scale or the frequency fixed."
    if not (table["seed"] == reference).any():
        return Caption("No neuron to ablate", NO_CANDIDATES, alt)
    scale = _carried(table, reference, "entropy_through_scale", ("entropy", FROZEN_SCALE, "entropy"))
    along = _carried(table, reference, "frequency_direction", ("kl_unigram", FIXED_FREQUENCY, "frequency"))
    end = ("that the scale carries them is undecided", "the scale carries more", "the scale carries less")[scale.side]
    end += " of them than of controls'" if scale.side else ""
    title = f"Clear effects of {scale.clear} entropy and {along.clear} frequency candidates; {end}"
    text = (
        f"In seed {reference}, on entropy (left), {scale.text} On KL(prediction ‖ unigram) (right), {along.text} An "
        "effect is clear if it is beyond two standard errors. A share above 100 % means that the effect changes sign; "
        "a negative one, that it grows."
    )
    return Caption(title, text, f"{alt} {title}.")


def frequency_size(table: pd.DataFrame, reference: str) -> str:
    """How large the effects of token-frequency neurons are beside their controls', from `mean_ablations`."""
    total = table[(table["seed"] == reference) & (table["variant"] == TOTAL)]
    sizes = total["kl_unigram_change"].astype(float).abs().groupby(total["group"]).agg(["median", "max", "size"])
    groups = "frequency", CONTROL_OF["frequency"]
    if not set(groups) <= set(sizes.index):
        return ""
    ours, others = (sizes.loc[group] for group in groups)
    return (
        "They are chosen by the alignment that fixing the projection tests, so that they act along it holds by "
        f"construction. The median candidate changes KL(prediction ‖ unigram) by **{ours['median']:.5f}** nats, the "
        f"median control by **{others['median']:.5f}**. The largest change is {ours['max']:.4f} among "
        f"{count(ours['size'], 'candidate')} and {others['max']:.4f} among {count(others['size'], 'control')}."
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
    said, agree = [], []
    for group, name in zip(GROUPS, ("candidate", "control"), strict=True):
        own = table[table["group"] == group]
        one, other = own["reference_change"], own["entropy_change"]
        if own.empty:
            continue
        neurons, pairs = len(own.drop_duplicates(["layer", "neuron"])), count(len(own), "pair")
        agree.append(percent(float((np.sign(one) == np.sign(other)).mean()), 0))
        said.append(f"{pairs} of {count(neurons, name)} agree in sign in **{agree[-1]}**")
        if len(own) >= 3 and one.nunique() > 1 and other.nunique() > 1:
            said[-1] += f", rank correlation **{signed(spearmanr(one, other).statistic)}**"
    candidates = table[table["group"] == GROUPS[0]]
    number = len(candidates.drop_duplicates(["layer", "neuron"]))
    title = "No match of a candidate to compare"
    if number:
        beside = f" (controls {agree[1]})" if len(agree) > 1 else ""
        few = f"{number} candidates are" if number > 1 else "One candidate is"
        title = f"{few} too few to compare: the sign of the effect agrees in {agree[0]} of pairs{beside}"
    text = f"The change of entropy by a neuron and by its match: {'; '.join(said)}. "
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
    high, low = (reached.loc[deviations.idxmax()], reached.loc[deviations.idxmin()])
    heads_of = [f"L{int(row['attention_head_layer'])}H{int(row['attention_head'])}'s" for row in (high, low)]
    text = (
        f"Of {len(reached):,} neurons that a later head reads, **{beyond:,}** ({percent(beyond / len(reached), 1)}) "
        f"score beyond all of as many random vectors (±{largest:.1f} standard deviations). By its weights "
        f"{name_of(high)} should raise {heads_of[0]} attention to BOS ({signed(deviations.max(), 1)}), and "
        f"{name_of(low)} lower {heads_of[1]} ({signed(deviations.min(), 1)}). Cutting the path below tests this."
    )
    return Caption(title, text, f"{alt} {title}.")


def value_norms(table: pd.DataFrame, reference: str) -> Caption:
    """From `value_norms`: does a head that attends to BOS alone write little?"""
    own, medians = table[table["seed"] == reference], table.groupby("seed")["ratio"].median()
    ratio, smaller = own["ratio"].median(), int((own["ratio"] > 1).sum())
    title = f"In the median head other tokens' ‖W_O (v + b_V)‖ is {ratio:.2f} times that of BOS"
    less = "writes less" if medians.min() > 1 else "does not write less in every seed"
    (published,) = statements()["bos_resting"].values
    text = (
        f"A head that attends to BOS {less}: over {count(len(medians), 'seed')} the ratio in the median head is "
        f"**{medians.min():.2f}** to **{medians.max():.2f}**. In seed {reference} it is above 1 in {smaller} of "
        f"{count(len(own), 'head')}. Without the value bias it is {own['ratio_without_bias'].median():.2f}; in the "
        f"paper's GPT2-medium {published:g}."
    )
    alt = "Scatter plot of the norm of what a head writes for BOS against its mean over other tokens, one dot a head."
    return Caption(title, text, f"{alt} {title}.")


def query_paths(rows: pd.DataFrame) -> Caption:
    """From one seed's `query_paths` (figures 8b, 8c, 26): does cutting the path change attention as the score predicts?

    A head that gives BOS less than LEAST_ATTENTION has none to lose, and its pair is not tested.
    """
    alt = "Scatter plots of the changes of attention to BOS and of the head's output norm against the activation."
    summary = ablation_summary(rows)
    if summary.empty:
        text = "No head reads a neuron in this model, so that there is no path to cut."
        return Caption("No pair of neuron and head", text, alt)
    attends = summary["bos"] >= LEAST_ATTENTION
    tested, left = summary[attends], summary[~attends]
    predicted = np.where(tested["role"] == "deactivation", -1.0, 1.0)  # cutting the path undoes it
    moved = int(((tested["bos_change_corr"] * predicted) > 0.5).sum())
    least = percent(LEAST_ATTENTION, 0)
    title = f"No pair can be tested: the heads give BOS less than {least} of their attention"
    parts = []
    if len(tested):
        move = f"{'pair moves' if len(tested) == 1 else 'pairs move'} attention to BOS as the weights predict"
        title = f"{moved} of {len(tested)} testable {move} (|ρ| > 0.5)"
        title += f"; {len(left)} cannot be tested" if len(left) else ""
        spreads = rows.groupby(PAIR, sort=False)["bos_change"].std()
        parts.append("ρ is the correlation of a change with the activation, over ")
        parts[-1] += f"{int(tested['destinations'].max()):,} destinations."
    for _, row in tested.iterrows():
        bos, norm = (signed(row[f"{name}_change_corr"]) for name in ("bos", "norm"))
        parts.append(
            f"{pair_name(row)} ({row['role']}): **{bos}** for attention to BOS, whose changes have a standard "
            f"deviation of {spreads[tuple(row[PAIR])]:.3f}, and **{norm}** for ‖W_O z‖."
        )
    if len(left):
        named = listed([pair_name(row) for _, row in left.iterrows()])
        parts.append(f"Not tested, as the head gives BOS less than {least} of its attention: {named}.")
    published = [signed(statements()[name].values[0]) for name in ("deactivation_bos", "deactivation_norm")]
    parts.append(f"The best pair of the paper's GPT2-medium has {' and '.join(published)}.")
    return Caption(title, " ".join(parts), f"{alt} {title}.")


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
    best = known.loc[known.groupby("group", sort=False)["correlation"].idxmax()]
    named = [
        f"{labels[row.property]} ({GROUP_NAMES.get(row.group, row.group)}, {signed(row.correlation)})"
        for row in best.itertuples()
    ]
    title = f"Most alike: {', '.join(named)}" if beyond.any() else "No property is alike beyond chance in best matches"
    return Caption(title, text, f"{alt} {title}.")
