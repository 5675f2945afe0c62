"""Do neurons fire by what comes next? Activations split by whether the true next token is in a class (figure 24).

From two sums per neuron and class, Σv and Σv² over the tokens whose next token is in the class, to effect sizes and tests.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from scipy.stats import ttest_ind_from_stats
from torch import Tensor

from lib.chapters.universality.properties import holm
from lib.display.claims import FAILS, HOLDS, share

GROUPING = "next_token"
DIFFERENCES = ("mean_in", "mean_out", "std_in", "std_out", "effect", "p_value")


class ClassSums(NamedTuple):
    """Count, Σv and Σv² of one layer's activations v: by class of the next token, and over all tokens."""

    count: Float[Tensor, "classes"]
    sums: Float[Tensor, "classes neurons"]
    squares: Float[Tensor, "classes neurons"]
    total_count: Float[Tensor, ""]
    total_sums: Float[Tensor, "neurons"]
    total_squares: Float[Tensor, "neurons"]


def class_sums(own: Mapping[str, Tensor], member: Bool[np.ndarray, "classes groups"]) -> ClassSums:
    """Sums of one layer's activations by membership of the next token in classes, from its grouped moments.

    `own` is one layer of `lib.chapters.families.scoring.Statistics`, whose group means are stored in fp16 units of the neuron's
    deviation. Taken over counted tokens that have a next token in their block, both halves of the text together.
    """
    used = torch.from_numpy(member.any(0))
    inside = torch.from_numpy(member[:, used.numpy()]).double()  # (classes, groups in any class)
    by_half, count_by_half = own[f"{GROUPING}.mean"][:, used].double(), own[f"{GROUPING}.count"][:, used, None].double()
    count = count_by_half.sum(0)
    first = (count_by_half * by_half).sum(0)  # (groups, neurons), sums of z
    mean = first / count.clamp(min=1)
    second = count * (own[f"{GROUPING}.spread"][used].double().square() + mean.square())
    tokens = own[f"{GROUPING}.count"].sum(1)[:, None].double()  # (halves, 1)
    center, variance = (own[f"{GROUPING}.{name}"].double() for name in ("center", "variance"))
    inner = ((inside @ count)[:, 0], inside @ first, inside @ second)
    total = (tokens.sum(), (tokens * center).sum(0), (tokens * (variance + center.square())).sum(0))
    shift, scale = own["mean"].double(), own["deviation"].double()
    return ClassSums(*_in_own_units(inner, shift, scale), *_in_own_units(total, shift, scale))


def _in_own_units(sums: tuple[Tensor, Tensor, Tensor], shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count, Σv and Σv² from count, Σz and Σz² with v = z · scale + shift."""
    count, first, second = sums
    each = count[..., None]
    return count, scale * first + each * shift, scale**2 * second + 2 * scale * shift * first + each * shift**2


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


def tested(table: pd.DataFrame, role: str) -> pd.DataFrame:
    """The rows of a role that say something of a class: with an effect, and a class that explains more of the neuron's logits than chance."""
    return table[(table["role"] == role) & table["effect"].notna() & (table["label_score"] > table["null_score"])]


def above_layer(rows: pd.DataFrame) -> pd.Series:
    """Per seed the share of neurons whose effect is beyond the median of the other neurons of their layer on the same split."""
    return (rows["percentile"] > 50).groupby(rows["seed"], sort=False).mean()


def fire_more(rows: pd.DataFrame) -> bool | None:
    """Whether neurons go beyond the median of their layer: in each seed that has one most do, and of all together more than half, by
    Wilson's 95 % interval; None where seeds or interval do not tell, or there are too few."""
    by_seed, pooled = above_layer(rows), share((rows["percentile"] > 50).sum(), len(rows), 0.5, True, "neuron").verdict
    if (by_seed > 0.5).all() and pooled == HOLDS:
        return True
    return False if (by_seed < 0.5).all() and pooled == FAILS else None


def with_corrected_p(table: pd.DataFrame) -> pd.DataFrame:
    """The table with `p_corrected`: Holm's over all its tests."""
    return table.assign(p_corrected=holm(table["p_value"]))
