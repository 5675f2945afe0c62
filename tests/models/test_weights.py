"""Weight properties against fp64 NumPy that folds and centres the Hugging Face weights by hand."""

import numpy as np
import pytest
import torch
from conftest import processed_model
from scipy import stats
from transformers import GPT2Config, GPT2LMHeadModel

from lib.base.errors import InputError
from lib.models import weights
from lib.models.folded import folded, folding_error, full_precision
from lib.models.trunk import load_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=3, n_embd=16, n_head=2, vocab_size=97, n_positions=24, bos_token_id=0, eos_token_id=0, n_inner=40
    )
    model = GPT2LMHeadModel(config)
    for parameter in model.parameters():  # no weight stays at its neutral start value (LayerNorm 1 and 0, bias 0)
        parameter.data += 0.3 * torch.randn_like(parameter)
    path = tmp_path_factory.mktemp("seed")
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def table(folder):
    return weights.weight_properties(folder)


def by_hand(folder):
    """(w_in, w_out, b_in) over all neurons and W_U, from the raw weights; Conv1D stores (inputs, outputs)."""
    model = GPT2LMHeadModel.from_pretrained(folder)
    raw = {name: weight.double().numpy() for name, weight in model.state_dict().items()}
    w_in, w_out, b_in = [], [], []
    for layer in range(model.config.n_layer):
        block = f"transformer.h.{layer}"
        gain, shift = raw[f"{block}.ln_2.weight"], raw[f"{block}.ln_2.bias"]
        reads = raw[f"{block}.mlp.c_fc.weight"]  # (d_model, d_mlp)
        b_in.append(raw[f"{block}.mlp.c_fc.bias"] + shift @ reads)
        reads = gain[:, None] * reads
        w_in.append((reads - reads.mean(axis=0)).T)
        writes = raw[f"{block}.mlp.c_proj.weight"]  # (d_mlp, d_model)
        w_out.append(writes - writes.mean(axis=1, keepdims=True))
    unembedding = raw["transformer.ln_f.weight"][:, None] * raw["lm_head.weight"].T
    unembedding = unembedding - unembedding.mean(axis=0)
    unembedding = unembedding - unembedding.mean(axis=1, keepdims=True)
    return np.concatenate(w_in), np.concatenate(w_out), np.concatenate(b_in), unembedding


def test_columns_equal_weights_folded_by_hand(folder, table):
    w_in, w_out, b_in, unembedding = by_hand(folder)
    unit_in = w_in / np.linalg.norm(w_in, axis=1, keepdims=True)
    unit_out = w_out / np.linalg.norm(w_out, axis=1, keepdims=True)
    cosine = unit_out @ (unembedding / np.linalg.norm(unembedding, axis=0))
    others = ~np.eye(len(w_in), dtype=bool)
    expected = {
        "w_in_norm": np.linalg.norm(w_in, axis=1),
        "input_bias": b_in,
        "w_out_norm": np.linalg.norm(w_out, axis=1),
        "in_out_sim": (unit_in * unit_out).sum(axis=1),
        "l2_penalty": (w_in**2).sum(axis=1) + (w_out**2).sum(axis=1),
        "vocab_mean": cosine.mean(axis=1),
        "vocab_var": cosine.var(axis=1),
        "vocab_skew": stats.skew(cosine, axis=1),
        "vocab_kurt": stats.kurtosis(cosine, axis=1, fisher=False),
        "max_cos_in": np.where(others, unit_in @ unit_in.T, -1).max(axis=1),
        "max_cos_out": np.where(others, unit_out @ unit_out.T, -1).max(axis=1),
    }
    assert list(table.columns) == ["layer", "neuron", *expected]
    assert table["layer"].tolist() == [layer for layer in range(3) for _ in range(40)]
    assert table["neuron"].tolist() == list(range(40)) * 3
    for name, values in expected.items():
        np.testing.assert_allclose(table[name], values, rtol=1e-5, atol=1e-5, err_msg=name)


def test_folding_keeps_the_next_token_distribution(folder):
    tokens = torch.randint(0, 97, (2, 12), generator=torch.Generator().manual_seed(1))
    model = load_model(folder)
    assert folding_error(model, folded(model), tokens) < 1e-4


