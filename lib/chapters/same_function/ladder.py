"""The ladder of maps for two seeds: how much of each neuron of one is in one neuron, a few, a rotation, all of a layer.

In each turn over the folds of a sample, two folds fit the maps, one chooses penalty and layer, and one is scored, so
that every block is scored once (docs/method.md §12). The same is done with the other seed's pre-activations rotated,
which keeps the nonlinearity. Nothing here knows a run.
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
from lib.chapters.same_function.folds import FOLDS, TURNS, Layer, Moments, moments
from lib.chapters.universality.null_bases import passed_again

RUNGS = ("one", *(f"few_{number}" for number in maps.FEW), "all")  # a neuron's layer is chosen for each
WHOLE = ("one_to_one", "orthogonal", "nearest", "half")  # from the layer of largest CKA: maps of whole layers, and
# ridge regression from both fitting folds and from one of them
ONE_FOLD = 0.9  # of a neuron's variance: with more of it in one fold, a neuron has no class
NEAR = 5  # layers, from the one at the same depth, that are compared


class Predictor(NamedTuple):
    """A layer of the other seed: its values, its second moments by turn, and what ridge regression needs."""

    layer: Layer
    norm: float  # ‖Σ‖_F on the whole sample
    products: list[Float[Tensor, "n n"]]
    turns: list[Moments]
    factors: list[list[Float[Tensor, "n n"]]]  # by turn; empty if ridge regression is not asked for

    @classmethod
    def of(cls, values: Float[Tensor, "tokens n"], fold: Int[Tensor, "tokens"], ridge: bool = True) -> "Predictor":
        layer = Layer.of(values, fold)
        products = layer.products(layer)
        turns = Moments.by_turn(layer, layer, products)
        norm = float(sum(products).norm()) / len(values)
        return cls(layer, norm, products, turns, [maps.ridge_factors(one.fit) for one in turns if ridge])


@dataclass
class Found:
    """What one rung says of k neurons in each turn: the layer that is best on the choosing fold, its R² there, and the
    squared errors on the scored fold, in deviations on the sample.

    Where no map is better than the mean of the fitting folds, that mean is the prediction, and the layer is −1.
    """

    errors: Float[Tensor, "turns k"]
    tuned: Float[Tensor, "turns k"]
    layer: Int[Tensor, "turns k"]
    neuron: Int[Tensor, "turns k"]  # the first that is used, where they are few
    weight: Float[Tensor, "turns k"]  # of that one
    coefficients: dict[tuple[int, int], tuple[Tensor, Tensor]]  # by turn and layer: neurons, (n, k)

    @classmethod
    def nothing(cls, errors: Float[Tensor, "turns k"]) -> "Found":
        """Before any map is tried."""
        none = torch.full(errors.shape, -1, device=errors.device)
        zero = torch.zeros_like(errors)
        return cls(errors.clone(), zero, none, none.clone(), zero.clone(), {})

    def improve(self, turn: int, layer: int, tuned: Float[Tensor, "k"], errors: Float[Tensor, "k"]) -> Tensor:
        """Takes a layer's map for the neurons that it predicts better on the choosing fold, and says for which."""
        better = tuned > self.tuned[turn]
        self.tuned[turn, better], self.errors[turn, better] = tuned[better], errors[better]
        self.layer[turn, better] = layer
        return better


class Seen(NamedTuple):
    """A layer of the other seed beside a target, in one turn."""

    other: Predictor
    number: int
    turn: int
    cross: Moments

    @property
    def within(self) -> Moments:
        """The other layer's own moments."""
        return self.other.turns[self.turn]


