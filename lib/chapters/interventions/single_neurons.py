"""What changing single neurons does to a model's predictions: from neurons and values to effects with standard errors.

For every neuron and value the final LayerNorm scale, loss, entropy, reciprocal rank of the true token and distance to
the unigram distribution are averaged over counted tokens, block by block. A neuron of the last layer only moves the
final residual stream along its w_out; an earlier one runs the layers behind it again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lib.chapters.interventions.engine import Fix, run
from lib.kernels.predictions import STATISTICS, Cases, prediction_statistics, product_dtype
from lib.models.processed import Processed

OUTCOMES = (*STATISTICS, "scale")
TOTAL, FROZEN_SCALE, FIXED_FREQUENCY = "total", "frozen scale", "fixed frequency"
BLOCKS = 4  # blocks in one forward pass
TILE = 128  # tokens whose logits are held at once, so that they stay in the processor's cache


@dataclass(frozen=True)
class Readout:
    """The way from the final residual stream to statistics of predictions.

    `constants` has the rows unembedding bias, frequency direction (unit, in logit space) and log unigram probability.
    """

    unembedding: Float[Tensor, "d_model vocabulary"]
    constants: Float[Tensor, "3 vocabulary"]

    @property
    def frequency(self) -> Float[Tensor, "vocabulary"]:
        """Unit vector along the centred log unigram frequency (arXiv 2406.16254)."""
        return self.constants[1]


def readout(model: Processed, counts: Int[Tensor, "vocabulary"]) -> Readout:
    """The readout of a model, with token counts of a text as unigram frequencies (one added to each count).

    A model whose embedding is padded has more tokens than the text's tokeniser; those are counted 0 times.
    """
    counts = F.pad(counts, (0, model.unembedding.shape[1] - len(counts)))
    log_unigram = ((counts + 1.0) / (counts + 1.0).sum()).log().float()
    direction = log_unigram - log_unigram.mean()
    direction = direction / direction.norm().clamp(min=1e-12)  # a text of equally frequent tokens has no direction
    return Readout(model.unembedding, torch.stack([model.unembedding_bias, direction, log_unigram]))


@dataclass(frozen=True)
class Effects:
    """Sums over the counted tokens of each block; OUTCOMES run along the last axis."""

    neurons: list[tuple[int, int]]
    values: Float[Tensor, "neurons values"]
    variants: tuple[str, ...]
    tokens: Float[Tensor, "blocks"]
    unchanged: Float[Tensor, "blocks outcomes"]
    changed: Float[Tensor, "blocks neurons values variants outcomes"]

    def table(self) -> pd.DataFrame:
        """One row per neuron, value and variant: each outcome's mean, its change and the change's standard error."""
        before = self.unchanged.sum(0) / self.tokens.sum()
        change, error = mean_and_error(
            self.changed - self.unchanged[:, None, None, None], self.tokens
        )  # (neurons, values, variants, outcomes)
        rows = []
        for n, (layer, neuron) in enumerate(self.neurons):
            for g in range(self.values.shape[1]):
                for v, variant in enumerate(self.variants):
                    row = {"layer": layer, "neuron": neuron, "value": float(self.values[n, g]), "variant": variant}
                    for index, outcome in enumerate(OUTCOMES):
                        row[outcome] = float(before[index] + change[n, g, v, index])
                        row[f"{outcome}_change"] = float(change[n, g, v, index])
                        row[f"{outcome}_error"] = float(error[n, g, v, index])
                    rows.append(row)
        return pd.DataFrame(rows)


def mean_and_error(
    sums: Float[Tensor, "blocks *shape"], tokens: Float[Tensor, "blocks"]
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Means over tokens, from sums over each block's, and their standard errors (NaN with a single block).

    The standard error is that of a ratio of sums over blocks, since tokens of one block are not independent.
    """
    total, blocks = tokens.sum(), len(tokens)
    mean = sums.sum(0) / total
    residual = sums - tokens.view(-1, *[1] * mean.dim()) * mean
    correction = blocks / (blocks - 1) if blocks > 1 else float("nan")
    return mean, (residual.square().sum(0) * correction).sqrt() / total


def predicting(counted: Bool[Tensor, "blocks context"]) -> Bool[Tensor, "blocks context"]:
    """The counted positions that have a next token to predict: all but the last of a block."""
    measured = counted.clone()
    measured[:, -1] = False
    return measured


@torch.no_grad()
def effects(
    model: Processed,
    reading: Readout,
    blocks: tuple[Int[Tensor, "blocks context"], Bool[Tensor, "blocks context"]],
    fixed: dict[tuple[int, int], Sequence[float]],
    variants: tuple[str, ...] = (TOTAL,),
    progress: Callable = lambda chunks: chunks,
) -> Effects:
    """Effects of fixing each neuron (layer, neuron) of `fixed` at each of its values, all neurons having equally many.

    `blocks` is tokens and the mask of those that count; a counted token's prediction of the next one is measured.
    The variants: `total`; `frozen scale`, the final LayerNorm dividing as in the unchanged run; `fixed frequency`,
    the logits' projection on the frequency direction put back to what it was.
    """
    tokens, counted = blocks
    neurons = list(fixed)
    values = torch.tensor([list(fixed[neuron]) for neuron in neurons], dtype=torch.float32).view(len(neurons), -1)
    sums = torch.zeros(len(tokens), len(neurons), values.shape[1], len(variants), len(OUTCOMES), dtype=torch.float64)
    unchanged = torch.zeros(len(tokens), len(OUTCOMES), dtype=torch.float64)
    measured = predicting(counted)
    predictions = _Predictions(model, reading, neurons, values, variants)
    for start in progress(range(0, len(tokens), BLOCKS)):
        part = slice(start, start + BLOCKS)
        for block, before, after in predictions.of(tokens[part], measured[part]):
            unchanged.index_add_(0, start + block, before)
            sums.index_add_(0, start + block, after)
    return Effects(neurons, values, tuple(variants), measured.sum(1).double(), unchanged, sums)


