"""The sketch against the exact sums of the same pass: every pair of the shipped seeds, matches and baselines.

The exact sums over all pairs of neurons take most of the time of this part, and bf16 operands, as the sketch has.
"""

import sys
from collections.abc import Iterable

import numpy as np
import torch
from tqdm import tqdm

from bench.engine import fresh_pass, shipped_run
from lib.collect.one_pass import Pass
from lib.collect.planner import CANDIDATES
from lib.kernels.correlation import Comparison, Covariance, Scale, candidates, compare, sketched_scales, stripes
from lib.kernels.followed import union
from lib.kernels.moments import Moments
from lib.kernels.sketch import Products, Within

THRESHOLD = 0.5
DRAWS = 5
NUMBERS = (8, 16, 20, 32)  # of candidates
NEAR = 1e-3


class WithExact(Pass):
    """A pass that also sums the products of all pairs, over the first part of the text and over the rest."""

    def prepare(self) -> None:
        """Makes the exact accumulators."""
        setting, self.exact, self.within = self.plan.setting, ({}, {}), {}
        for late in (0, 1):
            for a, b in setting.pairs:
                left, right = setting.shapes[a], setting.shapes[b].total
                self.exact[late][a, b] = Products(left.layers, left.neurons, right, self.dtype, self.device)
        for seed, shape in setting.shapes.items():
            self.within[seed] = Within(shape.layers, shape.neurons, shape.neurons, self.dtype, self.device)

    def add(self, number, row, operands, sums, counted) -> None:
        """The pass's own accumulators, and the exact ones."""
        super().add(number, row, operands, sums, counted)
        for (a, b), products in self.exact[number >= self.reading.first].items():
            products.update(operands[a], operands[b])
        for seed, products in self.within.items():
            products.update(operands[seed])

    def exact_covariance(self, parts: Iterable[int]) -> Covariance:
        """The exact products of some parts: 0 is the first one, 1 the rest."""
        setting, parts = self.plan.setting, tuple(parts)
        shapes = {seed: (shape.layers, shape.neurons) for seed, shape in setting.shapes.items()}
        return Covariance(
            setting.seeds,
            setting.pairs,
            setting.references,
            shapes,
            stripe=lambda a, layer, b: sum(self.exact[part][a, b].sums[layer] for part in parts),
            within=lambda seed, layer: self.within[seed].sums[layer],
        )


def _late_scales(work: WithExact) -> dict[str, Scale]:
    """Scales of the tokens after the first part."""
    made = {}
    for seed, reader in work.readers.items():
        own = reader.moments
        late = Moments(own.pre_scaling, own.post_scaling)
        sums = work.followed.sums[seed].sum(0).view(2, *own.sums.shape[::2])
        late.sums[:, -2:], late.tokens = sums.movedim(0, 1), int(work.followed.tokens.sum())
        made[seed] = Scale.of(late)
    return made


def _lost(exact: Covariance, scales, comparison: Comparison, best: Comparison) -> np.ndarray:
    """How much lower than the best match's the chosen partner's exact correlation is, for all neurons of all pairs."""
    found = []
    for a, b in exact.pairs:
        own = torch.zeros(exact.total(a), dtype=torch.float64)
        back = torch.zeros(exact.total(b), dtype=torch.float64)
        for _, rows, corr in stripes(exact, (a, b), scales):
            own[rows] = corr.gather(1, comparison.partner[a, b][rows][:, None])[:, 0].double()
            partner = comparison.partner[b, a]
            inside = (partner >= rows.start) & (partner < rows.stop)
            back[inside] = corr[partner[inside] - rows.start, inside.nonzero()[:, 0]].double()
        found += [best.corr[a, b] - own, best.corr[b, a] - back]
    return torch.cat(found).numpy()


def _excess(comparison: Comparison, seed: str) -> torch.Tensor:
    pairs = [pair for pair in comparison.corr if pair[0] == seed]
    return torch.stack([comparison.corr[pair] - comparison.baseline[pair].mean(0) for pair in pairs]).mean(0)


def _changed(one: Comparison, other: Comparison, seeds: Iterable[str]) -> int:
    return sum(int(((_excess(one, s) > THRESHOLD) != (_excess(other, s) > THRESHOLD)).sum()) for s in seeds)


