"""Captions of the figures of chapters 01 to 03, computed from the run's tables."""

import numpy as np
import pandas as pd

from lib.base.errors import capital, listed
from lib.chapters.universality import properties
from lib.chapters.universality.properties import PROPERTIES, PUBLISHED_MODELS, PUBLISHED_SHARES
from lib.display.captions import GATED, Caption, count, percent, signed
from lib.display.claims import FAILS, FEWEST, HOLDS, SIGNIFICANT, UNKNOWN


def _range(values: pd.Series, words) -> str:
    """Smallest to largest value, or the one that all have."""
    low, high = words(values.min()), words(values.max())
    return low if low == high else f"{low} to {high}"


def _published(column: str, words) -> str:
    """A published number of each of the paper's models."""
    return ", ".join(
        f"{words(value)} for {PUBLISHED_MODELS[model]}" for model, value in PUBLISHED_SHARES[column].items()
    )


# ---------------------------------------------------------------- notebook 01: the text and its activations


def losses(table: pd.DataFrame, vocabulary: int) -> Caption:
    """How well the seeds predict the text; `vocabulary` is the number of tokens."""
    every = table[table["domain"] == "all"]
    title = f"Loss of {count(len(every), 'seed')}: {_range(every['loss'], '{:.2f}'.format)} nats per token"
    apart = every["loss"].max() / every["loss"].min() - 1
    text = (
        f"Mean cross-entropy by domain on {every['tokens'].max():,} predicted tokens; uniform guessing over "
        f"{vocabulary:,} tokens would lose {np.log(vocabulary):.2f}. The seeds lie **{percent(apart, 1)}** apart."
    )
    return Caption(title, text, f"Dot plot of loss by domain of text, one dot per seed. {title}.")


def composition(text_table: pd.DataFrame) -> Caption:
    """What the text consists of."""
    counted, tokens = text_table["counted"].sum(), text_table["tokens"].sum()
    largest = text_table.loc[text_table["counted"].idxmax()]
    title = f"{counted:,} counted tokens from {count(len(text_table), 'domain')}"
    text = (
        f"Of the text's {tokens:,} positions **{percent(counted / tokens, 1)}** are counted. The largest domain, "
        f"*{largest['domain']}*, has {percent(largest['counted'] / counted, 1)} of them."
    )
    return Caption(title, text, f"Bar chart of the counted tokens in each domain of text. {title}.")


def pass_facts(done: dict) -> pd.DataFrame:
    """What the pass wrote about itself: fact, value."""
    facts = {
        "tokens counted": f"{done['tokens_counted']:,}",
        "blocks × context": f"{done['blocks']:,} × {done['context']:,}",
        "passes over the text": str(done.get("passes", 1)),
        "products of activations": _products(done.get("rows", 0), done.get("products", "exact")),
        "precision of the products": str(done["precision"]),
        "device": str(done.get("device_name", done["device"])),
        "loops over activations": str(done.get("loops", "torch")),
        "wall time": f"{done['wall_seconds']:,.1f} s",
        "speed, summed over seeds and passes": f"{done['tokens_per_second']:,.0f} tokens/s",
        "peak memory": f"{done['peak_memory_bytes'] / 1e9:.2f} GB",
    }
    return pd.DataFrame(facts.items(), columns=["fact", "value"])


def _products(rows: int, products: str) -> str:
    return f"estimated from a sketch of {rows:,} rows" if products == "sketch" else "exact"


def activation_histograms(chosen: pd.DataFrame) -> Caption:
    """How skewed and how often active the drawn neurons (rows of `neurons`) are."""
    skewed = int((chosen["skew"] > 1).sum())
    title = f"A long right tail in {skewed} of {count(len(chosen), 'chosen neuron')}"
    text = (
        f"The skew is above 1 (a Gaussian has 0) in **{skewed}** of {count(len(chosen), 'neuron')}. They are active on "
        f"{_range(chosen['sparsity'], lambda share: percent(share, 1))} of the counted tokens."
    )
    return Caption(title, text, f"Histograms of the pre-activation of chosen neurons, counts on a log axis. {title}.")


# ---------------------------------------------------------------- notebook 02: correlation and its baseline