class _Predictions:
    """Statistics of every case on a few blocks at a time."""

    def __init__(self, model: Processed, reading: Readout, neurons, values, variants):
        self.model, self.reading, self.neurons, self.values, self.variants = model, reading, neurons, values, variants
        last = len(model.blocks) - 1
        self.late = [index for index, (layer, _) in enumerate(neurons) if layer == last]
        self.early = [index for index in range(len(neurons)) if index not in self.late]
        self.directions = torch.stack([model.blocks[layer].w_out[neuron] for layer, neuron in neurons])[self.late]
        self.late_effects = self.directions @ reading.unembedding  # (late neurons, vocabulary)
        self.dtype = product_dtype(reading.unembedding.shape[1], reading.unembedding.dtype)
        self.coarse = reading.unembedding.to(self.dtype)
        self.along = reading.unembedding @ reading.frequency  # (d_model)

    def of(self, tokens: Tensor, measured: Tensor):
        """Yields (block of each token, its statistics unchanged, its statistics in every case) tile by tile."""
        trace = run(self.model, tokens)
        final, target = trace.final[measured], tokens.roll(-1, 1)[measured]
        block = measured.nonzero()[:, 0]
        last = len(self.model.blocks) - 1
        active = self.model.neuron_activations(
            trace.middle[last][measured], last, [self.neurons[index][1] for index in self.late]
        )
        moved = self.values[self.late] - active[..., None]  # (tokens, late neurons, values)
        shifts = {}  # neuron -> change of the final residual stream at each value, (tokens, values, d_model)
        for index in self.early:
            changed = [
                run(self.model, tokens, [Fix(*self.neurons[index], value)], trace).final[measured]
                for value in self.values[index].tolist()
            ]
            shifts[index] = torch.stack(changed, 1) - final[:, None]
        for start in range(0, len(final), TILE):
            tile = slice(start, start + TILE)
            yield (
                block[tile],
                *self._tile(final[tile], target[tile], moved[tile], {key: at[tile] for key, at in shifts.items()}),
            )

    def _tile(self, final, target, moved, shifts) -> tuple[Tensor, Tensor]:
        rows, values = len(final), self.values.shape[1]
        products = final @ self.reading.unembedding
        everything = torch.empty(
            rows, len(self.neurons), values, len(self.variants), len(OUTCOMES), dtype=torch.float64
        )
        likely = products.argmax(1)
        nothing = self.late_effects.new_zeros(1, products.shape[1])
        base = self.model.scale(final)[:, None], (final @ self.along)[:, None]  # scale and projection, (rows, 1)
        unchanged = self._statistics(
            target, likely, products, nothing, base, base, torch.zeros(rows, 1, dtype=torch.long), (TOTAL,)
        )
        if self.late:
            which = torch.arange(len(self.late)).repeat_interleave(values).expand(rows, -1)
            after = self._along_directions(final, moved)
            found = self._statistics(
                target, likely, products, self.late_effects, base, after, which, self.variants, moved.flatten(1)
            )
            everything[:, self.late] = found.view(rows, len(self.late), values, len(self.variants), -1)
        for index, shift in shifts.items():  # (rows, values, d_model)
            change = (shift.to(self.dtype) @ self.coarse).flatten(0, 1)
            after = self.model.scale(final[:, None] + shift), (final[:, None] + shift) @ self.along
            which = torch.arange(rows * values).view(rows, values)
            everything[:, index] = self._statistics(target, likely, products, change, base, after, which, self.variants)
        return unchanged[:, 0, 0], everything

    def _along_directions(self, final, moved) -> tuple[Tensor, Tensor]:
        """LayerNorm scale and projection on the frequency direction, (rows, late · values), of final + moved · w_out."""
        wide, writes = final - final.mean(-1, keepdim=True), self.directions - self.directions.mean(-1, keepdim=True)
        covariance, spread = (wide @ writes.T / wide.shape[1])[..., None], writes.square().mean(-1)[:, None]
        variance = wide.square().mean(-1)[:, None, None] + moved * (2 * covariance + moved * spread)
        projection = (final @ self.along)[:, None, None] + moved * (self.directions @ self.along)[:, None]
        return (variance.clamp(min=0) + self.model.eps).sqrt().flatten(1), projection.flatten(1)

    def _statistics(self, target, likely, products, effects, base, after, effect, variants, moved=None) -> Tensor:
        """OUTCOMES (rows, cases, variants, outcomes); `base` and `after` are scale and projection, (rows, 1) and (rows, cases)."""
        rows, cases = effect.shape
        scale, before = after[0], base[0].expand(rows, cases)
        drift = base[1] / base[0] - after[1] / scale
        scales = torch.stack([before if variant == FROZEN_SCALE else scale for variant in variants], 2)
        along = torch.stack(
            [drift if variant == FIXED_FREQUENCY else torch.zeros_like(drift) for variant in variants], 2
        )
        row, shape = torch.arange(rows), (rows, cases, len(variants))
        moved = torch.ones(rows, cases) if moved is None else moved
        found = prediction_statistics(
            products,
            effects,
            Cases(
                row[:, None, None].expand(shape).flatten(),
                effect[..., None].expand(shape).flatten(),
                moved[..., None].expand(shape).flatten(),
                1 / scales.flatten(),
                along.flatten(),
            ),
            self.reading.constants,
            target,
            likely,
        )
        return torch.cat([found.view(*shape, -1), scales[..., None]], -1).double()
