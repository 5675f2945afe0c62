"""Do neurons fire by what comes next? Activations split by whether the true next token is in a class (figure 24).

From two sums per neuron and class, Σv and Σv² over the tokens whose next token is in the class, to effect sizes.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy.stats import ttest_ind_from_stats
from torch import Tensor

GROUPING = "next_token"
TABLE = f"{GROUPING}_labels"
DIFFERENCES = ("mean_in", "mean_out", "std_in", "std_out", "effect", "p_value")
OF_LAYER = ("layer_low", "layer_median", "layer_high")  # 5th, 50th and 95th percentile


class ClassSums(NamedTuple):
    """Count, Σv and Σv² of one layer's activations v: by class of the next token, and over all tokens."""

    count: Float[Tensor, "classes"]
    sums: Float[Tensor, "classes neurons"]
    squares: Float[Tensor, "classes neurons"]
    total_count: Float[Tensor, ""]
    total_sums: Float[Tensor, "neurons"]
    total_squares: Float[Tensor, "neurons"]


def class_sums(moments: Mapping[str, Tensor], rows: Sequence[int]) -> ClassSums:
    """Sums of one layer's activations by membership of the next token in classes, from its grouped moments.

    `moments` is one layer's `lib.kernels.grouped.GroupedMoments.compact()`, in units of the neuron's deviation; `rows`
    are the classes' rows in the table of labels of the next token, −1 for a class that no token of the text is in.
    Both halves of the text together, over counted tokens that have a next token in their block.
    """
    names = ("count", "mean", "spread", "tokens", "center", "variance")
    counts, means, spread, tokens, center, variance = (moments[f"{TABLE}.{name}"].double() for name in names)
    rows = torch.tensor(rows)
    by_half = torch.where(rows < 0, 0, counts[:, rows])[..., None]  # (halves, classes, 1)
    count = by_half.sum(0)
    first = (by_half * means[:, rows]).sum(0)  # (classes, neurons), sums of z
    second = count * (spread[rows].square() + (first / count.clamp(min=1)).square())
    tokens = tokens[:, None]  # (halves, 1)
    inner = (count[:, 0], first, second)
    total = (tokens.sum(), (tokens * center).sum(0), (tokens * (variance + center.square())).sum(0))
    shift, scale = moments["mean"].double(), moments["deviation"].double()
    return ClassSums(*_in_own_units(*inner, shift, scale), *_in_own_units(*total, shift, scale))


def _in_own_units(count: Tensor, first: Tensor, second: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
    """Count, Σv and Σv² from count, Σz and Σz² with v = z · scale + shift."""
    each = count[..., None]
    return count, scale * first + each * shift, scale**2 * second + 2 * scale * shift * first + each * shift**2


def class_differences(sums: ClassSums) -> dict[str, Float[np.ndarray, "classes neurons"]]:
    """How much more a neuron fires when the next token is in a class.

    `mean_in`, `mean_out` and their standard deviations (sample); `effect` is Cohen's d, the difference of the means in
    units of the pooled standard deviation; `p_value` is Welch's, two-sided. NaN where a side has fewer than two
    tokens or the neuron never varies.
    """
    outside = (sums.total_count - sums.count, sums.total_sums - sums.sums, sums.total_squares - sums.squares)
    with np.errstate(divide="ignore", invalid="ignore"):
        (n1, m1, v1), (n0, m0, v0) = _moments(*sums[:3]), _moments(*outside)
        pooled = np.sqrt(((n1 - 1) * v1 + (n0 - 1) * v0) / (n1 + n0 - 2))
        effect = np.where(pooled > 0, (m1 - m0) / pooled, np.nan)
        p_value = ttest_ind_from_stats(m1, np.sqrt(v1), n1, m0, np.sqrt(v0), n0, equal_var=False).pvalue
    p_value = np.where(np.isfinite(effect), p_value, np.nan)
    found = np.broadcast_arrays(m1, m0, np.sqrt(v1), np.sqrt(v0), effect, p_value)
    return dict(zip(DIFFERENCES, found, strict=True))


def _moments(count: Tensor, sums: Tensor, squares: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count, mean and sample variance."""
    count = count.numpy()[:, None]
    mean = sums.numpy() / count
    return count, mean, np.where(count > 1, np.maximum(squares.numpy() - count * mean**2, 0) / (count - 1), np.nan)


def next_token_table(chosen: pd.DataFrame, sums: dict[int, ClassSums]) -> pd.DataFrame:
    """The rows of `chosen` (layer, neuron, class_row: its class's row in its layer's sums) with their differences.

    Adds `count_in`, `count_out`, the columns of `class_differences`, quantiles of the effects of the layer's other
    neurons on the same split (OF_LAYER), and `percentile`, the percentage of them whose effect is smaller.
    """
    rows, differences = {}, {layer: class_differences(split) for layer, split in sums.items()}
    for row in chosen.itertuples():
        split, found, at = sums[row.layer], differences[row.layer], (row.class_row, row.neuron)
        others = np.delete(found["effect"][row.class_row], row.neuron)
        others = others[np.isfinite(others)]
        quantiles = np.quantile(others, [0.05, 0.5, 0.95]) if len(others) else [np.nan] * 3
        percentile = 100 * np.mean(others < found["effect"][at]) if len(others) else np.nan
        inside = int(split.count[row.class_row])
        own = [float(found[name][at]) for name in DIFFERENCES]
        rows[row.Index] = [inside, int(split.total_count) - inside, *own, *quantiles, percentile]
    columns = ["count_in", "count_out", *DIFFERENCES, *OF_LAYER, "percentile"]
    return chosen.join(pd.DataFrame.from_dict(rows, orient="index", columns=columns)).drop(columns="class_row")
