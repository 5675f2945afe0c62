"""The forward pass's own steps against plain fp64 computations, in C++ and by torch."""

import numpy as np
import pytest
import torch

from lib.kernels import native
from lib.kernels.forward import HEAD, affine, causal_attention, tanh_gelu
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


def test_affine_is_a_product_and_a_bias():
    x, weight, bias = torch.randn(2, 3, 5), torch.randn(5, 7), torch.randn(7)
    np.testing.assert_allclose(affine(x, weight, bias), x.numpy() @ weight.numpy() + bias.numpy(), atol=1e-5)
