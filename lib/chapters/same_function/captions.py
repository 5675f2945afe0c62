"""Captions of chapter 08's ladder and transplants."""

import numpy as np
import pandas as pd

from lib.base.errors import listed
from lib.chapters.same_function import claims, summary
from lib.chapters.same_function.maps import CLASSES, MOST, SOME
from lib.chapters.same_function.summary import FEW
from lib.chapters.same_function.transplants import BEYOND
from lib.display.captions import Caption, count, percent, signed, signed_percent
from lib.display.claims import Effects, Evidence
from lib.display.over_seeds import mean_and_interval

LAYER = "universal, layer "  # how the sets of one layer begin
SETS = {"strongest": "the strongest neuron", summary.UNIVERSAL: "the universal neurons of all layers"}


def unsupported(reason: str) -> str:
    """Why the ladder and the transplants are left out."""
    return f"**Left out in this run:** the ladder of maps and the transplants. {reason}"


def _evidence(**tables: pd.DataFrame) -> Evidence:
    return Evidence(tables, "", 0.0)


def _whole(share: float) -> str:
    return percent(share, 0)


def rungs(table: pd.DataFrame, reference: str) -> Caption:
    """Mean R² by rung, beside the rotated basis."""
    own = summary.own_rows(table, reference)
    found, model, tokens = summary.means(own).loc[reference], own["model"].iloc[0], own["tokens"].iloc[0]
    title = f"One neuron of another seed explains {_whole(found['one'])} of a neuron's variance, "
    title += f"all of a layer at least {_whole(found['all'])}"
    beyond, interval = mean_and_interval(claims.beyond_null("all")(_evidence(ladder=table)), "same_basis")
    pairs = len(table[["seed", "model"]].drop_duplicates())
    text = (
        f"Left: mean R² of seed {reference}'s neurons from one layer of seed {model}, by what the map may use, on "
        f"{tokens:,} tokens, each scored by maps of other text; thin lines are other pairs of seeds, on fewer neurons. "
        "The last two maps take the layer of largest CKA."
        f" Right: its distribution; dashed are the bounds {SOME:g} and {MOST:g}. In {reference} the best single neuron "
        f"explains **{_whole(found['one'])}** ({_whole(found['null_one'])} in the rotated basis), eight "
        f"{_whole(found[FEW])} ({_whole(found[f'null_{FEW}'])}) and all **{_whole(found['all'])}** "
        f"({_whole(found['null_all'])}). Over {count(pairs, 'pair')} of seeds, with one rotation each, all neurons "
        f"explain {beyond} more R² than the rotated basis{interval}; the pairs share seeds."
    )
    text += (
        f" With half the text to fit on, {_whole(found['nearest'])} would be **{_whole(found['half'])}** (in the layer "
        "of largest CKA); more text would give more."
    )
    alt = "Left: lines of mean R² by rung, above those of the rotated basis. Right: shares of neurons above each R²."
    return Caption(title, text, f"{alt} {title}.")


def layers(table: pd.DataFrame, reference: str) -> Caption:
    """Which layers of the two seeds predict each other."""
    own, known = summary.own_rows(table, reference), table.dropna(subset=["all", "null_all"])
    (same, total), rotated = (same_number(known, name) for name in ("all", "null_all"))
    pairs = count(len(known[["seed", "model"]].drop_duplicates()), "pair")
    title = f"{same} of {total} layers are predicted best by the layer of the same number; rotated, {rotated[0]}"
    text = (
        f"Rows are layers of seed {reference}, columns layers of seed {own['model'].iloc[0]}: linear CKA, and mean R² "
        "from all neurons, in one layer and in its rotated basis, both in one scale of colours. Over "
        f"{pairs} of seeds, the layer of the same number "
        f"predicts best for **{same} of {total}** layers, and has the largest CKA for "
        f"{same_number(known, 'cka')[0]}. In the rotated basis these are **{rotated[0]}** and "
        f"{same_number(known, 'null_cka')[0]}. The best layer is ahead of the next by {_margin(known):.3f} of R² in "
        "the median."
    )
    return Caption(title, text, f"Three heat maps by layer of both seeds. {title}.")


