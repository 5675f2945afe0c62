"""Captions of the figures of chapter 03, computed from the run's tables."""

import numpy as np
import pandas as pd

from lib.base.errors import listed
from lib.chapters.universality import measures, properties
from lib.chapters.universality.captions_activations import value_range
from lib.chapters.universality.properties import PUBLISHED_MODELS, PUBLISHED_SHARES
from lib.display.captions import GATED, Caption, count, percent, signed
from lib.display.claims import FEWEST, FEWEST_SEEDS, UNKNOWN, Decision, verdict

NEAR_COPY = 0.95  # cosine of two neurons' weights above which one is a near copy of the other
NEAR_ZERO = 0.1  # correlation below which, on either side, it is called near 0
BOXES = "Boxes: quartiles; whiskers: 5th and 95th percentile."


def _published(column: str, words) -> str:
    """A published number of each of the paper's models."""
    return ", ".join(
        f"{words(value)} for {PUBLISHED_MODELS[model]}" for model, value in PUBLISHED_SHARES[column].items()
    )


def excess(neurons: pd.DataFrame, threshold: float) -> Caption:
    """Figures 2a and 11: how many neurons are universal, beside the published shares."""
    number, total = int(neurons["is_universal"].sum()), len(neurons)
    title = f"{number:,} of {total:,} neurons ({percent(number / total)}) have an excess above {threshold:g}"
    text = (
        f"**{number:,}** of {count(total, 'neuron')} (**{percent(number / total)}**) are universal. "
        f"Published at 0.5, on 100 million tokens: {_published('share', percent)}."
    )
    return Caption(title, text, f"Histograms of best match and baseline, and of the excess correlation. {title}.")


def share_by_reference(
    shares: pd.DataFrame, reference: str, intervals: pd.DataFrame | None = None, over_seeds: Decision | None = None
) -> Caption:
    """From `reference_shares`, `share_intervals` and the ledger's interval: do the seeds and the text matter?"""
    found = f"{value_range(shares['share'], percent)} of the neurons are universal"
    text = f"Averaged over reference seeds **{percent(shares['share'].mean())}** of the neurons are universal"
    title = f"{found} with any seed as reference"
    if len(shares) == 1:
        title = f"{found} with seed {shares['seed'].iloc[0]}, the only reference"
        text = "Only one seed serves as reference; `compare: all` takes every seed in turn"
    elif over_seeds is not None and np.isfinite(over_seeds.low):
        low, high = percent(max(0.0, over_seeds.low)), percent(over_seeds.high)
        text += f" (grey: 95 % interval over seeds, **{low}** to **{high}**)"
    text += "."
    if intervals is not None:
        own = intervals.set_index("seed").loc[reference]
        interval = f"{percent(own['low'])} to {percent(own['high'])}"
        text += f" Resampling text and rotations gives {interval} for seed {reference} (black line)."
    return Caption(title, text, f"Bar chart of the share of universal neurons with each seed as reference. {title}.")


def share_by_compared(table: pd.DataFrame) -> Caption:
    """From `measures.share_by_compared`: does the number of compared seeds matter?"""
    alt = "Line plot of the share of universal neurons against the number of compared seeds."
    mean = table.groupby("compared")["share"].mean()
    if len(mean) < 2:
        return Caption("One compared seed: no smaller number", "The run compares each reference with one seed.", alt)
    title = f"{percent(mean.iloc[0])} universal with one compared seed, {percent(mean.iloc[-1])} with {mean.index[-1]}"
    few, many = (f"{number} compared seeds" if number > 1 else "one compared seed" for number in mean.index[[0, -1]])
    text = (
        "Share of universal neurons, averaged over all choices of so many compared seeds. The mean over references is "
        f"**{percent(mean.iloc[0])}** with {few} and **{percent(mean.iloc[-1])}** with {many}."
    )
    return Caption(title, text, f"{alt} {title}.")


