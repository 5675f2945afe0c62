"""What a published claim is, and how a run's measurement decides it; the chapters' claims stand in lib/*_claims.py.

A claim is decided by an interval: it holds if all of the interval lies on the claimed side of a bound, it does not
hold if all of it lies on the other side, and this run cannot tell in between, or where there is nothing to measure. Where a test
decides instead, the value's side counts if its p-value is below 0.05, and there is no interval.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import binom, norm
from statsmodels.stats.proportion import proportion_confint

from lib.display.captions import count, percent

HOLDS, FAILS, UNKNOWN = "holds", "does not hold", "cannot tell"
VERDICTS = (HOLDS, FAILS, UNKNOWN)
PAPER = "arXiv 2401.12181"


@dataclass(frozen=True)
class Evidence:
    """What a claim may look at: the run's tables by name (flagged with `is_universal`), its reference seed and its threshold."""

    tables: Mapping[str, pd.DataFrame]
    reference: str
    threshold: float

    def own(self, name: str) -> pd.DataFrame:
        """The reference seed's rows of a table of all seeds."""
        table = self.tables[name]
        return table[table["seed"] == self.reference].reset_index(drop=True)

    @cached_property
    def _made(self) -> dict[Callable, Any]:
        return {}

    def once(self, make: Callable[["Evidence"], Any]) -> Any:
        """What `make` computes from this evidence, computed once however many claims read it."""
        if make not in self._made:
            self._made[make] = make(self)
        return self._made[make]

    def universal_of(self, name: str = "neurons_all_seeds") -> pd.DataFrame:
        """The reference seed's universal neurons."""
        own = self.own(name)
        return own[own["is_universal"]]


class Measured(NamedTuple):
    """A number with its interval (NaN where there is none), the same in words, and the verdict."""

    value: float
    low: float
    high: float
    here: str
    verdict: str


class Claim(NamedTuple):
    """One claim: the published statement and value, the tables it is tested on, the figure that shows it, the test, and whose claim it is."""

    name: str
    claim: str
    published: str
    chapter: str  # file name of the notebook, without its ending
    figure: str  # name of the figure's file, without its ending
    needs: tuple[str, ...]
    measure: Callable[[Evidence], Measured]
    source: str = PAPER


def decided(low: float, high: float, bound: float, above: bool = True) -> str:
    """The verdict of an interval on the claim that a quantity is above (or, not `above`, below) a bound."""
    if not (np.isfinite(low) and np.isfinite(high)):
        return UNKNOWN
    if not above:
        low, high, bound = -high, -low, -bound
    return HOLDS if low > bound else FAILS if high <= bound else UNKNOWN


def agreed(found: Measured, other: Measured, here: str) -> Measured:
    """What is found, told as `here`; undecided where another way of asking has another verdict."""
    return found._replace(here=here, verdict=found.verdict if found.verdict == other.verdict else UNKNOWN)


def unmeasured(why: str) -> Measured:
    """Nothing to measure: this run cannot tell, and `why`."""
    return Measured(np.nan, np.nan, np.nan, why, UNKNOWN)


def over_seeds(values: pd.Series, bound: float, above: bool, words: Callable[[float], str]) -> Measured:
    """From one value per seed: their mean and range; the claim holds if it does for every seed. `words` writes a value."""
    known = values.dropna()
    if known.empty:
        return unmeasured("nothing to measure in any seed")
    low, high, mean = float(known.min()), float(known.max()), float(known.mean())
    seeds = count(len(known), "seed")
    same = words(low) == words(high)
    here = (
        f"{words(mean)} ({seeds})"
        if len(known) < 2
        else f"{words(mean)} in each of {seeds}"
        if same
        else f"{words(mean)} ({words(low)} to {words(high)} over {seeds})"
    )
    return Measured(mean, low, high, here, decided(low, high, bound, above))


def share(number: int, total: int, bound: float, above: bool, noun: str) -> Measured:
    """From a count of `noun`: its share with Wilson's 95 % interval; UNKNOWN of fewer than FEWEST."""
    number, total = int(number), int(total)
    if not total:
        return unmeasured(f"no {noun}")
    low, high = (float(end) for end in proportion_confint(number, total, alpha=SIGNIFICANT, method="wilson"))
    value = number / total
    here = f"{percent(value, 1)} of {count(total, noun)} ({percent(low, 1)} to {percent(high, 1)})"
    return Measured(value, low, high, here, decided(low, high, bound, above) if total >= FEWEST else UNKNOWN)


def correlation_interval(correlation: float, number: int) -> tuple[float, float]:
    """95 % interval of a Pearson correlation of `number` pairs, by Fisher's transformation; NaN below four pairs."""
    if number < 4 or not abs(correlation) < 1:
        return np.nan, np.nan
    half = norm.isf(SIGNIFICANT / 2) / np.sqrt(number - 3)
    return float(np.tanh(np.arctanh(correlation) - half)), float(np.tanh(np.arctanh(correlation) + half))


def median_interval(values: pd.Series) -> tuple[float, float]:
    """Interval of a median of at least 95 % confidence, by order statistics; NaN below six values."""
    ordered, number = np.sort(values.dropna().to_numpy(float)), int(values.notna().sum())
    lower = int(binom.ppf(SIGNIFICANT / 2, number, 0.5)) if number else 0
    if number < 6 or lower < 1:
        return np.nan, np.nan
    return float(ordered[lower - 1]), float(ordered[number - lower])


FEWEST = 10  # universal neurons below which no direction is claimed


SIGNIFICANT = 0.05  # corrected p-value above which no direction is claimed
