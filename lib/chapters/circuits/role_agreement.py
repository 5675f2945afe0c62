"""Are roles universal? From roles and matches of neurons to shares and agreements, each beside what chance gives.

Roles and universality both change with depth, so chance keeps the depth: neurons are exchanged within their own seed and
layer. Every seed is taken as reference, with its own excess correlations.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from scipy.stats import norm

from lib.chapters.circuits.roles import NO_ROLE, ROLES
from lib.chapters.universality.properties import holm, universal

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
    most universal neurons that a random choice of as many neurons from each seed's layer has; `p_value` is the largest of the
    own two-sided Cochran–Mantel–Haenszel tests of the `seeds` that have such neurons, over layers, and 1 where these do not `agree` in
    direction: what is universal recurs from seed to seed, so that seeds are no samples to be pooled. `p_corrected` is Holm's over roles.
    Shares of a role that no neuron has are NaN.
    """
    flagged = neurons.assign(universal=universal(neurons, threshold), top=most_universal(neurons))
    rows = []
    for role in ROLES:
        own = flagged[column] == role
        strata = flagged.assign(own=own, both=own & flagged["top"]).groupby(["seed", "layer"])
        counts = strata.agg(n=("own", "size"), own=("own", "sum"), top=("top", "sum"), both=("both", "sum")).astype(
            float
        )
        mean = counts["own"] * counts["top"] / counts["n"]
        variance = (
            mean * (1 - counts["own"] / counts["n"]) * (counts["n"] - counts["top"]) / (counts["n"] - 1).clip(lower=1)
        )
        number = int(own.sum())
        by_seed = (
            pd.DataFrame({"beyond": counts["both"] - mean, "variance": variance})
            .groupby("seed")
            .sum()
            .query("variance > 0")
        )
        z = (by_seed["beyond"] / by_seed["variance"] ** 0.5).to_numpy()
        agree = (z > 0).all() or (z < 0).all()
        p_value = np.nan if not len(z) else 2 * norm.sf(np.abs(z).min()) if agree else 1.0
        rows.append(
            {
                "role": role,
                "neurons": number,
                "universal": int(flagged.loc[own, "universal"].sum()),
                "share": flagged.loc[own, "universal"].mean() if number else np.nan,
                "top": int(counts["both"].sum()),
                "top_share": counts["both"].sum() / number if number else np.nan,
                "expected": mean.sum() / number if number else np.nan,
                "p_value": p_value,
                "seeds": len(z),
                "agree": bool(agree),
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
    own, other = _pairs(neurons, matches)
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

    table = pd.DataFrame(list(subsets), columns=["group", "aspect"])
    table["pairs"] = [len(rows) for rows in subsets.values()]
    return table.assign(**_against_chance("agreement", agreements, neurons, random_seed, draws))


def property_agreement(
    neurons: pd.DataFrame, matches: pd.DataFrame, columns: Sequence[str], random_seed: int, draws: int = DRAWS
) -> pd.DataFrame:
    """How alike a neuron and its best match rank within their layers by each numeric or yes-no column.

    As `match_agreement`, for the groups of all neurons and of the most universal: `correlation` is Pearson's between the
    two percentile ranks within seed and layer (Spearman's without what depth explains), over pairs that both have a
    value; NaN where there are fewer than three such pairs or one side is constant.
    """
    neurons = neurons.reset_index(drop=True)
    own, other = _pairs(neurons, matches)
    ranks = neurons[list(columns)].astype(float).groupby([neurons["seed"], neurons["layer"]]).rank(pct=True)
    values = {column: ranks[column].to_numpy() for column in columns}
    groups = {"all": np.ones(len(own), bool), "most universal": most_universal(neurons).to_numpy()[own]}
    rows = [(group, column) for group in groups for column in columns]

    def correlations(exchanged: np.ndarray) -> list[float]:
        match = exchanged[other]
        return [
            _correlation(values[column][own][groups[group]], values[column][match][groups[group]])
            for group, column in rows
        ]

    table = pd.DataFrame(rows, columns=["group", "property"])
    known = [np.isfinite(values[column][own] + values[column][other]) & groups[group] for group, column in rows]
    table["pairs"] = [int(both.sum()) for both in known]
    return table.assign(**_against_chance("correlation", correlations, neurons, random_seed, draws))


def _pairs(neurons: pd.DataFrame, matches: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Rows of `neurons` of each matched neuron and of its match."""
    place = pd.Series(neurons.index, pd.MultiIndex.from_frame(neurons[["seed", "layer", "neuron"]]))
    found = matches[matches["corr"] > 0]
    own = place.loc[pd.MultiIndex.from_frame(found[["seed", "layer", "neuron"]])].to_numpy()
    other = place.loc[pd.MultiIndex.from_frame(found[["model", "match_layer", "match_neuron"]])].to_numpy()
    return own, other


def _correlation(one: np.ndarray, two: np.ndarray) -> float:
    both = np.isfinite(one) & np.isfinite(two)
    one, two = one[both], two[both]
    if len(one) < 3 or np.ptp(one) == 0 or np.ptp(two) == 0:
        return np.nan
    return float(np.corrcoef(one, two)[0, 1])


def _against_chance(
    name: str, measure: Callable[[np.ndarray], list[float]], neurons: pd.DataFrame, random_seed: int, draws: int
) -> dict[str, np.ndarray]:
    """What `measure` gives, and its mean, smallest and largest value and p-value over exchanges of neurons within a layer.

    `measure` takes the row that stands in for each row of `neurons`.
    """
    observed = np.array(measure(np.arange(len(neurons))))
    generator = np.random.default_rng(random_seed)
    stratum = neurons.groupby(["seed", "layer"]).ngroup().to_numpy()
    in_order = np.argsort(stratum, kind="stable")
    chance = np.empty((draws, len(observed)))
    for draw in range(draws):
        exchanged = np.empty_like(in_order)
        exchanged[in_order] = np.lexsort((generator.random(len(stratum)), stratum))
        chance[draw] = measure(exchanged)
    reached = (1 + (chance >= observed).sum(0)) / (1 + draws)
    return {
        name: observed,
        "chance": chance.mean(0),
        "chance_low": chance.min(0),
        "chance_high": chance.max(0),
        "p_value": np.where(np.isfinite(observed), reached, np.nan),
    }
