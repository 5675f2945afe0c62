"""What a model loses without a layer's universal neurons: sets of neurons ablated together, beside random sets.

From per-neuron tables to sets, from sets to changes of the prediction, and from these to a set's rank among the random
ones of its layer. docs/method.md §7, causal importance (arXiv 2508.00903).
"""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import norm
from torch import Tensor

from lib.chapters.interventions.engine import Fix, run
from lib.chapters.interventions.single_neurons import BLOCKS, TILE, mean_and_error, predicting
from lib.chapters.universality.properties import TOP_SHARE
from lib.display.claims import SIGNIFICANT
from lib.kernels.predictions import Cases, prediction_statistics, product_dtype
from lib.models.processed import Processed

UNIVERSAL, MOST, RANDOM = "universal", f"top {100 * TOP_SHARE:g} %", "random"
CHOSEN = (UNIVERSAL, MOST)
KINDS = ("mean", "zero")
OUTCOMES = ("loss_change", "kl", "residual_power")
COMPARED = (*OUTCOMES, "kl_per_power")
DRAWS = 10
MAX_LOGITS = 2**27  # of the unchanged run, kept at once: half a gigabyte


class NeuronSet(NamedTuple):
    """Neurons of one layer that are ablated together; `draw` counts the random sets of one size."""

    layer: int
    group: str  # UNIVERSAL, MOST or RANDOM
    draw: int
    neurons: tuple[int, ...]


def neuron_sets(neurons: pd.DataFrame, random_seed: int) -> list[NeuronSet]:
    """Each layer's universal neurons, its top 5 % by excess, and DRAWS random sets as large as each.

    `neurons` has layer, neuron, excess_corr, is_universal and dead. Random sets are drawn from the layer's live neurons
    that are in neither; the smaller random sets are the beginning of the larger ones. A set larger than half of those
    neurons is left out, since its random sets would nearly coincide.
    """
    random, sets = np.random.default_rng(random_seed), []
    for layer, own in neurons.groupby("layer"):
        live = own[~own["dead"]]
        most = live.nlargest(max(1, round(TOP_SHARE * len(own))), "excess_corr")
        chosen = {UNIVERSAL: live.loc[live["is_universal"], "neuron"], MOST: most["neuron"]}
        rest = np.setdiff1d(live["neuron"], pd.concat(chosen.values()))
        orders = [random.permutation(rest) for _ in range(DRAWS)]
        chosen = {group: sorted(members) for group, members in chosen.items() if 0 < 2 * len(members) <= len(rest)}
        sizes = sorted({len(members) for members in chosen.values()})
        drawn = [(RANDOM, draw, order[:size].tolist()) for size in sizes for draw, order in enumerate(orders)]
        named = [(group, 0, members) for group, members in chosen.items()] + drawn
        sets += [NeuronSet(int(layer), group, draw, tuple(map(int, members))) for group, draw, members in named]
    return sets


