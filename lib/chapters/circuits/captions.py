"""What the figures of chapter 5's first half show, in words: from its tables to titles, sentences and descriptions.

As in lib/display/captions.py every number is computed, and there are words for roles that no neuron has.
"""

import re
from collections.abc import Sequence

import pandas as pd

from lib.base.errors import capital, listed
from lib.chapters.circuits.next_token import fire_more, tested
from lib.chapters.circuits.roles import PUBLISHED_CUTS, PUBLISHED_HIGH_KURTOSIS, ROLES, last_layers, role_counts
from lib.chapters.universality.properties import PUBLISHED_SOURCE
from lib.display.captions import Caption, count, p_words, percent, signed
from lib.display.claims import SIGNIFICANT


def moments_by_layer(circuits: pd.DataFrame) -> Caption:
    """Figures 6a and 6b: how far the distributions of logit effects reach beyond the cuts."""
    seeds = circuits["seed"].nunique()
    published = int((circuits["vocab_kurt"] > PUBLISHED_CUTS.kurtosis).sum())
    beyond = int((circuits["vocab_kurt"] > circuits["null_kurt"]).sum())
    wide = int((circuits["vocab_var"] > PUBLISHED_CUTS.variance).sum())
    wider = int((circuits["vocab_var"] > circuits["null_var"]).sum())
    total = len(circuits)
    title = f"{capital(count(published, 'neuron'))} above the published kurtosis cut, {percent(beyond / total, 1)} above the null's"
    largest = circuits["vocab_kurt"].max()
    text = (
        f"Over {count(seeds, 'seed')} and {total:,} neurons, **{count(published, 'neuron')}** "
        f"{'has' if published <= 1 else 'have'} kurtosis above the published cut of {PUBLISHED_CUTS.kurtosis:g} (the largest is "
        f"{largest:.2f}), while **{beyond:,}** ({percent(beyond / total, 1)}) exceed the calibrated cut of "
        f"{_range(circuits['null_kurt'])}, which 0.1 % of random directions do. The published cut of the variance, "
        f"{PUBLISHED_CUTS.variance:g}, is exceeded by {percent(wide / total, 1)} of the neurons, the calibrated one of "
        f"{_range(circuits['null_var'], 4)} by **{percent(wider / total, 1)}**: "
    )
    below = (circuits.groupby("seed")["null_var"].first() > PUBLISHED_CUTS.variance).all()
    text += (
        "in every seed the published variance cut lies below what random directions reach in this unembedding, so it "
        "selects nothing here that chance would not."
        if below
        else "the published variance cut is stricter than chance needs in at least one seed."
    )
    if circuits["unlearned"].any():
        left = int((circuits["learned_kurt"] > PUBLISHED_CUTS.kurtosis).sum())
        sharp = [
            int(role_counts(circuits, column)[["prediction", "suppression"]].to_numpy().sum())
            for column in ("role_calibrated", "role_learned")
        ]
        text += (
            f" **Some of this is about tokens that were never learned**: the unembeddings of {_range(circuits['unlearned'], 0)} tokens of a seed point the way of bytes that UTF-8 does not have, so that one "
            f"direction moves them all. Without them {left:,} of the {published:,} neurons beyond the published kurtosis cut {'is' if left == 1 else 'are'} left, and {sharp[1]:,} prediction and "
            f"suppression neurons by cuts calibrated anew instead of {sharp[0]:,}."
        )
    alt = "Line plots of percentiles of kurtosis, skew and variance of logit effects by layer, with both cuts."
    return Caption(title, text, f"{alt} {title}.")


def skew_of_peaked(circuits: pd.DataFrame) -> Caption:
    """Figure 6c: the sign of the skew among neurons of high kurtosis in the last layers."""
    layers = last_layers(circuits["layer"].nunique())
    alt = "Histograms of the skew of logit effects for neurons of high kurtosis in the last layers, for both cuts."
    late = circuits[circuits["layer"].isin(layers)]
    parts, shares = [], []
    for name, cut in (("published", PUBLISHED_CUTS.kurtosis), ("calibrated", late["null_kurt"])):
        peaked = late[late["vocab_kurt"] > cut]
        if peaked.empty:
            parts.append(f"no neuron of the last {count(len(layers), 'layer')} passes the {name} cut")
            continue
        by_layer = peaked.groupby("layer")["vocab_skew"]
        told = [f"{percent((skew < 0).mean(), 1)} of {len(skew):,} in layer {layer}" for layer, skew in by_layer]
        parts.append(f"by the {name} cut the share with negative skew is {listed(told)}")
        shares.append((name, [f"{(skew < 0).sum():,} of {len(skew):,} in layer {layer}" for layer, skew in by_layer]))
    title = "No neuron of the last layers passes either cut"
    if shares:
        name, told = shares[0]
        title = f"Negative skew at high kurtosis ({name} cut): {', '.join(told[-2:])}"
    counts = ", ".join(f"{number:g} in layer {layer}" for layer, number in PUBLISHED_HIGH_KURTOSIS.items())
    text = (
        f"{capital('; '.join(parts))}. In the paper's GPT2-medium, with 24 layers, the mean number of neurons above its cut is {counts} "
        f"({PUBLISHED_SOURCE}), prediction neurons in the first of these and suppression neurons in the last."
    )
    return Caption(title, text, f"{alt} {title}.")


