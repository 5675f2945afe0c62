"""Chapter 7's captions: from the tables of training checkpoints to titles, sentences and alternative texts."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from lib.chapters.emergence.figures import HEAD_SCORES, Timeline
from lib.chapters.emergence.statistics import constant_rate
from lib.display.captions import Caption, count, percent
from lib.display.claims import SIGNIFICANT, UNKNOWN, VERDICTS

BULK = 1.1  # factor by which the mean excess must grow for the bulk to grow with the tail
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
    mean, excess = by_point["share"].mean(), by_point["mean_excess"].mean()
    alt = "Line charts of the share of universal neurons and of the mean excess correlation against training."
    if not mean.any():
        title = f"No neuron is universal at threshold {threshold:g} at any checkpoint"
        text = f"{title}. The mean excess correlation goes from {excess.iloc[0]:.3f} to {excess.iloc[-1]:.3f}."
        return Caption(title, text + time.span, f"{alt} {title}.")
    first = mean[mean > 0].index[0]
    title = f"{percent(mean.iloc[-1])} of the neurons are universal at the end, the first by {time.moment(first)}; "
    title += f"the mean excess is {excess.iloc[-1]:.3f}"
    steady = constant_rate(points)["point"]
    text = tail_and_bulk(table, steady.iloc[0] if len(steady) else first, time)
    if len(steady) and steady.iloc[-1] != mean.index[-1]:
        last = steady.iloc[-1]
        text += (
            f" At {time.moment(last)}, the last checkpoint before the decay, the share is **{percent(mean[last])}**."
        )
    return Caption(title, text + time.span, f"{alt} {title}.")


def tail_and_bulk(table: pd.DataFrame, start: str, time: Timeline) -> str:
    """How the share of universal neurons (the tail) and the mean excess (the bulk) change from a checkpoint to the end.

    The tail grows if every seed's share does; the bulk does if the mean excess grows by a tenth or more.
    """
    wide = table.pivot(index="seed", columns="point", values=["share", "mean_excess"])
    (before, after), (low, high) = (
        (wide[name][start], wide[name][table["point"].iloc[-1]]) for name in ("share", "mean_excess")
    )
    text = (
        f"From {time.moment(start)} to the end the share goes from {percent(before.mean())} to "
        f"**{percent(after.mean())}**, and the mean excess from {low.mean():.3f} to **{high.mean():.3f}**"
    )
    tail, bulk = bool((after > before).all()), high.mean() >= BULK * low.mean()
    words = {(True, False): "the tail grows, the bulk does not", (True, True): "both tail and bulk grow"}
    return f"{text}: {words[tail, bulk]}." if (tail, bulk) in words else f"{text}."


def by_layer(table: pd.DataFrame, time: Timeline) -> Caption:
    """Where neurons become universal first, and where they are at the end; rows point, seed, layer, share."""
    alt = "Heat map of the share of universal neurons by layer and checkpoint."
    wide = table.groupby(["point", "layer"], sort=False)["share"].mean().unstack()
    if not wide.to_numpy().any():
        title = "No layer has a universal neuron at any checkpoint"
        return Caption(title, f"{title}.", alt)
    first, last = wide[wide.sum(axis=1) > 0].iloc[0], wide.iloc[-1]
    leads = f"Layer {last.idxmax()} has the largest share at the end, {percent(last.max())}"
    title = leads if last.any() else "No layer has universal neurons at the end"
    text = f"Shares are means over seeds{', “decayed” after the decay of the learning rate' if time.decay else ''}. "
    text += "The first universal neurons, by "
    text += f"{time.moment(first.name)}, are most frequent in layer **{first.idxmax()}**"
    text += f", those at the end in layer **{last.idxmax()}**." if last.any() else "."
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
        title = f"{capital(count(births, 'birth'))} and {count(deaths, 'death')} of universal neurons".capitalize()
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
    late, steady = int(changes.loc[changes["point"].map(time.decayed), "births"].sum()), constant_rate(points)["point"]
    if late and len(steady):
        text += f" **{late}** of {births} births come after {time.moment(steady.iloc[-1])}, the last checkpoint at a "
        text += "constant learning rate."
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
        text += f" Their mean layers are {depth['early']:.1f} and {depth['late']:.1f}."
    if kinds["when"].nunique() == 2:
        table = kinds.pivot(index="kind", columns="when", values="share").fillna(0)
        name = (table["early"] - table["late"]).abs().idxmax()
        share = {when: percent(table.loc[name, when], 1) for when in ("early", "late")}
        whose = "" if kinds.groupby("when")["of"].first().sum() == len(groups) else " (reference seed only)"
        text += (
            f" By {kind}{whose} they differ most in *{name}*: {share['early']} of early, {share['late']} of late ones."
        )
    return Caption(title, text, f"{alt} {title}.")


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
        f"The table gives the bars, which are conventions. Above its bar in every seed to the end: {since or 'none'}."
        f"{time.span}"
    )
    return Caption(title, text, f"Six line charts of indicators against training. {title}.")


def heads_at_the_end(heads: pd.DataFrame) -> Caption:
    """The best head of each kind at the last checkpoint."""
    last = heads[heads["point"] == heads["point"].iloc[-1]]
    best = last.groupby("seed")[list(HEAD_SCORES)].max()
    scores = "; ".join(f"{label} **{spread(best[name])}**" for name, label in HEAD_SCORES.items())
    found = {label: f"{best[name].mean():.2f}" for name, label in HEAD_SCORES.items()}
    title = f"The best heads of a seed: {', '.join(f'{label} {score}' for label, score in found.items())}"
    text = f"The best head of each seed, mean (range over seeds): {scores}."
    return Caption(title, text, f"Dot plots of three attention scores of every head by layer and seed. {title}.")
