"""Universality's tables against answers worked out by hand on a few neurons."""

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.multitest import multipletests

from lib.chapters.universality import properties
from lib.run import with_universal


def neurons(**columns) -> pd.DataFrame:
    size = len(next(iter(columns.values())))
    return pd.DataFrame({"layer": [0] * size, "neuron": range(size), "dead": [False] * size, **columns})


def test_universal_is_strictly_above_the_threshold_and_a_missing_excess_is_not():
    table = neurons(excess_corr=[0.5, 0.500001, -1.0, np.nan])
    assert with_universal(table, 0.5)["is_universal"].tolist() == [False, True, False, False]


def test_share_curve_counts_like_universal():
    excess = pd.Series([0.1, 0.5, 0.6, np.nan])
    shares = properties.shares_above(excess, [-1, 0.1, 0.5, 0.55, 1])
    assert shares.tolist() == [0.75, 0.5, 0.25, 0.25, 0]
    for threshold, share in zip([-1, 0.1, 0.5, 0.55, 1], shares, strict=True):
        assert with_universal(neurons(excess_corr=excess), threshold)["is_universal"].mean() == share


def test_published_counts_by_layer_add_up_to_the_published_ones():
    by_model = properties.published_layer_shares().groupby("model")
    assert by_model["universal"].sum().to_dict() == properties.PUBLISHED_SHARES["universal"].to_dict()
    assert by_model.size().to_dict() == {"pythia": 12, "small": 12, "medium": 24}
    assert by_model["depth"].agg(["min", "max"]).loc["medium"].tolist() == [0.5 / 24, 23.5 / 24]
    assert properties.published_layer_shares().set_index(["model", "layer"])["share"]["small", 1] == 244 / 3072


def test_shares_by_reference_and_by_layer():
    table = pd.concat(
        [
            neurons(excess_corr=[0.6, 0.2, 0.7, 0.1]).assign(seed="a", layer=[0, 0, 1, 1]),
            neurons(excess_corr=[0.4, 0.2, 0.8, 0.9]).assign(
                seed="b", layer=[0, 0, 1, 1], dead=[True, False, False, False]
            ),
        ]
    )
    table = with_universal(table, 0.5)
    by_seed = properties.reference_shares(table).set_index("seed")
    assert by_seed["universal"].to_dict() == {"a": 2, "b": 2}
    assert by_seed.loc["a", "mean_excess"] == pytest.approx(0.4)
    assert by_seed["dead"].to_dict() == {"a": 0, "b": 1}
    by_layer = properties.layer_shares(table).set_index(["seed", "layer"])
    assert by_layer["universal"].to_dict() == {("a", 0): 1, ("a", 1): 1, ("b", 0): 0, ("b", 1): 2}
    assert by_layer["share"].to_dict() == {("a", 0): 0.5, ("a", 1): 0.5, ("b", 0): 0.0, ("b", 1): 1.0}


def test_layer_agreement_counts_matches_and_leaves_out_dead_neurons():
    matches = pd.DataFrame(
        {"layer": [0, 0, 0, 0, 0, 2], "match_layer": [0, 0, 2, 1, 0, 0], "corr": [0.9, 0.8, 0.7, 0.6, 0.0, 0.0]}
    )
    matrix = properties.match_layer_percent(matches)
    assert matrix.shape == (3, 3)
    assert matrix.loc[0].tolist() == [50, 25, 25]
    assert matrix.loc[1].isna().all() and matrix.loc[2].isna().all()


def test_percentiles_are_within_the_layer_with_ties_shared_and_nan_left_alone():
    table = pd.DataFrame({"layer": [0, 0, 0, 0, 1, 1, 1], "skew": [10, 20, 20, 40, np.nan, 1000, 2000]})
    percentiles = properties.layer_percentiles(table, ["skew"])["skew"]
    assert percentiles[:4].tolist() == [12.5, 50, 50, 87.5]
    assert np.isnan(percentiles[4]) and percentiles[5:].tolist() == [25, 75]


