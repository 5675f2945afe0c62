"""The ladder of maps for two seeds: how much of each neuron of one is in one neuron, a few, a rotation, all of a layer.

Maps are fitted on one part of a sample of the text, their penalty and the other seed's layer are chosen on a second,
and R² is taken on a third (docs/method.md §12). The same is done with the other seed's pre-activations rotated, which
keeps the nonlinearity. Nothing here knows a run.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.chapters.same_function import maps
from lib.chapters.universality.null_bases import NEGLIGIBLE, inverse, passed_again

FIT, TUNE, SCORE = range(3)
PATTERN = (FIT, FIT, SCORE, FIT, FIT, FIT, TUNE, FIT)  # of blocks, over and over
RUNGS = ("one", *(f"few_{number}" for number in maps.FEW), "all")  # a neuron's layer is chosen for each
KEPT = ("one", "all")  # rungs whose predictions are transplanted
WHOLE = ("one_to_one", "orthogonal", "nearest", "half")  # from the layer of largest CKA: maps of whole layers, and
# ridge regression from all of the fitting text and from half of it
NEAR = 5  # layers, from the one at the same depth, that are compared


class Parts(NamedTuple):
    """For each counted token of a sample, which part its block is in, and the number of its block."""

    part: Int[Tensor, "tokens"]
    block: Int[Tensor, "tokens"]

    @classmethod
    def of(cls, counted: Tensor) -> "Parts":
        """From the mask (blocks, context) of a sample's counted tokens."""
        block = counted.nonzero()[:, 0]
        return cls(torch.tensor(PATTERN)[block % len(PATTERN)], block)


class Layer(NamedTuple):
    """A layer on the sample, in deviations of the part FIT about its means: (tokens, neurons) for each part."""

    parts: tuple[Tensor, Tensor, Tensor]
    mean: Float[Tensor, "n"]
    deviation: Float[Tensor, "n"]

    @classmethod
    def of(cls, values: Float[Tensor, "tokens n"], part: Int[Tensor, "tokens"]) -> "Layer":
        """0 for a neuron that does not vary on the part FIT."""
        own = values[part == FIT]
        mean, square = own.mean(0), own.square().mean(0)
        variance = own.sub_(mean).square().mean(0)
        deviation = torch.where(variance > NEGLIGIBLE * square, variance, 0).sqrt()
        scale = inverse(deviation)
        rest = ((values[part == one] - mean).mul_(scale) for one in (TUNE, SCORE))
        return cls((own.mul_(scale), *rest), mean, deviation)

    def within(self, part: int) -> Float[Tensor, "n n"]:
        """Second moments on a part."""
        return self.parts[part].T @ self.parts[part] / len(self.parts[part])


class Predictor(NamedTuple):
    """A layer of the other seed: its values, its second moments on FIT and TUNE, and what ridge regression needs."""

    layer: Layer
    fit: Float[Tensor, "n n"]
    tune: Float[Tensor, "n n"]
    factors: list[Float[Tensor, "n n"]]

    @classmethod
    def of(cls, values: Float[Tensor, "tokens n"], part: Int[Tensor, "tokens"]) -> "Predictor":
        layer = Layer.of(values, part)
        fit = layer.within(FIT)
        return cls(layer, fit, layer.within(TUNE), maps.ridge_factors(fit))


@dataclass
class Found:
    """What one rung says of k neurons: the layer that is best on TUNE, its R² there, and squared errors on SCORE.

    Where no map is better than the mean of FIT on TUNE, that mean is the prediction, and the layer is −1.
    """

    errors: Float[Tensor, "blocks k"]
    tuned: Float[Tensor, "k"]
    layer: Int[Tensor, "k"]
    neuron: Int[Tensor, "k"]  # the first that is used, where they are few
    weight: Float[Tensor, "k"]  # of that one
    predicted: Float[Tensor, "tokens k"] | None  # on SCORE

    @classmethod
    def nothing(cls, total: Float[Tensor, "blocks k"], tokens: int) -> "Found":
        """Before any map is tried; predictions are kept if there are `tokens`."""
        zero, none = total.new_zeros(total.shape[1]), torch.full((total.shape[1],), -1, device=total.device)
        kept = total.new_zeros(tokens, total.shape[1]) if tokens else None
        return cls(total.clone(), zero, none, none, zero, kept)

    def improve(self, layer: int, tuned: Tensor, errors: Tensor, predicted: Tensor, used: tuple | None) -> None:
        """Takes a layer's map for the neurons that it predicts better on TUNE."""
        better = tuned > self.tuned
        self.tuned, self.layer = torch.where(better, tuned, self.tuned), torch.where(better, layer, self.layer)
        self.errors = torch.where(better, errors, self.errors)
        if self.predicted is not None:
            self.predicted[:, better] = predicted[:, better]
        if used is not None:
            neurons, weights = used
            self.neuron = torch.where(better, neurons[0], self.neuron)
            self.weight = torch.where(better, weights[0], self.weight)


