"""What chapter 6's figures show, in words: from the tables of training checkpoints to titles, sentences, alternative texts."""

import numpy as np
import pandas as pd

from lib.base.errors import capital
from lib.chapters.emergence.claims import OWN, VERDICTS, spread
from lib.chapters.emergence.figures import HEAD_SCORES, Timeline, short
from lib.chapters.emergence.statistics import HALF
from lib.display.captions import Caption, count, percent

NO_TABLES = (
    "There are no tables of training checkpoints for these seeds. `make emergence RUN=…` makes them where all seeds have "
    "checkpoints: local folders, or revisions `checkpoint-<step>` or `step<k>` of Hub models."
)


def origin(record: dict, shipped: bool, present: dict[str, str | None]) -> str:
    """Where the tables come from; `present` has the SHA-256 of the run's seeds as they are now."""
    labels = [point["label"] for point in record["points"]]
    source = "shipped with the repository (`data/emergence`)" if shipped else "computed for this run (`make emergence`)"
    text = (
        f"These tables were {source}: **{count(len(labels), 'checkpoint')}** ({', '.join(labels)}) of {count(len(record['points'][-1]['seeds']), 'seed')}, "
        f"each measured on {record['counted']:,} counted tokens of {record['text']}, {count(record['rotations'], 'rotation')} for the baseline."
    )
    last = record["points"][-1]
    own = next((point for point in record["points"] if point["label"] == "final"), last)
    other = sorted(name for name, hashed in present.items() if hashed and own["seeds"].get(name) != hashed)
    if other:
        names = f"seed {other[0]} is" if len(other) == 1 else f"seeds {', '.join(other)} are"
        text += f" **The run's {names} of another time of training than any checkpoint here:** compare its chapters with care."
    return text


def claims(table: pd.DataFrame) -> str:
    """How many claims hold, and how many of them nobody else made."""
    number, own = (
        table["verdict"].value_counts().reindex(VERDICTS, fill_value=0),
        int(table["source"].str.startswith(OWN).sum()),
    )
    return (
        f"Of {count(len(table), 'claim')}, {own or 'none'} of them this report's own, **{number['holds']}** hold in these seeds, **{number['does not hold']}** do not, and "
        f"**{number['cannot tell']}** cannot be told: the seeds differ, or there are too few universal neurons to ask, or it was not measured."
    )


def _moment(point: str, time: Timeline) -> str:
    return f"{short(time.at[point])} {time.label.removeprefix('training ')}" if time.log else point


def losses(table: pd.DataFrame, time: Timeline) -> Caption:
    """How far training has come."""
    everything = table[table["domain"] == "all"].groupby("point", sort=False)["loss"].mean()
    first, last = everything.index[0], everything.index[-1]
    best = everything.idxmin()
    title = (
        f"Held-out loss falls from {everything[first]:.2f} to {everything[best]:.2f} nats per token"
        if everything[best] < everything[first] - 0.005
        else "Held-out loss does not fall"
    )
    end = table[(table["domain"] != "all") & (table["point"] == last)].groupby("domain")["loss"].mean().sort_values()
    text = f"Mean over seeds: **{everything[first]:.3f}** at {_moment(first, time)}, **{everything[last]:.3f}** at the end ({_moment(last, time)})."
    if best != last:
        text += f" The lowest is {everything[best]:.3f} at {_moment(best, time)}."
    if len(end) > 1:
        text += f" At the end the easiest domain is *{end.index[0]}* ({end.iloc[0]:.2f}), the hardest *{end.index[-1]}* ({end.iloc[-1]:.2f})."
    return Caption(
        title, text, f"Line chart of held-out loss against training, one line a domain and one for all text. {title}."
    )


