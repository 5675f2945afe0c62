"""Chosen pairs of neurons of two seeds, followed exactly over the text: Σ x y of each, by part of the text.

The pairs are candidates that a sketch of the text's first part named. What is summed here comes from the other tokens,
so that a pair's correlation owes nothing to the luck of being chosen among all neurons.
"""

import hashlib
from collections.abc import Callable, Mapping
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from lib.kernels import native

PIECE = 256  # tokens at a time, of which all seeds' operands stay in the caches
ALIGNED = 64  # the last piece is filled up with zeros to a multiple of so many
TOGETHER = 1024  # right neurons of pairs that follow one another, whose activations fit into a core's cache
AT_ONCE = 2**27  # products of activations that torch makes at a time

Pairs = Mapping[tuple[str, str], Int[Tensor, "2 number"]]  # of two seeds: flat indices of the neurons of each


def union(forward: Int[Tensor, "left k"], backward: Int[Tensor, "right k"]) -> Int[Tensor, "2 number"]:
    """All pairs of a left neuron with one of its k candidates, or of a right one with one of its, each once.

    They are sorted by the right neuron's thousand, then by left and right neuron, as `pair_sums` reads them fastest.
    """
    left, right = len(forward), len(backward)
    one = torch.arange(left, device=forward.device)[:, None] * right + forward
    other = backward * right + torch.arange(right, device=forward.device)[:, None]
    both = torch.cat([one.flatten(), other.flatten()]).unique()
    both = both[(both % right // TOGETHER).sort(stable=True).indices]
    return torch.stack([both // right, both % right])


def digest(pairs: Pairs) -> Int[Tensor, "32"]:
    """SHA-256 of the pairs."""
    made = hashlib.sha256()
    for name in sorted(pairs):
        made.update(f"{name}".encode() + pairs[name].cpu().numpy().tobytes())
    return torch.tensor(list(made.digest()), dtype=torch.uint8)


def pair_sums(
    x: Float[Tensor, "left tokens"], y: Float[Tensor, "right tokens"], pairs: Int[Tensor, "2 number"]
) -> Float[Tensor, "number"]:
    """Σ x y of each pair over a batch of tokens, with sums in fp32 (fp64 for fp64)."""
    if native.takes("follow", x, y):
        native.RAN["following"] = "C++"
        made = torch.zeros(pairs.shape[1])
        native.call("follow", x, y, pairs[0], pairs[1], pairs.shape[1], x.shape[1], made)
        return made
    step, work = max(1, AT_ONCE // x.shape[1]), _Fused.products if x.is_cuda else _products
    native.RAN["following"] = "torch.compile" if x.is_cuda and _Fused.works else "torch"
    return torch.cat([work(x, y, *some) for some in zip(pairs[0].split(step), pairs[1].split(step), strict=True)])


def _products(x: Tensor, y: Tensor, left: Tensor, right: Tensor) -> Tensor:
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return (x[left].to(wide) * y[right].to(wide)).sum(1)


class _Fused:
    """`_products` as one kernel of torch.compile, which keeps no product in memory; as it stands where that fails."""

    works = True

    @classmethod
    def products(cls, *given: Tensor) -> Tensor:
        """As `_products`."""
        if cls.works:
            try:
                return cls._compiled()(*given)
            except Exception as error:  # it raises many kinds
                native.warn_slower("torch.compile", f"does not work here ({type(error).__name__}) to follow pairs")
                cls.works = False
        return _products(*given)

    @staticmethod
    @cache
    def _compiled() -> Callable:
        """For pairs and neurons of any number; where torch.compile would give up without a word, it raises."""
        return torch.compile(_products, dynamic=True, fullgraph=True)


class Followed:
    """Σ x y of every pair, and Σ x and Σ x² of every neuron over the same tokens, each by part of the text."""

    def __init__(self, pairs: Pairs, totals: Mapping[str, int], parts: int, wide: torch.dtype, device="cpu"):
        self.pairs = {name: pair.to(device) for name, pair in pairs.items()}
        self.products = {
            name: torch.zeros(parts, pair.shape[1], dtype=wide, device=device) for name, pair in pairs.items()
        }
        self.sums = {
            seed: torch.zeros(parts, 2, total, dtype=torch.float64, device=device) for seed, total in totals.items()
        }
        self.tokens = torch.zeros(parts, dtype=torch.int64)
        self.digest = digest(pairs)

    def update(
        self, part: int, operands: Mapping[str, Float[Tensor, "tokens total"]], sums: Mapping[str, Tensor], tokens: int
    ) -> None:
        """Adds a batch: signed operands of all seeds, their Σ x and Σ x² (2, total), and how many tokens count."""
        for seed in operands:
            self.sums[seed][part] += sums[seed]
        for some in zip(*(one.split(PIECE) for one in operands.values()), strict=True):
            rest = -len(some[0]) % ALIGNED
            turned = [pad(one, (0, 0, 0, rest)).T.contiguous() if rest else one.T.contiguous() for one in some]
            by_seed = dict(zip(operands, turned, strict=True))
            for (a, b), pair in self.pairs.items():
                self.products[a, b][part] += pair_sums(by_seed[a], by_seed[b], pair)
        self.tokens[part] += tokens

    def merge(self, other: "Followed") -> None:
        """Adds what another process saw of the same pairs; ValueError if it followed others."""
        self._check(other.digest)
        for name in self.products:
            self.products[name] += other.products[name]
        for seed in self.sums:
            self.sums[seed] += other.sums[seed]
        self.tokens = self.tokens + other.tokens

    def _check(self, other: Tensor) -> None:
        if not torch.equal(self.digest, other):
            raise ValueError("a saved state followed other candidates; delete the run's folder with `make clean`.")

    def state_dict(self) -> dict[str, Tensor]:
        """`<a>.<b>.products` (parts, pairs), `<seed>.sums` (parts, 2, total), `tokens` (parts), `digest`."""
        state = {f"{a}.{b}.products": sums for (a, b), sums in self.products.items()}
        state |= {f"{seed}.sums": sums for seed, sums in self.sums.items()}
        return state | {"tokens": self.tokens, "digest": self.digest}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Goes on from a saved state; ValueError if it followed other pairs."""
        self._check(state["digest"].cpu())
        self.products = {(a, b): state[f"{a}.{b}.products"] for a, b in self.products}
        self.sums = {seed: state[f"{seed}.sums"] for seed in self.sums}
        self.tokens = state["tokens"].cpu()

    def correlations(
        self, name: tuple[str, str], weights: Float[Tensor, "draws parts"], chosen: Int[Tensor, "chosen"] | None = None
    ) -> Float[Tensor, "draws pairs"]:
        """Correlation of each pair of two seeds, or of some, with parts of the text weighted; 0 with a dead neuron.

        Products are of rounded activations, and of two copies of a neuron their sum can be larger than its variance.
        """
        products, pairs = self.products[name], self.pairs[name]
        if chosen is not None:
            products, pairs = products[:, chosen], pairs[:, chosen]
        weights = weights.to(products.device, torch.float64)
        tokens = (weights @ self.tokens.to(weights)).clamp(min=1)[:, None]
        (mean_a, deviation_a), (mean_b, deviation_b) = [
            [one[:, own] for one in _moments(weights, self.sums[seed], tokens)]
            for seed, own in zip(name, pairs, strict=True)
        ]
        covariance = weights @ products.double() / tokens - mean_a * mean_b
        deviation = deviation_a * deviation_b
        return torch.where(deviation > 0, covariance / deviation.clamp(min=1e-300), 0).clamp(-1, 1)

    def best(
        self, pair: tuple[str, str], weights: Float[Tensor, "parts"]
    ) -> tuple[Float[Tensor, "total"], Int[Tensor, "total"], Int[Tensor, "total"]]:
        """For each neuron of the first seed of a pair, parts of the text weighted: its best correlation, the partner,
        and the number of their pair, which is stored as (a, b) or (b, a)."""
        stored = self.stored(pair)
        own, partner = self.pairs[stored] if stored == pair else self.pairs[stored].flip(0)
        return best(self.correlations(stored, weights[None])[0], own, partner, self.sums[pair[0]].shape[-1])

    def stored(self, pair: tuple[str, str]) -> tuple[str, str]:
        """The pair in the order in which its sums are kept."""
        return pair if pair in self.pairs else pair[::-1]


def _moments(weights: Tensor, sums: Float[Tensor, "parts 2 total"], tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, (draws, total); deviation 0 where only rounding is left of it."""
    first, second = (torch.einsum("dp,pst->sdt", weights, sums) / tokens).unbind()
    variance = second - first**2
    return first, torch.where(variance > ROUNDING * second, variance, 0).sqrt()


ROUNDING = 1e-10  # below this share of the second moment a variance is rounding of a constant, not a signal


def best(
    values: Float[Tensor, "number"], own: Int[Tensor, "number"], partner: Int[Tensor, "number"], total: int
) -> tuple[Float[Tensor, "total"], Int[Tensor, "total"], Int[Tensor, "total"]]:
    """For each of `total` neurons the largest value of its pairs, the partner (at a tie the first) and the pair."""
    order = partner.sort(stable=True).indices
    order = order[values[order].sort(descending=True, stable=True).indices]
    order = order[own[order].sort(stable=True).indices]
    number = torch.bincount(own, minlength=total)
    chosen = order[(number.cumsum(0) - number).clamp(max=max(len(order) - 1, 0))]
    found = number > 0
    return (
        torch.where(found, values[chosen], -torch.inf),
        torch.where(found, partner[chosen], -1),
        torch.where(found, chosen, -1),
    )
