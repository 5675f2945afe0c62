"""How a run's measurement decides a published claim; the chapters' claims are in their own modules.

A claim holds if the whole interval of the measurement lies on the claimed side of a bound, and does not hold if all of
it lies on the other side; in between, or with nothing to measure, this run cannot tell. Where a test decides instead,
there is no interval: the value's side counts if its p-value is below SIGNIFICANT.
"""

from collections.abc import Callable, Iterable, Mapping
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
FEWEST = 10  # neurons below which no direction is claimed
SIGNIFICANT = 0.05  # corrected p-value above which no direction is claimed


@dataclass(frozen=True)
class Evidence:
    """What a claim is decided by: the run's tables by name (with `is_universal`), its reference seed and threshold."""

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
        """The result of `make`, computed once for all claims that read it."""
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
    """A published statement and value, the tables and the test that decide it, the figure that shows it, its source."""

    name: str
    claim: str
    published: str
    chapter: str  # file name of the notebook, without its ending
    figure: str  # name of the figure's file, without its ending
    needs: tuple[str, ...]
    measure: Callable[[Evidence], Measured]
    source: str = PAPER


def claim_rows(evidence: Evidence, claims: Iterable[Claim]) -> pd.DataFrame:
    """One row per claim: name, claim, published, value, low, high (NaN where undefined), here (the value in words),
    verdict (one of VERDICTS), chapter, figure, source. A claim without its tables cannot be decided."""
    rows = []
    for claim in claims:
        measured = all(name in evidence.tables for name in claim.needs)
        result = claim.measure(evidence) if measured else unmeasured("not measured in this run")
        head = {"name": claim.name, "claim": claim.claim, "published": claim.published}
        rows.append(head | result._asdict() | {name: getattr(claim, name) for name in ("chapter", "figure", "source")})
    return pd.DataFrame(rows)


def decided(low: float, high: float, bound: float, above: bool = True) -> str:
    """The verdict of an interval on the claim that a quantity is above a bound, or below it if not `above`."""
    if not (np.isfinite(low) and np.isfinite(high)):
        return UNKNOWN
    if not above:
        low, high, bound = -high, -low, -bound
    return HOLDS if low > bound else FAILS if high <= bound else UNKNOWN


def agreed(found: Measured, other: Measured, here: str) -> Measured:
    """`found` with the words `here`; undecided if another measurement of the same claim has another verdict."""
    return found._replace(here=here, verdict=found.verdict if found.verdict == other.verdict else UNKNOWN)


def unmeasured(why: str) -> Measured:
    """This run cannot tell; `why` says what is missing."""
    return Measured(np.nan, np.nan, np.nan, why, UNKNOWN)


def over_seeds(values: pd.Series, bound: float, above: bool, words: Callable[[float], str]) -> Measured:
    """Mean and range of one value per seed; the claim holds if it does for every seed. `words` formats a value."""
    known = values.dropna()
    if known.empty:
        return unmeasured("nothing to measure in any seed")
    low, high, mean = float(known.min()), float(known.max()), float(known.mean())
    seeds = count(len(known), "seed")
    if len(known) < 2:
        over = f"({seeds})"
    elif words(low) == words(high):
        over = f"in each of {seeds}"
    else:
        over = f"({words(low)} to {words(high)} over {seeds})"
    here = f"{words(mean)} {over}"
    return Measured(mean, low, high, here, decided(low, high, bound, above))


def share(number: int, total: int, bound: float, above: bool, noun: str) -> Measured:
    """A share of `total` with Wilson's 95 % interval; UNKNOWN if `total` is below FEWEST. `noun` is what is counted."""
    number, total = int(number), int(total)
    if not total:
        return unmeasured(f"no {noun}")
    low, high = (float(end) for end in proportion_confint(number, total, alpha=SIGNIFICANT, method="wilson"))
    value = number / total
    here = f"{percent(value, 1)} of {count(total, noun)} ({percent(low, 1)} to {percent(high, 1)})"
    return Measured(value, low, high, here, decided(low, high, bound, above) if total >= FEWEST else UNKNOWN)


def correlation_interval(correlation: float, number: int) -> tuple[float, float]:
    """95 % interval of a Pearson correlation of `number` pairs, by Fisher's transformation; NaN for fewer than four."""
    if number < 4 or not abs(correlation) < 1:
        return np.nan, np.nan
    middle, half = np.arctanh(correlation), norm.isf(SIGNIFICANT / 2) / np.sqrt(number - 3)
    return float(np.tanh(middle - half)), float(np.tanh(middle + half))


def median_interval(values: pd.Series) -> tuple[float, float]:
    """Interval of a median with at least 95 % confidence, by order statistics; NaN for fewer than six values."""
    ordered, number = np.sort(values.dropna().to_numpy(float)), int(values.notna().sum())
    lower = int(binom.ppf(SIGNIFICANT / 2, number, 0.5)) if number else 0
    if number < 6 or lower < 1:
        return np.nan, np.nan
    return float(ordered[lower - 1]), float(ordered[number - lower])