def correlation_by_layer(neurons: pd.DataFrame, outsiders: pd.DataFrame | None = None) -> Caption:
    """Best matches and their rotated baseline; with the table `outsiders` of a run whose products are a sketch's."""
    corr, baseline, excess = neurons[["mean_corr", "mean_baseline", "excess_corr"]].mean()
    title = f"Best matches correlate {corr:.2f} on average, {baseline:.2f} in a rotated basis"
    text = (
        "Boxes: quartiles of each layer's neurons; whiskers: 5th and 95th percentile. The mean excess is "
        f"**{excess:.3f}**; it is above 0 for {percent((neurons['excess_corr'] > 0).mean(), 1)} of the neurons."
    )
    if neurons["dead"].any():
        text += f" Neurons that never vary on this text ({neurons['dead'].sum():,}) have correlation 0 by definition."
    if outsiders is not None:
        number, total = outsiders["outsiders"].sum(), outsiders["neurons"].sum()
        text += (
            f" Of all references' {total:,} best matches, **{number:,}** may be surpassed by a neuron that was not "
            "followed: by the sketch it is better by more than four standard errors."
        )
    return Caption(title, text, f"Box plots by layer of best match and rotated baseline. {title}.")


def draws(draw_summary: pd.DataFrame, spread: pd.Series, neurons: pd.DataFrame) -> Caption:
    """From `draw_summary` and `draw_spread` of the reference: does the draw of the rotation matter?"""
    alt = "Histogram of the standard deviation of each neuron's baseline over draws; bar chart of universal neurons."
    if len(draw_summary) < 2:
        text = "This run drew a single rotation; set `rotations` to 2 or more to see the spread."
        return Caption("One rotation draw: its spread is unknown", text, alt)
    title = f"Another rotation moves a neuron's baseline by {spread.median():.4f}"
    text = (
        f"The standard deviation of a neuron's baseline over {len(draw_summary)} draws has median "
        f"**{spread.median():.4f}**. Any single draw would call {_range(draw_summary['universal'], '{:,}'.format)} of "
        f"{len(neurons):,} neurons universal."
    )
    return Caption(title, text, f"{alt} {title}.")


def convergence(summary: pd.DataFrame, reference: str) -> Caption:
    """From `convergence_summary`: what more tokens change."""
    own = summary[summary["seed"] == reference].sort_values("tokens")
    last = own.iloc[-1]
    alt = "Line plots against the number of tokens: mean best match, baseline and excess; universal neurons."
    if len(own) < 2:
        text = f"The text is too short to measure matches on shares of it; it has {last['tokens']:,.0f} counted tokens."
        return Caption("Too few tokens to see convergence", text, alt)
    before = own.iloc[-2]
    move = signed(last["excess_corr"] - before["excess_corr"], 4)
    title = f"The last {last['tokens'] / before['tokens']:.1f}× of tokens moved the mean excess by {move}"
    text = "Means over the reference's neurons (left) and the number of universal neurons of every seed (right), all "
    text += "against the baseline of the whole text. "
    text += f"From {before['tokens']:,.0f} to {last['tokens']:,.0f} tokens "
    if np.isfinite(before["agreement"]):
        text += (
            f"the number went from {before['universal']:,.0f} to **{last['universal']:,.0f}**, and "
            f"{percent(before['agreement'], 0)} of the neurons universal at either point are universal at both."
        )
    else:
        text += "no neuron is universal."
    return Caption(title, text, f"{alt} {title}.")


def sampling(table: pd.DataFrame, neurons: pd.DataFrame, threshold: float) -> Caption:
    """From the reference's rows of `sampling`: how much of a best match is luck of the text?"""
    alt = "Scatter of the correlation on other text against the best match; histogram of the excess' standard error."
    if not len(table):
        text = "This run has no parts of its text to compare: they need more text."
        return Caption("No parts of the text to compare", text, alt)
    held_out = neurons[["layer", "neuron", "mean_baseline"]].merge(table, on=["layer", "neuron"])
    share = (held_out["held_out_corr"] - held_out["mean_baseline"] > threshold).mean()
    means = f"{table['held_out_corr'].mean():.3f} instead of {neurons['mean_corr'].mean():.3f}"
    title = f"With partners chosen on other text the mean match is {means}"
    text = (
        f"With partners chosen on other text **{percent(share)}** of the neurons are universal, instead of "
        f"{percent(neurons['is_universal'].mean())}. The standard error of a neuron's excess has median "
        f"**{table['excess_se'].median():.4f}**; it is underestimated if parts of the text share documents."
    )
    return Caption(title, text, f"{alt} {title}.")