def _sizes(error: np.ndarray) -> dict[str, float]:
    size = np.abs(error)
    quantiles = {"median": np.median(size), "p99.9": np.quantile(size, 0.999), "largest": size.max()}
    return {name: float(value) for name, value in ({"mean": error.mean()} | quantiles).items()}


def errors(tokens: int, seeds: tuple[str, ...]) -> dict:
    """Matches and baselines of the sketch against exact ones, and how far two sets of exact draws are apart."""
    run = shipped_run(seeds, tokens, "auto", compare="all", products="sketch")
    work = fresh_pass(run, WithExact)
    work.prepare()
    wanted = {}
    with tqdm(total=len(work.done), desc="exact and sketch", file=sys.stderr) as bar:
        for number in range(len(work.done)):
            if number == work.reading.first:
                sketched = work.covariance()
                early = {seed: Scale.of(reader.moments) for seed, reader in work.readers.items()}
                early = sketched_scales(sketched, early)
                for k in NUMBERS:
                    wanted[k] = {pair: union(*candidates(sketched, pair, early, k)) for pair in sketched.pairs}
                work.follow(wanted[CANDIDATES])
                del sketched
            work.advance(number)
            bar.update()
    scales = {seed: Scale.of(reader.moments) for seed, reader in work.readers.items()}
    exact, late = work.exact_covariance((0, 1)), work.exact_covariance((1,))
    seed = run.params.random_seed
    true = compare(exact, scales, work.followed, seed, DRAWS)
    again = compare(exact, scales, work.followed, seed + 1, DRAWS)
    found = compare(work.covariance(), scales, work.followed, seed, DRAWS)
    lost = _lost(exact, scales, found, true)
    both = compare(late, _late_scales(work), work.followed, seed, 1)
    late_loss = torch.cat([both.corr[pair] - found.corr[pair] for pair in sorted(found.corr)]).numpy()
    baseline = {name: _stacked(one) for name, one in (("true", true), ("again", again), ("found", found))}
    shares = {}
    for k, pairs in wanted.items():
        best = torch.cat([_best_of(exact, scales, pair, own) for pair, own in pairs.items()]).numpy()
        top = torch.cat([torch.cat([true.corr[pair], true.corr[pair[::-1]]]) for pair in pairs]).numpy()
        number = sum(own.shape[1] for own in pairs.values()) / sum(exact.total(a) for a, _ in pairs)
        shares[k] = {"within": float((top - best <= NEAR).mean()), "pairs_per_neuron": number}
    return {
        "tokens": run.text.tokens.numel(),
        "rows": work.plan.setting.rows,
        "candidates": CANDIDATES,
        "by_candidates": shares,
        "partner_within": float((late_loss <= NEAR).mean()),
        "partner_within_whole_text": float((lost <= NEAR).mean()),
        "lost": _sizes(lost),
        "best_match": _sizes(-late_loss),
        "baseline": _sizes(baseline["found"] - baseline["true"]),
        "two_sets": _sizes(baseline["again"] - baseline["true"]),
        "universal": sum(int((_excess(true, one) > THRESHOLD).sum()) for one in seeds),
        "changed": _changed(found, true, seeds),
        "changed_by_draws": _changed(again, true, seeds),
        "outsiders": sum(found.outsiders.values()),
    }


def _stacked(comparison: Comparison) -> np.ndarray:
    return torch.cat([comparison.baseline[pair].mean(0) for pair in sorted(comparison.baseline)]).numpy()


def _best_of(exact: Covariance, scales, pair: tuple[str, str], pairs: torch.Tensor) -> torch.Tensor:
    """The largest exact correlation among given pairs of two seeds, for the neurons of either."""
    forward, backward = (torch.full((exact.total(seed),), -1.0) for seed in pair)
    for _, rows, corr in stripes(exact, pair, scales):
        left, right = pairs[:, (pairs[0] >= rows.start) & (pairs[0] < rows.stop)]
        values = corr[left - rows.start, right].float()
        forward.scatter_reduce_(0, left, values, "amax")
        backward.scatter_reduce_(0, right, values, "amax")
    return torch.cat([forward, backward])
