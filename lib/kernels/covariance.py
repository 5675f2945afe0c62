"""Covariances between layers of seeds, streamed over tokens: Σ_t x(t) y(t)ᵀ for pairs of layers.

`LayerProducts` sums products of operands chunk by chunk; it never sees more than one chunk of tokens. Operands are
activations shifted and scaled by pilot values (`lib.kernels.fused`) and cast to the precision of the product.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

OPERAND_DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}

INT8_TOKENS = 100_000
ENTRIES = 4096  # clipped entries corrected at a time


def fastest_precision(device: torch.device, tokens: int) -> str:
    """The cheapest operand type that this device multiplies natively with an error within 1e-3 ("auto").

    The rounding noise that int8 operands add to a correlation falls with the square root of the tokens; below
    INT8_TOKENS it may pass 1e-3 for neurons with very long tails, and products are cheap enough in fp32.
    """
    if device.type == "cuda":
        return "bf16"
    return "int8" if tokens >= INT8_TOKENS and torch.cpu._is_vnni_supported() else "fp32"


@dataclass
class Operand:
    """One layer's scaled activations on a chunk of tokens, cast; and, for int8, what the cast cut off.

    The entries beyond the range of int8 are few; each has a token, a neuron and the excess that `values` lacks.
    """

    values: Float[Tensor, "tokens neurons"]
    token: Int[Tensor, "entries"]
    neuron: Int[Tensor, "entries"]
    excess: Float[Tensor, "entries"]

    def excess_of(self, tokens: Int[Tensor, "wanted"]) -> Float[Tensor, "wanted neurons"]:
        """The excess of some tokens, dense."""
        place = torch.full((len(self.values),), -1, device=self.values.device)
        place[tokens] = torch.arange(len(tokens), device=tokens.device)
        dense = self.excess.new_zeros(len(tokens), self.values.shape[1])
        kept = place[self.token] >= 0
        dense[place[self.token[kept]], self.neuron[kept]] = self.excess[kept]
        return dense


def product(left: Float[Tensor, "tokens a"], right: Float[Tensor, "tokens b"]) -> Float[Tensor, "a b"]:
    """leftᵀ·right over one chunk: int8 operands give exact int32 sums, bf16 ones fp32 sums where the device can.

    On CPU a bf16 product comes back rounded to bf16; the roundings of different chunks are independent, so the
    relative error of a sum over n chunks is about 2⁻⁹/√n.
    """
    if left.dtype == torch.int8:
        return torch._int_mm(left.T, right)
    if left.dtype == torch.bfloat16 and left.is_cuda:
        return torch.mm(left.T, right, out_dtype=torch.float32)
    return left.T @ right


def add_product(sums: Float[Tensor, "a b"], left: Operand, right: Operand) -> None:
    """Adds (X + E)ᵀ(Y + F) to `sums`, X and Y being the operands' values and E and F what clipping cut off them."""
    sums += product(left.values, right.values)
    for start in range(0, len(left.excess), ENTRIES):  # EᵀY
        part = slice(start, start + ENTRIES)
        rows = right.values[left.token[part]].to(sums.dtype) * left.excess[part, None]
        sums.index_add_(0, left.neuron[part], rows)
    for start in range(0, len(right.excess), ENTRIES):  # XᵀF
        part = slice(start, start + ENTRIES)
        columns = left.values[right.token[part]].to(sums.dtype) * right.excess[part, None]
        sums.index_add_(1, right.neuron[part], columns.T)
    both = left.token.unique()[torch.isin(left.token.unique(), right.token)]  # EᵀF, in the tokens that both clip
    for tokens in both.split(ENTRIES):
        sums += left.excess_of(tokens).T @ right.excess_of(tokens)


class LayerProducts:
    """Sums Σ_t x(t) y(t)ᵀ for a list of pairs of layers, axes (pairs of layers, neurons, neurons)."""

    def __init__(self, pairs: int, neurons: int, dtype: torch.dtype, device: torch.device | str = "cpu"):
        accumulator = torch.float64 if dtype == torch.float64 else torch.float32
        self.sums = torch.zeros(pairs, neurons, neurons, dtype=accumulator, device=device)

    def update(self, left: Sequence[Operand], right: Sequence[Operand]) -> None:
        """Adds one chunk of tokens: for each pair the operands of its two layers, rows in the same order of tokens."""
        for sums, x, y in zip(self.sums, left, right, strict=True):
            add_product(sums, x, y)

    def merge(self, other: "LayerProducts") -> None:
        """Adds what another process accumulated."""
        self.sums += other.sums

    def state_dict(self) -> dict[str, Tensor]:
        """`sums` (pairs of layers, neurons, neurons)."""
        return {"sums": self.sums}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Goes on from a saved state."""
        self.sums = state["sums"]
