"""Stricter matches than the best match: mutual matches, cliques and one-to-one assignment (docs/method.md §7).

Several neurons of one seed can have the same best match in another. A mutual match is the best in both directions, a
clique has one neuron of every seed, each two of them mutual, and an assignment uses every neuron once.
"""

from itertools import combinations

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from torch import Tensor

from lib.collect.statistics import Statistics
from lib.kernels.correlation import Pair, stripes

ALONE = 3.0  # cost of a neuron that no candidate is assigned to; of a candidate, 1 − its correlation


def assignment(statistics: Statistics, pair: Pair) -> tuple[Int[Tensor, "total"], Float[Tensor, "total"]]:
    """Partner (flat index) and correlation of each neuron of the first seed: no partner twice, the largest sum of
    correlations among the followed pairs, and then among the neurons that are left; −1 and 0 where none is left."""
    stored = statistics.followed.stored(pair)
    everything = torch.ones(1, len(statistics.followed.tokens))
    corr = statistics.followed.correlations(stored, everything)[0].cpu().numpy()
    left, right = statistics.followed.pairs[stored].cpu().numpy()[:: 1 if stored == pair else -1]
    rows, columns = (statistics.covariance.total(seed) for seed in pair)
    # each neuron may also stay alone, or there might be no way to assign them all
    value = np.concatenate([1 - corr, np.full(rows, ALONE)]) + 1e-6  # csgraph takes a cost of 0 for a missing edge
    row, column = np.concatenate([left, np.arange(rows)]), np.concatenate([right, columns + np.arange(rows)])
    chosen = min_weight_full_bipartite_matching(csr_array((value, (row, column)), shape=(rows, columns + rows)))[1]
    partner = np.where(chosen < columns, chosen, -1)
    known = csr_array((corr + 2, (left, right)), shape=(rows, columns))  # 0 is none
    found = np.zeros(rows)
    has = partner >= 0
    found[has] = np.asarray(known[np.flatnonzero(has), partner[has]]).ravel() - 2
    rest, free = np.flatnonzero(~has), np.setdiff1d(np.arange(columns), partner)
    if len(rest) and len(free):
        between = _between(statistics, stored, *((rest, free) if stored == pair else (free, rest)))
        between = between if stored == pair else between.T
        own, other = linear_sum_assignment(between, maximize=True)
        partner[rest[own]], found[rest[own]] = free[other], between[own, other]
    return torch.from_numpy(partner), torch.from_numpy(found)


def _between(
    statistics: Statistics, pair: Pair, left: np.ndarray, right: np.ndarray
) -> Float[np.ndarray, "left right"]:
    """Correlations of some neurons of two seeds, from the products of the whole text."""
    made = np.zeros((len(left), len(right)), np.float32)
    for _, own, corr in stripes(statistics.covariance, pair, statistics.scales):
        inside = (left >= own.start) & (left < own.stop)
        made[inside] = corr[left[inside] - own.start][:, right].float().cpu().numpy()
    return made


def cliques(matches_all_seeds: pd.DataFrame) -> pd.DataFrame:
    """One row per clique: columns layer_<seed> and neuron_<seed> for every seed, min_corr and mean_corr over its pairs.

    `matches_all_seeds` needs every seed as reference, otherwise there is no row. A neuron is in no more than one
    clique. Sorted by min_corr, largest first. Where seeds differ in depth, also depth_<seed> (`depth_columns`).
    """
    seeds = sorted({*matches_all_seeds["seed"], *matches_all_seeds["model"]})
    names = [f"{what}_{seed}" for seed in seeds for what in ("layer", "neuron")]
    if len(seeds) < 2 or set(matches_all_seeds["seed"]) != set(seeds):
        return pd.DataFrame(columns=[*names, "min_corr", "mean_corr"])
    ordered = matches_all_seeds.sort_values(["layer", "neuron"], kind="stable")
    sizes = ordered.groupby("seed")["neuron"].max() + 1
    partner, mutual, corr, places = {}, {}, {}, {}
    for (seed, model), frame in ordered.groupby(["seed", "model"]):
        partner[seed, model] = (frame["match_layer"] * sizes[model] + frame["match_neuron"]).to_numpy()
        mutual[seed, model], corr[seed, model] = frame["mutual"].to_numpy(), frame["corr"].to_numpy()
        places[seed] = frame[[name for name in ("layer", "neuron", "depth") if name in frame]].to_numpy()
    first, *others = seeds
    members = {first: np.arange(len(places[first]))} | {seed: partner[first, seed] for seed in others}
    whole, between = np.ones(len(members[first]), dtype=bool), []
    for a, b in combinations(seeds, 2):
        own = members[a]
        whole &= mutual[a, b][own] & (partner[a, b][own] == members[b])
        between.append(corr[a, b][own])
    found = {}
    for seed in seeds:
        of_seed = places[seed][members[seed][whole]].T
        found |= {f"{name}_{seed}": values for name, values in zip(("layer", "neuron", "depth"), of_seed, strict=False)}
    between = np.stack(between)[:, whole]
    found |= {"min_corr": between.min(0), "mean_corr": between.mean(0)}
    return pd.DataFrame(found).sort_values("min_corr", ascending=False, ignore_index=True)


