"""Correlations between the neurons of two seeds, from accumulated covariances: best matches and rotation baseline.

Nothing here sees activations. Both directions of a pair come from one matrix: its rows are the neurons of seed a, its
columns those of seed b (METHOD §2).
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.kernels.covariance import CrossCovariance
from lib.kernels.moments import Moments

ROWS = 1024  # rows of a pair matrix normalised at a time


@dataclass(frozen=True)
class Scale:
    """What turns one seed's summed operands into correlations: per neuron, in the operand's scaled units."""

    mean: Float[Tensor, "total"]
    inverse_deviation: Float[Tensor, "total"]  # 0 for a dead neuron, so that its correlations are 0
    unit: Float[Tensor, "total"]  # activation units per scaled unit
    tokens: int

    @classmethod
    def of(cls, moments: Moments) -> "Scale":
        """From the moments of the same pass."""
        deviation = moments.scaled_deviation().flatten()
        return cls(
            mean=moments.operand_mean().flatten(),
            inverse_deviation=torch.where(deviation > 0, 1 / deviation, 0),
            unit=1 / moments.post_scaling[:, 1].double().flatten(),
            tokens=moments.tokens,
        )


def correlation_rows(
    sums: Float[Tensor, "rows columns"], a: Scale, b: Scale, rows: slice
) -> Float[Tensor, "rows columns"]:
    """Pearson correlations of some of seed a's neurons (`rows`) with all of seed b's."""
    wide = sums.dtype
    outer = torch.outer(a.mean[rows].to(wide), b.mean.to(wide))
    scale_a = a.inverse_deviation[rows].to(wide)[:, None]
    return (sums[rows] / a.tokens - outer) * scale_a * b.inverse_deviation.to(wide)


@dataclass
class Matches:
    """For each neuron of one seed its best match in another: correlation and the partner's flat index."""

    corr: Float[Tensor, "total"]
    partner: Int[Tensor, "total"]


def best_matches(sums: Float[Tensor, "total total"], a: Scale, b: Scale) -> tuple[Matches, Matches]:
    """Best match in b of each neuron of a (row maxima), and in a of each neuron of b (column maxima)."""
    row_best, row_index = [], []
    column_best = torch.full((sums.shape[1],), -torch.inf, dtype=sums.dtype, device=sums.device)
    column_index = torch.zeros(sums.shape[1], dtype=torch.int64, device=sums.device)
    for start in range(0, sums.shape[0], ROWS):
        tile = correlation_rows(sums, a, b, slice(start, start + ROWS))
        value, index = tile.max(dim=1)
        row_best.append(value)
        row_index.append(index)
        value, index = tile.max(dim=0)
        better = value > column_best
        column_best = torch.where(better, value, column_best)
        column_index = torch.where(better, index + start, column_index)
    return Matches(torch.cat(row_best), torch.cat(row_index)), Matches(column_best, column_index)


def haar_rotation(size: int, generator: torch.Generator) -> Float[Tensor, "size size"]:
    """A Haar-distributed orthogonal matrix: QR of a Gaussian with the signs of R's diagonal fixed (METHOD §2)."""
    q, r = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    return q * r.diagonal().sign()


def rotations(layers: int, neurons: int, random_seed: int, model: int, draw: int) -> Float[Tensor, "layers n n"]:
    """One rotation per layer of a model, the same for every reference seed, fixed by (random_seed, model, draw)."""
    entropy = np.random.SeedSequence([random_seed, model, draw]).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(entropy[0]))
    return torch.stack([haar_rotation(neurons, generator) for _ in range(layers)])


def rotated_deviation(
    within: Float[Tensor, "layers n n"], scale: Scale, rotation: Float[Tensor, "layers n n"]
) -> Float[Tensor, "layers n"]:
    """Standard deviations of the rotated activations, √diag(R Σ Rᵀ), in activation units."""
    layers, neurons, _ = within.shape
    mean, unit = scale.mean.view(layers, -1), scale.unit.view(layers, -1)
    deviation = torch.where(scale.inverse_deviation > 0, 1 / scale.inverse_deviation, 0).view(layers, -1)
    variances = []
    for layer in range(layers):
        covariance = within[layer].double() / scale.tokens - torch.outer(mean[layer], mean[layer])
        covariance.diagonal().copy_(deviation[layer] ** 2)  # exact, where operands carry rounding noise
        covariance *= torch.outer(unit[layer], unit[layer])
        turn = rotation[layer].to(covariance)
        variances.append(((turn @ covariance) * turn).sum(1))
    return torch.stack(variances).clamp(min=0).sqrt()


