"""What changing single neurons does to a model's predictions: from neurons and values to effects with standard errors.

For every neuron and value the final LayerNorm scale, loss, entropy, reciprocal rank of the true token and distance to
the unigram distribution are averaged over counted tokens, block by block. A last-layer neuron only moves the final
residual stream along its w_out; for an earlier one the later layers run again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lib.chapters.interventions.engine import Fix, run
from lib.kernels.predictions import STATISTICS, Cases, prediction_statistics, product_dtype
from lib.models.folded import full_precision
from lib.models.processed import Processed

OUTCOMES = (*STATISTICS, "scale")
COLUMNS = [outcome + part for outcome in OUTCOMES for part in ("", "_change", "_error")]
TOTAL, FROZEN_SCALE, FIXED_FREQUENCY = "total", "frozen scale", "fixed frequency"
TILE = 128  # tokens whose logits fit the processor's cache


@dataclass(frozen=True)
class Readout:
    """From the final residual stream to statistics of predictions.

    `constants` has the rows unembedding bias, frequency direction (unit, in logit space) and log unigram probability.
    """

    unembedding: Float[Tensor, "d_model vocabulary"]
    constants: Float[Tensor, "3 vocabulary"]

    @property
    def frequency(self) -> Float[Tensor, "vocabulary"]:
        """Unit vector along the centred log unigram frequency (arXiv 2406.16254)."""
        return self.constants[1]


def readout(model: Processed, counts: Int[Tensor, "vocabulary"]) -> Readout:
    """A model's readout, with the token counts of a text, plus one each, as unigram frequencies.

    A padded embedding has more tokens than the text's tokeniser; these count 0.
    """
    counts = F.pad(counts, (0, model.unembedding.shape[1] - len(counts))).to(model.device)
    log_unigram = ((counts + 1.0) / (counts + 1.0).sum()).log().float()
    direction = log_unigram - log_unigram.mean()
    direction = direction / direction.norm().clamp(min=1e-12)  # 0 for a text of equally frequent tokens
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
        change, error = mean_and_error(self.changed - self.unchanged[:, None, None, None], self.tokens)
        cases = [
            (*neuron, value, variant)
            for neuron, values in zip(self.neurons, self.values.tolist(), strict=True)
            for value in values
            for variant in self.variants
        ]
        table = pd.DataFrame(cases, columns=["layer", "neuron", "value", "variant"])
        for index, outcome in enumerate(OUTCOMES):
            mean = before[index] + change[..., index]
            for name, column in (("", mean), ("_change", change[..., index]), ("_error", error[..., index])):
                table[outcome + name] = column.flatten().numpy()
        return table


def mean_and_error(
    sums: Float[Tensor, "blocks *shape"], tokens: Float[Tensor, "blocks"]
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Means over tokens, from each block's sum, and their standard errors (NaN with a single block).

    The error is that of a ratio of sums over blocks, since tokens of one block are not independent.
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


@full_precision()
def effects(
    model: Processed,
    reading: Readout,
    blocks: tuple[Int[Tensor, "blocks context"], Bool[Tensor, "blocks context"]],
    fixed: dict[tuple[int, int], Sequence[float]],
    variants: tuple[str, ...] = (TOTAL,),
    progress: Callable = lambda chunks: chunks,
) -> Effects:
    """Effects of fixing each neuron (layer, neuron) of `fixed` at each of its values, equally many per neuron.

    `blocks` is tokens and the mask of those that count; measured is a counted token's prediction of the next one.
    Variants: `total`; `frozen scale`, the final LayerNorm divides as in the unchanged run; `fixed frequency`, the
    logits keep the unchanged run's projection on the frequency direction.
    """
    tokens, counted = (one.to(model.device) for one in blocks)
    neurons = list(fixed)
    asked = torch.tensor([list(fixed[neuron]) for neuron in neurons], dtype=torch.float32).view(len(neurons), -1)
    values = asked.to(model.device)
    made = {"dtype": torch.float64, "device": model.device}
    sums = torch.zeros(len(tokens), len(neurons), values.shape[1], len(variants), len(OUTCOMES), **made)
    unchanged = torch.zeros(len(tokens), len(OUTCOMES), **made)
    measured = predicting(counted)
    statistics = _CaseStatistics(model, reading, neurons, values, variants)
    for start in progress(range(0, len(tokens), model.batch)):
        part = slice(start, start + model.batch)
        for block, before, after in statistics.of(tokens[part], measured[part]):
            unchanged.index_add_(0, start + block, before)
            sums.index_add_(0, start + block, after)
    return Effects(neurons, asked, tuple(variants), measured.sum(1).double().cpu(), unchanged.cpu(), sums.cpu())


class _CaseStatistics:
    """OUTCOMES of every case (neuron, value, variant) on a few blocks at a time."""

    def __init__(self, model: Processed, reading: Readout, neurons, values, variants):
        self.model, self.reading, self.neurons, self.values, self.variants = model, reading, neurons, values, variants
        self.last = len(model.blocks) - 1
        self.late = [index for index, (layer, _) in enumerate(neurons) if layer == self.last]
        self.early = [index for index in range(len(neurons)) if index not in self.late]
        self.directions = model.blocks[self.last].w_out[[neurons[index][1] for index in self.late]]
        self.late_effects = self.directions @ reading.unembedding  # (late neurons, vocabulary)
        self.dtype = product_dtype(reading.unembedding)
        self.coarse = reading.unembedding.to(self.dtype)
        self.along = reading.unembedding @ reading.frequency  # (d_model)

    def of(self, tokens: Tensor, measured: Tensor):
        """Yields (block of each token, its statistics unchanged, its statistics in every case) tile by tile."""
        trace = run(self.model, tokens)
        final, target = trace.final[measured], tokens.roll(-1, 1)[measured]
        block = measured.nonzero()[:, 0]
        late = [self.neurons[index][1] for index in self.late]
        active = self.model.neuron_activations(trace.middle[self.last][measured], self.last, late)
        moved = self.values[self.late] - active[..., None]  # (tokens, late neurons, values)
        shifts = {}  # neuron -> change of the final residual stream at each value, (tokens, values, d_model)
        for index in self.early:
            fixes = [Fix(*self.neurons[index], value) for value in self.values[index].tolist()]
            changed = [run(self.model, tokens, [fix], trace).final[measured] for fix in fixes]
            shifts[index] = torch.stack(changed, 1) - final[:, None]
        for start in range(0, len(final), TILE):
            tile = slice(start, start + TILE)
            own = {index: shift[tile] for index, shift in shifts.items()}
            yield block[tile], *self._tile(final[tile], target[tile], moved[tile], own)

    def _tile(self, final, target, moved, shifts) -> tuple[Tensor, Tensor]:
        rows, values, variants = len(final), self.values.shape[1], len(self.variants)
        products = final @ self.reading.unembedding
        cases = final.new_empty(rows, len(self.neurons), values, variants, len(OUTCOMES), dtype=torch.float64)
        base = self.model.scale(final)[:, None], (final @ self.along)[:, None]  # scale and projection, (rows, 1)
        shared = target, products.argmax(1), products, base
        nothing, first = self.late_effects.new_zeros(1, products.shape[1]), target.new_zeros(rows, 1)
        unchanged = self._statistics(*shared, nothing, base, first, (TOTAL,))
        if self.late:
            which = torch.arange(len(self.late), device=final.device).repeat_interleave(values).expand(rows, -1)
            after = self._along_directions(final, moved)
            found = self._statistics(*shared, self.late_effects, after, which, self.variants, moved.flatten(1))
            cases[:, self.late] = found.view(rows, len(self.late), values, variants, -1)
        for index, shift in shifts.items():  # (rows, values, d_model)
            change = (shift.to(self.dtype) @ self.coarse).flatten(0, 1)
            after = self.model.scale(final[:, None] + shift), (final[:, None] + shift) @ self.along
            which = torch.arange(rows * values, device=final.device).view(rows, values)
            cases[:, index] = self._statistics(*shared, change, after, which, self.variants)
        return unchanged[:, 0, 0], cases

    def _along_directions(self, final, moved) -> tuple[Tensor, Tensor]:
        """LayerNorm scale and projection on the frequency direction of final + moved · w_out, (rows, late · values)."""
        wide, writes = final - final.mean(-1, keepdim=True), self.directions - self.directions.mean(-1, keepdim=True)
        covariance, spread = (wide @ writes.T / wide.shape[1])[..., None], writes.square().mean(-1)[:, None]
        variance = wide.square().mean(-1)[:, None, None] + moved * (2 * covariance + moved * spread)
        projection = (final @ self.along)[:, None, None] + moved * (self.directions @ self.along)[:, None]
        return (variance.clamp(min=0) + self.model.eps).sqrt().flatten(1), projection.flatten(1)

    def _statistics(self, target, likely, products, base, effects, after, effect, variants, moved=None) -> Tensor:
        """OUTCOMES (rows, cases, variants, outcomes); `base` (rows, 1) and `after` (rows, cases): scale, projection."""
        rows, cases = effect.shape
        shape = rows, cases, len(variants)
        scale, before = after[0], base[0].expand(rows, cases)
        drift = base[1] / base[0] - after[1] / scale
        none = torch.zeros_like(drift)
        scales = torch.stack([before if variant == FROZEN_SCALE else scale for variant in variants], 2)
        along = torch.stack([drift if variant == FIXED_FREQUENCY else none for variant in variants], 2)
        moved = torch.ones_like(drift) if moved is None else moved
        columns = (
            torch.arange(rows, device=drift.device)[:, None, None],
            effect[..., None],
            moved[..., None],
            1 / scales,
            along,
        )
        every = Cases(*(column.expand(shape).flatten() for column in columns))
        found = prediction_statistics(products, effects, every, self.reading.constants, target, likely)
        return torch.cat([found.view(*shape, -1), scales[..., None]], -1).double()


# ---------------------------------------------------------------- effects of groups of neurons


def at_largest_value(table: pd.DataFrame) -> pd.DataFrame:
    """The total effects of `Effects.table` at the largest value."""
    return table[(table["variant"] == TOTAL) & (table["value"] == table["value"].max())]


class Removed(NamedTuple):
    """Median shares of an effect that a variant removes, of candidates and controls, how many of each have an effect,
    and Cliff's delta of the two groups; NaN where none of a group has an effect."""

    candidates: float
    controls: float
    neurons: tuple[int, int]
    delta: float


def removed(table: pd.DataFrame, outcome: str, variant: str, groups: tuple[str, str]) -> Removed:
    """How much of the effect on an outcome a variant removes in candidates and in controls, the two `groups`.

    `table` is one seed's `Effects.table` with a column `group`. Only total effects beyond two standard errors count: a
    share of one that may be 0 says nothing.
    """
    key, change = ["group", "layer", "neuron"], f"{outcome}_change"
    total, left = (table[table["variant"] == one].set_index(key) for one in (TOTAL, variant))
    clear = total[total[change].abs() > 2 * total[f"{outcome}_error"]]
    shares = 1 - left[change].reindex(clear.index) / clear[change]
    ours, others = (shares[shares.index.get_level_values(0) == name].to_numpy(dtype=float) for name in groups)
    medians = (float(np.median(own)) if len(own) else np.nan for own in (ours, others))
    delta = float(np.sign(ours[:, None] - others).mean()) if len(ours) and len(others) else np.nan
    return Removed(*medians, (len(ours), len(others)), delta)
