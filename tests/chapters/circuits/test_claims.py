"""The claims of chapter 5: values by seed against plain counts, and what they say where seeds cannot be asked."""

import json

import numpy as np
import pandas as pd
import pytest

from lib.chapters.circuits.claims import CLAIMS
from lib.display.claims import HOLDS, UNKNOWN, Evidence, claim_rows

LAYERS, WIDTH, SEEDS = 4, 50, "abcd"


def made_up(random_seed: int = 0) -> dict[str, pd.DataFrame]:
    """Prediction neurons that rise, suppression in the last layer; over all tokens the last layer's only predict."""
    random = np.random.default_rng(random_seed)
    index = pd.MultiIndex.from_product([list(SEEDS), range(LAYERS), range(WIDTH)], names=["seed", "layer", "neuron"])
    roles = index.to_frame(index=False)
    up = random.random(len(roles)) < np.array([0.02, 0.05, 0.2, 0.1])[roles["layer"]]
    down = (roles["layer"] == LAYERS - 1) & (random.random(len(roles)) < 0.6)
    roles["role_learned"] = np.select([down, up], ["suppression", "prediction"], "none")
    roles["role_calibrated"] = roles["role_learned"].replace({"suppression": "prediction"})
    roles["role_published"] = "none"
    rows = [(seed, role, random.uniform(0, 100)) for seed in SEEDS for role in ["suppression"] * 4 + ["prediction"] * 2]
    split = pd.DataFrame(rows, columns=["seed", "role", "percentile"])
    return {"roles": roles, "next_token": split.assign(effect=0.1, label_score=0.2, null_score=0.1)}


def rows_of(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    return claim_rows(Evidence(tables, "a", 0.5), CLAIMS).set_index("name")


def test_every_value_by_seed_is_what_plain_counts_give():
    tables = made_up()
    found, roles = rows_of(tables), tables["roles"]
    for seed in SEEDS:
        number = {
            role: [
                ((roles["seed"] == seed) & (roles["layer"] == layer) & (roles["role_learned"] == role)).sum()
                for layer in range(LAYERS)
            ]
            for role in ("prediction", "suppression")
        }
        up, down = number["prediction"], number["suppression"]
        percentiles = tables["next_token"].query("seed == @seed and role == 'suppression'")["percentile"]
        expected = {
            "prediction_rise": sum(up[2:]) / sum(up),
            "kurtosis_growth": up[3] + down[3] - up[2] - down[2],
            "skew_before": up[2] / (up[2] + down[2]),
            "suppression_switch": down[3] / (up[3] + down[3]),
            "suppression_fires": np.mean([value > 50 for value in percentiles]),
        }
        for name, value in expected.items():
            assert json.loads(found.loc[name, "by_seed"])[seed] == pytest.approx(value), name
    assert (found.loc[["prediction_rise", "suppression_switch", "kurtosis_growth"], "verdict"] == HOLDS).all()
    assert found.loc["suppression_switch", "here"].endswith("over all tokens 0 %")  # where all of them predict


def test_without_enough_neurons_a_row_says_what_is_needed():
    tables = made_up()
    tables["roles"]["role_learned"] = "none"
    tables["next_token"] = tables["next_token"].head(5)
    found = rows_of(tables)
    assert (found["verdict"] == UNKNOWN).all() and found["decides"].str.contains("are needed").all()
    one = made_up()
    one["roles"] = one["roles"].query("layer == 0")
    found = rows_of(one)
    assert (
        found.loc[["prediction_rise", "kurtosis_growth"], "decides"] == "the models have one layer, and two are needed"
    ).all()


def test_a_seed_without_a_sharp_neuron_is_not_asked():
    tables = made_up()
    roles = tables["roles"]
    roles.loc[(roles["seed"] == "c") & (roles["layer"] == LAYERS - 1), "role_learned"] = "none"
    row = rows_of(tables).loc["suppression_switch"]
    assert row["seeds"] == 3 and set(json.loads(row["by_seed"])) == set("abd")