class Seen(NamedTuple):
    """A layer of the other seed beside a target: products with it on FIT and TUNE."""

    other: Predictor
    number: int
    cross: Float[Tensor, "n k"]
    cross_tune: Float[Tensor, "n k"]


@dataclass
class Target:
    """A layer of the seed whose neurons are explained, and what its rungs have found so far."""

    layer: Layer
    parts: Parts
    keeps: bool = False  # predictions of the rungs `one` and `all`
    rungs: dict[str, Found] = field(default_factory=dict)
    pairs: list[dict] = field(default_factory=list)  # a row for each layer of the other seed

    def __post_init__(self):
        scored, tuned = self.layer.parts[SCORE], self.layer.parts[TUNE]
        number, self.block = self.parts.block[self.parts.part == SCORE].unique(return_inverse=True)
        self.blocks = len(number)
        self.mean = scored.mean(0)
        self.total = self.by_block((scored - self.mean).square())  # of R²'s denominator
        self.square = tuned.square().mean(0).clamp(min=1e-30)
        self.fit_within = self.layer.within(FIT)
        own = self.by_block(scored.square())
        kept = {name: len(scored) for name in KEPT} if self.keeps else {}
        self.rungs = {name: Found.nothing(own, kept.get(name, 0)) for name in (*RUNGS, *WHOLE)}
        k = scored.shape[1]
        self.ranked = scored.new_zeros(2, k), torch.full((2, 2, k), -1)  # |corr| on FIT; (layer or neuron, best two, k)

    def by_block(self, squares: Float[Tensor, "tokens k"]) -> Float[Tensor, "blocks k"]:
        """Sums over the tokens of each block of SCORE."""
        return squares.new_zeros(self.blocks, squares.shape[1]).index_add_(0, self.block, squares)

    def explain(self, other: Predictor, number: int) -> None:
        """Tries the rungs RUNGS from one layer of the other seed, the `number`-th."""
        seen = self._seen(other, number)
        row = {"other_layer": number, "cka": maps.linear_cka(self.fit_within, other.fit, seen.cross)}
        self._rank(seen.cross.abs(), number)
        chosen, steps = maps.forward_selection(other.fit, seen.cross)
        for name, size in zip(RUNGS[:-1], (1, *maps.FEW), strict=True):
            if size <= len(chosen):
                used = chosen[:size], steps[size - 1]
                row[name] = self._tried(name, seen, torch.zeros_like(seen.cross).scatter_(0, *used), used)
        row["all"] = self._tried("all", seen, self._ridge(seen, seen.cross, other.factors))
        self.pairs.append(row)

    def explain_whole(self, other: Predictor, number: int) -> None:
        """Tries the rungs WHOLE from one layer; maps of whole layers have a slope for each neuron."""
        seen = self._seen(other, number)
        cross, given = seen.cross, maps.one_to_one(seen.cross)
        known, neurons = (given >= 0).to(cross), given.clamp(min=0)[None]
        weights = torch.zeros_like(cross).scatter_(0, neurons, cross.gather(0, neurons) * known)
        self._tried("one_to_one", seen, weights)
        turn = maps.orthogonal(cross)
        slope = (turn * cross).sum(0) / (turn * (other.fit @ turn)).sum(0).clamp(min=1e-30)
        self._tried("orthogonal", seen, turn * slope)
        self._tried("nearest", seen, self._ridge(seen, cross, other.factors))
        block = self.parts.block[self.parts.part == FIT].unique(return_inverse=True)[1]
        x, y = (one.parts[FIT][block % 2 == 0] for one in (self.layer, other.layer))
        half = maps.ridge_factors(y.T @ y / len(y))
        self._tried("half", seen, self._ridge(seen, y.T @ x / len(y), half))

    def _seen(self, other: Predictor, number: int) -> Seen:
        x, y = self.layer.parts, other.layer.parts
        return Seen(other, number, *(y[part].T @ x[part] / len(x[part]) for part in (FIT, TUNE)))

    def _ridge(self, seen: Seen, cross: Float[Tensor, "n k"], factors: list[Tensor]) -> Float[Tensor, "n k"]:
        """Ridge regression, with each neuron's best penalty on TUNE."""
        fitted = maps.ridge(factors, cross)
        best = maps.explained(fitted, seen.other.tune, seen.cross_tune).argmax(0)
        return fitted.gather(0, best[None, None].expand(1, *cross.shape))[0]

    def _tried(self, name: str, seen: Seen, weights: Float[Tensor, "n k"], used: tuple | None = None) -> float:
        """Takes in a linear map; `used` are the neurons and weights of a sparse one. Its mean R², below 0 as 0."""
        tuned = maps.explained(weights, seen.other.tune, seen.cross_tune) / self.square
        predicted = seen.other.layer.parts[SCORE] @ weights
        errors = self.by_block((self.layer.parts[SCORE] - predicted).square())
        self.rungs[name].improve(seen.number, tuned, errors, predicted, used)
        return float(np.nanmean(self.r2(errors).clip(0, 1)))

    def _rank(self, size: Float[Tensor, "n k"], number: int) -> None:
        """Takes in a layer's two best neurons for each target."""
        best, neurons = size.topk(min(2, len(size)), dim=0)
        corr = torch.cat([self.ranked[0], best])
        places = torch.cat([self.ranked[1], torch.stack([torch.full_like(neurons, number), neurons])], 1)
        top, order = corr.topk(2, dim=0)
        self.ranked = top, places.gather(1, order.expand(2, -1, -1))

    def second(self) -> Int[Tensor, "2 k"]:
        """Layer and neuron of the second-best match by |corr| on FIT: the best but the rung `one`'s."""
        own = torch.stack([self.rungs["one"].layer, self.rungs["one"].neuron])
        first, second = self.ranked[1].unbind(1)
        return torch.where((first == own).all(0), second, first)

    def r2(self, errors: Float[Tensor, "blocks k"]) -> np.ndarray:
        """Held-out R²; NaN for a neuron that does not vary on FIT or SCORE."""
        total = self.total.sum(0)
        known = (total > 1e-6 * self.layer.parts[SCORE].square().sum(0)) & (self.fit_within.diagonal() > 0.5)
        return torch.where(known, 1 - errors.sum(0) / total, torch.nan).double().cpu().numpy()


