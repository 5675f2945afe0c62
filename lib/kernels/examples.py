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
        highest = _at_least(post[:, start:])  # (blocks, neurons), a screen: other uncounted tokens are still in it
        block, neuron = (highest > self.value[layer, :, -1]).nonzero(
            as_tuple=True
        )  # which block may give which neuron an example
        if not len(block):
            return
        series = post[block, :, neuron].float().masked_fill_(~counted[block], -torch.inf)  # (pairs, context)
        value, position = series.topk(min(PER_BLOCK, series.shape[1]), dim=1)  # (pairs, PER_BLOCK)
        reach = torch.arange(-self.radius, self.radius + 1, device=series.device)
        at = position[..., None] + reach  # (pairs, PER_BLOCK, window)
        inside = (at >= 0) & (at < series.shape[1])
        window = series.gather(1, at.clamp(0, series.shape[1] - 1).flatten(1)).view(at.shape)
        window = window.masked_fill(~inside | window.isinf(), torch.nan).clamp(-65504, 65504).half()
        number = blocks.to(block.device, torch.int32)[block][:, None].expand_as(value).masked_fill(value.isinf(), -1)
        wanted, row = neuron.unique(return_inverse=True)
        found = {"value": value, "block": number, "position": position.to(torch.int16), "window": window}
        self._keep_highest(
            layer, wanted, {name: _by_neuron(new, wanted, row, block, len(post)) for name, new in found.items()}
        )

    def _keep_highest(self, layer: int, wanted: Int[Tensor, "n"], found: dict[str, Tensor]) -> None:
        k = self.value.shape[-1]
        value = torch.cat([self.value[layer, wanted], found["value"]], 1)
        order = value.sort(dim=1, descending=True, stable=True).indices[:, :k]  # at a tie the earlier block stays
        for name, new in found.items():
            kept = torch.cat([getattr(self, name)[layer, wanted], new], 1)
            index = order if kept.dim() == 2 else order[..., None].expand(-1, -1, kept.shape[-1])
            getattr(self, name)[layer, wanted] = kept.gather(1, index)

    def merge(self, other: "TopExamples") -> None:
        """Takes over the higher examples of another process, which saw other blocks."""
        everyone = torch.arange(self.value.shape[1], device=self.value.device)
        for layer in range(self.value.shape[0]):
            self._keep_highest(layer, everyone, {name: tensor[layer] for name, tensor in other.state_dict().items()})

    def state_dict(self) -> dict[str, Tensor]:
        """Arrays `value`, `block`, `position` (layers, neurons, k) and `window` (layers, neurons, k, 2·radius + 1)."""
        return {name: getattr(self, name) for name in ("value", "block", "position", "window")}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Goes on from a saved state."""
        for name, tensor in state.items():
            setattr(self, name, tensor)


def _at_least(post: Float[Tensor, "blocks context neurons"]) -> Float[Tensor, "blocks neurons"]:
    """The largest activation, or 0 where none is positive. Positive floats are in the order of their bits, and the
    largest of whole numbers is found several times as fast."""
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[post.dtype.itemsize]
    return post.view(whole).amax(1).clamp(min=0).view(post.dtype).float()


def _by_neuron(
    found: Float[Tensor, "pairs two ..."],
    wanted: Int[Tensor, "n"],
    row: Int[Tensor, "pairs"],
    block: Int[Tensor, "pairs"],
    blocks: int,
) -> Float[Tensor, "n candidates ..."]:
    """What pairs of block and neuron found, by neuron and block; −inf (or −1) where a block has no pair."""
    empty = -torch.inf if found.is_floating_point() else -1
    slots = torch.full((len(wanted), blocks, *found.shape[1:]), empty, dtype=found.dtype, device=found.device)
    slots[row, block] = found
    return slots.flatten(1, 2)
