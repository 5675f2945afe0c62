"""The claims of chapter 7 on each seed's last checkpoint: the paper's, those of arXiv 2508.00903 and this report's own.

A claim holds if it holds in every seed, and does not hold if it holds in none. Where the seeds differ, or one of them
cannot be asked (too few universal neurons), this run cannot tell.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pandas as pd
from scipy.stats import binom

from lib.chapters.circuits.roles import NULL_QUANTILE, PUBLISHED_CUTS, PUBLISHED_HIGH_KURTOSIS
from lib.chapters.emergence.statistics import HEAD_BAR, layer_persistence, middle_point, persistence
from lib.chapters.families.summary import FAMILIES
from lib.chapters.universality import properties
from lib.chapters.universality.properties import OWN_LAYER, OWN_LAYER_PUBLISHED, PUBLISHED_SHARES
from lib.display.captions import percent, signed
from lib.display.claims import (
    FAILS,
    FEWEST,
    HOLDS,
    PAPER,
    SIGNIFICANT,
    Claim,
    Evidence,
    Measured,
    claim_rows,
    decided,
    unmeasured,
)

CHAPTER = "07_emergence"
PERSISTENCE = "arXiv 2508.00903"
OWN = "this report"  # no paper is known to state it; the source of a score is named
UNPUBLISHED = "—"
MAJORITY = 0.5
LEAST, MOST = percent(PUBLISHED_SHARES["share"].min()), percent(PUBLISHED_SHARES["share"].max())
COSINES = PUBLISHED_SHARES["frequency_cosine"]
HIGH_KURTOSIS = f"{sum(PUBLISHED_HIGH_KURTOSIS.values()):,.0f} in the last four layers of GPT2-medium"
HERE = "here, mean (range over seeds)"
FAMILY_FIGURES = "figures 4, 15 to 21"
PAPER_FAMILIES = ("unigram", "alphabet", "token_class", "previous_token", "position", "syntax", "context")

percents, one_decimal = partial(percent, digits=1), "{:.1f}".format


def spread(values: Sequence[float], words: Callable[[float], str] = "{:.2f}".format) -> str:
    """ "mean (low to high)" over seeds; "undefined" without any number."""
    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known)]
    if not len(known):
        return "undefined"
    low, high = words(known.min()), words(known.max())
    return low if low == high else f"{words(known.mean())} ({low} to {high})"


def claims(evidence: Evidence) -> pd.DataFrame:
    """The reader's table, one row per claim; `evidence` has the tables of `lib.chapters.emergence.tables.Emergence`."""
    tested = _at_end(evidence, "properties").query("published != ''").drop_duplicates("property")
    found = [universal_share, own_layer, *map(_property, tested.itertuples()), frequency_cosine, high_kurtosis]
    found += [late_prediction, final_suppression, low_variance, BOS_HEAD]
    found += map(_family, PAPER_FAMILIES) if "families" in evidence.tables else [families]
    found += [growth, persistent, same_partners, outer_layers] if len(evidence.tables["points"]) > 1 else []
    table = claim_rows(evidence, [*found, PREVIOUS_TOKEN_HEAD, INDUCTION_HEAD])
    return table[["verdict", "claim", "here", "published", "source"]].rename(columns={"here": HERE})


def _claim(claim: str, figure: str, published: str = UNPUBLISHED, source: str = PAPER, name: str = ""):
    """Turns the measure below it into a Claim, which has its name unless another is given."""

    def make(measure: Callable[[Evidence], Measured]) -> Claim:
        found_in = (name or measure.__name__, claim, published, CHAPTER, f"emergence_{figure}")
        return Claim(*found_in, needs=(), measure=measure, source=source)

    return make


def _each_seed(values: pd.Series, here: str, bound: float = 0.0, above: bool = True) -> Measured:
    """From one value per seed, NaN for a seed that cannot be asked: whether all are above (or below) the bound."""
    low, high = (float(end(skipna=False)) for end in (values.min, values.max))
    return Measured(float(values.mean()), low, high, here, decided(low, high, bound, above))


def _at_end(evidence: Evidence, name: str) -> pd.DataFrame:
    """A table's rows of the last checkpoint."""
    table = evidence.tables[name]
    return table[table["point"] == evidence.tables["points"]["point"].iloc[-1]]


