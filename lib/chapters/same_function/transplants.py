"""Transplants: a set of neurons' activations replaced by what another seed's neurons predict of them on the same text.

From predictions to losses, and from losses to the recovered share R (docs/method.md §12). Every position has its own
value, so a set of thousands is one change a layer; `lib.chapters.interventions.engine` changes constants neuron by
neuron.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from scipy.stats import t
from torch import Tensor

from lib.chapters.interventions.single_neurons import mean_and_error, predicting
from lib.models.processed import Processed

PARTNERS = ("match", "second", "random", "all")
NEAREST = 10  # neurons like a match, of which a random partner is drawn
BEYOND = "match − second"  # the partner of a row that has a difference of R
GROUPS = 4  # of all neurons, by the squared correlation with the match
BATCH = 4  # blocks in a forward pass
ERRORS = 2  # standard errors of Δloss(mean) below which R is not given

Values = Mapping[int, tuple[Int[Tensor, "k"], Float[Tensor, "tokens k"]]]  # layer → neurons and their activations


class NeuronSet(NamedTuple):
    """Neurons that are replaced together; `partners` says by what, beside their means."""

    name: str
    neurons: pd.DataFrame  # layer, neuron
    partners: tuple[str, ...]


@torch.no_grad()
def replaced(
    model: Processed, tokens: Int[Tensor, "blocks context"], counted: Bool[Tensor, "blocks context"], values: Values
) -> Float[Tensor, "blocks context d_model"]:
    """The final residual stream if neurons have the given activations at the counted tokens, in their order.

    At other positions a neuron keeps the activation that it has there.
    """
    residual = model.embed(tokens)
    for layer, block in enumerate(model.blocks):
        read, residual = model.layer(residual, layer, model.heads(residual, layer))
        if layer in values:
            neurons, own = values[layer]
            moved = own - model.neuron_activations(read[counted], layer, neurons)
            residual[counted] += moved @ block.w_out[neurons]
    return residual


@torch.no_grad()
def losses(
    model: Processed, tokens: Int[Tensor, "blocks context"], counted: Bool[Tensor, "blocks context"], values: Values
) -> Float[Tensor, "blocks"]:
    """Each block's summed loss [nats] over the predictions made at counted tokens, under `replaced`."""
    ends, parts = [0, *counted.sum(1).cumsum(0).tolist()], []
    for start in range(0, len(tokens), BATCH):
        some, mask = tokens[start : start + BATCH], counted[start : start + BATCH]
        rows = slice(ends[start], ends[start + len(some)])
        final = replaced(model, some, mask, {layer: (of, own[rows]) for layer, (of, own) in values.items()})
        measured = predicting(mask)
        logits = model.normalise(final[measured]) @ model.unembedding + model.unembedding_bias
        each = F.cross_entropy(logits, some.roll(-1, 1)[measured], reduction="none").double()
        block = measured.nonzero()[:, 0]
        parts.append(each.new_zeros(len(some)).index_add_(0, block, each))
    return torch.cat(parts)


class Recovered(NamedTuple):
    """R and its 95 % interval over blocks, NaN where Δloss(mean) is within two standard errors of 0."""

    value: float
    low: float
    high: float


def recovered(change: Float[Tensor, "blocks"], ablated: Float[Tensor, "blocks"], error: float) -> Recovered:
    """R = 1 − Σ change / Σ ablated, of changes of the summed loss; the interval is the jackknife's over blocks.

    `error` is the standard error of Σ ablated.
    """
    if not float(ablated.sum()) > ERRORS * error:
        return Recovered(np.nan, np.nan, np.nan)
    value, blocks = float(1 - change.sum() / ablated.sum()), len(change)
    without = 1 - (change.sum() - change) / (ablated.sum() - ablated)
    spread = float(((without - without.mean()).square().sum() * (blocks - 1) / blocks).sqrt())
    half = float(t.isf(0.025, blocks - 1)) * spread
    return Recovered(value, value - half, value + half)


def effect_rows(
    changes: Mapping[str, Float[Tensor, "blocks"]], tokens: Float[Tensor, "blocks"]
) -> list[dict[str, float | str]]:
    """One row per partner, `mean` among them: change of the loss per token, its error, and R.

    `changes` are of each block's summed loss. With matches and second-best ones, a last row has their difference.
    """
    rows, ablated = [], changes["mean"]
    mean_error = float(mean_and_error(ablated, tokens)[1] * tokens.sum())
    for partner, change in changes.items():
        mean, error = mean_and_error(change, tokens)
        row = {"partner": partner, "loss_change": float(mean), "loss_change_error": float(error)}
        found = recovered(change, ablated, mean_error) if partner != "mean" else Recovered(*[np.nan] * 3)
        rows.append(row | dict(zip(("recovered", "low", "high"), found, strict=True)))
    if {"match", "second"} <= changes.keys():
        lost = changes["second"] - changes["match"]
        mean, error = mean_and_error(-lost, tokens)
        found = recovered(ablated - lost, ablated, mean_error)  # R of the match − R of the second-best
        row = {"partner": BEYOND, "loss_change": float(mean), "loss_change_error": float(error)}
        rows.append(row | dict(zip(("recovered", "low", "high"), found, strict=True)))
    return rows


def like(
    power: Float[np.ndarray, "n"], skew: Float[np.ndarray, "n"], own: Int[np.ndarray, "k"], random: np.random.Generator
) -> Int[np.ndarray, "k"]:
    """For each of some neurons of a layer another like it: drawn from the NEAREST in ranks of power and skewness."""
    ranks = np.stack([values.argsort().argsort() for values in (power, skew)])  # (2, n)
    distance = np.abs(ranks[:, own, None] - ranks[:, None]).max(0)  # (k, n)
    distance[np.arange(len(own)), own] = len(power)
    nearest = np.argsort(distance, axis=1, kind="stable")[:, : min(NEAREST, len(power) - 1)]
    return nearest[np.arange(len(own)), random.integers(nearest.shape[1], size=len(own))]


def neuron_sets(neurons: pd.DataFrame) -> list[NeuronSet]:
    """One seed's sets, from its neurons: layer, neuron, is_universal, excess_corr, power, `square` of the
    correlation with the match.

    Sets without a neuron are left out.
    """
    key, universal = ["layer", "neuron"], neurons[neurons["is_universal"]]
    top = neurons.nlargest(max(1, round(len(neurons) / 100)), "excess_corr")
    sets = [
        NeuronSet("strongest", universal.nlargest(1, "power")[key], PARTNERS),
        NeuronSet("top 1 %", top[key], PARTNERS),
        NeuronSet("universal", universal[key], PARTNERS),
    ]
    for layer, own in universal.groupby("layer"):
        sets.append(NeuronSet(f"universal, layer {layer}", own[key], ("match",)))
    known = neurons.sort_values(["square", *key])
    for group, rows in enumerate(np.array_split(np.arange(len(known)), GROUPS)):
        sets.append(NeuronSet(f"group {group + 1}", known.iloc[rows][key], ("match", "all")))
    return [one for one in sets if len(one.neurons)]
