"""Entropy and token-frequency neurons: from weights to candidates by a stated rule, and to their controls.

An entropy neuron writes much, and much of it where the unembedding reads least: it acts through the final LayerNorm's
scale. A token-frequency neuron moves the logits along the direction of unigram frequency. Controls are neurons of the
same layer and norm. docs/method.md §6 and §7.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy.stats import beta
from torch import Tensor
from torch.nn.functional import normalize

from lib.chapters.interventions.single_neurons import Readout
from lib.models.folded import full_precision
from lib.models.processed import Processed
from lib.models.weights import nearest

LAST_LAYERS = 2
CANDIDATES = 6
CONTROLS = 3  # for each candidate
LARGE = 0.5  # quantile of the last layers' norms, from which a norm is large
CONTROL_OF = {"entropy": "control", "frequency": "frequency control"}  # group of candidates → group of their controls
FIXED_VALUES = (-0.17, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)  # docs/method.md §6; −0.17 is GELU's minimum
WIDTH_PER_DIRECTION = 64  # the null space has d_model / 64 directions: 12 for GPT2-small, as in arXiv 2406.16254


class NullSpace(NamedTuple):
    """Directions of the residual stream that the unembedding reads least."""

    basis: Float[Tensor, "d_model k"]
    singular_values: Float[Tensor, "directions"]  # of W_U, falling, without the direction that centring removes

    @property
    def chance(self) -> float:
        """Approximate null-space share of a random direction, √(k / directions)."""
        return (self.basis.shape[1] / len(self.singular_values)) ** 0.5

    @property
    def chance_bound(self) -> float:
        """The share that one random direction in a thousand exceeds: its square has a beta distribution."""
        k, directions = self.basis.shape[1], len(self.singular_values)
        return float(beta.ppf(0.999, k / 2, (directions - k) / 2) ** 0.5)

    @property
    def depth(self) -> float:
        """Largest singular value in the null space over the median one; far below 1 for a true null space."""
        k = self.basis.shape[1]
        return float(self.singular_values[-k] / self.singular_values.median())


def null_space(unembedding: Float[Tensor, "d_model vocabulary"]) -> NullSpace:
    """The k bottom left singular vectors of W_U, k = d_model / 64 and at least 1 (docs/method.md §7).

    The all-ones direction is left out, since centred weights neither write nor read it.
    """
    d_model = len(unembedding)
    k = max(1, d_model // WIDTH_PER_DIRECTION)
    ones = torch.ones(d_model, dtype=torch.float64, device=unembedding.device) / d_model**0.5
    wide = unembedding.double()
    wide = wide - ones[:, None] * (ones @ wide)
    # the d_model × d_model covariance has the same vectors; adding all-ones moves it to the top, out of the way
    gram = wide @ wide.T
    values, vectors = torch.linalg.eigh(gram + 2 * gram.trace() * torch.outer(ones, ones))
    return NullSpace(vectors[:, :k].to(unembedding.dtype), values[:-1].clamp(min=0).sqrt().flip(0).float())


def null_share(w_out: Float[Tensor, "neurons d_model"], space: NullSpace) -> Float[Tensor, "neurons"]:
    """ρ(k) = ‖projection of w_out on the null space‖ / ‖w_out‖; 0 for a neuron that writes nothing."""
    return (normalize(w_out, dim=1) @ space.basis).norm(dim=1)


def frequency_share(w_out: Float[Tensor, "neurons d_model"], reading: Readout) -> Float[Tensor, "neurons"]:
    """Cosine of a neuron's logit effect w_out·W_U with the frequency direction; 0 without any effect on logits."""
    gram = reading.unembedding @ reading.unembedding.T  # ‖w W_U‖² = w gram wᵀ
    length = ((w_out @ gram) * w_out).sum(1).clamp(min=0).sqrt()
    along = w_out @ (reading.unembedding @ reading.frequency)
    return torch.where(length > 1e-12, along / length.clamp(min=1e-12), 0.0)