def shares(table: pd.DataFrame, time: Timeline, threshold: float) -> Caption:
    """When neurons become universal."""
    by_point = table.groupby("point", sort=False)["share"]
    mean, end = by_point.mean(), by_point.get_group(table["point"].iloc[-1])
    alt = "Line charts of the share of universal neurons and of the mean excess correlation against training, range over seeds shaded."
    excess = table.groupby("point", sort=False)["mean_excess"].mean()
    tail = f" The mean excess correlation goes from {excess.iloc[0]:.3f} to {excess.iloc[-1]:.3f}."
    if not mean.any():
        title = f"No neuron is universal at threshold {threshold:g} at any checkpoint"
        return Caption(title, f"{title}, whatever the reference.{tail}", f"{alt} {title}.")
    first, top = mean[mean > 0].index[0], mean.idxmax()
    title = f"{percent(mean.iloc[-1])} of the neurons are universal at the end; the first ones appear by {_moment(first, time)}"
    text = (
        f"With every seed as reference **{spread(end, percent)}** of the neurons have an excess above {threshold:g} at the end. "
        f"The first checkpoint with any is that of {_moment(first, time)} ({percent(mean[first])} on average)"
        + (
            f"; the most, {percent(mean[top])}, are at {_moment(top, time)}."
            if top != mean.index[-1]
            else ", and the last has the most."
        )
        + tail
    )
    return Caption(title, text, f"{alt} {title}.")


def by_layer(table: pd.DataFrame, time: Timeline) -> Caption:
    """Where they become universal first, and where they are at the end; rows point, seed, layer, universal, share."""
    alt = "Heat map of the share of universal neurons by layer and checkpoint."
    wide = table.groupby(["point", "layer"], sort=False)["share"].mean().unstack()
    if not wide.to_numpy().any():
        return Caption(
            "No layer has a universal neuron at any checkpoint",
            "No layer has a universal neuron at any checkpoint.",
            alt,
        )
    first = wide[wide.sum(axis=1) > 0].iloc[0]
    last = wide.iloc[-1]
    title = (
        f"Layer {last.idxmax()} has the largest share at the end, {percent(last.max(), 1)}"
        if last.any()
        else "No layer has universal neurons at the end"
    )
    text = f"The first universal neurons, by {_moment(first.name, time)}, are most frequent in layer **{first.idxmax()}** ({percent(first.max())} of it)."
    if last.any():
        text += f" At the end layer **{last.idxmax()}** leads with {percent(last.max())}, and layer {last.idxmin()} has the fewest, {percent(last.min())}."
    return Caption(title, text, f"{alt} {title}.")


def births_and_deaths(changes: pd.DataFrame, kept: pd.DataFrame, time: Timeline, start: str | None) -> Caption:
    """Do universal neurons stay, and do they keep their partners? `start` is the checkpoint about halfway."""
    alt = "Bar chart of universal neurons that stay, are born and die between checkpoints, and line chart of persistence with chance."
    births, deaths = (int(changes[name].sum()) for name in ("births", "deaths"))
    if not births + deaths + int(changes["stay"].sum()):
        return Caption(
            "No neuron is universal at any checkpoint", "There are neither births nor deaths of universal neurons.", alt
        )
    seeds = changes["seed"].nunique()
    text = f"Over {count(seeds, 'seed')} and all intervals there are **{births:,}** births and **{deaths:,}** deaths."
    halfway = kept[(kept["point"] == start) & kept["persistence"].notna()]
    if halfway.empty:
        title = f"{count(births, 'birth')} and {count(deaths, 'death')} of universal neurons".capitalize()
        return Caption(
            title, f"{text} No neuron was universal halfway, so that persistence is undefined.", f"{alt} {title}."
        )
    # over all seeds' neurons, so that a seed with few does not weigh as much as one with many
    number, stayed = halfway["universal"].sum(), halfway["kept"].sum()
    title = (
        f"{percent(stayed / number, 0)} of the neurons that were universal at {_moment(start, time)} are so at the end"
    )
    text += (
        f" Of {number:,} neurons universal at {_moment(start, time)} **{stayed:,}** ({percent(stayed / number, 1)}) are universal at the end; "
        f"as many neurons of the same layers chosen at random would give {percent(np.average(halfway['chance'], weights=halfway['universal']), 1)}."
    )
    known = halfway[halfway["same_partner"].notna()]
    if len(known):
        same = np.average(known["same_partner"], weights=known["kept"])
        text += f" In **{percent(same, 1)}** of the pairs with another seed the best match of those that stay is the same neuron at both times."
    return Caption(title, text, f"{alt} {title}.")


