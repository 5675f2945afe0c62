"""The elementwise work of the pass: one layer's activations of a batch of tokens become sums and a matrix operand.

Everything that touches each activation once is one expression here, so that torch.compile fuses it into one
loop (C++ on CPU, Triton on CUDA). Run eagerly it gives the same numbers, some twenty times more slowly.
"""

import warnings
from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor

SUMS = ("pre1", "pre2", "pre3", "pre4", "active", "post1", "post2", "operand1", "clipped")
INT8_LIMIT = 127


def layer_statistics(
    pre: Float[Tensor, "tokens neurons"],
    post: Float[Tensor, "tokens neurons"],
    counted: Float[Tensor, "tokens 1"],
    pre_scaling: Float[Tensor, "2 neurons"],
    post_scaling: Float[Tensor, "2 neurons"],
    dither: Float[Tensor, "tokens neurons"],
    dtype: torch.dtype,
) -> tuple[Float[Tensor, "sums neurons"], Float[Tensor, "tokens neurons"] | Int8[Tensor, "tokens neurons"]]:
    """Sums over counted tokens (rows in the order of SUMS) and the operand of the covariance product.

    Both activations are shifted and scaled first: x = (value − scaling[0]) · scaling[1]. Pre-activations give
    Σx … Σx⁴ and the number of tokens with pre > 0 (GELU keeps the sign); activations give Σy, Σy² and the operand,
    y cast to `dtype`. For int8 the cast is a stochastic rounding, floor(y + dither) with dither uniform in [0, 1), so
    that rounding errors of two neurons are independent and covariances stay unbiased; what falls outside ±127
    is clipped and counted in `clipped` (`clipped_entries` finds it), while `operand1` sums the values before clipping.
    Uncounted tokens contribute zero everywhere.
    """
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x = (pre.to(wide) - pre_scaling[0]) * pre_scaling[1] * counted  # (tokens, neurons)
    y = (post.to(wide) - post_scaling[0]) * post_scaling[1] * counted
    if dtype == torch.int8:
        rounded = torch.floor(y + dither) * counted
        operand = rounded.clamp(-INT8_LIMIT, INT8_LIMIT)
    else:
        rounded = operand = y
    x2 = x * x
    active = (pre > 0) * counted
    sums = torch.stack([
        x.sum(0), x2.sum(0), (x2 * x).sum(0), (x2 * x2).sum(0), active.sum(0),
        y.sum(0), (y * y).sum(0), rounded.sum(0), (rounded != operand).to(wide).sum(0),
    ])  # fmt: skip
    return sums, operand.to(dtype)


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


@cache
def fastest_layer_statistics() -> Callable:
    """`layer_statistics` compiled where the first call shows that a compiler is at hand, else as it stands (with a warning)."""
    compiled, chosen = torch.compile(layer_statistics, dynamic=False), []

    def statistics(*arguments):
        if not chosen:
            try:
                found = compiled(*arguments)
            except Exception as error:  # torch.compile raises many kinds; each means the same: no working compiler here
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                warnings.warn(f"torch.compile does not work here ({reason}); the pass runs uncompiled and slower", stacklevel=2)
                chosen.append(layer_statistics)
            else:
                chosen.append(compiled)
                return found
        return chosen[0](*arguments)

    return statistics
