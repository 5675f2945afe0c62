"""How much of a match is luck of the text: followed pairs, part by part, and what another text would give.

The first parts of the text choose each neuron's partner, and the others measure their correlation without the choice's
luck. A bootstrap over all parts (docs/method.md §7) estimates how much another text of the same kind would change a
neuron's excess.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lib.collect.statistics import load_followed
from lib.kernels.followed import Followed
from lib.run import Run

DRAWS = 400  # of the bootstrap
CHOOSING = 4  # parts, the first, that choose the partner whose correlation the others measure
FEWEST_PARTS = 8  # with tokens, below which there is no estimate
INTERVAL = (0.025, 0.975)  # quantiles


@dataclass(frozen=True)
class Sampled:
    """Estimates for the neurons of one reference, means over the compared seeds.

    held_out_corr: correlation, on the other parts, with the partner that the first parts chose; moved: how each draw
    of parts changes the correlation with the best partner.
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


def enough(followed: Followed) -> bool:
    """Whether there are parts enough for an estimate."""
    return int((followed.tokens > 0).sum()) >= FEWEST_PARTS


def sampled(followed: Followed, reference: str, others: Sequence[str], random_seed: int) -> Sampled:
    """Estimates for one seed; the draws are the same for every seed."""
    used = (followed.tokens > 0).nonzero()[:, 0]
    count = len(used)
    generator = np.random.default_rng(random_seed)
    everything, choosing, drawn = (torch.zeros(n, len(followed.tokens), dtype=torch.float64) for n in (1, 1, DRAWS))
    everything[:, used], choosing[:, used[:CHOOSING]] = 1, 1
    drawn[:, used] = torch.from_numpy(generator.multinomial(count, np.full(count, 1 / count), size=DRAWS)).double()
    alone, moved = 0, 0
    for pair in ((reference, other) for other in others):
        stored = followed.stored(pair)
        early = followed.best(pair, choosing[0])[2]
        alone = alone + followed.correlations(stored, everything - choosing, early)[0] / len(others)
        own, _, chosen = followed.best(pair, everything[0])
        moved = moved + (followed.correlations(stored, drawn, chosen) - own).float() / len(others)
    return Sampled(alone, moved)


def share_intervals(run: Run, neurons_all_seeds: pd.DataFrame, threshold: float) -> pd.DataFrame | None:
    """One row per reference: seed, share (universal), low, high (95 % interval); None in a text of too few parts."""
    followed = load_followed(run)
    if not enough(followed):
        return None
    rows = []
    for seed, own in neurons_all_seeds.groupby("seed", sort=False):
        others = [other for other in run.done["seeds"] if other != seed]
        found = sampled(followed, seed, others, run.params.random_seed)
        low, high = found.share_interval(own["excess_corr"], threshold)
        rows.append({"seed": seed, "share": own["is_universal"].mean(), "low": low, "high": high})
    return pd.DataFrame(rows)
