"""Chapter 7's captions: from the tables of training checkpoints to titles, sentences and alternative texts."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from scipy.stats import fisher_exact

from lib.base.errors import capital, listed
from lib.chapters.emergence.checkpoints import equal_points, equal_words
from lib.chapters.emergence.figures import HEAD_SCORES, Timeline
from lib.chapters.emergence.statistics import HEAD_BAR, constant_rate, fullest_layers
from lib.collect.seed_checks import groups_in_words
from lib.display.captions import Caption, count, percent
from lib.display.claims import SIGNIFICANT, UNKNOWN, VERDICTS

MAX_LAYERS = 4  # that are named
NO_TABLES = (
    "There are no tables of training checkpoints for these seeds. `make emergence RUN=…` makes them if all seeds have "
    "checkpoints: local folders, or revisions `checkpoint-<step>` or `step<k>` of Hub models."
)


def origin(record: dict, shipped: bool, present: dict[str, str | None]) -> str:
    """Where the tables come from; `present` has the SHA-256 of the run's seeds as they are now."""
    labels, last = [point["label"] for point in record["points"]], record["points"][-1]
    source = "shipped with the repository (`data/emergence`)" if shipped else "computed for this run (`make emergence`)"
    text = (
        f"These tables were {source}: **{count(len(labels), 'checkpoint')}** ({', '.join(labels)}) of "
        f"{count(len(last['seeds']), 'seed')}, each measured on {record['counted']:,} counted tokens of "
        f"{record['text']}, {count(record['rotations'], 'rotation')} for the baseline."
    )
    if record.get("constant_rate"):
        first_step, last_step = record["constant_rate"]
        text += f" The learning rate warms up to step {first_step:,} and is constant to step {last_step:,}"
        decays = last["step"] and last["step"] > last_step
        text += f"; then it decays to zero at step {last['step']:,}." if decays else "."
    own = next((point for point in record["points"] if point["label"] == "final"), last)
    other = sorted(name for name, hashed in present.items() if hashed and own["seeds"].get(name) != hashed)
    if other:
        names = f"seed {other[0]} is" if len(other) == 1 else f"seeds {', '.join(other)} are"
        text += f" **The run's {names} not among these checkpoints:** do not compare the numbers of other chapters."
    return text


def identity(record: dict) -> str:
    """Are the checkpoints what they are called? Two sentences: equal checkpoints, and seeds of one initialisation.

    Tables of older code know the hash of whole weights only.
    """
    records = record["points"]
    known = all(point.get("w_in") for point in records)
    groups = equal_points({point["label"]: point["w_in" if known else "seeds"] for point in records})
    what = "the same w_in in the first layer" if known else "the same weights"
    text = f"No seed has {what} at two checkpoints."
    if groups:
        text = f"**These checkpoints have {what}**: {equal_words(groups)}."
    looked = {point["label"]: point["shared"] for point in records if point.get("shared") is not None}
    named = [f"{groups_in_words(groups)} at {label}" for label, groups in looked.items() if groups]
    if named:
        text += f" **These seeds share an initialisation**: {'; '.join(named)}."
    elif looked:
        text += (
            f" No two seeds share an initialisation, at {count(len(looked), 'checkpoint')} of {len(records)} compared."
        )
    return text


def spread(values: Sequence[float], words: Callable[[float], str] = "{:.2f}".format) -> str:
    """ "mean (low to high)" over seeds."""
    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known)]
    if not len(known):
        return "not measured"
    low, high = words(known.min()), words(known.max())
    return low if low == high else f"{words(known.mean())} ({low} to {high})"


def claims(table: pd.DataFrame) -> str:
    """How many claims hold; of those that do, how many are expected to be wrong."""
    holds, fails, unknown = table["verdict"].value_counts().reindex(VERDICTS, fill_value=0)
    wrong = f" Of the {holds + fails} decided, at most {SIGNIFICANT * (holds + fails):.1f} are expected to be wrong."
    return (
        f"Of {count(len(table), 'claim')}, **{holds}** hold in every seed, **{fails}** hold in none and **{unknown}** "
        f"cannot be decided.{wrong if holds + fails else ''}"
    )