def logit_variance(
    w_out: Float[Tensor, "neurons d_model"], unembedding: Float[Tensor, "d_model vocabulary"]
) -> Float[Tensor, "neurons"]:
    """Variance over the vocabulary of cos(w_out, W_U[:, v]), as in `vocabulary_moments`; 0 for w_out = 0.

    A quadratic form in the covariance of the unembedding's unit columns: no product of every neuron and token.
    """
    columns = normalize(unembedding, dim=0)
    columns = columns - columns.mean(dim=1, keepdim=True)
    unit = normalize(w_out, dim=1)
    return ((unit @ (columns @ columns.T / columns.shape[1])) * unit).sum(dim=1).clamp(min=0)


def late_neurons(table: pd.DataFrame) -> pd.DataFrame:
    """The neurons of the last two layers that write anything, from `weight_columns`."""
    return table[table["entropy_score"].notna()]


@full_precision()
def weight_columns(model: Processed, reading: Readout) -> pd.DataFrame:
    """One row per neuron: norm, logit variance, null-space share, partner, frequency share, entropy score and flag.

    `entropy` is the rule: among the neurons of the last two layers, norm of w_out of at least their median and a
    null-space share beyond 99.9 % of random directions'. `entropy_score` = ‖w_out‖ · share is the length that a neuron
    writes into the null space; earlier layers have NaN and False.
    """
    w_out, layers, neurons = model.w_out, len(model.blocks), len(model.blocks[0].w_out)
    flat = np.arange(len(w_out))
    partner, cosine = (one.cpu().numpy() for one in nearest(w_out, sign=-1))  # antipodal, the lowest cosine
    space = null_space(model.unembedding)
    table = pd.DataFrame({"layer": flat // neurons, "neuron": flat % neurons})
    table["w_out_norm"] = w_out.norm(dim=1).cpu().numpy()
    table["vocab_var"] = logit_variance(w_out, model.unembedding).cpu().numpy()
    table["null_share"] = null_share(w_out, space).cpu().numpy()
    table["partner_layer"], table["partner_neuron"] = partner // neurons, partner % neurons
    table["partner_cos"] = cosine
    table["frequency_share"] = frequency_share(w_out, reading).cpu().numpy()
    late = (table["layer"] >= layers - LAST_LAYERS) & (table["w_out_norm"] > 0)
    table["entropy_score"] = (table["w_out_norm"] * table["null_share"]).where(late)
    large = table["w_out_norm"] >= table.loc[late, "w_out_norm"].quantile(LARGE)
    table["entropy"] = late & large & (table["null_share"] > space.chance_bound)
    return table


def entropy_candidates(table: pd.DataFrame) -> pd.DataFrame:
    """The neurons of `weight_columns` that satisfy the rule, those with the largest null-space share; maybe none."""
    return table[table["entropy"]].sort_values("null_share", ascending=False, kind="stable").head(CANDIDATES)


def frequency_candidates(table: pd.DataFrame) -> pd.DataFrame:
    """The neurons of the last two layers whose logit effect lies most along ± the frequency direction."""
    late = late_neurons(table)
    return late.loc[late["frequency_share"].abs().sort_values(ascending=False, kind="stable").index].head(CANDIDATES)


def controls(table: pd.DataFrame, chosen: pd.DataFrame, taken: pd.DataFrame, number: int = CONTROLS) -> pd.DataFrame:
    """For each chosen neuron the `number` neurons of its layer that are nearest in norm of w_out, the nearest first.

    No neuron is drawn twice, none of `taken`, and none that satisfies the entropy rule.
    """
    late, picked = late_neurons(table), []
    free = late[~late["entropy"]].drop(index=taken.index, errors="ignore")
    for _ in range(number):
        for row in chosen.itertuples():
            apart = (free.loc[free["layer"] == row.layer, "w_out_norm"] - row.w_out_norm).abs()
            if len(apart):
                picked.append(apart.idxmin())
                free = free.drop(index=picked[-1])
    return table.loc[picked]


def groups(table: pd.DataFrame) -> pd.DataFrame:
    """One seed's neurons that are intervened on: columns layer, neuron, group (CONTROL_OF's keys and values).

    A neuron may be a candidate of both kinds.
    """
    chosen = {"entropy": entropy_candidates(table), "frequency": frequency_candidates(table)}
    for group, name in CONTROL_OF.items():
        chosen[name] = controls(table, chosen[group], pd.concat(chosen.values()))
    parts = [rows[["layer", "neuron"]].assign(group=group) for group, rows in chosen.items()]
    return pd.concat(parts, ignore_index=True)
