"""Maps from one layer of a seed to the neurons of another: from covariances to coefficients, and what they say.

The ladder's rungs (docs/method.md §12) differ in how much of the other layer they may use: one neuron, one neuron that
nobody else has, a few, a rotation of the whole layer, all of it. Units are standard deviations throughout. Pure
functions on tensors.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

FEW = (2, 4, 8)  # neurons of a sparse regression
PENALTIES = (0.1, 0.5, 2.0, 10.0)  # of ridge regression, in variances of a predictor


def one_to_one(cross: Float[Tensor, "n k"]) -> Int[Tensor, "k"]:
    """Which of n neurons each of k gets if none is given twice and Σ |corr| is largest; −1 for what is left over."""
    rows, columns = linear_sum_assignment(cross.abs().cpu().numpy(), maximize=True)
    found = torch.full((cross.shape[1],), -1)
    found[torch.from_numpy(columns)] = torch.from_numpy(rows)
    return found.to(cross.device)


def orthogonal(cross: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """Q with orthonormal columns (rows if k > n) that maximises Σ corr(y Q, x): Procrustes, from Yᵀ X."""
    left, _, right = torch.linalg.svd(cross, full_matrices=False)
    return left @ right


def ridge_factors(within: Float[Tensor, "n n"]) -> list[Float[Tensor, "n n"]]:
    """(Σ + λ I)'s Cholesky factor for each of PENALTIES."""
    eye = torch.eye(len(within), dtype=within.dtype, device=within.device)
    return [torch.linalg.cholesky(within + one * eye) for one in PENALTIES]


def ridge(factors: list[Float[Tensor, "n n"]], cross: Float[Tensor, "n k"]) -> Float[Tensor, "penalties n k"]:
    """(Σ + λ I)⁻¹ C for each penalty λ."""
    return torch.stack([torch.cholesky_solve(cross, one) for one in factors])


def forward_selection(
    within: Float[Tensor, "n n"], cross: Float[Tensor, "n k"], most: int = FEW[-1]
) -> tuple[Int[Tensor, "most k"], list[Float[Tensor, "step k"]]]:
    """Sparse regression by orthogonal matching pursuit: which neurons each of k targets takes, in order, and the least
    squares coefficients after each step.

    A step adds the neuron that correlates most with what is left of the target. A target with nothing left to explain
    takes the first neurons that are free, with coefficients near 0.
    """
    target = cross.T.contiguous()  # (k, n)
    most, rows = min(most, len(within)), torch.arange(len(target), device=cross.device)
    used, residual, chosen, steps = target.new_empty(len(target), most, len(within)), target, [], []
    for step in range(most):
        size = residual.abs()
        for one in chosen:
            size[rows, one] = -1
        chosen.append(size.argmax(1))
        used[:, step] = within[chosen[-1]]
        picked = torch.stack(chosen, 1)  # (k, step + 1)
        gram = used[:, : step + 1].gather(2, picked[:, None].expand(-1, step + 1, -1))
        gram.diagonal(dim1=1, dim2=2).add_(10 * torch.finfo(gram.dtype).eps)  # for two copies of one neuron
        weights = torch.linalg.solve(gram, target.gather(1, picked))
        residual = torch.baddbmm(target[:, None], weights[:, None], used[:, : step + 1], alpha=-1)[:, 0]
        steps.append(weights.T)
    return torch.stack(chosen), steps


def linear_cka(norm_a: float, norm_b: float, cross: Float[Tensor, "n k"]) -> float:
    """‖C‖²_F / (‖Σ_a‖_F ‖Σ_b‖_F) of two layers (docs/method.md §10)."""
    return float(cross.square().sum()) / max(norm_a * norm_b, 1e-30)


def explained(
    coefficients: Float[Tensor, "*rungs n k"], within: Float[Tensor, "n n"], cross: Float[Tensor, "n k"]
) -> Float[Tensor, "*rungs k"]:
    """What a linear map takes from each target's mean square on other tokens: 2 b·c − bᵀ Σ b, from their moments."""
    return 2 * (coefficients * cross).sum(-2) - (coefficients * (within @ coefficients)).sum(-2)


def explained_by_few(
    chosen: Int[Tensor, "few k"],
    weights: Float[Tensor, "few k"],
    within: Float[Tensor, "n n"],
    cross: Float[Tensor, "n k"],
) -> Float[Tensor, "k"]:
    """`explained` for a map that uses a few neurons for each target."""
    products = within[chosen[:, None], chosen[None]]  # (few, few, k)
    return (weights * (2 * cross.gather(0, chosen) - (products * weights[:, None]).sum(0))).sum(0)


# ---------------------------------------------------------------- the rule

MOST, SOME = 0.5, 0.1  # of a neuron's variance
CLASSES = ("twin", "split", "spread", "part", "own")


def classes(
    one: Float[np.ndarray, "neurons"],
    few: Float[np.ndarray, "neurons"],
    everything: Float[np.ndarray, "neurons"],
    null_one: Float[np.ndarray, "neurons"],
    null_few: Float[np.ndarray, "neurons"],
) -> np.ndarray:
    """Which of CLASSES each neuron is, from held-out R² (docs/method.md §12); "" where R² is not defined.

    A rung suffices if it explains at least MOST of the variance, less than SOME below the best rung, and at least SOME
    more than the same rung of a rotated basis. twin: one neuron suffices. split: not so, but eight do. spread: neither,
    but some rung explains MOST. part: the best rung explains less than that, but at least SOME. own: not even SOME.
    """
    best = np.maximum.reduce([one, few, everything])
    twin, split = (
        (rung >= MOST) & (best - rung < SOME) & (rung - null >= SOME)
        for rung, null in ((one, null_one), (few, null_few))
    )
    found = np.select([np.isnan(best), twin, split, best >= MOST, best >= SOME], ["", *CLASSES[:4]], CLASSES[4])
    return found.astype(object)
