"""Grouped moments: how active every neuron of one layer is on the tokens of each group, and with each label.

A *grouping* gives every token one group id of a kind (its own token id, the token before it, its position, …) or −1.
A *table* has a row for each of some sets of groups: single groups, or all groups that carry a label; rows may overlap.
Per row and neuron the accumulator keeps the number of tokens and Σx, and where the table says so Σx² and the number of
tokens with activation above 0; x is the activation about its pilot mean in pilot deviations. Even and odd blocks are
summed apart, so that a label can be chosen on one half of the text and scored on the other (docs/method.md §5).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import block_diag, csc_array, csr_array, vstack
from torch import Tensor
from torch.nn.functional import embedding_bag

HALVES = 2  # even blocks, odd blocks
KINDS = SUM, SQUARE, ACTIVE = "sum", "square", "active"  # Σx, Σx², number of tokens with activation > 0
PIECE = 64  # most tokens that rows share a sum of
MANY = 1 / 32  # rows of more of a batch's tokens, and of more than PIECE, are summed from pieces that they share
FEW = 1024  # means of a table of at most so many rows are stored in fp32

Layout = tuple[tuple[str, int, str], ...]  # of each table its name, its rows and its kinds of sums, as "sum square"


@dataclass(frozen=True)
class Table:
    """Row r sums the tokens whose group g of the grouping has `member`[r, g]; `kinds` are of KINDS."""

    grouping: str
    member: Bool[csc_array, "rows groups"]
    kinds: tuple[str, ...] = (SUM,)


def layout_of(tables: Mapping[str, Table]) -> Layout:
    """What the tensors of `GroupedMoments` depend on."""
    return tuple((name, table.member.shape[0], " ".join(table.kinds)) for name, table in tables.items())


def rows_of(layout: Layout, kind: str) -> dict[str, slice]:
    """Where the tables that have a kind of sum lie in its tensor: their rows of even blocks, then those of odd ones.

    Where Σx² is kept, a last row after the table's own is of all tokens that have a group.
    """
    found, first = {}, 0
    for name, rows, kinds in layout:
        if kind in kinds.split():
            found[name] = slice(first, first + HALVES * (rows + (SQUARE in kinds.split())))
            first = found[name].stop
    return found


def rows_in(layout: Layout, kind: str) -> int:
    """Rows of a kind's tensor."""
    return max((part.stop for part in rows_of(layout, kind).values()), default=0)


def memory_bytes(layout: Layout, neurons: int) -> int:
    """What one layer's `GroupedMoments` holds."""
    return 8 * rows_in(layout, SUM) + 4 * neurons * sum(rows_in(layout, kind) for kind in KINDS)


class Bags:
    """The product of a matrix of zeros and ones with activations, added up in the same order at every call."""

    def __init__(self, matrix: Bool[csr_array, "sums tokens"], device):
        self.index, self.first = (torch.tensor(part, device=device) for part in (matrix.indices, matrix.indptr[:-1]))

    def of(self, values: Float[Tensor, "tokens neurons"]) -> Float[Tensor, "sums neurons"]:
        """The product, in fp32; the sums of bf16 values are rounded to bf16, which no mean over many batches shows."""
        if not len(self.first):
            return values[:0].float()
        return embedding_bag(self.index, values, self.first, mode="sum").float()


class Place:
    """Where a batch's tokens belong in the tensor of one kind of sum: rows of few tokens; and rows of many, which are
    summed from pieces that they share (`shared_pieces`)."""

    def __init__(self, tables: Sequence[tuple[csr_array, csr_array, csr_array]], device):
        rows, pieces, many = zip(*tables, strict=True)
        rows = vstack(rows, format="csr")
        few_rows, many_rows = np.flatnonzero((np.diff(rows.indptr) > 0) & ~is_long(rows)), np.flatnonzero(is_long(rows))
        numbers = np.diff(rows.indptr), few_rows, many_rows
        self.tokens, self.few_rows, self.many_rows = (torch.tensor(one, device=device).long() for one in numbers)
        self.few, self.pieces = Bags(rows[few_rows], device), Bags(vstack(pieces, format="csr"), device)
        self.many = Bags(block_diag(many, format="csr"), device)

    def add(self, values: Float[Tensor, "tokens neurons"], sums: Float[Tensor, "rows neurons"]) -> None:
        """Adds the tokens' values to the sums; each row is added to once."""
        sums.index_add_(0, self.few_rows, self.few.of(values))
        sums.index_add_(0, self.many_rows, self.many.of(self.pieces.of(values)))


