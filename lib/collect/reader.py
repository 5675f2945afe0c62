"""One seed in one pass: its activations on blocks of text become operands of the products, and feed its accumulators.

The pilot, a look at some blocks spread over the text, fixes how activations are shifted and scaled. It is taken once
for a run, so that no number depends on which process handles a block, or in which pass.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lib.base.errors import InputError
from lib.collect.planner import batch_blocks
from lib.kernels.covariance import OPERAND_DTYPES, Clipped, Operands
from lib.kernels.fused import SUMS, clipped_entries, fastest_layer_statistics
from lib.kernels.moments import Moments
from lib.models.trunk import Trunk
from lib.text.blocks import Text

ROW_MULTIPLE = 16  # operands are padded with zeros to so many rows, as 8-bit products on a GPU need


@dataclass
class Seen:
    """One layer's activations on a batch of whole blocks, as accumulators read them."""

    layer: int
    pre: Float[Tensor, "tokens neurons"]
    post: Float[Tensor, "tokens neurons"]
    counted: Bool[Tensor, "tokens"]
    blocks: Int[Tensor, "blocks"]  # their numbers in the text
    batch: int  # the batch's

    @property
    def shape(self) -> tuple[int, int, int]:
        """Blocks, context, neurons."""
        return len(self.blocks), len(self.counted) // len(self.blocks), self.post.shape[1]


def refuse_nan(name: str, sums: Float[Tensor, "layers ... neurons"]) -> None:
    """InputError naming the first neuron whose sums are not finite."""
    broken = (~sums.isfinite()).nonzero()
    if len(broken):
        layer, neuron = int(broken[0, 0]), int(broken[0, -1])
        raise InputError(
            f"seed '{name}', layer {layer}, neuron {neuron}: its activation is NaN or infinite on this text, so no "
            "correlation with it is defined; check the model's weights."
        )


class Dither:
    """Uniform numbers in [0, 1) for stochastic rounding, (tokens, neurons) for a batch of one seed.

    They depend on the batch's place in the text and on the seed alone. Two seeds read different rows of one tile at any
    batch, so that their rounding errors are independent.
    """

    def __init__(self, random_seed: int, seeds: int, shape: tuple[int, int], device: torch.device):
        self.rows, neurons = shape
        self.starts = self.rows + seeds  # as many places to start from
        self.spacing = self.starts // seeds
        generator = torch.Generator().manual_seed(random_seed)
        self.tile = torch.rand(self.rows + self.starts, neurons, generator=generator).to(device)

    def of(self, seed: int, batch: int) -> Float[Tensor, "tokens neurons"]:
        """For the seed of this number and the batch of this number."""
        start = (batch * 379 + seed * self.spacing) % self.starts
        return self.tile[start : start + self.rows]


class SeedReader:
    """One seed in one pass, run as far as `depth` layers.

    Without `measured` only the other accumulators are fed: neither moments nor operands are made.
    """

    def __init__(
        self, name: str, trunk: Trunk, scaling: dict[str, Tensor], depth: int, precision: str, measured: bool = True
    ):
        self.name, self.trunk, self.depth, self.measured = name, trunk, depth, measured
        self.dtype = OPERAND_DTYPES[precision]
        self.device = scaling["low"].device
        self.moments = Moments(scaling["pre_scaling"], scaling["post_scaling"])
        self.feeds: list[Callable[[Seen], None]] = []
        self.statistics = fastest_layer_statistics()

    def operands(self, text: Text, blocks: Int[Tensor, "blocks"], dither: Callable[[int], Tensor]) -> Operands:
        """Each layer's operand on the tokens of some blocks, 0 where a token does not count; feeds moments and all
        other accumulators on the way.

        `dither` gives the uniform numbers of a batch by its number in the text.
        """
        neurons = self.moments.post_scaling.shape[-1]
        size = batch_blocks(self.device.type, text.context, neurons, len(text.tokens))
        rows, batches = size * text.context, blocks.split(size)
        used, layers = len(batches) * rows, self.depth if self.measured else 0
        made = Operands.empty(-(-used // ROW_MULTIPLE) * ROW_MULTIPLE, layers, neurons, self.dtype, self.device)
        made.in_order(used).zero_()
        entries: list[list[tuple]] = [[] for _ in range(layers)]
        for first, batch in zip(range(0, used, rows), batches, strict=True):
            self._batch(
                text, batch, size, dither(int(batch[0]) // size), made.in_order(first, first + rows), entries, first
            )
        refuse_nan(self.name, self.moments.sums[:layers])
        return Operands(
            made.values, [Clipped(*map(torch.cat, zip(*own, strict=True))) if own else None for own in entries]
        )

    def _batch(
        self, text: Text, batch: Tensor, size: int, noise: Tensor, values: Tensor, clipped: list, first: int
    ) -> None:
        """One batch, padded to `size` blocks: operands go into `values` (`Operands.in_order`), clipped parts into
        `clipped`; `first` is the number of its first token in the chunk."""
        tokens, mask = _padded(text, batch, size)
        self.moments.count(int(mask.sum()))
        tokens, flat = tokens.to(self.device), mask.flatten().to(self.device)
        weights, used = flat.float()[:, None], len(batch) * text.context  # padding comes last

        def measure(layer: int, pre: Tensor, post: Tensor) -> None:
            scalings = self.moments.pre_scaling[layer], self.moments.post_scaling[layer]
            sums = self.statistics(pre, post, weights, *scalings, noise, values[layer])
            self.moments.update(layer, sums)
            if self.dtype == torch.int8:
                columns = sums[SUMS.index("clipped")].nonzero().squeeze(1)
                if len(columns):
                    token, neuron, excess = clipped_entries(post, weights, scalings[1], noise, columns)
                    clipped[layer].append((token + first, neuron, excess))

        def visit(layer: int, pre: Tensor, post: Tensor) -> None:
            pre, post = pre.flatten(0, 1), post.flatten(0, 1)  # (tokens, neurons)
            if self.measured:
                measure(layer, pre, post)
            seen = Seen(layer, pre[:used], post[:used], flat[:used], batch, int(batch[0]) // size)
            for feed in self.feeds:
                feed(seen)

        self.trunk.run(tokens, visit, self.depth)


def _padded(text: Text, batch: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Tokens and counted mask of a batch, filled up to `size` with uncounted blocks so that its shape never changes."""
    tokens = torch.full((size, text.context), text.bos_id)
    mask = torch.zeros(size, text.context, dtype=torch.bool)
    tokens[: len(batch)], mask[: len(batch)] = text.tokens[batch], text.counted(batch)
    return tokens, mask
