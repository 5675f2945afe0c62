"""Four folds of a sample of the text, and second moments of layers over any of them, by algebra.

The blocks are dealt to the folds in order. In each of four turns two folds fit maps, one chooses among them, and one is
scored (docs/method.md §12). Σ y x over each fold gives the moments that all turns need, about the means and in the
deviations of a turn's fitting folds.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.chapters.universality.null_bases import NEGLIGIBLE, inverse

FOLDS = 4  # and as many turns


class Turn(NamedTuple):
    """Which folds fit, which one chooses, and which one is scored."""

    fit: tuple[int, ...]
    tune: int
    score: int

    @property
    def parts(self) -> tuple[tuple[int, ...], ...]:
        """Fit, tune and score."""
        return self.fit, (self.tune,), (self.score,)


TURNS = tuple(Turn(((turn + 2) % FOLDS, (turn + 3) % FOLDS), (turn + 1) % FOLDS, turn) for turn in range(FOLDS))


class Blocks(NamedTuple):
    """For each counted token of a sample, the number of its block, and the fold that the block is in."""

    block: Int[Tensor, "tokens"]
    fold: Int[Tensor, "tokens"]

    @classmethod
    def of(cls, counted: Tensor) -> "Blocks":
        """From the mask (blocks, context) of a sample's counted tokens."""
        block = counted.nonzero()[:, 0]
        return cls(block, block % FOLDS)


class Layer(NamedTuple):
    """A layer on a sample, in deviations about its means, fold by fold, with its means and deviations in each turn's
    fitting folds in these units. `live` has 0 for a neuron that does not vary in a turn's fitting folds."""

    folds: tuple[Float[Tensor, "tokens n"], ...]
    mean: Float[Tensor, "n"]
    deviation: Float[Tensor, "n"]
    sums: Float[Tensor, "folds n"]
    squares: Float[Tensor, "folds n"]
    fit_mean: Float[Tensor, "turns n"]
    fit_deviation: Float[Tensor, "turns n"]

    @classmethod
    def of(cls, values: Float[Tensor, "tokens n"], fold: Int[Tensor, "tokens"]) -> "Layer":
        """0 for a neuron that does not vary on the sample. Overwrites `values`."""
        tokens, mean, norm = len(values), values.mean(0), torch.linalg.vector_norm
        square = norm(values, dim=0).square() / tokens
        variance = norm(values.sub_(mean), dim=0).square() / tokens
        deviation = torch.where(variance > NEGLIGIBLE * square, variance, 0).sqrt()
        values.mul_(inverse(deviation))
        folds = tuple(values[fold == one] for one in range(FOLDS))
        sums = torch.stack([one.sum(0) for one in folds])
        squares = torch.stack([norm(one, dim=0).square() for one in folds])
        fits = [
            [sum(of[one] for one in turn.fit) / cls._number(folds, turn.fit) for turn in TURNS]
            for of in (sums, squares)
        ]
        fit_mean, fit_square = (torch.stack(one) for one in fits)
        spread = fit_square - fit_mean.square()
        return cls(folds, mean, deviation, sums, squares, fit_mean, torch.where(spread > NEGLIGIBLE, spread, 0).sqrt())

    @staticmethod
    def _number(folds: Sequence[Tensor], some: Sequence[int]) -> int:
        return sum(len(folds[one]) for one in some)

    def number(self, some: Sequence[int]) -> int:
        """Tokens of some folds."""
        return self._number(self.folds, some)

    def products(self, other: "Layer") -> list[Float[Tensor, "n k"]]:
        """Σ own × other over each fold."""
        return [own.T @ x for own, x in zip(self.folds, other.folds, strict=True)]

    def scaled(
        self, turn: int, fold: int, rows: Tensor | slice = slice(None), neurons: Tensor | slice = slice(None)
    ) -> Float[Tensor, "rows neurons"]:
        """A fold in deviations of a turn's fitting folds about their means."""
        mean, deviation = self.fit_mean[turn, neurons], self.fit_deviation[turn, neurons]
        return (self.folds[fold][rows][:, neurons] - mean) * inverse(deviation)

    def square(self, turn: int, fold: int) -> Float[Tensor, "n"]:
        """Mean square on a fold about the mean of a turn's fitting folds, in deviations on the whole sample."""
        mean, number = self.fit_mean[turn], len(self.folds[fold])
        return (self.squares[fold] - 2 * mean * self.sums[fold]) / number + mean.square()


def moments(
    products: Sequence[Float[Tensor, "n k"]], own: Layer, other: Layer, turn: int, some: Sequence[int]
) -> Float[Tensor, "n k"]:
    """Second moments of two layers over some folds, in deviations of a turn's fitting folds about their means.

    `products` are those of `own.products(other)`; Σ (y − m)(x − m') = Σ y x − m Σ x − (Σ y) m' + t m m'.
    """
    tokens, found = own.number(some), sum(products[fold] for fold in some)
    sums_own, sums_other = (sum(of.sums[fold] for fold in some) for of in (own, other))
    mean_own, mean_other = own.fit_mean[turn], other.fit_mean[turn]
    found = torch.addr(found, mean_own, sums_other - tokens * mean_other, alpha=-1)
    found.addr_(sums_own, mean_other, alpha=-1)
    found *= (inverse(own.fit_deviation[turn]) / tokens)[:, None]
    return found.mul_(inverse(other.fit_deviation[turn]))


class Moments(NamedTuple):
    """Second moments in one turn, over the parts that fit, choose and are scored."""

    fit: Float[Tensor, "n k"]
    tune: Float[Tensor, "n k"]
    score: Float[Tensor, "n k"]

    @classmethod
    def by_turn(cls, own: Layer, other: Layer, products: Sequence[Tensor]) -> list["Moments"]:
        """One for each turn."""
        return [
            cls(*(moments(products, own, other, number, some) for some in turn.parts))
            for number, turn in enumerate(TURNS)
        ]