# ---------------------------------------------------------------- which neurons are universal


def _shares(neurons: pd.DataFrame) -> pd.Series:
    return properties.reference_shares(neurons).set_index("seed")["share"]


@_claim(f"At least {LEAST} of the neurons are universal, the smallest published share", "shares", f"{LEAST} to {MOST}")
def universal_share(evidence: Evidence) -> Measured:
    shares, bound = _shares(_at_end(evidence, "neurons")), PUBLISHED_SHARES["share"].min()
    return _each_seed(shares, spread(shares, percent), np.nextafter(bound, 0))  # the bound itself is enough


@_claim(OWN_LAYER, "layers", OWN_LAYER_PUBLISHED)
def own_layer(evidence: Evidence) -> Measured:
    excess = _at_end(evidence, "layers").groupby("seed")["same_layer"].agg(properties.own_layer_excess)
    return _each_seed(excess, f"{spread(100 * excess, partial(signed, digits=1))} percentage points more")


def _property(tested) -> Claim:
    name, direction = tested.property, tested.published
    claim = f"Universal neurons: {tested.label} is {direction} within their layer"

    @_claim(claim, "shares", "figure 3", name=f"property_{name}")
    def measure(evidence: Evidence) -> Measured:
        tests = _at_end(evidence, "properties").set_index("property").loc[[name]].set_index("seed")
        universal = _at_end(evidence, "neurons").groupby("seed")["is_universal"].sum()
        asked = tests["verdict"].isin([HOLDS, FAILS]) & (universal > 0)
        sided = tests["effect"] if direction == "high" else -tests["effect"]
        return _each_seed(sided.where(asked), f"Cliff's delta {spread(tests['effect'], signed)}")

    return measure


_RANGE = f"correlation {signed(COSINES.min())} to {signed(COSINES.max())}"


@_claim("Neurons that fire often have a lower cos(w_in, w_out)", "shares", _RANGE)
def frequency_cosine(evidence: Evidence) -> Measured:
    cosine = _at_end(evidence, "seeds")["frequency_cosine"]
    return _each_seed(cosine, f"correlation {spread(cosine, signed)}", above=False)


def _family(family: str) -> Claim:
    name = f"family_{family}"

    @_claim(f"There are universal neurons of the family “{FAMILIES[family]}”", "early_late", FAMILY_FIGURES, name=name)
    def measure(evidence: Evidence) -> Measured:
        universal = evidence.tables["families"].query("is_universal")
        number = int((universal["family"] == family).sum())
        asked = number or len(universal) >= FEWEST
        return _each_seed(pd.Series([number if asked else np.nan]), f"{number} of {len(universal)} (reference seed)")

    return measure


_NAMES = ", ".join(FAMILIES[family] for family in PAPER_FAMILIES)


@_claim(f"Universal neurons fall into families: {_NAMES}", "early_late", FAMILY_FIGURES)
def families(evidence: Evidence) -> Measured:
    return unmeasured("not measured: this run has no families of the last checkpoint")


# ---------------------------------------------------------------- circuits


def _depth(evidence: Evidence) -> int:
    return int(evidence.tables["layers"]["layer"].max()) + 1


def _neurons(evidence: Evidence, column: str, first: float = 0, end: float = np.inf) -> pd.Series:
    """A count of neurons of each seed, in the layers from `first` up to, but without, `end`."""
    layers = _at_end(evidence, "layers")
    return layers[layers["layer"].between(first, end, inclusive="left")].groupby("seed")[column].sum()


def _more(many: pd.Series, few: pd.Series) -> Measured:
    here = f"{spread(many, one_decimal)} against {spread(few, one_decimal)} neurons"
    return _each_seed((many - few).where(many + few > 0), here)


@_claim(
    f"Some neurons have W_U kurtosis above {PUBLISHED_CUTS.kurtosis:g}, counting tokens that were never learned "
    "(chapter 5 excludes them)",
    "circuits",
    HIGH_KURTOSIS,
)
def high_kurtosis(evidence: Evidence) -> Measured:
    number = _neurons(evidence, "peaked_positive") + _neurons(evidence, "peaked_negative")
    return _each_seed(number, f"{spread(number, one_decimal)} neurons")