def partner_table(
    neurons: pd.DataFrame, matches: pd.DataFrame, found: pd.DataFrame, assignments: pd.DataFrame, reference: str
) -> pd.DataFrame:
    """One row per neuron of the reference, from its neurons, matches and assignments and the run's `cliques`.

    Columns: layer, neuron, excess_corr, is_universal, mutual (share of compared seeds with a mutual match), in_clique,
    assigned_corr and assigned_excess (means over compared seeds); where seeds differ in depth, also depth.
    """
    keys = ["layer", "neuron"]
    table = neurons[[*keys, "excess_corr", "is_universal", "mean_baseline"]]
    means = [name for name in ("mutual", "depth") if name in matches]
    table = table.merge(matches.groupby(keys)[means].mean().reset_index(), on=keys)
    own = found[[f"layer_{reference}", f"neuron_{reference}"]].astype("int64").set_axis(keys, axis=1)
    table["in_clique"] = pd.MultiIndex.from_frame(table[keys]).isin(pd.MultiIndex.from_frame(own))
    assigned = assignments.groupby(keys)["corr"].mean().rename("assigned_corr").reset_index()
    table = table.merge(assigned, on=keys, how="left")
    table["assigned_excess"] = table["assigned_corr"] - table["mean_baseline"]
    return table


def by_excess(table: pd.DataFrame, edges: np.ndarray) -> pd.DataFrame:
    """From `partner_table`, by bins of excess between `edges`: excess (middle), neurons, mutual, in_clique (shares).

    Bins without neurons are left out.
    """
    found = {"mutual": ("mutual", "mean"), "in_clique": ("in_clique", "mean")}
    bins = pd.cut(table["excess_corr"], edges)
    rows = table.groupby(bins, observed=True).agg(neurons=("neuron", "size"), **found)
    rows.insert(0, "excess", [interval.mid for interval in rows.index])
    return rows.reset_index(drop=True)


def _layers(found: pd.DataFrame) -> pd.DataFrame:
    """Each clique's layers, or parts of the depth where seeds differ in it, a column for each seed."""
    by_depth = [name for name in found if name.startswith("depth_")]
    return found[by_depth or [name for name in found if name.startswith("layer_")]].astype("int64")


def clique_depths(found: pd.DataFrame, layers: int) -> pd.DataFrame:
    """Cliques by the mean layer of their neurons, rounded: layer, same (all in one layer), spread (over several).

    Layers are parts of the depth where seeds differ in it.
    """
    depth = _layers(found)
    at, same = depth.mean(axis=1).round().astype(int), depth.nunique(axis=1) == 1
    rows = pd.crosstab(at, same).reindex(index=range(layers), columns=[True, False], fill_value=0)
    return rows.set_axis(["same", "spread"], axis=1).rename_axis("layer").reset_index()


def partner_summary(table: pd.DataFrame, found: pd.DataFrame, threshold: float) -> dict[str, float]:
    """Means and counts from `partner_table` and `cliques`; NaN where there is nothing to average."""
    chosen = table["is_universal"]
    return {
        "universal": int(chosen.sum()),
        "mutual": table["mutual"].mean(),
        "mutual_universal": table.loc[chosen, "mutual"].mean(),
        "cliques": len(found),
        "in_clique_universal": table.loc[chosen, "in_clique"].mean(),
        "by_depth": "depth" in table,
        "one_layer": (_layers(found).nunique(axis=1) == 1).mean() if len(found) else np.nan,
        "assigned_corr": table["assigned_corr"].mean(),
        "universal_assigned": int((table["assigned_excess"] > threshold).sum()),
    }
