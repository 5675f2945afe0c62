"""What the seeds say of a published claim, for captions: the mean with its interval, and whether they decide it.

The ledger also corrects for the number of its rows, so it may leave open what is decided here, never the reverse.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd

from lib.display.claims import FAILS, HOLDS, Effects, decision, statements, verdict


class OverSeeds(NamedTuple):
    """The mean over seeds, its 95 % interval in words (empty where it has no width), and on which side of the bound.

    `side` is 1 where the claim holds, −1 where the opposite does, 0 where the seeds cannot tell.
    """

    mean: float
    interval: str
    side: int


def over_seeds(values: pd.Series, name: str, words: Callable[[float], str]) -> OverSeeds:
    """One value of each seed, beside the bound of the ledger's row `name`; a seed with NaN is not asked."""
    found = decision(Effects(values.astype(float), words), statements()[name])
    low, high = (words(end) if np.isfinite(end) else "" for end in (found.low, found.high))
    side = {HOLDS: 1, FAILS: -1}.get(verdict(found, found.p_value), 0)
    return OverSeeds(found.value, f"{low} to {high}" if low != high else "", side)


def in_brackets(found: OverSeeds, more: str = "") -> str:
    """The interval and `more` in brackets after a blank, as in " (−0.01 to +0.09: undecided)"; empty without either."""
    inside = ": ".join(part for part in (found.interval, more) if part)
    return f" ({inside})" if inside else ""


def mean_and_interval(effects: Effects, name: str) -> tuple[str, str]:
    """The mean over seeds in words, and its 95 % interval in brackets, as in the ledger's row; empty without any."""
    found = decision(effects, statements()[name])
    if not np.isfinite(found.low):
        return effects.words(found.value), ""
    ends = (effects.words(end) for end in (found.low, found.high))
    return effects.words(found.value), f" ({' to '.join(ends)}, 95 % over seeds)"
