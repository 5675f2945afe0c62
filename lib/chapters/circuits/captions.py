"""What chapter 5's figures show, in words: from its tables to titles, captions, alternative texts and tables of words.

Every number is computed, and there are words for roles that no neuron has.
"""

import re
from collections.abc import Sequence

import pandas as pd

from lib.base.errors import capital, listed
from lib.chapters.circuits.claims import share_above_layer, tested
from lib.chapters.circuits.role_agreement import TOP_WITH_ROLE
from lib.chapters.circuits.roles import PUBLISHED_CUTS, ROLES, last_layers, role_counts
from lib.chapters.universality.properties import TOP_SHARE
from lib.display.captions import Caption, count, p_words, percent
from lib.display.claims import SIGNIFICANT

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
        turned = int((raising & (circuits["role_learned"] == "suppression")).sum())
        text += (
            f" Tokens that were never learned ({_range(circuits['unlearned'], 0)} a seed) are left out. With them "
            f"{all_tokens:,} neurons would exceed the published kurtosis cut, and {turned:,} suppression neurons would "
            f"count among {count(raising.sum(), 'prediction neuron')}."
        )
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
    up, down = mean.iloc[-1]
    if len(mean) == 1:
        title = "One layer: no depth at which prediction gives way to suppression"
        text += f"By the calibrated cuts a seed has **{up:.1f}** prediction and **{down:.1f}** suppression neurons."
        return Caption(title, text, f"{alt} {title}.")
    own = counts[counts["layer"] == mean.index[-1]]
    led, seeds = int((own["suppression"] > own["prediction"]).sum()), len(own)
    if led == seeds:
        title = f"Suppression takes over in the last layer: {down:.3g} against {up:.3g} neurons a seed"
    elif led:
        title = f"Suppression outnumbers prediction in the last layer of {led} of {seeds} seeds"
    else:
        title = "No switch from prediction to suppression in the last layer"
    seen = "is seen" if led == seeds else f"is seen in {led} of {seeds} seeds" if led else "is not seen"
    early, late = (
        percent(part["suppression"].sum() / max(1e-9, part.to_numpy().sum()), 0) for part in (mean[:-1], mean[-1:])
    )
    text += (
        "By the calibrated cuts suppression neurons are "
        f"**{late}** of the prediction and suppression neurons in the last layer and {early} before it: "
        f"**the paper's switch to suppression {seen}**."
    )
    return Caption(title, text, f"{alt} {title}.")


def logit_effects(examples: pd.DataFrame) -> Caption:
    """Figures 5 and 23: what the chosen neurons' classes explain."""
    alt = "Histograms of logit effects over the vocabulary for chosen neurons, tokens of the neuron's class on top."
    if examples.empty:
        return Caption(
            "No neuron has a role", "No neuron of the reference seed has a role by the calibrated cuts.", alt
        )
    best, chance = examples.loc[examples["label_score"].idxmax()], examples["null_score"].iloc[0]
    above, most = int((examples["label_score"] > chance).sum()), percent(best["label_score"], 0)
    title = f"Token classes explain {above} of {count(len(examples), 'neuron')} beyond chance, “{best['label']}” {most}"
    text = (
        f"For **{above}** of the {count(len(examples), 'neuron')} shown, the best token class explains more than "
        f"{percent(chance, 1)}. One random direction in a thousand does so."
    )
    absent = [role for role in ROLES if role not in set(examples["role"])]
    if absent:
        text += f" The reference seed has no {' and no '.join(absent)} neuron."
    return Caption(title, text, f"{alt} {title}.")


