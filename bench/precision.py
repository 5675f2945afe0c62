"""What each precision costs in accuracy: correlations and excess of a pair of shipped seeds against fp64."""

import numpy as np
import torch
from torch import Tensor

from bench.whole import measured

THRESHOLD = 0.5


def errors(result: dict[str, Tensor], exact: dict[str, Tensor]) -> dict:
    """Absolute errors of max correlation and excess (median, 99.9th percentile, largest) and changes of side."""
    excess, true_excess = (one["corr"].mean(0) - one["baseline"].mean(0) for one in (result, exact))
    found = {}
    for name, error in (("corr", result["corr"] - exact["corr"]), ("excess", excess - true_excess)):
        sizes = error.abs().flatten().numpy()
        found[name] = {
            "median": float(np.median(sizes)),
            "p99.9": float(np.quantile(sizes, 0.999)),
            "largest": float(sizes.max()),
        }
    found["changed_side"] = int(((excess > THRESHOLD) != (true_excess > THRESHOLD)).sum())
    return found


def errors_of_precisions(device: torch.device, tokens: int, precisions: tuple[str, ...]) -> dict:
    """Errors of each precision, forward pass included, for seeds a and b on the same text."""
    exact, record = measured("ours", ("a", "b"), tokens, "fp64")
    excess = exact["corr"].mean(0) - exact["baseline"].mean(0)
    found = {"tokens": record["tokens"], "universal": int((excess > THRESHOLD).sum()), "neurons": excess.numel()}
    for precision in precisions:
        if precision == "int8" and device.type == "cuda":
            continue
        result, _ = measured("ours", ("a", "b"), tokens, precision)
        found[precision] = errors(result, exact)
    return found
