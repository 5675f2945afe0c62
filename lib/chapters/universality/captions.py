"""What the figures of chapters 01 to 03 show, in words computed from the run's tables."""

import numpy as np
import pandas as pd

from lib.base.errors import capital
from lib.chapters.universality import properties as universality
from lib.chapters.universality.properties import (
    PROPERTIES,
    PUBLISHED_MODELS,
    PUBLISHED_SHARES,
    PUBLISHED_SOURCE,
)
from lib.display import claims
from lib.display.captions import GATED, Caption, count, p_words, percent, signed


def losses(table: pd.DataFrame, vocabulary: int) -> Caption:
    """From `losses`: how well and how equally the seeds predict the text. `vocabulary` is the number of tokens."""
    total = table[table["domain"] == "all"].set_index("seed")["loss"]
    domains = table[table["domain"] != "all"].groupby("domain")["loss"].mean().sort_values()
    low, high = total.min(), total.max()
    measured = int(table.loc[table["domain"] == "all", "tokens"].max())
    title = f"{capital(count(len(total), 'seed'))} {'lose' if len(total) > 1 else 'loses'} " + (
        f"{low:.2f} to {high:.2f} nats per token" if f"{low:.2f}" != f"{high:.2f}" else f"{low:.2f} nats per token"
    )
    text = (
        f"On {measured:,} predicted tokens the losses lie between **{low:.3f}** (seed {total.idxmin()}) and "
        f"**{high:.3f}** (seed {total.idxmax()}) nats per token, {percent((high - low) / low, 1)} apart; "
        f"guessing every one of the {vocabulary:,} tokens with equal chance would lose {np.log(vocabulary):.2f}."
    )
    if len(domains) > 1:
        text += (
            f" On average over seeds the easiest domain is *{domains.index[0]}* ({domains.iloc[0]:.2f}) and the "
            f"hardest *{domains.index[-1]}* ({domains.iloc[-1]:.2f})."
        )
    return Caption(title, text, f"Dot plot of loss in nats per token by domain of text, one dot per seed. {title}.")


def composition(text_table: pd.DataFrame) -> Caption:
    """From `text`: what the tokens are."""
    by_size = text_table.sort_values("counted", ascending=False)
    counted, tokens = int(by_size["counted"].sum()), int(by_size["tokens"].sum())
    largest, smallest = by_size.iloc[0], by_size.iloc[-1]
    title = f"{counted:,} counted tokens from {count(len(by_size), 'domain')}"
    text = (
        f"The run's text has {count(by_size['blocks'].sum(), 'block')} with {tokens:,} positions, of which "
        f"**{counted:,}** ({percent(counted / tokens, 1)}) are counted. "
    )
    if len(by_size) > 1:
        text += (
            f"The largest domain is *{largest['domain']}* with {percent(largest['counted'] / counted, 1)} of them, the "
            f"smallest *{smallest['domain']}* with {percent(smallest['counted'] / counted, 1)}."
        )
    else:
        text += f"They are all *{largest['domain']}*."
    return Caption(title, text, f"Bar chart of the number of counted tokens in each domain of text. {title}.")


def pass_facts(done: dict) -> list[tuple[str, str]]:
    """What the pass wrote about itself, as (fact, value) rows for a table."""
    rows = [
        ("tokens counted", f"{done['tokens_counted']:,}"),
        ("blocks × context", f"{done['blocks']:,} × {done['context']:,}"),
        ("passes over the text", str(done.get("passes", 1))),
        ("precision of the products", str(done["precision"])),
        ("device", str(done.get("device_name", done["device"]))),
        ("loops over activations", str(done.get("loops", "torch"))),
        ("wall time", f"{done['wall_seconds']:,.1f} s"),
        ("speed, each reading of a seed counted", f"{done['tokens_per_second']:,.0f} tokens/s"),
        ("peak memory", f"{done['peak_memory_bytes'] / 1e9:.2f} GB"),
    ]
    return rows