def claims_table(table: pd.DataFrame) -> pd.DataFrame:
    """`claims.claims` as a reader's table; a row that cannot tell says what would decide it."""
    undecided = (table["verdict"] == UNKNOWN) & (table["decides"] != table["here"])
    here = table["here"] + (". Would decide it: " + table["decides"]).where(undecided, "")
    shown = table[["verdict", "claim", "published", "source"]].assign(here=here)
    return shown[["verdict", "claim", "here", "published", "source"]].rename(
        columns={"here": "here, mean (95 % interval)"}
    )


def losses(table: pd.DataFrame, time: Timeline) -> Caption:
    """How far training has come."""
    mean = table[table["domain"] == "all"].groupby("point", sort=False)["loss"].mean()
    first, last, best = mean.index[0], mean.index[-1], mean.idxmin()
    fell = mean[best] < mean[first] - 0.005
    falls = f"Held-out loss falls from {mean[first]:.2f} to {mean[best]:.2f} nats per token"
    title = falls if fell else "Held-out loss does not fall"
    text = (
        f"Mean over seeds: **{mean[first]:.3f}** at {time.moment(first)}, **{mean[last]:.3f}** at {time.moment(last)}, "
        f"over {table['tokens'].max():,} predicted tokens (chapter 01 may measure on fewer)."
    )
    if best != last:
        text += f" The lowest is {mean[best]:.3f} at {time.moment(best)}."
    text += time.span
    return Caption(title, text, f"Line chart of held-out loss against training, by domain and for all text. {title}.")


def shares(table: pd.DataFrame, points: pd.DataFrame, time: Timeline, threshold: float) -> Caption:
    """When neurons become universal, and whether the bulk of the neurons changes with them."""
    by_point = table.groupby("point", sort=False)
    mean, excess = by_point["share"].mean(), by_point["median_excess"].mean()
    alt = "Line charts of the share of universal neurons and of the median excess correlation against training."
    if not mean.any():
        title = f"No neuron is universal at threshold {threshold:g} at any checkpoint"
        text = f"{title}. The median excess correlation goes from {excess.iloc[0]:.3f} to {excess.iloc[-1]:.3f}."
        return Caption(title, text + time.span, f"{alt} {title}.")
    first, end = mean[mean > 0].index[0], table.loc[table["point"] == mean.index[-1], "share"]
    title = f"Universal at the end, by seed: {spread(end, percent)} of the neurons; the first by {time.moment(first)}"
    text, steady = tail_and_bulk(table, first, time), constant_rate(points)["point"]
    if len(steady) and steady.iloc[-1] != mean.index[-1]:
        last = steady.iloc[-1]
        text += (
            f" At {time.moment(last)}, the last checkpoint before the decay, the share is **{percent(mean[last])}**."
        )
    return Caption(title, text + time.span, f"{alt} {title}.")


def tail_and_bulk(table: pd.DataFrame, start: str, time: Timeline) -> str:
    """How the share of universal neurons (the tail) and the median excess (the bulk) change from a checkpoint on.

    The share rises if every seed's does.
    """
    wide = table.pivot(index="seed", columns="point", values=["share", "median_excess"])
    (before, after), bulk = (
        (wide[name][start], wide[name][table["point"].iloc[-1]]) for name in ("share", "median_excess")
    )
    low, high = (f"{excess.mean():.3f}" for excess in bulk)
    middle = f"stays at **{high}**" if low == high else f"goes from {low} to **{high}**"
    if start == table["point"].iloc[-1]:
        return f"There the share is **{percent(after.mean())}** and the median excess **{high}**."
    verb = "rises" if (after > before).all() else "goes"
    return (
        f"From {time.moment(start)} to the end the share {verb} from {percent(before.mean())} to "
        f"**{percent(after.mean())}**; the median excess {middle}."
    )


def layer_names(layers: Sequence[int]) -> str:
    """Layer 0, layers 0 and 1; only their number where they are many."""
    if len(layers) > MAX_LAYERS:
        return f"the fullest {len(layers)} layers"
    return f"layer{'' if len(layers) == 1 else 's'} {listed(map(str, layers))}"


