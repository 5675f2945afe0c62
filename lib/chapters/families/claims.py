"""What chapter 4's claims measure: how many neurons are explained, and at what depth each family sits.

The paper counts among universal neurons. Depth, letters and syntax are measured on all neurons here, so that a seed
with few universal ones can be asked; depth is relative to the number of layers.
"""

from collections.abc import Callable

import pandas as pd

from lib.chapters.families import scoring
from lib.chapters.families.summary import FAMILIES, with_excess
from lib.display.captions import count, percent
from lib.display.claims import FEWEST, Claim, Effects, Evidence

CHAPTER = "04_families"
FAMILY, EVERYONE = "families", "neurons_all_seeds"


def _whole(share: float) -> str:
    return percent(share, 0)


def _of_enough(rows: pd.DataFrame, seeds: pd.Index, value: Callable[[pd.DataFrame], float]) -> pd.Series:
    """A value of each seed's rows; NaN for a seed with fewer than FEWEST."""
    found = {seed: value(own) for seed, own in rows.groupby("seed") if len(own) >= FEWEST}
    return pd.Series(found, dtype=float).reindex(seeds)


def _too_few(rows: pd.DataFrame, noun: str) -> str:
    return f"{count(len(rows), noun)} in all seeds; a seed needs {FEWEST}, in larger models or another text"


def _seeds(table: pd.DataFrame) -> pd.Index:
    return pd.Index(table["seed"].unique())


def _universal_share(passes: Callable[[pd.Series], pd.Series]):
    """The share of each seed's universal neurons whose best score passes."""

    def measure(evidence: Evidence) -> Effects:
        table = evidence.tables[FAMILY]
        rows = with_excess(table, evidence.tables[EVERYONE])
        universal = rows[rows["is_universal"]]
        values = _of_enough(universal, _seeds(table), lambda own: passes(own["score"]).mean())
        noun = "universal neuron"
        return Effects(values, _whole, f"of {count(len(universal), noun)}", missing=_too_few(universal, noun))

    return measure


def share_above(layer: pd.Series, layers: int, depth: float) -> float:
    """Share of neurons in the first part `depth` of the layers; a layer that it cuts counts in part."""
    return float((depth * layers - layer).clip(0, 1).mean())


def _in_first_layers(family: str, depth: float):
    """The share of a family's neurons in the first layers, up to a relative depth.

    Chance levels differ between layers, which moves neurons in and out of a family. The details give the share if the
    seed's highest level holds for all layers.
    """

    def measure(evidence: Evidence) -> Effects:
        table = evidence.tables[FAMILY]
        own = table[table["family"] == family]
        layers = table.groupby("seed")["layer"].max() + 1
        strict = own[own["score"] > table.groupby("seed")["chance"].transform("max")[own.index]]

        def share(rows: pd.DataFrame) -> float:
            return share_above(rows["layer"], layers[rows["seed"].iloc[0]], depth)

        values, others = (_of_enough(rows, _seeds(table), share) for rows in (own, strict))
        noun = f"{FAMILIES[family]} neuron"
        details = f"of {count(len(own), noun)}, universal or not"
        if others.notna().any():
            details += f"; {_whole(others.mean())} with one chance level for all layers"
        return Effects(values, _whole, details, missing=_too_few(own, noun))

    return measure


def _letters(evidence: Evidence) -> Effects:
    table = evidence.tables[FAMILY]
    number = table[table["family"] == "alphabet"].groupby("seed")["label"].nunique()
    number = number.reindex(_seeds(table), fill_value=0).astype(float)
    return Effects(number, lambda value: f"{value:.1f}", f"of {scoring.LETTERS}; of all neurons, universal or not")


def _fullest_layer(evidence: Evidence) -> Effects:
    table = evidence.tables[FAMILY]
    own = table[table["family"] == "syntax"]
    values = _of_enough(own, _seeds(table), lambda rows: rows["layer"].value_counts(normalize=True).iloc[0])
    details = f"in the fullest layer, of {count(len(own), 'syntax neuron')}, universal or not"
    return Effects(values, _whole, details, missing=_too_few(own, "syntax neuron"))


MEASURES = {
    "unexplained": _universal_share(lambda scores: scores < scoring.PUBLISHED_LOW),
    "well_explained": _universal_share(lambda scores: scores >= scoring.PUBLISHED_HIGH),
    "depth_unigram": _in_first_layers("unigram", 1 / 4),
    "letters": _letters,
    "depth_previous_token": _in_first_layers("previous_token", 1 / 2),
    "depth_position": _in_first_layers("position", 1 / 4),
    "syntax": _fullest_layer,
}
CLAIMS = tuple(Claim(name, CHAPTER, (FAMILY, EVERYONE), measure) for name, measure in MEASURES.items())