def roles_by_layer(circuits: pd.DataFrame) -> Caption:
    """Does prediction give way to suppression at the end, as in the paper?"""
    alt = "Bar charts of prediction, suppression and partition neurons by layer, for both cuts."
    counts = role_counts(circuits, "role_calibrated")
    mean = counts.groupby("layer")[list(ROLES)].mean()
    published = role_counts(circuits, "role_published")[list(ROLES)].sum()
    text = (
        f"Over all seeds the published cuts find {count(published['prediction'], 'prediction neuron')}, "
        f"{count(published['suppression'], 'suppression neuron')} and {count(published['partition'], 'partition neuron')}. "
    )
    if not mean[["prediction", "suppression"]].to_numpy().any():
        text += "No neuron passes the calibrated kurtosis cut either, so there is no switch to look for."
        return Caption("No prediction or suppression neuron by either cut", text, alt)
    top, last = mean["prediction"].idxmax(), mean.index[-1]
    at_end, rest = mean.loc[last], mean.iloc[:-1]
    early = rest["suppression"].sum() / max(1e-9, rest[["prediction", "suppression"]].to_numpy().sum())
    late = at_end["suppression"] / max(1e-9, at_end["prediction"] + at_end["suppression"])
    own = counts[counts["layer"] == last]
    led = int((own["suppression"] > own["prediction"]).sum())
    if not len(rest):
        title = "One layer: no depth at which prediction gives way to suppression"
    elif led == len(own):
        title = f"Suppression takes over in the last layer: {at_end['suppression']:.3g} against {at_end['prediction']:.3g} neurons a seed"
        seen = "is seen"
    elif led:
        title = f"Suppression outnumbers prediction in the last layer of {led} of {len(own)} seeds"
        seen = f"is seen in {led} of {len(own)} seeds, which is no rule,"
    else:
        title, seen = "No switch from prediction to suppression in the last layer", "is not seen"
    if not len(rest):
        text += f"The models' one layer has **{at_end['prediction']:.1f}** prediction and **{at_end['suppression']:.1f}** suppression neurons a seed by the calibrated cuts."
        return Caption(title, text, f"{alt} {title}.")
    text += (
        f"By the calibrated cuts prediction neurons are most frequent in layer {top} (**{mean['prediction'].max():.1f}** a seed), and the "
        f"last layer has **{at_end['prediction']:.1f}** prediction and **{at_end['suppression']:.1f}** suppression neurons a seed. "
        f"Suppression neurons are {percent(late, 1)} of the two together in the last layer and {percent(early, 1)} before it, so "
        f"**the paper's switch to suppression {seen} in this run**. Partition neurons are most "
        f"frequent in layer {mean['partition'].idxmax()} ({mean['partition'].max():.1f} a seed)."
    )
    found = counts["suppression"].sum()
    text += (
        f" All in all {percent(found / len(circuits))} of the neurons are suppression neurons; of random directions 0.1 % pass the "
        "same kurtosis cut, with a skew of either sign."
    )
    deep = mean.index >= len(mean) / 2
    rises = mean.loc[deep, "prediction"].sum() > mean.loc[~deep, "prediction"].sum()
    text += (
        f" The paper's prediction neurons rise after mid-depth; here the second half of the layers holds "
        f"{'more' if rises else 'no more'} than the first ({mean.loc[deep, 'prediction'].sum():.1f} against "
        f"{mean.loc[~deep, 'prediction'].sum():.1f} a seed)."
    )
    return Caption(title, text, f"{alt} {title}.")


