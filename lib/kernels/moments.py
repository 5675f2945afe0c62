"""Moments of every neuron's pre-activation and activation over the counted tokens of one seed.

Sums are taken about a pilot mean in pilot units (see `lib.kernels.fused`) and accumulated in fp64, so that neither
large means nor large activations lose digits (docs/method.md §8.1). They are turned into moments once, at the end.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from lib.kernels.fused import SUMS


class Moments:
    """Accumulates the rows of SUMS for the neurons of one seed, axes (layers, sums, neurons of a layer)."""

    def __init__(self, pre_scaling: Float[Tensor, "layers 2 neurons"], post_scaling: Float[Tensor, "layers 2 neurons"]):
        layers, _, neurons = pre_scaling.shape
        self.pre_scaling, self.post_scaling = pre_scaling, post_scaling
        self.sums = torch.zeros(layers, len(SUMS), neurons, dtype=torch.float64, device=pre_scaling.device)
        self.tokens = 0

    def update(self, layer: int, sums: Float[Tensor, "sums neurons"]) -> None:
        """Adds one layer's sums of one batch; `count` tells how many tokens the batch had."""
        self.sums[layer] += sums

    def count(self, tokens: int) -> None:
        """Adds a batch's number of counted tokens, once for all layers."""
        self.tokens += tokens

    def merge(self, other: "Moments") -> None:
        """Adds what another process accumulated with the same scalings."""
        self.sums += other.sums
        self.tokens += other.tokens

    def state_dict(self) -> dict[str, Tensor]:
        """All that is needed to go on, or to compute moments later."""
        return {
            "sums": self.sums,
            "tokens": torch.tensor(self.tokens),
            "pre_scaling": self.pre_scaling,
            "post_scaling": self.post_scaling,
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Goes on from a saved state."""
        self.sums, self.tokens = state["sums"], int(state["tokens"])
        self.pre_scaling, self.post_scaling = state["pre_scaling"], state["post_scaling"]

    def _mean_of(self, name: str) -> Float[Tensor, "layers neurons"]:
        return self.sums[:, SUMS.index(name)] / max(self.tokens, 1)

    def frequency(self) -> Float[Tensor, "layers neurons"]:
        """Share of counted tokens with activation > 0 (`sparsity` in the published tables, docs/method.md §4)."""
        return self._mean_of("active")

    def pre_moments(self) -> dict[str, Float[Tensor, "layers neurons"]]:
        """Mean, variance, skew and kurtosis (a Gaussian has 3) of the pre-activation, population moments.

        A neuron that never changes has variance 0 and, by convention, skew 0 and kurtosis 0.
        """
        m1, m2, m3, m4 = (self._mean_of(f"pre{power}") for power in (1, 2, 3, 4))
        variance = (m2 - m1**2).clamp(min=0)
        alive = variance > _ROUNDING * m2
        variance = torch.where(alive, variance, 0)
        safe = torch.where(alive, variance, 1)
        third = m3 - 3 * m1 * m2 + 2 * m1**3
        fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
        shift, scale = self.pre_scaling[:, 0].double(), self.pre_scaling[:, 1].double()
        return {
            "mean": m1 / scale + shift,
            "var": variance / scale**2,
            "skew": torch.where(alive, third / safe**1.5, 0),
            "kurt": torch.where(alive, fourth / safe**2, 0),
        }

    def scaled_mean(self) -> Float[Tensor, "layers neurons"]:
        """Mean of the activation in scaled units."""
        return self._mean_of("post1")

    def scaled_deviation(self) -> Float[Tensor, "layers neurons"]:
        """Standard deviation of the activation in scaled units; exactly 0 for a dead (constant) neuron."""
        m1, m2 = self._mean_of("post1"), self._mean_of("post2")
        variance = (m2 - m1**2).clamp(min=0)
        return torch.where(variance > _ROUNDING * m2, variance, 0).sqrt()

    def activation_mean_and_deviation(self) -> tuple[Float[Tensor, "layers neurons"], Float[Tensor, "layers neurons"]]:
        """Mean and standard deviation of the activation, in its own units."""
        shift, scale = self.post_scaling[:, 0].double(), self.post_scaling[:, 1].double()
        return self._mean_of("post1") / scale + shift, self.scaled_deviation() / scale


_ROUNDING = 1e-10  # below this share of the second moment a variance is rounding of a constant, not a signal