def planted(universal: int, layers: int = 2, width: int = 30) -> pd.DataFrame:
    """In each layer the first `universal` neurons have the largest skew and frequency; the mean is a shuffle."""
    parts = []
    for layer in range(layers):
        table = neurons(excess_corr=np.where(np.arange(width) < universal, 0.9, 0.1)).assign(layer=layer)
        table["skew"] = 1000.0 * layer - np.arange(width)
        table["sparsity"] = 1 - np.arange(width) / width
        table["mean"] = np.random.default_rng(layer).permutation(width)
        table["var"] = table["skew"]
        parts.append(table)
    return pd.concat(parts, ignore_index=True)


def test_property_tests_rank_within_the_layer():
    tests = properties.property_tests(with_universal(planted(universal=6), 0.5)).set_index("property")
    assert list(tests.index) == ["sparsity", "mean", "var", "skew"]
    assert tests.loc["skew", "effect"] == 1  # every universal neuron ranks above every other one of its layer
    assert tests.loc["skew", "median_percentile"] == pytest.approx(100 * (27.5 - 0.5) / 30)  # ranks 25 to 30
    assert tests.loc["skew", "universal"] == 12 and tests.loc["skew", "other"] == 48
    assert tests["published"].to_dict() == {"sparsity": "low", "mean": "low", "var": "", "skew": "high"}
    assert "verdict" not in tests  # which is the ledger's
    assert (tests["p_corrected"] >= tests["p_value"]).all()


def test_the_effect_is_cliffs_delta_counted_pair_by_pair():
    table = neurons(excess_corr=[0.9, 0.9, 0.1, 0.1, 0.1], skew=[3.0, 1.0, 2.0, 1.0, 0.0])
    tests = properties.property_tests(with_universal(table, 0.5)).set_index("property")
    # 3 beats three; 1 loses to 2, ties with 1, beats 0
    assert tests.loc["skew", "effect"] == pytest.approx((3 + 0) / 6)


def test_too_few_universal_neurons_have_no_medians_and_none_is_no_error():
    few, enough = (properties.property_medians(with_universal(planted(universal=number), 0.5)) for number in (4, 5))
    assert few.isna().all() and enough["skew"] == pytest.approx(100 * (28 - 0.5) / 30)
    for threshold in (-1, 2):  # all neurons universal, no neuron universal
        tests = properties.property_tests(with_universal(planted(universal=4), threshold))
        assert tests["effect"].isna().all() and tests["p_corrected"].isna().all()


def test_p_values_are_corrected_by_holm_over_those_tested():
    corrected = properties.holm(pd.Series([0.04, np.nan, 0.01]))
    assert corrected[0] == 0.04 and np.isnan(corrected[1]) and corrected[2] == 0.02
    p_values = np.random.default_rng(0).random(30).round(1) ** 3  # with ties
    np.testing.assert_allclose(properties.holm(pd.Series(p_values)), multipletests(p_values, method="holm")[1])


def test_frequency_cosine_correlation():
    assert properties.frequency_cosine_correlation(
        neurons(sparsity=[0.1, 0.2, 0.3], in_out_sim=[0.3, 0.2, 0.1])
    ) == pytest.approx(-1)
    assert np.isnan(properties.frequency_cosine_correlation(neurons(sparsity=[0.5, 0.5], in_out_sim=[0.1, 0.2])))


def test_frequency_and_cosine_within_layers_where_pooling_hides_their_relation():
    """In each layer one falls as the other rises; from layer to layer both rise."""
    table = neurons(sparsity=[0.1, 0.2, 0.3, 0.7, 0.8, 0.9], in_out_sim=[0.3, 0.2, 0.1, 0.9, 0.8, 0.7])
    table = table.assign(layer=[0, 0, 0, 1, 1, 1], seed="a")
    by_layer = properties.frequency_cosine_by_layer(table)
    assert by_layer["layer"].tolist() == [0, 1] and by_layer["correlation"].tolist() == pytest.approx([-1, -1])
    assert properties.frequency_cosine_correlation(table) > 0.8