def logit_effects(examples: pd.DataFrame) -> Caption:
    """Figures 5 and 23: what the chosen neurons' classes explain."""
    alt = "Histograms of logit effects over the vocabulary for chosen neurons, tokens of the neuron's class on top."
    if examples.empty:
        return Caption(
            "No neuron has a role", "No neuron of the reference seed has a role by the calibrated cuts.", alt
        )
    best = examples.loc[examples["label_score"].idxmax()]
    title = f"“{best['label']}” explains {percent(best['label_score'], 0)} of a {best['role']} neuron's logit effects"
    absent = [role for role in ROLES if role not in set(examples["role"])]
    chance = examples["null_score"].iloc[0]
    above = int((examples["label_score"] > chance).sum())
    text = (
        f"The class explains most for layer {best['layer']} neuron {best['neuron']}, a {best['role']} neuron: **{best['label']}**, "
        f"{percent(best['label_score'], 1)} of the variance. For {above} of the {count(len(examples), 'neuron')} shown the score is "
        f"more than the {chance:.3f} that the best of all classes reaches for one random direction in a thousand."
    )
    if absent:
        text += f" The reference seed has no {' and no '.join(absent)} neuron."
    return Caption(title, text, f"{alt} {title}.")


def classes_by_role(circuits: pd.DataFrame) -> Caption:
    """From the circuit table: how many neurons of a role have a class, and which ones."""
    parts = []
    for role in ROLES:
        own = circuits[circuits["role_calibrated"] == role]
        if own.empty:
            parts.append(f"there is no {role} neuron")
            continue
        named = own["label"].notna()
        most = f", most often “{own['label'].mode().iloc[0]}”" if named.any() else ""
        parts.append(f"{percent(named.mean(), 1)} of the {count(len(own), f'{role} neuron')} have a class{most}")
    everyone = circuits["label"].notna().mean()
    text = (
        f"By the calibrated cuts, over all seeds: {'; '.join(parts)}. Of all neurons {percent(everyone, 1)} have one."
    )
    title = f"{percent(everyone, 1)} of all neurons have a token class beyond chance"
    return Caption(title, text, "Table of the most frequent token classes of each role.")


def class_table(circuits: pd.DataFrame, number: int = 8) -> pd.DataFrame:
    """The most frequent token classes of each role: columns role, neurons, classes (with their counts)."""
    rows = []
    for role in ROLES:
        own = circuits.loc[circuits["role_calibrated"] == role, "label"]
        frequent = own.value_counts().head(number)
        classes = ", ".join(f"{label} ({times:,})" for label, times in frequent.items())
        rows.append(
            {
                "role": role,
                "neurons": len(own),
                "no class": int(own.isna().sum()),
                "most frequent classes": classes or "–",
            }
        )
    return pd.DataFrame(rows)


def token_table(examples: pd.DataFrame, extremes: Sequence[tuple[list[str], list[str]]]) -> pd.DataFrame:
    """Tokens that the chosen neurons promote and suppress most, in a reader's words."""
    return pd.DataFrame(
        {
            "role": examples["role"].to_numpy(),
            "layer": examples["layer"].to_numpy(),
            "neuron": examples["neuron"].to_numpy(),
            "class": examples["label"].to_numpy(),
            "score": [f"{score:.2f}" for score in examples["label_score"]],
            "promotes most": ["\u00a0 ".join(promoted) for promoted, _ in extremes],
            "suppresses most": ["\u00a0 ".join(suppressed) for _, suppressed in extremes],
        }
    )


def readable(token: str) -> str:
    """A token's text with blanks as ␣ and a sign that comes five times or more in a row written as “␣×12”."""
    return re.sub(r"(.)\1{4,}", lambda run: f"{run[1]}×{len(run[0])}", token.replace(" ", "␣"))


