"""A sketch of a seed's activations over the tokens: r rows, each the sum of many tokens with random signs.

For two seeds with the same rows and signs, S_aᵀ S_b estimates Σ_t x(t) y(t)ᵀ without bias; the variance of a
correlation is about (1 + ρ²) / r, whatever the neurons' tails (docs/method.md §9). Where each token has a row of its
own the products are exact.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

AT_ONCE = 256  # tokens whose copies in the type of the rows stay in a CPU's cache
EXACT = 512  # tokens in one product where it is to be exact: on a CPU bf16 products come back rounded to bf16
_MULTIPLIERS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)  # of splitmix64, as signed numbers


def hashed(numbers: Int[Tensor, "*numbers"], random_seed: int) -> Int[Tensor, "*numbers"]:
    """Pseudo-random integers below 2⁶³, one for each number and random seed (splitmix64)."""

    def mixed(value):
        for shift, factor in zip((30, 27), _MULTIPLIERS, strict=True):
            value = (value ^ (value >> shift & (1 << 64 - shift) - 1)) * factor
        return value ^ (value >> 31 & (1 << 33) - 1)

    start = mixed(torch.tensor(random_seed + 1))
    return mixed(numbers.long() + start) & 2**63 - 1


def placed(
    tokens: Int[Tensor, "tokens"], rows: int, random_seed: int, own: bool
) -> tuple[Int[Tensor, "tokens"], Float[Tensor, "tokens"]]:
    """Row and sign of tokens by their numbers in the whole text; with `own` the number is the row and no sign changes.

    The row is hashed. The remainder by a number of rows that shares a factor with the context would give a row one
    position of the blocks only, and neurons that know the position would collide with themselves.
    """
    if own:
        return tokens, torch.ones(len(tokens))
    drawn = hashed(tokens, random_seed)
    return (drawn >> 1) % rows, 1.0 - 2.0 * (drawn & 1)


class Sketch:
    """Rows (rows, total) of one seed, total being its neurons, in the pilot's scaled units."""

    def __init__(self, rows: int, total: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"):
        self.rows = torch.zeros(rows, total, dtype=dtype, device=device)

    def update(self, operand: Float[Tensor, "tokens total"], row: Int[Tensor, "tokens"]) -> None:
        """Adds a batch of tokens, signed already, to their rows."""
        if operand.is_cuda:  # adding a row twice in one call would add in any order
            row, order = row.sort(stable=True)
            row, number = row.unique_consecutive(return_counts=True)
            sums = embedding_bag(order, operand.to(self.rows.dtype), number.cumsum(0) - number, mode="sum")
            self.rows.index_add_(0, row, sums)
            return
        for some, to in zip(operand.split(AT_ONCE), row.split(AT_ONCE), strict=True):
            self.rows.index_add_(0, to, some.to(self.rows.dtype))

    def merge(self, other: "Sketch") -> None:
        """Adds what another process saw of the same text."""
        self.rows += other.rows

    def state_dict(self) -> dict[str, Tensor]:
        """`rows` (rows, total)."""
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Goes on from a saved state."""
        self.rows = state["rows"]


def product(
    left: Float[Tensor, "tokens a"], right: Float[Tensor, "tokens b"], piece: int = 2048
) -> Float[Tensor, "a b"]:
    """leftᵀ · right; of bf16 operands with sums in fp32.

    A CPU gives a product of bf16 operands rounded to bf16. The roundings of its n pieces, of `piece` tokens each, are
    independent, so that the relative error of their sum is about 2⁻⁹/√n.
    """
    if left.dtype != torch.bfloat16:
        return left.T @ right
    if left.is_cuda:
        return torch.mm(left.T, right, out_dtype=torch.float32)
    made = torch.zeros(left.shape[1], right.shape[1])
    for a, b in zip(left.split(piece), right.split(piece), strict=True):
        made += a.T @ b
    return made


def squares(rows: Float[Tensor, "rows total"]) -> Float[Tensor, "total"]:
    """Σ of the squares of each column, in fp32 or wider."""
    made = torch.zeros(rows.shape[1], dtype=torch.promote_types(rows.dtype, torch.float32), device=rows.device)
    for some in rows.split(AT_ONCE):
        made += some.to(made.dtype).square().sum(0)
    return made


def halved(rows: Float[Tensor, "rows total"]) -> Float[Tensor, "rows/2 total"]:
    """The sketch of half as many rows, whose errors are larger by √2: the halves added."""
    half = len(rows) // 2
    return rows[:half] + rows[half : 2 * half]


class Products:
    """Σ x(t) y(t)ᵀ of two seeds over all tokens, (layers, neurons of a layer, neurons of the other seed): exact, at N²
    of memory and work a token."""

    def __init__(self, layers: int, neurons: int, right: int, dtype: torch.dtype, device: torch.device | str = "cpu"):
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        self.sums = torch.zeros(layers, neurons, right, dtype=wide, device=device)

    def update(self, left: Float[Tensor, "tokens left"], right: Float[Tensor, "tokens right"]) -> None:
        """Adds a batch of tokens, in the same order in both."""
        for sums, own in zip(self.sums, left.split(self.sums.shape[1], 1), strict=True):
            sums += product(own, right, EXACT)

    def merge(self, other: "Products") -> None:
        """Adds what another process saw of the same text."""
        self.sums += other.sums

    def state_dict(self) -> dict[str, Tensor]:
        """`sums`."""
        return {"sums": self.sums}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Goes on from a saved state."""
        self.sums = state["sums"]


class Within(Products):
    """Σ x(t) x(t)ᵀ of each layer of a seed, (layers, neurons, neurons)."""

    def update(self, operand: Float[Tensor, "tokens total"]) -> None:
        """Adds a batch of tokens."""
        for sums, own in zip(self.sums, operand.split(self.sums.shape[1], 1), strict=True):
            sums += product(own, own, EXACT)
