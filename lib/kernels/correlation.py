"""Correlations between the neurons of two seeds, from accumulated covariances: best matches and rotation baseline.

Nothing here sees activations. A pair's matrix is read in blocks, one layer of seed a by one layer of seed b, so that it
never has to be in memory whole; both directions of the pair come from it (docs/method.md §2).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lib.kernels.forward import affine
from lib.kernels.moments import Moments


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

    def layer(self, layer: int, neurons: int) -> "Scale":
        """The part of one layer."""
        own = slice(layer * neurons, (layer + 1) * neurons)
        return Scale(self.mean[own], self.inverse_deviation[own], self.unit[own], self.tokens)


@dataclass(frozen=True)
class Covariance:
    """The summed products of a run, in blocks of one layer by one layer, wherever they lie.

    `pair(a, layer, b, other)` returns Σ x yᵀ (neurons, neurons) of a layer of seed a with a layer of seed b, for each
    (a, b) of `pairs`; `within(seed, layer)` returns Σ x xᵀ of one layer.
    """

    seeds: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    references: tuple[str, ...]  # the seeds whose neurons are matched
    layers: int
    neurons: int
    pair: Callable[[str, int, str, int], Tensor]
    within: Callable[[str, int], Tensor]

    def block(self, a: str, layer: int, b: str, other: int) -> Float[Tensor, "neurons neurons"]:
        """Rows of a layer of seed a, columns of a layer of seed b, whichever way round the pair is stored."""
        return self.pair(a, layer, b, other) if (a, b) in self.pairs else self.pair(b, other, a, layer).T


def correlations(sums: Float[Tensor, "a b"], a: Scale, b: Scale) -> Float[Tensor, "a b"]:
    """Pearson correlations of the neurons of two layers."""
    wide = sums.dtype
    scale_a = (a.inverse_deviation / a.tokens).to(wide)[:, None]
    mean_a = (a.mean * a.inverse_deviation).to(wide)[:, None]
    return (sums * scale_a - mean_a * b.mean.to(wide)) * b.inverse_deviation.to(wide)


class Matches:
    """For each neuron of one seed its best match in another: correlation and the partner's flat index."""

    def __init__(self, total: int):
        self.corr = torch.full((total,), -torch.inf, dtype=torch.float64)
        self.partner = torch.full((total,), -1, dtype=torch.int64)

    def update(self, rows: slice, corr: Float[Tensor, "rows columns"], first: int) -> None:
        """Keeps the better of old and new matches, given correlations with partners from flat index `first` on."""
        value, index = corr.max(dim=1)
        value, index = value.double().cpu(), index.cpu() + first
        better = value > self.corr[rows]
        self.corr[rows] = torch.where(better, value, self.corr[rows])
        self.partner[rows] = torch.where(better, index, self.partner[rows])

    def returned(self, back: "Matches") -> Bool[Tensor, "total"]:
        """Whether a neuron is its best match's best match in `back`; never where they do not correlate."""
        return (self.corr > 0) & (back.partner[self.partner] == torch.arange(len(self.partner)))


def best_matches(covariance: Covariance, a: str, b: str, scales: dict[str, Scale]) -> tuple[Matches, Matches]:
    """Best match in b of each neuron of a (row maxima), and in a of each neuron of b (column maxima)."""
    layers, neurons = covariance.layers, covariance.neurons
    forward, backward = Matches(layers * neurons), Matches(layers * neurons)
    for layer in range(layers):
        for other in range(layers):
            sums = covariance.pair(a, layer, b, other)
            corr = correlations(sums, scales[a].layer(layer, neurons), scales[b].layer(other, neurons))
            forward.update(slice(layer * neurons, (layer + 1) * neurons), corr, other * neurons)
            backward.update(slice(other * neurons, (other + 1) * neurons), corr.T, layer * neurons)
    return forward, backward


def haar_rotation(size: int, generator: torch.Generator) -> Float[Tensor, "size size"]:
    """A Haar-distributed orthogonal matrix: QR of a Gaussian, signs of R's diagonal fixed (docs/method.md §2)."""
    q, r = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    return q * r.diagonal().sign()


def rotations(layers: int, neurons: int, random_seed: int, model: int, draw: int) -> Iterator[Float[Tensor, "n n"]]:
    """One rotation per layer of a model, the same for every reference seed, fixed by (random_seed, model, draw)."""
    entropy = np.random.SeedSequence([random_seed, model, draw]).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(entropy[0]))
    return (haar_rotation(neurons, generator) for _ in range(layers))


def rotated_deviation(within: Float[Tensor, "n n"], scale: Scale, rotation: Float[Tensor, "n n"]) -> Float[Tensor, "n"]:
    """Standard deviations of one layer's rotated activations, √diag(R Σ Rᵀ), in activation units."""
    covariance = within.double() / scale.tokens - torch.outer(scale.mean, scale.mean)
    deviation = torch.where(scale.inverse_deviation > 0, 1 / scale.inverse_deviation, 0)
    covariance.diagonal().copy_(deviation**2)  # exact, where operands carry rounding noise
    covariance *= torch.outer(scale.unit, scale.unit)
    turn = rotation.to(covariance)
    return ((turn @ covariance) * turn).sum(1).clamp(min=0).sqrt()


