"""The claims of chapter 7, on training and on attention heads: one value for each seed (lib/display/claims.py).

They are a family of tests of their own. What the other chapters test of the finished seeds stands in the ledger alone.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd

from lib.chapters.emergence.figures import timeline
from lib.chapters.emergence.statistics import (
    constant_rate,
    layer_persistence,
    middle_point,
    persistence,
    shares_by_seed,
)
from lib.display.captions import percent, signed
from lib.display.claims import FEWEST, Claim, Effects, Evidence, claim_rows, unmeasured

CHAPTER = "07_emergence"
MAJORITY = 0.5
TRAINING, HEADS = ("neurons", "points"), ("heads", "points")
FEW_POINTS = "two or more checkpoints are needed, and there is one"


def claims(evidence: Evidence) -> pd.DataFrame:
    """One row per claim, as in the ledger; `evidence` has the tables of `lib.chapters.emergence.tables.Emergence`."""
    return claim_rows(evidence, CLAIMS)


def _one_decimal(share: float) -> str:
    return percent(share, 1)


def _growth(evidence: Evidence) -> Effects:
    """Change of the share of universal neurons over the second half of the training at a constant rate, in points."""
    points, shares = evidence.tables["points"], shares_by_seed(evidence.tables["neurons"])
    steady, end = constant_rate(points), points["point"].iloc[-1]
    if len(points) < 2:
        return unmeasured(FEW_POINTS)
    if len(steady) < 2:
        start = middle_point(points)
        grew = f"from {percent(shares[start].mean())} halfway to {percent(shares[end].mean())} at the end"
        return unmeasured(f"{grew}, but no two checkpoints are known to have the same learning rate")
    start, last = middle_point(steady), steady["point"].iloc[-1]
    moment = timeline(points).moment
    details = f"percentage points, from {percent(shares[start].mean())} at {moment(start)} to "
    details += f"{percent(shares[last].mean())} at {moment(last)}"
    details += "" if last == end else f"; {percent(shares[end].mean())} at the end, after the decay"
    return Effects(100 * (shares[last] - shares[start]), signed, details)


def _halfway(evidence: Evidence) -> pd.DataFrame:
    """Persistence from the middle of training, one row a seed; empty with a single checkpoint."""
    table = persistence(evidence.tables["neurons"])
    return table[table["point"] == middle_point(evidence.tables["points"])].set_index("seed")


def _too_few(universal: pd.Series) -> str:
    few = ", ".join(f"{seed} has {number}" for seed, number in universal[universal < FEWEST].items())
    return f"{FEWEST} universal neurons are needed halfway, and {few}" if few else ""


def _persistent(evidence: Evidence) -> Effects:
    if len(evidence.tables["points"]) < 2:
        return unmeasured(FEW_POINTS)
    kept = evidence.once(_halfway)
    asked = (kept["universal"] >= FEWEST) & (kept["chance"] < MAJORITY)
    missing = _too_few(kept["universal"]) or f"chance alone keeps {percent(kept['chance'].max(), 0)}"
    shares, details = kept["persistence"].where(asked), ""
    points = evidence.tables["points"]
    steady, start, moment = constant_rate(points)["point"], middle_point(points), timeline(points).moment
    if start in steady.to_numpy() and steady.iloc[-1] != start:
        until = evidence.tables["neurons"].query("point in @steady")
        before = persistence(until).query("point == @start").set_index("seed")["persistence"].where(asked)
        if before.count():
            details = f"of those universal at {moment(start)}, {_one_decimal(before.mean())} are so at "
            details += f"{moment(steady.iloc[-1])}, before the decay"
    return Effects(shares, _one_decimal, details, kept["chance"], missing=missing)


def _same_partners(evidence: Evidence) -> Effects:
    if len(evidence.tables["points"]) < 2:
        return unmeasured(FEW_POINTS)
    kept = evidence.once(_halfway)
    asked = kept["universal"] >= FEWEST
    missing = _too_few(kept["universal"]) or "none of them is universal at the end"
    return Effects(kept["same_partner"].where(asked), _one_decimal, missing=missing)


def _outer_layers(evidence: Evidence) -> Effects:
    points = evidence.tables["points"]
    if len(points) < 2:
        return unmeasured(FEW_POINTS)
    layers = layer_persistence(evidence.tables["neurons"], middle_point(points))
    outer = np.where(layers["layer"].isin([0, layers["layer"].max()]), "outer", "inner")
    own = layers.groupby(["seed", outer])[["kept", "universal"]].sum()
    number = own["universal"].unstack().reindex(columns=["outer", "inner"], fill_value=0)
    shares = (
        (own["kept"] / own["universal"].where(own["universal"] >= FEWEST)).unstack().reindex(columns=number.columns)
    )
    needed = f"{FEWEST} universal neurons are needed halfway in both groups of layers; the first and last layer have "
    missing = f"{needed}{_range(number['outer'])} a seed, those between {_range(number['inner'])}"
    both = shares.dropna()
    details = f"{_one_decimal(both['outer'].mean())} against {_one_decimal(both['inner'].mean())}" if len(both) else ""
    values = 100 * (shares["outer"] - shares["inner"])
    return Effects(values, lambda value: signed(value, 1), f"percentage points, {details}", missing=missing)


def _range(numbers: pd.Series) -> str:
    low, high = int(numbers.min()), int(numbers.max())
    return f"{low}" if low == high else f"{low} to {high}"


def _best_head(score: str) -> Callable[[Evidence], Effects]:
    def measure(evidence: Evidence) -> Effects:
        heads = evidence.tables["heads"]
        end = heads["point"] == evidence.tables["points"]["point"].iloc[-1]
        best = heads[end].groupby("seed")[score].max()
        median = heads.loc[end, score].median()
        details = f"best head of a seed; median head {'below 0.001' if median < 0.001 else f'{median:.3f}'}"
        return Effects(best, "{:.2f}".format, details, missing="the text is too short to score heads")

    return measure


CLAIMS = (
    Claim("growth", CHAPTER, TRAINING, _growth),
    Claim("persistent", CHAPTER, TRAINING, _persistent),
    Claim("same_partners", CHAPTER, TRAINING, _same_partners),
    Claim("outer_layers", CHAPTER, TRAINING, _outer_layers),
    *(Claim(f"{score}_head", CHAPTER, HEADS, _best_head(score)) for score in ("bos", "previous", "induction")),
)