def shapes_of_activation(chosen: pd.DataFrame) -> Caption:
    """From rows of `neurons` that a histogram is drawn of: how skewed and how often active they are."""
    skewed = int((chosen["skew"] > 1).sum())
    verb = "has" if skewed == 1 else "have"
    title = f"{skewed} of {count(len(chosen), 'chosen neuron')} {verb} a long right tail"
    often = chosen.loc[chosen["sparsity"].idxmax()]
    seldom = chosen.loc[chosen["sparsity"].idxmin()]
    text = (
        f"**{skewed}** of the {count(len(chosen), 'neuron')} {verb} a skew above 1 (a Gaussian has 0). The most often active, layer {often['layer']:.0f} neuron {often['neuron']:.0f}, is above 0 on "
        f"{percent(often['sparsity'], 1)} of the counted tokens; the least often active, layer {seldom['layer']:.0f} "
        f"neuron {seldom['neuron']:.0f}, on {percent(seldom['sparsity'], 1)}."
    )
    return Caption(title, text, f"Histograms of the pre-activation of chosen neurons, counts on a log axis. {title}.")


def correlation_by_layer(neurons: pd.DataFrame) -> Caption:
    """From `neurons`: best matches and their rotated baseline."""
    corr, baseline = neurons["mean_corr"].mean(), neurons["mean_baseline"].mean()
    layers = neurons.groupby("layer")[["mean_corr", "mean_baseline", "excess_corr"]].mean()
    best = layers["excess_corr"].idxmax()
    above = (neurons["excess_corr"] > 0).mean()
    title = f"Best matches correlate {corr:.2f} on average, {baseline:.2f} in a rotated basis"
    text = (
        f"A neuron's best match has a correlation of **{corr:.3f}** on average, its best match in a randomly rotated "
        f"basis **{baseline:.3f}**; the mean excess is {neurons['excess_corr'].mean():.3f}. {percent(above, 1)} of the "
        f"neurons have a better match among neurons than among rotated directions. The mean excess is largest in "
        f"layer {best} ({layers['excess_corr'].max():.3f})."
    )
    dead = int(neurons["dead"].sum())
    if dead:
        text += (
            f" {capital(count(dead, 'neuron'))} never varied on this text; such dead neurons correlate 0 by definition."
        )
    return Caption(
        title, text, f"Box plots by layer of the best-match correlation and of its rotated baseline. {title}."
    )


def draws(draw_summary: pd.DataFrame, spread: pd.Series, neurons: pd.DataFrame) -> Caption:
    """From `universality.draw_summary` and `draw_spread` of the reference: does the chance of the rotation matter?"""
    alt = "Histogram of the standard deviation over rotation draws of each neuron's baseline, and universal neurons by draw."
    if len(draw_summary) < 2:
        title = "One rotation draw: its spread is unknown"
        return Caption(title, "This run drew a single rotation, so nothing can be said about the spread.", alt)
    typical, worst = spread.median(), spread.max()
    counts = draw_summary["universal"]
    called = f"{counts.min():,} to {counts.max():,}" if counts.min() < counts.max() else f"{counts.min() or 'none'}"
    title = f"Another rotation moves a neuron's baseline by {typical:.4f}"
    text = (
        f"Over {len(draw_summary)} draws the standard deviation of a neuron's baseline is **{typical:.4f}** in the median "
        f"and {worst:.4f} at most, against a mean baseline of {neurons['mean_baseline'].mean():.3f}. "
        f"Any one draw alone would call {called} of {len(neurons):,} neurons universal."
    )
    return Caption(title, text, f"{alt} {title}.")