def by_layer(table: pd.DataFrame, time: Timeline) -> Caption:
    """Where the first universal neurons are and where those of the end; rows point, seed, layer, universal, share."""
    alt = "Heat map of the share of universal neurons by layer and checkpoint."
    wide = table.groupby(["point", "layer"], sort=False)["share"].mean().unstack()
    if not wide.to_numpy().any():
        title = "No layer has a universal neuron at any checkpoint"
        return Caption(title, f"{title}.", alt)
    text = f"Shares are means over seeds{', “decayed” after the decay of the learning rate' if time.decay else ''}."
    layers, numbers = fullest_layers(table)
    totals, last = numbers.sum(axis=1), wide.iloc[-1]
    if not last.any():
        return Caption("No layer has universal neurons at the end", text, alt)
    first, held, total = totals[totals > 0].index[0], numbers[layers].sum(axis=1), totals.iloc[-1]
    verb = "holds" if len(layers) == 1 else "hold"
    title = f"{capital(layer_names(layers))} {verb} {held.iloc[-1]:,} of {count(total, 'universal neuron')} at the end"
    if first != numbers.index[-1]:
        title += f", and {held[first] or 'none'} of the first {totals[first]:,}"
        text += f" The first of all seeds are universal by {time.moment(first)}."
    by_seed = table[table["point"] == numbers.index[-1]].pivot(index="seed", columns="layer", values="share")
    leads = (by_seed.idxmax(axis=1) == last.idxmax())[by_seed.any(axis=1)]
    text += f" At the end layer **{last.idxmax()}** has the largest mean share, {percent(last.max())}"
    text += f"; it has the largest in {leads.sum()} of {count(len(leads), 'seed')}."
    return Caption(title, text, f"{alt} {title}.")


def births_and_deaths(
    changes: pd.DataFrame, kept: pd.DataFrame, points: pd.DataFrame, time: Timeline, start: str
) -> Caption:
    """Do universal neurons stay, and do they keep their partners? `start` is the checkpoint about halfway."""
    alt = "Bar chart of universal neurons that stay, are born and die, and line chart of persistence with chance."
    births, deaths = (int(changes[name].sum()) for name in ("births", "deaths"))
    if not births + deaths + int(changes["stay"].sum()):
        return Caption("No neuron is universal at any checkpoint", "There are neither births nor deaths.", alt)
    halfway = kept[(kept["point"] == start) & kept["persistence"].notna()]
    if halfway.empty:
        title = f"{capital(count(births, 'birth'))} and {count(deaths, 'death')} of universal neurons"
        return Caption(title, f"No neuron was universal halfway, so none can persist.{time.span}", f"{alt} {title}.")
    # over all seeds' neurons, so that a seed with few does not weigh as much as one with many
    number, stayed = halfway["universal"].sum(), halfway["kept"].sum()
    chance = np.average(halfway["chance"], weights=halfway["universal"])
    title = f"{count(births, 'birth')} and {count(deaths, 'death')} of universal neurons; "
    title += f"{percent(stayed / number, 0)} of those at {time.moment(start)} last to the end"
    text = (
        f"**{stayed:,}** of {number:,} neurons universal at {time.moment(start)} are universal at the end "
        f"(**{percent(stayed / number, 0)}**; random neurons of the same layers: {percent(chance, 1)})."
    )
    known = halfway[halfway["same_partner"].notna()]
    if len(known):
        same = percent(np.average(known["same_partner"], weights=known["kept"]), 0)
        text += f" For **{same}** of those that stay, the best match in another seed is the same neuron at both times."
    late, steady = changes[changes["point"].map(time.decayed) & (changes["births"] > 0)], constant_rate(points)["point"]
    if len(late) and len(steady):
        number = int(late["births"].sum())
        text += f" **{number:,}** of {births:,} births fall after {time.moment(steady.iloc[-1])} (grey); the learning "
        text += f"rate decays over the last {time.decaying}. At the checkpoint before, the mean excess of these "
        text += f"{count(number, 'neuron')} was {np.average(late['excess_before'], weights=late['births']):.2f}."
    else:
        text += time.span
    return Caption(title, text, f"{alt} {title}.")


