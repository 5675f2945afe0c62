"""Mutual matches, cliques and assignment against brute force on plain models' activations, and a planted truth."""

from itertools import combinations, permutations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import activations, permuted, save_seed, small_model, tables_of
from scipy.optimize import linear_sum_assignment

from lib.chapters.universality import captions, matching
from lib.collect.planner import FIRST

pytestmark = pytest.mark.usefixtures("without_grouped_moments")

BLOCKS = 20  # of the text of `make_run`
MATCH = ["model", "match_layer", "match_neuron", "corr"]


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
def oracle(related) -> dict[tuple[str, str], np.ndarray]:
    """Correlations (neurons of a, neurons of b) of plain models on the run's text, in fp64."""
    flat = {name: activations(folder, 20) for name, folder in related.items()}
    total = flat["a"].shape[1]
    return {(a, b): np.corrcoef(flat[a].T, flat[b].T)[:total, total:] for a, b in permutations(flat, 2)}


def test_mutual_matches_and_cliques_are_those_of_brute_force(make_run, related, oracle):
    made = tables_of(make_run(related))
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


def test_an_assignment_uses_every_neuron_once_and_has_nearly_the_largest_sum(make_run, related, oracle):
    run = make_run(related, reference="b")
    assigned = tables_of(run)["assignments"]
    late = np.repeat(np.arange(BLOCKS) % FIRST != 0, run.text.counted().sum(1))  # what followed pairs are measured on
    flat = {name: activations(folder, BLOCKS)[late] for name, folder in related.items()}
    assert set(assigned["model"]) == {"a", "c"} and list(assigned.columns[2:]) == MATCH
    for model, own in assigned.groupby("model"):
        followed = np.corrcoef(flat["b"].T, flat[model].T)[: len(own), len(own) :]
        partner = (48 * own["match_layer"] + own["match_neuron"]).to_numpy()
        assert sorted(partner) == list(range(len(own)))
        on_late, on_all = (corr[np.arange(len(own)), partner] for corr in (followed, oracle["b", model]))
        off = np.minimum(abs(own["corr"] - on_late), abs(own["corr"] - on_all))  # of followed pairs, of all others
        assert off.max() < 1e-5 and (abs(own["corr"] - on_late) < 1e-5).mean() > 0.8
        best = followed[linear_sum_assignment(followed, maximize=True)].sum()
        assert on_late.sum() > 0.98 * best


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