def is_long(rows: Bool[csr_array, "rows tokens"]) -> Bool[np.ndarray, "rows"]:
    """Which rows are of many tokens."""
    return np.diff(rows.indptr) > max(PIECE, rows.shape[1] * MANY)


def shared_pieces(
    rows: Bool[csr_array, "rows tokens"],
) -> tuple[Bool[csr_array, "pieces tokens"], Bool[csr_array, "rows pieces"]]:
    """Rows as sums of pieces, each of up to PIECE tokens that are in the same rows: half as many additions, and no sum
    so long that a GPU has to wait for it."""
    dense = rows.toarray()
    tokens = np.flatnonzero(dense.any(0))
    if len(tokens):
        tokens = tokens[np.lexsort(np.packbits(dense[:, tokens], axis=0))]
    dense = dense[:, tokens]
    new = np.append(True, (dense[:, 1:] != dense[:, :-1]).any(0))[: len(tokens)]
    within = np.arange(len(tokens)) - np.maximum.accumulate(np.where(new, np.arange(len(tokens)), 0))
    first = np.flatnonzero(within % PIECE == 0)
    ones, begin = np.ones(len(tokens), dtype=bool), np.append(first, len(tokens))
    return csr_array((ones, tokens, begin), (len(first), rows.shape[1])), csr_array(dense[:, first])


