"""Captions of chapter 08's ladder and transplants."""

import numpy as np
import pandas as pd

from lib.base.errors import listed
from lib.chapters.same_function import claims, summary
from lib.chapters.same_function.captions_map import over_seeds
from lib.chapters.same_function.maps import CLASSES, MOST, SOME
from lib.chapters.same_function.summary import FEW
from lib.display.captions import Caption, count, percent, signed_percent
from lib.display.claims import Effects, Evidence


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
    beyond, interval = over_seeds(claims.beyond_null("all")(_evidence(ladder=table)), "same_basis")
    text = (
        f"Left: mean R² of seed {reference}'s neurons from one layer of seed {model}, by what the map may use, on "
        f"{tokens:,} tokens that neither fitted nor chose it; thin lines are other pairs of seeds, on fewer neurons."
        f" Right: its distribution; dashed are the bounds {SOME:g} and {MOST:g}. In {reference} the best single neuron "
        f"explains **{_whole(found['one'])}** ({_whole(found['null_one'])} in the rotated basis), eight "
        f"{_whole(found[FEW])} ({_whole(found[f'null_{FEW}'])}) and all **{_whole(found['all'])}** "
        f"({_whole(found['null_all'])}). Over all pairs, all neurons explain {beyond} more R² than the rotated "
        f"basis{interval}."
    )
    text += (
        f" R² of all neurons is a lower bound: in the layer of largest CKA it is {_whole(found['nearest'])}, and "
        f"**{_whole(found['half'])}** if half of the text fits the map."
    )
    alt = "Left: lines of mean R² by rung, above those of the rotated basis. Right: shares of neurons above each R²."
    return Caption(title, text, f"{alt} {title}.")


def layers(table: pd.DataFrame, reference: str) -> Caption:
    """Which layers of the two seeds predict each other."""
    own = summary.own_rows(table, reference).dropna(subset="all")
    best = own.loc[own.groupby("layer")["all"].idxmax()]
    nearest = own.loc[own.groupby("layer")["cka"].idxmax()]
    same, total = int((best["layer"] == best["other_layer"]).sum()), len(best)
    title = f"{same} of {total} layers are predicted best by the layer of the same number"
    text = (
        f"Rows are layers of seed {reference}, columns layers of seed {own['model'].iloc[0]}: linear CKA, and mean R² "
        f"from one neuron and from all. For **{same} of {total}** layers the one of the same number predicts best, for "
        f"{int((nearest['layer'] == nearest['other_layer']).sum())} it has the largest CKA."
    )
    return Caption(title, text, f"Three heat maps by layer of both seeds. {title}.")


def classes(table: pd.DataFrame, neurons: pd.DataFrame, reference: str) -> Caption:
    """How many neurons are twins, split, spread, partly there or on their own."""
    own = summary.own_rows(table, reference)
    shares = summary.class_shares(own[own["sampled"]], own["seed"]).loc[reference]
    named = [f"{percent(shares[name], 1 if shares[name] < 0.1 else 0)} {name}" for name in CLASSES]
    title = f"{percent(shares['twin'], 1)} of the neurons have a twin; for {_whole(shares['own'])} no map is found"
    text = (
        f"Classes of seed {reference}'s {count(shares['neurons'], 'neuron')} by what seed {own['model'].iloc[0]} has "
        f"of them, by layer and by family: {listed(named)}."
    )
    joined = own.merge(neurons[["layer", "neuron", "is_universal"]], on=["layer", "neuron"])
    universal = joined[joined["is_universal"]]
    if len(universal):
        rest = summary.class_shares(universal, universal["seed"]).loc[reference]
        text += f" Of {count(len(universal), 'universal neuron')} **{_whole(rest['twin'])}** are twins and "
        text += f"{_whole(rest['spread'])} spread."
    text += _over_pairs(table)
    missing = int((own["kind"] == "").sum())
    text += f" {count(missing, 'neuron')} did not vary on the text that is scored." if missing else ""
    alt = "Stacked bars of the classes twin, split, spread, part and own, by layer and by family."
    return Caption(title, text, f"{alt} {title}.")


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
    where, name = ("universal neurons", summary.UNIVERSAL)
    if (name, "match") not in value:
        name = known["set"].iloc[0]
        where = f"neurons of set “{name}”"
    title = f"Replaced by their matches, {where} keep {_share(value.get((name, 'match'), np.nan))} of what their mean "
    title += "ablation costs"
    first = own[own["set"] == name].iloc[0]
    ablated = own[(own["set"] == name) & (own["partner"] == "mean")].iloc[0]
    text = (
        f"Recovered share R = 1 − Δloss(replaced) / Δloss(mean) in seed {reference}, from seed {first['model']}, on "
        f"{first['tokens']:,} held-out tokens of {count(first['blocks'], 'block')}; bars: 95 % intervals over blocks. "
        f"Held at their means, the {count(first['neurons'], 'neuron')} cost {ablated['loss_change']:.3f} nats. "
        f"Their matches recover **{_share(value.get((name, 'match'), np.nan))}**, the second-best "
        f"{_share(value.get((name, 'second'), np.nan))}, random neurons like the matches "
        f"{_share(value.get((name, 'random'), np.nan))}, all neurons of a layer "
        f"**{_share(value.get((name, 'all'), np.nan))}**."
    )
    text += _costliest(own) + _groups(value) + _seeds(table) + _not_given(own)
    return Caption(title, text, f"{alt} {title}.")


def _costliest(own: pd.DataFrame) -> str:
    """The layer whose universal neurons cost most when they are held at their means."""
    layers = own[own["set"].str.startswith("universal, layer") & (own["partner"] == "mean")]
    if len(layers) < 2:
        return ""
    row = layers.loc[layers["loss_change"].idxmax()]
    name = row["set"].removeprefix("universal, ")
    return f" Of {name} alone, the {count(row['neurons'], 'neuron')} cost {row['loss_change']:.3f} nats."


def _groups(value: dict[tuple[str, str], float]) -> str:
    """The groups of all neurons with the smallest and the largest R² of one neuron."""
    known = [name for name, partner in value if name.startswith("group") and partner == "match"]
    if len(known) < 2:
        return ""
    ends = [value[name, "match"] for name in (min(known), max(known))]
    return (
        f" Among all neurons, the quarter with the smallest R² of one neuron keeps {_share(ends[0])}, the one with "
        f"the largest {_share(ends[1])}."
    )


def _seeds(table: pd.DataFrame) -> str:
    evidence = _evidence(transplants=table)
    effects: Effects = claims.recovered(evidence)
    if effects.values.notna().sum() < 2:
        return ""
    value, interval = over_seeds(effects, "transplant_matches")
    beyond, other = over_seeds(claims.beyond_random(evidence), "transplant_beyond_random")
    text = f" Over {count(effects.values.notna().sum(), 'seed')}, universal neurons' matches recover {value}{interval}"
    return f"{text}; the difference from random neurons like them is {beyond} of R{other}."


def _not_given(own: pd.DataFrame) -> str:
    left = list(dict.fromkeys(own["set"]))
    given = set(own.loc[own["recovered"].notna(), "set"])
    missing = [name for name in left if name not in given]
    return f" Not given, since the mean costs too little: {listed(missing)}." if missing else ""
