"""The steps of a forward pass that torch leaves slow on a CPU, in forward.cpp where it takes them, else by torch."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lib.kernels import native

HEAD = 64  # HEAD in forward.cpp


def tanh_gelu(x: Float[Tensor, "*rows neurons"]) -> Float[Tensor, "*rows neurons"]:
    """gelu_new, x · (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2 (docs/method.md §1), in the type of `x`."""
    if _needs_gradient(x) or not native.takes("gelu", x):
        return F.gelu(x, approximate="tanh")
    made = torch.empty_like(x)
    native.call("gelu", x, made, x.numel())
    return made


def causal_attention(
    q: Float[Tensor, "texts heads tokens d_head"],
    k: Float[Tensor, "texts heads tokens d_head"],
    v: Float[Tensor, "texts heads tokens d_head"],
    scale: float,
) -> Float[Tensor, "texts tokens heads d_head"]:
    """softmax(scale · q kᵀ) v, each token seeing itself and those before it."""
    plain = all(
        one.dtype == torch.float32
        and one.device.type == "cpu"
        and one.stride(3) == 1
        and one.shape == q.shape
        and not _needs_gradient(one)
        for one in (q, k, v)
    )
    if not plain or q.shape[3] != HEAD or native.function("attention_float") is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale).transpose(1, 2)
    texts, heads, tokens, _ = q.shape
    strides = torch.tensor([one.stride()[:3] for one in (q, k, v)])
    made = torch.empty(texts, tokens, heads, HEAD)
    native.call("attention", q, k, v, strides, texts, heads, tokens, float(scale), made)
    return made


def affine(
    x: Float[Tensor, "*rows a"], weight: Float[Tensor, "a b"], bias: Float[Tensor, "b"]
) -> Float[Tensor, "*rows b"]:
    """x · weight + bias."""
    return torch.addmm(bias, x.reshape(-1, x.shape[-1]), weight).view(*x.shape[:-1], weight.shape[1])


def _needs_gradient(x: Tensor) -> bool:
    return torch.is_grad_enabled() and x.requires_grad