def test_gaps_are_compared_at_equal_mean_match():
    """A gap of 0.1 beside 0.02 on average, but as large as that of the other neuron with the same mean match."""
    table = neurons(mean_corr=[0.8, 0.81, 0.3, 0.31, 0.9, 0.2], is_universal=[True, False, False, False, True, False])
    gaps = np.array([0.1, 0.09, 0.01, 0.01, 0.3, 0.01])
    table = table.assign(max_corr=table["mean_corr"] + gaps / 2, min_corr=table["mean_corr"] - gaps / 2)
    assert properties.gap_at_equal_match(table).tolist() == pytest.approx([0.01])  # 0.9 is 0.09 from the nearest
    assert len(properties.gap_at_equal_match(table.assign(is_universal=False))) == 0
    assert len(properties.gap_at_equal_match(table.assign(is_universal=True))) == 0


def test_noise_floor_at_the_values_worked_out_in_the_method():
    floor = properties.noise_floor(36864, np.array([1e5, 1e6, 1e8]))
    np.testing.assert_allclose(floor, [0.0145, 0.0046, 0.0005], atol=5e-5)


def test_convergence_summary_by_hand():
    rows = [
        ("a", 10, 0, 0.9),
        ("a", 10, 1, 0.8),
        ("a", 10, 2, 0.1),
        ("a", 20, 0, 0.9),
        ("a", 20, 1, 0.3),
        ("a", 20, 2, 0.9),
    ]
    table = pd.DataFrame(rows, columns=["seed", "tokens", "neuron", "excess_corr"]).assign(
        layer=0, mean_corr=1.0, baseline=0.5
    )
    summary = properties.convergence_summary(with_universal(table, 0.5))
    assert summary["universal"].tolist() == [2, 2]
    assert summary["excess_corr"].tolist() == pytest.approx([0.6, 0.7])
    assert summary["agreement"].tolist() == pytest.approx([1 / 3, 1])
    assert properties.convergence_summary(with_universal(table, 2))["agreement"].isna().all()


def test_rotation_draws_by_hand():
    draws = pd.DataFrame({"draw": [0, 0, 1, 1], "layer": 0, "neuron": [0, 1, 0, 1], "baseline": [0.1, 0.2, 0.3, 0.2]})
    table = neurons(mean_corr=[0.75, 0.6])
    summary = properties.draw_summary(draws, table, 0.5)
    assert summary["universal"].tolist() == [1, 0]
    assert summary["baseline"].tolist() == pytest.approx([0.15, 0.25])
    assert properties.draw_spread(draws).tolist() == pytest.approx([0.2 / 2**0.5, 0])
    assert properties.draw_spread(draws[draws["draw"] == 0]).isna().all()


def test_representatives_are_the_best_of_layers_spread_over_the_depth():
    table = neurons(excess_corr=np.tile([0.1, 0.9, 0.2], 7)).assign(layer=np.repeat(range(7), 3))
    chosen = properties.representatives(table, 3)
    assert chosen["layer"].tolist() == [0, 3, 6]
    assert chosen["neuron"].tolist() == [1, 10, 19]
    assert properties.representatives(table, 99)["layer"].tolist() == list(range(7))


def test_published_shares():
    assert (100 * properties.PUBLISHED_SHARES["share"]).round(2).to_dict() == {
        "pythia": 1.26,
        "small": 4.16,
        "medium": 1.23,
    }


def test_one_layer_has_no_excess_of_its_own():
    assert (
        np.isnan(properties.own_layer_excess(pd.Series([1.0])))
        and properties.own_layer_excess(pd.Series([1.0, 0.5])) == 0.25
    )
