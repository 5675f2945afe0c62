"""The chapter's tables of a run: a permuted copy is all twins and is recovered in full; another seed is at its null."""

import numpy as np
import pytest
from conftest import permuted, save_seed, small_model

from lib.base.params import write_params
from lib.chapters.same_function import summary, tables
from lib.chapters.universality.tables import tabulate
from lib.collect.passes import collect


@pytest.fixture
def run(make_run, tmp_path, without_grouped_moments):
    """b is a with permuted neurons, c is another seed; all are untrained."""
    models = {"a": small_model(0), "b": permuted(small_model(0), 1)[0], "c": small_model(1)}
    run = make_run({name: save_seed(one, tmp_path / name) for name, one in models.items()})
    collect(run)
    tabulate(run)
    write_params(run.params, run.folder / "params.yaml")
    return run


def test_a_permuted_copy_is_twins_and_another_seed_is_at_its_null(run):
    pairs = [(one.seed, one.other, one.full) for one in tables.pairs(run)]
    assert pairs == [("a", "b", True), ("b", "c", False), ("c", "a", False)]
    ladder, moved = tables.neuron_table(run), tables.transplant_table(run)
    own = ladder[ladder["seed"] == "a"]
    assert len(own) == 96 and (own["kind"] == "twin").mean() >= 0.99
    order = np.stack([one.numpy() for one in permuted(small_model(0), 1)[1]])
    assert (order[own["match_layer"], own["match_neuron"]] == own["neuron"]).mean() >= 0.99
    for name in ("one", "few_8", "all"):  # untrained seeds have nothing in common but their text
        assert abs(summary.beyond_null(ladder[ladder["seed"] != "a"], name)).max() < 0.05, name
    layers = tables.layer_table(run)
    same = layers.query("seed == 'a' and layer == other_layer")
    assert np.allclose(same["cka"], 1, atol=1e-9) and len(layers) == 3 * 4
    changes = moved.query("seed == 'a'").pivot(index="set", columns="partner", values="loss_change")
    assert (changes["match"].abs() < 1e-6).all() and (changes["mean"].abs() > 1e-4).any()
    given = moved["recovered"].notna()
    sure = moved.groupby(["seed", "set"])[["loss_change", "loss_change_error"]].transform("first")
    assert (sure["loss_change"] > 2 * sure["loss_change_error"])[given].all()


def test_a_short_text_is_left_out_with_a_sentence(make_run, seed_folders):
    run = make_run(seed_folders, token_budget=8 * 256)
    assert tables.unsupported(run) == "The text has 8 blocks, and 16 are needed to fit, choose and score."
