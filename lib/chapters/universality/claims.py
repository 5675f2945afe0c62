"""The paper's claims that chapter 3 tests: how many neurons are universal, at what depth, and how they differ."""

import numpy as np
import pandas as pd
from scipy.stats import norm

from lib.chapters.universality import properties
from lib.chapters.universality.properties import PROPERTIES, PUBLISHED_MEDIANS, PUBLISHED_MODELS, PUBLISHED_SHARES
from lib.display.captions import count, p_words, percent, signed
from lib.display.claims import (
    FAILS,
    FEWEST,
    HOLDS,
    SIGNIFICANT,
    UNKNOWN,
    Claim,
    Evidence,
    Measured,
    correlation_interval,
    decided,
    over_seeds,
    unmeasured,
)

CHAPTER = "03_universality"
EVERYONE, MATCHES = "neurons_all_seeds", "matches_all_seeds"
SHARE_RANGE = (0.01, 0.05)  # "1 to 5 %", the paper's abstract
MODELS = ", ".join(PUBLISHED_MODELS.values())


def _share(evidence: Evidence) -> Measured:
    shares = properties.reference_shares(evidence.tables[EVERYONE])["share"]
    inside = shares.between(*SHARE_RANGE)
    verdict = HOLDS if inside.all() else UNKNOWN if inside.any() else FAILS
    return over_seeds(shares, SHARE_RANGE[0], True, percent)._replace(verdict=verdict)


def _excess(evidence: Evidence) -> Measured:
    mean = evidence.tables[EVERYONE].groupby("seed", sort=False)["excess_corr"].mean()
    return over_seeds(mean, 0.0, True, lambda value: signed(value, 3))


def _depth(evidence: Evidence) -> Measured:
    """`own_layer_excess` of each seed as reference."""
    excess = {}
    for seed, matches in evidence.tables[MATCHES].groupby("seed", sort=False):
        matrix = properties.layer_agreement(matches)
        excess[seed] = properties.own_layer_excess(pd.Series(np.diag(matrix) / 100))
    found = over_seeds(pd.Series(excess, dtype=float), 0.0, True, lambda value: signed(100 * value, 1))
    return found._replace(here=f"{found.here} percentage points more matches in the own layer than by chance")


def _gap(evidence: Evidence) -> Measured:
    own, chosen = evidence.own(EVERYONE), evidence.universal_of()
    if len(chosen) < FEWEST:
        return unmeasured(f"{count(len(chosen), 'universal neuron')}, too few to compare")
    gaps = properties.gap(own)
    ours, others = gaps.loc[chosen.index], gaps.drop(chosen.index)
    if not len(others) or evidence.own(MATCHES)["model"].nunique() < 2:
        return unmeasured("needs two compared seeds and neurons that are not universal")
    apart = ours.mean() - others.mean()
    half = norm.isf(SIGNIFICANT / 2) * np.sqrt(ours.var() / len(ours) + others.var() / len(others))
    here = f"{ours.mean():.3f} against {others.mean():.3f} for the rest, {signed(apart, 3)} ± {half:.3f}"
    return Measured(apart, apart - half, apart + half, here, decided(apart - half, apart + half, 0.0))


def _layers(evidence: Evidence) -> Measured:
    shares = properties.layer_shares(evidence.tables[EVERYONE])
    by_seed = shares.groupby("seed", sort=False)["universal"].agg(lambda found: (found > 0).mean())
    if shares.groupby("seed")["universal"].sum().max() < FEWEST:
        return unmeasured(f"fewer than {FEWEST} universal neurons in every seed")
    found = over_seeds(by_seed, 0.999, True, lambda value: percent(value, 0))
    return found._replace(here=f"share of layers: {found.here}")


def _frequency_cosine(evidence: Evidence) -> Measured:
    own = evidence.own(EVERYONE)
    value = properties.frequency_cosine_correlation(own)
    low, high = correlation_interval(value, len(own[["sparsity", "in_out_sim"]].dropna()))
    if not np.isfinite(value):
        return unmeasured("undefined: gated neurons, or one quantity does not vary")
    return Measured(
        value, low, high, f"{signed(value)} ({signed(low)} to {signed(high)})", decided(low, high, 0.0, above=False)
    )


def _tests(evidence: Evidence) -> pd.DataFrame:
    """`property_tests` of the reference seed by property."""
    return properties.property_tests(evidence.own(EVERYONE)).set_index("property")


def _property(column: str):
    def measure(evidence: Evidence) -> Measured:
        tests = evidence.once(_tests)
        if column not in tests.index or not np.isfinite(tests.loc[column, "effect"]):
            return unmeasured(
                "no universal neuron to rank"
                if not evidence.universal_of().shape[0]
                else "not defined for these models"
            )
        row = tests.loc[column]
        here = f"median percentile {row['median_percentile']:.0f} of {count(row['universal'], 'neuron')}, effect {signed(row['effect'])}, corrected {p_words(row['p_corrected'])}"
        return Measured(float(row["median_percentile"]), np.nan, np.nan, here, row["verdict"])

    return measure


def _property_claims() -> tuple[Claim, ...]:
    claims = []
    for column, medians in PUBLISHED_MEDIANS.iterrows():
        side = "high" if (medians > 50).all() else "low"
        published = f"median percentiles {', '.join(f'{value:.0f}' for value in medians)} ({MODELS})"
        claims.append(
            Claim(
                f"property_{column}",
                f"Universal neurons have a {side} {PROPERTIES[column]} for their layer",
                published,
                CHAPTER,
                "figure_03_percentiles",
                (EVERYONE,),
                _property(column),
            )
        )
    return tuple(claims)


_SHARES = ", ".join(f"{percent(row.share)} ({PUBLISHED_MODELS[model]})" for model, row in PUBLISHED_SHARES.iterrows())
_COSINES = ", ".join(
    f"{signed(row.frequency_cosine)} ({PUBLISHED_MODELS[model]})" for model, row in PUBLISHED_SHARES.iterrows()
)

CLAIMS = (
    Claim(
        "universal_share",
        "From 1 to 5 % of the neurons are universal",
        _SHARES,
        CHAPTER,
        "figure_02a_11_distributions",
        (EVERYONE,),
        _share,
    ),
    Claim(
        "excess",
        "A neuron's best match is better than in a rotated basis",
        "mean excess above 0",
        CHAPTER,
        "figure_02a_11_distributions",
        (EVERYONE,),
        _excess,
    ),
    Claim(
        "depth", properties.OWN_LAYER, properties.OWN_LAYER_PUBLISHED, CHAPTER, "figure_02c_layers", (MATCHES,), _depth
    ),
    Claim(
        "gap",
        "Seeds differ more on how well universal neurons match than on the others",
        "0.105 against 0.049 over all neurons (GPT2-medium)",
        CHAPTER,
        "figure_02b_gap",
        (EVERYONE, MATCHES),
        _gap,
    ),
    Claim(
        "layers",
        "Every layer has universal neurons",
        "every layer of the three models",
        CHAPTER,
        "universal_share_by_layer",
        (EVERYONE,),
        _layers,
    ),
    *_property_claims(),
    Claim(
        "frequency_cosine",
        "Neurons that fire often have a lower cos(w_in, w_out)",
        _COSINES,
        CHAPTER,
        "figure_09_frequency_cosine",
        (EVERYONE,),
        _frequency_cosine,
    ),
)
