"""One seed in one pass: its activations on blocks of text become operands of the products, and feed its accumulators.

The pilot, a look at some blocks spread over the text, fixes how activations are shifted and scaled. It is taken once for a run, so
that no number depends on which process handles a block, or in which pass.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lib.base.errors import InputError
from lib.collect.planner import BATCH, batch_blocks
from lib.kernels.covariance import OPERAND_DTYPES, Clipped, Operands
from lib.kernels.fused import INT8_LIMIT, SUMS, clipped_entries, fastest_layer_statistics
from lib.kernels.moments import Moments
from lib.models.trunk import Trunk
from lib.text.blocks import Text

PILOT = 64  # blocks that fix shifts and scales
REACH, REACH_TOKENS = 12.0, 50_000  # int8 operands cover the pilot's range, but on so many tokens not more standard deviations each way
GROWTH, MARGIN = 4.0, 2.0  # on more tokens they reach farther, at most so many times as far and so far beyond the pilot's range
ROWS = 16  # operands have a multiple of so many rows, the last ones 0 where need be: products of 8-bit numbers ask for it on a GPU
PILOT_NAMES = ("pre_scaling", "post_scaling", "low", "high", "post_standard")


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


def pilot(name: str, trunk: Trunk, text: Text, precision: str, device: torch.device) -> dict[str, Tensor]:
    """Shifts and scales of one seed from blocks spread over the text, by PILOT_NAMES.

    Scalings (layers, 2, neurons) of pre-activation and activation, the range (layers, neurons) of the pre-activation, and
    `post_standard`, the activation's mean and inverse deviation whatever the precision of the products.
    """
    spread = torch.linspace(0, len(text.tokens) - 1, min(PILOT, len(text.tokens))).long()
    tokens, counted = text.tokens[spread], text.counted(spread)
    ranges: dict[tuple[str, int], _Range] = {}
    size = BATCH[device.type]
    for start in range(0, len(tokens), size):
        rows = counted[start : start + size].flatten().to(device)

        def visit(layer: int, pre: Tensor, post: Tensor, rows=rows) -> None:
            for kind, values in (("pre", pre), ("post", post)):
                ranges.setdefault((kind, layer), _Range()).update(values.flatten(0, 1)[rows])

        trunk.run(tokens[start : start + size].to(device), visit)
    made: dict[str, list[Tensor]] = {key: [] for key in PILOT_NAMES}
    layers = range(len(ranges) // 2)
    refuse_nan(name, torch.stack([ranges["pre", layer].mean + ranges["post", layer].mean for layer in layers]))
    for layer in layers:
        pre, post = ranges["pre", layer], ranges["post", layer]
        deviation = _floored(pre.deviation)
        made["pre_scaling"].append(torch.stack([pre.mean, 1 / deviation]))
        made["low"].append(pre.low - deviation / 2)
        made["high"].append(pre.high + deviation / 2)
        made["post_standard"].append(_plain_scaling(post))
        made["post_scaling"].append(_int8_scaling(post, text.tokens.numel()) if precision == "int8" else _plain_scaling(post))
    return {key: torch.stack(values).float() for key, values in made.items()}


class _Range:
    """Count, sums and extremes of some neurons' values; sums about the first values' mean, so that few digits are lost."""

    def __init__(self):
        self.count, self.total, self.squares = 0, 0.0, 0.0
        self.about: Tensor | None = None
        self.low, self.high = torch.inf, -torch.inf

    def update(self, values: Float[Tensor, "tokens neurons"]) -> None:
        if not len(values):
            values = torch.zeros(1, values.shape[1], device=values.device)  # no token counts: all scales are floors
        low, high = values.amin(0).double(), values.amax(0).double()
        self.low = torch.minimum(low, torch.as_tensor(self.low, device=values.device).double())
        self.high = torch.maximum(high, torch.as_tensor(self.high, device=values.device).double())
        if values.dtype != torch.float64:
            values = values.float()
        if self.about is None:
            self.about = values.mean(0)
        moved = values - self.about
        self.count += len(values)
        self.total = moved.sum(0).double() + self.total
        self.squares = moved.square_().sum(0).double() + self.squares

    @property
    def mean(self) -> Tensor:
        return self.about + self.total / self.count

    @property
    def deviation(self) -> Tensor:
        return (self.squares / self.count - (self.total / self.count) ** 2).clamp(min=0).sqrt()


def _plain_scaling(post: _Range) -> Float[Tensor, "2 neurons"]:
    return torch.stack([post.mean, 1 / _floored(post.deviation)])


def _int8_scaling(post: _Range, tokens: int) -> Float[Tensor, "2 neurons"]:
    """Steps so fine that a long tail is clipped rather than the bulk made coarse; what is clipped is added exactly.

    The noise of rounding in a correlation is proportional to the step and falls with the square root of the tokens. So steps
    may grow with that root, and with many tokens hardly anything has to be clipped, which is what costs.
    """
    growth = min(GROWTH, max(1.0, (tokens / REACH_TOKENS) ** 0.5))
    low = torch.maximum(post.low, post.mean - growth * REACH * post.deviation)
    high = torch.minimum(post.high, post.mean + growth * REACH * post.deviation)
    return torch.stack([(low + high) / 2, 2 * INT8_LIMIT / _floored((high - low) * min(growth, MARGIN))])


def _floored(scale: Tensor) -> Tensor:
    """Scales no smaller than a hundredth of their median: a neuron silent in the pilot may still fire later."""
    return scale.clamp(min=max(float(scale.median()) / 100, 1e-6))


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

    def __init__(self, name: str, trunk: Trunk, scaling: dict[str, Tensor], depth: int, precision: str, measured: bool = True):
        self.name, self.trunk, self.depth, self.measured = name, trunk, depth, measured
        self.dtype = OPERAND_DTYPES[precision]
        self.device = scaling["low"].device
        self.moments = Moments(scaling["pre_scaling"], scaling["post_scaling"])
        self.feeds: list[Callable[[Seen], None]] = []
        self.statistics = fastest_layer_statistics()

    def operands(self, text: Text, blocks: Int[Tensor, "blocks"], dither: Callable[[int], Tensor]) -> Operands:
        """Each layer's operand on some blocks' tokens, 0 where one does not count; moments and the other accumulators are fed
        on the way.

        `dither` gives the uniform numbers of a batch by its number in the text.
        """
        neurons = self.moments.post_scaling.shape[-1]
        size = batch_blocks(self.device.type, text.context, neurons, len(text.tokens))
        rows, batches = size * text.context, blocks.split(size)
        used, layers = len(batches) * rows, self.depth if self.measured else 0
        made = Operands.empty(-(-used // ROWS) * ROWS, layers, neurons, self.dtype, self.device)
        made.in_order(used).zero_()
        entries: list[list[tuple]] = [[] for _ in range(layers)]
        for first, batch in zip(range(0, used, rows), batches, strict=True):
            self._batch(text, batch, size, dither(int(batch[0]) // size), made.in_order(first, first + rows), entries, first)
        refuse_nan(self.name, self.moments.sums[:layers])
        return Operands(made.values, [Clipped(*map(torch.cat, zip(*own, strict=True))) if own else None for own in entries])

    def _batch(self, text: Text, batch: Tensor, size: int, noise: Tensor, values: Tensor, clipped: list, first: int) -> None:
        """One batch, filled up to `size` blocks, writing its operands into `values` (`Operands.in_order`), whose first token is number `first` of the chunk, and what is clipped of them into `clipped`."""
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
