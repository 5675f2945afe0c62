"""What chapter 3 measures for the ledger, with and without each seed, against plain NumPy on the same numbers."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lib.chapters.universality import claims
from lib.chapters.universality.measures import neuron_measures
from lib.chapters.universality.properties import PUBLISHED_MEDIANS
from lib.display.claims import Evidence, claim_rows, statements
from lib.run import with_universal

SEEDS, LAYERS, WIDTH, THRESHOLD = "abcde", 3, 40, 0.5
TOTAL = LAYERS * WIDTH
NULLS = "excess_activation_null"


@pytest.fixture(scope="module")
def arrays() -> dict:
    """Matches and baselines by pair; the first fifteen neurons of a layer match well, and best with seed e.

    Baselines differ from neuron to neuron, so that some with the same mean match are not universal.
    """
    random, made = np.random.default_rng(0), {}
    level = random.uniform(0, 0.4, TOTAL)
    strong = np.tile(np.arange(WIDTH) < 15, LAYERS)
    for seed in SEEDS:
        for model in SEEDS.replace(seed, ""):
            lift = 0.3 * strong + 0.15 * ("e" in (seed, model))
            made[seed, model] = random.uniform(0.3, 0.6, TOTAL) + lift, level + random.uniform(0, 0.1, TOTAL)
    return made


def evidence_of(arrays: dict, seeds: str = SEEDS) -> Evidence:
    random = np.random.default_rng(1)
    index = pd.DataFrame({"layer": np.repeat(range(LAYERS), WIDTH), "neuron": np.tile(range(WIDTH), LAYERS)})
    neurons, matches = [], []
    for seed in SEEDS:
        values = {name: random.normal(size=TOTAL) for name in PUBLISHED_MEDIANS.index}
        own = index.assign(seed=seed, dead=False, **values)
        compared = [arrays[seed, model] for model in seeds if model != seed]
        corr, baseline = (np.stack(part) for part in zip(*compared, strict=True))
        if seed in seeds:
            neurons.append(own.assign(**neuron_measures(corr, baseline)))
        for model in SEEDS.replace(seed, ""):
            layer = random.integers(0, LAYERS, TOTAL)
            pair = index.assign(seed=seed, model=model, match_layer=layer, match_neuron=0)
            if {seed, model} <= set(seeds):
                corr, baseline = arrays[seed, model]
                matches.append(pair.assign(corr=corr, baseline=baseline))
    tables = {"neurons_all_seeds": with_universal(pd.concat(neurons, ignore_index=True), THRESHOLD)}
    return Evidence(tables | {"matches_all_seeds": pd.concat(matches, ignore_index=True)}, "a", THRESHOLD)


def plain(evidence: Evidence, arrays: dict, seeds: str) -> dict[str, dict[str, float]]:
    """Every quantity of every seed of `seeds`, compared with the others of `seeds` only."""
    layer, made = np.repeat(range(LAYERS), WIDTH), {}
    for seed in seeds:
        compared = [model for model in seeds if model != seed]
        corr, baseline = (np.stack([arrays[seed, model][part] for model in compared]) for part in (0, 1))
        mean, level, gap = corr.mean(0), baseline.mean(0), corr.max(0) - corr.min(0)
        universal = (corr - baseline).mean(0) > THRESHOLD
        own = evidence.tables["neurons_all_seeds"].query("seed == @seed").reset_index(drop=True)
        pairs = evidence.tables["matches_all_seeds"].query("seed == @seed and model in @compared")
        found = {
            "universal_share": universal.mean(),
            "worst_share": (corr.min(0) - baseline.max(0) > THRESHOLD).mean(),
            "adjusted_share": ((mean - level) / (1 - level) > THRESHOLD).mean(),
            "excess": (corr - baseline).mean(),
            "layers": min(universal[layer == one].mean() for one in range(LAYERS)),
            "depth": np.mean([(pairs.query("layer == @one")["match_layer"] == one).mean() for one in range(LAYERS)])
            - 1 / 3,
            "frequency_cosine": np.mean(
                [
                    np.corrcoef(own["sparsity"][layer == one], own["in_out_sim"][layer == one])[0, 1]
                    for one in range(LAYERS)
                ]
            ),
        }
        apart = []
        for neuron in np.flatnonzero(universal):
            away = np.where(universal, np.inf, np.abs(mean - mean[neuron]))
            if away.min() <= 0.05:
                apart.append(gap[neuron] - gap[away.argmin()])
        found["gap"] = np.mean(apart) if len(apart) >= 10 else np.nan
        for name in PUBLISHED_MEDIANS.index:
            values = own[name].to_numpy()
            ranks = np.concatenate([stats.rankdata(values[layer == one]) for one in range(LAYERS)])
            found[f"property_{name}"] = np.median((100 * (ranks - 0.5) / WIDTH)[universal])
        made[seed] = found
    return made


@pytest.mark.parametrize("name", claims.MEASURES)
def test_every_quantity_with_and_without_each_seed(arrays, name):
    evidence = evidence_of(arrays)
    effects = claims.effects(evidence, name)
    wanted = {seed: found[name] for seed, found in plain(evidence, arrays, SEEDS).items()}
    assert effects.values.to_dict() == pytest.approx(wanted) and effects.values.notna().all()
    for seed in SEEDS:
        rest = plain(evidence, arrays, SEEDS.replace(seed, ""))
        assert effects.left_out[seed] == pytest.approx(np.nanmean([found[name] for found in rest.values()])), seed
    found, left = claims.found(evidence, name), effects.left_out.to_numpy()
    error = np.sqrt(4 / 5 * np.square(left - left.mean()).sum())
    assert found.high - found.value == pytest.approx(stats.t.ppf(0.975, 4) * error)


def test_leaving_a_seed_out_also_ends_the_comparisons_with_it(arrays):
    """Seed e lifts every match with it: without it the others' shares fall, which their own values do not tell."""
    effects = claims.effects(evidence_of(arrays), "universal_share")
    others = effects.values.drop("e").mean()
    assert effects.left_out["e"] < others - 0.02
    assert effects.left_out.drop("e").min() > effects.left_out["e"]