def baseline(
    sums: Float[Tensor, "total_a total_b"],
    a: Scale,
    b: Scale,
    rotation: Float[Tensor, "layers n n"],
    deviation: Float[Tensor, "layers n"],
) -> Float[Tensor, "total_a"]:
    """Largest correlation of each neuron of a with any rotated neuron of b: cov(x, R y) = C Rᵀ (METHOD §2).

    `sums` may be a transposed view, for the other direction of a pair. Chunked by layer of b and rows of a.
    """
    wide = sums.dtype
    layers, neurons, _ = rotation.shape
    best = torch.full((sums.shape[0],), -torch.inf, dtype=wide, device=sums.device)
    for layer in range(layers):
        columns = slice(layer * neurons, (layer + 1) * neurons)
        turn = rotation[layer].to(sums)
        inverse = torch.where(deviation[layer] > 0, 1 / deviation[layer], 0).to(wide)
        # R with columns in units of activation and rows divided by the rotated deviation, so one product suffices
        turn = turn * b.unit[columns].to(wide) * inverse[:, None]
        offset = turn @ b.mean[columns].to(wide)  # mean of the rotated neuron, scaled
        for start in range(0, sums.shape[0], ROWS):
            rows = slice(start, start + ROWS)
            rotated = sums[rows, columns] @ turn.T / a.tokens - torch.outer(a.mean[rows].to(wide), offset)
            rotated *= a.inverse_deviation[rows].to(wide)[:, None]
            best[rows] = torch.maximum(best[rows], rotated.amax(1))
    return best


@dataclass
class Comparison:
    """All best matches and baselines between seeds; first axis reference seed, second compared seed, both in order.

    Arrays: corr, partner (seeds, seeds, total) and baseline (draws, seeds, seeds, total); the diagonal is NaN (−1).
    """

    corr: Float[Tensor, "seeds seeds total"]
    partner: Int[Tensor, "seeds seeds total"]
    baseline: Float[Tensor, "draws seeds seeds total"]


def compare(
    covariance: CrossCovariance, moments: dict[str, Moments], random_seed: int, draws: int, progress=iter
) -> Comparison:
    """Matches of every seed against every other, with `draws` rotations of the compared seed for the baseline."""
    seeds, total = covariance.seeds, covariance.layers * covariance.neurons
    scales = {seed: Scale.of(moments[seed]) for seed in seeds}
    count = len(seeds)
    corr = torch.full((count, count, total), torch.nan, dtype=torch.float64)
    partner = torch.full((count, count, total), -1, dtype=torch.int64)
    chance = torch.full((draws, count, count, total), torch.nan, dtype=torch.float64)
    for (a, b), sums in covariance.pairs.items():
        i, j = seeds.index(a), seeds.index(b)
        for at, matches in zip(((i, j), (j, i)), best_matches(sums, scales[a], scales[b]), strict=True):
            corr[at], partner[at] = matches.corr.cpu().double(), matches.partner.cpu()
    for draw, j in progress([(draw, j) for draw in range(draws) for j in range(count)]):
        b = seeds[j]
        turn = rotations(covariance.layers, covariance.neurons, random_seed, j, draw).to(covariance.within[b].device)
        deviation = rotated_deviation(covariance.within[b], scales[b], turn)
        for i, a in enumerate(seeds):
            if i == j:
                continue
            sums = covariance.pairs[(a, b)] if i < j else covariance.pairs[(b, a)].T
            chance[draw, i, j] = baseline(sums, scales[a], scales[b], turn, deviation).cpu().double()
    return Comparison(corr, partner, chance)