# ---------------------------------------------------------------- notebook 03: universality


def excess(neurons: pd.DataFrame, threshold: float) -> Caption:
    """Figures 2a and 11: how many neurons are universal, beside the published shares."""
    number, total = int(neurons["is_universal"].sum()), len(neurons)
    title = f"{number:,} of {total:,} neurons ({percent(number / total)}) have an excess above {threshold:g}"
    text = (
        f"**{number:,}** of {count(total, 'neuron')} (**{percent(number / total)}**) are universal. "
        f"Published at 0.5, on 100 million tokens: {_published('share', percent)}."
    )
    return Caption(title, text, f"Histograms of best match and baseline, and of the excess correlation. {title}.")


def share_by_reference(shares: pd.DataFrame, intervals: pd.DataFrame | None = None) -> Caption:
    """From `reference_shares` and `share_intervals`: do the reference seed and the text matter?"""
    found = f"{_range(shares['share'], percent)} of the neurons are universal"
    text = f"Averaged over reference seeds **{percent(shares['share'].mean())}** of the neurons are universal."
    title = f"{found} with any seed as reference"
    if len(shares) == 1:
        title = f"{found} with seed {shares['seed'].iloc[0]}, the only reference"
        text = "Only one seed serves as reference; `compare: all` takes every seed in turn."
    if intervals is not None:
        own = intervals.loc[intervals["share"].idxmax()]
        interval = f"**{percent(own['low'])}** to **{percent(own['high'])}**"
        text += f" For seed {own['seed']} other text of this kind would give {interval} (95 % interval, black line)."
    return Caption(title, text, f"Bar chart of the share of universal neurons with each seed as reference. {title}.")


def share_by_threshold(neurons_all_seeds: pd.DataFrame, threshold: float) -> Caption:
    """How much the share depends on the threshold, averaged over reference seeds."""
    thresholds = np.array([threshold - 0.1, threshold, threshold + 0.1])
    seeds = neurons_all_seeds.groupby("seed", sort=False)["excess_corr"]
    shares = np.mean([properties.shares_above(values, thresholds) for _, values in seeds], axis=0)
    below, at, above = map(percent, shares)
    title = f"A threshold 0.1 lower or higher: {below} or {above} universal"
    text = (
        "Share of universal neurons with each seed as reference. On average it is "
        f"{below} at {thresholds[0]:.2g}, **{at}** at {threshold:g} and {above} at {thresholds[2]:.2g}."
    )
    return Caption(title, text, f"Share of universal neurons by threshold, one line per reference seed. {title}.")


def share_by_layer(shares: pd.DataFrame, reference: str) -> Caption:
    """From `layer_shares` of all seeds: at which depth are universal neurons?"""
    own = shares[shares["seed"] == reference].set_index("layer")
    total, top = int(own["universal"].sum()), own["universal"].idxmax()
    alt = (
        "Bar chart of the universal share of each layer; lines by relative depth beside those of the published models."
    )
    if not total:
        return Caption("No universal neuron in any layer", "No neuron of the reference is universal.", alt)
    title = f"Layer {top} has {percent(own['universal'].max() / total, 0)} of the universal neurons"
    text = (
        f"Share of universal neurons in each layer, beside the published models (thresholds of 0.5). Layer {top} has "
        f"**{own['universal'].max():,}** of the {total:,}; layers without any: {(own['universal'] == 0).sum()}."
    )
    return Caption(title, text, f"{alt} {title}.")


def seed_agreement(neurons: pd.DataFrame, compared: int) -> Caption:
    """Figure 2b: do the compared seeds agree on how good a neuron's match is?"""
    gaps = properties.corr_gap(neurons)
    alt = "Scatter of each neuron's smallest against its largest best match over the compared seeds."
    if compared < 2:
        text = "With one compared seed, the largest and the smallest correlation are the same."
        return Caption("One compared seed: nothing to differ", text, alt)
    title = f"Over {compared} compared seeds the best match varies by {gaps.mean():.3f} on average"
    universal = gaps[neurons["is_universal"]]
    own = f", by **{universal.mean():.3f}** for universal neurons" if len(universal) else "; no neuron is universal"
    text = (
        f"On average the largest and the smallest best match differ by **{gaps.mean():.3f}** for all neurons{own}. "
        "Published for GPT2-medium: 0.049 and 0.105."
    )
    return Caption(title, text, f"{alt} {title}.")