class _UnchangedPredictions:
    """The unchanged run's predictions on some tokens, and how far changed ones are from them."""

    def __init__(self, model: Processed, final: Float[Tensor, "tokens d_model"], target: Int[Tensor, "tokens"]):
        self.model, self.target, self.normalised = model, target, model.normalise(final)
        self.logits = torch.addmm(model.unembedding_bias, self.normalised, model.unembedding)
        self.coarse = model.unembedding.to(product_dtype(len(model.unembedding_bias), model.unembedding.dtype))
        self.likely = self.logits.argmax(1)
        self.loss = self._losses(torch.zeros_like(self.normalised))
        expected = [logits.softmax(-1) @ model.unembedding.T for logits in self.logits.split(TILE)]
        self.beyond = model.unembedding.T[target] - torch.cat(
            expected
        )  # the target's unembedding less the expected one

    def changes(
        self, final: Float[Tensor, "tokens d_model"]
    ) -> tuple[Float[Tensor, "tokens"], Float[Tensor, "tokens"]]:
        """Change of the loss, and KL(unchanged ‖ changed), in nats.

        With p the unchanged and q the changed prediction, l their logits and t the target, KL = Σ p (log p − log q) is
        Δloss + Δl(t) − Σ p Δl; and since logits are linear in the normalised residual stream, so is Δl.
        """
        moved = self.model.normalise(final) - self.normalised
        loss = self._losses(moved) - self.loss
        return loss, loss + (moved * self.beyond).sum(-1)

    def _losses(self, moved: Float[Tensor, "tokens d_model"]) -> Float[Tensor, "tokens"]:
        """Each token's loss where its normalised residual stream is moved."""
        constants, parts = self.logits.new_zeros(3, self.logits.shape[1]), []
        tiles = (values.split(TILE) for values in (moved, self.logits, self.target, self.likely))
        for rows, logits, target, likely in zip(*tiles, strict=True):
            each, one = torch.arange(len(rows)), torch.ones(len(rows))
            cases = Cases(each, each, one, one, torch.zeros(len(rows)))
            effects = rows.to(self.coarse.dtype) @ self.coarse
            parts.append(prediction_statistics(logits, effects, cases, constants, target, likely)[:, 0])
        return torch.cat(parts)


