"""The paper's claims that the first half of chapter 5 tests: prediction, suppression, and when suppression neurons fire.

Roles are by the calibrated cuts, since a small model may have no neuron beyond the published ones.
"""

import pandas as pd

from lib.claims import Claim, Evidence, Measured, over_seeds, share, unmeasured
from lib.findings import count, percent, signed
from lib.universality import FEWEST
from lib.vocabulary import PUBLISHED_HIGH_KURTOSIS, role_counts

CHAPTER = "05_weight_circuits"
ROLE, NEXT = "roles", "next_token"


def _counts(evidence: Evidence) -> pd.DataFrame:
    return role_counts(evidence.tables[ROLE], "role_calibrated")


def _share_of(counts: pd.DataFrame, part: pd.Series, whole: pd.Series, noun: str) -> Measured:
    """Per seed the share of `part` in `whole` (counts by seed and layer), against a half; seeds with none are left out."""
    sums = pd.DataFrame({"seed": counts["seed"], "part": part, "whole": whole}).groupby("seed", sort=False).sum()
    if sums["whole"].sum() < FEWEST:
        return unmeasured(f"{count(sums['whole'].sum(), noun)} in all seeds, too few")
    found = over_seeds(sums["part"] / sums["whole"].where(sums["whole"] > 0), 0.5, True, lambda value: percent(value, 0))
    return found._replace(here=f"{found.here}; {count(sums['whole'].sum(), noun)}")


def _rise(evidence: Evidence) -> Measured:
    counts = _counts(evidence)
    if counts["layer"].max() == 0:
        return unmeasured("the models have one layer")
    deep = counts["layer"] >= (counts["layer"].max() + 1) / 2
    return _share_of(counts, counts["prediction"].where(deep, 0), counts["prediction"], "prediction neuron")


def _switch(evidence: Evidence) -> Measured:
    counts = _counts(evidence)
    last = counts[counts["layer"] == counts["layer"].max()]
    return _share_of(last, last["suppression"], last["suppression"] + last["prediction"], "high-kurtosis neuron")


def _before(evidence: Evidence) -> Measured:
    counts = _counts(evidence)
    layers = counts["layer"].max() + 1
    late = counts[(counts["layer"] >= layers / 2) & (counts["layer"] < layers - 1)]
    return _share_of(late, late["prediction"], late["suppression"] + late["prediction"], "high-kurtosis neuron")


def _grow(evidence: Evidence) -> Measured:
    """Per seed the difference of peaked neurons between the last layer and the one before it."""
    counts = _counts(evidence).assign(peaked=lambda rows: rows["prediction"] + rows["suppression"])
    last = counts["layer"].max()
    by_layer = counts.pivot(index="seed", columns="layer", values="peaked")
    if last < 1:
        return unmeasured("the models have one layer")
    if by_layer[[last - 1, last]].to_numpy().sum() < FEWEST:
        return unmeasured("fewer than ten neurons of high kurtosis in the last two layers of all seeds")
    found = over_seeds(by_layer[last] - by_layer[last - 1], 0.0, True, lambda value: f"{value:+.3g}".replace("-", "−"))
    return found._replace(here=f"last layer less the one before: {found.here}")


def _fire(evidence: Evidence) -> Measured:
    table = evidence.tables[NEXT]
    own = table[(table["role"] == "suppression") & table["effect"].notna()]
    found = share((own["effect"] > 0).sum(), len(own), 0.5, True, "suppression neuron")
    return found if own.empty else found._replace(here=f"{found.here}, median effect {signed(own['effect'].median())}")


_KURTOSIS = ", ".join(f"{number:g}" for number in PUBLISHED_HIGH_KURTOSIS.values())

CLAIMS = (
    Claim("prediction_rise", "Prediction neurons rise after mid-depth: most lie in the second half of the layers", "after mid-depth (figure 6)",
          CHAPTER, "roles_by_layer", (ROLE,), _rise),
    Claim("kurtosis_growth", "Neurons of high kurtosis over the vocabulary become more up to the last layer",
          f"{_KURTOSIS} a seed in layers 20 to 23 (GPT2-medium)", CHAPTER, "figure_06ab_moments", (ROLE,), _grow),
    Claim("skew_before", "Between mid-depth and the last layer most neurons of high kurtosis have positive skew: prediction", "positive (figure 6)",
          CHAPTER, "roles_by_layer", (ROLE,), _before),
    Claim("suppression_switch", "In the last layer most neurons of high kurtosis have negative skew: prediction gives way to suppression", "an abrupt switch (figure 6)",
          CHAPTER, "figure_06c_skew", (ROLE,), _switch),
    Claim("suppression_fires", "Suppression neurons fire more when the next token is one that they lower", "fire more (figure 24)",
          CHAPTER, "figure_24_next_token", (NEXT,), _fire),
)  # fmt: skip
