"""Are roles universal? From roles and matches of neurons to shares and agreements, each beside what chance gives.

Roles and universality both change with depth, so chance keeps the depth: neurons are exchanged within their own seed and
layer. Every seed is taken as reference, with its own excess correlations.
"""

import numpy as np
import pandas as pd
from scipy.stats import norm

from lib.universality import holm, universal
from lib.vocabulary import NO_ROLE, ROLES

TOP = 0.05  # share of a seed's neurons that counts as "most universal", since small models may have none above the threshold
DRAWS = 200  # permutations

# What a neuron and its match may have in common: name → column of the circuit table
ASPECTS = {"role": "role_calibrated", "sign of skew": "skew_sign", "token class": "label"}


def most_universal(neurons: pd.DataFrame, top: float = TOP) -> pd.Series:
    """True for the `top` share of each seed's neurons by excess correlation."""
    return neurons.groupby("seed")["excess_corr"].rank(ascending=False, method="first", pct=True) <= top


def universal_shares(neurons: pd.DataFrame, column: str, threshold: float) -> pd.DataFrame:
    """One row per role in `column`: how many of its neurons are universal and how many are among the most universal.

    `neurons` has one row per neuron of every seed: seed, layer, excess_corr and the column. `expected` is the share of
    most universal neurons that a random choice of as many neurons from each seed's layer has; `p_value` is that of
    the Cochran–Mantel–Haenszel test over seeds and layers, two-sided, and `p_corrected` Holm's over roles. Shares
    of a role that no neuron has are NaN.
    """
    flagged = neurons.assign(universal=universal(neurons, threshold), top=most_universal(neurons))
    rows = []
    for role in ROLES:
        own = flagged[column] == role
        strata = flagged.assign(own=own, both=own & flagged["top"]).groupby(["seed", "layer"])
        counts = strata.agg(n=("own", "size"), own=("own", "sum"), top=("top", "sum"), both=("both", "sum")).astype(float)
        mean = counts["own"] * counts["top"] / counts["n"]
        variance = mean * (1 - counts["own"] / counts["n"]) * (counts["n"] - counts["top"]) / (counts["n"] - 1).clip(lower=1)
        number, spread = int(own.sum()), np.sqrt(variance.sum())
        z = (counts["both"].sum() - mean.sum()) / spread if spread > 0 else np.nan
        rows.append(
            {
                "role": role,
                "neurons": number,
                "universal": int(flagged.loc[own, "universal"].sum()),
                "share": flagged.loc[own, "universal"].mean() if number else np.nan,
                "top": int(counts["both"].sum()),
                "top_share": counts["both"].sum() / number if number else np.nan,
                "expected": mean.sum() / number if number else np.nan,
                "p_value": 2 * norm.sf(abs(z)),
            }
        )
    table = pd.DataFrame(rows)
    table["p_corrected"] = holm(table["p_value"])
    return table


def match_agreement(neurons: pd.DataFrame, matches: pd.DataFrame, random_seed: int, draws: int = DRAWS) -> pd.DataFrame:
    """How often a neuron's best match in another seed shares its role, sign of skew and token class.

    `neurons`: one row per neuron of every seed, with seed, layer, neuron, excess_corr and the columns of ASPECTS
    (a missing label agrees with nothing); `matches` as in matches_all_seeds.parquet, of which those with
    correlation 0 or less are left out. One row per group (each role, no role, and among the neurons with a role the
    most universal) and aspect: `pairs`, `agreement`, and over permutations of the neurons within each seed's layer
    the mean `chance` with its smallest and largest (`chance_low`, `chance_high`) and the one-sided `p_value`.
    Agreement is counted over the neurons that have the aspect at all.
    """
    neurons = neurons.reset_index(drop=True)
    place = pd.Series(neurons.index, pd.MultiIndex.from_frame(neurons[["seed", "layer", "neuron"]]))
    pairs = matches[matches["corr"] > 0]
    own = place.loc[pd.MultiIndex.from_frame(pairs[["seed", "layer", "neuron"]])].to_numpy()
    other = place.loc[pd.MultiIndex.from_frame(pairs[["model", "match_layer", "match_neuron"]])].to_numpy()
    codes = {aspect: pd.factorize(neurons[column])[0] for aspect, column in ASPECTS.items()}  # −1: missing
    has_role = (neurons["role_calibrated"] != NO_ROLE).to_numpy()
    groups = {role: (neurons["role_calibrated"] == role).to_numpy() for role in (*ROLES, NO_ROLE)}
    groups["most universal with a role"] = has_role & most_universal(neurons).to_numpy()
    subsets = {
        (group, aspect): np.flatnonzero(chosen[own] & (code[own] >= 0))
        for group, chosen in groups.items()
        for aspect, code in codes.items()
    }

    def agreements(exchanged: np.ndarray) -> list[float]:
        same = {aspect: code[own] == code[exchanged[other]] for aspect, code in codes.items()}
        return [same[aspect][rows].mean() if len(rows) else np.nan for (_, aspect), rows in subsets.items()]

    observed = np.array(agreements(np.arange(len(neurons))))
    generator = np.random.default_rng(random_seed)
    stratum = neurons.groupby(["seed", "layer"]).ngroup().to_numpy()
    in_order = np.argsort(stratum, kind="stable")
    chance = []
    for _ in range(draws):
        exchanged = np.empty_like(in_order)
        exchanged[in_order] = np.lexsort((generator.random(len(stratum)), stratum))
        chance.append(agreements(exchanged))
    chance = np.array(chance)  # (draws, rows)
    table = pd.DataFrame(list(subsets), columns=["group", "aspect"])
    table["pairs"] = [len(rows) for rows in subsets.values()]
    table["agreement"], table["chance"] = observed, chance.mean(0)
    table["chance_low"], table["chance_high"] = chance.min(0), chance.max(0)
    reached = (1 + (chance >= observed).sum(0)) / (1 + draws)
    table["p_value"] = np.where(np.isfinite(observed), reached, np.nan)
    return table