def share_by_threshold(neurons_all_seeds: pd.DataFrame, threshold: float) -> Caption:
    """How much the share depends on the threshold and on the measure, averaged over reference seeds."""
    thresholds = [threshold - 0.1, threshold, threshold + 0.1]
    curves = measures.share_curves(neurons_all_seeds, thresholds)
    below, at, above = map(percent, curves["excess"])
    adjusted, worst = (percent(curves[name].iloc[1]) for name in ("adjusted excess", "worst-case excess"))
    title = f"Above {threshold:g}: {at} by excess, {adjusted} adjusted, {worst} in the worst case"
    text = (
        f"Share of neurons above each threshold. At {threshold:g} it is **{at}** by excess, **{adjusted}** by adjusted "
        f"excess and **{worst}** by worst-case excess; a threshold 0.1 lower or higher gives {below} or {above} by "
        "excess."
    )
    return Caption(title, text, f"Two line plots of the share of neurons by threshold. {title}.")


def ceiling(neurons: pd.DataFrame, threshold: float) -> Caption:
    """Which close matches are not universal?"""
    alt = "Scatter of each neuron's mean best match against its mean baseline, with lines of equal excess."
    found, bar = measures.at_the_ceiling(neurons, threshold), f"{measures.HIGH_MATCH:g}"
    if not found["high"]:
        return Caption(f"No mean match above {bar}", f"No neuron has a mean match above {bar}.", alt)
    missed, high = found["high"] - found["universal"], count(found["high"], "neuron")
    title = f"Of {high} with a mean match above {bar}, {missed:,} {'is' if missed == 1 else 'are'} not universal"
    text = f"Excess cannot pass one minus the baseline. Of {high} with a mean match above {bar}, "
    text += f"**{missed:,}** {'is' if missed == 1 else 'are'} not universal by excess"
    text += f": their baseline is {found['baseline']:.2f} on average" if missed else ""
    text += f". By adjusted excess **{found['adjusted']:,}** of the {found['high']:,} are above {threshold:g}"
    enough = (measures.HIGH_MATCH - threshold) / (1 - threshold) if threshold < measures.HIGH_MATCH else 0
    text += f"; with such a match any baseline below {enough:.2g} suffices." if found["adjusted"] and enough else "."
    return Caption(title, text, f"{alt} {title}.")


def share_by_layer(shares: pd.DataFrame, reference: str) -> Caption:
    """From `layer_shares` of all seeds: at which depth are universal neurons?

    Seeds are pooled where they have as many layers as the reference.
    """
    layers = shares.groupby("seed", sort=False)["layer"].transform("nunique")
    by_seed = shares[layers == (shares["seed"] == reference).sum()].pivot(index="layer", columns="seed")["universal"]
    pooled, total = by_seed.sum(axis=1), int(by_seed.sum(axis=None))
    alt = (
        "Bar chart of the universal share of each layer; lines by relative depth beside those of the published models."
    )
    text = "Share of universal neurons in each layer, beside the published models (thresholds of 0.5)."
    over = f"{count(by_seed.shape[1], 'seed')} as reference"
    if total < FEWEST:
        title = f"{count(total, 'universal neuron')} with {over}: too few to compare layers"
        title = title if total else f"No universal neuron in any layer, with {over}"
        return Caption(title, f"{text} {title}.", f"{alt} {title}.")
    most, fewest = pooled[pooled == pooled.max()].index, pooled[pooled == pooled.min()].index
    if len(most) == len(pooled):
        title = f"As many universal neurons in each layer, with {over}"
        return Caption(title, f"{text} {title}.", f"{alt} {title}.")
    title = f"Universal neurons are most frequent in {_layers(most)} ({pooled.max():,} of {total:,} with {over}), "
    title += f"rarest in {_layers(fewest)} ({pooled.min():,})"
    top = int((by_seed.loc[most] == by_seed.max()).any().sum())
    text += f" In **{top}** of {count(by_seed.shape[1], 'seed')} no layer has more of them than {_layers(most)}."
    return Caption(title, text, f"{alt} {title}.")


def _layers(found: pd.Index) -> str:
    """One to three layers by number, more of them as a number of layers."""
    if len(found) > 3:
        return f"{len(found)} layers"
    return f"{'layer' if len(found) == 1 else 'layers'} {listed(map(str, found))}"


