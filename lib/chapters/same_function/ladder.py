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
from lib.chapters.universality.null_bases import inverse, passed_again, standardised

FIT, TUNE, SCORE = range(3)
PATTERN = (FIT, SCORE, FIT, TUNE)  # of blocks, over and over
RUNGS = ("one", *(f"few_{number}" for number in maps.FEW), "all")  # a neuron's layer is chosen for each
KEPT = ("one", "all")  # rungs whose predictions are transplanted
WHOLE = ("one_to_one", "orthogonal")  # maps of whole layers: from the layer of largest CKA
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
        mean, varies = own.mean(0), standardised(own).norm(dim=0) > 0.5
        deviation = torch.where(varies, own.std(0, correction=0), 0)
        scale = inverse(deviation)
        return cls(tuple((values[part == one] - mean) * scale for one in (FIT, TUNE, SCORE)), mean, deviation)

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
        """Tries all maps from one layer of the other seed, the `number`-th."""
        x, y = self.layer.parts, other.layer.parts
        cross, cross_tune = (y[part].T @ x[part] / len(x[part]) for part in (FIT, TUNE))
        row = {"other_layer": number, "cka": maps.linear_cka(self.fit_within, other.fit, cross)}
        self._rank(cross.abs(), number)
        chosen, steps = maps.forward_selection(other.fit, cross)
        for name, size in zip(RUNGS[:-1], (1, *maps.FEW), strict=True):
            if size <= len(chosen):
                neurons, weights = chosen[:size], steps[size - 1]
                row[name] = self._sparse(name, number, other, neurons, weights, cross_tune)
        fitted = maps.ridge(other.factors, cross)
        tuned = maps.explained(fitted, other.tune, cross_tune) / self.square  # (penalties, k)
        best = tuned.argmax(0)
        weights = fitted.gather(0, best[None, None].expand(1, *cross.shape))[0]
        tuned = tuned.amax(0)
        row["all"] = self._scored("all", number, tuned, y[SCORE] @ weights, None)
        self.pairs.append(row)

    def explain_whole(self, other: Predictor, number: int) -> None:
        """One-to-one matches and the orthogonal map from one layer, each with a slope for each neuron."""
        x, y = self.layer.parts, other.layer.parts
        cross, cross_tune = (y[part].T @ x[part] / len(x[part]) for part in (FIT, TUNE))
        given = maps.one_to_one(cross)
        known = (given >= 0).to(cross)
        neurons = given.clamp(min=0)[None]
        weights = cross.gather(0, neurons) * known
        self._sparse("one_to_one", number, other, neurons, weights, cross_tune)
        turn = maps.orthogonal(cross)
        slope = (turn * cross).sum(0) / (turn * (other.fit @ turn)).sum(0).clamp(min=1e-30)
        weights = turn * slope
        tuned = maps.explained(weights, other.tune, cross_tune) / self.square
        self._scored("orthogonal", number, tuned, y[SCORE] @ weights, None)

    def _sparse(self, name: str, number: int, other: Predictor, neurons, weights, cross_tune) -> float:
        """A map that uses a few neurons (chosen, k) with `weights` (chosen, k)."""
        picked = neurons.T
        gram = other.tune[picked[:, :, None], picked[:, None]]  # (k, chosen, chosen)
        bent = (gram @ weights.T[..., None])[..., 0].T
        tuned = (2 * weights * cross_tune.gather(0, neurons) - weights * bent).sum(0) / self.square
        scored = other.layer.parts[SCORE]
        predicted = sum(scored[:, one] * weight for one, weight in zip(neurons, weights, strict=True))
        return self._scored(name, number, tuned, predicted, (neurons, weights))

    def _scored(self, name: str, number: int, tuned, predicted, used: tuple | None) -> float:
        errors = self.by_block((self.layer.parts[SCORE] - predicted).square())
        self.rungs[name].improve(number, tuned, errors, predicted, used)
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
    """
    table = pd.DataFrame({"neuron": list(neurons)})
    for prefix, of in (("", target), ("null_", null)):
        for name, found in of.rungs.items():
            table[f"{prefix}r2_{name}"] = of.r2(found.errors)
    table["match_layer"], table["all_layer"] = (target.rungs[name].layer.numpy() for name in ("one", "all"))
    table["match_neuron"], table["corr"] = target.rungs["one"].neuron.numpy(), target.rungs["one"].weight.numpy()
    table["second_layer"], table["second_neuron"] = target.second().numpy()
    rungs = [table[name].to_numpy(float) for name in ("r2_one", f"r2_{RUNGS[-2]}", "r2_all")]
    nulls = [table[f"null_{name}"].to_numpy(float) for name in ("r2_one", f"r2_{RUNGS[-2]}")]
    return table.assign(kind=maps.classes(*rungs, *nulls))
