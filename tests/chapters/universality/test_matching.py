"""Mutual matches, cliques and assignment against brute force on plain models' activations, and a planted truth."""

from itertools import combinations, permutations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import PRODUCTS, activations, followed_blocks, permuted, save_seed, small_model, tables_of

from lib.chapters.universality import captions, matching
from lib.collect.statistics import load_followed

pytestmark = pytest.mark.usefixtures("without_grouped_moments")


@pytest.fixture(scope="module")
def related(tmp_path_factory) -> dict[str, Path]:
    """Three seeds that have grown apart from one model: some of their neurons are still the same."""
    root, folders = tmp_path_factory.mktemp("related"), {}
    for number, name in enumerate("abc"):
        model, generator = small_model(3), torch.Generator().manual_seed(number)
        with torch.no_grad():
            for weights in model.transformer.h.parameters():
                weights += 0.1 * torch.randn(weights.shape, generator=generator)
        folders[name] = save_seed(model, root / name)
    return folders


@pytest.fixture(scope="module")
def oracles(related) -> dict[str, dict[tuple[str, str], np.ndarray]]:
    """Correlations (neurons of a, neurons of b) of plain models on the run's text, in fp64.

    Those by `sketch` are measured on the text after its first part.
    """
    made = {}
    for name, blocks in (("exact", torch.arange(20)), ("sketch", followed_blocks(20))):
        flat = {seed: activations(folder, blocks) for seed, folder in related.items()}
        total = flat["a"].shape[1]
        made[name] = {(a, b): np.corrcoef(flat[a].T, flat[b].T)[:total, total:] for a, b in permutations(flat, 2)}
    return made


@pytest.mark.parametrize("products", PRODUCTS)
def test_mutual_matches_and_cliques_are_those_of_brute_force(make_run, related, oracles, products):
    made, oracle = tables_of(make_run(related, **PRODUCTS[products])), oracles[PRODUCTS[products]["products"]]
    assert (made["outsiders"]["outsiders"] == 0).all() and len(made["outsiders"]) == 6
    best = {pair: corr.argmax(1) for pair, corr in oracle.items()}
    total = len(best["a", "b"])
    for (a, b), own in made["matches_all_seeds"].groupby(["seed", "model"]):
        mutual = [best[b, a][best[a, b][neuron]] == neuron for neuron in range(total)]
        assert own["mutual"].tolist() == mutual and 0 < np.mean(mutual) < 1
    wanted = {
        members
        for members in ((n, best["a", "b"][n], best["a", "c"][n]) for n in range(total))
        if all(best[s, t][members[i]] == members[j] for (i, s), (j, t) in permutations(enumerate("abc"), 2))
    }
    found = made["cliques"]
    flat = {
        tuple(48 * getattr(row, f"layer_{s}") + getattr(row, f"neuron_{s}") for s in "abc")
        for row in found.itertuples()
    }
    assert flat == wanted and 0 < len(flat) < total
    for row in found.itertuples():
        members = [48 * getattr(row, f"layer_{s}") + getattr(row, f"neuron_{s}") for s in "abc"]
        between = [oracle[s, t][members[i], members[j]] for (i, s), (j, t) in combinations(enumerate("abc"), 2)]
        assert row.min_corr == pytest.approx(min(between), abs=1e-5) and row.mean_corr == pytest.approx(
            np.mean(between), abs=1e-5
        )
    assert found["min_corr"].is_monotonic_decreasing