@dataclass
class Target:
    """A layer of the seed whose neurons are explained, and what its rungs have found so far."""

    layer: Layer
    keeps: bool = False  # what transplants need: coefficients of the rung `all`, second-best matches
    rungs: dict[str, Found] = field(default_factory=dict)
    pairs: list[dict] = field(default_factory=list)  # a row for each layer of the other seed
    nearest: Float[Tensor, "turns k"] | None = None  # errors of ridge regression from the layer of largest CKA

    def __post_init__(self):
        own = self.layer
        self.norm = float(sum(own.products(own)).norm()) / own.number(range(FOLDS))
        self.tuned_square, square = (
            torch.stack([own.square(number, getattr(turn, part)) for number, turn in enumerate(TURNS)])
            for part in ("tune", "score")
        )
        self.tokens = torch.tensor([len(own.folds[turn.score]) for turn in TURNS])[:, None].to(square)
        self.unexplained = square * self.tokens
        self.rungs = {name: Found.nothing(self.unexplained) for name in RUNGS}
        k = square.shape[1]
        self.match = square.new_zeros(k), torch.full((2, k), -1)  # corr on the sample; layer and neuron
        self.ranked = [(square.new_zeros(2, k), torch.full((2, 2, k), -1)) for _ in TURNS]
        # |corr| on the fitting folds; (layer or neuron, best two, k)

    def explain(self, other: Predictor, number: int) -> None:
        """Tries the rungs RUNGS from one layer of the other seed, the `number`-th."""
        products = other.layer.products(self.layer)
        whole = sum(products) / self.layer.number(range(FOLDS))
        row = {"other_layer": number, "cka": maps.linear_cka(self.norm, other.norm, whole)}
        self._match(whole, number)
        errors, nearest = dict.fromkeys(RUNGS, 0.0), []
        for turn, cross in enumerate(Moments.by_turn(other.layer, self.layer, products)):
            seen = Seen(other, number, turn, cross)
            if self.keeps:
                self._rank(cross.fit.abs(), seen)
            chosen, steps = maps.forward_selection(seen.within.fit, cross.fit)
            for name, size in zip(RUNGS[:-1], (1, *maps.FEW), strict=True):
                if size <= len(chosen):
                    errors[name] += self._sparse(name, seen, chosen[:size], steps[size - 1])
            nearest.append(self._dense("all", seen, self._ridge(seen, cross.fit, other.factors[turn])))
            errors["all"] += nearest[-1]
        tried = {name: float(np.nanmean(self._r2(one))) for name, one in errors.items() if isinstance(one, Tensor)}
        if all(row["cka"] > other["cka"] for other in self.pairs):
            self.nearest = torch.stack(nearest)
        self.pairs.append(row | tried)

    def explain_whole(self, other: Predictor, number: int) -> None:
        """Tries the rungs WHOLE from one layer; maps of whole layers have a slope for each neuron. The null
        has the first two; `nearest` is known from `explain`."""
        products = other.layer.products(self.layer)
        whole = WHOLE if self.keeps else WHOLE[:2]
        self.rungs |= {name: Found.nothing(self.unexplained) for name in whole}
        for turn, moments_ in enumerate(Moments.by_turn(other.layer, self.layer, products)):
            seen, cross, within = Seen(other, number, turn, moments_), moments_.fit, other.turns[turn].fit
            given = maps.one_to_one(cross)
            known, neurons = (given >= 0).to(cross), given.clamp(min=0)[None]
            self._sparse("one_to_one", seen, neurons, cross.gather(0, neurons) * known)
            rotation = maps.orthogonal(cross)
            slope = (rotation * cross).sum(0) / (rotation * (within @ rotation)).sum(0).clamp(min=1e-30)
            self._dense("orthogonal", seen, rotation * slope)
            if "half" not in whole:
                continue
            self.rungs["nearest"].errors[turn] = self.nearest[turn]
            first = TURNS[turn].fit[:1]
            half = maps.ridge_factors(moments(other.products, other.layer, other.layer, turn, first))
            self.rungs["half"].errors[turn] = self._dense(
                "half", seen, self._ridge(seen, moments(products, other.layer, self.layer, turn, first), half)
            )

    def _ridge(self, seen: Seen, cross: Float[Tensor, "n k"], factors: list[Tensor]) -> Float[Tensor, "n k"]:
        """Ridge regression, with each neuron's best penalty on the choosing fold."""
        fitted = maps.ridge(factors, cross)
        best = maps.explained(fitted, seen.within.tune, seen.cross.tune).argmax(0)
        return fitted.gather(0, best[None, None].expand(1, *cross.shape))[0]

    def _dense(self, name: str, seen: Seen, weights: Float[Tensor, "n k"]) -> Float[Tensor, "k"]:
        """Takes in a linear map, and returns its squared errors on the scored fold."""
        within, cross = seen.within, seen.cross
        taken = (
            maps.explained(weights, of, with_x)
            for of, with_x in ((within.tune, cross.tune), (within.score, cross.score))
        )
        better, errors = self._tried(name, seen, *taken)
        if self.keeps and name == "all":
            mine = better.nonzero()[:, 0]
            self.rungs[name].coefficients[seen.turn, seen.number] = mine, weights[:, mine]
        return errors

    def _sparse(
        self, name: str, seen: Seen, chosen: Int[Tensor, "few k"], weights: Float[Tensor, "few k"]
    ) -> Float[Tensor, "k"]:
        """The same for a map that uses few neurons of the other layer for each."""
        within, cross = seen.within, seen.cross
        taken = (
            maps.explained_by_few(chosen, weights, of, with_x)
            for of, with_x in ((within.tune, cross.tune), (within.score, cross.score))
        )
        better, errors = self._tried(name, seen, *taken)
        found, turn = self.rungs[name], seen.turn
        found.neuron[turn, better], found.weight[turn, better] = chosen[0, better], weights[0, better]
        return errors

    def _tried(
        self, name: str, seen: Seen, tuned: Float[Tensor, "k"], scored: Float[Tensor, "k"]
    ) -> tuple[Tensor, Float[Tensor, "k"]]:
        """From what a map explains on the choosing and the scored fold, in deviations of the fitting folds: for which
        neurons it is taken, and its squared errors."""
        turn, variance = seen.turn, self.layer.fit_deviation[seen.turn].square()
        errors = self.unexplained[turn] - self.tokens[turn] * variance * scored
        r2 = tuned * variance / self.tuned_square[turn].clamp(min=1e-30)
        return self.rungs[name].improve(turn, seen.number, r2, errors), errors

    def _match(self, corr: Float[Tensor, "n k"], number: int) -> None:
        """Takes in a layer's largest correlations on the whole sample."""
        best = corr.abs().argmax(0)
        value = corr.gather(0, best[None])[0]
        better = value.abs() > self.match[0].abs()
        places = torch.stack([torch.full_like(best, number), best])
        self.match = torch.where(better, value, self.match[0]), torch.where(better, places, self.match[1])

    def _rank(self, size: Float[Tensor, "n k"], seen: Seen) -> None:
        """Takes in a layer's two best neurons for each target, in one turn."""
        best, neurons = size.topk(min(2, len(size)), dim=0)
        known, places = self.ranked[seen.turn]
        made = torch.stack([torch.full_like(neurons, seen.number), neurons])
        top, order = torch.cat([known, best]).topk(2, dim=0)
        self.ranked[seen.turn] = top, torch.cat([places, made], 1).gather(1, order.expand(2, -1, -1))

    def of_all(self, turn: int, number: int) -> tuple[Int[Tensor, "k"], Float[Tensor, "n k"]]:
        """The neurons that the rung `all` predicts from a layer in a turn, and their coefficients."""
        of = self.rungs["all"]
        mine, weights = of.coefficients[turn, number]
        kept = of.layer[turn, mine] == number
        return mine[kept], weights[:, kept]

    def best(self, turn: int) -> Int[Tensor, "2 k"]:
        """Layer and neuron of the rung `one` in a turn."""
        return torch.stack([self.rungs["one"].layer[turn], self.rungs["one"].neuron[turn]])

    def second(self, turn: int) -> Int[Tensor, "2 k"]:
        """Layer and neuron of the second-best match by |corr| on the fitting folds: the best but the rung `one`'s."""
        first, second = self.ranked[turn][1].unbind(1)
        return torch.where((first == self.best(turn)).all(0), second, first)

    def r2(self, name: str) -> np.ndarray:
        """R² of a rung: 1 − Σ errors / Σ squares about the sample's mean, both over all folds. NaN for a neuron that
        does not vary on the sample."""
        return self._r2(self.rungs[name].errors.sum(0))

    def _r2(self, errors: Float[Tensor, "k"]) -> np.ndarray:
        r2 = 1 - errors / self.tokens.sum()
        return torch.where(self.layer.deviation > 0, r2, torch.nan).double().cpu().numpy()

    def largest_fold(self) -> np.ndarray:
        """The largest part of each neuron's variance on the sample that one fold has; NaN where it does not vary."""
        shares = self.layer.squares / self.layer.squares.sum(0)
        return shares.amax(0).double().cpu().numpy()


