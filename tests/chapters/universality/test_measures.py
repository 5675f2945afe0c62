"""Measures of universality against planted neurons and against plain loops over seeds and neurons."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from lib.chapters.universality import measures
from lib.run import with_universal

# matches and baselines of one neuron in four compared seeds, and what each measure makes of it at 0.5
PLANTED = {
    "at the ceiling": ([0.95] * 4, [0.6] * 4, {"excess": False, "adjusted": True, "worst": False, "k": 0}),
    "all but one seed": ([0.9, 0.9, 0.9, 0.1], [0.1] * 4, {"excess": True, "adjusted": True, "worst": False, "k": 3}),
    "one seed only": ([0.3, 0.9, 0.3, 0.3], [0.1] * 4, {"excess": False, "adjusted": False, "worst": False, "k": 1}),
    "every seed": ([0.75, 0.7, 0.8, 0.7], [0.1] * 4, {"excess": True, "adjusted": True, "worst": True, "k": 4}),
    "one high baseline": (
        [0.7] * 4,
        [0.05, 0.05, 0.25, 0.05],
        {"excess": True, "adjusted": True, "worst": False, "k": 3},
    ),
    "dead": ([0.0] * 4, [0.01] * 4, {"excess": False, "adjusted": False, "worst": False, "k": 0}),
    "no room": ([1.0] * 4, [1.0] * 4, {"excess": False, "adjusted": False, "worst": False, "k": 0}),
}


def planted() -> pd.DataFrame:
    corr, baseline = (np.array([case[part] for case in PLANTED.values()]).T for part in (0, 1))
    return pd.DataFrame(measures.neuron_measures(corr, baseline), index=list(PLANTED))


def test_each_measure_tells_the_planted_neurons_apart():
    table = with_universal(planted(), 0.5)
    for name, (_, _, wanted) in PLANTED.items():
        row = table.loc[name]
        got = {
            "excess": row["is_universal"],
            "adjusted": row["adjusted_excess"] > 0.5,
            "worst": row["worst_excess"] > 0.5,
        }
        assert got | {"k": row["k_of_m"]} == wanted, name
    assert table.loc["at the ceiling", "adjusted_excess"] == pytest.approx(0.35 / 0.4)
    assert table.loc["dead", "adjusted_excess"] == 0 and table.loc["dead", "excess_corr"] == pytest.approx(-0.01)


def test_compared_seeds_passed_follow_the_threshold():
    table = planted()
    assert with_universal(table, 0.34)["k_of_m"].tolist() == [4, 3, 1, 4, 4, 0, 0]
    again = with_universal(with_universal(table, 0.5), 0.34)  # a table that already has it from another threshold
    assert again["k_of_m"].tolist() == [4, 3, 1, 4, 4, 0, 0] and again["is_universal"].sum() == 5
    assert "k_of_m" not in with_universal(table[["excess_corr"]], 0.5)


def random_matches(seeds: str, total: int = 8) -> pd.DataFrame:
    """Matches of every seed with every other, two layers, rows in random order within a reference."""
    random, parts = np.random.default_rng(0), []
    for seed in seeds:
        rows = [
            (seed, layer, neuron, model, random.uniform(0, 1), random.uniform(0, 0.4))
            for model in seeds.replace(seed, "")
            for layer in (0, 1)
            for neuron in range(total // 2)
        ]
        columns = ["seed", "layer", "neuron", "model", "corr", "baseline"]
        parts.append(pd.DataFrame(rows, columns=columns).sample(frac=1, random_state=1))
    return pd.concat(parts, ignore_index=True)


def by_hand(matches: pd.DataFrame, seed: str, left_out: str = "") -> dict[tuple[int, int], dict[str, float]]:
    """Every measure of every neuron of a reference, one at a time in plain Python."""
    found = {}
    for key, own in matches.query("seed == @seed and model != @left_out").groupby(["layer", "neuron"]):
        corr, chance = own["corr"].tolist(), own["baseline"].tolist()
        apart = sorted((c - b for c, b in zip(corr, chance, strict=True)), reverse=True)
        mean, level = sum(corr) / len(corr), sum(chance) / len(chance)
        found[key] = {"max_corr": max(corr), "mean_corr": mean, "min_corr": min(corr)}
        found[key] |= {"max_baseline": max(chance), "mean_baseline": level, "min_baseline": min(chance)}
        found[key] |= {"excess_corr": sum(apart) / len(apart), "adjusted_excess": (mean - level) / (1 - level)}
        found[key] |= {"worst_excess": min(corr) - max(chance), "k_of_m": sum(one > 0.5 for one in apart)}
        found[key] |= {f"excess_rank_{place}": one for place, one in enumerate(apart, 1)}
    return found


def neurons_of(matches: pd.DataFrame) -> pd.DataFrame:
    parts = []
    for seed, own in measures.compared(matches).items():
        index = matches.query("seed == @seed")[["layer", "neuron"]].drop_duplicates().sort_values(["layer", "neuron"])
        table = index.assign(seed=seed, skew=np.arange(len(index)) + 0.5)
        parts.append(table.assign(**measures.neuron_measures(own.corr, own.baseline)))
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize("left_out", ["", "a", "c"])
def test_tables_with_and_without_a_seed_equal_a_plain_recomputation(left_out):
    matches = random_matches("abcd")
    neurons, rest = with_universal(neurons_of(matches), 0.5), matches
    if left_out:
        neurons, rest = measures.without_seed(neurons, matches, left_out, 0.5)
        assert left_out not in {*neurons["seed"], *rest["seed"], *rest["model"]}
        assert "excess_rank_3" not in neurons and len(rest) == 3 * 2 * 8
    assert len(neurons) == 8 * (3 if left_out else 4) and neurons["skew"].nunique() == 8
    for row in neurons.to_dict("records"):
        wanted = by_hand(matches, row["seed"], left_out)[row["layer"], row["neuron"]]
        for name, value in wanted.items():
            assert row[name] == pytest.approx(value, abs=1e-12), name
        assert row["is_universal"] == (wanted["excess_corr"] > 0.5)


def test_shares_by_number_of_compared_seeds_are_means_over_all_choices():
    matches = random_matches("abcd", total=40)
    found = measures.share_by_compared(matches, 0.3).set_index(["seed", "compared"])
    assert found["subsets"].loc["a"].tolist() == [3, 3, 1]
    for seed in "abcd":
        own = matches.query("seed == @seed")
        apart = (own["corr"] - own["baseline"]).groupby([own["layer"], own["neuron"], own["model"]]).first().unstack()
        for number in (1, 2, 3):
            shares = [(apart[list(some)].mean(axis=1) > 0.3).mean() for some in combinations(apart, number)]
            assert found.loc[(seed, number), "share"] == pytest.approx(np.mean(shares))
    whole = with_universal(neurons_of(matches), 0.3).groupby("seed")["is_universal"].mean()
    assert found["share"].unstack()[3].to_dict() == pytest.approx(whole.to_dict())


def test_many_compared_seeds_are_drawn():
    subsets = measures._subsets(13, 4, np.random.default_rng(0))
    assert len(subsets) == measures.MOST_SUBSETS and all(len(set(some)) == 4 for some in subsets)


def test_curves_count_each_measure_and_average_over_references():
    neurons = with_universal(neurons_of(random_matches("abcd", total=40)), 0.4)
    curves, seeds = measures.share_curves(neurons, [0.1, 0.4]), neurons.groupby("seed")
    for column, words in measures.LABELS.items():
        for threshold in (0.1, 0.4):
            wanted = np.mean([(own[column] > threshold).mean() for _, own in seeds])
            assert curves.loc[threshold, words] == pytest.approx(wanted)
    assert curves.loc[0.4, "in every compared seed"] == pytest.approx((neurons["k_of_m"] == 3).mean())
    assert curves.loc[0.4, "in at least one"] == pytest.approx((neurons["k_of_m"] > 0).mean())


def test_neurons_at_the_ceiling_are_counted():
    table = with_universal(planted(), 0.5)
    assert measures.at_the_ceiling(table, 0.5) == {"high": 2, "universal": 0, "adjusted": 1, "baseline": 0.8}
    assert measures.at_the_ceiling(table[:0], 0.5)["high"] == 0
