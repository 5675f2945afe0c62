"""The published algorithm of the neuron correlations, written from its description (docs/method.md §2, §8.4).

Per pair of seeds both models run forward over the whole text; every layer pair's fp32 product is copied to the host
and added to a float64 array of all pairs of neurons; the rotation baseline is a second full run in which the compared
model's activations are rotated. Two liberties, in its favour or without cost: the models stop after the last layer
(no logits), and the rotation is orthogonal and given from outside (§8.2), so that outputs can be compared.
Nothing of `lib` is used here and `lib` never uses this.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

BATCH = 32  # blocks in a batch; larger ones gain nothing, since the host's additions are a small part already

Activations = list[Float[Tensor, "tokens neurons"]]  # one entry a layer


class StreamedCorrelation:
    """Sums of one run over one pair; products on the host in float64, axes (layer_a, neuron_a, layer_b, neuron_b)."""

    def __init__(self, layers: int, neurons: int):
        self.products = torch.zeros(layers, neurons, layers, neurons, dtype=torch.float64)
        self.sums, self.squares = (torch.zeros(2, layers, neurons, dtype=torch.float64) for _ in range(2))
        self.tokens = 0

    def update(self, a: Activations, b: Activations) -> None:
        """Adds one batch of both models' activations."""
        for layer_a, x in enumerate(a):
            for layer_b, y in enumerate(b):
                self.products[layer_a, :, layer_b] += (x.T @ y).cpu()  # fp32 product, float64 sum
        for model, activations in enumerate((a, b)):
            for layer, x in enumerate(activations):
                self.sums[model, layer] += x.sum(0).cpu()
                self.squares[model, layer] += (x * x).sum(0).cpu()
        self.tokens += len(a[0])

    def largest(self) -> Float[Tensor, "total"]:
        """Largest correlation of each of the first model's neurons; a constant neuron correlates 0."""
        mean = self.sums / self.tokens
        variance = (self.squares / self.tokens - mean**2).clamp(min=0)
        alive = variance > 1e-10 * self.squares / self.tokens
        inverse = torch.where(alive, variance, 1).rsqrt() * alive
        layers, neurons, _, _ = self.products.shape
        best = torch.full((layers, neurons), -torch.inf, dtype=torch.float64)
        for layer_a in range(layers):
            for layer_b in range(layers):
                block = self.products[layer_a, :, layer_b] / self.tokens
                block -= torch.outer(mean[0, layer_a], mean[1, layer_b])
                block *= torch.outer(inverse[0, layer_a], inverse[1, layer_b])
                best[layer_a] = torch.maximum(best[layer_a], block.amax(1))
        return best.flatten()


def rotate(activations: Activations, rotation: Float[Tensor, "layers neurons neurons"]) -> Activations:
    """Each layer's activations in the rotated basis, y Rᵀ."""
    return [y @ turn.T for y, turn in zip(activations, rotation, strict=True)]


@torch.inference_mode()
def activations(
    model: nn.Module, tokens: Int[Tensor, "blocks context"], counted: Bool[Tensor, "blocks context"]
) -> Activations:
    """A GPT-2's activations of all layers on the counted tokens, by its own forward pass."""
    seen: Activations = []
    keep = counted.flatten().to(tokens.device)
    handles = [
        block.mlp.act.register_forward_hook(lambda _module, _inputs, output: seen.append(output.flatten(0, 1)[keep]))
        for block in model.transformer.h
    ]
    try:
        model.transformer(tokens, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def pair_correlations(
    a: nn.Module,
    b: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    rotation: Float[Tensor, "layers neurons neurons"] | None,
) -> Float[Tensor, "total"]:
    """One run over the text, `batches` of (tokens, counted): each neuron of a, its largest correlation with one of b.

    With a rotation b's neurons are rotated first: the baseline.
    """
    streamed = None
    for tokens, counted in batches:
        x, y = activations(a, tokens, counted), activations(b, tokens, counted)
        y = y if rotation is None else rotate(y, rotation)
        streamed = streamed or StreamedCorrelation(len(x), x[0].shape[1])
        streamed.update(x, y)
    return streamed.largest()
