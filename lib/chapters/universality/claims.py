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
        matrix = properties.match_layer_percent(matches)
        excess[seed] = properties.own_layer_excess(pd.Series(np.diag(matrix) / 100))
    found = over_seeds(pd.Series(excess, dtype=float), 0.0, True, lambda value: signed(100 * value, 1))
    return found._replace(here=f"{found.here} percentage points more matches in the own layer than by chance")


def _gap(evidence: Evidence) -> Measured:
    own = evidence.own(EVERYONE)
    gaps, chosen = properties.corr_gap(own), own["is_universal"]
    ours, others = gaps[chosen], gaps[~chosen]
    if len(ours) < FEWEST:
        return unmeasured(f"{count(len(ours), 'universal neuron')}, too few to compare")
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
    here = f"{signed(value)} ({signed(low)} to {signed(high)})"
    return Measured(value, low, high, here, decided(low, high, 0.0, above=False))


def _tests(evidence: Evidence) -> pd.DataFrame:
    """`property_tests` of the reference seed by property."""
    return properties.property_tests(evidence.own(EVERYONE)).set_index("property")


def _property(column: str):
    def measure(evidence: Evidence) -> Measured:
        tests = evidence.once(_tests)
        if column not in tests.index or not np.isfinite(tests.loc[column, "effect"]):
            some = len(evidence.universal_of())
            return unmeasured("not defined for these models" if some else "no universal neuron to rank")
        row = tests.loc[column]
        here = f"median percentile {row['median_percentile']:.0f} of {count(row['universal'], 'neuron')}, "
        here += f"effect {signed(row['effect'])}, corrected {p_words(row['p_corrected'])}"
        return Measured(float(row["median_percentile"]), np.nan, np.nan, here, row["verdict"])

    return measure


def _claim(name: str, claim: str, published: str, figure: str, measure, *needs: str) -> Claim:
    return Claim(name, claim, published, CHAPTER, figure, needs or (EVERYONE,), measure)


def _property_claim(column: str, medians: pd.Series) -> Claim:
    side = "high" if (medians > 50).all() else "low"
    claim = f"Universal neurons have a {side} {PROPERTIES[column]} for their layer"
    published = f"median percentiles {', '.join(f'{value:.0f}' for value in medians)} ({MODELS})"
    return _claim(f"property_{column}", claim, published, "figure_03_percentiles", _property(column))


def _published(column: str, words) -> str:
    return ", ".join(f"{words(value)} ({PUBLISHED_MODELS[model]})" for model, value in PUBLISHED_SHARES[column].items())


HISTOGRAMS = "figure_02a_11_distributions"
SHARE = "From 1 to 5 % of the neurons are universal"
EXCESS = "A neuron's best match is better than in a rotated basis"
GAP = "Seeds differ more on how well universal neurons match than on the others"
GAP_PUBLISHED = "0.105 against 0.049 over all neurons (GPT2-medium)"
LAYERS, LAYERS_PUBLISHED = "Every layer has universal neurons", "every layer of the three models"
COSINE, COSINE_FIGURE = "Neurons that fire often have a lower cos(w_in, w_out)", "figure_09_frequency_cosine"

CLAIMS = (
    _claim("universal_share", SHARE, _published("share", percent), HISTOGRAMS, _share),
    _claim("excess", EXCESS, "mean excess above 0", HISTOGRAMS, _excess),
    _claim("depth", properties.OWN_LAYER, properties.OWN_LAYER_PUBLISHED, "figure_02c_layers", _depth, MATCHES),
    _claim("gap", GAP, GAP_PUBLISHED, "figure_02b_gap", _gap, EVERYONE, MATCHES),
    _claim("layers", LAYERS, LAYERS_PUBLISHED, "universal_share_by_layer", _layers),
    *(_property_claim(column, medians) for column, medians in PUBLISHED_MEDIANS.iterrows()),
    _claim("frequency_cosine", COSINE, _published("frequency_cosine", signed), COSINE_FIGURE, _frequency_cosine),
)
