"""What chapter 5's figures show, in words: from its tables to titles, captions, alternative texts and tables of words.

Every number is computed, and there are words for roles that no neuron has.
"""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from lib.base.errors import listed
from lib.chapters.circuits.claims import share_above_layer, tested
from lib.chapters.circuits.role_agreement import TOP_WITH_ROLE
from lib.chapters.circuits.roles import NO_ROLE, NULL_QUANTILE, PUBLISHED_CUTS, ROLES, last_layers, role_counts
from lib.chapters.universality.properties import TOP_SHARE
from lib.display.captions import Caption, count, p_words, percent, signed_percent
from lib.display.claims import FEWEST, SIGNIFICANT
from lib.display.over_seeds import in_brackets, over_seeds

SHARP = ["prediction", "suppression"]  # the roles of high kurtosis


def moments_by_layer(circuits: pd.DataFrame) -> Caption:
    """Figures 6a and 6b: how many neurons have logit effects beyond the cuts."""
    kurtosis, variance, total = circuits["learned_kurt"], circuits["learned_var"], len(circuits)
    published, beyond = (int((kurtosis > cut).sum()) for cut in (PUBLISHED_CUTS.kurtosis, circuits["null_kurt"]))
    wide, wider = (percent((variance > cut).mean(), 1) for cut in (PUBLISHED_CUTS.variance, circuits["null_var"]))
    share, calibrated = percent(beyond / total, 1), _range(circuits["null_var"], 4)
    title = f"{share} of the neurons pass the calibrated cut of kurtosis, {wider} that of variance"
    text = (
        f"Of {total:,} neurons of {count(circuits['seed'].nunique(), 'seed')}, **{published:,}** exceed the published "
        f"kurtosis cut of {PUBLISHED_CUTS.kurtosis:g} and **{beyond:,}** ({share}) the calibrated cut of "
        f"{_range(circuits['null_kurt'])}, which 0.1 % of random directions exceed. "
    )
    if (circuits["null_var"] > PUBLISHED_CUTS.variance).all():
        text += "In every seed random directions pass the published variance cut, so it says little here: "
    text += (
        f"{wide} exceed the variance of {PUBLISHED_CUTS.variance:g}, **{wider}** the calibrated cut of {calibrated}."
    )
    if circuits["unlearned"].any():
        all_tokens = int((circuits["vocab_kurt"] > PUBLISHED_CUTS.kurtosis).sum())
        raising = circuits["role_calibrated"] == "prediction"
        lowering = circuits["role_learned"] == "suppression"
        text += (
            f" Tokens that were never learned ({_range(circuits['unlearned'], 0)} a seed) are left out. With them "
            f"{all_tokens:,} neurons would exceed the published kurtosis cut"
        )
        if lowering.any():
            turned = f"{(raising & lowering).sum():,} of the {count(lowering.sum(), 'suppression neuron')}"
            text += f", and {turned} would turn into prediction neurons"
        text += "."
    alt = "Line plots of percentiles of kurtosis, skew and variance of logit effects by layer, with both cuts."
    return Caption(title, text, f"{alt} {title}.")


def skew_of_peaked(circuits: pd.DataFrame) -> Caption:
    """Figure 6c: the sign of the skew among neurons of high kurtosis in the last layers."""
    layers = last_layers(circuits["layer"].nunique())
    late = circuits[circuits["layer"].isin(layers)]
    parts, title = [], "No neuron of the last layers passes either cut"
    for name, cut in (("calibrated", late["null_kurt"]), ("published", PUBLISHED_CUTS.kurtosis)):
        by_layer = late[late["learned_kurt"] > cut].groupby("layer")["learned_skew"]
        shares = [f"{(skew < 0).sum():,} of {len(skew):,} in layer {layer}" for layer, skew in by_layer]
        if shares:
            title = f"Negative skew at high kurtosis ({name} cut): {', '.join(shares[-2:])}"
        nobody = f"no neuron of the last {count(len(layers), 'layer')} passes the {name} cut"
        parts.append(f"{listed(shares)} by the {name} cut" if shares else nobody)
    text = (
        f"Negative skew, hence suppression: {'; '.join(parts)}. In the paper's GPT2-medium prediction neurons lead in "
        "the first of the last four layers, suppression neurons in the last."
    )
    alt = "Histograms of the skew of logit effects for neurons of high kurtosis in the last layers, for both cuts."
    return Caption(title, text, f"{alt} {title}.")


