"""The paper's claims that chapter 5 tests: prediction, suppression, and when suppression neurons fire.

Roles are by the calibrated cuts, since a small model may have no neuron beyond the published ones.
"""

from collections.abc import Callable

import pandas as pd

from lib.chapters.circuits.roles import PUBLISHED_HIGH_KURTOSIS, role_counts
from lib.display.captions import count, percent, signed
from lib.display.claims import (
    FAILS,
    FEWEST,
    HOLDS,
    UNKNOWN,
    Claim,
    Evidence,
    Measured,
    agreed,
    over_seeds,
    share,
    unmeasured,
)

CHAPTER = "05_weight_circuits"
ROLE, NEXT = "roles", "next_token"
ONE_LAYER = "the models have one layer"


def tested(next_token: pd.DataFrame, role: str) -> pd.DataFrame:
    """A role's rows that have an effect and a class that explains more of the logit effects than chance."""
    rows = next_token[next_token["role"] == role]
    return rows[rows["effect"].notna() & (rows["label_score"] > rows["null_score"])]


def share_above_layer(rows: pd.DataFrame) -> pd.Series:
    """Per seed the share of neurons with an effect above the median of their layer's others on the same split."""
    return (rows["percentile"] > 50).groupby(rows["seed"], sort=False).mean()


def fire_more(rows: pd.DataFrame) -> bool | None:
    """Whether neurons exceed the median of their layer: most in each seed, and over half of all (Wilson, 95 %).

    None where seeds disagree, the interval contains a half, or there are too few neurons.
    """
    by_seed = share_above_layer(rows)
    pooled = share((rows["percentile"] > 50).sum(), len(rows), 0.5, True, "neuron").verdict
    if (by_seed > 0.5).all() and pooled == HOLDS:
        return True
    return False if (by_seed < 0.5).all() and pooled == FAILS else None


def _counts(evidence: Evidence, column: str = "role_calibrated") -> pd.DataFrame:
    """By seed and layer: prediction neurons (`up`), suppression neurons (`down`), and where the layer lies."""
    counts = role_counts(evidence.tables[ROLE], column).rename(columns={"prediction": "up", "suppression": "down"})
    layers = counts.groupby("seed")["layer"].transform("max") + 1
    return counts.assign(deep=counts["layer"] >= layers / 2, last=counts["layer"] == layers - 1)


def _per_seed(
    evidence: Evidence,
    value: Callable[[pd.DataFrame], pd.Series],
    bound: float,
    words: Callable[[float], str],
    details: str,
) -> Measured:
    """Whether the `value` of each seed's `_counts` is above a bound; undecided if it depends on unlearned tokens."""
    found, learned = (
        over_seeds(value(_counts(evidence, column)), bound, True, words)
        for column in ("role_calibrated", "role_learned")
    )
    here = found.here + details
    if learned.here != found.here:
        here += f"; without tokens that were never learned {learned.here}"
    return agreed(found, learned, here)


def _share_of(evidence: Evidence, part: str, whole: str) -> Measured:
    """Per seed the sum of `part` over that of `whole`, expressions of `_counts`' columns, against a half."""

    def value(counts: pd.DataFrame) -> pd.Series:
        columns = {"seed": counts["seed"], "part": counts.eval(part), "whole": counts.eval(whole)}
        sums = pd.DataFrame(columns).groupby("seed", sort=False).sum()
        return sums["part"] / sums["whole"].where(sums["whole"] > 0)

    ours, published = (
        int(_counts(evidence, column).eval(whole).sum()) for column in ("role_calibrated", "role_published")
    )
    details = f"{count(ours, 'neuron')} beyond the calibrated cut, {published:,} beyond the paper's"
    if ours < FEWEST:
        return unmeasured(f"{details} in all seeds, too few")
    return _per_seed(evidence, value, 0.5, _whole_percent, f"; {details}")


def _whole_percent(value: float) -> str:
    return percent(value, 0)


def _rise(evidence: Evidence) -> Measured:
    one_layer = _counts(evidence)["layer"].max() == 0
    return unmeasured(ONE_LAYER) if one_layer else _share_of(evidence, "up * deep", "up")


def _switch(evidence: Evidence) -> Measured:
    return _share_of(evidence, "down * last", "(up + down) * last")


def _before(evidence: Evidence) -> Measured:
    return _share_of(evidence, "up * deep * (1 - last)", "(up + down) * deep * (1 - last)")


def _grow(evidence: Evidence) -> Measured:
    """Per seed the difference of peaked neurons between the last layer and the one before it."""
    counts = _counts(evidence)
    last = counts["layer"].max()
    if last < 1:
        return unmeasured(ONE_LAYER)
    if counts.loc[counts["layer"] >= last - 1, ["up", "down"]].to_numpy().sum() < FEWEST:
        return unmeasured("fewer than ten neurons beyond the calibrated cut in the last two layers of all seeds")

    def value(counts: pd.DataFrame) -> pd.Series:
        peaked = (counts["up"] + counts["down"]).groupby([counts["seed"], counts["layer"]]).sum().unstack()
        return peaked[last] - peaked[last - 1]

    theirs = value(_counts(evidence, "role_published")).mean()
    details = f" more than in the layer before, beyond the calibrated cut; {_more(theirs)} beyond the paper's"
    return _per_seed(evidence, value, 0.0, _more, details)


def _more(value: float) -> str:
    return f"{value:+.3g}".replace("-", "−")


def _fire(evidence: Evidence) -> Measured:
    """Per seed the share of suppression neurons above the median of their layer (`fire_more`), one vote a seed."""
    own = tested(evidence.tables[NEXT], "suppression")
    number = count(len(own), "suppression neuron")
    if len(own) < FEWEST:
        return unmeasured(f"{number} with a class that explains more than chance, too few")
    found = over_seeds(share_above_layer(own), 0.5, True, _whole_percent)
    here = f"above the median of their layer: {found.here}; {number}, median effect {signed(own['effect'].median())}"
    return found._replace(here=here, verdict={True: HOLDS, False: FAILS, None: UNKNOWN}[fire_more(own)])


_KURTOSIS = ", ".join(f"{number:g}" for number in PUBLISHED_HIGH_KURTOSIS.values())

CLAIMS = (
    Claim(
        "prediction_rise",
        "Prediction neurons rise after mid-depth: most lie in the second half of the layers",
        "after mid-depth (figure 6)",
        CHAPTER,
        "roles_by_layer",
        (ROLE,),
        _rise,
    ),
    Claim(
        "kurtosis_growth",
        "Neurons of high kurtosis over the vocabulary (calibrated cut) become more up to the last layer",
        f"{_KURTOSIS} a seed in layers 20 to 23 (GPT2-medium)",
        CHAPTER,
        "figure_06ab_moments",
        (ROLE,),
        _grow,
    ),
    Claim(
        "skew_before",
        "Between mid-depth and the last layer most neurons of high kurtosis (calibrated cut) are prediction neurons",
        "positive skew (figure 6)",
        CHAPTER,
        "roles_by_layer",
        (ROLE,),
        _before,
    ),
    Claim(
        "suppression_switch",
        "In the last layer most neurons of high kurtosis (calibrated cut) are suppression neurons",
        "an abrupt switch (figure 6)",
        CHAPTER,
        "figure_06c_skew",
        (ROLE,),
        _switch,
    ),
    Claim(
        "suppression_fires",
        "Suppression neurons fire more when the next token is one that they lower",
        "fire more (figure 24)",
        CHAPTER,
        "figure_24_next_token",
        (NEXT,),
        _fire,
    ),
)
