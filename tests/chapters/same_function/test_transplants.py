"""Transplants against a plain model with hooks in fp64, a seed put into itself, and R on plain sums."""

from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import small_model
from scipy import stats

from lib.chapters.same_function import ladder, transplants
from lib.chapters.same_function.folds import FOLDS, Blocks, Layer
from lib.chapters.same_function.ladder import Predictor, Target
from lib.models.processed import processed

BLOCKS, CONTEXT = 24, 24


def in_fp64(one):
    """A dataclass of tensors with all of them in fp64."""
    doubled = {}
    for name in (item.name for item in fields(one)):
        value = getattr(one, name)
        if isinstance(value, torch.Tensor):
            doubled[name] = value.double()
        elif isinstance(value, tuple):
            doubled[name] = tuple(map(in_fp64, value))
    return replace(one, **doubled)


@pytest.fixture(scope="module")
def plain():
    return small_model(0).double()


@pytest.fixture(scope="module")
def model():
    return in_fp64(processed(small_model(0)))


@pytest.fixture(scope="module")
def text() -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens, and which count: neither the first of a block nor one in five."""
    random = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 8192, (BLOCKS, CONTEXT), generator=random)
    tokens[:, 0] = 0
    counted = torch.rand(tokens.shape, generator=random) < 0.8
    counted[:, 0] = False
    return tokens, counted


@torch.no_grad()
def plain_losses(plain, tokens, counted, values) -> np.ndarray:
    """Each block's loss over predictions made at counted tokens, of a plain model with hooks."""
    hooks = []
    for layer, (neurons, own) in values.items():

        def hold(module, read, activation, neurons=neurons, own=own):
            held = activation.clone()
            place = torch.arange(held.shape[-1])[None].repeat(int(counted.sum()), 1)[:, neurons]
            held[counted] = held[counted].scatter(1, place, own)
            return held

        hooks.append(plain.transformer.h[layer].mlp.act.register_forward_hook(hold))
    logits = plain(tokens).logits[:, :-1].log_softmax(-1)
    for hook in hooks:
        hook.remove()
    each = -logits.gather(-1, tokens[:, 1:, None])[..., 0]
    return (each * counted[:, :-1]).sum(1).numpy()


def test_losses_equal_a_plain_model_with_hooks_in_fp64(plain, model, text):
    tokens, counted = text
    random = torch.Generator().manual_seed(1)
    values = {
        layer: (torch.tensor(own), torch.randn(int(counted.sum()), len(own), generator=random, dtype=torch.float64))
        for layer, own in enumerate([[3, 17, 40], [0]])
    }
    for some in ({}, values, {1: values[1]}):
        found = transplants.losses(model, tokens, counted, some).numpy()
        np.testing.assert_allclose(found, plain_losses(plain, tokens, counted, some), rtol=1e-6)


@torch.no_grad()
def activations(plain, tokens, counted) -> list[torch.Tensor]:
    seen = []
    hooks = [
        one.mlp.act.register_forward_hook(lambda _m, _i, out: seen.append(out[counted])) for one in plain.transformer.h
    ]
    plain(tokens)
    for hook in hooks:
        hook.remove()
    return seen


def test_a_seed_put_into_itself_is_recovered_in_full(plain, model, text):
    """By the maps themselves: the match of a neuron is the neuron, with slope 1."""
    tokens, counted = text
    fold, own = Blocks.of(counted).fold, activations(plain, tokens, counted)
    targets = [Target(Layer.of(values.clone(), fold), keeps=True) for values in own]
    ladder.explained_by(targets, lambda layer: Predictor.of(own[layer].clone(), fold), len(own))
    number, everyone = transplants.predicting(counted).sum(1).double(), torch.arange(48)
    unchanged = transplants.losses(model, tokens, counted, {})
    changes = {}
    for partner in ("mean", "match"):
        values = {}
        for layer, target in enumerate(targets):
            of, held = target.layer, torch.zeros_like(own[layer])
            for turn in range(FOLDS):
                if partner == "match":
                    assert (target.best(turn) == torch.stack([torch.full((48,), layer), everyone])).all()
                    held[fold == turn] = of.scaled(turn, turn) * target.rungs["one"].weight[turn]
            held = held * of.fit_deviation[fold] + of.fit_mean[fold]
            values[layer] = everyone, of.mean + of.deviation * held
        changes[partner] = transplants.losses(model, tokens, counted, values) - unchanged
    sign = changes["mean"].sum().sign()  # without its neurons an untrained model may as well lose less
    rows = transplants.effect_rows({name: sign * change for name, change in changes.items()}, number)
    assert abs(changes["mean"].sum()) > 0.1 and rows[1]["partner"] == "match"
    found = transplants.recovered(sign * changes["match"], sign * changes["mean"], 0.0)
    assert found.value == pytest.approx(1, abs=1e-6)


