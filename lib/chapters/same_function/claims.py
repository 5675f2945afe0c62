"""The claims that chapter 08 tests: another neuron or another basis, transplants, function without text, heads."""

from collections.abc import Callable

import pandas as pd

from lib.chapters.same_function import captions_heads, captions_map, summary
from lib.display.captions import percent, signed, signed_percent
from lib.display.claims import Claim, Effects, Evidence, unmeasured

CHAPTER = "08_same_function"
NO_LOSS = "a seed without universal neurons, or whose mean ablation costs no loss beyond two errors, cannot be asked"


def over_pairs(
    table: pd.DataFrame, measure: Callable[[pd.DataFrame], pd.Series], words: Callable[[float], str], **fields
) -> Effects:
    """A measure by seed; left out is each seed in turn, as the one explained and as the one that explains."""
    seeds = sorted({*table["seed"], *table["model"]})
    left_out = {seed: measure(table[(table["seed"] != seed) & (table["model"] != seed)]).mean() for seed in seeds}
    return Effects(measure(table), words, left_out=pd.Series(left_out, dtype=float), **fields)


def _r2(value: float) -> str:
    return signed(value, 3)


def beyond_null(rung: str) -> Callable[[Evidence], Effects]:
    """Mean held-out R² of a rung less that of the rotated basis."""

    def measure(evidence: Evidence) -> Effects:
        table = evidence.tables["ladder"]
        own, null = (
            summary.by_seed(table, lambda of, name=name: summary.means(of)[name]).mean()
            for name in (rung, f"null_{rung}")
        )
        details = f"{own:.3f} against {null:.3f}, each seed from one other"
        return over_pairs(table, lambda some: summary.beyond_null(some, rung), _r2, details=details)

    return measure


def outside_one(evidence: Evidence) -> Effects:
    """Share of what all neurons of a layer predict that the best single neuron does not."""
    return over_pairs(
        evidence.tables["ladder"], summary.outside_one, signed_percent, details="of the predicted variance"
    )


def recovered(evidence: Evidence) -> Effects:
    """R of the universal neurons of all layers, replaced by their matches."""
    table = evidence.tables["transplants"]
    if summary.recovered_by(table, "match").isna().all():
        return unmeasured(NO_LOSS)
    random = summary.recovered_by(table, "random")
    details = "of the loss recovered, all universal neurons at once"
    return over_pairs(
        table,
        lambda some: summary.recovered_by(some, "match"),
        signed_percent,
        details=details,
        control=random,
        missing=NO_LOSS,
    )


def beyond_random(evidence: Evidence) -> Effects:
    """R with matches less R with random neurons like them."""
    table = evidence.tables["transplants"]
    if summary.recovered_by(table, "match").isna().all():
        return unmeasured(NO_LOSS)
    details = f"random neurons {percent(summary.recovered_by(table, 'random').mean(), 0)}"
    return over_pairs(
        table, lambda some: summary.recovered_by(some, "match", "random"), signed, details=details, missing=NO_LOSS
    )


CLAIMS = (
    Claim("same_one_neuron", CHAPTER, ("ladder",), beyond_null("one")),
    Claim("same_basis", CHAPTER, ("ladder",), beyond_null("all")),
    Claim("same_outside_one", CHAPTER, ("ladder",), outside_one),
    Claim("transplant_matches", CHAPTER, ("transplants",), recovered),
    Claim("transplant_beyond_random", CHAPTER, ("transplants",), beyond_random),
    Claim("map_finds_partner", CHAPTER, (captions_map.TABLE,), captions_map.finds_partner),
    Claim("map_beats_matched", CHAPTER, (captions_map.TABLE,), captions_map.beats_matched),
    Claim("head_excess", CHAPTER, (captions_heads.TABLE,), captions_heads.excess),
    Claim("head_scores", CHAPTER, (captions_heads.TABLE,), captions_heads.scores),
)
