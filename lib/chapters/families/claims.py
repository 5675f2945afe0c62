"""The paper's claims that chapter 4 tests: how many neurons are explained, and at what depth each family sits.

The paper counts among universal neurons. Depth and letters are tested on all neurons here, so that a run without a
universal one can test them; depth is relative to the number of layers.
"""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd

from lib.chapters.families import scoring
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


def _per_seed(own: pd.DataFrame, family: str, value: Callable[[pd.Series], float], above: bool) -> Measured:
    """A value of the layers of a family's neurons, over the seeds that have enough of them."""
    layers = own.groupby("seed")["layer"]
    enough = layers.size() >= FEWEST
    if not enough.any():
        return unmeasured(f"{count(len(own), f'{FAMILIES[family]} neuron')} in all seeds, too few")
    return over_seeds(layers.agg(value)[enough], HALF, above, lambda found: percent(found, 0))


def _in_first_layers(family: str, depth: float):
    """Per seed the share of a family's neurons in the first layers, up to a relative depth.

    The claim must also hold with one chance level for all layers, the seed's highest, because random directions of
    some layers score higher than those of others.
    """

    def measure(evidence: Evidence) -> Measured:
        table = evidence.tables[FAMILY]
        own, layers = table["family"] == family, table["layer"].max() + 1
        highest = table.groupby("seed")["chance"].transform("max")
        found, strict = (part(table[chosen], layers) for chosen in (own, own & (table["score"] > highest)))
        level = f"with the highest chance level for all layers ({highest.max():.2f})"
        return agreed(found, strict, f"{found.here}; {level}: {strict.here}")

    def part(own: pd.DataFrame, layers: int) -> Measured:
        found = {}
        for end in sorted({math.floor(layers * depth), math.ceil(layers * depth)}):  # a depth may cut a layer in two
            where = "no whole layer" if end == 0 else "layer 0" if end == 1 else f"layers 0 to {end - 1}"
            found[where] = _per_seed(own, family, lambda layer, end=end: (layer < end).mean(), above=True)
        first, last = [*found.values()][0], [*found.values()][-1]
        if np.isnan(first.value):
            return first
        here = ", ".join(f"in {where}: {one.here}" for where, one in found.items())
        here += f"; of {len(own):,} neurons in {layers} layers, universal or not"
        return Measured(first.value, first.low, last.high, here, decided(first.low, last.high, HALF))

    return measure


def _letters(evidence: Evidence) -> Measured:
    table = evidence.tables[FAMILY]
    number = table[table["family"] == "alphabet"].groupby("seed")["label"].nunique()
    number = number.reindex(table["seed"].unique(), fill_value=0).astype(float)
    found = over_seeds(number, scoring.LETTERS * HALF, True, lambda value: f"{value:.3g}")
    return found._replace(here=f"letters: {found.here}; of all neurons, universal or not")


def _fullest_layer(evidence: Evidence) -> Measured:
    own = evidence.tables[FAMILY].query("family == 'syntax'")
    found = _per_seed(own, "syntax", lambda layer: layer.value_counts(normalize=True).iloc[0], above=False)
    if np.isnan(found.value):
        return found
    return found._replace(here=f"fullest layer: {found.here}; {len(own):,} neurons, universal or not")


def _claim(name: str, claim: str, published: str, figure: str, measure, needs: tuple[str, ...] = (FAMILY,)) -> Claim:
    return Claim(name, claim, published, "04_families", figure, needs, measure)


def _depth_claim(family: str, neurons: str, depth: float) -> Claim:
    claim = f"Most {neurons} sit in the first {'quarter' if depth == FIRST_QUARTER else 'half'} of the layers"
    published = f"{scoring.PUBLISHED_LAYERS[family].replace(' in ', ' ')}, among universal neurons"
    return _claim(f"depth_{family}", claim, published, "families_by_layer", _in_first_layers(family, depth))


def _published_share(number: int, below: str = "") -> str:
    total = scoring.PUBLISHED_UNIVERSAL
    return f"{number} of {total:,}{below}, {percent(number / total, 1)} (GPT2-medium)"


CLAIMS = (
    _claim(
        "unexplained",
        f"Most universal neurons are explained: fewer than half have a best score below {scoring.PUBLISHED_LOW:g}",
        _published_share(scoring.PUBLISHED_UNEXPLAINED, " below"),
        "family_scores",
        _universal_share(lambda scores: scores < scoring.PUBLISHED_LOW, HALF, above=False),
        (FAMILY, EVERYONE),
    ),
    _claim(
        "well_explained",
        f"Of universal neurons at least one in twenty has a score of {scoring.PUBLISHED_HIGH:g} or more",
        f"about {_published_share(scoring.PUBLISHED_WELL_EXPLAINED)}",
        "family_scores",
        _universal_share(lambda scores: scores >= scoring.PUBLISHED_HIGH, SOME, above=True),
        (FAMILY, EVERYONE),
    ),
    _depth_claim("unigram", "neurons of one word", FIRST_QUARTER),
    _claim(
        "letters",
        "Most letters of the alphabet have a neuron that answers to words beginning with it",
        f"{scoring.PUBLISHED_LETTERS} of {scoring.LETTERS} letters, among universal neurons",
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
