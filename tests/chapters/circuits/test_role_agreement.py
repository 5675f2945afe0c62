"""Universality of roles and next-token splits, against statsmodels, scipy and populations with a known answer."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from scipy.sparse import csc_array
from statsmodels.stats.contingency_tables import StratifiedTable

from lib.chapters.circuits import next_token, role_agreement
from lib.chapters.universality.properties import most_universal
from lib.kernels.grouped import SQUARE, SUM, GroupedMoments, Places, Table
from lib.run import with_universal

LAYERS, WIDTH = 3, 60


@pytest.fixture(scope="module")
def population():
    """Neurons of seeds a and b; b's neuron i has the role, sign and class of a's neuron i, layer by layer."""
    generator = np.random.default_rng(0)
    one = pd.DataFrame({"layer": np.repeat(range(LAYERS), WIDTH), "neuron": np.tile(range(WIDTH), LAYERS)})
    shares = [
        [0.8, 0.1, 0.05, 0.05],
        [0.1, 0.1, 0.4, 0.4],
        [0.1, 0.1, 0.2, 0.6],
    ]  # most prediction neurons lie in layer 0
    one["role_learned"] = np.concatenate(
        [generator.choice(["prediction", "suppression", "partition", "none"], WIDTH, p=share) for share in shares]
    )
    one["skew_sign"] = generator.choice([-1.0, 1.0], len(one))
    one["label"] = generator.choice(["digits", "capitals", None], len(one), p=[0.3, 0.3, 0.4])
    both = pd.concat([one.assign(seed=seed) for seed in "ab"], ignore_index=True)
    both["excess_corr"] = generator.uniform(0, 0.6, len(both)) + 0.1 * both["layer"]
    return with_universal(both, 0.5)


def pairs(population, order) -> pd.DataFrame:
    """Matches in which neuron i of either seed has the neuron order[i] of the same layer of the other."""
    rows = population[["seed", "layer", "neuron"]].assign(corr=0.5)
    rows["model"] = rows["seed"].map({"a": "b", "b": "a"})
    rows["match_layer"], rows["match_neuron"] = rows["layer"], order[rows["neuron"]]
    return rows


def test_agreement_is_complete_for_equal_matches_and_at_chance_for_permuted_ones(population):
    right = role_agreement.match_agreement(population, pairs(population, np.arange(WIDTH)), 0, draws=50).set_index(
        ["group", "property"]
    )
    assert (right["agreement"] == 1).all()
    assert (right["p_value"][right["chance_high"] < 1] < 0.05).all()
    share = population.loc[population["role_learned"] == "prediction", "layer"].value_counts(normalize=True)
    in_layer = (population["role_learned"] == "prediction").groupby(population["layer"]).mean()
    assert right.loc[("prediction", "role"), "chance"] == pytest.approx((share * in_layer).sum(), abs=0.03)
    wrong = role_agreement.match_agreement(
        population, pairs(population, np.random.default_rng(1).permutation(WIDTH)), 0, draws=50
    )
    assert (wrong["p_value"] > 0.01).all() and (wrong["agreement"] - wrong["chance"]).abs().median() < 0.15


def test_agreement_by_hand_without_matches_of_correlation_zero(population):
    two = population[(population["layer"] == 0) & (population["neuron"] < 3)].copy()
    two["role_learned"] = ["prediction", "prediction", "none", "prediction", "suppression", "none"]
    two["label"] = ["digits", None, None, "digits", "digits", None]
    matches = pairs(two, np.arange(3))
    found = role_agreement.match_agreement(two, matches, 0, draws=5).set_index(["group", "property"])
    assert found.loc[("prediction", "role"), ["pairs", "agreement"]].tolist() == [3, pytest.approx(2 / 3)]
    assert found.loc[("prediction", "token class"), ["pairs", "agreement"]].tolist() == [2, 1]
    assert found.loc[("partition", "role"), "pairs"] == 0 and np.isnan(found.loc[("partition", "role"), "p_value"])
    matches.loc[matches.index[0], "corr"] = 0.0
    found = role_agreement.match_agreement(two, matches, 0, draws=5).set_index(["group", "property"])
    assert found.loc[("prediction", "role"), "pairs"] == 2


def test_ranks_of_matches_correlate_within_layers_only(population):
    generator = np.random.default_rng(4)
    values = population.assign(
        copied=population["neuron"].map(dict(enumerate(generator.normal(size=WIDTH)))) * 3.0 ** population["layer"],
        depth=population["layer"] + generator.uniform(0, 0.5, len(population)),
        flag=population["neuron"] == 7,
        missing=np.where(population["seed"] == "a", np.nan, 1.0),
    )
    columns = ["copied", "depth", "flag", "missing"]
    found = role_agreement.property_agreement(
        values, pairs(population, np.arange(WIDTH)), columns, 0, draws=50
    ).set_index(["group", "property"])
    assert found.loc[("all", "copied"), "correlation"] == pytest.approx(1) == found.loc[("all", "flag"), "correlation"]
    assert found.loc[("all", "copied"), "p_value"] == pytest.approx(1 / 51)
    assert abs(found.loc[("all", "depth"), "correlation"]) < 0.2 and found.loc[("all", "depth"), "p_value"] > 0.02
    assert found.loc[("all", "missing"), "pairs"] == 0 and np.isnan(found.loc[("all", "missing"), "correlation"])
    assert found.loc[("most universal", "copied"), "pairs"] == 2 * LAYERS * WIDTH * 0.05


def test_correlation_of_ranks_equals_scipys_where_values_are_missing(population):
    generator = np.random.default_rng(5)
    values = population.assign(
        partly=np.where(generator.random(len(population)) < 0.3, np.nan, generator.normal(size=len(population))),
        constant=1.0,
    )
    order = generator.integers(0, WIDTH, WIDTH)  # some are the match of several
    matches = pairs(population, order)
    found = role_agreement.property_agreement(values, matches, ["partly", "constant"], 0, draws=3)
    ranks = values.groupby(["seed", "layer"])["partly"].rank(pct=True)
    place = pd.Series(ranks.to_numpy(), pd.MultiIndex.from_frame(values[["seed", "layer", "neuron"]]))
    other = place.loc[pd.MultiIndex.from_frame(matches[["model", "match_layer", "match_neuron"]])].to_numpy()
    for group, chosen in (("all", np.ones(len(ranks), bool)), ("most universal", most_universal(values).to_numpy())):
        both = ranks.notna().to_numpy() & np.isfinite(other) & chosen
        row = found.set_index(["group", "property"]).loc[(group, "partly")]
        assert row["pairs"] == both.sum() > 3
        assert row["correlation"] == pytest.approx(stats.pearsonr(ranks[both], other[both])[0], abs=1e-11)
    assert found.loc[found["property"] == "constant", ["correlation", "chance", "p_value"]].isna().all(axis=None)


def test_p_value_of_universal_shares_is_the_largest_of_statsmodels_over_seeds(population):
    found = role_agreement.universal_shares(population, "role_learned").set_index("role")
    top = most_universal(population)
    assert top.groupby(population["seed"]).sum().tolist() == [LAYERS * WIDTH * 0.05] * 2
    for role in ("prediction", "partition"):
        own = population["role_learned"] == role
        p_values, signs = [], set()
        for _, seed in population.groupby("seed"):
            tables = [
                [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
                for _, index in seed.groupby("layer").groups.items()
                for a, b in [(own.loc[index], top.loc[index])]
                if b.any()  # statsmodels cannot take a stratum in which nothing varies
            ]
            stratified = StratifiedTable(np.array(tables, dtype=float).transpose(1, 2, 0))
            p_values.append(stratified.test_null_odds().pvalue)
            signs.add(bool(stratified.oddsratio_pooled > 1))
        assert found.loc[role, "p_value"] == pytest.approx(max(p_values) if len(signs) == 1 else 1, rel=1e-6)
        assert found.loc[role, "universal"] == (population.loc[own, "excess_corr"] > 0.5).sum()
        assert found.loc[role, "top_share"] == pytest.approx(top[own].mean())
        strata = population.groupby(["seed", "layer"])["is_universal"].transform("mean")
        assert found.loc[role, "expected_universal"] == pytest.approx(strata[own].mean())
    nobody = role_agreement.universal_shares(population.assign(role_learned="none"), "role_learned")
    assert nobody["neurons"].tolist() == [0, 0, 0] and nobody[["share", "expected", "p_value"]].isna().all(axis=None)


# ---------------------------------------------------------------- the next token


@pytest.fixture(scope="module")
def split():
    """Activations (tokens, neurons), the classes of the next tokens, and the sums of grouped moments."""
    random, generator = np.random.default_rng(3), torch.Generator().manual_seed(1)
    following = torch.randint(0, 50, (12, 20), generator=generator)
    following[:, -1] = -1
    counted = torch.rand(12, 20, generator=generator) > 0.2
    post = (
        torch.randn(12, 20, 48, generator=generator) * 0.3
        + 2
        + following[..., None] / 50 * torch.randn(48, generator=generator)
    )
    member = random.random((2, 50)) < 0.4
    member[1] = False
    member[1, following[0, 5]] = True
    tables = {
        "token_labels": Table("token", csc_array(np.ones((1, 50), dtype=bool)), (SUM, SQUARE)),
        next_token.TABLE: Table(next_token.GROUPING, csc_array(member[::-1]), (SUM, SQUARE)),
    }
    places = Places({"token": following.clamp(min=0), next_token.GROUPING: following}, tables)
    moments = GroupedMoments(places.layout, torch.stack([torch.full((48,), 2.0), torch.full((48,), 3.0)]))
    for blocks in torch.arange(12).split(4):
        moments.update(post[blocks].flatten(0, 1), places.at(blocks, counted[blocks].flatten()))
    kept = counted & (following >= 0)
    return post[kept].double().numpy(), member[:, following[kept]], next_token.class_sums(moments.compact(), [1, 0, -1])


def test_sums_and_differences_equal_numpy_and_scipy(split):
    values, inside, sums = split
    assert len(values) == int(sums.total_count)
    assert sums.count[2] == 0 and (sums.sums[2] == 0).all() and (sums.squares[2] == 0).all()  # a class of no token
    found = next_token.class_differences(sums)
    for row in range(2):
        yes, no = values[inside[row]], values[~inside[row]]
        np.testing.assert_allclose(sums.squares[row], (yes**2).sum(0), rtol=1e-5)
        np.testing.assert_allclose(found["mean_in"][row], yes.mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found["std_out"][row], no.std(0, ddof=1), rtol=1e-4)
        pooled = np.sqrt(
            (yes.var(0, ddof=1) * (len(yes) - 1) + no.var(0, ddof=1) * (len(no) - 1)) / (len(yes) + len(no) - 2)
        )
        np.testing.assert_allclose(found["effect"][row], (yes.mean(0) - no.mean(0)) / pooled, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(
            found["p_value"][row], stats.ttest_ind(yes, no, equal_var=False).pvalue, rtol=1e-2, atol=1e-6
        )


def test_neuron_is_ranked_among_the_others_of_its_layer(split):
    sums = {1: split[2]}
    effects = next_token.class_differences(sums[1])["effect"][0]
    chosen = pd.DataFrame(
        {"layer": 1, "neuron": [int(effects.argmax()), int(effects.argmin())], "class_row": 0}, index=[7, 9]
    )
    table = next_token.next_token_table(chosen, sums)
    assert table["percentile"].tolist() == [100, 0] and table.index.tolist() == [7, 9] and "class_row" not in table
    assert table["effect"].tolist() == [effects.max(), effects.min()]
    assert next_token.next_token_table(chosen.head(0), {}).shape[0] == 0


def test_class_without_tokens_and_constant_neuron_have_no_effect():
    one, many = torch.tensor([0.0], dtype=torch.float64), torch.tensor([4.0], dtype=torch.float64)
    nothing = next_token.ClassSums(one, one[:, None], one[:, None], torch.tensor(8.0).double(), many, many)
    assert all(
        np.isnan(nothing_said)
        for nothing_said in (
            next_token.class_differences(nothing)[name].item() for name in ("mean_in", "effect", "p_value")
        )
    )
    constant = next_token.ClassSums(many, many[:, None], many[:, None], torch.tensor(8.0).double(), 2 * many, 2 * many)
    found = next_token.class_differences(constant)
    assert found["mean_in"].item() == found["mean_out"].item() == 1 and np.isnan(found["effect"].item())
