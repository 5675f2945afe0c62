"""How much of a match is luck of the text: from sums per part of the text to held-out correlations and intervals.

The first part of the text chooses each neuron's partner, and the other parts measure their correlation without the
choice's luck. A bootstrap over these parts (docs/method.md §7) estimates how much another text of the same kind would
change a neuron's excess. A pass that takes snapshots records the sums (`lib.collect.one_pass`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.base.tensors import read_tensors
from lib.run import Run

DRAWS = 400  # of the bootstrap
DRAWS_AT_ONCE = 50
FEWEST_PARTS = 8  # below which there is no estimate
INTERVAL = (0.025, 0.975)  # quantiles


@dataclass(frozen=True)
class Parts:
    """Sums over each part of the text but the first, which chose the partners, in the pilot's scaled units.

    products: Σ x y with the partner; sums: Σ of operand, activation and its square (`lib.collect.one_pass.PART_SUMS`);
    partner: flat index of each neuron's partner.
    """

    products: Float[Tensor, "parts seeds seeds total"]
    sums: Float[Tensor, "parts seeds 3 total"]
    tokens: Int[Tensor, "parts"]
    partner: Int[Tensor, "seeds seeds total"]

    def correlations(self, weights: Float[Tensor, "draws parts"], a: int, b: int) -> Float[Tensor, "draws total"]:
        """Correlation of every neuron of seed number a with its partner in b, parts weighted; 0 for dead neurons."""
        tokens = weights @ self.tokens.double()
        mean_a, deviation_a = _moments(weights, self.sums[:, a], tokens)
        mean_b, deviation_b = _moments(weights, self.sums[:, b][:, :, self.partner[a, b]], tokens)
        covariance = weights @ self.products[:, a, b] / tokens[:, None] - mean_a * mean_b
        deviation = deviation_a * deviation_b
        return torch.where(deviation > 0, covariance / deviation, 0)


def _moments(weights: Tensor, sums: Float[Tensor, "parts 3 total"], tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of the operand and standard deviation of the activation, (draws, total)."""
    operand, first, second = (torch.einsum("dp,pst->sdt", weights, sums) / tokens[:, None]).unbind()
    return operand, (second - first**2).clamp(min=0).sqrt()


def parts_of(run: Run) -> Parts | None:
    """A run's parts; None if its pass recorded too few (several processes or passes, little text)."""
    stats = run.folder / "stats"
    recorded = [read_tensors(path) for path in sorted(stats.glob("part-*.safetensors"))]
    if len(recorded) <= FEWEST_PARTS:
        return None
    products, sums, tokens = (
        torch.stack([one[name] for one in recorded]).diff(dim=0) for name in ("products", "sums", "tokens")
    )
    return Parts(products, sums, tokens, read_tensors(min(stats.glob("snapshot-*.safetensors")))["partner"])


@dataclass(frozen=True)
class Sampled:
    """Estimates for the neurons of one reference, means over the compared seeds.

    held_out_corr: correlation with the first part's partner on all other parts; moved: its change by each draw.
    """

    held_out_corr: Float[Tensor, "total"]
    moved: Float[Tensor, "draws total"]

    @property
    def error(self) -> Float[Tensor, "total"]:
        """Standard error of a neuron's mean best match and, with the baseline held fixed, of its excess."""
        return self.moved.std(0)

    def share_interval(self, excess: Sequence[float], threshold: float) -> tuple[float, float]:
        """95 % interval of the share of neurons whose excess is above the threshold.

        A basic bootstrap. More neurons lie just below a threshold than just above it, so the draws' added noise lifts
        their shares; mirroring the quantiles at the observed share removes that bias.
        """
        found = torch.as_tensor(np.asarray(excess, dtype=np.float32))
        shares = ((found + self.moved) > threshold).double().mean(1)
        low, high = shares.quantile(torch.tensor(INTERVAL, dtype=torch.float64)).tolist()
        share = (found > threshold).double().mean().item()
        return min(share, max(0.0, 2 * share - high)), max(share, min(1.0, 2 * share - low))


def sampled(parts: Parts, reference: int, random_seed: int) -> Sampled:
    """Estimates for seed number `reference`; the draws are the same for every seed."""
    count, seeds = len(parts.tokens), len(parts.partner)
    generator = np.random.default_rng(random_seed)
    drawn = torch.from_numpy(generator.multinomial(count, np.full(count, 1 / count), size=DRAWS)).double()
    others = [other for other in range(seeds) if other != reference]
    alone, moved = 0, 0
    for other in others:
        own = parts.correlations(torch.ones(1, count, dtype=torch.float64), reference, other)
        draws = [(parts.correlations(some, reference, other) - own).float() for some in drawn.split(DRAWS_AT_ONCE)]
        alone, moved = alone + own[0] / len(others), moved + torch.cat(draws) / len(others)
    return Sampled(alone, moved)


def share_intervals(run: Run, neurons_all_seeds: pd.DataFrame, threshold: float) -> pd.DataFrame | None:
    """One row per reference: seed, share (universal), low, high (95 % interval); None without parts."""
    parts = parts_of(run)
    if parts is None:
        return None
    seeds, rows = list(run.done["seeds"]), []
    for seed, own in neurons_all_seeds.groupby("seed", sort=False):
        found = sampled(parts, seeds.index(seed), run.params.random_seed)
        low, high = found.share_interval(own["excess_corr"], threshold)
        rows.append({"seed": seed, "share": own["is_universal"].mean(), "low": low, "high": high})
    return pd.DataFrame(rows)
