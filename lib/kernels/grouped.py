"""Grouped moments: how active every neuron of one seed is on the tokens that carry each label.

A *grouping* gives every token one group id of a kind (its own token id, the token before it, its position, …) or −1.
Per group and neuron the accumulator keeps the number of tokens, Σx and Σx², and the number of tokens with activation
above 0; x is the activation about its pilot mean in pilot deviations. Even and odd blocks are summed apart, so that a
label can be chosen on one half of the text and scored on the other (METHOD §5).
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

HALVES = 2  # even blocks, odd blocks
FEW = 1024  # a grouping of at most so many groups also counts the tokens with activation > 0


def tensor_shapes(groups: Mapping[str, int], layers: int, neurons: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and type of every tensor of `GroupedMoments`, by its name in the state.

    Σx is kept by half, Σx² per group over both halves: a score needs Σx² only over all labelled tokens of a half
    (`total_square`). The number of active tokens is what position's mutual information needs; for groupings as large
    as the vocabulary it would add half as much memory again and no score uses it.
    """
    shapes = {}
    for name, size in groups.items():
        shapes[f"{name}.count"] = (HALVES, size), torch.int64
        shapes[f"{name}.sum"] = (layers, HALVES, size, neurons), torch.float32
        shapes[f"{name}.square"] = (layers, size, neurons), torch.float32
        shapes[f"{name}.total_square"] = (layers, HALVES, neurons), torch.float64
        if size <= FEW:
            shapes[f"{name}.active"] = (layers, HALVES, size, neurons), torch.float32
    return shapes


def memory_bytes(groups: Mapping[str, int], layers: int, neurons: int) -> int:
    """What one seed's `GroupedMoments` holds."""
    shapes = tensor_shapes(groups, layers, neurons).values()
    return sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in shapes)