@_claim("Prediction neurons (calibrated cut) are more frequent in the second half of the depth", "circuits", "figure 6")
def late_prediction(evidence: Evidence) -> Measured:
    half = _depth(evidence) / 2
    return _more(_neurons(evidence, "prediction", half), _neurons(evidence, "prediction", end=half))


@_claim("In the last layer suppression outnumbers prediction (calibrated cut)", "circuits", "figure 6")
def final_suppression(evidence: Evidence) -> Measured:
    last = _depth(evidence) - 1
    return _more(_neurons(evidence, "suppression", last), _neurons(evidence, "prediction", last))


@_claim(
    "In the last two layers more neurons than chance have a logit variance below "
    f"{percents(NULL_QUANTILE)} of random directions: one mark of entropy neurons, the other is a large norm",
    "circuits",
    "figure 7",
)
def low_variance(evidence: Evidence) -> Measured:
    first, chance = _depth(evidence) - 2, 1 - NULL_QUANTILE
    low, asked = _neurons(evidence, "low_variance", first), _neurons(evidence, "neurons", first)
    p_values = pd.Series(binom.sf(low - 1, asked, chance), low.index)
    here = f"{spread(low, one_decimal)} neurons, {(asked * chance).mean():.1f} by chance"
    return _each_seed(p_values, here, SIGNIFICANT, above=False)


def _best_head(score: str, claim: str, source: str = OWN) -> Claim:
    @_claim(f"{claim} more than half of its attention", "heads", source=source, name=f"{score}_head")
    def measure(evidence: Evidence) -> Measured:
        best = _at_end(evidence, "heads").groupby("seed")[score].max()
        return _each_seed(best, spread(best), HEAD_BAR)

    return measure


BOS_HEAD = _best_head("bos", "BOS is an attention sink: some head gives it")
PREVIOUS_TOKEN_HEAD = _best_head("previous", "Some head attends to the previous token with")
INDUCTION_HEAD = _best_head("induction", "Some head does induction with", f"{OWN}, with the score of arXiv 2209.11895")


# ---------------------------------------------------------------- training


@_claim("Universality grows in the second half of training", "shares", source=OWN)
def growth(evidence: Evidence) -> Measured:
    neurons, points = evidence.tables["neurons"], evidence.tables["points"]
    before = _shares(neurons[neurons["point"] == middle_point(points)])
    after = _shares(_at_end(evidence, "neurons"))
    return _each_seed(after - before, f"from {spread(before, percent)} to {spread(after, percent)}")


def _halfway(evidence: Evidence) -> pd.DataFrame:
    """Persistence from the middle of training, one row a seed."""
    table = persistence(evidence.tables["neurons"])
    return table[table["point"] == middle_point(evidence.tables["points"])]


@_claim(
    "Most neurons that are universal halfway are so at the end, more than chance",
    "births",
    source=f"{OWN}, on the persistence of {PERSISTENCE}",
)
def persistent(evidence: Evidence) -> Measured:
    kept = evidence.once(_halfway)
    beyond = kept["persistence"] - np.maximum(MAJORITY, kept["chance"])
    here = f"{spread(kept['persistence'], percents)}, chance {spread(kept['chance'], percents)}"
    return _each_seed(beyond.where(kept["universal"] >= FEWEST), here)


@_claim("…and their best matches are the same neurons", "births", source=OWN)
def same_partners(evidence: Evidence) -> Measured:
    kept = evidence.once(_halfway)
    same = kept["same_partner"]
    return _each_seed(same.where(kept["universal"] >= FEWEST), spread(same, percents), MAJORITY)


_DEPTHS = "highest in early and deep layers"


@_claim("Persistence is higher in the first and last layer than between", "births", _DEPTHS, PERSISTENCE)
def outer_layers(evidence: Evidence) -> Measured:
    layers = layer_persistence(evidence.tables["neurons"], middle_point(evidence.tables["points"]))
    outer = layers["layer"].isin([0, layers["layer"].max()])
    own = layers.groupby(["seed", outer])[["kept", "universal"]].sum()
    shares = (own["kept"] / own["universal"].where(own["universal"] >= FEWEST)).unstack().reindex(columns=[True, False])
    ends, between = shares[True], shares[False]
    return _each_seed(ends - between, f"{spread(ends, percents)} against {spread(between, percents)}")