def near(layer: int, layers: int, others: int) -> Sequence[int]:
    """The other seed's layers that a layer is compared with: NEAR on each side of the same depth."""
    depth = round(layer * (others - 1) / max(1, layers - 1))
    return range(max(0, depth - NEAR), min(others, depth + NEAR + 1))


def explained_by(targets: Sequence[Target], predictors: Callable[[int], Predictor], others: int) -> None:
    """Fills each target's rungs from the other seed's layers; `predictors(layer)` makes one at a time, in order."""
    for number in range(others):
        reached = [one for layer, one in enumerate(targets) if number in near(layer, len(targets), others)]
        if reached:
            other = predictors(number)
            for target in reached:
                target.explain(other, number)
    nearest = [max(target.pairs, key=lambda row: row["cka"])["other_layer"] for target in targets]
    for number in sorted(set(nearest)):
        other = predictors(number)
        for target, own in zip(targets, nearest, strict=True):
            if own == number:
                target.explain_whole(other, number)


def rotated_activations(pre: Float[Tensor, "tokens n"], act: Callable, turn: Float[Tensor, "n n"]) -> Tensor:
    """A layer's activations if its pre-activations are rotated and get their moments back (docs/method.md §3)."""
    made = torch.empty_like(pre)
    for at, activation in passed_again(pre, act, turn, pre.dtype):
        made[at] = activation
    return made


def neuron_rows(target: Target, null: Target, neurons: Sequence[int]) -> pd.DataFrame:
    """One row per neuron: R² of each rung and of each rung's null, the layers they come from, and the class.

    `match_layer`, `match_neuron` and `corr` (signed, on FIT) are those of the rung `one`, −1 and 0 where no neuron
    predicts anything on TUNE; `second_layer` and `second_neuron` are the next by |corr| on FIT.
    `tuned_one` is the R² of that rung on TUNE.
    """
    table = pd.DataFrame({"neuron": list(neurons)})
    for prefix, of in (("", target), ("null_", null)):
        for name, found in of.rungs.items():
            table[f"{prefix}r2_{name}"] = of.r2(found.errors)
    table["match_layer"], table["all_layer"] = (target.rungs[name].layer.cpu().numpy() for name in ("one", "all"))
    table["match_neuron"], table["corr"] = (
        getattr(target.rungs["one"], name).cpu().numpy() for name in ("neuron", "weight")
    )
    table["second_layer"], table["second_neuron"] = target.second().cpu().numpy()
    table["tuned_one"] = target.rungs["one"].tuned.double().cpu().numpy()
    rungs = [table[name].to_numpy(float) for name in ("r2_one", f"r2_{RUNGS[-2]}", "r2_all")]
    nulls = [table[f"null_{name}"].to_numpy(float) for name in ("r2_one", f"r2_{RUNGS[-2]}")]
    return table.assign(kind=maps.classes(*rungs, *nulls))
