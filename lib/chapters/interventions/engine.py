"""Interventions on neurons: a forward pass in which a neuron's activation, or one path out of it, is changed.

An intervention is a small value that says what to change; `run` applies any set of them in one forward pass. Given
the trace of the unchanged run, only later layers run again: a change in the last layer needs no forward pass at all.
All changed neurons of a layer are computed together, so a set of hundreds costs hardly more than one neuron.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.base.errors import InputError
from lib.models.folded import full_precision
from lib.models.processed import Processed

HEAD_INPUTS = ("q", "k", "v")


@dataclass(frozen=True)
class Fix:
    """The neuron's activation is `value` at every position."""

    layer: int
    neuron: int
    value: float


@dataclass(frozen=True)
class Multiply:
    """The neuron's activation is multiplied by `factor` at every position."""

    layer: int
    neuron: int
    factor: float


@dataclass(frozen=True)
class PathAblation:
    """One later head reads a residual stream without the neuron's output, for one of q, k and v (`into`).

    The head's LayerNorm is recomputed on what is left; everything else reads the neuron as before.
    """

    layer: int
    neuron: int
    head_layer: int
    head: int
    into: str = "q"


@dataclass(frozen=True, eq=False)
class FreezeFinalScale:
    """The final LayerNorm divides by `scale`, that of the unchanged run."""

    scale: Float[Tensor, "blocks context"]


Intervention = Fix | Multiply | PathAblation | FreezeFinalScale


@dataclass(frozen=True)
class Trace:
    """The residual stream of one run: before each layer (and, last, after all), and as each layer's MLP reads it."""

    before: list[Float[Tensor, "blocks context d_model"]]
    middle: list[Float[Tensor, "blocks context d_model"]]
    scale: Float[Tensor, "blocks context"]  # what the final LayerNorm divides by

    @property
    def final(self) -> Float[Tensor, "blocks context d_model"]:
        """The residual stream that the final LayerNorm reads."""
        return self.before[-1]


@full_precision()
def run(
    model: Processed,
    tokens: Int[Tensor, "blocks context"],
    interventions: Sequence[Intervention] = (),
    unchanged: Trace | None = None,
) -> Trace:
    """A forward pass under interventions, from the first changed layer if the unchanged run's trace is given.

    Several changes of one neuron apply in the order given. Raises InputError for a neuron or head that the model
    does not have, or a path into a head that is not in a later layer than the neuron.
    """
    _check(model, interventions)
    last = len(model.blocks)
    changed = [
        item.head_layer if isinstance(item, PathAblation) else item.layer
        for item in interventions
        if not isinstance(item, FreezeFinalScale)
    ]
    first = 0 if unchanged is None else min(changed, default=last)
    before = [model.embed(tokens)] if unchanged is None else unchanged.before[: first + 1]
    middle = [] if unchanged is None else unchanged.middle[:first]
    for layer in range(first, last):
        paths = [item for item in interventions if isinstance(item, PathAblation) and item.head_layer == layer]
        if unchanged is not None and layer == first and not paths:
            read, after = unchanged.middle[layer], unchanged.before[layer + 1]
        else:
            qkv = _qkv_without(paths, model, before[layer], layer, middle, interventions)
            read, after = model.layer(before[layer], layer, qkv)
        middle.append(read)
        neurons = sorted({item.neuron for item in _changes(interventions, layer)})
        if neurons:
            activation = model.neuron_activations(read, layer, neurons)  # (blocks, context, neurons)
            moved = _changed(activation, layer, neurons, interventions) - activation
            after = after + moved @ model.blocks[layer].w_out[neurons]
        before.append(after)
    frozen = [item.scale for item in interventions if isinstance(item, FreezeFinalScale)]
    return Trace(before, middle, frozen[-1] if frozen else model.scale(before[-1]))


def contribution(
    model: Processed, middle: Sequence[Tensor], path: PathAblation, interventions: Sequence[Intervention] = ()
) -> Float[Tensor, "blocks context d_model"]:
    """What the path's neuron writes into the residual stream; `middle` as in Trace, up to the neuron's layer."""
    activation = model.neuron_activations(middle[path.layer], path.layer, [path.neuron])
    return _changed(activation, path.layer, [path.neuron], interventions) * model.blocks[path.layer].w_out[path.neuron]


def _qkv_without(
    paths, model, residual, layer, middle, interventions
) -> Float[Tensor, "3 blocks heads context d_head"]:
    qkv = model.heads(residual, layer)
    for head, into in {(path.head, path.into) for path in paths}:
        own = [path for path in paths if (path.head, path.into) == (head, into)]
        cut = sum(contribution(model, middle, path, interventions) for path in own)
        kind = HEAD_INPUTS.index(into)
        qkv = qkv.clone()
        qkv[kind, :, head] = model.one_head(residual - cut, layer, kind, head)
    return qkv


def _changes(interventions: Sequence[Intervention], layer: int) -> list[Fix | Multiply]:
    return [item for item in interventions if isinstance(item, Fix | Multiply) and item.layer == layer]


def _changed(activation, layer, neurons, interventions) -> Float[Tensor, "blocks context neurons"]:
    factor, added = dict.fromkeys(neurons, 1.0), dict.fromkeys(neurons, 0.0)
    for item in _changes(interventions, layer):
        if isinstance(item, Fix):
            factor[item.neuron], added[item.neuron] = 0.0, item.value
        elif item.neuron in factor:
            factor[item.neuron], added[item.neuron] = (x[item.neuron] * item.factor for x in (factor, added))
    scale, shift = (activation.new_tensor([x[neuron] for neuron in neurons]) for x in (factor, added))
    return torch.where(scale == 0, shift, activation * scale + shift)


def _check(model: Processed, interventions: Sequence[Intervention]) -> None:
    layers, neurons, heads = len(model.blocks), len(model.blocks[0].w_out), len(model.blocks[0].out)
    for item in interventions:
        if isinstance(item, FreezeFinalScale):
            continue
        if not (0 <= item.layer < layers and 0 <= item.neuron < neurons):
            raise InputError(
                f"There is no neuron {item.neuron} in layer {item.layer}: the model has layers 0 to {layers - 1} with "
                f"neurons 0 to {neurons - 1}."
            )
        if not isinstance(item, PathAblation):
            continue
        if not (item.layer < item.head_layer < layers and 0 <= item.head < heads):
            raise InputError(
                f"No path leads from layer {item.layer} into head {item.head} of layer {item.head_layer}: "
                f"a path ends in a later layer, at most {layers - 1}, at one of the heads 0 to {heads - 1}."
            )
        if item.into not in HEAD_INPUTS:
            raise InputError(f"A path leads into q, k or v of a head, not into {item.into!r}.")