def roles_by_layer(circuits: pd.DataFrame) -> Caption:
    """Does prediction give way to suppression at the end, as in the paper?"""
    alt = "Bar charts of prediction, suppression and partition neurons by layer, for both cuts."
    published = role_counts(circuits, "role_published")[list(ROLES)].sum()
    text = listed([count(published[role], f"{role} neuron") for role in ROLES])
    text = f"By the published cuts all seeds together have {text}. "
    counts = role_counts(circuits, "role_learned")
    mean = counts.groupby("layer")[SHARP].mean()
    if not mean.to_numpy().any():
        text += "No neuron passes the calibrated kurtosis cut either, so there is no switch to look for."
        return Caption("No prediction or suppression neuron by either cut", text, alt)
    if len(mean) == 1:
        up, down = mean.iloc[-1]
        title = "One layer: no depth at which prediction gives way to suppression"
        text += f"By the calibrated cuts a seed has **{up:.1f}** prediction and **{down:.1f}** suppression neurons."
        return Caption(title, text, f"{alt} {title}.")
    last = counts["layer"] == mean.index[-1]
    if not mean.iloc[-1].any():
        title = "No prediction or suppression neuron in the last layer"
        text += "By the calibrated cuts the last layer has neither prediction nor suppression neurons."
        return Caption(title, text, f"{alt} {title}.")
    own = counts[last].set_index("seed")[SHARP]
    found = over_seeds(own["suppression"] / own.sum(axis=1).replace(0, np.nan), "suppression_switch", signed_percent)
    early = counts.loc[~last, SHARP].sum()
    before = f"{percent(early['suppression'] / early.sum(), 0)} before it" if early.sum() else "without any before it"
    late = f"{percent(found.mean, 0)} of high-kurtosis neurons in the last layer"
    title = f"Suppression: {late}{in_brackets(found, '' if found.side else 'undecided')}, {before}"
    seen = ("the seeds cannot tell whether it is there", "every seed has it", "no seed has it")[found.side]
    text += f"The paper's switch needs more than half in the last layer; by the calibrated cuts **{seen}**."
    return Caption(title, text, f"{alt} {title}.")


def logit_effects(examples: pd.DataFrame, circuits: pd.DataFrame) -> Caption:
    """Figures 5 and 23: what the classes of the chosen neurons explain, and how many of `circuits` have one."""
    alt = "Histograms of logit effects over the vocabulary for chosen neurons, tokens of the neuron's class on top."
    if examples.empty:
        return Caption(
            "No neuron has a role", "No neuron of the reference seed has a role by the calibrated cuts.", alt
        )
    scores = examples.loc[examples["label_score"] > examples["null_score"], "label_score"]
    shown, above = count(len(examples), "neuron"), len(scores)
    title = f"None of the {shown} shown has a token class beyond chance"
    text = "No neuron of the reference seed with a role has a class. "
    if above:
        explained = f"{_percents(scores, 0)} of the variance of their logit effects"
        title = f"Neurons picked for having a token class: it explains {explained}"
        text = "The neurons shown were picked because they have a class. "
    if 0 < above < len(examples):
        text = f"Of the {shown} shown **{above}** {'has' if above == 1 else 'have'} a class; these are picked first. "
    roles = [role for role in ROLES if (circuits["role_learned"] == role).any()]
    have = [percent(circuits.loc[circuits["role_learned"] == role, "label"].notna().mean(), 1) for role in roles]
    text += f"Of all {listed(roles)} neurons, {listed([f'**{share}**' for share in have])} have one"
    text += f", of random directions {percent(1 - NULL_QUANTILE, 1)}."
    absent = [role for role in ROLES if role not in set(examples["role"])]
    if absent:
        text += f" The reference seed has no {' and no '.join(absent)} neuron."
    return Caption(title, text, f"{alt} {title}.")


