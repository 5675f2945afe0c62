"""What chapter 4's claims measure, each against a plain loop over the seeds' rows."""

import numpy as np
import pandas as pd
import pytest

from lib.chapters.families.claims import CLAIMS, share_above
from lib.display.claims import FEWEST, Evidence, claim_rows, statements

LAYERS, WIDTH, SEEDS = 6, 60, "abc"


def tables(universal: int = 20) -> dict[str, pd.DataFrame]:
    """Random families and excess of three seeds; `universal` neurons a layer, none in seed c."""
    random = np.random.default_rng(0)
    index = pd.MultiIndex.from_product([list(SEEDS), range(LAYERS), range(WIDTH)], names=["seed", "layer", "neuron"])
    index = index.to_frame(index=False)
    is_universal = (index["neuron"] < universal) & (index["seed"] != "c")
    neurons = index.assign(excess_corr=np.where(is_universal, 0.6, 0.1), is_universal=is_universal)
    families = index.assign(
        family=random.choice(["unigram", "alphabet", "previous_token", "position", "unexplained"], len(index)),
        label=[f"first letter {chr(97 + n)}" for n in random.integers(0, 15, len(index))],
        score=random.choice([0.01, 0.12, 0.2, 0.7], len(index)),
        chance=np.where(index["layer"] == 0, 0.15, 0.05),
    )
    few = (families["seed"] == "b") & (families["family"] == "position")
    families.loc[few & (few.cumsum() > FEWEST - 1), "family"] = "unexplained"
    return {"families": families, "neurons_all_seeds": neurons}


MEASURES = {claim.name: claim.measure for claim in CLAIMS}


def test_every_claim_of_the_chapter_has_a_statement_and_a_row():
    assert {"unexplained", "letters", "syntax", "depth_position"} <= set(MEASURES) <= set(statements())
    rows = claim_rows(Evidence(tables(), "a", 0.5), CLAIMS).set_index("name")
    assert rows.loc["letters", "seeds"] == 3 and rows.loc["syntax", "here"].startswith("no syntax neuron in all seeds")
    assert not rows[["here", "verdict", "claim"]].eq("").any(axis=None)


def test_shares_of_universal_neurons_by_seed():
    made = tables()
    for name, passes in (("unexplained", lambda score: score < 0.05), ("well_explained", lambda score: score >= 0.5)):
        effects = MEASURES[name](Evidence(made, "a", 0.5))
        for seed in "ab":
            own = made["families"][(made["families"]["seed"] == seed) & (made["families"]["neuron"] < 20)]
            assert effects.values[seed] == pytest.approx(np.mean([passes(score) for score in own["score"]]))
        assert np.isnan(effects.values["c"]) and "240 universal neurons" in effects.details
    effects = MEASURES["unexplained"](Evidence(tables(universal=1), "a", 0.5))  # 6 a seed
    assert effects.values.isna().all() and "a seed needs 10" in effects.missing


def test_depth_counts_a_layer_that_the_bound_cuts_in_part():
    assert share_above(pd.Series([0, 0, 1, 2]), 6, 1 / 4) == pytest.approx((1 + 1 + 0.5) / 4)
    assert share_above(pd.Series([0, 2, 3, 11]), 12, 1 / 4) == pytest.approx(2 / 4)
    made = tables()
    for name, family, full, half in (
        ("depth_unigram", "unigram", [0], [1]),
        ("depth_previous_token", "previous_token", [0, 1, 2], []),
        ("depth_position", "position", [0], [1]),
    ):
        effects = MEASURES[name](Evidence(made, "a", 0.5))
        strict = {}
        for seed in SEEDS:
            own = made["families"].query("seed == @seed and family == @family")
            weight = own["layer"].isin(full) + own["layer"].isin(half) / 2
            if len(own) < FEWEST:
                assert (seed, family) == ("b", "position") and np.isnan(effects.values[seed])
                continue
            assert effects.values[seed] == pytest.approx(weight.mean())
            strict[seed] = weight[own["score"] > 0.15].mean()
        assert f"{100 * np.mean(list(strict.values())):.0f} % with one chance level" in effects.details


def test_letters_and_the_fullest_layer():
    made = tables()
    families = made["families"]
    letters = MEASURES["letters"](Evidence(made, "a", 0.5)).values
    for seed in SEEDS:
        own = families[(families["seed"] == seed) & (families["family"] == "alphabet")]
        assert letters[seed] == len(set(own["label"]))
    families.loc[families["family"] == "alphabet", "family"] = "syntax"
    families.loc[(families["seed"] == "a") & (families["family"] == "syntax"), "layer"] = 3
    effects = MEASURES["syntax"](Evidence(made, "a", 0.5))
    assert effects.values["a"] == 1
    own = families[(families["seed"] == "b") & (families["family"] == "syntax")]["layer"].tolist()
    assert effects.values["b"] == pytest.approx(max(own.count(layer) for layer in range(LAYERS)) / len(own))
    assert (MEASURES["letters"](Evidence(made, "a", 0.5)).values == 0).all()
