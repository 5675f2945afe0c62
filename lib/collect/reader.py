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
from lib.kernels.fused import OPERAND_DTYPES, SUMS, fastest_layer_statistics
from lib.kernels.moments import Moments
from lib.models.trunk import Trunk


@dataclass(frozen=True)
class Batch:
    """Whole blocks of the text, as all seeds read them."""

    number: int
    blocks: Int[Tensor, "blocks"]  # their numbers in the text
    tokens: Int[Tensor, "blocks context"]
    counted: Bool[Tensor, "tokens"]
    sign: Float[Tensor, "tokens 1"]  # of the tokens in operands


@dataclass(frozen=True)
class Seen:
    """One layer's activations on a batch, as accumulators read them."""

    layer: int
    pre: Float[Tensor, "tokens neurons"]
    post: Float[Tensor, "tokens neurons"]
    batch: Batch


def refuse_nan(name: str, sums: Float[Tensor, "layers ... neurons"]) -> None:
    """InputError naming the first neuron whose sums are not finite."""
    broken = (~sums.isfinite()).nonzero()
    if len(broken):
        layer, neuron = int(broken[0, 0]), int(broken[0, -1])
        raise InputError(
            f"seed '{name}', layer {layer}, neuron {neuron}: its activation is NaN or infinite on this text, so no "
            "correlation with it is defined; check the model's weights."
        )


class SeedReader:
    """One seed in one pass, run as far as `depth` layers.

    Without `measured` only the other accumulators are fed: neither moments nor operands are made.
    """

    def __init__(self, name: str, scaling: dict[str, Tensor], depth: int, precision: str, measured: bool = True):
        self.name, self.depth, self.measured, self.scaling = name, depth, measured, scaling
        self.dtype = OPERAND_DTYPES[precision]
        self.empty()
        self._operand: Tensor | None = None  # its memory is kept: to fetch it from the system anew takes long
        self.trunk: Trunk | None = None  # the model; accumulators can be loaded and added without it

    def empty(self) -> None:
        """Forgets all moments, and which accumulators it feeds."""
        self.moments = Moments(self.scaling["pre_scaling"], self.scaling["post_scaling"])
        self.feeds: list[Callable[[Seen], None]] = []

    def read(self, batch: Batch) -> tuple[Float[Tensor, "tokens total"], Float[Tensor, "2 total"]]:
        """The signed operands of all layers on a batch, 0 where a token does not count, and their Σ y and Σ y²; feeds
        moments and all other accumulators on the way."""
        layers, _, neurons = self.moments.post_scaling.shape
        weights = batch.counted.float()[:, None]
        made = self._memory(len(weights), layers * neurons if self.measured else 0, weights.device)
        sums = torch.zeros(2, made.shape[1], dtype=torch.float64, device=weights.device)
        if self.measured:
            self.moments.count(int(batch.counted.sum()))

        def visit(layer: int, pre: Tensor, post: Tensor) -> None:
            pre, post = pre.flatten(0, 1), post.flatten(0, 1)  # (tokens, neurons)
            if self.measured:
                own = slice(layer * neurons, (layer + 1) * neurons)
                scalings = self.moments.pre_scaling[layer], self.moments.post_scaling[layer]
                found = fastest_layer_statistics(pre, post, weights, batch.sign, *scalings, made[:, own])
                self.moments.update(layer, found)
                sums[:, own] = found[[SUMS.index("post1"), SUMS.index("post2")]]
            seen = Seen(layer, pre, post, batch)
            for feed in self.feeds:
                feed(seen)

        self.trunk.run(batch.tokens, visit, self.depth)
        refuse_nan(self.name, self.moments.sums[: self.depth])
        return made, sums

    def _memory(self, tokens: int, total: int, device: torch.device) -> Float[Tensor, "tokens total"]:
        if self._operand is None or len(self._operand) < tokens:
            self._operand = torch.empty(tokens, total, dtype=self.dtype, device=device)
        return self._operand[:tokens]
