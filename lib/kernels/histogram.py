"""Histograms of every neuron's pre-activation over a fixed range of its own."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class Histogram:
    """Counts pre-activations of one seed in equal bins between `low` and `high`; the outer bins take the rest."""

    def __init__(self, low: Float[Tensor, "layers neurons"], high: Float[Tensor, "layers neurons"], bins: int = 64):
        self.low, self.high = low, high
        self.counts = torch.zeros(*low.shape, bins, dtype=torch.int64, device=low.device)

    def update(self, layer: int, pre: Float[Tensor, "tokens neurons"], counted: Bool[Tensor, "tokens"]) -> None:
        """Adds one layer's pre-activations."""
        _, neurons, bins = self.counts.shape
        width = (self.high[layer] - self.low[layer]).clamp(min=1e-12) / bins
        place = ((pre[counted].float() - self.low[layer]) / width).floor().clamp(0, bins - 1)
        index = place.nan_to_num_(0).to(torch.int64)  # whoever reads a NaN refuses it, by its name
        index += torch.arange(neurons, device=index.device) * bins
        self.counts[layer] += torch.bincount(index.flatten(), minlength=neurons * bins).view(neurons, bins)

    def merge(self, other: "Histogram") -> None:
        """Adds what another process counted over the same ranges."""
        self.counts += other.counts

    def state_dict(self) -> dict[str, Tensor]:
        """`counts` (layers, neurons, bins) and the range `low`, `high` (layers, neurons)."""
        return {"counts": self.counts, "low": self.low, "high": self.high}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Goes on from a saved state."""
        self.counts, self.low, self.high = state["counts"], state["low"], state["high"]
