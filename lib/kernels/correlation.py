"""Correlations between the neurons of two seeds, from sums over the text: best matches and rotation baseline.

Nothing here sees activations. Products of two seeds are read in stripes, one layer of seed a by all of seed b, so that
they never have to be in memory whole; both directions of the pair come from a stripe (docs/method.md §2).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lib.kernels.followed import Followed
from lib.kernels.moments import Moments

Pair = tuple[str, str]
Shape = tuple[int, int]  # layers, neurons a layer
BIAS_DRAWS = 2  # rotations from which the baseline's bias by the sketch's noise is measured
NEAREST = 128  # neurons with about the same baseline, over which it is averaged
SURE = 0.25  # share of a neuron's variance that its sketch must have to be used
OUTSIDE = 4.0  # standard errors of a sketch's correlation, 1/√rows, by which an outsider looks better


@dataclass(frozen=True)
class Scale:
    """What turns one seed's sums into correlations: per neuron (flat), in the operand's scaled units."""

    mean: Float[Tensor, "total"]
    inverse_deviation: Float[Tensor, "total"]  # 0 for a dead neuron, so that its correlations are 0
    unit: Float[Tensor, "total"]  # activation units per scaled unit
    tokens: int

    @classmethod
    def of(cls, moments: Moments) -> "Scale":
        """From the moments of the same tokens."""
        deviation = moments.scaled_deviation().flatten()
        return cls(
            mean=moments.scaled_mean().flatten(),
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
    """The summed products of a run, wherever they lie.

    `stripe(a, layer, b)` returns Σ x yᵀ (neurons of a layer of a, all neurons of b) for each (a, b) of `pairs`;
    `within(seed, layer)` returns Σ x xᵀ of one layer. `rows` is those of the sketch that they are estimated from, 0
    where they are exact. Of a sketch `squares(seed)` returns the Σ x² of all neurons, and `half` is the same from half
    as many rows.
    """

    seeds: tuple[str, ...]
    pairs: tuple[Pair, ...]
    references: tuple[str, ...]  # the seeds whose neurons are matched
    shapes: Mapping[str, Shape]
    stripe: Callable[[str, int, str], Tensor]
    within: Callable[[str, int], Tensor]
    rows: int = 0
    squares: Callable[[str], Tensor] | None = None
    half: "Covariance | None" = None

    def total(self, seed: str) -> int:
        """Neurons of one seed."""
        layers, neurons = self.shapes[seed]
        return layers * neurons

    @property
    def directions(self) -> list[Pair]:
        """Each reference with each seed that it is compared with."""
        return [(a, b) for a in self.references for b in self.seeds if a != b]


def correlations(sums: Float[Tensor, "a b"], a: Scale, b: Scale) -> Float[Tensor, "a b"]:
    """Pearson correlations of neurons of two seeds."""
    wide = sums.dtype
    scale_a = (a.inverse_deviation / a.tokens).to(wide)[:, None]
    mean_a = (a.mean * a.inverse_deviation).to(wide)[:, None]
    return (sums * scale_a - mean_a * b.mean.to(wide)) * b.inverse_deviation.to(wide)


def sketched_scales(covariance: Covariance, scales: Mapping[str, Scale]) -> Mapping[str, Scale]:
    """Scales with each neuron's deviation in the sketch; as they are where products are exact.

    A correlation is then the cosine of two sketched neurons, with an error of (1 − ρ²)/√rows; with the deviations of
    the text it is √((1 + ρ²)/rows), and all neurons that share a direction are wrong together.
    """
    if not covariance.rows:
        return scales
    made = {}
    for seed, scale in scales.items():
        variance = covariance.squares(seed).double() / scale.tokens - scale.mean**2
        sure = (variance * scale.inverse_deviation**2 > SURE) & (scale.inverse_deviation > 0)
        inverse = torch.where(sure, variance.clamp(min=1e-300).rsqrt(), scale.inverse_deviation)
        made[seed] = replace(scale, inverse_deviation=inverse)
    return made


def stripes(covariance: Covariance, pair: Pair, scales: Mapping[str, Scale]) -> Iterable[tuple[int, slice, Tensor]]:
    """Each layer of seed a of a pair, its neurons, and their correlations with all of b."""
    (a, b), (layers, neurons) = pair, covariance.shapes[pair[0]]
    for layer in range(layers):
        own = slice(layer * neurons, (layer + 1) * neurons)
        yield layer, own, correlations(covariance.stripe(a, layer, b), scales[a].layer(layer, neurons), scales[b])


def candidates(
    covariance: Covariance, pair: Pair, scales: Mapping[str, Scale], k: int
) -> tuple[Int[Tensor, "a k"], Int[Tensor, "b k"]]:
    """The k best matches of each neuron of either seed of a pair in the other."""
    forward, kept = [], None
    for _, own, corr in stripes(covariance, pair, scales):
        forward.append(corr.topk(min(k, corr.shape[1]), dim=1).indices)
        value, index = corr.topk(min(k, len(corr)), dim=0)
        index += own.start
        if kept is not None:
            value, index = torch.cat([kept[0], value]), torch.cat([kept[1], index])
            order = value.topk(min(k, len(value)), dim=0).indices
            value, index = value.gather(0, order), index.gather(0, order)
        kept = value, index
    return torch.cat(forward), kept[1].T


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


def followed_matches(followed: Followed, pair: Pair) -> tuple[Matches, Matches]:
    """The best of the followed pairs of two seeds, for the neurons of either."""
    made = []
    for own in (pair, pair[::-1]):
        corr, partner, _ = followed.best(own, torch.ones(len(followed.tokens)))
        matches = Matches(len(corr))
        matches.corr, matches.partner = corr.cpu(), partner.cpu()
        made.append(matches)
    return made[0], made[1]


@cache
def haar_rotation(
    size: int, random_seed: int, draw: int, device: torch.device | str = "cpu"
) -> Float[Tensor, "size size"]:
    """A Haar-distributed orthogonal matrix: QR of a Gaussian, signs of R's diagonal fixed (docs/method.md §2).

    A draw is one rotation, of every layer of this size: neurons of different layers have nothing in common but it. The
    QR runs on `device`; the matrix stays in this machine's memory.
    """
    entropy = np.random.SeedSequence([random_seed, size, draw]).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(entropy[0]))
    q, r = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64).to(device))
    return (q * r.diagonal().sign()).cpu()


def rotated_deviation(within: Float[Tensor, "n n"], scale: Scale, rotation: Float[Tensor, "n n"]) -> Float[Tensor, "n"]:
    """Standard deviations of one layer's rotated activations, √diag(R Σ Rᵀ), in activation units."""
    covariance = within / scale.tokens - torch.outer(scale.mean, scale.mean).to(within)
    deviation = torch.where(scale.inverse_deviation > 0, 1 / scale.inverse_deviation, 0).to(within)
    covariance.diagonal().copy_(deviation**2)  # exact, where the sums are estimates
    covariance *= torch.outer(scale.unit, scale.unit).to(within)
    turn = rotation.to(within)
    return ((turn @ covariance) * turn).sum(1).clamp(min=0).sqrt()


