"""How the seeds of a run decide a published claim: one rule for every row of the ledger (docs/method.md §11).

What is claimed, its bound and the reason for it stand in claims.yaml. A chapter measures one value for each seed. The
claim holds if every seed lies on the claimed side of the bound, the mean does whichever seed is left out, and the mean
over seeds differs from the bound after one correction over all rows (Benjamini and Hochberg: of the rows that hold or
do not hold, at most one in twenty is expected to be wrong). It does not hold if the same is true of the other side.
Otherwise this run cannot tell, and the row says what would decide it. A second verdict compares the size with the
published one.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml
from scipy.stats import t

from lib.display.captions import count

HOLDS, FAILS, UNKNOWN = "holds", "does not hold", "cannot tell"
VERDICTS = (HOLDS, FAILS, UNKNOWN)
PAPER = "arXiv 2401.12181"
FEWEST = 10  # neurons below which no direction is claimed
FEWEST_SEEDS = 3
UNASKED = "no seed can be asked"
MANY_SEEDS = 1000
SIGNIFICANT = 0.05  # corrected p-value above which no direction is claimed
CONSTRUCTED, BY_CHANCE = "holds by construction", "not evidence: untrained models do too"
STATEMENTS = Path(__file__).with_name("claims.yaml")


@dataclass(frozen=True)
class Statement:
    """One entry of claims.yaml, which explains the fields."""

    claim: str
    published: str
    bound: float
    side: str
    why: str
    figure: str
    values: tuple[float, ...] = ()
    within: tuple[float, float] = (-np.inf, np.inf)
    no_size: str = ""
    by_construction: str = ""
    source: str = PAPER
    front: int = 0
    short: str = ""

    def beyond(self, values: pd.Series) -> pd.Series:
        """How far values lie on the claimed side of the bound; negative on the other side."""
        return values - self.bound if self.side == "above" else self.bound - values


@cache
def statements() -> Mapping[str, Statement]:
    """All statements by name."""
    return {name: Statement(**entry) for name, entry in yaml.safe_load(STATEMENTS.read_text(encoding="utf-8")).items()}


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


class Effects(NamedTuple):
    """What a claim's measure returns: a value for each seed, NaN for a seed that cannot be asked.

    `words` formats a value. `details` is added to the row's sentence. `control` is the same quantity where nothing is
    to be found, by seed. `left_out` has the mean without each seed where leaving one out changes the others' values,
    as it does for matches. `missing` says why a seed cannot be asked, and what would be needed.
    """

    values: pd.Series
    words: Callable[[float], str]
    details: str = ""
    control: pd.Series | None = None
    left_out: pd.Series | None = None
    missing: str = ""


class Claim(NamedTuple):
    """A statement's name, the notebook that shows it (without its ending), the tables it needs, and its measure."""

    name: str
    chapter: str
    needs: tuple[str, ...]
    measure: Callable[[Evidence], Effects]


def unmeasured(why: str) -> Effects:
    """Nothing to measure; `why` says what is missing, and what would be needed."""
    return Effects(pd.Series(dtype=float), str, missing=why)


class Decision(NamedTuple):
    """The mean over seeds, its 95 % interval, the two-sided p-value against the bound, and on which side seeds lie."""

    value: float
    low: float
    high: float
    error: float  # standard error
    p_value: float
    agree: int  # seeds on the claimed side of the bound
    against: int  # seeds on the other side
    seeds: int
    firm: bool  # the mean stays on its side of the bound whichever seed is left out


def decision(effects: Effects, statement: Statement) -> Decision:
    """The test of a statement over the seeds that can be asked: a t interval with the jackknife's standard error.

    For a plain mean that is the one-sample t-test. Seeds with one and the same value have a p-value of 0, or of 1 where
    that value is the bound (docs/method.md §11).
    """
    known = effects.values.dropna().astype(float)
    number, mean = len(known), float(known.mean()) if len(known) else np.nan
    beyond = statement.beyond(known)
    agree, against = int((beyond > 0).sum()), int((beyond < 0).sum())
    if number < 2:
        return Decision(mean, *[np.nan] * 4, agree, against, number, False)
    left_out = (known.sum() - known) / (number - 1)
    if effects.left_out is not None:
        left_out = effects.left_out.reindex(known.index).astype(float)
    spread = left_out.to_numpy() - left_out.to_numpy().mean()  # NaN if one of them is
    error = float(np.sqrt((number - 1) / number * np.square(spread).sum()))
    half = float(t.isf(SIGNIFICANT / 2, number - 1)) * error
    low, high = np.clip([mean - half, mean + half], *statement.within).tolist()
    p_value = float(agree + against == 0)
    if error != 0:
        p_value = float(2 * t.sf(abs(mean - statement.bound) / error, number - 1))
    sides = np.sign(statement.beyond(pd.Series([mean, *left_out])))
    return Decision(mean, low, high, error, p_value, agree, against, number, bool((sides == sides[0]).all()))


def verdict(found: Decision, p_corrected: float) -> str:
    """Whether the sign replicates; `p_corrected` is the row's p-value after the correction over all rows."""
    if found.seeds < FEWEST_SEEDS or not found.firm or not p_corrected < SIGNIFICANT:  # NaN is not below
        return UNKNOWN
    return HOLDS if found.agree == found.seeds else FAILS if found.against == found.seeds else UNKNOWN