def classes_by_role(circuits: pd.DataFrame) -> str:
    """How many neurons have a class, under the table of classes."""
    shares = [f"{percent(circuits['label'].notna().mean(), 1)} of all neurons"]
    for role in ROLES:
        named = circuits.loc[circuits["role_learned"] == role, "label"].notna()
        if len(named):
            shares.append(f"{percent(named.mean(), 1)} of {count(len(named), f'{role} neuron')}")
    return f"{capital(listed(shares))} have a class beyond chance (calibrated cuts, all seeds)."


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
    here, over = [], []
    for role, rows in found.items():
        own = rows[rows["seed"] == reference]
        if len(own):
            here.append(f"{int((own['percentile'] > 50).sum())} of {count(len(own), f'{role} neuron')}")
        if len(rows):
            shares = share_above_layer(rows)
            each = f" ({percent(shares.min(), 0)} to {percent(shares.max(), 0)})" if len(shares) > 1 else ""
            over.append(f"**{percent(shares.mean(), 0)}** of the {role} neurons{each}")
    seeds, known = found["suppression"]["seed"].nunique(), {role: rows for role, rows in found.items() if len(rows)}
    shares = [f"{percent(share_above_layer(rows).mean(), 0)} of {role}" for role, rows in known.items()]
    title = f"{listed(shares)} neurons fire more before their class than their layer's median"
    seen = f"In seed {reference} {listed(here)} do; the mean" if here else "The mean"
    text = (
        f"On {tokens:,} positions a neuron counts if it fires more before a token of its class than the median of the "
        f"other neurons of its layer. {seen} over {count(seeds, 'seed')} is {listed(over)}; the paper's claim needs "
        "more than half of the suppression neurons."
    )
    return Caption(title, text, f"{alt} {title}.")


def universal_roles(shares: dict[str, pd.DataFrame], threshold: float) -> Caption:
    """Are neurons with a role more often universal than others at their depth?"""
    table = shares["role_learned"]
    table = table[table["neurons"] > 0]
    more, fewer, universal, top = [], [], [], []
    for row in table.itertuples():
        neurons = count(row.neurons, f"{row.role} neuron")
        universal.append(f"**{row.universal:,}** of {neurons}")
        certainty = p_words(row.p_corrected) if row.agree else "seeds disagree"
        expected = f"expected at their depth: {percent(row.expected, 1)}; {certainty}"
        top.append(f"{percent(row.top_share, 1)} of {row.role} neurons ({expected})")
        if row.p_corrected < SIGNIFICANT:
            (more if row.top_share > row.expected else fewer).append(row.role)
    title = "No role is more or less universal than its depth explains"
    if more or fewer:
        said = [f"{word} {listed(roles)}" for word, roles in (("more", more), ("fewer", fewer)) if roles]
        title = f"In the top {100 * TOP_SHARE:g} % by excess are {', '.join(said)} neurons than depth explains"
    if len(table):
        title = f"{count(table['universal'].sum(), 'neuron')} with a role are universal. {title}"
    text = (
        f"{capital(listed(universal))} are universal (excess above {threshold:g}). The top {100 * TOP_SHARE:g} % by "
        f"excess contain {listed(top)}."
        if universal
        else "No neuron has a role."
    )
    alt = "Bar charts of the share of each role's neurons that are universal, and that have the largest excess."
    return Caption(title, text, f"{alt} {title}.")


def match_agreement(table: pd.DataFrame) -> Caption:
    """Does a neuron's best match in another seed do the same to the logits?"""
    counted = table[table["pairs"] > 0].set_index(["group", "property"])
    above = int((counted["agreement"] > counted["chance_high"]).sum())
    title = f"Best matches agree beyond chance in {above} of {count(len(counted), 'comparison')}"

    def against_chance(key: tuple[str, str]) -> str:
        row = counted.loc[key]
        return f"**{percent(row['agreement'], 1)}** (chance {percent(row['chance'], 1)}, {p_words(row['p_value'])})"

    said = [f"{against_chance((role, 'role'))} of {role} neurons" for role in ROLES if (role, "role") in counted.index]
    text = f"The best match has the same role for {listed(said)}." if said else "No neuron with a role has a match."
    key = TOP_WITH_ROLE, "token class"
    if key in counted.index:
        text += (
            f" Of the most universal neurons (top {100 * TOP_SHARE:g} % by excess) with a role, {against_chance(key)} "
            "match a neuron of the same class; their matches are also closer than those of other neurons."
        )
    alt = "Dot plots of the share of best matches with the same role, sign of skew and token class, beside chance."
    return Caption(title, text, f"{alt} {title}.")


def _range(values: pd.Series, digits: int = 2) -> str:
    low, high = f"{values.min():.{digits}f}", f"{values.max():.{digits}f}"
    return low if low == high else f"{low} to {high}"