class Baseline:
    """Largest correlation of each neuron of each reference with a rotated neuron, (draws, total) by direction.

    cov(x, R y) = C Rᵀ (docs/method.md §2), with the deviations of the rotated neurons from their layer's products.
    """

    def __init__(self, covariance: Covariance, scales: Mapping[str, Scale], random_seed: int, draws: int, dtype):
        self.covariance, self.scales, self.dtype = covariance, scales, dtype
        self.best = {pair: torch.zeros(draws, covariance.total(pair[0])) for pair in covariance.directions}
        device = next(iter(scales.values())).mean.device
        self.turns = {
            n: [haar_rotation(n, random_seed, draw, device).to(device, dtype) for draw in range(draws)]
            for n in {neurons for _, neurons in covariance.shapes.values()}
        }
        self.inverse: dict[tuple[str, int], Float[Tensor, "draws n"]] = {}  # of rotated neurons' deviations
        for seed in {b for _, b in covariance.directions}:
            layers, neurons = covariance.shapes[seed]
            for layer in range(layers):
                within, scale = covariance.within(seed, layer), scales[seed].layer(layer, neurons)
                found = torch.stack([rotated_deviation(within, scale, turn) for turn in self.turns[neurons]])
                self.inverse[seed, layer] = torch.where(found > 0, 1 / found, 0)

    def update(self, sums: Float[Tensor, "a b"], a: str, layer: int, b: str, back: bool = True) -> None:
        """Takes in the products of one layer of seed a with all of seed b, for both directions of the pair, or for the
        neurons of that layer alone."""
        (_, n_a), (layers, n_b) = self.covariance.shapes[a], self.covariance.shapes[b]
        left, right = self.scales[a].layer(layer, n_a), self.scales[b]
        centred = torch.addr(sums, left.mean.to(sums), right.mean.to(sums), alpha=-left.tokens)
        if (a, b) in self.best:
            scaled = centred * (left.inverse_deviation / left.tokens).to(sums)[:, None] * right.unit.to(sums)
            scaled = scaled.view(n_a * layers, n_b).to(self.dtype)
            rows = slice(layer * n_a, (layer + 1) * n_a)
            for draw, turn in enumerate(self.turns[n_b]):
                made = scaled @ turn.T
                inverse = torch.stack([self.inverse[b, other][draw] for other in range(layers)]).to(self.dtype)
                self._raise(self.best[a, b][draw, rows], (made.view(n_a, layers, n_b) * inverse).amax((1, 2)))
        if back and (b, a) in self.best:
            scaled = centred * (right.inverse_deviation / right.tokens).to(sums) * left.unit.to(sums)[:, None]
            scaled = scaled.T.to(self.dtype)
            for draw, turn in enumerate(self.turns[n_a]):
                made = (scaled @ turn.T) * self.inverse[a, layer][draw].to(self.dtype)
                self._raise(self.best[b, a][draw], made.amax(1))

    @staticmethod
    def _raise(best: Tensor, found: Tensor) -> None:
        torch.maximum(best, found.cpu().float(), out=best)


