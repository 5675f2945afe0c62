"""What chapter 3 measures for the ledger, a value for each reference seed: how many neurons are universal, at what
depth, and how they differ.

Matches tie the seeds together, so leaving a seed out also changes what the others are compared with: every quantity is
measured again on the tables without it.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd

from lib.chapters.universality import properties
from lib.chapters.universality.measures import without_seed
from lib.chapters.universality.nulls import activation_null
from lib.chapters.universality.properties import PUBLISHED_MEDIANS
from lib.display.captions import count, percent, signed
from lib.display.claims import FEWEST, Claim, Decision, Effects, Evidence, decision, statements

CHAPTER = "03_universality"
EVERYONE, MATCHES = "neurons_all_seeds", "matches_all_seeds"
Measure = Callable[[Evidence], pd.Series]


def _by_seed(evidence: Evidence, measure: Callable[[pd.DataFrame], float], table: str = EVERYONE) -> pd.Series:
    return pd.Series(
        {seed: measure(own) for seed, own in evidence.tables[table].groupby("seed", sort=False)}, dtype=float
    )


def _share_above(column: str) -> Measure:
    return lambda evidence: _by_seed(evidence, lambda own: (own[column] > evidence.threshold).mean())


def _excess(evidence: Evidence) -> pd.Series:
    return _by_seed(evidence, lambda own: own["excess_corr"].mean())


def _depth(evidence: Evidence) -> pd.Series:
    def of_seed(matches: pd.DataFrame) -> float:
        return properties.own_layer_excess(pd.Series(np.diag(properties.match_layer_percent(matches)) / 100))

    return _by_seed(evidence, of_seed, MATCHES)


def _compared_seeds(evidence: Evidence) -> int:
    """With how many seeds each reference is compared."""
    return int(evidence.tables[MATCHES].groupby("seed")["model"].nunique().max())


def _gap(evidence: Evidence) -> pd.Series:
    """The mean of `gap_at_equal_match`, with FEWEST neurons and two compared seeds."""
    few = _compared_seeds(evidence) < 2

    def of_seed(neurons: pd.DataFrame) -> float:
        apart = properties.gap_at_equal_match(neurons)
        return np.nan if few or len(apart) < FEWEST else apart.mean()

    return _by_seed(evidence, of_seed)


def _layers(evidence: Evidence) -> pd.Series:
    """The smallest share of universal neurons of any layer."""

    def of_seed(own: pd.DataFrame) -> float:
        return own.groupby("layer")["is_universal"].mean().min() if own["is_universal"].sum() >= FEWEST else np.nan

    return _by_seed(evidence, of_seed)


def _frequency_cosine(evidence: Evidence) -> pd.Series:
    by_layer = properties.frequency_cosine_by_layer(evidence.tables[EVERYONE])
    return by_layer.groupby("seed", sort=False)["correlation"].mean()


def _medians(evidence: Evidence) -> pd.DataFrame:
    """`property_medians` of every seed (rows)."""
    seeds = evidence.tables[EVERYONE].groupby("seed", sort=False)
    return pd.DataFrame({seed: properties.property_medians(own) for seed, own in seeds}).T


def _property(column: str) -> Measure:
    return lambda evidence: evidence.once(_medians).get(column, pd.Series(dtype=float))


MEASURES: dict[str, Measure] = {
    "universal_share": _share_above("excess_corr"),
    "worst_share": _share_above("worst_excess"),
    "adjusted_share": _share_above("adjusted_excess"),
    "excess": _excess,
    "depth": _depth,
    "gap": _gap,
    "layers": _layers,
    **{f"property_{column}": _property(column) for column in PUBLISHED_MEDIANS.index},
    "frequency_cosine": _frequency_cosine,
}
SHARES = ("universal_share", "worst_share", "adjusted_share")
WORDS: dict[str, Callable[[float], str]] = {  # an interval may pass the ends of what a share or percentile can be
    **dict.fromkeys(SHARES, lambda share: percent(max(0.0, share))),
    "excess": partial(signed, digits=3),
    "depth": lambda share: signed(100 * share, 1),
    "gap": partial(signed, digits=3),
    "layers": lambda share: percent(max(0.0, share)),
    "frequency_cosine": signed,
}


def _left_out(evidence: Evidence) -> pd.DataFrame:
    """The mean of every quantity without each seed: seeds left out (rows), names of MEASURES (columns).

    Without a row where fewer than three seeds serve as references.
    """
    neurons, matches, rows = evidence.tables[EVERYONE], evidence.tables[MATCHES], {}
    seeds = neurons["seed"].unique()
    for seed in seeds if len(seeds) > 2 else ():
        tables = dict(zip((EVERYONE, MATCHES), without_seed(neurons, matches, seed, evidence.threshold), strict=True))
        rest = Evidence(tables, evidence.reference, evidence.threshold)
        rows[seed] = {name: measure(rest).mean() for name, measure in MEASURES.items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(MEASURES))


def effects(evidence: Evidence, name: str) -> Effects:
    """A quantity of MEASURES by seed, with its mean without each."""
    values, left_out = MEASURES[name](evidence), evidence.once(_left_out)[name]
    left_out = left_out if len(left_out) and left_out.notna().all() else None
    missing = _missing(evidence, name) if not len(values) or values.isna().any() else ""
    words = WORDS.get(name, lambda percentile: f"{min(100.0, max(0.0, percentile)):.0f}")
    return Effects(values, words, _details(evidence, name), left_out=left_out, missing=missing)


def found(evidence: Evidence, name: str) -> Decision:
    """The mean over seeds of a quantity, its interval and its test, as in the ledger."""
    return decision(effects(evidence, name), statements()[name])


def _details(evidence: Evidence, name: str) -> str:
    everyone = evidence.tables[EVERYONE]
    if name in SHARES:
        return count(_compared_seeds(evidence), "compared seed")
    if name == "depth":
        return "percentage points above chance"
    if name == "layers":
        return "of the layer with fewest"
    if name == "gap":
        gaps, chosen = properties.corr_gap(everyone), everyone["is_universal"]
        raw = f"{gaps[chosen].mean():.3f} against {gaps[~chosen].mean():.3f}" if chosen.any() else ""
        return f"{raw} with other neurons of any mean match" if raw else ""
    if name == "frequency_cosine":
        pooled = _by_seed(evidence, properties.frequency_cosine_correlation).mean()
        return f"within a layer; {signed(pooled)} with all layers pooled"
    if name.startswith("property_"):
        universal = everyone.groupby("seed", sort=False)["is_universal"].sum()
        low, high = universal.min(), universal.max()
        return f"percentile, {f'{low:,}' if low == high else f'{low:,} to {high:,}'} universal neurons a seed"
    return ""


def _missing(evidence: Evidence, name: str) -> str:
    """Why a quantity is not known for some seed."""
    everyone = evidence.tables[EVERYONE]
    column = name.removeprefix("property_")
    reading = ("sparsity", "in_out_sim") if name == "frequency_cosine" else (column,) if column != name else ()
    if any(one not in everyone or everyone[one].isna().all() for one in reading):
        return "not defined for gated neurons"
    if name == "depth":
        return "one layer only"
    if name == "frequency_cosine":
        return "one of the two does not vary"
    if name == "gap" and _compared_seeds(evidence) < 2:
        return "needs two compared seeds"
    universal = everyone.groupby("seed", sort=False)["is_universal"].sum()
    few = ", ".join(f"{seed} has {number}" for seed, number in universal[universal < FEWEST].items())
    if few:
        return f"a seed needs {FEWEST} universal neurons, and {few}"
    return f"a seed needs {FEWEST} universal neurons with another of the same mean match within {properties.NEAR:g}"


CLAIMS = (
    *(Claim(name, CHAPTER, (EVERYONE, MATCHES), partial(effects, name=name)) for name in MEASURES),
    Claim("excess_activation_null", CHAPTER, ("nulls",), activation_null),
)