def next_token(table: pd.DataFrame, tokens: int) -> Caption:
    """Figure 24: do suppression neurons fire more when the next token is one that they suppress?"""
    alt = (
        "Dot plots of mean activation and effect by whether the next token is in the neuron's class, one row a neuron."
    )
    told = []
    for role, verb in (("suppression", "lower"), ("prediction", "raise")):
        own = tested(table, role)
        if own.empty:
            told.append(f"There is no {role} neuron with a class that explains more than chance to test.")
            continue
        sure = own["p_corrected"] < SIGNIFICANT
        more, less = int((sure & (own["effect"] > 0)).sum()), int((sure & (own["effect"] < 0)).sum())
        above, far = int((own["percentile"] > 50).sum()), int((own["percentile"] > 95).sum())
        told.append(
            f"Of the **{count(len(own), f'{role} neuron')}** tested, **{more}** {'fires' if more == 1 else 'fire'} more when the next token is in the class that they {verb} most "
            f"and {less} {'fires' if less == 1 else 'fire'} less (corrected p below {SIGNIFICANT:g}); the median effect is **{signed(own['effect'].median())}** standard "
            f"deviations. On the same split a class moves whole layers: above the median of the other neurons of their layer lie {above}, above 95 % of them {far}."
        )
    own = tested(table, "suppression")
    if own.empty:
        title, verdict = (
            "No suppression neuron to test the paper's claim on",
            "**The paper's claim cannot be tested in this run.**",
        )
    else:
        above, more, seeds = int((own["percentile"] > 50).sum()), fire_more(own), count(own["seed"].nunique(), "seed")
        title = f"{above} of {count(len(own), 'suppression neuron')} fire more before their class than the median of their layer"
        verdict = (
            f"**The paper's claim that suppression neurons fire more when the next token is in their class holds in each of the {seeds} that have one.**"
            if more
            else f"**The paper's claim that suppression neurons fire more when the next token is in their class holds in none of the {seeds} that have one.**"
            if more is False
            else "**Whether suppression neurons fire more when the next token is in their class, as the paper says, this run cannot tell: "
            "the seeds disagree or the neurons are too few.**"
        )
    text = f"Measured on {tokens:,} positions. {' '.join(told)} {verdict}"
    return Caption(title, text, f"{alt} {title}.")


def universal_roles(shares: dict[str, pd.DataFrame], threshold: float, top: float) -> Caption:
    """Are neurons with a role more often universal than others at their depth?"""
    alt = "Bar charts of the share of each role's neurons that are universal, and that are among the most universal."
    table = shares["role_calibrated"].set_index("role")
    parts, more, less = [], [], []
    for role, row in table.iterrows():
        if not row["neurons"]:
            parts.append(f"no neuron is a {role} neuron")
            continue
        parts.append(
            f"**{row['universal']:,.0f}** of {count(row['neurons'], f'{role} neuron')} ({percent(row['share'])}) and {percent(row['top_share'], 1)} among the "
            f"{100 * top:g} % of largest excess, where {percent(row['expected'], 1)} is expected at their depth ({_seeds_agree(row)})"
        )
        if row["p_corrected"] < SIGNIFICANT:
            (more if row["top_share"] > row["expected"] else less).append(role)
    title = "No role is more or less universal than its depth explains"
    if more or less:
        said = [f"more {listed(more)}"] if more else []
        said += [f"fewer {listed(less)}"] if less else []
        title = f"The most universal: {', '.join(said)} than depth explains"
    text = f"By the calibrated cuts and at threshold {threshold:g}, over the seeds that serve as reference, universal are: {'; '.join(parts)}."
    return Caption(title, text, f"{alt} {title}.")


def _seeds_agree(row: pd.Series) -> str:
    """The p-value of a row of `roles.universal_shares`, and whose it is."""
    if not row["agree"]:
        return "seeds point in different directions"
    return p_words(row["p_corrected"]) + (
        f", the largest of the {row['seeds']} seeds that have one" if row["seeds"] > 1 else ""
    )


def match_agreement(table: pd.DataFrame) -> Caption:
    """Does a neuron's best match in another seed do the same to the logits?"""
    alt = "Dot plots of the share of best matches with the same role, sign of skew and token class, beside chance."
    rows = table.set_index(["group", "aspect"])
    said = []
    for role in ROLES:
        row = rows.loc[(role, "role")]
        if not row["pairs"]:
            said.append(f"no {role} neuron has a match")
            continue
        said.append(
            f"{percent(row['agreement'], 1)} of the best matches of {role} neurons are {role} neurons too (chance {percent(row['chance'], 1)}, "
            f"{p_words(row['p_value'])})"
        )
    text = f"{capital('; '.join(said))}. "
    top = rows.loc[("most universal with a role", "token class")]
    if top["pairs"]:
        text += (
            f"Of the most universal neurons that have a role and a token class, **{percent(top['agreement'], 1)}** of the best matches have "
            f"the same class (chance {percent(top['chance'], 1)}, {p_words(top['p_value'])}; {top['pairs']:,.0f} pairs). "
        )
    counted = rows[rows["pairs"] > 0]
    above = int((counted["agreement"] > counted["chance_high"]).sum())
    text += f"In {above} of {len(counted)} comparisons the agreement is above everything that the permutations reached."
    title = f"{above} of {count(len(counted), 'comparison')} with matches in other seeds agree more than chance"
    return Caption(title, text, f"{alt} {title}.")


def _range(values: pd.Series, digits: int = 2) -> str:
    low, high = f"{values.min():.{digits}f}", f"{values.max():.{digits}f}"
    return low if low == high else f"{low} to {high}"
