"""The paper's claims that the first half of chapter 5 tests: prediction, suppression, and when suppression neurons fire.

Roles are by the calibrated cuts, since a small model may have no neuron beyond the published ones.
"""

import pandas as pd

from lib.chapters.circuits.next_token import above_layer, fire_more, tested
from lib.chapters.circuits.roles import PUBLISHED_HIGH_KURTOSIS, role_counts
from lib.display.captions import count, percent, signed
from lib.display.claims import FAILS, FEWEST, HOLDS, UNKNOWN, Claim, Evidence, Measured, agreed, over_seeds, unmeasured

CHAPTER = "05_weight_circuits"
ROLE, NEXT = "roles", "next_token"


def _counts(evidence: Evidence, column: str = "role_calibrated") -> pd.DataFrame:
    """Neurons of each role by seed and layer, as `up` (prediction) and `down` (suppression), and how deep the layer lies."""
    counts = role_counts(evidence.tables[ROLE], column).rename(columns={"prediction": "up", "suppression": "down"})
    layers = counts["layer"].max() + 1
    return counts.assign(deep=counts["layer"] >= layers / 2, last=counts["layer"] == layers - 1)


def _share_of(evidence: Evidence, part: str, whole: str) -> Measured:
    """Per seed the sum of `part` over that of `whole`, expressions of `_counts`' columns, against a half; seeds with none are left out.

    Undecided where it hangs on tokens that the models have not learned.
    """

    def sums(column: str) -> pd.DataFrame:
        counts = _counts(evidence, column)
        return (
            pd.DataFrame({"seed": counts["seed"], "part": counts.eval(part), "whole": counts.eval(whole)})
            .groupby("seed", sort=False)
            .sum()
        )

    ours, published = sums("role_calibrated"), int(sums("role_published")["whole"].sum())
    beyond = f"{count(ours['whole'].sum(), 'neuron')} beyond the calibrated cut, {published:,} beyond the paper's"
    if ours["whole"].sum() < FEWEST:
        return unmeasured(f"{beyond} in all seeds, too few")
    found, learned = (
        over_seeds(of["part"] / of["whole"].where(of["whole"] > 0), 0.5, True, lambda value: percent(value, 0))
        for of in (ours, sums("role_learned"))
    )
    return _robust(found, learned, f"{found.here}; {beyond}")


def _robust(found: Measured, learned: Measured, here: str) -> Measured:
    """What is found over all tokens, undecided where it is not so `learned`, over the tokens that models have learned."""
    if learned.here != found.here:
        here += f"; without tokens that were never learned {learned.here}"
    return agreed(found, learned, here)


def _rise(evidence: Evidence) -> Measured:
    if _counts(evidence)["layer"].max() == 0:
        return unmeasured("the models have one layer")
    return _share_of(evidence, "up * deep", "up")


def _switch(evidence: Evidence) -> Measured:
    return _share_of(evidence, "down * last", "(up + down) * last")


def _before(evidence: Evidence) -> Measured:
    return _share_of(evidence, "up * deep * (1 - last)", "(up + down) * deep * (1 - last)")


def _grow(evidence: Evidence) -> Measured:
    """Per seed the difference of peaked neurons between the last layer and the one before it."""
    last = _counts(evidence)["layer"].max()
    if last < 1:
        return unmeasured("the models have one layer")

    def peaked(column: str) -> pd.DataFrame:
        counts = _counts(evidence, column)
        return counts.assign(peaked=counts["up"] + counts["down"]).pivot(
            index="seed", columns="layer", values="peaked"
        )[[last - 1, last]]

    ours, published = peaked("role_calibrated"), peaked("role_published")
    if ours.to_numpy().sum() < FEWEST:
        return unmeasured("fewer than ten neurons beyond the calibrated cut in the last two layers of all seeds")
    found, learned = (over_seeds(of[last] - of[last - 1], 0.0, True, _more) for of in (ours, peaked("role_learned")))
    theirs = (published[last] - published[last - 1]).mean()
    return _robust(
        found,
        learned,
        f"last layer less the one before: {found.here} beyond the calibrated cut; {_more(theirs)} beyond the paper's",
    )


def _more(value: float) -> str:
    return f"{value:+.3g}".replace("-", "−")


def _fire(evidence: Evidence) -> Measured:
    """Per seed the share of suppression neurons that go beyond the median of their layer on the same split, against a half (`fire_more`).

    Seeds have one vote each, since what is universal recurs from seed to seed.
    """
    own = tested(evidence.tables[NEXT], "suppression")
    if len(own) < FEWEST:
        return unmeasured(
            f"{count(len(own), 'suppression neuron')} with a class that explains more than chance, too few"
        )
    found = over_seeds(above_layer(own), 0.5, True, lambda value: percent(value, 0))
    here = f"more than the median of their layer: {found.here}; {count(len(own), 'suppression neuron')}, median effect {signed(own['effect'].median())}"
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
        "Between mid-depth and the last layer most neurons of high kurtosis (calibrated cut) have positive skew: prediction",
        "positive (figure 6)",
        CHAPTER,
        "roles_by_layer",
        (ROLE,),
        _before,
    ),
    Claim(
        "suppression_switch",
        "In the last layer most neurons of high kurtosis (calibrated cut) have negative skew: prediction gives way to suppression",
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