@torch.no_grad()
def ablations(
    model: Processed,
    blocks: tuple[Int[Tensor, "blocks context"], Bool[Tensor, "blocks context"]],
    sets: Sequence[NeuronSet],
    means: Float[Tensor, "layers neurons"],
    progress: Callable = lambda chunks: chunks,
) -> pd.DataFrame:
    """One row per set and kind: all its neurons held at their `means`, or at zero, in one run.

    `blocks` is tokens and the mask of those that count. Columns layer, group, draw, neurons (how many), kind, tokens,
    and means over counted tokens with their standard errors over blocks (`_error`): change of loss and
    KL(unchanged ‖ ablated), in nats, and `residual_power`, the squared length of what the ablation adds to the residual
    stream behind its layer.
    """
    tokens, counted = blocks
    measured = predicting(counted)
    cases = [(one, kind) for one in sets for kind in KINDS]
    sums = torch.zeros(len(tokens), len(cases), len(OUTCOMES), dtype=torch.float64)
    step = max(1, min(BLOCKS, MAX_LOGITS // (tokens.shape[1] * model.unembedding.shape[1])))
    for start in progress(range(0, len(tokens), step)):
        part, some = tokens[start : start + step], measured[start : start + step]
        block = start + some.nonzero()[:, 0]
        unchanged = run(model, part)
        predictions = _UnchangedPredictions(model, unchanged.final[some], part.roll(-1, 1)[some])
        for index, (one, kind) in enumerate(cases):
            held = means[one.layer].tolist() if kind == "mean" else [0.0] * means.shape[1]
            ablated = run(model, part, [Fix(one.layer, neuron, held[neuron]) for neuron in one.neurons], unchanged)
            added = (ablated.before[one.layer + 1] - unchanged.before[one.layer + 1])[some]
            found = torch.stack([*predictions.changes(ablated.final[some]), added.square().sum(-1)], 1)
            sums[:, index].index_add_(0, block, found.double())
    number = measured.sum(1).double()
    mean, error = mean_and_error(sums, number)
    rows = [(*one[:3], len(one.neurons), kind, int(number.sum())) for one, kind in cases]
    table = pd.DataFrame(rows, columns=[*NeuronSet._fields, "kind", "tokens"])
    for index, outcome in enumerate(OUTCOMES):
        table[outcome], table[f"{outcome}_error"] = mean[:, index].numpy(), error[:, index].numpy()
    return table


def comparisons(table: pd.DataFrame) -> pd.DataFrame:
    """One row per kind, group of CHOSEN and layer: the set beside the random ones of its layer and size.

    Columns kind, group, layer, neurons, draws and for each of COMPARED: its value, `_random` (mean over draws),
    `_spread` (their standard deviation), and how many draws are `_below` and `_level` with the set. `kl_per_power`, KL
    over `residual_power`, compares sets of different power, since KL grows with the square of a small disturbance.
    `loss_change_excess` is the change of loss less `loss_change_random`; its `_error` adds the errors of the set, of
    the random ones and of the draws as if independent. That is conservative: all sets are measured on the same text.
    """
    keys, rows = ["kind", "layer", "neurons"], []
    table = table.assign(kl_per_power=np.where(table["residual_power"] > 0, table["kl"] / table["residual_power"], 0.0))
    drawn = dict(list(table[table["group"] == RANDOM].groupby(keys)))
    for own in table[table["group"].isin(CHOSEN)].to_dict("records"):
        others = drawn[tuple(own[key] for key in keys)]
        row = {name: own[name] for name in ("kind", "group", "layer", "neurons")} | {"draws": len(others)}
        for outcome in COMPARED:
            value, random = own[outcome], others[outcome]
            below, level = int((random < value).sum()), int((random == value).sum())
            numbers = {"": value, "_random": random.mean(), "_spread": random.std(), "_below": below, "_level": level}
            row |= {outcome + ending: number for ending, number in numbers.items()}
        row["loss_change_excess"] = own["loss_change"] - row["loss_change_random"]
        of_draws = row["loss_change_spread"] / np.sqrt(len(others))
        errors = own["loss_change_error"], others["loss_change_error"].mean(), of_draws
        rows.append(row | {"loss_change_excess_error": np.sqrt(np.square(errors).sum())})
    compared = [outcome + ending for outcome in COMPARED for ending in ("", "_random", "_spread", "_below", "_level")]
    excess = ["loss_change_excess", "loss_change_excess_error"]
    return pd.DataFrame(rows, columns=["kind", "group", "layer", "neurons", "draws", *compared, *excess])


class Ranking(NamedTuple):
    """How the sets of several layers rank among their random sets, all layers together."""

    below: float  # random sets with a smaller outcome, ties counted half
    draws: int
    p_value: float  # two-sided

    @property
    def share(self) -> float:
        """Share of the random sets that are below; the chance level is a half."""
        return self.below / self.draws


def ranking(compared: pd.DataFrame, outcome: str) -> Ranking:
    """Do the sets of `compared` (rows of `comparisons`, one kind and group) have a larger outcome than random ones?

    If a set were just another random set, its rank among the draws would be uniform. The sum over layers is tested
    against its exact distribution, ties taken against the claim in both directions.
    """
    below, level = int(compared[f"{outcome}_below"].sum()), int(compared[f"{outcome}_level"].sum())
    chance = reduce(np.convolve, [np.full(draws + 1, 1 / (draws + 1)) for draws in compared["draws"]], np.ones(1))
    high, low = chance[below:].sum(), chance[: below + level + 1].sum()
    return Ranking(below + level / 2, int(compared["draws"].sum()), float(min(1.0, 2 * min(high, low))))


class FirstLayer(NamedTuple):
    """The first layer's set against that of the other layer whose loss changes most beyond its random sets."""

    excess: float
    other: int  # its layer
    other_excess: float
    difference: float
    half: float  # of its 95 % interval, corrected for the number of other layers


def first_layer(compared: pd.DataFrame) -> FirstLayer | None:
    """Does the first layer's set raise the loss most? None without that layer or another."""
    rows = compared.set_index("layer")
    others = rows.drop(index=0, errors="ignore")
    if 0 not in rows.index or others.empty:
        return None
    first, other = rows.loc[0], others.loc[others["loss_change_excess"].idxmax()]
    excess, other_excess = float(first["loss_change_excess"]), float(other["loss_change_excess"])
    error = np.hypot(first["loss_change_excess_error"], other["loss_change_excess_error"])
    half = float(norm.isf(SIGNIFICANT / 2 / len(others)) * error)
    return FirstLayer(excess, int(other.name), other_excess, excess - other_excess, half)
