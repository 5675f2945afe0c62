"""Entropy and token-frequency neurons: from weights to candidates by a stated rule, and to their controls.

An entropy neuron writes much, but almost nothing that the unembedding reads: it acts through the final LayerNorm's
scale. A token-frequency neuron moves the logits along the direction of unigram frequency. docs/method.md §6 and §7.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from lib.chapters.interventions.single_neurons import Readout
from lib.models.processed import Processed
from lib.models.weights import COSINES_AT_ONCE

LAST_LAYERS = 2
CANDIDATES = 6
CONTROLS = 20
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


def most_opposite(vectors: Float[Tensor, "neurons d_model"]) -> tuple[Tensor, Tensor]:
    """For each vector the index of its antipodal partner, the one with the lowest cosine to it, and that cosine."""
    unit = normalize(vectors, dim=1)
    lowest = [(part @ unit.T).min(dim=1) for part in unit.split(max(1, COSINES_AT_ONCE // len(unit)))]
    return torch.cat([low.indices for low in lowest]), torch.cat([low.values for low in lowest])


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


@torch.no_grad()
def weight_columns(model: Processed, reading: Readout) -> pd.DataFrame:
    """One row per neuron: norm, logit variance, null-space share, partner, frequency share, entropy score and flag.

    `entropy` is the rule: among the neurons of the last two layers, norm of w_out in the top decile and logit variance
    (of cos(w_out, W_U) over the vocabulary) in the bottom decile. `entropy_score` = ‖w_out‖ / √logit variance ranks
    them; earlier layers have NaN and False.
    """
    w_out, layers, neurons = model.w_out, len(model.blocks), len(model.blocks[0].w_out)
    flat = np.arange(len(w_out))
    partner, cosine = most_opposite(w_out)
    table = pd.DataFrame({"layer": flat // neurons, "neuron": flat % neurons})
    table["w_out_norm"] = w_out.norm(dim=1).numpy()
    table["vocab_var"] = logit_variance(w_out, model.unembedding).numpy()
    table["null_share"] = null_share(w_out, null_space(model.unembedding)).numpy()
    table["partner_layer"], table["partner_neuron"] = partner.numpy() // neurons, partner.numpy() % neurons
    table["partner_cos"] = cosine.numpy()
    table["frequency_share"] = frequency_share(w_out, reading).numpy()
    late = table["layer"] >= layers - LAST_LAYERS
    score = table["w_out_norm"] / np.sqrt(table["vocab_var"].clip(lower=1e-30))
    table["entropy_score"] = score.where(late & (table["w_out_norm"] > 0))
    large = table["w_out_norm"] >= table.loc[late, "w_out_norm"].quantile(0.9)
    small = table["vocab_var"] <= table.loc[late, "vocab_var"].quantile(0.1)
    table["entropy"] = late & large & small & (table["w_out_norm"] > 0)
    return table


def entropy_candidates(table: pd.DataFrame) -> pd.DataFrame:
    """The best neurons of `weight_columns`: those that satisfy the rule first, then by score."""
    return (
        late_neurons(table).sort_values(["entropy", "entropy_score"], ascending=False, kind="stable").head(CANDIDATES)
    )


def frequency_candidates(table: pd.DataFrame) -> pd.DataFrame:
    """The neurons of the last two layers whose logit effect lies most along ± the frequency direction."""
    late = late_neurons(table)
    return late.loc[late["frequency_share"].abs().sort_values(ascending=False, kind="stable").index].head(CANDIDATES)


def controls(table: pd.DataFrame, chosen: pd.DataFrame, random_seed: int, number: int = CONTROLS) -> pd.DataFrame:
    """Random neurons of the last two layers outside the top decile of norm and the bottom decile of logit variance.

    docs/method.md §6; `chosen` neurons are never drawn. Fewer than `number` if there are no more.
    """
    late = late_neurons(table)
    norm, variance = late["w_out_norm"], late["vocab_var"]
    ordinary = late[(norm < norm.quantile(0.9)) & (variance > variance.quantile(0.1))].drop(
        index=chosen.index, errors="ignore"
    )
    return ordinary.sample(min(number, len(ordinary)), random_state=random_seed).sort_index()
