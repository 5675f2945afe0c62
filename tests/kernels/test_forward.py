"""The forward pass's own steps against plain fp64 computations, in C++ and by torch."""

import numpy as np
import pytest
import torch

from lib.kernels import native
from lib.kernels.forward import FEW, HEAD, affine, causal_attention, tanh_gelu
from lib.kernels.native import LANES


def gelu_new(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 2**-8)]
)
def test_tanh_gelu_equals_its_formula(dtype, tolerance):
    x = torch.cat([torch.linspace(-12, 12, 4092), torch.tensor([0.0, 1e4, -1e4, 1e-20])]).to(dtype)
    assert native.takes("gelu", x) == (dtype != torch.float64 and native.function("gelu_float") is not None)
    np.testing.assert_allclose(tanh_gelu(x).double(), gelu_new(x.double().numpy()), rtol=tolerance, atol=1e-6)
    assert tanh_gelu(torch.full((LANES,), torch.nan, dtype=dtype)).isnan().all()


def test_tanh_gelu_takes_any_shape_and_gives_gradients():
    x = torch.randn(3, 5, LANES)
    np.testing.assert_allclose(tanh_gelu(x), gelu_new(x.double().numpy()), rtol=1e-5, atol=1e-6)
    turned = x.transpose(1, 2)  # rows that do not lie side by side, and of a length that the loop does not take
    np.testing.assert_allclose(tanh_gelu(turned), gelu_new(turned.double().numpy()), rtol=1e-4, atol=1e-6)
    x.requires_grad_()
    tanh_gelu(x).sum().backward()
    assert x.grad.isfinite().all()


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float) -> np.ndarray:
    """(texts, tokens, heads, d_head), one query at a time."""
    made = np.zeros_like(q.transpose(0, 2, 1, 3))
    for text, head, token in np.ndindex(q.shape[:3]):
        scores = k[text, head, : token + 1] @ q[text, head, token] * scale
        weights = np.exp(scores - scores.max())
        made[text, token, head] = weights @ v[text, head, : token + 1] / weights.sum()
    return made


@pytest.mark.parametrize("tokens", [1, 5, 6, 16, 17, 67, 128])
@pytest.mark.parametrize("spread", [1.0, 8.0])  # the second gives sharp heads, with scores of several hundred
def test_causal_attention_equals_numpy(tokens, spread):
    generator = torch.Generator().manual_seed(tokens)
    joined = (
        torch.randn(2, tokens, 3 * 3 * HEAD, generator=generator) * spread
    )  # queries, keys and values side by side, as GPT-2 has them
    q, k, v = (one.view(2, tokens, 3, HEAD).transpose(1, 2) for one in joined.split(3 * HEAD, 2))
    want = attention(*(one.double().numpy() for one in (q, k, v)), scale=0.1)
    error = 1e-5 * spread**2  # scores have seven digits
    np.testing.assert_allclose(causal_attention(q, k, v, 0.1), want, rtol=1e-4, atol=error)
    np.testing.assert_allclose(causal_attention(q.contiguous(), k, v.contiguous(), 0.1), want, rtol=1e-4, atol=error)


def test_causal_attention_hides_no_nan():
    q, k, v = torch.randn(3, 1, 2, 40, HEAD, generator=torch.Generator().manual_seed(0))
    q[0, 1, 7, 3] = torch.nan
    assert causal_attention(q, k, v, 0.1).isnan().any(-1).nonzero().tolist() == [[0, 7, 1]]
    k[0, 0, 35] = torch.inf
    assert causal_attention(q, k, v, 0.1)[0, 35:, 0].isnan().any(-1).all()


@pytest.mark.parametrize(("size", "dtype"), [(8, torch.float32), (HEAD, torch.float64)])
def test_causal_attention_of_other_heads_equals_numpy(size, dtype):
    q, k, v = torch.randn(3, 2, 3, 9, size, generator=torch.Generator().manual_seed(0), dtype=dtype)
    want = attention(*(one.double().numpy() for one in (q, k, v)), scale=0.3)
    np.testing.assert_allclose(causal_attention(q, k, v, 0.3), want, rtol=1e-4, atol=1e-5)


def test_causal_attention_gives_gradients():
    q, k, v = torch.randn(3, 1, 1, 9, HEAD)
    causal_attention(q.requires_grad_(), k, v, 0.125).sum().backward()
    assert q.grad.isfinite().all()


ON_MATRIX_UNITS = native.function("affine_float") is not None and bool(native.function("affine_there")())


@pytest.mark.parametrize(
    ("rows", "depth", "columns"), [(FEW, 64, 32), (301, 192, 96), (513, 1024, 64), (300, 1024, 544)]
)
@pytest.mark.parametrize("weights", ["bf16", "fp32", "transposed"])
def test_affine_equals_numpy(rows, depth, columns, weights):
    generator = torch.Generator().manual_seed(rows)
    x, weight, bias = (
        torch.randn(*shape, generator=generator) for shape in ((rows, depth), (depth, columns), (columns,))
    )
    x[:, 0] += 1000  # what is summed may be much larger than the sum
    weight[0] = 1e-3
    weight = weight.bfloat16().float() if weights == "bf16" else weight
    given = weight.T.contiguous().T if weights == "transposed" else weight
    want, size = (
        left @ right
        for left, right in ((x.double().numpy(), weight.double().numpy()), (x.abs().numpy(), weight.abs().numpy()))
    )
    for got, error in (
        (affine(x.view(1, rows, depth), given, bias)[0], 2**-15),
        (autocast_affine(x, given, bias), 2**-7),
        (autocast_affine(x.bfloat16(), given, bias), 2**-7),
    ):
        assert got.dtype == (torch.float32 if error < 2**-10 else torch.bfloat16)
        assert (np.abs(got.double().numpy() - want - bias.numpy()) <= error * (size + 1)).all()


def autocast_affine(x, weight, bias):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return affine(x, weight, bias)


@pytest.mark.skipif(not ON_MATRIX_UNITS, reason="no matrix units")
def test_affine_on_matrix_units_knows_a_weight_that_is_bf16(monkeypatch):
    """The second bf16 part of a weight is left out only where it is zero: fp32 weights count to the sixteenth bit."""
    x, weight, bias = torch.eye(256), torch.full((256, 32), 1.0), torch.zeros(32)
    monkeypatch.setattr(torch, "addmm", None)  # so that it is ours
    assert (affine(x, weight, bias) == 1).all()
    weight[3, 5] = 1 + 2**-12
    assert affine(x, weight, bias)[3, 5] == 1 + 2**-12


def test_affine_takes_what_matrix_units_do_not_and_gives_gradients():
    generator = torch.Generator().manual_seed(0)
    for rows, depth, columns, dtype in (
        (3, 64, 32, torch.float32),
        (FEW, 10, 32, torch.float32),
        (FEW, 64, 33, torch.float32),
        (FEW, 64, 32, torch.float64),
    ):
        x, weight, bias = (
            torch.randn(*shape, generator=generator, dtype=dtype)
            for shape in ((rows, depth), (depth, columns), (columns,))
        )
        np.testing.assert_allclose(
            affine(x, weight, bias),
            x.double().numpy() @ weight.double().numpy() + bias.double().numpy(),
            rtol=1e-4,
            atol=1e-4,
        )
    x, weight = torch.randn(FEW, 64), torch.randn(64, 32, requires_grad=True)
    affine(x, weight, torch.zeros(32)).sum().backward()
    torch.testing.assert_close(weight.grad, x.sum(0)[:, None].expand(64, 32))