def test_every_claim_has_a_statement_and_a_row(arrays):
    rows = claim_rows(evidence_of(arrays), claims.CLAIMS).set_index("name")
    assert set(rows.index) == {*claims.MEASURES, NULLS} <= set(statements())
    rows = rows.drop(index=NULLS)  # from a table of its own
    assert (rows["seeds"] == 5).all() and rows["here"].str.contains("95 % over 5 seeds|in each of 5 seeds").all()
    assert rows.loc["excess", "p_value"] < 0.05 and rows.loc["excess", "agree"] == 5
    assert "percentile" in rows.loc["property_skew", "here"] and "pooled" in rows.loc["frequency_cosine", "here"]


def test_a_seed_with_few_universal_neurons_cannot_be_asked(arrays):
    evidence = evidence_of(arrays)
    everyone = evidence.tables["neurons_all_seeds"]
    threshold = everyone.groupby("seed")["excess_corr"].agg(lambda own: own.nlargest(10).min()).median()
    strict = Evidence(evidence.tables | {"neurons_all_seeds": with_universal(everyone, threshold)}, "a", threshold)
    number = strict.tables["neurons_all_seeds"].groupby("seed")["is_universal"].sum()
    assert 0 < (number < 10).sum() < 5
    effects = claims.effects(strict, "property_skew")
    assert (effects.values.isna() == (number < 10)).all()
    few = ", ".join(f"{seed} has {own}" for seed, own in number[number < 10].items())
    assert effects.missing == f"a seed needs 10 universal neurons, and {few}"
    none = Evidence(
        evidence.tables | {"neurons_all_seeds": with_universal(evidence.own("neurons_all_seeds"), 2)}, "a", 2
    )
    rows = claim_rows(none, claims.CLAIMS).set_index("name")
    assert rows.loc["property_skew", "here"] == "a seed needs 10 universal neurons, and a has 0"
    assert (
        rows.loc["universal_share", "here"] == "0 % (1 seed); 4 compared seeds"
        and rows.loc["gap", "verdict"] == "cannot tell"
    )


def test_gated_neurons_have_no_cosine(arrays):
    evidence = evidence_of(arrays)
    gated = evidence.tables["neurons_all_seeds"].assign(in_out_sim=np.nan)
    gated = Evidence(evidence.tables | {"neurons_all_seeds": gated}, "a", THRESHOLD)
    for name in ("property_in_out_sim", "frequency_cosine"):
        assert claims.effects(gated, name).missing == "not defined for gated neurons"


def test_three_seeds_leave_one_compared_and_two_leave_none(arrays):
    for seeds in ("abc", "ab"):
        evidence = evidence_of(arrays, seeds)
        rows = claim_rows(evidence, claims.CLAIMS).set_index("name")
        assert (rows["seeds"].drop(["gap", NULLS]) == len(seeds)).all()
        assert np.isfinite(rows.loc["universal_share", ["low", "high"]].astype(float)).all()
    assert claims.effects(evidence, "gap").missing == "needs two compared seeds"
    assert claims.effects(evidence, "universal_share").left_out is None