def convergence(summary: pd.DataFrame, reference: str, candidates: int) -> Caption:
    """From `universality.convergence_summary`: what more tokens change. `candidates` is the size of a model."""
    own = summary[summary["seed"] == reference].sort_values("tokens")
    last = own.iloc[-1]
    floor = universality.noise_floor(candidates, last["tokens"])
    alt = (
        "Line plots against the number of tokens: mean best-match correlation, baseline and excess; universal neurons."
    )
    if len(own) < 2:
        title = "One snapshot: too few tokens to see convergence"
        text = (
            f"The pass recorded a single snapshot; the noise floor at its {last['tokens']:,.0f} tokens is {floor:.4f}."
        )
        return Caption(title, text, alt)
    before = own.iloc[-2]
    move = last["excess_corr"] - before["excess_corr"]
    title = f"The last {last['tokens'] / before['tokens']:.1f}× of tokens moved the mean excess by {signed(move, 4)}"
    text = (
        f"From {before['tokens']:,.0f} to {last['tokens']:,.0f} tokens the mean excess went from "
        f"{before['excess_corr']:.4f} to **{last['excess_corr']:.4f}**. The noise floor at the end is {floor:.4f}. "
    )
    if np.isfinite(before["agreement"]):
        text += (
            f"The number of universal neurons went from {before['universal']:,.0f} to **{last['universal']:,.0f}**; of the "
            f"neurons universal at either point {percent(before['agreement'], 1)} are universal at both."
        )
    else:
        text += "No neuron is universal at either point."
    return Caption(title, text, f"{alt} {title}.")


def sampling(table: pd.DataFrame, neurons: pd.DataFrame, threshold: float) -> Caption:
    """From the reference's rows of `sampling`, and `neurons`: is a best match more than luck of the text?"""
    alt = "Scatter of the correlation on other text against the best match; histogram of the standard error of the excess."
    if not len(table):
        text = "This run recorded no parts of its text: that needs one process, one pass for all products, and enough text."
        return Caption("No parts of the text to compare", text, alt)
    baseline = neurons[["layer", "neuron", "mean_baseline"]].merge(table, on=["layer", "neuron"])
    held_out = (baseline["held_out_corr"] - baseline["mean_baseline"] > threshold).mean()
    title = f"With partners chosen on other text the mean match is {table['held_out_corr'].mean():.3f} instead of {neurons['mean_corr'].mean():.3f}"
    text = (
        f"The mean best match is {neurons['mean_corr'].mean():.4f} on all text; with the partner chosen on the first part of it and measured on the "
        f"rest it is **{table['held_out_corr'].mean():.4f}**, and {percent(held_out)} of the neurons are universal by it, "
        f"{percent(neurons['is_universal'].mean())} by the best match. The standard error of a neuron's excess is **{table['excess_se'].median():.4f}** in the median and "
        f"{table['excess_se'].quantile(0.99):.4f} at the 99th percentile. Parts were drawn as if each were independent of the others; where "
        "they share documents they are not, and true errors are somewhat larger."
    )
    return Caption(title, text, f"{alt} {title}.")


def excess(neurons: pd.DataFrame, threshold: float) -> Caption:
    """Figures 2a and 11: how many neurons are universal, beside the published shares."""
    number = int(neurons["is_universal"].sum())
    title = (
        f"{capital(count(number, 'neuron'))} of {len(neurons):,} ({percent(number / len(neurons))}) above {threshold:g}"
    )
    largest = neurons["excess_corr"].max()
    published = ", ".join(
        f"{percent(row.share)} for {PUBLISHED_MODELS[model]}" for model, row in PUBLISHED_SHARES.iterrows()
    )
    verb = "is" if number <= 1 else "are"
    text = (
        f"**{capital(count(number, 'neuron'))}** of {len(neurons):,} (**{percent(number / len(neurons))}**) {verb} universal: "
        f"excess correlation above {threshold:g}. The largest excess is {largest:.3f}, the median "
        f"{neurons['excess_corr'].median():.3f}. Published at a threshold of 0.5 and on 100 million tokens: {published} "
        f"({PUBLISHED_SOURCE})."
    )
    return Caption(
        title, text, f"Histograms of mean best-match correlation and baseline, and of the excess correlation. {title}."
    )