def test_the_recovered_share_and_its_interval():
    random = np.random.default_rng(0)
    ablated, tokens = random.normal(2, 0.5, 9), torch.full((9,), 100.0, dtype=torch.float64)
    change = 0.25 * ablated + random.normal(0, 0.02, 9)
    rows = transplants.effect_rows({"mean": torch.from_numpy(ablated), "match": torch.from_numpy(change)}, tokens)
    without = [1 - np.delete(change, block).sum() / np.delete(ablated, block).sum() for block in range(9)]
    half = stats.t.ppf(0.975, 8) * np.sqrt(8 / 9 * np.square(without - np.mean(without)).sum())
    value = 1 - change.sum() / ablated.sum()
    assert [rows[1][name] for name in ("recovered", "low", "high")] == pytest.approx(
        [value, value - half, value + half]
    )
    assert rows[0]["loss_change"] == pytest.approx(ablated.sum() / 900) and np.isnan(rows[0]["recovered"])


def test_the_difference_of_match_and_second_is_paired():
    random = np.random.default_rng(1)
    ablated, tokens = random.normal(2, 0.5, 9), torch.full((9,), 100.0, dtype=torch.float64)
    match, second = 0.2 * ablated, 0.3 * ablated + random.normal(0, 0.02, 9)
    changes = {"mean": ablated, "match": match, "second": second}
    row = transplants.effect_rows({name: torch.from_numpy(one) for name, one in changes.items()}, tokens)[-1]
    lost = second - match
    without = [np.delete(lost, block).sum() / np.delete(ablated, block).sum() for block in range(9)]
    half = stats.t.ppf(0.975, 8) * np.sqrt(8 / 9 * np.square(without - np.mean(without)).sum())
    value = lost.sum() / ablated.sum()
    assert row["partner"] == transplants.BEYOND
    assert [row[name] for name in ("recovered", "low", "high")] == pytest.approx([value, value - half, value + half])


def test_no_share_is_given_where_the_mean_costs_nothing():
    ablated = torch.tensor([1.0, -1.0, 0.5, -0.4], dtype=torch.float64)
    rows = transplants.effect_rows({"mean": ablated, "match": ablated / 2}, torch.full((4,), 10.0))
    assert np.isnan(rows[1]["recovered"]) and np.isfinite(rows[1]["loss_change"])


def test_random_partners_are_like_the_match_and_another_neuron():
    power, skew = np.arange(200.0), np.arange(200.0)
    own = np.repeat([0, 100, 199], 50)
    found = transplants.like(power, skew, own, np.random.default_rng(0))
    assert (found != own).all() and np.abs(found - own).max() <= transplants.NEAREST
    assert len(set(found[own == 100])) > 5


def test_sets_have_the_neurons_that_they_are_named_after():
    random = np.random.default_rng(0)
    table = pd.DataFrame({"layer": np.repeat([0, 1], 150), "neuron": np.tile(range(150), 2)})
    table = table.assign(excess_corr=random.random(300), power=random.random(300), square=random.random(300))
    table["is_universal"] = (table["layer"] == 1) & (table["excess_corr"] > 0.9)
    sets = {one.name: one for one in transplants.neuron_sets(table)}
    universal = table[table["is_universal"]]
    assert len(sets["top 1 %"].neurons) == 3 and "universal, layer 0" not in sets
    for name in ("universal", "universal, layer 1"):
        assert sets[name].neurons["neuron"].tolist() == universal["neuron"].tolist()
    best = universal.loc[universal["power"].idxmax()]
    assert sets["strongest"].neurons.to_numpy().tolist() == [[1, best["neuron"]]]
    groups = [
        table.merge(sets[f"group {number}"].neurons, on=["layer", "neuron"])["square"]
        for number in range(1, transplants.GROUPS + 1)
    ]
    assert sum(map(len, groups)) == 300 and all(a.max() < b.min() for a, b in zip(groups, groups[1:], strict=False))
    conditions = sum(1 + len(one.partners) for one in sets.values())
    assert conditions + 5 * 2 <= 40  # six layers, not one, have universal neurons in the default run
    nobody = transplants.neuron_sets(table.assign(is_universal=False))
    assert {one.name for one in nobody} == {
        "top 1 %",
        *(f"group {number}" for number in range(1, transplants.GROUPS + 1)),
    }
