"""The elementwise work of the pass: one layer's activations of a batch of tokens become sums and a matrix operand.

Everything that touches each activation once is one expression here, so that torch.compile fuses it (C++ on CPU, Triton
on CUDA). Run eagerly it gives the same numbers, some twenty times more slowly. Where products are so fast that this
work counts, loops replace it: native.cpp for 8-bit operands on a CPU, triton_loops.py for fp32 and bf16 on a GPU.
"""

import warnings
from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor

from lib.kernels import native
from lib.kernels.covariance import PANEL

SUMS = ("pre1", "pre2", "pre3", "pre4", "active", "post1", "post2", "operand1", "clipped")
INT8_LIMIT = 127
GPU_TYPES = (torch.float32, torch.bfloat16)  # of activations and operands that triton_loops.py takes


def layer_statistics(
    pre: Float[Tensor, "tokens neurons"],
    post: Float[Tensor, "tokens neurons"],
    counted: Float[Tensor, "tokens 1"],
    pre_scaling: Float[Tensor, "2 neurons"],
    post_scaling: Float[Tensor, "2 neurons"],
    dither: Float[Tensor, "tokens neurons"],
    operand: Float[Tensor, "tokens neurons"] | Int8[Tensor, "tokens neurons"] | Int8[Tensor, "fours 4 panels panel"],
) -> Float[Tensor, "sums neurons"]:
    """Sums over counted tokens (rows as in SUMS); writes what the covariance product needs into `operand`, a view of
    one layer of `lib.kernels.covariance.Operands`.

    Both activations are shifted and scaled first: x = (value − scaling[0]) · scaling[1]. Pre-activations give
    Σx … Σx⁴ and the number of tokens with pre > 0 (GELU keeps the sign); activations give Σy, Σy² and the operand,
    y cast to the type of `operand`. For int8 it is floor(y + dither), with dither uniform in [0, 1), so
    that rounding errors of two neurons are independent and covariances stay unbiased; what falls outside ±127
    is clipped and counted in `clipped` (`clipped_entries` finds it), while `operand1` sums the values before clipping.
    Uncounted tokens contribute zero everywhere.
    """
    wide = torch.float64 if operand.dtype == torch.float64 else torch.float32
    x = (pre.to(wide) - pre_scaling[0]) * pre_scaling[1] * counted  # (tokens, neurons)
    y = (post.to(wide) - post_scaling[0]) * post_scaling[1] * counted
    if operand.dtype == torch.int8:
        rounded = torch.floor(y + dither) * counted
        kept = rounded.clamp(-INT8_LIMIT, INT8_LIMIT)
    else:
        rounded = kept = y
    x2 = x * x
    active = (pre > 0) * counted
    sums = torch.stack(
        [
            x.sum(0),
            x2.sum(0),
            (x2 * x).sum(0),
            (x2 * x2).sum(0),
            active.sum(0),
            y.sum(0),
            (y * y).sum(0),
            rounded.sum(0),
            (rounded != kept).to(wide).sum(0),
        ]
    )
    operand.copy_(kept.view(operand.shape))
    return sums


def clipped_entries(
    post: Float[Tensor, "tokens neurons"],
    counted: Float[Tensor, "tokens 1"],
    post_scaling: Float[Tensor, "2 neurons"],
    dither: Float[Tensor, "tokens neurons"],
    neurons: Int[Tensor, "clipped"],
) -> tuple[Int[Tensor, "entries"], Int[Tensor, "entries"], Float[Tensor, "entries"]]:
    """Token, neuron and excess of every int8 operand that `layer_statistics` clipped, looking at some neurons only."""
    shift, scale = post_scaling[:, neurons]
    rounded = torch.floor((post[:, neurons].float() - shift) * scale + dither[:, neurons]) * counted
    excess = rounded - rounded.clamp(-INT8_LIMIT, INT8_LIMIT)
    token, column = excess.nonzero(as_tuple=True)
    return token, neurons[column], excess[token, column]


NATIVE_ROWS = 256  # ROWS in native.cpp


def native_layer_statistics(
    pre, post, counted, pre_scaling, post_scaling, dither, operand
) -> Float[Tensor, "sums neurons"] | None:
    """`layer_statistics` by native.cpp or, on a GPU, triton_loops.py; None, with nothing done, if neither applies."""
    if pre.is_cuda:
        return _on_gpu(pre, post, counted, pre_scaling, post_scaling, operand)
    (tokens, neurons), others = pre.shape, (counted, pre_scaling, post_scaling, dither)
    panels, stride = operand.dim() == 4, operand.stride(2 if operand.dim() == 4 else 0)
    plain = all(one.dtype == torch.float32 and one.is_contiguous() for one in others)
    plain &= operand.stride()[::3] + operand.stride()[1:2] == (4 * PANEL, 4, 1) if panels else operand.stride(1) == 1
    if not plain or operand.dtype != torch.int8 or not native.takes("statistics", pre, post):
        return None
    partial = torch.empty(-(-tokens // NATIVE_ROWS), len(SUMS), neurons)
    native.call("statistics", pre, post, *others, tokens, neurons, int(panels), stride, partial, operand)
    return partial.sum(0)


def _on_gpu(pre, post, *others_and_operand: Tensor) -> Float[Tensor, "sums neurons"] | None:
    *others, operand = others_and_operand
    plain = all(one.dtype == torch.float32 and one.is_contiguous() for one in others) and operand.stride(1) == 1
    plain &= all(one.dtype in GPU_TYPES and one.is_contiguous() for one in (pre, post)) and operand.dtype in GPU_TYPES
    loop = gpu_loop(pre.device) if plain else None
    return loop and loop(pre, post, *others, operand, len(SUMS))


@cache
def gpu_loop(device: torch.device) -> Callable | None:
    """The loop of triton_loops.py if a first call succeeds: it needs Triton, a compiler and a GPU that Triton knows."""
    try:
        from lib.kernels.triton_loops import layer_statistics as loop

        one = torch.ones(2, 2, device=device)
        loop(one, one, one[:, :1].contiguous(), one, one, torch.empty_like(one), len(SUMS))
    except Exception as error:  # it raises many kinds
        warnings.warn(
            f"the loop in Triton does not work here ({type(error).__name__}); torch.compile does its work, more slowly",
            stacklevel=2,
        )
        return None
    return loop


@cache
def compiled_layer_statistics() -> Callable:
    """`layer_statistics` by torch.compile, at the first call of each shape."""
    # without these the rounded values are written to memory and read again, which takes longer than rounding twice
    options = {"realize_opcount_threshold": 1000, "realize_reads_threshold": 1000}
    return torch.compile(layer_statistics, dynamic=False, options=options)


@cache
def fastest_layer_statistics() -> Callable:
    """`layer_statistics` by a loop of ours, or compiled where the first call shows that a compiler is there, else as it
    stands (with a warning)."""
    chosen = []

    def statistics(*arguments):
        sums = native_layer_statistics(*arguments)
        if sums is not None:
            return sums
        if not chosen:
            compiled = compiled_layer_statistics()  # imports what takes a tenth of a gigabyte
            try:
                found = compiled(*arguments)
            except Exception as error:  # torch.compile raises many kinds; each means the same: no working compiler here
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                warnings.warn(
                    f"torch.compile does not work here ({reason}); the pass runs uncompiled and slower", stacklevel=2
                )
                chosen.append(layer_statistics)
            else:
                chosen.append(compiled)
                return found
        return chosen[0](*arguments)

    return statistics
