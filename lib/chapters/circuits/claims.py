"""The paper's claims that chapter 5 tests: prediction, suppression, and when suppression neurons fire.

Roles are by the calibrated cuts over learned tokens (`role_learned`), since a small model may have no neuron beyond the
published cuts. Each row also gives the value over all tokens, of which some were never learned.
"""

from collections.abc import Callable

import pandas as pd

from lib.chapters.circuits.roles import role_counts
from lib.display.captions import count, percent, signed, signed_percent
from lib.display.claims import FEWEST, Claim, Effects, Evidence, unmeasured

CHAPTER = "05_weight_circuits"
ROLE, NEXT = "roles", "next_token"
ONE_LAYER = "the models have one layer, and two are needed"


def tested(next_token: pd.DataFrame, role: str) -> pd.DataFrame:
    """A role's rows that have an effect and a class that explains more of the logit effects than chance."""
    rows = next_token[next_token["role"] == role]
    return rows[rows["effect"].notna() & (rows["label_score"] > rows["null_score"])]


def share_above_layer(rows: pd.DataFrame) -> pd.Series:
    """Per seed the share of neurons with an effect above the median of their layer's others on the same split."""
    return (rows["percentile"] > 50).groupby(rows["seed"]).mean()


def _counts(evidence: Evidence, column: str) -> pd.DataFrame:
    """By seed and layer: prediction neurons (`up`), suppression neurons (`down`), and where the layer lies."""
    counts = role_counts(evidence.tables[ROLE], column).rename(columns={"prediction": "up", "suppression": "down"})
    layers = counts.groupby("seed")["layer"].transform("max") + 1
    return counts.assign(deep=counts["layer"] >= layers / 2, last=counts["layer"] == layers - 1)


def _measured(
    evidence: Evidence, value: Callable[[pd.DataFrame], pd.Series], words: Callable[[float], str], details: str
) -> Effects:
    """The `value` of each seed's `_counts`; the details end with its mean over all tokens."""
    learned, everything = (value(_counts(evidence, column)) for column in ("role_learned", "role_calibrated"))
    details += f"; over all tokens {words(everything.mean()) if everything.notna().any() else 'no neuron'}"
    return Effects(learned, words, details, missing="a seed without such a neuron cannot be asked")


def _share_of(evidence: Evidence, part: str, whole: str) -> Effects:
    """Per seed the sum of `part` over that of `whole`, expressions of `_counts`' columns."""

    def value(counts: pd.DataFrame) -> pd.Series:
        columns = {"seed": counts["seed"], "part": counts.eval(part), "whole": counts.eval(whole)}
        sums = pd.DataFrame(columns).groupby("seed").sum()
        return sums["part"] / sums["whole"].where(sums["whole"] > 0)

    ours, published = (int(_counts(evidence, f"role_{cut}").eval(whole).sum()) for cut in ("learned", "published"))
    details = f"{count(ours, 'neuron')} beyond the calibrated cut, {published:,} beyond the paper's"
    if ours < FEWEST:
        return unmeasured(f"{details} in all seeds; {FEWEST} beyond the calibrated cut are needed")
    return _measured(evidence, value, signed_percent, details)


def _rise(evidence: Evidence) -> Effects:
    one_layer = evidence.tables[ROLE]["layer"].max() == 0
    return unmeasured(ONE_LAYER) if one_layer else _share_of(evidence, "up * deep", "up")


def _switch(evidence: Evidence) -> Effects:
    return _share_of(evidence, "down * last", "(up + down) * last")


def _before(evidence: Evidence) -> Effects:
    return _share_of(evidence, "up * deep * (1 - last)", "(up + down) * deep * (1 - last)")


def _grow(evidence: Evidence) -> Effects:
    """Per seed the difference of neurons of high kurtosis between its last layer and the one before it."""
    last = int(evidence.tables[ROLE]["layer"].max())
    if last < 1:
        return unmeasured(ONE_LAYER)
    counts = _counts(evidence, "role_learned")
    if counts.loc[counts["layer"] >= last - 1, ["up", "down"]].to_numpy().sum() < FEWEST:
        return unmeasured(f"{FEWEST} neurons beyond the calibrated cut in the last two layers of all seeds are needed")

    def value(counts: pd.DataFrame) -> pd.Series:
        peaked = (counts["up"] + counts["down"]).groupby([counts["seed"], counts["layer"]]).sum().unstack()
        return peaked[last] - peaked[last - 1]

    theirs = value(_counts(evidence, "role_published")).mean()
    return _measured(evidence, value, _more, f"beyond the calibrated cut, {_more(theirs)} beyond the paper's")


def _more(value: float) -> str:
    return f"{value:+.3g}".replace("-", "−")


def _fire(evidence: Evidence) -> Effects:
    """Per seed the share of suppression neurons above the median of their layer."""
    own = tested(evidence.tables[NEXT], "suppression")
    number = count(len(own), "suppression neuron")
    if len(own) < FEWEST:
        return unmeasured(f"{number} with a class that explains more than chance; {FEWEST} are needed")
    prediction = share_above_layer(tested(evidence.tables[NEXT], "prediction"))
    details = f"{number}, median effect {signed(own['effect'].median())}"
    if len(prediction):
        details += f"; of prediction neurons {percent(prediction.mean(), 0)}"
    missing = "a seed without a suppression neuron with a class cannot be asked"
    return Effects(share_above_layer(own), signed_percent, details, missing=missing)


CLAIMS = (
    Claim("prediction_rise", CHAPTER, (ROLE,), _rise),
    Claim("kurtosis_growth", CHAPTER, (ROLE,), _grow),
    Claim("skew_before", CHAPTER, (ROLE,), _before),
    Claim("suppression_switch", CHAPTER, (ROLE,), _switch),
    Claim("suppression_fires", CHAPTER, (NEXT,), _fire),
)
