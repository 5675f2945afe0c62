"""The elementwise work of the pass: one layer's activations of a batch of tokens become sums and a product's operand.

Everything that touches each activation once is one expression here. Loops do the same in one reading of the
activations, where torch takes a dozen: native.cpp on a CPU, triton_loops.py on a GPU.
"""

from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from lib.kernels import native

SUMS = ("pre1", "pre2", "pre3", "pre4", "active", "post1", "post2")
OPERAND_DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}
LOOP_TYPES = (torch.float32, torch.bfloat16)  # of activations and operands that the loops take


def fastest_precision(device: torch.device) -> str:
    """The operand type that this device multiplies fastest ("auto"); its rounding moves no correlation by 1e-3."""
    if device.type == "cuda" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return "bf16"
    return "fp32"


def layer_statistics(
    pre: Float[Tensor, "tokens neurons"],
    post: Float[Tensor, "tokens neurons"],
    counted: Float[Tensor, "tokens 1"],
    sign: Float[Tensor, "tokens 1"],
    pre_scaling: Float[Tensor, "2 neurons"],
    post_scaling: Float[Tensor, "2 neurons"],
    operand: Float[Tensor, "tokens neurons"],
) -> Float[Tensor, "sums neurons"]:
    """Sums over counted tokens (rows as in SUMS); writes what products need into `operand`, cast to its type.

    Both activations are shifted and scaled first: x = (value − scaling[0]) · scaling[1]. Pre-activations give
    Σx … Σx⁴ and the number of tokens with pre > 0 (GELU keeps the sign); activations give Σy, Σy² and the operand
    ±y, with the token's sign. Uncounted tokens contribute zero everywhere.
    """
    wide = torch.float64 if operand.dtype == torch.float64 else torch.float32
    x = (pre.to(wide) - pre_scaling[0]) * pre_scaling[1] * counted  # (tokens, neurons)
    y = (post.to(wide) - post_scaling[0]) * post_scaling[1] * counted
    x2 = x * x
    active = (pre > 0) * counted
    operand.copy_(y * sign)
    return torch.stack([one.sum(0) for one in (x, x2, x2 * x, x2 * x2, active, y, y * y)])


def fastest_layer_statistics(pre, post, counted, sign, pre_scaling, post_scaling, operand) -> Tensor:
    """`layer_statistics` by native.cpp or, on a GPU, triton_loops.py, where they apply."""
    others = counted, sign, pre_scaling, post_scaling
    plain = all(one.dtype == torch.float32 and one.is_contiguous() for one in others) and operand.stride(1) == 1
    plain &= all(one.dtype in LOOP_TYPES and one.is_contiguous() for one in (pre, post)) and operand.dtype in LOOP_TYPES
    if plain and pre.is_cuda and (loop := gpu_loop(pre.device)):
        native.RAN["statistics"] = "Triton"
        return loop(pre, post, *others, operand, len(SUMS))
    if not plain or pre.is_cuda or not native.takes("statistics", pre, post):
        native.RAN["statistics"] = "torch"
        if pre.is_cuda and not plain and operand.dtype in LOOP_TYPES:
            native.warn_slower("the loop in Triton", f"does not take these activations ({pre.dtype}, {pre.stride()})")
        return layer_statistics(pre, post, *others, operand)
    native.RAN["statistics"] = "C++"
    tokens, neurons = pre.shape
    partial = torch.empty(-(-tokens // NATIVE_ROWS), len(SUMS), neurons)
    narrow = int(operand.dtype == torch.bfloat16)
    native.call("statistics", pre, post, *others, tokens, neurons, operand.stride(0), narrow, partial, operand)
    return partial.sum(0)


NATIVE_ROWS = 256  # ROWS in native.cpp


@cache
def gpu_loop(device: torch.device) -> Callable | None:
    """The loop of triton_loops.py if a first call succeeds: it needs Triton, a compiler and a GPU that Triton knows."""
    try:
        from lib.kernels.triton_loops import layer_statistics as loop

        one = torch.ones(2, 2, device=device)
        column = one[:, :1].contiguous()
        loop(one, one, column, column, one, one, torch.empty_like(one), len(SUMS))
    except Exception as error:  # it raises many kinds
        native.warn_slower("the loop in Triton", f"does not work here ({type(error).__name__})")
        return None
    return loop