def without_bias(
    whole: Float[Tensor, "draws total"], known: Float[Tensor, "known"], moved: Float[Tensor, "known"]
) -> Float[Tensor, "draws total"]:
    """A baseline F(r) from a sketch of r rows without what its noise adds to a maximum: F(r) + (F(r) − F(r/2)).

    The bias falls as 1/r, so that r and r/2 rows differ by it. It depends on a neuron through the size of its baseline.
    So the difference is measured on some neurons, whose baselines are `known`, as `moved`, and averaged over the
    NEAREST by baseline; the average has hardly any noise of its own.
    """
    known, order = known.sort(stable=True)
    window = min(NEAREST, len(order))
    sums = torch.cat([moved.new_zeros(1).double(), moved[order].double().cumsum(0)])
    place = torch.searchsorted(known, whole.mean(0).to(known))
    start = (place - window // 2).clamp(0, len(order) - window)
    return whole + ((sums[start + window] - sums[start]) / window).float()


@dataclass
class Comparison:
    """Best matches and baselines of every reference (first of a pair) with every seed that it is compared with.

    By pair: corr, partner (flat index), mutual (the neuron is its partner's best match, too), all (total), and
    baseline (draws, total). `outsiders` counts neurons for which one that was not followed looks better than the best
    that was, by more than the sketch's error explains; 0 where the products are exact.
    """

    corr: dict[Pair, Float[Tensor, "total"]] = field(default_factory=dict)
    partner: dict[Pair, Int[Tensor, "total"]] = field(default_factory=dict)
    mutual: dict[Pair, Bool[Tensor, "total"]] = field(default_factory=dict)
    baseline: dict[Pair, Float[Tensor, "draws total"]] = field(default_factory=dict)
    outsiders: dict[Pair, int] = field(default_factory=dict)


def compare(
    covariance: Covariance,
    scales: Mapping[str, Scale],
    followed: Followed,
    random_seed: int,
    draws: int,
    progress: Callable = iter,
) -> Comparison:
    """Matches of every reference seed against every other, with `draws` rotations of the compared for the baseline.

    Matches are the best of all neurons where the products are exact, else the best of the followed ones.
    """
    wide = covariance.within(covariance.seeds[0], 0).dtype
    dtype, half = wide if not covariance.rows else _fast(wide), None
    if covariance.half:
        half_scales = sketched_scales(covariance.half, scales)
        half = Baseline(covariance.half, half_scales, random_seed, min(draws, BIAS_DRAWS), dtype)
    scales = sketched_scales(covariance, scales)
    whole = Baseline(covariance, scales, random_seed, draws, dtype)
    made, known, moved = Comparison(), [], []
    found = {
        pair: (Matches(covariance.total(pair[0])), Matches(covariance.total(pair[1]))) for pair in covariance.pairs
    }
    for (a, b), layer in progress(
        [(pair, layer) for pair in covariance.pairs for layer in range(covariance.shapes[pair[0]][0])]
    ):
        neurons = covariance.shapes[a][1]
        sums, own = covariance.stripe(a, layer, b), slice(layer * neurons, (layer + 1) * neurons)
        corr = correlations(sums, scales[a].layer(layer, neurons), scales[b])
        found[a, b][0].update(own, corr, 0)
        found[a, b][1].update(slice(None), corr.T, own.start)
        whole.update(sums, a, layer, b)
        if half and layer == covariance.pairs.index((a, b)) % covariance.shapes[a][0]:  # one layer a pair is enough
            half.update(covariance.half.stripe(a, layer, b), a, layer, b, back=False)
            few = len(half.best[a, b])
            known.append(whole.best[a, b][:, own].mean(0))
            moved.append((whole.best[a, b][:few, own] - half.best[a, b][:, own]).mean(0))
    for pair, matches in found.items():
        seen = matches
        if covariance.rows:
            matches = followed_matches(followed, pair)
        for (a, b), own, back, all_of in ((pair, *matches, seen[0]), (pair[::-1], *matches[::-1], seen[1])):
            if a not in covariance.references:
                continue
            made.corr[a, b], made.partner[a, b], made.mutual[a, b] = own.corr, own.partner, own.returned(back)
            made.baseline[a, b] = whole.best[a, b]
            if half:
                made.baseline[a, b] = without_bias(whole.best[a, b], torch.cat(known), torch.cat(moved))
            far = OUTSIDE / covariance.rows**0.5 if covariance.rows else torch.inf
            made.outsiders[a, b] = int((all_of.corr > own.corr + far).sum())
    return made


def _fast(wide: torch.dtype) -> torch.dtype:
    """In which rotations of a sketch's products are multiplied: its noise is far above the rounding of bf16."""
    fast = torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast and wide == torch.float32 else wide
