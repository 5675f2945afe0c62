"""The tokens on which each neuron of one seed is most active, with the activations around them."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

PER_BLOCK = 2  # at most this many examples of a neuron from one block of text


class TopExamples:
    """Keeps each neuron's k highest activations: value, block, position, and a window of activations around it."""

    def __init__(self, layers: int, neurons: int, k: int = 20, radius: int = 12, device: torch.device | str = "cpu"):
        shape = (layers, neurons, k)
        self.radius = radius
        self.value = torch.full(shape, -torch.inf, device=device)
        self.block = torch.full(shape, -1, dtype=torch.int32, device=device)
        self.position = torch.full(shape, -1, dtype=torch.int16, device=device)
        self.window = torch.full((*shape, 2 * radius + 1), torch.nan, dtype=torch.float16, device=device)

    def update(
        self,
        layer: int,
        post: Float[Tensor, "blocks context neurons"],
        counted: Bool[Tensor, "blocks context"],
        blocks: Int[Tensor, "blocks"],
    ) -> None:
        """Adds one layer's activations on whole blocks of text, `blocks` being their numbers in the text."""
        start = 0 if counted[:, 0].any() else 1  # BOS, whose activations are often the largest, never counts
        highest = post[:, start:].amax(1).float()  # (blocks, neurons), a screen: other uncounted tokens are still in it
        for i, block in enumerate(blocks.tolist()):
            wanted = (highest[i] > self.value[layer, :, -1]).nonzero().squeeze(1)  # neurons that may gain an example
            if len(wanted):
                series = post[i][:, wanted].float().masked_fill_(~counted[i][:, None], -torch.inf)
                self._add_block(layer, wanted, series.T, block)

    def _add_block(self, layer: int, wanted: Int[Tensor, "n"], series: Float[Tensor, "n context"], block: int) -> None:
        value, position = series.topk(min(PER_BLOCK, series.shape[1]), dim=1)  # (n, PER_BLOCK)
        reach = torch.arange(-self.radius, self.radius + 1, device=series.device)
        at = position[..., None] + reach  # (n, PER_BLOCK, window)
        inside = (at >= 0) & (at < series.shape[1])
        n, two, width = at.shape
        window = series.gather(1, at.clamp(0, series.shape[1] - 1).view(n, -1)).view(n, two, width)
        window = window.masked_fill(~inside | window.isinf(), torch.nan).clamp(-65504, 65504).half()
        self._keep_highest(
            layer,
            wanted,
            value,
            torch.full_like(position, block, dtype=torch.int32).masked_fill(value.isinf(), -1),
            position.to(torch.int16),
            window,
        )

    def _keep_highest(self, layer: int, wanted: Int[Tensor, "n"], value, block, position, window) -> None:
        k = self.value.shape[-1]
        value = torch.cat([self.value[layer, wanted], value], 1)
        value, order = value.sort(dim=1, descending=True, stable=True)  # at a tie the earlier block stays
        order = order[:, :k]
        self.value[layer, wanted] = value[:, :k]
        for name, new in (("block", block), ("position", position)):
            kept = torch.cat([getattr(self, name)[layer, wanted], new], 1).gather(1, order)
            getattr(self, name)[layer, wanted] = kept
        window = torch.cat([self.window[layer, wanted], window], 1)
        self.window[layer, wanted] = window.gather(1, order[..., None].expand(-1, -1, window.shape[-1]))

    def merge(self, other: "TopExamples") -> None:
        """Takes over the higher examples of another process, which saw other blocks."""
        everyone = torch.arange(self.value.shape[1], device=self.value.device)
        for layer in range(self.value.shape[0]):
            self._keep_highest(
                layer, everyone, other.value[layer], other.block[layer], other.position[layer], other.window[layer]
            )

    def state_dict(self) -> dict[str, Tensor]:
        """Arrays `value`, `block`, `position` (layers, neurons, k) and `window` (layers, neurons, k, 2·radius + 1)."""
        return {name: getattr(self, name) for name in ("value", "block", "position", "window")}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Goes on from a saved state."""
        for name, tensor in state.items():
            setattr(self, name, tensor)
