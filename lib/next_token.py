"""Do neurons fire by what comes next? Activations split by whether the true next token is in a class (figure 24).

From two sums per neuron and class, Σv and Σv² over the tokens whose next token is in the class, to effect sizes and tests.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import ttest_ind_from_stats
from torch import Tensor

from lib.seeds import Trunk
from lib.universality import holm

BATCH = 8  # blocks in one forward pass
DIFFERENCES = ("mean_in", "mean_out", "std_in", "std_out", "effect", "p_value")


class ClassSums(NamedTuple):
    """Count, Σv and Σv² of one layer's activations v: by class of the next token, and over all tokens."""

    count: Float[Tensor, "classes"]
    sums: Float[Tensor, "classes neurons"]
    squares: Float[Tensor, "classes neurons"]
    total_count: Float[Tensor, ""]
    total_sums: Float[Tensor, "neurons"]
    total_squares: Float[Tensor, "neurons"]


def next_token_sums(
    trunk: Trunk,
    tokens: Int[Tensor, "blocks context"],
    counted: Bool[Tensor, "blocks context"],
    members: dict[int, Bool[np.ndarray, "classes vocabulary"]],
) -> dict[int, ClassSums]:
    """For each layer in `members`, sums of its activations by membership of the next token in the layer's classes.

    Taken over counted tokens that have a next token in their block; products in fp32, sums over batches in fp64.
    """
    inside = {layer: torch.from_numpy(member) for layer, member in members.items()}
    parts: dict[int, list[ClassSums]] = {layer: [] for layer in members}
    for start in range(0, len(tokens), BATCH):
        some = tokens[start : start + BATCH]
        rows = counted[start : start + BATCH, :-1].flatten()
        following = some[:, 1:].flatten()[rows]

        def visit(layer: int, _pre: Tensor, post: Tensor, rows=rows, following=following) -> None:
            if layer not in inside:
                return
            value = post[:, :-1].flatten(0, 1)[rows].float()  # (tokens, neurons)
            chosen = inside[layer][:, following].float()  # (classes, tokens)
            square = value.square()
            found = (chosen.sum(1), chosen @ value, chosen @ square, torch.tensor(len(value)), value.sum(0), square.sum(0))
            parts[layer].append(ClassSums(*(part.double() for part in found)))

        trunk.run(some, visit)
    return {layer: ClassSums(*(torch.stack(part).sum(0) for part in zip(*found, strict=True))) for layer, found in parts.items()}


def class_differences(sums: ClassSums) -> dict[str, Float[np.ndarray, "classes neurons"]]:
    """How much more a neuron fires when the next token is in a class.

    `mean_in`, `mean_out` and their standard deviations (sample); `effect` is Cohen's d, the difference of the means in
    units of the pooled standard deviation; `p_value` is Welch's, two-sided. NaN where a side has fewer than two
    tokens or the neuron never varies.
    """
    sides = {}
    outside = (sums.total_count - sums.count, sums.total_sums - sums.sums, sums.total_squares - sums.squares)
    for name, (count, total, square) in {"in": (sums.count, sums.sums, sums.squares), "out": outside}.items():
        count = count.numpy()[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = total.numpy() / count
            variance = np.where(count > 1, np.maximum(square.numpy() - count * mean**2, 0) / (count - 1), np.nan)
        sides[name] = (count, mean, variance)
    (n1, m1, v1), (n0, m0, v0) = sides["in"], sides["out"]
    with np.errstate(divide="ignore", invalid="ignore"):
        pooled = np.sqrt(((n1 - 1) * v1 + (n0 - 1) * v0) / (n1 + n0 - 2))
        effect = np.where(pooled > 0, (m1 - m0) / pooled, np.nan)
        p_value = ttest_ind_from_stats(m1, np.sqrt(v1), n1, m0, np.sqrt(v0), n0, equal_var=False).pvalue
    p_value = np.where(np.isfinite(effect), p_value, np.nan)
    found = np.broadcast_arrays(m1, m0, np.sqrt(v1), np.sqrt(v0), effect, p_value)
    return dict(zip(DIFFERENCES, found, strict=True))


def next_token_table(chosen: pd.DataFrame, sums: dict[int, ClassSums]) -> pd.DataFrame:
    """The rows of `chosen` (layer, neuron, class_row: the row of its class in its layer's sums) with their differences.

    Adds `count_in`, `count_out`, the columns of `class_differences`, and what the other neurons of the layer do on the same
    split: `layer_low`, `layer_median`, `layer_high` (5th, 50th and 95th percentile of their effects) and `percentile`,
    the share of them in percent whose effect is smaller.
    """
    rows = {}
    for row in chosen.itertuples():
        split = sums[row.layer]
        found = class_differences(split)
        own = [float(found[name][row.class_row, row.neuron]) for name in DIFFERENCES]
        others = np.delete(found["effect"][row.class_row], row.neuron)
        others = others[np.isfinite(others)]
        spread = [*np.quantile(others, [0.05, 0.5, 0.95])] if len(others) else [np.nan] * 3
        percentile = 100 * np.mean(others < own[DIFFERENCES.index("effect")]) if len(others) else np.nan
        inside = int(split.count[row.class_row])
        rows[row.Index] = [inside, int(split.total_count) - inside, *own, *spread, percentile]
    columns = ["count_in", "count_out", *DIFFERENCES, "layer_low", "layer_median", "layer_high", "percentile"]
    table = chosen.join(pd.DataFrame.from_dict(rows, orient="index", columns=columns))
    return table.drop(columns="class_row")


def with_corrected_p(table: pd.DataFrame) -> pd.DataFrame:
    """The table with `p_corrected`: Holm's over all its tests."""
    return table.assign(p_corrected=holm(table["p_value"]))