def gap(neurons: pd.DataFrame, threshold: float, compared: int) -> Caption:
    """Figure 2b: do the compared seeds agree on how good a neuron's match is?"""
    gaps, chosen = universality.gap(neurons), neurons["is_universal"]
    alt = "Scatter of each neuron's smallest against its largest best-match correlation over the compared seeds."
    if compared < 2:
        text = "Only one seed is compared, so the largest and the smallest correlation are the same."
        return Caption("One compared seed: nothing to differ", text, alt)
    title = f"Over {compared} compared seeds the best match varies by {gaps.mean():.3f} on average"
    text = f"The mean gap between largest and smallest is **{gaps.mean():.3f}** over all neurons"
    text += (
        f" and **{gaps[chosen].mean():.3f}** over the {count(chosen.sum(), 'universal neuron')}."
        if chosen.any()
        else "; no neuron is universal at this threshold."
    )
    text += f" Published for GPT2-medium: 0.049 and 0.105 ({PUBLISHED_SOURCE})."
    return Caption(title, text, f"{alt} {title}.")


def layer_agreement(matrix: pd.DataFrame) -> Caption:
    """Figure 2c: do matches lie at the same depth?"""
    values = matrix.to_numpy()
    known = np.isfinite(values).all(axis=1)
    same = np.diag(values)[known]
    distance = np.abs(np.subtract.outer(matrix.index, matrix.columns))
    near = np.where(distance <= 1, values, 0).sum(axis=1)[known]
    title = f"{same.mean():.0f} % of best matches lie in the same layer of the other seed"
    lowest, highest = matrix.index[known][same.argmin()], matrix.index[known][same.argmax()]
    text = (
        f"Averaged over layers, **{same.mean():.1f} %** of the neurons have their best match in the same layer and "
        f"{near.mean():.1f} % at most one layer away; chance would give {100 / len(matrix):.1f} % and "
        f"{100 * (distance <= 1).mean():.1f} %. "
        f"The layer most faithful to its depth is {highest} ({same.max():.1f} %), the least is {lowest} ({same.min():.1f} %)."
    )
    return Caption(
        title,
        text,
        f"Heat map of the layer of a best match against the layer of the neuron, columns sum to 100 percent. {title}.",
    )


def references(shares: pd.DataFrame, threshold: float, intervals: pd.DataFrame | None = None) -> Caption:
    """From `universality.reference_shares` and `sampling.share_intervals`: does the choice of the reference seed matter, or of the
    text?"""
    low, high, mean = shares["share"].min(), shares["share"].max(), shares["share"].mean()
    title = f"With any seed as reference: {percent(low)} to {percent(high)} universal"
    one = len(shares) == 1
    text = (
        f"Taking each of the {len(shares)} seeds as reference in turn, **{percent(mean)}** of the neurons are universal on "
        f"average, from {percent(low)} ({shares.loc[shares['share'].idxmin(), 'seed']}) to {percent(high)} "
        f"({shares.loc[shares['share'].idxmax(), 'seed']}), at threshold {threshold:g}."
    )
    if not shares["universal"].any():
        title = f"No seed as reference has a universal neuron at {threshold:g}"
        text = (
            f"Whichever of the {len(shares)} seeds is the reference, no neuron is universal at threshold {threshold:g}."
        )
    if one:
        seed = shares["seed"].iloc[0]
        title = f"Seed {seed} alone serves as reference: {percent(mean)} universal"
        text = f"In this run only seed {seed} serves as reference; **{percent(mean)}** of its neurons are universal at threshold {threshold:g}. `compare: all` takes every seed in turn."
    if intervals is not None and one:
        own = intervals.iloc[0]
        text += f" On other text of this kind it would lie within {percent(own['low'])} to {percent(own['high'])} (95 % interval, black line)."
    elif intervals is not None:
        own = intervals.loc[intervals["share"].idxmax()]
        ratio = (own["high"] - own["low"]) / max(high - low, 1e-9)
        moves = (
            "would move the share less"
            if ratio < 0.5
            else "may move the share more"
            if ratio > 2
            else "may move the share about as much"
        )
        text += (
            f" Another text of this kind {moves}: its 95 % interval is {percent(own['low'])} to {percent(own['high'])} for seed "
            f"{own['seed']} (black line)."
        )
    return Caption(title, text, f"Bar chart of the share of universal neurons with each seed as reference. {title}.")