def early_and_late(
    groups: pd.DataFrame, kinds: pd.DataFrame, boundary: str | None, time: Timeline, kind: str
) -> Caption:
    """Are those that became universal early others than the late ones?"""
    alt = "Stacked bars of early and late universal neurons by layer, and bars of what they are."
    if groups.empty:
        return Caption(
            "No neuron is universal at the end",
            "No neuron is universal at the end, so that none came early or late.",
            alt,
        )
    number = groups["when"].value_counts().reindex(["early", "late"], fill_value=0)
    depth = groups.groupby("when")["layer"].mean()
    title = f"{number['early']:,} of {count(len(groups), 'universal neuron')} of the end have been so since {_moment(boundary, time)} or before"
    text = f"Early are those universal without a break from {_moment(boundary, time)} or before: **{number['early']:,}**; late the other **{number['late']:,}** (all seeds)."
    if len(depth) == 2:
        text += f" Their mean layer is {depth['early']:.1f} and {depth['late']:.1f}."
    shown = (
        kinds.pivot(index="kind", columns="when", values="share").reindex(columns=["early", "late"])
        if len(kinds)
        else pd.DataFrame()
    )
    if len(shown) and shown.notna().any().all():
        shown = shown.fillna(0)
        gap = shown["early"] - shown["late"]
        name = gap.abs().idxmax()
        early, late = kinds.groupby("when")["of"].first().reindex(["early", "late"], fill_value=0)
        whose = "these" if early + late == len(groups) else "those whose " + kind + " is known, the reference seed's,"
        text += (
            f" By {kind} {whose} differ most in *{name}*: {percent(shown.loc[name, 'early'], 1)} of {early:,} early "
            f"and {percent(shown.loc[name, 'late'], 1)} of {late:,} late ones."
        )
    return Caption(title, text, f"{alt} {title}.")


def appearance_table(table: pd.DataFrame, time: Timeline) -> pd.DataFrame:
    """`emergence.appearances` as a reader's table."""
    return pd.DataFrame(
        {
            "indicator": table["indicator"],
            "bar": [f"{bar:.3g}" for bar in table["bar"]],
            "in some seed from": ["–" if pd.isna(point) else _moment(point, time) for point in table["any_first"]],
            "in all seeds from": ["–" if pd.isna(point) else _moment(point, time) for point in table["first"]],
            "at the end, mean (range over seeds)": [
                f"{row.mean:.3g}" + ("" if row.low == row.high else f" ({row.low:.3g} to {row.high:.3g})")
                for row in table.itertuples()
            ],
        }
    )


def circuits_appear(table: pd.DataFrame, time: Timeline) -> Caption:
    """What is there in all seeds, and since when."""
    there, missing = table[table["first"].notna()], table[table["first"].isna()]
    title = f"{len(there)} of {count(len(table), 'indicator')} {'is above its' if len(there) == 1 else 'are above their'} bar in every seed at the end"
    parts = [f"{row.indicator} from {_moment(row.first, time)}" for row in there.itertuples()]
    text = (
        f"In all seeds there {'is' if len(parts) == 1 else 'are'}, up to the end: {'; '.join(parts)}."
        if parts
        else "No indicator stays above its bar in all seeds."
    )
    if len(missing):
        text += f" Not in all seeds at the end: {'; '.join(missing['indicator'])}."
    text += f" The bars: a head gives {percent(HALF, 0)} of its attention; a count of neurons is more than random directions would reach in any of the seeds, by the published cut any at all; one neuron in a hundred is universal."
    return Caption(title, text, f"Six line charts of indicators against training, range over seeds shaded. {title}.")


def heads_at_the_end(heads: pd.DataFrame) -> Caption:
    """The best head of each kind at the last checkpoint."""
    last = heads[heads["point"] == heads["point"].iloc[-1]]
    said: list[str] = []
    for name, label in HEAD_SCORES.items():
        best = last.loc[last[name].idxmax()]
        low, high = (getattr(last.groupby("seed")[name].max(), how)() for how in ("min", "max"))
        said.append(
            f"{label}: **{best[name]:.2f}** (seed {best['seed']}, layer {best['layer']} head {best['head']}), the best heads of the seeds {low:.2f} to {high:.2f}"
        )
    best = last.loc[last["bos"].idxmax()]
    title = f"The head that gives BOS most attention gives it {percent(best['bos'], 0)}"
    return Caption(
        title,
        f"{capital('; '.join(said))}.",
        f"Dot plots of three attention scores of every head by layer, one colour a seed. {title}.",
    )