def early_and_late(groups: pd.DataFrame, kinds: pd.DataFrame, boundary: str, time: Timeline, kind: str) -> Caption:
    """Do early and late universal neurons differ?"""
    alt = "Stacked bars of early and late universal neurons by layer, and bars of what they are."
    if groups.empty:
        title = "No neuron is universal at the end"
        return Caption(title, f"{title}, so none came early or late.", alt)
    early = int((groups["when"] == "early").sum())
    since, depth = time.moment(boundary), groups.groupby("when")["layer"].mean()
    title = f"{early:,} of {count(len(groups), 'neuron')} universal at the end have been so since {since} or before"
    text = (
        f"Early (**{early:,}**, all seeds): universal without a break since {since}; late: **{len(groups) - early:,}**."
    )
    if len(depth) == 2:
        by_seed = groups.groupby(["seed", "when"])["layer"].mean().unstack().dropna()
        lower = depth["early"] < depth["late"]
        agree = (by_seed["early"] < by_seed["late"]) if lower else (by_seed["early"] > by_seed["late"])
        text += f" Their mean layers are {depth['early']:.1f} and {depth['late']:.1f}"
        if len(by_seed):
            where = "lower" if lower else "higher"
            text += f"; that of the early ones is {where} in {agree.sum()} of {count(len(by_seed), 'seed')}"
        text += "."
    if kinds["when"].nunique() == 2:
        text += _kinds_differ(kinds, kind, len(groups))
    return Caption(title, text, f"{alt} {title}.")


def _kinds_differ(kinds: pd.DataFrame, kind: str, neurons: int) -> str:
    """In which kind early and late neurons differ most, if that is more than chance gives among so many kinds."""
    table = kinds.pivot(index="kind", columns="when", values="share").fillna(0)
    of = kinds.groupby("when")["of"].first()
    name = (table["early"] - table["late"]).abs().idxmax()
    found = (table.loc[name] * of).round()
    p_value = fisher_exact([found.tolist(), (of - found).tolist()]).pvalue
    whose = "" if of.sum() == neurons else " of the reference seed"
    if not p_value * len(table) < SIGNIFICANT:
        numbers = f"{of['early']:,} early and {of['late']:,} late neurons{whose}"
        return f" The {numbers} are too few to tell whether they differ by {kind}."
    share = {when: percent(table.loc[name, when], 1) for when in ("early", "late")}
    early = f"{share['early']} of early, {share['late']} of late ones"
    return f" By {kind}{whose and f' ({whose.strip()})'} they differ most in *{name}*: {early}."


def appearance_table(table: pd.DataFrame, time: Timeline) -> pd.DataFrame:
    """`statistics.appearances` as a reader's table."""

    def moments(column: str) -> list[str]:
        return ["–" if pd.isna(point) else time.moment(point) for point in table[column]]

    ends = zip(table["low"], table["mean"], table["high"], strict=True)
    columns = {
        "indicator": table["indicator"],
        "bar": table["bar"].map("{:.3g}".format),
        "in some seed from": moments("any_first"),
        "in all seeds from": moments("first"),
        "at the end, mean (range over seeds)": [
            f"{mean:.3g}" + ("" if low == high else f" ({low:.3g} to {high:.3g})") for low, mean, high in ends
        ],
    }
    return pd.DataFrame(columns)


def circuits_appear(table: pd.DataFrame, time: Timeline) -> Caption:
    """What is there in all seeds, and since when."""
    there = table[table["first"].notna()]
    verb = "is above its" if len(there) == 1 else "are above their"
    title = f"{len(there)} of {count(len(table), 'indicator')} {verb} bar in every seed at the end"
    since = "; ".join(f"{row.indicator} (from {time.moment(row.first)})" for row in there.itertuples())
    text = (
        f"Above its bar in every seed to the end: {since or 'none'}. The bars, in the table, are conventions."
        f"{time.span}"
    )
    return Caption(title, text, f"Six line charts of indicators against training. {title}.")


def heads_at_the_end(heads: pd.DataFrame) -> Caption:
    """The best head of each kind at the last checkpoint."""
    last = heads[heads["point"] == heads["point"].iloc[-1]]
    best = last.groupby("seed")[list(HEAD_SCORES)].max()
    scores = "; ".join(f"{label} **{spread(best[name])}**" for name, label in HEAD_SCORES.items())
    found = {label: f"{best[name].mean():.2f}" for name, label in HEAD_SCORES.items() if best[name].notna().any()}
    title = f"Best head, mean over seeds: {', '.join(f'{label} {score}' for label, score in found.items())}"
    text = f"The best head of each seed, mean (range over seeds): {scores}."
    induction = last["induction"].median()
    if np.isfinite(induction):
        size = "below 0.001" if induction < 0.001 else f"of {induction:.3f}"
        text += f" The median head has an induction score {size}"
        text += f"; none exceeds {HEAD_BAR:g}." if best["induction"].max() <= HEAD_BAR else "."
    return Caption(title, text, f"Dot plots of three attention scores of every head by layer and seed. {title}.")