def size_verdict(found: Decision, statement: Statement) -> str:
    """Whether the interval over seeds overlaps the range of the published values.

    An interval that also has the bound inside is too wide to tell one from the other.
    """
    if not statement.values or found.seeds < FEWEST_SEEDS or not np.isfinite(found.low):
        return UNKNOWN
    if found.low > max(statement.values) or found.high < min(statement.values):
        return FAILS
    return UNKNOWN if found.low < statement.bound < found.high else HOLDS


def corrected(p_values: pd.Series) -> pd.Series:
    """Benjamini and Hochberg's correction; missing p-values stay missing and do not count."""
    tested = p_values.dropna().astype(float).sort_values(ascending=False)
    ranks = np.arange(len(tested), 0, -1)
    return (tested * len(tested) / ranks).cummin().clip(upper=1).reindex(p_values.index)


def decides(found: Decision, p_corrected: float, statement: Statement, effects: Effects) -> str:
    """What would decide a row that this run cannot."""
    if not found.seeds:
        return effects.missing
    if found.seeds < FEWEST_SEEDS:
        few = f"{count(found.seeds, 'seed')} can be asked, and {FEWEST_SEEDS} are needed"
        return f"{few}: {effects.missing}" if effects.missing else few
    if max(found.agree, found.against) < found.seeds:
        return f"{found.agree} of {found.seeds} seeds lie on the claimed side; more text may decide it"
    if not found.firm or not np.isfinite(found.p_value):
        return "one seed alone keeps the mean on its side: more seeds"
    deviation = found.error * np.sqrt(found.seeds)
    level = SIGNIFICANT * found.p_value / p_corrected  # of the uncorrected p-value, with the other rows as they are
    distance, number = abs(found.value - statement.bound), found.seeds
    while number < MANY_SEEDS and 2 * t.sf(distance / deviation * np.sqrt(number), number - 1) >= level:
        number += 1
    return f"about {number} seeds that differ as these do" if number < MANY_SEEDS else f"over {MANY_SEEDS:,} such seeds"


def claim_rows(evidence: Evidence, claims: Iterable[Claim], untrained: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row per claim.

    Columns: name, claim, published; value, low, high (mean over seeds and 95 % interval, NaN where undefined), here
    (the value in words), verdict and size_verdict (of VERDICTS), mark (why a verdict "holds" is no evidence, or empty),
    agree, against and seeds, p_value and p_corrected, by_seed (JSON), control and untrained (in words, empty where
    there is none), untrained_verdict, decides (where verdict is "cannot tell"), bound, side, why, no_size,
    by_construction, chapter, figure, source. `untrained` has the same rows of untrained models, with name as index.
    """
    claims = list(claims)
    effects = [
        claim.measure(evidence)
        if all(name in evidence.tables for name in claim.needs)
        else unmeasured("not measured in this run")
        for claim in claims
    ]
    own = [statements()[claim.name] for claim in claims]
    found = [decision(*pair) for pair in zip(effects, own, strict=True)]
    p_corrected = corrected(pd.Series([one.p_value for one in found], dtype=float))
    rows = []
    for claim, statement, effect, one, p_value in zip(claims, own, effects, found, p_corrected, strict=True):
        row = {"name": claim.name, "claim": statement.claim, "published": statement.published}
        row |= {"value": one.value, "low": one.low, "high": one.high, "here": in_words(effect, one)}
        row |= {"verdict": verdict(one, p_value), "size_verdict": size_verdict(one, statement)}
        row |= {"agree": one.agree, "against": one.against, "seeds": one.seeds}
        row |= {"p_value": one.p_value, "p_corrected": p_value}
        row["by_seed"] = json.dumps(effect.values.dropna().astype(float).to_dict())
        control = effect.control.dropna() if effect.control is not None else ()
        row["control"] = effect.words(float(control.mean())) if len(control) else ""
        row |= _untrained(untrained, claim.name)
        row["mark"] = mark(statement, row["verdict"], row["untrained_verdict"])
        row["decides"] = decides(one, p_value, statement, effect) if row["verdict"] == UNKNOWN else ""
        kept = ("bound", "side", "why", "no_size", "by_construction", "figure", "source")
        rows.append(row | {name: getattr(statement, name) for name in kept} | {"chapter": claim.chapter})
    return pd.DataFrame(rows)


def _untrained(table: pd.DataFrame | None, name: str) -> dict[str, str]:
    if table is None or name not in table.index:
        return {"untrained": "", "untrained_verdict": ""}
    row = table.loc[name]
    return {"untrained": row["here"] if row["seeds"] else UNASKED, "untrained_verdict": row["verdict"]}


def mark(statement: Statement, own: str, untrained: str) -> str:
    """Why a verdict "holds" is no evidence about training; empty for any other row."""
    if own != HOLDS:
        return ""
    return "; ".join(
        why for why, is_so in ((CONSTRUCTED, statement.by_construction), (BY_CHANCE, untrained == own)) if is_so
    )


def in_words(effects: Effects, found: Decision) -> str:
    """A row's sentence: mean over seeds, interval, and details."""
    if not found.seeds:
        return effects.missing
    words, each = effects.words, {effects.words(value) for value in effects.values.dropna().astype(float)}
    over = f"({words(found.low)} to {words(found.high)}, 95 % over {found.seeds} seeds)"
    over = "(1 seed)" if found.seeds < 2 else f"in each of {found.seeds} seeds" if len(each) == 1 else over
    return f"{words(found.value)} {over}" + (f"; {effects.details}" if effects.details else "")
