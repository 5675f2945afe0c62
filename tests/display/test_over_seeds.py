"""What seeds say of a claim, in captions."""

import pandas as pd

from lib.display.captions import signed
from lib.display.over_seeds import in_brackets, over_seeds


def of(*values: float):
    return over_seeds(pd.Series(values, index=list("abcde")[: len(values)]), "entropy_order", signed)


def test_seeds_decide_a_claim_only_if_they_agree_are_enough_and_differ_from_its_bound():
    holds, fails = of(-1.0, -1.1, -0.9), of(1.0, 1.1, 0.9)  # claimed: below 0
    assert (holds.side, fails.side) == (1, -1) and holds.interval == "−1.25 to −0.75"
    assert not any(found.side for found in (of(-1.0, -1.1), of(-1.0, -1.1, 0.1), of(-1.0), of()))
    assert in_brackets(of(-1.0, -1.1, 0.1), "undecided").endswith(": undecided)")


def test_an_interval_without_width_is_not_written():
    assert of(-1.0, -1.0, -1.0).interval == "" and of(-1.0).interval == "" and in_brackets(of(-1.0)) == ""
    assert in_brackets(of(-1.0), "undecided") == " (undecided)"
