"""The tables of effects of a small run: a first column seed, and rows for every seed that serves as a reference."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import permuted, save_seed, small_model, tables_of

from lib.chapters.interventions import inputs, single_neurons, tables
from lib.chapters.interventions.neurons import neurons_with_families
from lib.models.processed import processed
from lib.run import Run

pytestmark = pytest.mark.usefixtures("without_grouped_moments")


@pytest.fixture
def run(make_run, tmp_path) -> Run:
    """Three seeds in which neuron 5 of the last layer is large and writes where the unembedding reads least."""
    models = {"a": small_model(0, layers=3), "c": small_model(1, layers=3)}
    models["b"] = permuted(models["a"], 1)[0]
    folders = {}
    for name, model in sorted(models.items()):
        unembedding = processed(model).unembedding.double()
        vectors, _, _ = torch.linalg.svd(unembedding, full_matrices=True)
        even = vectors.sum(0).abs() / 32**0.5
        with torch.no_grad():
            norms = torch.cat([block.mlp.c_proj.weight.norm(dim=1) for block in model.transformer.h])
            write = 2 * norms.max() * vectors[:, even < 0.5][:, -1].float()
            model.transformer.h[2].mlp.c_proj.weight[5] = write
        folders[name] = save_seed(model, tmp_path / name)
    run = make_run(folders, threshold=0.9)
    tables_of(run)
    excess = run.table("neurons_all_seeds")["excess_corr"]
    return make_run(folders, threshold=float(excess.quantile(0.9)))


def test_every_table_of_effects_has_rows_of_every_reference(run):
    weights, seeds = tables.weight_table(run), ["a", "b", "c"]
    grouped = tables.groups(run, weights)
    own = grouped[(grouped["group"] == "entropy") & (grouped["layer"] == 2) & (grouped["neuron"] == 5)]
    assert list(own["seed"]) == seeds  # planted
    neurons = neurons_with_families(run)
    neurons = neurons.assign(is_universal=neurons["neuron"] < 3)  # of c no other seed has a match
    found = {
        "fixed_activation": tables.fixed_activations(run, grouped),
        "mean_ablation": tables.mean_ablations(run, grouped),
        "query_paths": tables.query_paths(run, weights),
        "value_norms": tables.value_norms(run),
        "ablations": tables.ablations(run, neurons),
    }
    for name, table in found.items():
        assert table.columns[0] == "seed" and sorted(table["seed"].unique()) == seeds, name
        pd.testing.assert_frame_equal(run.table(name), table)
    held = found["fixed_activation"].groupby("seed")["value"].nunique()
    assert held.to_dict() == {"a": 8, "b": 1, "c": 1} and found["fixed_activation"]["value"].max() == 6
    sets = found["ablations"]
    assert sets.groupby("seed")["kind"].unique().map(set).to_dict() == {
        "a": {"mean", "zero"},
        "b": {"mean"},
        "c": {"mean"},
    }
    assert (sets.groupby("seed")["blocks"].max() >= 2).all()

    # one neuron of another seed, by a run of that seed's own model
    row = found["mean_ablation"].query("seed == 'b' and variant == 'total'").iloc[0]
    mean = (
        run.table("neurons_all_seeds").set_index(inputs.KEY).loc[("b", row["layer"], row["neuron"]), "activation_mean"]
    )
    assert row["value"] == pytest.approx(mean)
    alone = tables.mean_ablations(run, grouped[grouped["seed"] == "b"]).query("variant == 'total'").iloc[0]
    assert alone["seed"] == "b" and alone["loss_change"] == pytest.approx(row["loss_change"])
    wide = inputs.effect_columns(found["mean_ablation"])
    assert sorted(wide["seed"].unique()) == seeds and not wide.duplicated(inputs.KEY).any()


def test_sets_without_families_are_matched_on_power_alone(run):
    neurons = neurons_with_families(run)
    assert neurons["position_information"].isna().all() and not run.has("families")
    sets = tables.ablations(run, neurons)
    assert set(sets["group"]) == {"universal", "random"} and np.isfinite(sets["power"]).all()


def test_matches_are_held_in_their_own_seed(run):
    grouped = tables.groups(run, tables.weight_table(run))
    matched = tables.matched_ablations(run, tables.mean_ablations(run, grouped))
    assert set(matched["seed"]) <= {"b", "c"} and len(matched)
    row = matched.iloc[0]  # by a run of the match's own model
    neuron = int(row["match_layer"]), int(row["match_neuron"])
    means = run.table("neurons_all_seeds").set_index(inputs.KEY)["activation_mean"]
    model, blocks = tables.model_of(run, row["seed"]), tables.blocks_of(run, tables.MAX_TOKENS * tables.REDUCED)
    reading = single_neurons.readout(model, inputs.unigram_counts(run.text))
    alone = single_neurons.effects(model, reading, blocks, {neuron: [means[row["seed"], *neuron]]}).table().iloc[0]
    assert row["entropy_change"] == pytest.approx(alone["entropy_change"], rel=1e-4)
    assert len(twins := matched[(matched["seed"] == "b") & (matched["corr"] > 0.999)])  # b is a in another order
    assert np.isfinite(twins["reference_change"]).all()


def test_models_stay_while_they_fit(run, monkeypatch):
    tables._models.clear()
    one = tables.model_of(run, "a")
    loaded = [one]
    make = tables.processed.processed
    monkeypatch.setattr(tables.processed, "processed", lambda *given: loaded.append(make(*given)) or loaded[-1])
    monkeypatch.setattr(tables, "allowed_memory", lambda params, device: 2.5 * one.memory / tables.HELD)
    for seed in ("a", "b", "a", "b"):  # two fit
        tables.model_of(run, seed)
    assert len(loaded) == 2
    tables.model_of(run, "c")  # a, which came first, goes
    assert [seed for _, seed in tables._models] == ["b", "c"]
    monkeypatch.setattr(tables, "allowed_memory", lambda params, device: 0)
    assert tables.model_of(run, "a").batch == 1 and len(tables._models) == 1
    tables._models.clear()