def scaled_rotation(rotation: Float[Tensor, "n n"], deviation: Float[Tensor, "n"], b: Scale) -> Float[Tensor, "n n"]:
    """R with columns in units of activation and rows divided by the rotated deviation, so one product suffices."""
    return rotation * b.unit * torch.where(deviation > 0, 1 / deviation, 0)[:, None]


def block_baseline(sums: Float[Tensor, "a b"], a: Scale, b: Scale, turn: Float[Tensor, "n b"]) -> Float[Tensor, "a"]:
    """Largest correlation of each neuron of a layer of a with a rotated neuron of a layer of b.

    cov(x, R y) = C Rᵀ (docs/method.md §2); `turn` comes from `scaled_rotation`, in the type of `sums`.
    """
    wide = sums.dtype
    centred = torch.addr(sums, a.mean.to(wide), b.mean.to(wide), alpha=-a.tokens)
    rotated = affine(centred.contiguous(), turn.T, centred.new_zeros(len(turn)))
    # the neuron's own scale is not negative, so it can wait until after the maximum
    return rotated.amax(1) * (a.inverse_deviation / a.tokens).to(wide)


def products_at(
    covariance: Covariance, partner: Int[Tensor, "seeds seeds total"]
) -> Float[Tensor, "seeds seeds total"]:
    """Σ x y of every neuron of each reference with its partner (a flat index) in each other seed; NaN elsewhere."""
    neurons, found = covariance.neurons, torch.full(partner.shape, torch.nan, dtype=torch.float64)
    for a in covariance.references:
        for b in (seed for seed in covariance.seeds if seed != a):
            i, j = covariance.seeds.index(a), covariance.seeds.index(b)
            for layer in range(covariance.layers):
                own = slice(layer * neurons, (layer + 1) * neurons)
                chosen, values = partner[i, j, own].long(), found[i, j, own]
                for other in (chosen // neurons).unique().tolist():
                    rows = (chosen // neurons == other).nonzero().squeeze(1)
                    values[rows] = covariance.block(a, layer, b, other)[rows, chosen[rows] % neurons].double().cpu()
    return found


@dataclass
class Comparison:
    """All best matches and baselines between seeds; first axis reference seed, second compared seed, both in order.

    Arrays: corr, partner, mutual (seeds, seeds, total) and baseline (draws, seeds, seeds, total). The diagonal and the
    rows of seeds that are no reference are NaN (−1, False). `mutual`: the neuron is its partner's best match, too.
    """

    corr: Float[Tensor, "seeds seeds total"]
    partner: Int[Tensor, "seeds seeds total"]
    mutual: Bool[Tensor, "seeds seeds total"]
    baseline: Float[Tensor, "draws seeds seeds total"]


def compare(
    covariance: Covariance, moments: dict[str, Moments], random_seed: int, draws: int, progress: Callable = iter
) -> Comparison:
    """Matches of every reference seed against every other, with `draws` rotations of the compared for the baseline."""
    seeds, layers, neurons = covariance.seeds, covariance.layers, covariance.neurons
    scales = {seed: Scale.of(moments[seed]) for seed in seeds}
    shape = len(seeds), len(seeds), layers * neurons
    corr = torch.full(shape, torch.nan, dtype=torch.float64)
    partner = torch.full(shape, -1, dtype=torch.int64)
    mutual = torch.zeros(shape, dtype=torch.bool)
    chance = torch.full((draws, *shape), torch.nan, dtype=torch.float64)
    for a, b in covariance.pairs:
        i, j = seeds.index(a), seeds.index(b)
        forward, backward = best_matches(covariance, a, b, scales)
        for at, seed, matches, back in (((i, j), a, forward, backward), ((j, i), b, backward, forward)):
            if seed in covariance.references:
                corr[at], partner[at], mutual[at] = matches.corr, matches.partner, matches.returned(back)
    for draw, b in progress([(draw, seed) for draw in range(draws) for seed in _compared(covariance)]):
        turns = rotations(layers, neurons, random_seed, seeds.index(b), draw)
        for other, rotation in enumerate(turns):
            _add_baseline(covariance, scales, (b, other), rotation, chance[draw, :, seeds.index(b)])
    return Comparison(corr, partner, mutual, chance)


def _compared(covariance: Covariance) -> list[str]:
    """The seeds that some reference is compared with."""
    return [seed for seed in covariance.seeds if any(seed != reference for reference in covariance.references)]


def _add_baseline(covariance, scales, at: tuple[str, int], rotation, best: Float[Tensor, "seeds total"]) -> None:
    """Raises `best` to the correlations of all references with one rotated layer `at` = (seed, layer)."""
    (b, other), neurons = at, covariance.neurons
    scale = scales[b].layer(other, neurons)
    within = covariance.within(b, other)
    rotation = rotation.to(within.device)
    turn = scaled_rotation(rotation, rotated_deviation(within, scale, rotation), scale).to(within.dtype)
    for a in covariance.references:
        if a == b:
            continue
        for layer in range(covariance.layers):
            own = slice(layer * neurons, (layer + 1) * neurons)
            sums = covariance.block(a, layer, b, other)
            found = block_baseline(sums, scales[a].layer(layer, neurons), scale, turn).cpu().double()
            rows = best[covariance.seeds.index(a)]
            rows[own] = torch.fmax(rows[own], found)  # NaN stands where nothing was seen yet