def partners(numbers: dict[str, float], seeds: int, references: int, threshold: float) -> Caption:
    """From `matching.summary`: does another seed hold the same neuron, or a similar one?

    `seeds` is how many the run has, `references` how many of them serve as reference: cliques are looked for where all do.
    """
    alt = "Share of mutual best matches and of neurons in a clique against the excess correlation; bar chart of cliques by layer."
    found = int(numbers["cliques"])
    title = (
        f"{capital(count(found, 'set'))} of one neuron from each of {seeds} seeds that are all each other's best match"
    )
    if references < seeds:
        title = f"{percent(numbers['mutual'], 1)} of best matches are mutual"
    text = f"**{percent(numbers['mutual'], 1)}** of best matches are mutual"
    text += (
        f", of the {count(numbers['universal'], 'universal neuron')} **{percent(numbers['mutual_universal'], 1)}**"
        if numbers["universal"]
        else ""
    )
    text += (
        f". {capital(count(found, 'clique'))} of one neuron from every seed {'has' if found <= 1 else 'have'} only mutual best matches"
        if references == seeds
        else ". No clique of one neuron from every seed is known (that needs every seed as reference)"
    )
    if found:
        text += (
            f", {percent(found / numbers['neurons'], 1)} of a seed's neurons; in {numbers['strong_cliques']:,} of them every two correlate above "
            f"{threshold:g}, and {percent(numbers['one_layer'], 0)} lie in one layer"
        )
        text += (
            f". Of the universal neurons {percent(numbers['in_clique_universal'], 1)} are in a clique"
            if numbers["universal"]
            else ""
        )
    text += ". "
    if np.isfinite(numbers["assigned_corr"]):
        text += (
            f"With every neuron of a compared seed used only once, the mean match falls from {numbers['best_corr']:.3f} to "
            f"{numbers['assigned_corr']:.3f}; {numbers['universal']:,} of {numbers['neurons']:,} neurons are universal by the best match, {numbers['universal_assigned']:,} by this one."
        )
    else:
        text += "The one-to-one assignment is left out for models of this size: its time grows with the cube of the neurons."
    return Caption(title, text, f"{alt} {title}.")


def share_curve(neurons_all_seeds: pd.DataFrame, threshold: float) -> Caption:
    """How much hangs on the threshold, averaged over reference seeds."""
    by_seed = neurons_all_seeds.groupby("seed", sort=False)["excess_corr"]
    below, at, above = np.mean(
        [universality.share_curve(values, [threshold - 0.1, threshold, threshold + 0.1]) for _, values in by_seed],
        axis=0,
    )
    title = f"A threshold 0.1 lower or higher: {percent(below)} or {percent(above)} universal"
    if not below:
        title = f"No seed has a universal neuron even at a threshold of {threshold - 0.1:.2g}"
    text = (
        f"Averaged over reference seeds the universal share is {percent(below)} at {threshold - 0.1:.2g}, "
        f"**{percent(at)}** at {threshold:g} and {percent(above)} at {threshold + 0.1:.2g}."
    )
    return Caption(
        title, text, f"Share of universal neurons against the threshold, one line per reference seed. {title}."
    )