def seed_agreement(neurons: pd.DataFrame, compared: int, over_seeds: Decision | None = None) -> Caption:
    """Figure 2b: do the compared seeds agree on how good a neuron's match is?

    `over_seeds` is the ledger's decision on the difference at equal mean match.
    """
    gaps = properties.corr_gap(neurons)
    alt = "Scatter of each neuron's smallest against its largest best match over the compared seeds."
    if compared < 2:
        text = "With one compared seed, the largest and the smallest correlation are the same."
        return Caption("One compared seed: nothing to differ", text, alt)
    title = f"Over {compared} compared seeds the best match varies by {gaps.mean():.3f} on average"
    universal = gaps[neurons["is_universal"]]
    own = f", by **{universal.mean():.3f}** for universal neurons" if len(universal) else "; no neuron is universal"
    title += f", by {universal.mean():.3f} for universal neurons" if len(universal) else ""
    text = (
        f"On average the largest and the smallest best match differ by **{gaps.mean():.3f}** for all neurons{own} "
        "(published for GPT2-medium: 0.049 and 0.105)."
    )
    if over_seeds is not None and np.isfinite(over_seeds.low):
        interval = f"{signed(over_seeds.low, 3)} to {signed(over_seeds.high, 3)} over seeds"
        if verdict(over_seeds, over_seeds.p_value) == UNKNOWN:
            text += " Whether they differ more than others of equal mean match, this run cannot tell"
            text += f" (95 % interval of the difference: {interval})."
        else:
            way = "more" if over_seeds.value > 0 else "less"
            text += f" Beside others of equal mean match they differ **{way}**: {signed(over_seeds.value, 3)} "
            text += f"({interval})."
    return Caption(title, text, f"{alt} {title}.")


def agreeing(neurons: pd.DataFrame, compared: int, threshold: float) -> Caption:
    """In how many of the compared seeds is a neuron's excess above the threshold?"""
    universal = neurons[neurons["is_universal"]]
    every, some = (int((universal["k_of_m"] == compared).sum()), int((neurons["k_of_m"] > 0).sum()))
    number = count(len(universal), "universal neuron")
    title = f"{every:,} of {number} pass in each of {count(compared, 'compared seed')}"
    text = f"Neurons by the number of compared seeds in which their excess is above {threshold:g}. "
    text += f"Of {number} **{every:,}** pass in all {compared}; **{some:,}** neurons pass in at least one."
    if not len(universal):
        title = f"No universal neuron; {count(some, 'neuron')} with a compared seed passed"
        text = f"No neuron is universal; **{some:,}** have an excess above {threshold:g} in at least one compared seed."
    return Caption(title, text, f"Bar chart of neurons by the number of compared seeds that they pass in. {title}.")


def layer_agreement(matrix: pd.DataFrame, over_seeds: Decision | None = None) -> Caption:
    """Figure 2c, from `match_layer_percent`: do matches lie at the same depth?

    `over_seeds` is the ledger's decision on the share in the same layer minus chance.
    """
    known = matrix.dropna()
    distance = np.abs(np.subtract.outer(known.index.to_numpy(), known.columns.to_numpy()))
    within = [known.where(distance <= most, 0).sum(axis=1) for most in (0, 1)]
    same, near = (share.mean() for share in within)
    chance, near_chance = 100 / len(matrix), 100 * (distance <= 1).mean()
    by_depth = matrix.index.name == "depth"
    place, places = properties.place_words(by_depth)
    own = f"{value_range(within[0], '{:.0f}'.format)} % by {place}"
    title = f"{same:.0f} % of best matches lie in the same {place} of the other seed ({own}; chance {chance:.0f} %)"
    text = f"Averaged over {places}, **{same:.0f} %** of the neurons have their best match in the same {place}"
    if over_seeds is not None and np.isfinite(over_seeds.low):
        low, high = (100 * bound + chance for bound in (over_seeds.low, over_seeds.high))
        text += f" ({low:.0f} to {high:.0f} %, 95 % over seeds)"
    text += f". In the same or an adjacent {place} it is {near:.0f} % (chance: {near_chance:.0f} %)."
    if by_depth:
        text += f" The seeds have different numbers of layers, so each depth is cut into {len(matrix)} equal parts."
    alt = f"Heat map of the {place} of the best match against the {place} of the neuron; columns sum to 100 percent."
    return Caption(title, text, f"{alt} {title}.")