class GroupedMoments:
    """Sums of one seed's activations by group; tensors as in `tensor_shapes`.

    `place` tells where the tokens of a batch belong, once for all layers; `update` adds one layer's activations.
    Rows are first summed within the batch and then added to the accumulator, which keeps fp32 sums over
    millions of tokens within 1e-5 of exact ones and touches each row of the accumulator once.
    """

    def __init__(self, groups: Mapping[str, int], scaling: Float[Tensor, "layers 2 neurons"]):
        layers, _, neurons = scaling.shape
        self.groups, self.scaling = dict(groups), scaling
        self.tensors = {
            name: torch.zeros(shape, dtype=dtype, device=scaling.device)
            for name, (shape, dtype) in tensor_shapes(groups, layers, neurons).items()
        }
        self._places: dict[str, tuple[Tensor, Tensor]] = {}
        self._memory: tuple[Tensor, ...] | None = None

    def place(
        self,
        ids: Mapping[str, Int[Tensor, "blocks context"]],
        counted: Bool[Tensor, "blocks context"],
        blocks: Int[Tensor, "blocks"],
    ) -> None:
        """Takes the group ids of a batch of blocks (their numbers in the text decide their half) and counts them."""
        half = (blocks % HALVES)[:, None]
        for name, size in self.groups.items():
            own = ids[name].long()
            labelled = counted & (own >= 0)
            rows = torch.where(labelled, own + half * size, HALVES * size)  # the last row takes what has no label
            present, inverse, number = rows.flatten().unique(return_inverse=True, return_counts=True)
            inside = present < HALVES * size
            self.tensors[f"{name}.count"].view(-1)[present[inside]] += number[inside]
            self._places[name] = present[inside], inverse

    def update(self, layer: int, post: Float[Tensor, "blocks context neurons"]) -> None:
        """Adds one layer's activations on the batch that was placed last."""
        post = post.flatten(0, 1)  # (tokens, neurons)
        x, squared, active, rows = self._workspace(post)
        shift, scale = self.scaling[layer]
        x.copy_(post)
        torch.gt(x, 0, out=active)
        torch.mul(x.sub_(shift).mul_(scale), x, out=squared)
        for name, size in self.groups.items():
            present, inverse = self._places[name]
            own = rows[: len(present) + 1]
            self._add(f"{name}.sum", layer, present, own.zero_().index_add_(0, inverse, x)[:-1])
            squares = own.zero_().index_add_(0, inverse, squared)[:-1]
            self._add(f"{name}.square", layer, present % size, squares)
            even = int((present < size).sum())  # present is sorted: even blocks' groups come first
            self.tensors[f"{name}.total_square"][layer] += torch.stack([squares[:even].sum(0), squares[even:].sum(0)])
            if size <= FEW:
                self._add(f"{name}.active", layer, present, own.zero_().index_add_(0, inverse, active)[:-1])

    def _workspace(self, post: Float[Tensor, "tokens neurons"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Memory for x, x², activity and the sums by row, kept between batches: fresh memory costs more than the sums."""
        if self._memory is None or self._memory[0].shape != post.shape:
            tokens, neurons = post.shape
            self._memory = tuple(
                torch.empty(length, neurons, device=post.device) for length in (tokens, tokens, tokens, tokens + 1)
            )
        return self._memory

    def _add(self, name: str, layer: int, rows: Int[Tensor, "n"], values: Float[Tensor, "n neurons"]) -> None:
        target = self.tensors[name][layer]
        target.view(-1, target.shape[-1]).index_add_(0, rows, values)

    def merge(self, other: "GroupedMoments") -> None:
        """Adds what another process accumulated with the same scaling."""
        for name, tensor in self.tensors.items():
            tensor += other.tensors[name]

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors of `tensor_shapes` and `scaling` (layers, 2, neurons)."""
        return self.tensors | {"scaling": self.scaling}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Goes on from a saved state."""
        self.scaling = state["scaling"]
        self.tensors = {name: state[name] for name in self.tensors}

    def neuron_moments(self) -> tuple[Float[Tensor, "layers neurons"], Float[Tensor, "layers neurons"]]:
        """Mean and standard deviation of x over the tokens of the first grouping; deviation 0 for a dead neuron."""
        name = next(iter(self.groups))
        tokens = max(1, int(self.tensors[f"{name}.count"].sum()))
        mean = self.tensors[f"{name}.sum"].sum((1, 2), dtype=torch.float64) / tokens
        square = self.tensors[f"{name}.total_square"].sum(1) / tokens
        variance = (square - mean**2).clamp(min=0)
        return mean, torch.where(variance > _ROUNDING * square, variance, 0).sqrt()

    def compact(self) -> dict[str, Tensor]:
        """What scores need, half as large: group means of z = (v − mean) / deviation of the neuron over the whole text.

        `mean`, `deviation` (layers, neurons) in units of the activation; per grouping `count` (halves, groups), `mean`
        (layers, halves, groups, neurons), `spread` (layers, groups, neurons), the deviation of z within a group,
        `center` and `variance` (layers, halves, neurons), mean and variance of z over the labelled tokens of a half, and
        for small groupings `active`, the share of tokens with activation > 0, of the shape of `mean`. Large groupings
        are stored in fp16, which moves a score by less than 1e-3. Empty groups and dead neurons are 0.
        """
        mean, deviation = self.neuron_moments()
        shift, scale = self.scaling[:, 0].double(), self.scaling[:, 1].double()
        inverse = torch.where(deviation > 0, 1 / deviation, 0)
        made = {"mean": mean / scale + shift, "deviation": deviation / scale}
        for name, size in self.groups.items():
            dtype = torch.float32 if size <= FEW else torch.float16
            raw = {key: self.tensors[f"{name}.{key}"] for key in ("count", "sum", "square", "total_square")}
            count = raw["count"].clamp(min=1)[:, :, None]  # (halves, groups, 1)
            own = {"mean": torch.empty(raw["sum"].shape, dtype=dtype), "spread": torch.empty(raw["square"].shape, dtype=dtype)}
            center, variance = (torch.empty_like(raw["total_square"]) for _ in range(2))
            for layer in range(len(mean)):
                m, inv = mean[layer], inverse[layer]
                labelled = raw["count"].sum(1).clamp(min=1)[:, None]  # (halves, 1)
                total = raw["sum"][layer].sum(1, dtype=torch.float64) / labelled
                center[layer] = (total - m) * inv * (raw["count"].sum(1)[:, None] > 0)
                variance[layer] = (raw["total_square"][layer] / labelled - total**2).clamp(min=0) * inv**2
                z = (raw["sum"][layer] / count - m.float()) * inv.float()
                own["mean"][layer] = (z * (raw["count"] > 0)[:, :, None]).clamp(-_FP16, _FP16).to(dtype)
                pooled = raw["count"].sum(0).clamp(min=1)[:, None]
                average = raw["sum"][layer].sum(0) / pooled
                within = (raw["square"][layer] / pooled - average**2).clamp(min=0).sqrt() * inv.float()
                own["spread"][layer] = within.clamp(max=_FP16).to(dtype)
            own |= {"count": raw["count"], "center": center, "variance": variance}
            if size <= FEW:
                own["active"] = self.tensors[f"{name}.active"] / count
            made |= {f"{name}.{key}": tensor for key, tensor in own.items()}
        return made


_ROUNDING = 1e-10  # below this share of the second moment a variance is rounding of a constant, not a signal
_FP16 = 65504.0
