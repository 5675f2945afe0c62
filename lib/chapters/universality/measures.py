"""How universal a neuron is: measures from its best match and its baseline in every compared seed (docs/method.md §2).

All of them are functions of two arrays, (compared seeds, neurons), so that leaving a seed out, or comparing with fewer
of them, needs no new products.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from lib.chapters.universality.properties import shares_above
from lib.run import RANKED, with_universal

HIGH_MATCH = 0.8  # mean best match above which a neuron is the same by any reading
MOST_SUBSETS = 100  # of compared seeds, of one size
LABELS = {  # the columns whose share above the threshold is shown, in words
    "excess_corr": "excess",
    "adjusted_excess": "adjusted excess",
    "worst_excess": "worst-case excess",
}


class Compared(NamedTuple):
    """One reference's best matches and baselines in each compared seed, (compared, neurons), in flat order."""

    models: list[str]
    corr: Float[np.ndarray, "compared total"]
    baseline: Float[np.ndarray, "compared total"]


def neuron_measures(
    corr: Float[np.ndarray, "compared total"], baseline: Float[np.ndarray, "compared total"]
) -> dict[str, Float[np.ndarray, "total"]]:
    """Columns of the neurons' table from best matches and baselines in each compared seed (docs/method.md §2, §10).

    The largest, mean and smallest of both; excess_corr, adjusted_excess, worst_excess; and excess_rank_<k>, the excess
    in the compared seed where it is k-th largest.
    """
    columns = {
        f"{how}_{name}": getattr(values, how)(0)
        for name, values in (("corr", corr), ("baseline", baseline))
        for how in ("max", "mean", "min")
    }
    excess, room = corr - baseline, 1 - columns["mean_baseline"]
    used = columns["mean_corr"] - columns["mean_baseline"]
    live = corr.any(0) & (room > 0)  # a dead neuron correlates 0 with everything
    columns |= {
        "excess_corr": excess.mean(0),
        "adjusted_excess": np.divide(used, room, out=np.zeros_like(used), where=live),
        "worst_excess": columns["min_corr"] - columns["max_baseline"],
    }
    ranked = -np.sort(-excess, axis=0)
    return columns | {f"{RANKED}{place}": own for place, own in enumerate(ranked, 1)}


def compared(matches_all_seeds: pd.DataFrame) -> dict[str, Compared]:
    """Each reference's matches as arrays."""
    found = {}
    for seed, own in matches_all_seeds.groupby("seed", sort=False):
        own = own.sort_values(["model", "layer", "neuron"], kind="stable")
        models = list(own["model"].unique())
        arrays = (own[name].to_numpy(float).reshape(len(models), -1) for name in ("corr", "baseline"))
        found[seed] = Compared(models, *arrays)
    return found


def without_seed(
    neurons_all_seeds: pd.DataFrame, matches_all_seeds: pd.DataFrame, left_out: str, threshold: float
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both tables of a run as they were without one seed: neither a reference nor compared with.

    `neurons_all_seeds` is in flat order within a seed. A reference that nothing is left to compare with falls away.
    """
    kept = (matches_all_seeds["seed"] != left_out) & (matches_all_seeds["model"] != left_out)
    matches, parts = matches_all_seeds[kept], []
    plain = [name for name in neurons_all_seeds if not name.startswith(RANKED)]
    of_seed = dict(tuple(neurons_all_seeds[plain].groupby("seed", sort=False)))
    for seed, own in compared(matches).items():
        parts.append(of_seed[seed].assign(**neuron_measures(own.corr, own.baseline)))
    neurons = pd.concat(parts, ignore_index=True) if parts else neurons_all_seeds.iloc[:0]
    return with_universal(neurons, threshold), matches


def share_curves(neurons_all_seeds: pd.DataFrame, thresholds: Sequence[float]) -> pd.DataFrame:
    """Share of neurons above each threshold by each measure, averaged over references; index thresholds.

    Columns: those of LABELS in words, then "in every compared seed" and "in at least one", by the excess in each.
    """
    places = [name for name in neurons_all_seeds if name.startswith(RANKED)]
    columns = LABELS | ({places[-1]: "in every compared seed", places[0]: "in at least one"} if places else {})
    seeds = neurons_all_seeds.groupby("seed", sort=False)
    made = {
        words: np.mean([shares_above(own[name], thresholds) for _, own in seeds], axis=0)
        for name, words in columns.items()
    }
    return pd.DataFrame(made, index=np.asarray(thresholds, dtype=float))


def share_by_compared(matches_all_seeds: pd.DataFrame, threshold: float, random_seed: int = 0) -> pd.DataFrame:
    """One row per reference and number of compared seeds: seed, compared, subsets, share (universal, their mean).

    A neuron's excess is the mean over the seeds of a subset. All subsets of a size count, or MOST_SUBSETS drawn ones.
    """
    rows, random = [], np.random.default_rng(random_seed)
    for seed, own in compared(matches_all_seeds).items():
        excess = own.corr - own.baseline
        for number in range(1, len(excess) + 1):
            subsets = _subsets(len(excess), number, random)
            share = np.mean([(excess[chosen].mean(0) > threshold).mean() for chosen in subsets])
            rows.append({"seed": seed, "compared": number, "subsets": len(subsets), "share": share})
    return pd.DataFrame(rows)


def _subsets(total: int, number: int, random: np.random.Generator) -> list[list[int]]:
    """All subsets of a size, or MOST_SUBSETS drawn ones where there may be many more."""
    if total <= 12:
        return [list(chosen) for chosen in combinations(range(total), number)]
    return [random.choice(total, number, replace=False).tolist() for _ in range(MOST_SUBSETS)]


def at_the_ceiling(neurons: pd.DataFrame, threshold: float) -> dict[str, float]:
    """Of neurons with a mean match above HIGH_MATCH: their number, how many are universal by excess, how many by the
    adjusted excess, and the mean baseline of those that are not universal (NaN without any)."""
    high = neurons[neurons["mean_corr"] > HIGH_MATCH]
    return {
        "high": len(high),
        "universal": int(high["is_universal"].sum()),
        "adjusted": int((high["adjusted_excess"] > threshold).sum()),
        "baseline": high.loc[~high["is_universal"], "mean_baseline"].mean(),
    }
