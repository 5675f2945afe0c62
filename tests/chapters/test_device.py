"""Chapters compute on the device that the run names, and nowhere else: the same numbers as on the CPU."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import small_model
from elsewhere import WrongDeviceError, at_home, elsewhere
from small_models import model_of_type

from lib.chapters.circuits import tables as circuits
from lib.chapters.families import rotated
from lib.chapters.families.statistics import known_labels, seed_statistics
from lib.chapters.interventions import candidates, heads, inputs, neuron_sets, single_neurons
from lib.chapters.interventions import tables as interventions
from lib.chapters.interventions.engine import Fix, FreezeFinalScale, Multiply, PathAblation, run
from lib.chapters.universality import null_tables
from lib.collect import passes
from lib.kernels.correlation import haar_rotation
from lib.labels.groupings import run_groupings, run_label_sets
from lib.models import processed
from lib.models.folded import folded, folding_error
from lib.models.weights import weight_properties
from lib.report import contexts, explorer, explorer_weights

NEURONS, TOKENS = 48, torch.randint(1, 8192, (5, 32), generator=torch.Generator().manual_seed(0))
BLOCKS = TOKENS, TOKENS % 7 > 0
COUNTS = torch.bincount(TOKENS.flatten(), minlength=8192)
FIXED = {(0, 3): [0.0, 2.0], (1, 4): [0.0, 2.0]}  # an early and a last-layer neuron
VARIANTS = (single_neurons.TOTAL, single_neurons.FROZEN_SCALE, single_neurons.FIXED_FREQUENCY)
PATHS = [PathAblation(0, 2, 1, 1), PathAblation(0, 5, 1, 0)]


def model(device) -> processed.Processed:
    return processed.processed(small_model(0).to(device))


def rotary_logits(device) -> torch.Tensor:
    return processed.processed(model_of_type("gpt_neox").to(device)).logits(TOKENS[:, :8].to(device) % 50)


def changed_run(device) -> torch.Tensor:
    made, tokens = model(device), TOKENS.to(device)
    before = run(made, tokens)
    changes = [Fix(0, 1, 0.5), Multiply(1, 2, 0.0), Multiply(0, 1, 3.0), PATHS[0], FreezeFinalScale(before.scale)]
    return run(made, tokens, changes, before).final


def effects(device) -> pd.DataFrame:
    made = model(device)
    return single_neurons.effects(made, single_neurons.readout(made, COUNTS), BLOCKS, FIXED, VARIANTS).table()


def ablations(device) -> pd.DataFrame:
    made, held = model(device), torch.linspace(-1, 1, 2 * NEURONS).view(2, NEURONS)
    power = neuron_sets.single_powers(made, BLOCKS, held)
    sets = [neuron_sets.NeuronSet(layer, "universal", 0, (1, 5, 7), float(power[layer].sum())) for layer in (0, 1)]
    return neuron_sets.ablations(made, BLOCKS, sets, held)


def weight_columns(device) -> pd.DataFrame:
    made = model(device)
    return inputs.weight_columns(made, single_neurons.readout(made, COUNTS), 0)


def null_space(device) -> tuple:
    space = candidates.null_space(model(device).unembedding)
    return space.chance_bound, space.depth, space.basis.abs()


def near_and_connected(device) -> dict:
    own = folded(small_model(0).to(device))
    return explorer_weights.near_and_connected(own.w_in, own.w_out, np.array([0, 7, 60]))


def extreme_tokens(device) -> dict:
    own = folded(small_model(0).to(device))
    return explorer.extreme_tokens(own.w_out[0][:3], own.unembedding, 5)


def raw_and_folded(device) -> float:
    made = small_model(0).to(device)
    return folding_error(made, folded(made), TOKENS[:2])


OF_A_MODEL = {
    "weight properties": lambda device: weight_properties(small_model(0).to(device)),
    "logits": lambda device: model(device).logits(TOKENS.to(device)),
    "logits with rotary positions": rotary_logits,
    "folding error": raw_and_folded,
    "changed run": changed_run,
    "effects": effects,
    "ablations": ablations,
    "weight columns": weight_columns,
    "null space": null_space,
    "random scores": lambda device: inputs.random_scores(model(device), 0, 0),
    "value norms": lambda device: heads.value_norms(model(device), TOKENS),
    "query paths": lambda device: heads.query_path_ablations(model(device), *BLOCKS, PATHS),
    "rotation": lambda device: haar_rotation.__wrapped__(16, 0, 0, device),
    "neighbours": near_and_connected,
    "extreme tokens": extreme_tokens,
}


def numbers(found) -> list[np.ndarray]:
    """All arrays of a result, wherever they are."""
    match found:
        case torch.Tensor():
            return [found.cpu().double().numpy()]
        case pd.DataFrame():
            return [np.nan_to_num(found[name].to_numpy(float), nan=-99) for name in found.select_dtypes("number")]
        case dict():
            return [one for value in found.values() for one in numbers(value)]
        case list() | tuple():
            return [one for value in found for one in numbers(value)]
    return [np.asarray(found, dtype=float)]


def assert_same_elsewhere(make: Callable, monkeypatch, device_of: Callable = lambda device: None) -> None:
    here = numbers(make(torch.device("cpu")))
    with elsewhere(monkeypatch) as device:
        device_of(device)
        there = numbers(make(device))
    assert len(here) == len(there) > 0
    for one, other in zip(here, there, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", OF_A_MODEL)
def test_what_a_model_does_is_computed_on_its_device(name, monkeypatch):
    for module in (single_neurons, neuron_sets):
        monkeypatch.setattr(module, "product_dtype", lambda unembedding: unembedding.dtype)  # bf16 is the CPU's alone
    assert_same_elsewhere(OF_A_MODEL[name], monkeypatch)


@pytest.fixture
def collected(make_run, seed_folders):
    made = make_run({name: seed_folders[name] for name in "ab"}, token_budget=8 * 256)
    passes.collect(made)
    return made


def of_a_run(run) -> dict[str, Callable]:
    """What asks for the run's device itself."""
    groupings = run_groupings(run)
    labels = known_labels(run, run_label_sets(run, groupings))
    pairs = [("a", "b"), ("b", "a")]
    columns = ["seed", "model", "layer", "neuron", "match_layer", "match_neuron"]
    asked = pd.DataFrame([(*pair, layer, n, 1, n + 1) for pair in pairs for layer in (0, 1) for n in (1, 9)])
    chosen = pd.DataFrame({"layer": [0, 1], "neuron": [3, 4]})

    # the trunk runs in inference mode, whose tensors and others do not meet `elsewhere`
    @torch.inference_mode()
    def families(device):
        return rotated.Rotated(run, labels, groupings).statistics("a", seed_statistics(run, "a", labels))

    def roles(device):
        circuits._weights.clear()
        weights = circuits.weights_of(run, "a")
        return circuits.seed_roles(*weights, circuits.label_set(run), 0), circuits.logit_effects(run, "a", chosen)

    @torch.inference_mode()
    def activations(device):
        return contexts.activations(run, contexts.Sample.of(run), np.array([0, 5, 50]))

    def paths(device):
        interventions._models.clear()
        made = interventions.model_of(run, "a")
        return made.embedding, heads.value_norms(made, interventions.blocks_of(run)[0])

    return {
        "nulls": lambda device: null_tables.measured(run, asked.set_axis(columns, axis=1)),
        "families": families,
        "roles": roles,
        "folding error": lambda device: circuits.processing_error(run, "a"),
        "interventions": paths,
        "contexts": activations,
    }


def test_what_a_run_does_is_computed_on_its_device(collected, monkeypatch):
    def patched(device):
        for module in (null_tables, rotated, circuits, interventions, contexts):
            monkeypatch.setattr(module, "device_of", lambda params: device)

    for module in (null_tables, circuits, processed):
        monkeypatch.setattr(module, "load_model", at_home(module.load_model))
    for make in of_a_run(collected).values():
        patched(torch.device("cpu"))
        assert_same_elsewhere(make, monkeypatch, patched)
    circuits._weights.clear()
    interventions._models.clear()


def test_a_tensor_on_the_wrong_device_is_seen(monkeypatch):
    with elsewhere(monkeypatch) as device:
        there = torch.ones(3, device=device)
        with pytest.raises(WrongDeviceError):
            there + torch.ones(3)
        with pytest.raises((RuntimeError, TypeError)):
            there.numpy()
        assert (there + 1).sum().item() == 6 and there.cpu().numpy().sum() == 3
