"""The steps of a forward pass that torch leaves slow on a CPU, in forward.cpp where it takes them, else by torch."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lib.kernels import native

HEAD = 64  # HEAD in forward.cpp
WIDE = 32  # matrix units take weights whose number of columns is a multiple of it
FEW = 256  # rows, below which bringing the weight into the order of matrix units is not worth it


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
    exact: bool = False,
) -> Float[Tensor, "texts tokens heads d_head"]:
    """softmax(scale · q kᵀ) v, each token seeing itself and those before it.

    On matrix units scores are exact to fp32's last digit, and weights times values to 2⁻¹⁷ of what is summed. `exact`
    does without these units.
    """
    plain = all(
        one.dtype == torch.float32
        and not one.is_cuda
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
    native.call("attention", q, k, v, strides, texts, heads, tokens, float(scale), int(exact), made)
    return made


def affine(
    x: Float[Tensor, "*rows a"], weight: Float[Tensor, "a b"], bias: Float[Tensor, "b"]
) -> Float[Tensor, "*rows b"]:
    """x · weight + bias; in bf16 with sums in fp32 where autocast is on.

    Matrix units multiply bf16 only. Without autocast each float is given to them as the sum of two bf16 numbers: the
    error is 2⁻¹⁶ of what is summed instead of fp32's 2⁻¹⁸, in a third of the time, or less where the weight is bf16.
    """
    (depth, columns), flat = weight.shape, x.reshape(-1, x.shape[-1])
    exact = not torch.is_autocast_enabled(x.device.type)
    plain = all(one.dtype == torch.float32 and not one.is_cuda for one in (weight, bias)) and not any(
        map(_needs_gradient, (x, weight, bias))
    )
    fits = flat.shape[1] == depth and columns % WIDE == 0 and (x.dtype == torch.float32 or not exact)
    if not plain or not fits or len(flat) < FEW or not _on_matrix_units(flat):
        return torch.addmm(bias, flat, weight).view(*x.shape[:-1], columns)
    made = torch.empty(len(flat), columns, dtype=torch.float32 if exact else torch.bfloat16)
    native.call(
        "affine", flat, weight, bias.contiguous(), len(flat), depth, columns, *weight.stride(), int(exact), made
    )
    return made.view(*x.shape[:-1], columns)


def _on_matrix_units(x: Tensor) -> bool:
    return native.takes("affine", x) and bool(native.function("affine_there")())


def _needs_gradient(x: Tensor) -> bool:
    return torch.is_grad_enabled() and x.requires_grad