def layers(shares: pd.DataFrame, reference: str) -> Caption:
    """From `universality.layer_shares` of all seeds: at which depth universal neurons sit."""
    own = shares[shares["seed"] == reference].set_index("layer")
    total = int(own["universal"].sum())
    alt = "Bar chart of universal neurons in percent of each layer; dots are the other seeds as reference. Beside it lines by relative depth with those of the published models."
    fullest = universality.published_layer_shares()
    layers_of = fullest.groupby("model", sort=False)["layer"].max() + 1
    fullest = fullest.loc[fullest.groupby("model", sort=False)["universal"].idxmax()]
    published = (
        "Published, at a threshold of 0.5, the fullest layer is "
        + ", ".join(
            f"layer {row.layer} of {layers_of[row.model]} in {PUBLISHED_MODELS[row.model]} ({percent(row.share, 1)} of its neurons)"
            for row in fullest.itertuples()
        )
        + f" ({PUBLISHED_SOURCE})."
    )
    if not total:
        return Caption(
            "No universal neuron in any layer",
            f"No neuron of the reference is universal in any layer. {published}",
            alt,
        )
    top = own["universal"].idxmax()
    empty = int((own["universal"] == 0).sum())
    title = f"Layer {top} holds {percent(own['universal'].max() / total, 0)} of the universal neurons"
    text = (
        f"The layer with most universal neurons is {top}: **{own['universal'].max():,}** of {total:,}, "
        f"{percent(own['share'].max(), 1)} of that layer. "
        + (
            f"{capital(count(empty, 'layer'))} {'has' if empty == 1 else 'have'} none."
            if empty
            else "Every layer has some."
        )
        + f" {published}"
    )
    return Caption(title, text, f"{alt} {title}.")


def properties(tests: pd.DataFrame, number: int) -> Caption:
    """Figure 3: how universal neurons rank among the neurons of their layer."""
    alt = "Box plots of the percentile within their layer of the universal neurons, one per property."
    untested = tests["median_percentile"].isna()
    told = tests[(tests["verdict"] != "") & ~untested]
    holds, fails = (told[told["verdict"] == verdict] for verdict in ("holds", "does not hold"))
    unknown = told[told["verdict"] == "cannot tell"]
    if number == 0:
        text = "No neuron is universal at this threshold, so there is nothing to rank."
        return Caption("No universal neuron to rank", text, alt)
    title = f"{len(holds)} of {len(told)} published directions hold"
    parts = []
    if len(holds):
        parts.append(f"**The paper's direction holds** for {_names(holds)}.")
    if len(fails):
        parts.append(f"**It does not hold** for {_names(fails)}.")
    if len(unknown):
        why = (
            f"{count(number, 'universal neuron')} {'is' if number == 1 else 'are'} too few"
            if number < claims.FEWEST
            else f"the corrected p-value is not below {claims.SIGNIFICANT:g}"
        )
        parts.append(f"**This run cannot tell** for {_names(unknown)}: {why}.")
    strongest = tests.loc[tests["effect"].abs().idxmax()] if tests["effect"].notna().any() else None
    if strongest is not None:
        parts.append(
            f"The largest difference is in the {strongest['label']}: median percentile "
            f"{strongest['median_percentile']:.0f}, effect {signed(strongest['effect'])}, {p_words(strongest['p_corrected'])}."
        )
    if untested.any():
        parts.append(GATED)
    return Caption(title, " ".join(parts), f"{alt} {title}.")


def _all_or_no(chosen: pd.Series) -> str:
    return "Every" if chosen.all() else "No"


def _names(tests: pd.DataFrame) -> str:
    names = list(tests["label"])
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def property_table(tests: pd.DataFrame) -> pd.DataFrame:
    """`universality.property_tests` as a reader's table: one row per property, numbers as text."""

    def number(value: float, form: str) -> str:
        return "–" if not np.isfinite(value) else format(value, form)

    return pd.DataFrame(
        {
            "property": tests["label"],
            "median percentile": [number(value, ".0f") for value in tests["median_percentile"]],
            "effect (Cliff's delta)": [number(value, "+.2f") for value in tests["effect"]],
            "corrected p": [number(value, ".2g") for value in tests["p_corrected"]],
            **{
                f"published {name}": [number(value, ".0f") for value in tests[f"published_{model}"]]
                for model, name in PUBLISHED_MODELS.items()
            },
            "published direction": tests["published"].replace("", "–"),
            "here": tests["verdict"].replace("", "–"),
        }
    )


