"""What the ladder and the transplants say in a few numbers: means by rung, classes and what chance gives, R."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from lib.chapters.same_function.ladder import RUNGS, WHOLE
from lib.chapters.same_function.maps import CLASSES, MOST, SOME, classes

FEW = RUNGS[-2]
UNIVERSAL = "universal"  # the set of all universal neurons


def means(table: pd.DataFrame) -> pd.DataFrame:
    """One row per seed: mean R² of each rung over the neurons that stand for all, and `null_` the same in the rotated
    basis."""
    table = table[table["sampled"]]
    names = [f"{prefix}r2_{name}" for prefix in ("", "null_") for name in (*RUNGS, *WHOLE)]
    found = table.reindex(columns=names).astype(float).groupby(table["seed"], sort=False).mean()
    return found.rename(columns=lambda name: name.replace("r2_", ""))


def class_shares(table: pd.DataFrame, by: pd.Series) -> pd.DataFrame:
    """One row per value of `by`: share of neurons in each of CLASSES, and `neurons`; those without a class left out."""
    known = table[table["kind"] != ""]
    counts = pd.crosstab(by.reindex(known.index), known["kind"]).reindex(columns=list(CLASSES), fill_value=0)
    total = counts.sum(axis=1)
    return counts.div(total, axis=0).assign(neurons=total)


def best_r2(table: pd.DataFrame, prefix: str = "") -> pd.Series:
    """The best of the rungs one, few and all, as the rule takes it; of the rotated basis with `null_`."""
    return table[[f"{prefix}r2_{name}" for name in ("one", FEW, "all")]].astype(float).max(axis=1, skipna=False)


def null_kinds(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the classes that the rotated basis gives; none of its rungs exceeds itself, so none is a twin."""
    rungs = [table[f"null_r2_{name}"].to_numpy(float) for name in ("one", FEW, "all")]
    kinds = classes(*rungs, *rungs[:2])
    return table.assign(kind=np.where(table["kind"] == "", "", kinds))


def clear_spread(table: pd.DataFrame) -> float:
    """Of the neurons called spread, the share whose best rung exceeds that of the rotated basis by SOME."""
    own = table[table["kind"] == "spread"]
    return float((best_r2(own) - best_r2(own, "null_") >= SOME).mean())


def without_twin(table: pd.DataFrame) -> tuple[float, float]:
    """Of the neurons without a twin, the shares of which MOST can be predicted: from a layer, and from it rotated."""
    own = table[~table["kind"].isin(["", "twin"])]
    return float((best_r2(own) >= MOST).mean()), float((best_r2(own, "null_") >= MOST).mean())


def recovered(table: pd.DataFrame, name: str = UNIVERSAL) -> pd.DataFrame:
    """R by seed (rows) and partner of one set; NaN where it is not given."""
    own = table[(table["set"] == name) & (table["partner"] != "mean")]
    return own.pivot_table(index="seed", columns="partner", values="recovered", dropna=False, sort=False)


def own_rows(table: pd.DataFrame, reference: str) -> pd.DataFrame:
    """The reference's rows from the first seed that it is compared with in full."""
    own = table[(table["seed"] == reference) & table["full"]]
    return own[own["model"] == own["model"].min()]


def by_seed(table: pd.DataFrame, measure: Callable[[pd.DataFrame], pd.Series]) -> pd.Series:
    """A measure by seed, averaged over the seeds that it is compared with."""
    parts = [measure(own) for _, own in table.groupby("model", sort=False)]
    return pd.concat(parts).groupby(level=0).mean() if parts else pd.Series(dtype=float)


def beyond_null(table: pd.DataFrame, rung: str) -> pd.Series:
    """By seed the mean R² of a rung less that of its null."""
    return by_seed(table, lambda own: (found := means(own))[rung] - found[f"null_{rung}"])


def outside_one(table: pd.DataFrame) -> pd.Series:
    """By seed the share of the variance that all neurons predict, but the best one does not."""
    return by_seed(table, lambda own: 1 - (found := means(own))["one"] / found["all"].where(found["all"] > 0))


def recovered_by(table: pd.DataFrame, partner: str, minus: str | None = None) -> pd.Series:
    """By seed R of the universal neurons of all layers with a partner, or how much more than with another."""

    def measure(own: pd.DataFrame) -> pd.Series:
        found = recovered(own).reindex(columns=sorted({partner, minus or partner})).astype(float)
        return found[partner] - (found[minus] if minus else 0)

    return by_seed(table, measure)