def partners(numbers: dict[str, float], seeds: int, references: int) -> Caption:
    """From `matching.partner_summary`: does another seed hold the same neuron?

    Cliques need all `seeds` of the run among its `references`.
    """
    alt = "Share of mutual best matches and of neurons in a clique by excess; bar chart of cliques by layer."
    title = f"{percent(numbers['mutual'], 0)} of all best matches are mutual"
    text = f"**{percent(numbers['mutual'], 0)}** of all best matches are mutual"
    if numbers["universal"]:
        title = f"{percent(numbers['mutual_universal'], 0)} of the best matches of universal neurons are mutual"
        text += f", and **{percent(numbers['mutual_universal'], 0)}** of those of universal neurons"
    if references < seeds:
        text += "; a clique needs every seed as reference (`compare: all`)."
    else:
        span = "spans" if numbers["cliques"] < 2 else "span"
        title += f"; {count(numbers['cliques'], 'clique')} {span} all {seeds} seeds"
        text += f". Cliques: **{numbers['cliques']:,}**"
        if numbers["cliques"]:
            place, _ = properties.place_words(numbers["by_depth"])
            text += f", {percent(numbers['one_layer'], 0)} of them within one {place}"
        text += "."
    if numbers["universal"]:
        text += (
            f" If every neuron is used only once, **{numbers['universal_assigned']:,.0f}** instead of "
            f"{numbers['universal']:,.0f} neurons are universal. That is a lower bound: the assignment restricts the "
            "match, not the baseline."
        )
    return Caption(title, text, f"{alt} {title}.")


def property_percentiles(tests: pd.DataFrame, number: int, over_seeds: dict[str, Decision] | None = None) -> Caption:
    """Figure 3, from `property_tests` of `number` universal neurons: how they rank within their layer.

    Whether a published side holds is said over seeds, from the ledger's decisions `over_seeds` by property; with fewer
    than two seeds to ask, of the reference alone.
    """
    alt = "Box plots of the percentile within their layer of the universal neurons, one per property."
    if number == 0:
        text = "No neuron is universal at this threshold, so there is nothing to rank."
        return Caption("No universal neuron to rank", text, alt)
    known = tests[(tests["published"] != "") & tests["median_percentile"].notna()]
    asked = {name: one for name, one in (over_seeds or {}).items() if one.seeds > 1 and name in set(known["property"])}
    text = f"Percentiles of {count(number, 'universal neuron')} within their layer. {BOXES} "
    if asked:
        seeds, label = max(one.seeds for one in asked.values()), known.set_index("property")["label"]
        there = [name for name, one in asked.items() if one.agree == one.seeds]
        away = [name for name, one in asked.items() if one.against == one.seeds]
        mixed = [name for name in asked if name not in {*there, *away}]
        title = f"{len(there)} of {len(asked)} medians lie on the published side of 50 in each of {seeds} seeds"
        title += f"; the seeds disagree on {label[mixed[0]]}" if len(mixed) == 1 else ""
        text += f"**{len(there)}** of {len(asked)} medians lie on the published side of 50 in each of {seeds} seeds."
        text += f" On the other side in each seed: {listed(label[away])}." if away else ""
        if mixed:
            means = "; ".join(f"{label[name]} {_interval(asked[name])}" for name in mixed)
            text += f" The seeds disagree, so this run cannot tell: {means}."
        text += " Three seeds are needed to decide." if seeds < FEWEST_SEEDS else ""
    else:
        high = known["published"] == "high"
        there = ((known["median_percentile"] > 50) == high) & ((known["effect"] > 0) == high)
        title = f"{there.sum()} of {len(known)} properties differ in the published direction, in one seed"
        text += f"**{there.sum()}** of {len(known)} properties differ in the published direction by median and effect"
        text += "." if there.all() else f", not {listed(known.loc[~there, 'label'])}."
        if number < FEWEST:
            text += f" With fewer than {FEWEST} universal neurons this seed decides nothing."
    if tests["median_percentile"].isna().any():
        text += f" {GATED}"
    return Caption(title, text, f"{alt} {title}.")


