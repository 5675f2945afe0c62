"""The loops that torch leaves slow on a GPU, in Triton: the sums and operands of `lib.kernels.fused`.

torch.compile also makes one loop of the expression, but gives few programs many tokens each: on an H200 it took 2.3 to
4.4 times as long (8,192 and 32,768 tokens of 1,024 neurons in bf16), and some seconds to compile.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

ROWS, COLUMNS, STEPS = 8, 128, 32  # a program reads STEPS times ROWS tokens of COLUMNS neurons


@triton.jit
def _layer_statistics(
    pre,
    post,
    counted,
    sign,
    pre_scaling,
    post_scaling,
    operand,
    partial,
    tokens,
    neurons,
    stride,
    sums: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEPS: tl.constexpr,
):
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < neurons
    pre_shift = tl.load(pre_scaling + column, inside)[None, :]
    pre_scale = tl.load(pre_scaling + neurons + column, inside)[None, :]
    post_shift = tl.load(post_scaling + column, inside)[None, :]
    post_scale = tl.load(post_scaling + neurons + column, inside)[None, :]
    pre1 = tl.zeros((ROWS, COLUMNS), tl.float32)
    pre2, pre3, pre4, active, post1, post2 = pre1, pre1, pre1, pre1, pre1, pre1
    first = tl.program_id(1) * ROWS * STEPS
    for step in range(STEPS):
        row = (first + step * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        there = (row < tokens)[:, None] & inside[None, :]
        weight = tl.load(counted + row, row < tokens, 0.0)[:, None]
        at = row[:, None] * neurons + column[None, :]
        value = tl.load(pre + at, there, 0.0).to(tl.float32)
        x = (value - pre_shift) * pre_scale * weight
        y = (tl.load(post + at, there, 0.0).to(tl.float32) - post_shift) * post_scale * weight
        square = x * x
        pre1 += x
        pre2 += square
        pre3 += square * x
        pre4 += square * square
        active += tl.where(value > 0, weight, 0.0)
        post1 += y
        post2 += y * y
        signed = y * tl.load(sign + row, row < tokens, 0.0)[:, None]
        tl.store(operand + row[:, None] * stride + column[None, :], signed.to(operand.dtype.element_ty), there)
    own = partial + tl.program_id(1) * sums * neurons + column
    tl.store(own, tl.sum(pre1, 0), inside)
    tl.store(own + neurons, tl.sum(pre2, 0), inside)
    tl.store(own + 2 * neurons, tl.sum(pre3, 0), inside)
    tl.store(own + 3 * neurons, tl.sum(pre4, 0), inside)
    tl.store(own + 4 * neurons, tl.sum(active, 0), inside)
    tl.store(own + 5 * neurons, tl.sum(post1, 0), inside)
    tl.store(own + 6 * neurons, tl.sum(post2, 0), inside)


def layer_statistics(
    pre, post, counted, sign, pre_scaling, post_scaling, operand, sums: int
) -> Float[Tensor, "sums neurons"]:
    """`lib.kernels.fused.layer_statistics` of contiguous tensors with an operand (tokens, neurons) in fp32 or bf16."""
    tokens, neurons = pre.shape
    parts = triton.cdiv(tokens, ROWS * STEPS)
    partial = torch.empty(parts, sums, neurons, device=pre.device)
    with torch.cuda.device_of(pre):
        _layer_statistics[(triton.cdiv(neurons, COLUMNS), parts)](
            pre,
            post,
            counted,
            sign,
            pre_scaling,
            post_scaling,
            operand,
            partial,
            tokens,
            neurons,
            operand.stride(0),
            sums,
            ROWS,
            COLUMNS,
            STEPS,
            num_warps=4,
        )
    return partial.sum(0)
