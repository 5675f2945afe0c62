"""Effects of fixed activations against the whole model with hooks and fp64 NumPy; standard errors; refused input."""

import numpy as np
import pandas as pd
import pytest
import torch

from lib import effects
from lib.effects import FIXED_FREQUENCY, FROZEN_SCALE, OUTCOMES, TOTAL
from lib.interventions import Fix, FreezeFinalScale, run
from lib.kernels import predictions
from tests.test_interventions import LAST, VOCABULARY, bridge, by_hooks, folder, model, tokens  # noqa: F401

COUNTS = torch.randint(0, 50, (VOCABULARY,), generator=torch.Generator().manual_seed(2))
FIXED = {(LAST, 3): [-0.17, 2.0], (1, 5): [0.5, 4.0], (LAST, 8): [0.0, 6.0]}


def by_numpy(logits, scale, target, frequency=None, reference=None):
    """OUTCOMES of one distribution in fp64, with the logits' projection on `frequency` put back to `reference`'s."""
    logits = logits.double().numpy()
    if frequency is not None:
        logits = logits + ((reference.double().numpy() - logits) @ frequency)[..., None] * frequency
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    unigram = (COUNTS.numpy() + 1) / (COUNTS.numpy() + 1).sum()
    own = np.take_along_axis(p, target[..., None].numpy(), -1)
    return np.stack([
        -np.log(own[..., 0]), -(p * np.log(p)).sum(-1), (p * np.log(p / unigram)).sum(-1),
        1 / (1 + (p > own).sum(-1)), scale.double().numpy(),
    ], -1)  # fmt: skip


@pytest.mark.parametrize("compiled", [False, True])
def test_every_effect_equals_the_whole_model_with_hooks(bridge, model, tokens, monkeypatch, compiled):  # noqa: F811
    if compiled:
        monkeypatch.setattr(predictions, "COMPILED_VOCABULARY", 1)
        monkeypatch.setattr(effects, "product_dtype", lambda vocabulary, dtype: dtype)
    counted = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(3)) < 0.6
    reading = effects.readout(model, COUNTS)
    frequency = np.log(COUNTS.double().numpy() + 1)
    frequency = (frequency - frequency.mean()) / np.linalg.norm(frequency - frequency.mean())
    found = effects.effects(model, reading, (tokens, counted), FIXED, (TOTAL, FROZEN_SCALE, FIXED_FREQUENCY))

    measured, target = counted[:, :-1], tokens[:, 1:]
    before_logits, before_scale, _ = by_hooks(bridge, tokens, [])
    before = by_numpy(before_logits[:, :-1], before_scale[:, :-1], target)
    table = found.table().set_index(["layer", "neuron", "value", "variant"])
    for neuron, values in FIXED.items():
        for value in values:
            total = by_hooks(bridge, tokens, [Fix(*neuron, value)])
            frozen = by_hooks(bridge, tokens, [Fix(*neuron, value), FreezeFinalScale(before_scale)])
            for variant, (logits, scale, _), extra in (
                (TOTAL, total, {}), (FROZEN_SCALE, frozen, {}),
                (FIXED_FREQUENCY, total, {"frequency": frequency, "reference": before_logits[:, :-1]}),
            ):  # fmt: skip
                change = by_numpy(logits[:, :-1], scale[:, :-1], target, **extra) - before
                row = table.loc[(*neuron, torch.tensor(value).item(), variant)]
                for index, outcome in enumerate(OUTCOMES):
                    assert row[f"{outcome}_change"] == pytest.approx(change[measured][:, index].mean(), abs=1e-4), (neuron, value, variant, outcome)
                    assert row[outcome] == pytest.approx((before + change)[measured][:, index].mean(), abs=1e-4)


def test_a_last_layer_neuron_runs_no_layer_again(model, tokens, monkeypatch):  # noqa: F811
    unchanged = run(model, tokens)
    calls = []
    monkeypatch.setattr(type(model), "mlp", lambda *a: calls.append(1))
    run(model, tokens, [Fix(LAST, 3, 1.0)], unchanged)
    assert not calls
    with pytest.raises(TypeError):
        run(model, tokens, [Fix(LAST - 1, 3, 1.0)], unchanged)
    assert len(calls) == 1


def test_the_standard_error_is_that_of_independent_blocks():
    generator = np.random.default_rng(0)
    tokens = generator.integers(1, 9, 400)
    by_block = generator.normal(0.3, 1.0, 400)  # one change for all tokens of a block
    sums = torch.zeros(400, 1, 1, 1, len(OUTCOMES))
    sums[:, 0, 0, 0, 0] = torch.from_numpy(by_block * tokens)
    found = effects.Effects([(0, 0)], torch.zeros(1, 1), (TOTAL,), torch.from_numpy(tokens).double(),
                            torch.zeros(400, len(OUTCOMES)), sums.double()).table().iloc[0]  # fmt: skip
    draws = generator.integers(0, 400, (4000, 400))
    bootstrap = (by_block * tokens)[draws].sum(1) / tokens[draws].sum(1)
    assert found["loss_change"] == pytest.approx((by_block * tokens).sum() / tokens.sum())
    assert found["loss_error"] == pytest.approx(bootstrap.std(), rel=0.05)
    assert isinstance(found, pd.Series)


def test_rounding_changes_to_bf16_leaves_no_trace_in_the_means():
    generator = torch.Generator().manual_seed(0)
    d_model, vocabulary, rows = 32, 2000, 3000
    products = torch.randn(rows, d_model, generator=generator) @ (weight := torch.randn(d_model, vocabulary, generator=generator)) / 3
    change = torch.randn(rows, d_model, generator=generator) / 5
    one = torch.ones(rows)
    cases = predictions.Cases(torch.arange(rows), torch.arange(rows), one, one, 0 * one)
    constants, target = torch.zeros(3, vocabulary), torch.randint(0, vocabulary, (rows,), generator=generator)
    exact, rounded = (
        predictions.prediction_statistics(products, change.to(dtype) @ weight.to(dtype), cases, constants, target)
        for dtype in (torch.float32, torch.bfloat16)
    )
    before = predictions.prediction_statistics(products, change @ weight, cases._replace(moved=0 * one), constants, target)
    assert (exact - before).mean(0)[:2].abs().min() > 1e-2
    torch.testing.assert_close(rounded.mean(0), exact.mean(0), rtol=0, atol=1e-4)
