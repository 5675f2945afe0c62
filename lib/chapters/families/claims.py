"""The paper's claims that chapter 4 tests: how many neurons are explained, and at what depth each family sits.

The paper counts among universal neurons; families are looked for among all neurons here, so that a run without a
universal one can still place them, and the rows say so. Depth is relative, since the models differ in their number of layers.
"""

import math

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

CHAPTER = "04_families"
FAMILY, EVERYONE = "families", "neurons_all_seeds"
AMONG = ", among universal neurons"
HALF = 0.5  # "most"
SOME = 0.05  # "at least one in twenty"
EARLY = 0.25  # the published layers 0 and 1, and 0 to 2, whose model is not named, lie in the first quarter of 12 layers as of 24


def _universal_rows(evidence: Evidence) -> pd.DataFrame:
    rows = with_excess(evidence.tables[FAMILY], evidence.tables[EVERYONE])
    return rows[(rows["seed"] == evidence.reference) & (rows["excess_corr"] > evidence.threshold)]


def _below(evidence: Evidence) -> Measured:
    rows = _universal_rows(evidence)
    return share((rows["score"] < PUBLISHED_LOW).sum(), len(rows), HALF, False, "universal neuron")


def _well(evidence: Evidence) -> Measured:
    rows = _universal_rows(evidence)
    return share((rows["score"] >= PUBLISHED_HIGH).sum(), len(rows), SOME, True, "universal neuron")


def _in_layers(family: str, depth: float):
    """Per seed the share of a family's neurons that lie above a relative depth, of seeds with enough of them.

    Where the depth cuts a layer in two, the share lies between that of the layers wholly above it and that with the cut layer too. Random
    directions of some layers score higher than those of others, and so does the level of chance; a claim about depth must hold with one
    level for all layers, too, the highest of the seed.
    """

    def measure(evidence: Evidence) -> Measured:
        table = evidence.tables[FAMILY]
        found = of(table, table["family"] == family)
        highest = table.groupby("seed")["chance"].transform("max")
        same = of(table, (table["family"] == family) & (table["score"] > highest))
        return agreed(
            found,
            same,
            f"{found.here}; with layers' highest level of chance for all ({highest.max():.2f}): {same.here}",
        )

    def of(table: pd.DataFrame, chosen: pd.Series) -> Measured:
        layers, own = table["layer"].max() + 1, table[chosen]
        number = own.groupby("seed").size()
        enough = number[number >= FEWEST].index
        if not len(enough):
            return unmeasured(f"{count(len(own), f'{FAMILIES[family]} neuron')} in all seeds, too few")
        ends = sorted({math.floor(layers * depth), math.ceil(layers * depth)})
        found = [
            over_seeds(
                (own["layer"] < end).groupby(own["seed"]).mean()[enough], HALF, True, lambda value: percent(value, 0)
            )
            for end in ends
        ]
        told = [
            f"{'no whole layer' if end == 0 else 'layer 0' if end == 1 else f'layers 0 to {end - 1}'}: {one.here}"
            for end, one in zip(ends, found, strict=True)
        ]
        here = f"in {', in '.join(told)}; of {len(own):,} neurons in {layers} layers, universal or not"
        return Measured(found[0].value, found[0].low, found[-1].high, here, decided(found[0].low, found[-1].high, HALF))

    return measure


def _letters(evidence: Evidence) -> Measured:
    table = evidence.tables[FAMILY]
    own = table[table["family"] == "alphabet"]
    number = own.groupby("seed")["label"].nunique().reindex(table["seed"].unique(), fill_value=0).astype(float)
    found = over_seeds(number, LETTERS * HALF, True, lambda value: f"{value:.3g}")
    return found._replace(here=f"letters: {found.here}; of all neurons, universal or not")


def _syntax(evidence: Evidence) -> Measured:
    table = evidence.tables[FAMILY]
    own = table[table["family"] == "syntax"]
    number = own.groupby("seed").size()
    enough = number[number >= FEWEST].index
    if not len(enough):
        return unmeasured(f"{count(len(own), 'syntax neuron')} in all seeds, too few")
    largest = own.groupby("seed")["layer"].agg(lambda layer: layer.value_counts(normalize=True).iloc[0])
    found = over_seeds(largest[enough], HALF, False, lambda value: percent(value, 0))
    return found._replace(here=f"fullest layer: {found.here}; {len(own):,} neurons, universal or not")


def _depth_claim(family: str, claim: str, depth: float) -> Claim:
    published = f"{PUBLISHED_LAYERS[family].replace(' in ', ' ')}{AMONG}"
    return Claim(
        f"depth_{family}", claim, published, CHAPTER, "families_by_layer", (FAMILY,), _in_layers(family, depth)
    )


CLAIMS = (
    Claim(
        "unexplained",
        f"Most universal neurons are explained: fewer than half have a best score below {PUBLISHED_LOW:g}",
        f"{PUBLISHED_UNEXPLAINED} of {PUBLISHED_UNIVERSAL:,} below, {percent(PUBLISHED_UNEXPLAINED / PUBLISHED_UNIVERSAL, 1)} (GPT2-medium)",
        CHAPTER,
        "family_scores",
        (FAMILY, EVERYONE),
        _below,
    ),
    Claim(
        "well_explained",
        f"Of universal neurons at least one in twenty has a score of {PUBLISHED_HIGH:g} or more",
        f"about {PUBLISHED_WELL_EXPLAINED} of {PUBLISHED_UNIVERSAL:,}, {percent(PUBLISHED_WELL_EXPLAINED / PUBLISHED_UNIVERSAL, 1)} (GPT2-medium)",
        CHAPTER,
        "family_scores",
        (FAMILY, EVERYONE),
        _well,
    ),
    _depth_claim("unigram", "Most neurons of one word sit in the first quarter of the layers", EARLY),
    Claim(
        "letters",
        "Most letters of the alphabet have a neuron that answers to words beginning with it",
        f"{PUBLISHED_LETTERS} of {LETTERS} letters{AMONG}",
        CHAPTER,
        "figure_17_letters",
        (FAMILY,),
        _letters,
    ),
    _depth_claim("previous_token", "Most previous-token neurons sit in the first half of the layers", HALF),
    _depth_claim("position", "Most position neurons sit in the first quarter of the layers", EARLY),
    Claim(
        "syntax",
        "No layer stands out for syntax: none holds half of its neurons",
        f"no layer stands out{AMONG}",
        CHAPTER,
        "families_by_layer",
        (FAMILY,),
        _syntax,
    ),
)