def layer_agreement(matrix: pd.DataFrame) -> Caption:
    """Figure 2c, from `match_layer_percent`: do matches lie at the same depth?"""
    known = matrix.dropna()
    distance = np.abs(np.subtract.outer(known.index.to_numpy(), known.columns.to_numpy()))
    same, near = (known.where(distance <= most, 0).sum(axis=1).mean() for most in (0, 1))
    by_depth = matrix.index.name == "depth"
    place, places = properties.place_words(by_depth)
    title = f"{same:.0f} % of best matches lie in the same {place} of the other seed"
    text = (
        f"Averaged over {places}, **{same:.0f} %** of the neurons have their best match in the same {place} (chance: "
        f"{100 / len(matrix):.0f} %), and {near:.0f} % in the same or an adjacent {place}."
    )
    if by_depth:
        text += f" The seeds have different numbers of layers, so each depth is cut into {len(matrix)} equal parts."
    alt = f"Heat map of the {place} of the best match against the {place} of the neuron; columns sum to 100 percent."
    return Caption(title, text, f"{alt} {title}.")


def partners(numbers: dict[str, float], seeds: int, references: int) -> Caption:
    """From `matching.partner_summary`: does another seed hold the same neuron?

    Cliques need all `seeds` of the run among its `references`.
    """
    alt = "Share of mutual best matches and of neurons in a clique by excess; bar chart of cliques by layer."
    title = f"{percent(numbers['mutual'], 0)} of best matches are mutual"
    text = f"**{percent(numbers['mutual'], 0)}** of best matches are mutual"
    if numbers["universal"]:
        text += f", and **{percent(numbers['mutual_universal'], 0)}** of those of universal neurons"
    if references < seeds:
        text += "; a clique needs every seed as reference (`compare: all`)."
    else:
        title = f"{capital(count(numbers['cliques'], 'clique'))} of one neuron from each of {seeds} seeds"
        text += f". Cliques: **{numbers['cliques']:,}**"
        if numbers["cliques"]:
            place, _ = properties.place_words(numbers["by_depth"])
            text += f", {percent(numbers['one_layer'], 0)} of them within one {place}"
        text += "."
    text += (
        f" If every neuron is used only once, {numbers['universal_assigned']:,.0f} instead of "
        f"{numbers['universal']:,.0f} neurons would be universal."
    )
    return Caption(title, text, f"{alt} {title}.")


def property_percentiles(tests: pd.DataFrame, number: int) -> Caption:
    """Figure 3, from `property_tests` of `number` universal neurons: how they rank within their layer."""
    alt = "Box plots of the percentile within their layer of the universal neurons, one per property."
    if number == 0:
        text = "No neuron is universal at this threshold, so there is nothing to rank."
        return Caption("No universal neuron to rank", text, alt)
    tested = tests[(tests["verdict"] != "") & tests["median_percentile"].notna()]
    holds, fails, unknown = (list(tested.loc[tested["verdict"] == one, "label"]) for one in (HOLDS, FAILS, UNKNOWN))
    direction, parts = "the paper's direction", []
    if holds:
        parts.append(f"{direction} **holds** for {listed(holds)}")
    if fails:
        parts.append(f"{'it' if holds else direction} **does not hold** for {listed(fails)}")
    if unknown:
        few = f"{number} universal, fewer than {FEWEST}" if number < FEWEST else f"corrected p ≥ {SIGNIFICANT:g}"
        parts.append(f"this run **cannot tell** for {listed(unknown)} ({few})")
    title = f"{len(holds)} of {len(tested)} published directions hold"
    text = f"Boxes show where universal neurons rank within their layer. {capital('; '.join(parts))}."
    if tests["median_percentile"].isna().any():
        text += f" {GATED}"
    return Caption(title, text, f"{alt} {title}.")


