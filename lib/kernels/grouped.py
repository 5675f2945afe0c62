"""Grouped moments: how active every neuron of one layer is on the tokens that carry each label.

A *grouping* gives every token one group id of a kind (its own token id, the token before it, its position, …) or −1.
Per group and neuron the accumulator keeps the number of tokens, Σx and Σx², and the number of tokens with activation
above 0; x is the activation about its pilot mean in pilot deviations. Even and odd blocks are summed apart, so that a
label can be chosen on one half of the text and scored on the other (docs/method.md §5).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from lib.kernels import native

HALVES = 2  # even blocks, odd blocks
BAG = 4  # tokens a row, at least, from which sums over sorted rows are the faster way on a CPU
FEW = 1024  # a grouping of at most so many groups also counts the tokens with activation > 0


def tensor_shapes(groups: Mapping[str, int], neurons: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and type of every tensor of `GroupedMoments`, by its name in the state.

    Σx is kept by half, Σx² per group over both halves: a score needs Σx² only over all labelled tokens of a half
    (`total_square`). The number of active tokens is what position's mutual information needs; for groupings as large
    as the vocabulary it would add half as much memory again and no score uses it.
    """
    shapes = {}
    for name, size in groups.items():
        shapes[f"{name}.count"] = (HALVES, size), torch.int64
        shapes[f"{name}.sum"] = (HALVES, size, neurons), torch.float32
        shapes[f"{name}.square"] = (size, neurons), torch.float32
        shapes[f"{name}.total_square"] = (HALVES, neurons), torch.float64
        if size <= FEW:
            shapes[f"{name}.active"] = (HALVES, size, neurons), torch.float32
    return shapes


def memory_bytes(groups: Mapping[str, int], neurons: int) -> int:
    """What one layer's `GroupedMoments` holds."""
    shapes = tensor_shapes(groups, neurons).values()
    return sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in shapes)


@dataclass(frozen=True)
class Place:
    """Where a batch's tokens belong in one grouping: the rows half · groups + group that occur, sorted; how many
    of them are of even blocks (these come first); each token's index among them, or one past the last without a label;
    and the tokens that have one in the order of their rows, each row's beginning at `first`."""

    present: Int[Tensor, "rows"]
    even: int
    inverse: Int[Tensor, "tokens"]
    number: Int[Tensor, "rows"]
    order: Int[Tensor, "labelled"]
    first: Int[Tensor, "rows"]

    def sums(
        self, values: Float[Tensor, "tokens neurons"], memory: Float[Tensor, "tokens+1 neurons"]
    ) -> Float[Tensor, "rows neurons"]:
        """Sums of the tokens' values by row; they may lie in `memory`."""
        if values.is_cuda or len(self.present) * BAG <= len(values):  # on a GPU the other way adds in any order
            return embedding_bag(self.order, values, self.first, mode="sum")
        return memory[: len(self.present) + 1].zero_().index_add_(0, self.inverse, values)[:-1]