def same_number(table: pd.DataFrame, measure: str) -> tuple[int, int]:
    """For how many layers the one of the same number has the largest value, and of how many."""
    best = table.loc[table.groupby(["seed", "model", "layer"])[measure].idxmax()]
    return int((best["layer"] == best["other_layer"]).sum()), len(best)


def _margin(table: pd.DataFrame) -> float:
    """By how much the best layer exceeds the next, in the median."""
    best = table.groupby(["seed", "model", "layer"])["all"].nlargest(2).groupby(level=[0, 1, 2])
    return float((best.max() - best.min()).median())


def classes(table: pd.DataFrame, neurons: pd.DataFrame, reference: str) -> Caption:
    """How many neurons are twins, split, spread, partly there or on their own."""
    own = summary.own_rows(table, reference)
    drawn = own[own["sampled"]]
    shares, null = (summary.class_shares(of, of["seed"]).loc[reference] for of in (drawn, summary.null_kinds(drawn)))
    title = (
        f"{percent(shares['twin'], 1)} of the neurons have a twin; for {_whole(shares['own'])} no map from one layer "
    )
    title += "explains a tenth on this text"
    text = (
        f"Classes of seed {reference}'s {count(shares['neurons'], 'neuron')} by what seed {own['model'].iloc[0]} has "
        f"of them, by layer and by family: {_named(shares)}. The rotated basis alone gives "
        f"{percent(null['spread'], 1)} spread and {_whole(null['part'])} part"
    )
    clear = summary.clear_spread(drawn)
    text += f"; {_whole(clear)} of the spread neurons exceed it by a tenth." if np.isfinite(clear) else "."
    joined = own.merge(neurons[["layer", "neuron", "is_universal"]], on=["layer", "neuron"])
    universal = joined[joined["is_universal"]]
    if len(universal):
        numbers = universal["kind"].value_counts().reindex(CLASSES, fill_value=0)
        text += f" Of {count(len(universal), 'universal neuron')}: "
        text += listed(f"{name} **{number}**" for name, number in numbers.items()) + "."
    text += _over_pairs(table)
    missing = int((own["kind"] == "").sum())
    text += (
        f" {count(missing, 'neuron')} cannot be measured here: nearly all of the variance is in one fold."
        if missing
        else ""
    )
    alt = "Stacked bars of the classes twin, split, spread, part and own, by layer and by family."
    return Caption(title, text, f"{alt} {title}.")


def _named(shares: pd.Series) -> str:
    """The share of each class."""
    return listed(f"{percent(shares[name], 1 if shares[name] < 0.1 else 0)} {name}" for name in CLASSES)


def _over_pairs(table: pd.DataFrame) -> str:
    """The range of two classes over the pairs of seeds."""
    table = table[table["sampled"]]
    shares = summary.class_shares(table, table["seed"] + table["model"])
    if len(shares) < 2:
        return ""
    ends = [f"{percent(shares[name].min(), 1)} to {percent(shares[name].max(), 1)} {name}" for name in ("twin", "own")]
    return f" Over {len(shares)} pairs of seeds: {listed(ends)}."


def _share(value: float) -> str:
    return signed_percent(value) if np.isfinite(value) else "not given"


def transplants(table: pd.DataFrame, reference: str) -> Caption:
    """How much of the loss matches recover, beside other partners."""
    alt = "Dots with intervals: recovered share R by set and partner, and against the R² of one neuron."
    own = summary.own_rows(table, reference)
    known = own[own["recovered"].notna()]
    if known.empty:
        title = "No set costs enough loss to be recovered"
        text = "**Not given:** the mean ablation of no set costs loss beyond two standard errors."
        return Caption(title, text, f"{alt} {title}.")
    value = known.set_index(["set", "partner"])["recovered"].to_dict()
    title, name = "Matches recover part of the loss that ablation costs", summary.UNIVERSAL
    effects = claims.recovered(_evidence(transplants=table))
    if effects.values.notna().any():
        title = (
            f"Matches in place of universal neurons recover {effects.words(effects.values.mean())} of the loss that "
        )
        title += "ablation costs"
        second = summary.recovered_by(table, "second").mean()
        title += f", second-best matches {_share(second)}" if np.isfinite(second) else ""
    if (name, "match") not in value:
        name = known["set"].iloc[0]
    first = own[own["set"] == name].iloc[0]
    ablated = own[(own["set"] == name) & (own["partner"] == "mean")].iloc[0]
    text = (
        f"Recovered share R = 1 − Δloss(replaced) / Δloss(mean) of seed {reference}'s neurons, left by set, right all "
        f"in four groups, from seed {first['model']}, on {first['tokens']:,} tokens of "
        f"{count(first['blocks'], 'block')}; bars: 95 % intervals over blocks. For single layers only the best match "
        f"was tried.{_seeds(table)} In {reference}, {count(first['neurons'], 'neuron')} (set “{name}”) cost "
        f"{ablated['loss_change']:.3f} nats if held at their means: the matches recover "
        f"**{_share(value.get((name, 'match'), np.nan))}**, the second-best "
        f"{_share(value.get((name, 'second'), np.nan))}, random neurons like the matches "
        f"{_share(value.get((name, 'random'), np.nan))} (near 0 by construction), all neurons of a layer "
        f"{_share(value.get((name, 'all'), np.nan))}.{_beyond_second(table, name)}"
    )
    text += _costliest(own) + _groups(own, value) + _not_given(own)
    return Caption(title, text, f"{alt} {title}.")


