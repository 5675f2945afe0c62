"""How much of a match is luck of the text, and of the drawn rotations: what others of the kind would give.

The first parts of the text choose each neuron's partner, and the others measure their correlation without the choice's
luck. A bootstrap over all parts and all rotations (docs/method.md §7) estimates how much others would change a neuron's
excess. The baseline on another text is not known: a sketch mixes the parts.
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
THRESHOLDS = np.linspace(0, 1, 1001)  # whose intervals are kept with the run


@dataclass(frozen=True)
class Sampled:
    """Estimates for the neurons of one reference, means over the compared seeds.

    held_out_corr: correlation, on the other parts, with the partner that the first parts chose; text_error and
    draw_error: standard errors of the excess by the choice of text, with the baseline held fixed, and by the drawn
    rotations (NaN with one); moved: how each draw of parts and rotations changes the excess.
    """

    held_out_corr: Float[Tensor, "total"]
    text_error: Float[Tensor, "total"]
    draw_error: Float[Tensor, "total"]
    moved: Float[Tensor, "draws total"]

    @property
    def error(self) -> Float[Tensor, "total"]:
        """Standard error of a neuron's excess by both."""
        return (self.text_error**2 + self.draw_error.nan_to_num() ** 2).sqrt()

    def share_intervals(self, excess: Sequence[float], thresholds: Float[np.ndarray, "thresholds"]) -> pd.DataFrame:
        """95 % interval of the share of neurons whose excess is above each threshold: threshold, low, high.

        A basic bootstrap of the log share. More neurons lie just below a threshold than just above it, so the draws'
        added noise multiplies their shares; mirroring the quantiles at the observed share removes that bias. So the
        observed share, which such noise has lifted once, may lie above the interval. Half a neuron is added to each.
        """
        found, half = torch.as_tensor(np.asarray(excess, dtype=np.float32)), 0.5 / len(excess)
        bounds = torch.from_numpy(np.asarray(thresholds, dtype=np.float32))

        def shares(values: Float[Tensor, "draws total"]) -> Float[Tensor, "draws thresholds"]:
            below = torch.searchsorted(values.sort(1).values, bounds.expand(len(values), -1).contiguous(), right=True)
            return (len(found) - below).double() / len(found) + half

        drawn = shares(found + self.moved.cpu()).quantile(torch.tensor(INTERVAL, dtype=torch.float64), dim=0)
        low, high = (shares(found[None])[0] ** 2 / drawn.flip(0) - half).clamp(0, 1).numpy()
        return pd.DataFrame({"threshold": thresholds, "low": low, "high": high})


def enough(followed: Followed) -> bool:
    """Whether there are parts enough for an estimate."""
    return int((followed.tokens > 0).sum()) >= FEWEST_PARTS


def sampled(
    followed: Followed,
    reference: str,
    others: Sequence[str],
    random_seed: int,
    baseline: Float[np.ndarray, "rotations total"],
) -> Sampled:
    """Estimates for one seed; the draws are the same for every seed. `baseline` is the mean over compared seeds."""
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
    text_error = moved.std(0)
    turned = torch.from_numpy(_mean_moved(baseline, generator)).to(moved)
    return Sampled(alone, text_error, torch.from_numpy(draw_error(baseline)).to(moved), moved - turned)


def draw_error(baseline: Float[np.ndarray, "rotations total"]) -> Float[np.ndarray, "total"]:
    """Standard error of each neuron's mean baseline over the drawn rotations; NaN with one."""
    number = len(baseline)
    return baseline.std(0, ddof=1) / number**0.5 if number > 1 else np.full(baseline.shape[1], np.nan)


def _mean_moved(
    baseline: Float[np.ndarray, "rotations total"], generator: np.random.Generator
) -> Float[np.ndarray, "draws total"]:
    """How the mean over rotations moves if they are drawn again, with replacement; 0 with one.

    A rotation moves all neurons' baselines together, so it is drawn for all. Drawing from as few as R rotations gives
    (R − 1)/R of the variance, which is made up for.
    """
    number = len(baseline)
    if number < 2:
        return np.zeros((DRAWS, baseline.shape[1]))
    weights = generator.multinomial(number, np.full(number, 1 / number), size=DRAWS) / number
    return weights @ (baseline - baseline.mean(0)) * (number / (number - 1)) ** 0.5


def interval_table(run: Run, neurons_all_seeds: pd.DataFrame, thresholds: np.ndarray) -> pd.DataFrame | None:
    """One row per reference and threshold: seed, threshold, low and high (95 % interval of the share of universal
    neurons); None in a text of too few parts."""
    followed = load_followed(run)
    if not enough(followed):
        return None
    rows, drawn = [], run.table("baseline_draws").set_index("seed")
    for seed, own in neurons_all_seeds.groupby("seed", sort=False):
        others = [other for other in run.done["seeds"] if other != seed]
        baseline = drawn.loc[seed, "baseline"].to_numpy().reshape(-1, len(own))  # sorted by draw, then as neurons
        found = sampled(followed, seed, others, run.params.random_seed, baseline)
        rows.append(found.share_intervals(own["excess_corr"], thresholds).assign(seed=seed))
    return pd.concat(rows, ignore_index=True)


def share_intervals(run: Run, neurons_all_seeds: pd.DataFrame, threshold: float) -> pd.DataFrame | None:
    """One row per reference: seed, share (universal), low, high (95 % interval); None in a text of too few parts.

    The run keeps the intervals of THRESHOLDS; those of another threshold are computed, which takes longer.
    """
    table = run.table("share_intervals") if run.has("share_intervals") else pd.DataFrame({"threshold": []})
    known = table[np.isclose(table["threshold"], threshold, atol=1e-9)]
    if known.empty:
        known = interval_table(run, neurons_all_seeds, np.array([threshold]))
    if known is None:
        return None
    shares = neurons_all_seeds.groupby("seed", sort=False)["is_universal"].mean().rename("share").reset_index()
    return shares.merge(known[["seed", "low", "high"]], on="seed")