class Places:
    """The group ids of a text, turned into places batch by batch; all layers of all seeds share them."""

    KEPT = 32  # batches

    def __init__(self, ids: Mapping[str, Int[Tensor, "blocks context"]], groups: Mapping[str, int], device="cpu"):
        self.ids, self.groups, self.device = ids, dict(groups), device
        self._batches: dict[tuple[int, int], dict[str, Place]] = {}
        self._memory: tuple[Tensor, ...] | None = None

    def at(self, blocks: Int[Tensor, "blocks"], counted: Bool[Tensor, "tokens"]) -> dict[str, Place]:
        """The places of a batch of blocks; their numbers in the text decide their half."""
        key = int(blocks[0]), len(blocks)
        if key not in self._batches:
            if len(self._batches) >= self.KEPT:
                self._batches.pop(next(iter(self._batches)))
            self._batches[key] = {name: self._place(name, blocks, counted) for name in self.groups}
        return self._batches[key]

    def _place(self, name: str, blocks: Tensor, counted: Tensor) -> Place:
        size = self.groups[name]
        own = self.ids[name][blocks].to(self.device, torch.int64)
        half = (blocks.to(self.device) % HALVES)[:, None]
        labelled = counted.view(own.shape) & (own >= 0)
        rows = torch.where(labelled, own + half * size, HALVES * size)  # the last row takes what has no label
        present, inverse, number = rows.flatten().unique(return_inverse=True, return_counts=True)
        inside = present < HALVES * size
        number, order = number[inside], inverse.argsort(stable=True)
        even, labelled = int((present < size).sum()), int(number.sum())
        return Place(present[inside], even, inverse, number, order[:labelled], number.cumsum(0) - number)

    def workspace(self, tokens: int, neurons: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Buffers for x, x², activity and the sums by row, kept between batches: allocating costs more than summing."""
        if self._memory is None or self._memory[0].shape != (tokens, neurons):
            self._memory = tuple(
                torch.empty(length, neurons, device=self.device) for length in (tokens, tokens, tokens, tokens + 1)
            )
        return self._memory


class GroupedMoments:
    """Sums of one layer's activations by group; tensors as in `tensor_shapes`.

    Rows are first summed within the batch and then added to the accumulator, which keeps fp32 sums over
    millions of tokens within 1e-5 of exact ones and touches each row of the accumulator once.
    """

    def __init__(self, groups: Mapping[str, int], scaling: Float[Tensor, "2 neurons"]):
        self.groups, self.scaling = dict(groups), scaling
        self.tensors = {
            name: torch.zeros(shape, dtype=dtype, device=scaling.device)
            for name, (shape, dtype) in tensor_shapes(groups, scaling.shape[1]).items()
        }

    def update(self, post: Float[Tensor, "tokens neurons"], places: Places, at: Mapping[str, Place]) -> None:
        """Adds a batch of whole blocks whose tokens belong to the places `at`."""
        if native.takes("grouped", post):
            self._update_natively(post, at)
            return
        x, squared, active, memory = places.workspace(*post.shape)
        x.copy_(post)
        torch.gt(x, 0, out=active)
        torch.mul(x.sub_(self.scaling[0]).mul_(self.scaling[1]), x, out=squared)
        for name, size in self.groups.items():
            place = at[name]
            self.tensors[f"{name}.count"].view(-1)[place.present] += place.number
            self._add(f"{name}.sum", place.present, place.sums(x, memory))
            squares = place.sums(squared, memory)
            self._add(f"{name}.square", place.present % size, squares)
            halves = squares[: place.even], squares[place.even :]
            self.tensors[f"{name}.total_square"] += torch.stack([half.sum(0) for half in halves])
            if size <= FEW:
                self._add(f"{name}.active", place.present, place.sums(active, memory))

    def _update_natively(self, post: Float[Tensor, "tokens neurons"], at: Mapping[str, Place]) -> None:
        """The same in one loop for each grouping, without x or its square in memory."""
        scaling, neurons = self.scaling.float().contiguous(), post.shape[1]
        for name, size in self.groups.items():
            place, own = (
                at[name],
                {
                    key: self.tensors.get(f"{name}.{key}")
                    for key in ("count", "sum", "square", "total_square", "active")
                },
            )
            own["count"].view(-1)[place.present] += place.number
            native.call(
                "grouped",
                post,
                scaling,
                place.order,
                place.first,
                place.number,
                place.present,
                len(place.present),
                place.even,
                size,
                neurons,
                own["sum"],
                own["square"],
                own["total_square"],
                own["active"],
            )

    def _add(self, name: str, rows: Int[Tensor, "n"], values: Float[Tensor, "n neurons"]) -> None:
        target = self.tensors[name]
        target.view(-1, target.shape[-1]).index_add_(0, rows, values)

    def merge(self, other: "GroupedMoments") -> None:
        """Adds what another process accumulated with the same scaling."""
        for name, tensor in self.tensors.items():
            tensor += other.tensors[name]

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors of `tensor_shapes` and `scaling` (2, neurons)."""
        return self.tensors | {"scaling": self.scaling}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Goes on from a saved state."""
        self.scaling = state["scaling"]
        self.tensors = {name: state[name] for name in self.tensors}

    def neuron_moments(self) -> tuple[Float[Tensor, "neurons"], Float[Tensor, "neurons"]]:
        """Mean and standard deviation of x over the tokens of the first grouping; deviation 0 for a dead neuron."""
        name = next(iter(self.groups))
        tokens = max(1, int(self.tensors[f"{name}.count"].sum()))
        mean = self.tensors[f"{name}.sum"].sum((0, 1), dtype=torch.float64) / tokens
        square = self.tensors[f"{name}.total_square"].sum(0) / tokens
        variance = (square - mean**2).clamp(min=0)
        return mean, torch.where(variance > _ROUNDING * square, variance, 0).sqrt()

    def compact(self) -> dict[str, Tensor]:
        """What scores need, half as large: group means of z = (v − mean) / deviation of the neuron over the whole text.

        `mean`, `deviation` (neurons) in units of the activation; per grouping `count` (halves, groups), `mean` (halves,
        groups, neurons), `spread` (groups, neurons), the deviation of z within a group, `center` and `variance`
        (halves, neurons), mean and variance of z over the labelled tokens of a half, and for small groupings `active`,
        the share of tokens with activation > 0, of the shape of `mean`. Large groupings are stored in fp16, which
        moves a score by less than 1e-3. Empty groups and dead neurons are 0. Sums are freed on the way; both never
        have to be in memory.
        """
        mean, deviation = self.neuron_moments()
        inverse = torch.where(deviation > 0, 1 / deviation, 0)
        shift, scale = self.scaling.double()
        made = {"mean": mean / scale + shift, "deviation": deviation / scale}
        for name, size in self.groups.items():
            dtype = torch.float32 if size <= FEW else torch.float16
            count, total, square = (self.tensors.pop(f"{name}.{key}") for key in ("count", "sum", "square"))
            tokens = count.sum(1)[:, None]  # (halves, 1)
            center = total.sum(1, dtype=torch.float64) / tokens.clamp(min=1)
            variance = self.tensors.pop(f"{name}.total_square") / tokens.clamp(min=1) - center**2
            both = count.sum(0).clamp(min=1)[:, None]
            within = square.div_(both).sub_(((total[0] + total[1]) / both).square_()).clamp_(min=0).sqrt_()
            z = total.div_(count.clamp(min=1)[..., None]).sub_(mean.float()).mul_(inverse.float())
            z.masked_fill_((count == 0)[..., None], 0)
            own = {
                "count": count,
                "mean": z.clamp_(-_FP16, _FP16).to(dtype),
                "spread": within.mul_(inverse.float()).clamp_(max=_FP16).to(dtype),
                "center": (center - mean) * inverse * (tokens > 0),
                "variance": variance.clamp(min=0) * inverse**2,
            }
            if size <= FEW:
                own["active"] = self.tensors.pop(f"{name}.active") / count.clamp(min=1)[..., None]
            made |= {f"{name}.{key}": tensor for key, tensor in own.items()}
        return made


_ROUNDING = 1e-10  # below this share of the second moment a variance is rounding of a constant, not a signal
_FP16 = 65504.0