def _beyond_second(table: pd.DataFrame, name: str) -> str:
    """By seed R of the matches less R of the second-best, with its interval."""
    rows = table[(table["set"] == name) & (table["partner"] == BEYOND) & table["recovered"].notna()]
    if rows.empty:
        return ""
    each = (
        f"{signed(row.recovered)} ({signed(row.low)} to {signed(row.high)}) in {row.seed}" for row in rows.itertuples()
    )
    return f" Match less second-best, paired by block: {listed(each)}."


def _costliest(own: pd.DataFrame) -> str:
    """The layer whose universal neurons cost most when they are held at their means."""
    ablated = own[own["partner"] == "mean"]
    layers, every = ablated[ablated["set"].str.startswith(LAYER)], ablated[ablated["set"] == summary.UNIVERSAL]
    if len(layers) < 2 or every.empty:
        return ""
    row = layers.loc[layers["loss_change"].idxmax()]
    share = row["loss_change"] / every["loss_change"].iloc[0]
    return (
        f" The {count(row['neurons'], 'universal neuron')} of layer {row['set'].removeprefix(LAYER)} alone cost "
        f"{row['loss_change']:.3f} nats, {_share(share)} of what all cost."
    )


def _groups(own: pd.DataFrame, value: dict[tuple[str, str], float]) -> str:
    """The groups of all neurons with the smallest and the largest correlation with the match."""
    known = [name for name, partner in value if name.startswith("group") and partner == "match"]
    if len(known) < 2:
        return ""
    cost = own[own["partner"] == "mean"].set_index("set")["loss_change"]
    ends = [f"{_share(value[name, 'match'])} of {cost[name]:.2f} nats" for name in (min(known), max(known))]
    return (
        f" In the quarter of all neurons that correlate least with their matches these recover {ends[0]}, in the "
        + (f"quarter that correlate most {ends[1]}.")
    )


def _seeds(table: pd.DataFrame) -> str:
    effects: Effects = claims.recovered(_evidence(transplants=table))
    values = effects.values.dropna()
    if len(values) < 2:
        return ""
    value, interval = mean_and_interval(effects, "transplant_matches")
    second, random = (_share(summary.recovered_by(table, name).mean()) for name in ("second", "random"))
    return (
        f" In {len(values)} seeds ({listed(f'{one:.2f}' for one in values)}) the matches of all universal neurons "
        f"recover **{value}**{interval}, the second-best {second}, random neurons {random}."
    )


def _not_given(own: pd.DataFrame) -> str:
    """The sets without R, those of layers together."""
    given = set(own.loc[own["recovered"].notna(), "set"])
    missing = [name for name in dict.fromkeys(own["set"]) if name not in given]
    layers = [name.removeprefix(LAYER) for name in missing if name.startswith(LAYER)]
    named = [SETS.get(name, f"set “{name}”") for name in missing if not name.startswith(LAYER)]
    if layers:
        named.append(f"the universal neurons of layer{'s' * (len(layers) > 1)} {listed(layers)} alone")
    return f" Not given, since holding them at their means costs too little: {listed(named)}." if named else ""
