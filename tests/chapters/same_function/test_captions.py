"""Figures, captions and findings of the ladder and the transplants, with and without universal neurons."""

import numpy as np
import pandas as pd
import pytest

from lib.chapters.same_function import captions, figures, in_short
from lib.run import with_universal
from tests.report.made_tables import make_tables


@pytest.fixture(scope="module", params=[True, False], ids=["some universal", "none universal"])
def tables(request) -> dict[str, pd.DataFrame]:
    made = make_tables(2, universal=request.param)
    neurons = with_universal(made["neurons_all_seeds"], 0.5).query("seed == 'a'")
    neurons = neurons.assign(family=np.where(neurons["neuron"] % 2, "unigram", None))
    return made | {"neurons": neurons}


def test_the_ladder_s_caption_has_the_means_and_the_share_of_twins(tables):
    ladder = tables["ladder"]
    own = ladder[ladder["seed"] == "a"]
    figures.rungs(ladder, "a")
    caption = captions.rungs(ladder, "a")
    for name in ("r2_one", "r2_all", "null_r2_all"):
        assert f"{100 * own[name].mean():.0f} %" in caption.text
    figures.classes(ladder, tables["neurons"], {"unigram": "token"}, "a")
    caption = captions.classes(ladder, tables["neurons"], "a")
    assert f"{100 * (own['kind'] == 'twin').mean():.0f} % twin" in caption.text  # a fifth of the made neurons
    universal = own.merge(tables["neurons"].query("is_universal")[["layer", "neuron"]])
    for name in ("twin", "split", "spread", "part", "own"):
        assert f"{name} **{(universal['kind'] == name).sum()}**" in caption.text or universal.empty
    best = own[["null_r2_one", "null_r2_few_8", "null_r2_all"]].max(axis=1)
    assert f"{100 * ((best >= 0.1) & (best < 0.5)).mean():.0f} % part;" in caption.text or best.max() >= 0.5


def test_transplants_without_a_share_say_so(tables):
    table = tables["transplants"]
    known = table.query("seed == 'a' and set == 'universal' and partner == 'match'")["recovered"].iloc[0]
    figures.transplants(table, "a")
    caption = captions.transplants(table, "a")
    if np.isfinite(known):
        every = table.query("set == 'universal' and partner == 'match'")["recovered"]
        assert f"{100 * every.mean():.0f} %" in caption.title and f"{100 * known:.0f} %" in caption.text
        second = table.query("set == 'universal' and partner == 'second'")["recovered"]
        assert f"the second-best {100 * second.mean():.0f} %" in caption.text and "paired by block" in caption.text
    else:
        assert "Not given" in caption.text and "universal" in caption.text
    nothing = table.assign(recovered=np.nan)
    figures.transplants(nothing, "a")
    assert captions.transplants(nothing, "a").text.startswith("**Not given:**")


def test_findings_have_no_unknown_number(tables):
    found = in_short.same_function(tables["ladder"], tables["transplants"], tables["residual_map"], "a").data
    assert not any(word in found for word in ("nan", "None", "undefined"))
    assert "Left out" in in_short.left_out("no reason").data


def test_layers_are_counted_by_the_layer_that_predicts_best():
    pairs = [(layer, other) for layer in range(3) for other in range(3)]
    table = pd.DataFrame(pairs, columns=["layer", "other_layer"]).assign(seed="a", model="b", full=True, one=0.1)
    table = table.assign(all=(table["layer"] == table["other_layer"]) * 0.2, cka=table["other_layer"] / 3)
    table = table.assign(null_all=table["other_layer"] / 9, null_cka=(table["layer"] == table["other_layer"]) / 2)
    figures.layers(table, "a")
    caption = captions.layers(table, "a")
    assert "predicts best for **3 of 3** layers, and has the largest CKA for 1." in caption.text
    assert "In the rotated basis these are **1** and 3." in caption.text and "rotated, 1" in caption.title
    assert "by 0.200 of R²" in caption.text
    assert "layers of seed b" in caption.text