def raw_values(neurons: pd.DataFrame, threshold: float, columns: list[str]) -> Caption:
    """Figure 14: raw values by layer, universal against other."""
    chosen = neurons["is_universal"]
    alt = "Box plots of raw property values by layer, universal neurons beside the other neurons."
    if chosen.all() or not chosen.any():
        text = f"{_all_or_no(chosen)} neuron is universal at this threshold, so there is nothing to compare."
        return Caption("Raw values by layer, of one group only", text, alt)
    both = neurons.assign(universal=chosen).groupby(["layer", "universal"])[columns].median().unstack()
    parts, compared = [], 0
    for column in columns:
        pair = both[column].dropna()
        if pair.empty:
            continue
        compared = max(compared, len(pair))
        parts.append(f"{PROPERTIES[column]} in {int((pair[True] > pair[False]).sum())} of {len(pair)}")
    title = f"Raw values in the {count(compared, 'layer')} with universal neurons"
    text = (
        f"The median universal neuron lies above the median other neuron of its layer for: {'; '.join(parts)} layers."
    )
    if len(parts) < len(columns):
        text += f" {GATED}"
    return Caption(title, text, f"{alt} {title}.")


def frequency_and_cosine(neurons: pd.DataFrame) -> Caption:
    """Figure 9: do neurons that fire often erase, and neurons that fire seldom keep, what they read?"""
    alt = "Scatter of activation frequency against cos(w_in, w_out), one dot a neuron."
    if neurons["in_out_sim"].isna().all():
        return Caption("Gated neurons have no cos(w_in, w_out)", GATED, alt)
    correlation = universality.frequency_cosine_correlation(neurons)
    extent = neurons["in_out_sim"].abs().max()
    published = ", ".join(
        f"{signed(row.frequency_cosine)} for {PUBLISHED_MODELS[model]}" for model, row in PUBLISHED_SHARES.iterrows()
    )
    title = f"Activation frequency and cos(w_in, w_out) correlate {signed(correlation)}"
    unclear = not abs(correlation) > 2 / np.sqrt(len(neurons))  # two standard errors of a correlation of 0
    same = "no different from 0;" if unclear else "the same sign as" if correlation < 0 else "the opposite sign of"
    text = (
        f"Over all neurons the correlation is **{signed(correlation)}**, {same} the published {published} "
        f"({PUBLISHED_SOURCE}). The cosines stay within ±{extent:.2f} (published: within about ±0.8)."
    )
    return Caption(title, text, f"{alt} {title}.")


def redundancy(neurons: pd.DataFrame, threshold: float) -> Caption:
    """Figure 10: does a model hold near copies of its universal neurons?"""
    chosen = neurons["is_universal"]
    alt = "Cumulative shares of neurons by the largest cosine with another neuron of the same model, w_in and w_out."
    if neurons["max_cos_in"].isna().all():
        text = f"The median neuron's nearest other neuron has a cosine of {neurons['max_cos_out'].median():.2f} in w_out. {GATED}"
        return Caption("Nearest other neuron of the same model in w_out", text, alt)
    if chosen.all() or not chosen.any():
        median_in, median_out = neurons["max_cos_in"].median(), neurons["max_cos_out"].median()
        text = (
            f"{_all_or_no(chosen)} neuron is universal at this threshold. The median neuron's nearest other neuron has a "
            f"cosine of {median_in:.2f} (w_in) and {median_out:.2f} (w_out)."
        )
        return Caption("Nearest other neuron of the same model, with one group only", text, alt)
    other_in, other_out = (neurons.loc[~chosen, column].median() for column in ("max_cos_in", "max_cos_out"))
    own_in, own_out = (neurons.loc[chosen, column].median() for column in ("max_cos_in", "max_cos_out"))
    closer = [name for name, own, rest in (("w_in", own_in, other_in), ("w_out", own_out, other_out)) if own > rest]
    title = f"Universal neurons are closer to another neuron in {' and '.join(closer) or 'neither w_in nor w_out'}"
    text = (
        f"The largest cosine with another neuron's w_in has median **{own_in:.2f}** for universal and {other_in:.2f} for "
        f"other neurons; for w_out **{own_out:.2f}** and {other_out:.2f}."
    )
    return Caption(title, text, f"{alt} {title}.")
