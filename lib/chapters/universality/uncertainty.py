"""How sure a correlation is, given the text: partners chosen on one part of it, correlations measured on the others.

A pass that takes snapshots also records, after each part of the text, the sums from which a neuron's correlation with the
partner it had at the first snapshot is computed (`lib.collect.one_pass.Pass.part`). What lies between two records is one part. The first part
chose the partner, so the others measure the match without the choice's luck; parts drawn with replacement
(a bootstrap over parts, METHOD §7) tell how much another text of the same kind would have moved a neuron's excess.
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

DRAWS = 400  # bootstrap draws
AT_ONCE = 50  # draws computed at a time
FEWEST_PARTS = 8  # below which nothing is said
INTERVAL = (0.025, 0.975)


@dataclass(frozen=True)
class Parts:
    """Sums of each part of the text, the first part (which chose the partners) left out.

    products (parts, seeds, seeds, total), Σ x y with the partner; sums (parts, seeds, 3, total), Σ of operand, activation and its
    square (`lib.collect.one_pass.PART_SUMS`), all in the pilot's scaled units; tokens (parts); partner (seeds, seeds, total).
    """

    products: Float[Tensor, "parts seeds seeds total"]
    sums: Float[Tensor, "parts seeds 3 total"]
    tokens: Int[Tensor, "parts"]
    partner: Int[Tensor, "seeds seeds total"]

    def correlations(self, weights: Float[Tensor, "draws parts"], a: int, b: int) -> Float[Tensor, "draws total"]:
        """Correlation of every neuron of seed number a with its partner in b, parts counted with these weights; 0 for a dead one."""
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
    """A run's parts; None where its pass recorded none (several processes or passes for the products, very little text)."""
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
    """What the parts say of one seed's neurons as reference, means over the compared seeds.

    held_out_corr (total): correlation with the first part's partner on all other parts. moved (draws, total): by how much another
    draw of the parts moves it.
    """

    held_out_corr: Float[Tensor, "total"]
    moved: Float[Tensor, "draws total"]

    @property
    def error(self) -> Float[Tensor, "total"]:
        """Standard error of a neuron's mean best match, and so of its excess: the baseline is held fixed."""
        return self.moved.std(0)

    def share_interval(self, excess: Sequence[float], threshold: float) -> tuple[float, float]:
        """95 % interval of the share of neurons whose excess is above the threshold.

        The basic bootstrap: more neurons lie just below a threshold than above it, so that draws, whose noise comes on top of that of
        the excess itself, are above it too often, and their distance from the share is taken off it.
        """
        found = torch.as_tensor(np.asarray(excess, dtype=np.float32))
        low, high = (
            ((found + self.moved) > threshold)
            .double()
            .mean(1)
            .quantile(torch.tensor(INTERVAL, dtype=torch.float64))
            .tolist()
        )
        share = (found > threshold).double().mean().item()
        return min(share, max(0.0, 2 * share - high)), max(share, min(1.0, 2 * share - low))


def sampled(parts: Parts, reference: int, random_seed: int) -> Sampled:
    """Of seed number `reference`; the draws are the same for every seed."""
    count, seeds = len(parts.tokens), len(parts.partner)
    generator = np.random.default_rng(random_seed)
    drawn = torch.from_numpy(generator.multinomial(count, np.full(count, 1 / count), size=DRAWS)).double()
    others = [other for other in range(seeds) if other != reference]
    alone, moved = 0, 0
    for other in others:
        own = parts.correlations(torch.ones(1, count, dtype=torch.float64), reference, other)
        draws = [(parts.correlations(some, reference, other) - own).float() for some in drawn.split(AT_ONCE)]
        alone, moved = alone + own[0] / len(others), moved + torch.cat(draws) / len(others)
    return Sampled(alone, moved)


def share_intervals(run: Run, neurons_all_seeds: pd.DataFrame, threshold: float) -> pd.DataFrame | None:
    """One row per seed as reference: seed, share universal, low, high (95 %); None without parts."""
    parts = parts_of(run)
    if parts is None:
        return None
    seeds, rows = list(run.done["seeds"]), []
    for seed, own in neurons_all_seeds.groupby("seed", sort=False):
        found = sampled(parts, seeds.index(seed), run.params.random_seed)
        low, high = found.share_interval(own["excess_corr"], threshold)
        rows.append({"seed": seed, "share": own["is_universal"].mean(), "low": low, "high": high})
    return pd.DataFrame(rows)