def class_table(circuits: pd.DataFrame, number: int = 8) -> pd.DataFrame:
    """The most frequent token classes of each role: columns role, neurons, no class, most frequent classes."""
    rows = []
    for role in ROLES:
        own = circuits.loc[circuits["role_learned"] == role, "label"]
        frequent = own.value_counts().head(number)
        classes = ", ".join(f"{label} ({times:,})" for label, times in frequent.items())
        rows.append((role, len(own), int(own.isna().sum()), classes or "–"))
    return pd.DataFrame(rows, columns=["role", "neurons", "no class", "most frequent classes"])


def token_table(examples: pd.DataFrame, extremes: Sequence[tuple[list[str], list[str]]]) -> pd.DataFrame:
    """The tokens that the chosen neurons raise and lower most; `extremes` has both lists for each example."""
    table = examples[["role", "layer", "neuron", "label"]].rename(columns={"label": "class"})
    raised, lowered = (["\u00a0 ".join(tokens[side]) for tokens in extremes] for side in (0, 1))
    scores = [f"{score:.2f}" for score in examples["label_score"]]
    return table.assign(**{"score": scores, "raises most": raised, "lowers most": lowered})


def readable(token: str) -> str:
    """A token's text with blanks as ␣ and a sign that comes five times or more in a row written as “␣×12”."""
    return re.sub(r"(.)\1{4,}", lambda run: f"{run[1]}×{len(run[0])}", token.replace(" ", "␣"))


def next_token(table: pd.DataFrame, tokens: int, reference: str) -> Caption:
    """Figure 24: do suppression neurons fire more when the next token is one that they lower?"""
    alt = "Dot plots of mean activation and effect by whether the next token is in the neuron's class."
    found = {role: tested(table, role) for role in ("suppression", "prediction")}
    if found["suppression"].empty:
        text = "No seed has a suppression neuron whose class explains more than chance, so the claim cannot be tested."
        return Caption("No suppression neuron to test the paper's claim on", text, alt)
    words, over, here = [], [], []
    for role, rows in found.items():
        if rows.empty:
            continue
        shares = over_seeds(share_above_layer(rows), "suppression_fires", signed_percent)
        number, more = len(rows), int((rows["percentile"] > 50).sum())
        undecided = " (undecided)" if role == "suppression" and (not shares.side or number < FEWEST) else ""
        words.append(f"{role} {more} of {number}{'' if words else ' neurons'}{undecided}")
        over.append(f"**{percent(shares.mean, 0)}** of the {role} neurons{in_brackets(shares)}")
        own = rows[rows["seed"] == reference]
        if len(own):
            here.append(f"{int((own['percentile'] > 50).sum())} of {count(len(own), f'{role} neuron')}")
    title = f"More active before their class than their layer's median: {', '.join(words)}"
    text = (
        f"On {tokens:,} positions a neuron counts if its effect $d$ exceeds the median of its layer's other neurons. "
        f"{f'In seed {reference} {listed(here)} do. ' if here else ''}On average over seeds {listed(over)} do; the "
        "paper's claim needs more than half of the suppression neurons."
    )
    return Caption(title, text, f"{alt} {title}.")


