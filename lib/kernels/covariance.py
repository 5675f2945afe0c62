"""Cross-covariances between every pair of seeds and within each layer of a seed, streamed over tokens.

`CrossCovariance` sums products of operands chunk by chunk; it never sees more than one chunk of tokens. Operands are
activations shifted and scaled by pilot values (`lib.kernels.fused`) and cast to the precision of the product.
"""

from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor

OPERAND_DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}

INT8_TOKENS = 100_000


def fastest_precision(device: torch.device, tokens: int) -> str:
    """The cheapest operand type that this device multiplies natively with an error within 1e-3 ("auto").

    The rounding noise that int8 operands add to a correlation falls with the square root of the tokens; below
    INT8_TOKENS it may pass 1e-3 for neurons with very long tails, and products are cheap enough in fp32.
    """
    if device.type == "cuda":
        return "bf16"
    return "int8" if tokens >= INT8_TOKENS and torch.cpu._is_vnni_supported() else "fp32"


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


class CrossCovariance:
    """Sums Σ_t x_a(t) x_b(t)ᵀ for every pair of seeds a < b, and Σ_t x(t) x(t)ᵀ within each layer of each seed."""

    def __init__(self, seeds: list[str], layers: int, neurons: int, dtype: torch.dtype, device: torch.device):
        accumulator = torch.float64 if dtype == torch.float64 else torch.float32
        total = layers * neurons
        self.seeds, self.layers, self.neurons, self.dtype = list(seeds), layers, neurons, dtype
        self.pairs = {
            pair: torch.zeros(total, total, dtype=accumulator, device=device) for pair in combinations(self.seeds, 2)
        }
        self.within = {
            seed: torch.zeros(layers, neurons, neurons, dtype=accumulator, device=device) for seed in self.seeds
        }

    def update(self, operands: dict[str, Float[Tensor, "tokens total"]]) -> None:
        """Adds one chunk of tokens: each seed's operand, rows in the same order of tokens for all seeds."""
        for (a, b), accumulated in self.pairs.items():
            accumulated += product(operands[a], operands[b])
        for seed, operand in operands.items():
            for layer in range(self.layers):
                part = operand[:, layer * self.neurons : (layer + 1) * self.neurons]
                self.within[seed][layer] += product(part, part)

    def merge(self, other: "CrossCovariance") -> None:
        """Adds what another process accumulated."""
        for pair, accumulated in self.pairs.items():
            accumulated += other.pairs[pair]
        for seed, accumulated in self.within.items():
            accumulated += other.within[seed]

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors named `pair.a.b` (total, total) and `within.a` (layers, neurons, neurons)."""
        pairs = {f"pair.{a}.{b}": tensor for (a, b), tensor in self.pairs.items()}
        return pairs | {f"within.{seed}": tensor for seed, tensor in self.within.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Goes on from a saved state."""
        self.pairs = {(a, b): state[f"pair.{a}.{b}"] for a, b in self.pairs}
        self.within = {seed: state[f"within.{seed}"] for seed in self.within}