class Places:
    """The tables of a text, turned into places batch by batch; all layers of all seeds share them."""

    KEPT = 32  # batches

    def __init__(self, ids: Mapping[str, Int[Tensor, "blocks context"]], tables: Mapping[str, Table], device="cpu"):
        self.layout, self.device = layout_of(tables), device
        self._summed = {}  # by table the ids of its grouping, and the membership in its rows and in that of all
        for name, table in tables.items():
            everyone = np.ones((int(SQUARE in table.kinds), table.member.shape[1]), dtype=bool)
            self._summed[name] = ids[table.grouping], vstack([table.member, everyone], format="csc")
        self._batches: dict[tuple[int, int], dict[str, Place]] = {}

    def at(self, blocks: Int[Tensor, "blocks"], counted: Bool[Tensor, "tokens"]) -> dict[str, Place]:
        """The places of a batch of blocks by kind of sum; the blocks' numbers in the text decide their half."""
        key = int(blocks[0]), len(blocks)
        if key not in self._batches:
            if len(self._batches) >= self.KEPT:
                self._batches.pop(next(iter(self._batches)))
            rows = {name: self._rows(name, blocks.cpu(), counted.cpu().numpy()) for name in self._summed}
            made = {name: (own, *shared_pieces(own[is_long(own)])) for name, own in rows.items()}
            by_kind = {kind: [made[name] for name in rows_of(self.layout, kind)] for kind in KINDS}
            self._batches[key] = {kind: Place(tables, self.device) for kind, tables in by_kind.items() if tables}
        return self._batches[key]

    def _rows(self, name: str, blocks: Tensor, counted: np.ndarray) -> Bool[csr_array, "rows tokens"]:
        """Which tokens of a batch are in which rows of a table, those of even blocks before those of odd ones."""
        ids, member = self._summed[name]
        ids, half = ids[blocks].numpy().ravel(), np.repeat(blocks.numpy() % HALVES, len(counted) // len(blocks))
        tokens = np.flatnonzero(counted & (ids >= 0))
        carried = member[:, ids[tokens]].tocoo()
        places = carried.row + half[tokens][carried.col] * member.shape[0], tokens[carried.col]
        return csr_array((carried.data, places), (HALVES * member.shape[0], len(counted)))


class GroupedMoments:
    """Sums of one layer's activations: `count` (rows), and by kind of sum (rows, neurons) with the tables of `rows_of`.

    Rows are first summed within the batch and then added to the accumulator, which keeps fp32 sums over
    millions of tokens within 1e-5 of exact ones and touches each row of the accumulator once.
    """

    def __init__(self, layout: Layout, scaling: Float[Tensor, "2 neurons"]):
        self.layout, self.scaling = tuple(layout), scaling
        neurons, device = scaling.shape[1], scaling.device
        self.tensors = {kind: torch.zeros(rows_in(layout, kind), neurons, device=device) for kind in KINDS}
        self.tensors["count"] = torch.zeros(rows_in(layout, SUM), dtype=torch.int64, device=device)

    def update(self, post: Float[Tensor, "tokens neurons"], at: Mapping[str, Place]) -> None:
        """Adds a batch of whole blocks whose tokens belong to the places `at`."""
        x = (post - self.scaling[0]).mul_(self.scaling[1]).to(post.dtype)
        for kind, place in at.items():  # in the order of KINDS, in the memory of x
            if kind == SUM:
                self.tensors["count"] += place.tokens
            if kind == SQUARE:
                x.mul_(x)
            if kind == ACTIVE:
                torch.gt(post, 0, out=x)
            place.add(x, self.tensors[kind])

    def merge(self, other: "GroupedMoments") -> None:
        """Adds what another process accumulated with the same scaling."""
        for name, tensor in self.tensors.items():
            tensor += other.tensors[name]

    def state_dict(self) -> dict[str, Tensor]:
        """The sums and `scaling` (2, neurons)."""
        return self.tensors | {"scaling": self.scaling}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Goes on from a saved state."""
        self.scaling = state["scaling"]
        self.tensors = {name: state[name] for name in self.tensors}

    def by_table(self, name: str) -> dict[str, Tensor]:
        """A table's `count` (halves, rows) and its sums by kind (halves, rows, neurons), as views."""
        found = {kind: self.tensors[kind][part] for kind in KINDS if (part := rows_of(self.layout, kind).get(name))}
        found["count"] = self.tensors["count"][rows_of(self.layout, SUM)[name]]
        return {key: tensor.unflatten(0, (HALVES, -1)) for key, tensor in found.items()}

    def neuron_moments(self) -> tuple[Float[Tensor, "neurons"], Float[Tensor, "neurons"]]:
        """Mean and standard deviation of x over all tokens of the first table with Σx²; deviation 0 for a dead
        neuron."""
        own = self.by_table(next(iter(rows_of(self.layout, SQUARE))))
        tokens = own["count"][:, -1].sum().clamp(min=1)
        mean, square = (own[kind][:, -1].double().sum(0) / tokens for kind in (SUM, SQUARE))
        variance = (square - mean**2).clamp(min=0)
        return mean, torch.where(variance > _ROUNDING * square, variance, 0).sqrt()

    def compact(self) -> dict[str, Tensor]:
        """What scores need: means by row of z = (v − mean) / deviation of the neuron over the whole text.

        `mean`, `deviation` (neurons) in units of the activation; per table `count` (halves, rows) and `mean` (halves,
        rows, neurons). With Σx² also `spread` (rows, neurons), the deviation of z within a row, and over all tokens
        that have a group their number `tokens` (halves), and `center` and `variance` (halves, neurons), mean and
        variance of z. With counts of activity `active`, the share of tokens with activation > 0, of the shape of
        `mean`. Means of large tables are stored in fp16, which moves a score by less than 1e-3. Empty rows and dead
        neurons are 0. The sums are used up.
        """
        mean, deviation = self.neuron_moments()
        inverse = torch.where(deviation > 0, 1 / deviation, 0)
        shift, scale = self.scaling.double()
        made = {"mean": mean / scale + shift, "deviation": deviation / scale}
        for name, rows, _ in self.layout:
            sums = self.by_table(name)
            count, total = sums["count"], sums[SUM]
            number = count.clamp(min=1)[..., None]
            own = {"count": count[:, :rows]}
            if ACTIVE in sums:
                own["active"] = sums[ACTIVE][:, :rows] / number[:, :rows]
            if SQUARE in sums:
                square, both = sums[SQUARE], count.sum(0).clamp(min=1)[:, None]
                center, variance = total[:, -1].double() / number[:, -1], square[:, -1].double() / number[:, -1]
                within = (square.sum(0) / both).sub_((total.sum(0) / both).square_()).clamp_(min=0).sqrt_()
                own |= {
                    "spread": within[:rows] * inverse.float(),
                    "tokens": count[:, -1],
                    "center": (center - mean) * inverse * (count[:, -1:] > 0),
                    "variance": (variance - center**2).clamp(min=0) * inverse**2,
                }
            z = total.div_(number).sub_(mean.float()).mul_(inverse.float()).mul_(count[..., None] > 0)[:, :rows]
            own["mean"] = z if rows <= FEW else z.clamp(-_FP16, _FP16).half()
            made |= {f"{name}.{key}": tensor for key, tensor in own.items()}
        self.tensors = {}
        return made


_ROUNDING = 1e-10  # below this share of the second moment a variance is rounding of a constant, not a signal
_FP16 = 65504.0