def near(layer: int, layers: int, others: int) -> Sequence[int]:
    """The other seed's layers that a layer is compared with: NEAR on each side of the same depth."""
    depth = round(layer * (others - 1) / max(1, layers - 1))
    return range(max(0, depth - NEAR), min(others, depth + NEAR + 1))


def explained_by(targets: Sequence[Target], predictors: Callable[[int], Predictor], others: int) -> None:
    """Fills each target's rungs RUNGS from the other seed's layers; `predictors(layer)` makes one at a time."""
    for number in range(others):
        reached = [one for layer, one in enumerate(targets) if number in near(layer, len(targets), others)]
        if reached:
            other = predictors(number)
            for target in reached:
                target.explain(other, number)


def whole_layers(targets: Sequence[Target], predictors: Callable[[int], Predictor]) -> None:
    """Fills the rungs WHOLE, after `explained_by`."""
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
    """One row per neuron: R² of each rung and of each rung's null, its match, and the class, empty for none.

    `match_layer`, `match_neuron` and `corr` (signed) are those of the largest absolute correlation on the whole
    sample; `all_layer` is the layer that most turns choose for the rung `all`, −1 for none. `largest_fold` is that of
    `Target.largest_fold`.
    """
    table = pd.DataFrame({"neuron": list(neurons)})
    for prefix, of in (("", target), ("null_", null)):
        for name in of.rungs:
            table[f"{prefix}r2_{name}"] = of.r2(name)
    table["corr"] = target.match[0].double().cpu().numpy()
    table["match_layer"], table["match_neuron"] = target.match[1].cpu().numpy()
    table["all_layer"] = target.rungs["all"].layer.mode(0).values.cpu().numpy()
    table["largest_fold"] = target.largest_fold()
    rungs = [table[name].to_numpy(float) for name in ("r2_one", f"r2_{RUNGS[-2]}", "r2_all")]
    nulls = [table[f"null_{name}"].to_numpy(float) for name in ("r2_one", f"r2_{RUNGS[-2]}")]
    kind = np.where(table["largest_fold"] > ONE_FOLD, "", maps.classes(*rungs, *nulls))
    return table.assign(kind=kind)