def property_table(tests: pd.DataFrame) -> pd.DataFrame:
    """`property_tests` as a reader's table: one row per property, numbers as text."""

    def numbers(column: str, form: str) -> list[str]:
        return [format(value, form) if np.isfinite(value) else "–" for value in tests[column]]

    shown = {"median percentile": numbers("median_percentile", ".0f")}
    shown |= {"effect (Cliff's delta)": numbers("effect", "+.2f"), "corrected p": numbers("p_corrected", ".2g")}
    shown |= {f"published {name}": numbers(f"published_{model}", ".0f") for model, name in PUBLISHED_MODELS.items()}
    words = {"published direction": tests["published"].replace("", "–"), "here": tests["verdict"].replace("", "–")}
    return pd.DataFrame({"property": tests["label"], **shown, **words})


def _one_group(neurons: pd.DataFrame) -> str | None:
    """What to say where all neurons, or none, are universal."""
    if neurons["is_universal"].nunique() > 1:
        return None
    return f"{'Every' if neurons['is_universal'].all() else 'No'} neuron is universal at this threshold"


def raw_values(neurons: pd.DataFrame, columns: list[str]) -> Caption:
    """Figure 14: raw values by layer, universal neurons beside the others."""
    alt = "Box plots of raw property values by layer, universal neurons beside the other neurons."
    alone = _one_group(neurons)
    if alone:
        return Caption("Raw values by layer, of one group only", f"{alone}, so there is nothing to compare.", alt)
    medians = neurons.groupby(["layer", "is_universal"])[columns].median().unstack()
    pairs = {PROPERTIES[column]: pair for column in columns if len(pair := medians[column].dropna())}
    above, below = (
        [name for name, pair in pairs.items() if (sign * (pair[True] - pair[False]) > 0).all()] for sign in (1, -1)
    )
    known = count(len(pairs), "property", "properties")
    title = f"{len(above) + len(below)} of {known} differ in the same direction in every layer"
    found = [f"**{side}** for {listed(names)}" for side, names in (("higher", above), ("lower", below)) if names]
    text = "Boxes: quartiles of each layer's neurons; whiskers: 5th and 95th percentile. In every layer with universal "
    text += f"neurons their median is {' and '.join(found) or 'neither higher nor lower for any property'}."
    if len(pairs) < len(columns):
        text += f" {GATED}"
    return Caption(title, text, f"{alt} {title}.")


def frequency_and_cosine(neurons: pd.DataFrame) -> Caption:
    """Figure 9: do neurons that fire often write against what they read?"""
    alt = "Scatter of activation frequency against cos(w_in, w_out), one dot a neuron."
    if neurons["in_out_sim"].isna().all():
        return Caption("Gated neurons have no cos(w_in, w_out)", GATED, alt)
    correlation = properties.frequency_cosine_correlation(neurons)
    title = f"Activation frequency and cos(w_in, w_out) correlate {signed(correlation)}"
    clear = abs(correlation) > 2 / np.sqrt(len(neurons))  # two standard errors of a correlation of 0
    text = f"Over all neurons the correlation is **{signed(correlation)}**"
    text += "" if clear else ", not distinguishable from 0"
    text += f". Published: {_published('frequency_cosine', signed)}."
    return Caption(title, text, f"{alt} {title}.")


def redundancy(neurons: pd.DataFrame) -> Caption:
    """Figure 10: does a model hold near copies of its universal neurons?"""
    alt = "Cumulative shares of neurons by the largest cosine with another neuron of the same model, w_in and w_out."
    alone, groups = _one_group(neurons), neurons.groupby("is_universal")
    found, closer = [], []
    for weights, column in {"w_in": "max_cos_in", "w_out": "max_cos_out"}.items():
        if neurons[column].isna().all():
            continue
        if alone:
            found.append(f"{neurons[column].median():.2f} ({weights})")
            continue
        other, own = groups[column].median()
        found.append(f"**{own:.2f}** against {other:.2f} ({weights})")
        closer += [weights] if own > other else []
    title = f"Universal neurons are closer to another neuron in {' and '.join(closer) or 'neither w_in nor w_out'}"
    text = f"Median of the largest cosine, universal against other neurons: {' and '.join(found)}."
    if alone:
        title, text = "Nearest other neuron, of one group only", f"{alone}. The median cosine is {' and '.join(found)}."
    if neurons["max_cos_in"].isna().all():
        text += f" {GATED}"
    return Caption(title, text, f"{alt} {title}.")
