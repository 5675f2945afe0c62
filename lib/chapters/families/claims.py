"""The paper's claims that chapter 4 tests: how many neurons are explained, and at what depth each family sits.

The paper counts among universal neurons. Depth and letters are tested on all neurons here, so that a run without a
universal one can test them; depth is relative to the number of layers.
"""

import math
from collections.abc import Callable

import pandas as pd

from lib.chapters.families.scoring import (
    LETTERS,
    PUBLISHED_HIGH,
    PUBLISHED_LAYERS,
    PUBLISHED_LETTERS,
    PUBLISHED_LOW,
    PUBLISHED_UNEXPLAINED,
    PUBLISHED_UNIVERSAL,
    PUBLISHED_WELL_EXPLAINED,
)
from lib.chapters.families.summary import FAMILIES, with_excess
from lib.display.captions import count, percent
from lib.display.claims import FEWEST, Claim, Evidence, Measured, agreed, decided, over_seeds, share, unmeasured

FAMILY, EVERYONE = "families", "neurons_all_seeds"
HALF = 0.5  # "most"
SOME = 0.05  # "at least one in twenty"
FIRST_QUARTER = 0.25  # has the published layers 0 and 1, and 0 to 2, in models of 12 layers as of 24


def _universal_share(passes: Callable[[pd.Series], pd.Series], bound: float, above: bool):
    """The share of the reference's universal neurons whose best score passes."""

    def measure(evidence: Evidence) -> Measured:
        rows = with_excess(evidence.own(FAMILY), evidence.tables[EVERYONE])
        scores = rows.loc[rows["is_universal"], "score"]
        return share(passes(scores).sum(), len(scores), bound, above, "universal neuron")

    return measure


def _common_seeds(own: pd.DataFrame) -> pd.Index:
    """The seeds that have enough of these neurons."""
    number = own.groupby("seed").size()
    return number[number >= FEWEST].index


def _few(own: pd.DataFrame, family: str) -> Measured:
    return unmeasured(f"{count(len(own), f'{FAMILIES[family]} neuron')} in all seeds, too few")


def _whole_percent(value: float) -> str:
    return percent(value, 0)


def _in_first_layers(family: str, depth: float):
    """Per seed the share of a family's neurons in the first layers, up to a relative depth.

    The claim must also hold with one chance level for all layers, the seed's highest, because random directions of
    some layers score higher than those of others.
    """

    def measure(evidence: Evidence) -> Measured:
        table = evidence.tables[FAMILY]
        own, layers = table[table["family"] == family], table["layer"].max() + 1
        highest = table.groupby("seed")["chance"].max()
        found, strict = part(own, layers), part(own[own["score"] > own["seed"].map(highest).astype(float)], layers)
        level = f"with the highest chance level for all layers ({highest.max():.2f})"
        return agreed(found, strict, f"{found.here}; {level}: {strict.here}")

    def part(own: pd.DataFrame, layers: int) -> Measured:
        seeds = _common_seeds(own)
        if not len(seeds):
            return _few(own, family)
        found, parts = [], []
        for end in sorted({math.floor(layers * depth), math.ceil(layers * depth)}):  # a depth may cut a layer in two
            shares = (own["layer"] < end).groupby(own["seed"]).mean()[seeds]
            found.append(over_seeds(shares, HALF, True, _whole_percent))
            first = "no whole layer" if end == 0 else "layer 0" if end == 1 else f"layers 0 to {end - 1}"
            parts.append(f"in {first}: {found[-1].here}")
        value, low, high = found[0].value, found[0].low, found[-1].high
        here = f"{', '.join(parts)}; of {len(own):,} neurons in {layers} layers, universal or not"
        return Measured(value, low, high, here, decided(low, high, HALF))

    return measure


def _letters(evidence: Evidence) -> Measured:
    table = evidence.tables[FAMILY]
    number = table[table["family"] == "alphabet"].groupby("seed")["label"].nunique()
    number = number.reindex(table["seed"].unique(), fill_value=0).astype(float)
    found = over_seeds(number, LETTERS * HALF, True, lambda value: f"{value:.3g}")
    return found._replace(here=f"letters: {found.here}; of all neurons, universal or not")


def _fullest_layer(evidence: Evidence) -> Measured:
    own = evidence.tables[FAMILY].query("family == 'syntax'")
    seeds = _common_seeds(own)
    if not len(seeds):
        return _few(own, "syntax")
    fullest = own.groupby("seed")["layer"].agg(lambda layer: layer.value_counts(normalize=True).iloc[0])[seeds]
    found = over_seeds(fullest, HALF, False, _whole_percent)
    return found._replace(here=f"fullest layer: {found.here}; {len(own):,} neurons, universal or not")


def _claim(name: str, claim: str, published: str, figure: str, measure, needs: tuple[str, ...] = (FAMILY,)) -> Claim:
    return Claim(name, claim, published, "04_families", figure, needs, measure)


def _depth_claim(family: str, neurons: str, depth: float) -> Claim:
    first = "quarter" if depth == FIRST_QUARTER else "half"
    return _claim(
        f"depth_{family}",
        f"Most {neurons} sit in the first {first} of the layers",
        f"{PUBLISHED_LAYERS[family].replace(' in ', ' ')}, among universal neurons",
        "families_by_layer",
        _in_first_layers(family, depth),
    )


def _published_share(number: int) -> str:
    return f"{percent(number / PUBLISHED_UNIVERSAL, 1)} (GPT2-medium)"


CLAIMS = (
    _claim(
        "unexplained",
        f"Most universal neurons are explained: fewer than half have a best score below {PUBLISHED_LOW:g}",
        f"{PUBLISHED_UNEXPLAINED} of {PUBLISHED_UNIVERSAL:,} below, {_published_share(PUBLISHED_UNEXPLAINED)}",
        "family_scores",
        _universal_share(lambda scores: scores < PUBLISHED_LOW, HALF, above=False),
        (FAMILY, EVERYONE),
    ),
    _claim(
        "well_explained",
        f"Of universal neurons at least one in twenty has a score of {PUBLISHED_HIGH:g} or more",
        f"about {PUBLISHED_WELL_EXPLAINED} of {PUBLISHED_UNIVERSAL:,}, {_published_share(PUBLISHED_WELL_EXPLAINED)}",
        "family_scores",
        _universal_share(lambda scores: scores >= PUBLISHED_HIGH, SOME, above=True),
        (FAMILY, EVERYONE),
    ),
    _depth_claim("unigram", "neurons of one word", FIRST_QUARTER),
    _claim(
        "letters",
        "Most letters of the alphabet have a neuron that answers to words beginning with it",
        f"{PUBLISHED_LETTERS} of {LETTERS} letters, among universal neurons",
        "figure_17_letters",
        _letters,
    ),
    _depth_claim("previous_token", "previous-token neurons", HALF),
    _depth_claim("position", "position neurons", FIRST_QUARTER),
    _claim(
        "syntax",
        "No layer stands out for syntax: none holds half of its neurons",
        "no layer stands out, among universal neurons",
        "families_by_layer",
        _fullest_layer,
    ),
)