def universal_roles(shares: dict[str, pd.DataFrame], threshold: float) -> Caption:
    """Are neurons with a role more often universal than others at their depth? Left by threshold, right by rank."""
    alt = "Bar charts of the share of each role's neurons that are universal, and that have the largest excess."
    table = shares["role_learned"]
    table = table[table["neurons"] > 0]
    if table.empty:
        return Caption("No neuron has a role", "No neuron has a role by the calibrated cuts.", alt)
    universal = [f"{percent(row.share, 1)} of {row.role}" for row in table.itertuples()]
    title = f"Universal: {', '.join(universal)} neurons; depth alone gives {_percents(table['expected_universal'])}"
    text = f"Left: universal neurons (excess above {threshold:g}), not tested."
    published = shares["role_published"].set_index("role")
    partition = published.loc["partition"]
    if partition["universal"] and not published.loc[SHARP, "neurons"].any():
        text += (
            f" By the published cuts {partition['universal']:,} of {count(partition['neurons'], 'partition neuron')} "
            "are universal: no neuron passes the kurtosis cut, so sharp neurons count as partition neurons."
        )
    top = listed([f"**{percent(row.top_share, 1)}** of the {row.role}" for row in table.itertuples()])
    text += f" Right: the top {100 * TOP_SHARE:g} % by excess has {top} neurons, where depth alone gives "
    text += f"{_percents(table['expected'])}."
    clear = table[table["p_corrected"] < SIGNIFICANT]
    most = f" (largest {p_words(clear['p_corrected'].max())})" if len(clear) else ""
    text += f" The difference is significant for {listed(clear['role']) if len(clear) else 'no role'}{most}."
    return Caption(title, text, f"{alt} {title}.")


def match_agreement(table: pd.DataFrame) -> Caption:
    """Does a neuron's best match in another seed do the same to the logits?"""
    alt = "Dot plots of the share of best matches with the same role, sign of skew and token class, beside chance."
    counted = table[table["pairs"] > 0].set_index(["group", "property"])
    said = counted.loc[[(role, "role") for role in ROLES if (role, "role") in counted.index]]
    title, text = "No neuron with a role has a match", ""
    if len(said):
        agreement, chance = _percents(said["agreement"], 0), _percents(said["chance"], 0)
        title = f"Neurons with a role match the same role {agreement} of the time (chance {chance})"
        beyond = int((said["agreement"] > said["chance_high"]).sum())
        reached = {len(said): "no permutation reached any of these shares", 0: "permutations reached every share"}
        text = f"For {listed([role for role, _ in said.index])} neurons the share is "
        text += f"{listed([f'**{percent(share, 1)}**' for share in said['agreement']])}; "
        text += f"{reached.get(beyond, f'permutations stayed below {beyond} of {len(said)} shares')}."
    if (NO_ROLE, "role") in counted.index:
        row = counted.loc[NO_ROLE, "role"]
        than = "about as often as by chance"
        if not row["chance_low"] <= row["agreement"] <= row["chance_high"]:
            than = f"{'less' if row['agreement'] < row['chance'] else 'more'} often than by chance"
        text += f" Neurons without a role match one without a role {than}: {percent(row['agreement'], 0)} "
        text += f"(chance {percent(row['chance'], 0)})."
    key = TOP_WITH_ROLE, "token class"
    if key in counted.index:
        row = counted.loc[key]
        text += (
            f" Of the most universal neurons (top {100 * TOP_SHARE:g} % by excess) with a role and a class, "
            f"**{percent(row['agreement'], 1)}** (chance {percent(row['chance'], 1)}) match a neuron of the same "
            "class; their matches are also closer than those of other neurons."
        )
    return Caption(title, text.strip() or "There are no pairs to compare.", f"{alt} {title}.")


def _percents(shares: pd.Series, digits: int = 1) -> str:
    """The smallest and the largest share."""
    low, high = percent(shares.min(), digits), percent(shares.max(), digits)
    return low if low == high else f"{low} to {high}"


def _range(values: pd.Series, digits: int = 2) -> str:
    low, high = f"{values.min():.{digits}f}", f"{values.max():.{digits}f}"
    return low if low == high else f"{low} to {high}"