def test_folded_weights_are_those_of_transformerlens(folder):
    bridge, own = processed_model(folder), folded(load_model(folder))
    close = dict(rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(own.unembedding, bridge.W_U.detach(), **close)
    torch.testing.assert_close(own.unembedding_bias, bridge.b_U.detach(), **close)
    for layer, block in enumerate(bridge.blocks):
        for found, expected in ((own.w_in, block.mlp.W_in.T), (own.b_in, block.mlp.b_in), (own.w_out, block.mlp.W_out)):
            torch.testing.assert_close(found[layer], expected.detach(), **close)


def test_weights_that_cannot_be_folded_are_refused(folder):
    class OddNorm(torch.nn.LayerNorm):
        def forward(self, x):
            return super().forward(x).abs()

    model = load_model(folder)
    model.transformer.ln_f = OddNorm(16)
    with pytest.raises(InputError, match="the norm OddNorm is not LayerNorm or RMSNorm"):
        folded(model)
    model = load_model(folder)
    model.lm_head.register_forward_hook(lambda _m, _i, made: made.tanh())
    with pytest.raises(InputError, match="cannot be folded: logits made from them differ"):
        folded(model)


def test_chunks_do_not_change_the_result(folder, table, monkeypatch):
    monkeypatch.setattr(weights, "COSINES_AT_ONCE", 10 * 7)
    monkeypatch.setattr(weights, "ROWS_AT_ONCE", 7)
    np.testing.assert_allclose(weights.weight_properties(folder), table, rtol=1e-5, atol=1e-6)


def test_moments_without_some_tokens_are_those_of_the_others(monkeypatch):
    monkeypatch.setattr(weights, "COSINES_AT_ONCE", 10 * 7)
    monkeypatch.setattr(weights, "ROWS_AT_ONCE", 7)
    generator = torch.Generator().manual_seed(0)
    w_out, unembedding = torch.randn(20, 16, generator=generator), torch.randn(16, 97, generator=generator)
    left_out = torch.arange(97) % 9 == 4
    unembedding[:, left_out] += 3 * w_out[:1].T  # the first neuron writes hardly anything else
    unembedding = torch.nn.functional.normalize(unembedding, dim=0)
    cosine = torch.nn.functional.normalize(w_out.double(), dim=1).numpy() @ unembedding.double().numpy()
    found = weights.moments_with_and_without(w_out, unembedding, left_out)
    for moments, seen in zip(found, (cosine, cosine[:, ~left_out.numpy()]), strict=True):
        expected = seen.mean(1), seen.var(1), stats.skew(seen, axis=1), stats.kurtosis(seen, axis=1, fisher=False)
        for (name, values), by_hand in zip(moments.items(), expected, strict=True):
            np.testing.assert_allclose(values, by_hand, rtol=1e-5, atol=1e-6, err_msg=name)


def test_neuron_that_writes_nothing_has_cosine_zero_and_no_skew_or_kurtosis():
    unit = torch.nn.functional.normalize(torch.randn(4, 9, generator=torch.Generator().manual_seed(0)), dim=0)
    moments = weights.vocabulary_moments(torch.zeros(1, 4), unit)
    assert moments["vocab_mean"] == 0 and moments["vocab_var"] == 0
    assert moments["vocab_skew"].isnan() and moments["vocab_kurt"].isnan()
    assert weights.largest_cosine(torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])).tolist() == pytest.approx(
        [0.5**0.5, 0.0, 0.5**0.5]
    )


@pytest.mark.parametrize("sign", [1, -1])
def test_the_nearest_of_all_others_is_found_in_any_square_of_cosines(sign, monkeypatch):
    monkeypatch.setattr(weights, "COSINES_AT_ONCE", 50)  # squares of 7 × 7, the last one smaller
    vectors = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    vectors[11] = -3 * vectors[30]
    unit = torch.nn.functional.normalize(vectors.double(), dim=1).numpy()
    cosine = sign * unit @ unit.T
    np.fill_diagonal(cosine, -np.inf)
    index, value = weights.nearest(vectors, sign)
    assert index.tolist() == cosine.argmax(1).tolist()
    np.testing.assert_allclose(value, sign * cosine.max(1), atol=1e-6)


def test_full_precision_lasts_as_long_as_the_function():
    @full_precision()
    def inside():
        return torch.backends.cuda.matmul.allow_tf32, torch.is_grad_enabled()

    before = torch.backends.cuda.matmul.allow_tf32
    try:
        for allowed in (False, True):  # a mixed trunk leaves it allowed
            torch.backends.cuda.matmul.allow_tf32 = allowed
            assert inside() == (False, False)
            assert torch.backends.cuda.matmul.allow_tf32 == allowed and torch.is_grad_enabled()
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
