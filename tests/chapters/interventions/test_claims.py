"""The claims of chapter 06: values by seed against plain medians, ranks and correlations, and what is not asked."""

import json

import numpy as np
import pandas as pd
import pytest

from lib.chapters.interventions.claims import CLAIMS
from lib.chapters.interventions.single_neurons import FIXED_FREQUENCY, FROZEN_SCALE, TOTAL
from lib.display.claims import HOLDS, UNKNOWN, Evidence, claim_rows

SEEDS = "abcde"
GROUPS = ["entropy"] * 4 + ["control"] * 9 + ["frequency"] * 5 + ["frequency control"] * 9


def made_up(random_seed: int = 0) -> dict[str, pd.DataFrame]:
    """Tables as a run writes them, in which every claim holds in every seed."""
    random, rows = np.random.default_rng(random_seed), {name: [] for name in ("fixed", "ablated", "weights", "paths")}
    norms, sets = [], []
    for seed in SEEDS:
        for neuron, group in enumerate(GROUPS):
            chosen = group == "entropy"
            changes = {name: random.normal(chosen, 0.1) for name in ("scale_change", "entropy_change")}
            changes["reciprocal_rank_change"] = random.normal(0, 0.001 if chosen else 0.1)
            key = {"seed": seed, "layer": 5, "neuron": neuron, "group": group}
            if group in ("entropy", "control"):
                rows["fixed"] += [key | changes | {"value": value, "variant": TOTAL} for value in (1.0, 6.0)]
            for variant in (TOTAL, FROZEN_SCALE, FIXED_FREQUENCY):
                left = 1.0 if variant == TOTAL else random.uniform(0.7, 1.0) if "control" in group else 0.1
                ablated = {"entropy_change": 0.2 * left, "kl_unigram_change": -0.1 * left, "variant": variant}
                rows["ablated"].append(key | ablated | {"entropy_error": 0.01, "kl_unigram_error": 0.01})
            rows["weights"].append(
                {"seed": seed, "layer": 5, "neuron": neuron, "entropy": chosen, "null_share": random.random()}
                | {"entropy_score": 1.0, "w_out_norm": random.random(), "partner_cos": -0.8 if chosen else -0.2}
            )
        for layer, bos in ((1, 0.02), (2, 0.5), (3, 0.5)):  # the strongest pair's head does not attend to BOS
            activation = random.normal(size=60)
            pair = {"seed": seed, "layer": layer, "neuron": 7, "head_layer": 4, "head": 0, "role": "deactivation"}
            pair |= {"bos": bos, "norm": 1.0}
            noise = random.normal(size=(2, 60)) * (0.1 if layer == 2 else 9.0)
            for block, (one, lower, higher) in enumerate(zip(activation, *noise, strict=True)):
                measured = {"activation": one, "bos_change": -one + lower, "norm_change": one + higher}
                rows["paths"].append(pair | measured | {"block": block // 6})
        norms.append(pd.DataFrame({"seed": seed, "layer": 0, "head": range(8), "ratio": random.uniform(3, 5, 8)}))
        for layer in range(3):
            one = {"seed": seed, "kind": "mean", "layer": layer, "neurons": 5, "tokens": 99, "blocks": 16, "power": 1.0}
            one |= {"kl": 0.1, "residual_power": 1.0, "loss_change_error": 0.001}
            sets += [one | {"group": "random", "draw": d, "loss_change": random.normal(0, 0.01)} for d in range(5)]
            loss = random.normal(0.5 if layer == 0 else 0.1, 0.01)
            sets.append(one | {"group": "universal", "draw": 0, "loss_change": loss})
            if layer == 0:
                sets += [
                    one | {"group": family, "draw": 0, "loss_change": share * loss, "neurons": 2}
                    for family, share in (("position", 0.9), ("unigram", 0.1))
                ]
    tables = {name: pd.DataFrame(found) for name, found in rows.items()}
    norms = pd.concat(norms).assign(ratio_without_bias=6.0)
    names = {
        "fixed": "fixed_activation",
        "ablated": "mean_ablation",
        "weights": "causal_weights",
        "paths": "query_paths",
    }
    tables = {names[name]: table for name, table in tables.items()}
    return tables | {"value_norms": norms, "ablations": pd.DataFrame(sets)}


def rows_of(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    return claim_rows(Evidence(tables, "a", 0.5), CLAIMS).set_index("name")


def delta(ours: list[float], others: list[float]) -> float:
    return float(np.mean([np.sign(one - other) for one in ours for other in others]))


def test_every_value_by_seed_is_what_a_plain_expression_gives():
    tables = made_up()
    found = rows_of(tables)
    assert (found["verdict"] == HOLDS).all(), found.loc[found["verdict"] != HOLDS, "here"]
    assert found.index[found["by_construction"] != ""].tolist() == ["frequency_direction"]
    for seed in SEEDS:
        of = {name: table[table["seed"] == seed].to_dict("records") for name, table in tables.items()}
        top = [row for row in of["fixed_activation"] if row["value"] == 6]
        medians = {
            (name, group): np.median([size(row[f"{name}_change"]) for row in top if row["group"] == group])
            for name, size in (("scale", float), ("entropy", float), ("reciprocal_rank", abs))
            for group in ("entropy", "control")
        }
        shares = {}
        for group, outcome, variant in (
            *((group, "entropy", FROZEN_SCALE) for group in ("entropy", "control")),
            *((group, "kl_unigram", FIXED_FREQUENCY) for group in ("frequency", "frequency control")),
        ):
            change = {(row["neuron"], row["variant"]): row[f"{outcome}_change"] for row in of["mean_ablation"]}
            own = [row["neuron"] for row in of["mean_ablation"] if row["group"] == group and row["variant"] == TOTAL]
            shares[group] = [1 - change[neuron, variant] / change[neuron, TOTAL] for neuron in own]
        second = [row for row in of["query_paths"] if row["layer"] == 2]
        below, excess = [], []
        for layer in range(3):
            own = [row for row in of["ablations"] if row["layer"] == layer]
            drawn = [row["loss_change"] for row in own if row["group"] == "random"]
            (loss,) = [row["loss_change"] for row in own if row["group"] == "universal"]
            below += [other < loss for other in drawn]
            excess.append(loss - np.mean(drawn))
        expected = {
            "entropy_scale": medians["scale", "entropy"] - medians["scale", "control"],
            "entropy_entropy": medians["entropy", "entropy"] - medians["entropy", "control"],
            "entropy_order": medians["reciprocal_rank", "entropy"] - medians["reciprocal_rank", "control"],
            "antipodal": -0.8,
            "entropy_through_scale": delta(shares["entropy"], shares["control"]),
            "frequency_direction": delta(shares["frequency"], shares["frequency control"]),
            "bos_resting": np.median([row["ratio"] for row in of["value_norms"]]),
            "ablation_universal": np.mean(below),
            "ablation_first_layer": excess[0] - max(excess[1:]),
        }
        for name, column in (("deactivation_bos", "bos_change"), ("deactivation_norm", "norm_change")):
            pair = np.array([(row["activation"], row[column]) for row in second])
            expected[name] = np.corrcoef(pair.T)[0, 1]
        assert set(expected) == set(found.index)
        for name, value in expected.items():
            assert json.loads(found.loc[name, "by_seed"])[seed] == pytest.approx(value), (name, seed)
    assert "6.00 times without the value bias b_V" in found.loc["bos_resting", "here"]
    assert "position neurons alone make 90 % (5 seeds)" in found.loc["ablation_first_layer", "here"]
    assert found.loc["antipodal", "control"] == "−0.20"


def test_a_median_candidate_like_its_controls_does_not_hold_though_one_is_far_beyond():
    """One extreme candidate of a seed is not what the claim is about."""
    tables = made_up()
    held = tables["fixed_activation"]
    own = held["group"] == "entropy"
    held.loc[own, "entropy_change"] = np.random.default_rng(5).normal(0, 0.1, own.sum())
    held.loc[own & (held["neuron"] == 0), "entropy_change"] = 9.0
    row = rows_of(tables).loc["entropy_entropy"]
    assert row["verdict"] != HOLDS and abs(row["value"]) < 0.2


def test_seeds_without_candidates_or_universal_neurons_are_not_asked():
    tables = made_up()
    tables["fixed_activation"] = tables["fixed_activation"].query("seed in ['b', 'c'] or group == 'control'")
    tables["mean_ablation"] = tables["mean_ablation"].assign(entropy_error=1.0)  # nobody's effect is clear
    tables["query_paths"] = tables["query_paths"].assign(bos=0.01)
    tables["ablations"] = tables["ablations"].assign(neurons=2)
    tables["causal_weights"] = tables["causal_weights"].assign(entropy=False)
    found = rows_of(tables)
    for name, said in {
        "entropy_scale": "2 seeds can be asked, and 3 are needed: a seed in which no neuron of at least median norm",
        "entropy_through_scale": "a candidate and a control whose effect is beyond two standard errors",
        "deactivation_bos": "give BOS less than 10 % of their attention",
        "ablation_universal": "fewer than 10 universal neurons beside random sets",
        "ablation_first_layer": "fewer than 10 universal neurons beside random sets",
        "antipodal": "a seed in which no neuron of at least median norm",
    }.items():
        assert found.loc[name, "verdict"] == UNKNOWN and said in found.loc[name, "decides"], found.loc[name, "decides"]
    assert found.loc["bos_resting", "verdict"] == HOLDS