def property_table(tests: pd.DataFrame, over_seeds: dict[str, Decision]) -> pd.DataFrame:
    """`property_tests` as a reader's table, one row per property, numbers as text; beside the reference's numbers the
    mean over seeds of the median percentile, with its interval, from the ledger's `over_seeds`, by property."""

    def numbers(column: str, form: str) -> list[str]:
        return [format(value, form) if np.isfinite(value) else "–" for value in tests[column]]

    shown = {"median percentile": numbers("median_percentile", ".0f")}
    shown |= {"effect (Cliff's delta)": numbers("effect", "+.2f"), "corrected p": numbers("p_corrected", ".2g")}
    shown["mean over seeds (95 % interval)"] = [_interval(over_seeds.get(name)) for name in tests["property"]]
    shown |= {f"published {name}": numbers(f"published_{model}", ".0f") for model, name in PUBLISHED_MODELS.items()}
    shown = {head: [one.replace("-", "−") for one in cells] for head, cells in shown.items()}
    return pd.DataFrame({"property": tests["label"], **shown})


def _interval(found: Decision | None) -> str:
    """The mean over the seeds that can be asked, and its interval."""
    if found is None or not found.seeds:
        return "–"
    low, high = (min(100.0, max(0.0, bound)) for bound in (found.low, found.high))
    return f"{found.value:.0f}" + (f" ({low:.0f} to {high:.0f})" if np.isfinite(found.low) else "")


def _one_group(neurons: pd.DataFrame) -> str | None:
    """What to say where all neurons, or none, are universal."""
    if neurons["is_universal"].nunique() > 1:
        return None
    return f"{'Every' if neurons['is_universal'].all() else 'No'} neuron is universal at this threshold"


def frequency_and_cosine(
    neurons: pd.DataFrame, by_layer: pd.DataFrame, reference: str, over_seeds: Decision | None = None
) -> Caption:
    """Figure 9, with `frequency_cosine_by_layer`: do neurons that fire often write against what they read?

    `over_seeds` is the ledger's decision on the mean of the layers' correlations.
    """
    alt = "Scatter of activation frequency against cos(w_in, w_out), one dot a neuron; bar chart of their correlation."
    if neurons["in_out_sim"].isna().all():
        return Caption("Gated neurons have no cos(w_in, w_out)", GATED, alt)
    own = by_layer.loc[by_layer["seed"] == reference, "correlation"].dropna()
    pooled = properties.frequency_cosine_correlation(neurons)
    size = "near 0" if abs(pooled) < NEAR_ZERO else "positive" if pooled > 0 else "negative"
    title = f"Frequency and cos(w_in, w_out): pooled correlation {size} ({signed(pooled)}); negative within "
    title += f"{(own < 0).sum()} of {count(len(own), 'layer')} ({value_range(own, signed)})"
    text = (
        f"Pooled over layers the correlation is **{signed(pooled)}** (published: "
        f"{_published('frequency_cosine', signed)}). Within layers it is {value_range(own, signed)}, on average "
        f"**{signed(own.mean())}**"
    )
    if over_seeds is not None and np.isfinite(over_seeds.low):
        text += f" ({signed(over_seeds.low)} to {signed(over_seeds.high)}, 95 % over seeds)"
    return Caption(title, f"{text}.", f"{alt} {title}.")


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
    largest = neurons.loc[neurons["is_universal"], ["max_cos_in", "max_cos_out"]].max(axis=None)
    if not alone and np.isfinite(largest):
        copies = "none is a near copy" if largest < NEAR_COPY else "there are near copies"
        title += f"; {copies}: largest cosine {largest:.2f}"
        text += f" The largest of any universal neuron is **{largest:.2f}**."
    if alone:
        title, text = "Nearest other neuron, of one group only", f"{alone}. The median cosine is {' and '.join(found)}."
    if neurons["max_cos_in"].isna().all():
        text += f" {GATED}"
    return Caption(title, text, f"{alt} {title}.")
