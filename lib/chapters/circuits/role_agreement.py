"""Are roles universal? From roles and matches of neurons to shares and agreements, each beside its chance level.

Roles and universality both change with depth, so the chance level keeps the depth: neurons are exchanged within their
seed and layer. Every seed that serves as reference counts, with its own excess correlations.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from scipy.sparse import csr_array
from scipy.stats import norm

from lib.chapters.circuits.roles import NO_ROLE, ROLES
from lib.chapters.universality.properties import holm, most_universal

PERMUTATIONS = 200
# What a neuron and its match may both write: name → column of roles.parquet
WRITTEN = {"role": "role_learned", "sign of skew": "skew_sign", "token class": "label"}
TOP_WITH_ROLE = "most universal with a role"


def universal_shares(neurons: pd.DataFrame, column: str) -> pd.DataFrame:
    """One row per role in `column`: how many of its neurons are universal, and how many among the most universal.

    `neurons` has one row per neuron of every seed: seed, layer, excess_corr, is_universal and the column.
    `expected_universal` and `expected` are the `share` and `top_share` of as many random neurons of each seed's layers.
    `p_value` is from two-sided Cochran–Mantel–Haenszel tests over layers, one for each of the `seeds` that have such
    neurons: the largest, or 1 where the seeds do not `agree` in direction. Seeds are not pooled, because universal
    neurons recur across seeds. `p_corrected` is Holm's over roles. Shares of a role that no neuron has are NaN.
    """
    flagged = neurons.assign(top=most_universal(neurons))
    rows = []
    for role in ROLES:
        own = flagged[column] == role
        strata = flagged.assign(own=own, both=own & flagged["top"]).groupby(["seed", "layer"])
        sums = {name: (name, "sum") for name in ("own", "top", "both", "is_universal")}
        counts = strata.agg(n=("own", "size"), **sums)
        n, chosen, top = (counts[name].astype(float) for name in ("n", "own", "top"))
        mean = chosen * top / n
        variance = mean * (1 - chosen / n) * (n - top) / (n - 1).clip(lower=1)
        sums = pd.DataFrame({"beyond": counts["both"] - mean, "variance": variance}).groupby("seed").sum()
        sums = sums[sums["variance"] > 0]
        z = (sums["beyond"] / sums["variance"] ** 0.5).to_numpy()
        agree = bool((z > 0).all() or (z < 0).all())
        rows.append(
            {
                "role": role,
                "neurons": int(own.sum()),
                "universal": int(flagged.loc[own, "is_universal"].sum()),
                "top": int(counts["both"].sum()),
                "expected_universal": (chosen * counts["is_universal"] / n).sum(),
                "expected": mean.sum(),
                "p_value": np.nan if not len(z) else 2 * norm.sf(np.abs(z).min()) if agree else 1.0,
                "seeds": len(z),
                "agree": agree,
            }
        )
    table = pd.DataFrame(rows)
    shares = {
        "share": "universal",
        "top_share": "top",
        "expected_universal": "expected_universal",
        "expected": "expected",
    }
    table = table.assign(**{name: table[source] / table["neurons"] for name, source in shares.items()})
    return table.assign(p_corrected=holm(table["p_value"]))


def match_agreement(
    neurons: pd.DataFrame, matches: pd.DataFrame, random_seed: int, draws: int = PERMUTATIONS
) -> pd.DataFrame:
    """How often a neuron's best match in another seed has the same role, sign of skew and token class.

    `neurons`: one row per neuron of every seed, with seed, layer, neuron, excess_corr and the columns of WRITTEN (a
    missing label agrees with nothing); `matches` as in matches_all_seeds.parquet, without those of correlation ≤ 0.
    One row per `group` (each role, no role, and the most universal neurons that have a role) and `property`: `pairs`,
    `agreement`, and over permutations of the neurons within each seed's layer the mean `chance`, its range
    (`chance_low`, `chance_high`) and the one-sided `p_value`. Only neurons that have the property count.
    """
    neurons = neurons.reset_index(drop=True)
    own, other = _pairs(neurons, matches)
    codes = {name: pd.factorize(neurons[column])[0] for name, column in WRITTEN.items()}  # −1: missing
    groups = {role: neurons["role_learned"] == role for role in (*ROLES, NO_ROLE)}
    groups[TOP_WITH_ROLE] = ~groups[NO_ROLE] & most_universal(neurons)
    subsets = {
        (group, name): np.flatnonzero(chosen.to_numpy()[own] & (code[own] >= 0))
        for group, chosen in groups.items()
        for name, code in codes.items()
    }

    def agreements(exchanged: np.ndarray) -> list[float]:
        same = {name: code[own] == code[exchanged[other]] for name, code in codes.items()}
        return [same[name][rows].mean() if len(rows) else np.nan for (_, name), rows in subsets.items()]

    table = pd.DataFrame(list(subsets), columns=["group", "property"])
    table["pairs"] = [len(rows) for rows in subsets.values()]
    return table.assign(**_against_chance("agreement", agreements, neurons, random_seed, draws))


def property_agreement(
    neurons: pd.DataFrame, matches: pd.DataFrame, columns: Sequence[str], random_seed: int, draws: int = PERMUTATIONS
) -> pd.DataFrame:
    """How alike a neuron and its best match rank within their layers by each numeric or yes/no column.

    As `match_agreement`, for the groups of all neurons and of the most universal. `correlation` is Pearson's between
    the two percentile ranks within seed and layer (Spearman's without the effect of depth), over pairs that both have
    a value; NaN where there are fewer than three such pairs or one side is constant.
    """
    neurons = neurons.reset_index(drop=True)
    own, other = _pairs(neurons, matches)
    ranks = neurons[list(columns)].astype(float).groupby([neurons["seed"], neurons["layer"]]).rank(pct=True).to_numpy()
    known = np.isfinite(ranks)
    centred = np.where(known, ranks - 0.5, 0.0)
    powers = np.stack([known, centred, centred**2], 2).reshape(len(neurons), -1)  # (neurons, columns · 3)
    groups = {"all": np.ones(len(own), bool), "most universal": most_universal(neurons).to_numpy()[own]}
    used, place = np.unique(other, return_inverse=True)
    matched = []  # by group: the same powers, summed over the neurons that one is the match of, (columns · 3, used)
    for chosen in groups.values():
        pairs = csr_array((np.ones(chosen.sum()), (place[chosen], own[chosen])), shape=(len(used), len(neurons)))
        matched.append((pairs @ powers).T.copy())
    each = np.arange(len(columns))

    def sums(exchanged: np.ndarray) -> np.ndarray:
        """Σ xⁱ yʲ over the pairs that both have a value, x the rank and y its match's: (groups · columns, 3, 3)."""
        replaced = powers[exchanged[used]]
        # one product of all columns with all, of which the squares on the diagonal are kept, is the fastest
        products = ((of_group @ replaced).reshape(len(each), 3, len(each), 3) for of_group in matched)
        return np.concatenate([one[each, :, each] for one in products])

    def correlations(exchanged: np.ndarray) -> np.ndarray:
        return _correlation(sums(exchanged))

    table = pd.DataFrame([(group, column) for group in groups for column in columns], columns=["group", "property"])
    table["pairs"] = sums(np.arange(len(neurons)))[:, 0, 0].astype(int)
    return table.assign(**_against_chance("correlation", correlations, neurons, random_seed, draws))


def _pairs(neurons: pd.DataFrame, matches: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Rows of `neurons` of each matched neuron and of its match."""
    place = pd.Series(neurons.index, pd.MultiIndex.from_frame(neurons[["seed", "layer", "neuron"]]))
    found = matches[matches["corr"] > 0]
    sides = ["seed", "layer", "neuron"], ["model", "match_layer", "match_neuron"]
    own, other = (place.loc[pd.MultiIndex.from_frame(found[side])].to_numpy() for side in sides)
    return own, other


def _correlation(sums: np.ndarray) -> np.ndarray:
    """Pearson's correlations of x and y, from Σ xⁱ yʲ, (…, 3, 3)."""
    n = sums[:, 0, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        x, y, xx, yy, xy = (sums[:, i, j] / n for i, j in ((1, 0), (0, 1), (2, 0), (0, 2), (1, 1)))
        one, two = xx - x**2, yy - y**2
        correlation = (xy - x * y) / np.sqrt(one * two)
    defined = (n >= 3) & (np.minimum(one, two) > 1e-12)  # ranks lie between 0 and 1
    return np.where(defined, correlation, np.nan).round(12)  # so that equal ones are equal


def _against_chance(
    name: str, measure: Callable[[np.ndarray], Sequence[float]], neurons: pd.DataFrame, random_seed: int, draws: int
) -> dict[str, np.ndarray]:
    """What `measure` gives, with its mean, range and p-value over exchanges of neurons within a seed's layer.

    `measure` takes the row that replaces each row of `neurons`.
    """
    observed = np.array(measure(np.arange(len(neurons))))
    generator = np.random.default_rng(random_seed)
    stratum = neurons.groupby(["seed", "layer"]).ngroup().to_numpy()
    in_order = np.argsort(stratum, kind="stable")
    chance = np.empty((draws, len(observed)))
    for draw in range(draws):
        exchanged = np.empty_like(in_order)
        exchanged[in_order] = np.argsort(stratum + generator.random(len(stratum)))
        chance[draw] = measure(exchanged)
    reached = (1 + (chance >= observed).sum(0)) / (1 + draws)
    return {
        name: observed,
        "chance": chance.mean(0),
        "chance_low": chance.min(0),
        "chance_high": chance.max(0),
        "p_value": np.where(np.isfinite(observed), reached, np.nan),
    }