def test_an_assignment_uses_every_neuron_once_and_nothing_swapped_is_better(make_run, related, oracles):
    """Among the followed pairs, whose correlations are those of the text after its first part."""
    run = make_run(related, reference="b")
    assigned, followed, late = tables_of(run)["assignments"], load_followed(run), oracles["sketch"]
    assert set(assigned["model"]) == {"a", "c"}
    for model, own in assigned.groupby("model"):
        partner = (48 * own["match_layer"] + own["match_neuron"]).to_numpy()
        total = len(partner)
        assert sorted(partner) == list(range(total))
        stored = followed.stored(("b", model))
        left, right = followed.pairs[stored].numpy()[:: 1 if stored == ("b", model) else -1]
        known = np.full((total, total), -np.inf)
        known[left, right] = late["b", model][left, right]
        chosen = known[np.arange(total), partner]
        has = np.isfinite(chosen)
        assert has.mean() > 0.9
        np.testing.assert_allclose(own["corr"][has], chosen[has], atol=1e-5)
        np.testing.assert_allclose(
            own["corr"][~has], oracles["exact"]["b", model][np.arange(total), partner][~has], atol=1e-5
        )
        swapped = known[:, partner] + known[:, partner].T  # (i, j): i with j's partner and j with i's
        assert (chosen[has][:, None] + chosen[has] >= swapped[has][:, has] - 1e-5).all()


def test_copies_with_their_neurons_in_another_order_are_one_clique_each(make_run, tmp_path):
    model = small_model(3)
    copies = {name: permuted(model, seed) for name, seed in (("b", 8), ("c", 9))}
    folders = {"a": save_seed(model, tmp_path / "a")} | {
        name: save_seed(one, tmp_path / name) for name, (one, _) in copies.items()
    }
    run = make_run(folders)
    made = tables_of(run)
    live = {(row.layer, row.neuron) for row in run.neurons[~run.neurons["dead"]].itertuples()}
    found = made["cliques"]
    assert {*zip(found["layer_a"], found["neuron_a"], strict=True)} == live and found["min_corr"].min() > 0.999
    for name, (_, orders) in copies.items():
        assert all(
            orders[layer][new] == old
            for layer, new, old in zip(found[f"layer_{name}"], found[f"neuron_{name}"], found["neuron_a"], strict=True)
        )
    assigned = (
        made["assignments"].merge(run.neurons[["layer", "neuron", "dead"]], on=["layer", "neuron"]).query("not dead")
    )
    assert assigned["corr"].min() > 0.999
    table = matching.partner_table(run.neurons, run.matches, found, made["assignments"], "a")
    numbers = matching.partner_summary(table, found, 0.5)
    assert numbers["cliques"] == len(live) and numbers["one_layer"] == 1 and numbers["in_clique_universal"] == 1
    depths = matching.clique_depths(found, 2)
    assert depths["same"].sum() == len(live) and not depths["spread"].any()


def test_one_reference_knows_mutual_matches_but_no_cliques(make_run, seed_folders):
    whole, alone = (tables_of(make_run(seed_folders, run=compare, compare=compare)) for compare in ("all", "reference"))
    pd.testing.assert_series_equal(alone["matches"]["mutual"], whole["matches"]["mutual"])
    assert len(alone["cliques"]) == 0 and {"layer_a", "neuron_c", "min_corr"} <= set(alone["cliques"].columns)
    numbers = matching.partner_summary(
        matching.partner_table(alone["neurons"], alone["matches"], alone["cliques"], alone["assignments"], "a"),
        alone["cliques"],
        0.5,
    )
    assert "needs every seed as reference" in captions.partners(numbers, 3, 1).text


def test_bins_of_excess():
    table = pd.DataFrame(
        {
            "neuron": range(4),
            "excess_corr": [0.05, 0.15, 0.16, 0.95],
            "mutual": [0.0, 0.5, 1.0, 1.0],
            "in_clique": [False, False, True, True],
        }
    )
    rows = matching.by_excess(table, np.arange(0, 1.05, 0.1).round(2))
    assert (
        rows["neurons"].tolist() == [1, 2, 1]
        and rows["mutual"].tolist() == [0, 0.75, 1]
        and rows["in_clique"].tolist() == [0, 0.5, 1]
    )
    assert rows["excess"].tolist() == pytest.approx([0.05, 0.15, 0.95])
