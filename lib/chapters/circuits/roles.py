"""What neurons do to the next-token distribution, read from weights: roles and token classes (docs/method.md §6).

A neuron changes the logit of token v by its activation times w_out · W_U[:, v]. The shape of that effect over the
vocabulary makes it a prediction, suppression or partition neuron; the token class that explains most of its variance
says of what. Random directions through the same W_U give the chance level. The vocabulary is that of learned tokens:
those that the training text never had share a direction, and a neuron that writes along it looks sharp.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize, pad

ROLES = ("prediction", "suppression", "partition")
NO_ROLE = "none"
NULL_DIRECTIONS = 10_000  # random directions of the null
NULL_QUANTILE = 0.999  # of the null; a value above it is beyond chance
BYTES_NOT_IN_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}
UNLEARNED_COSINE = 0.8  # of an unlearned token's unembedding with the mean one of those bytes, at least


class Cuts(NamedTuple):
    """A neuron above `kurtosis` raises or lowers few tokens; one above `variance` splits the vocabulary."""

    kurtosis: float
    variance: float


PUBLISHED_CUTS = Cuts(10.0, 0.005)  # arXiv 2401.12181, section 5.1 (kurtosis) and its published code (variance)
PUBLISHED_HIGH_KURTOSIS = {20: 130.8, 21: 142.2, 22: 207.2, 23: 339.2}  # GPT2-medium: layer → neurons, mean over seeds


def random_directions(number: int, d_model: int, random_seed: int) -> Float[Tensor, "number d_model"]:
    """Isotropic unit directions with mean zero over the residual stream, as processed writing weights have."""
    drawn = torch.randn(number, d_model, generator=torch.Generator().manual_seed(random_seed))
    return normalize(drawn - drawn.mean(dim=1, keepdim=True), dim=1)


def null_cuts(null: dict[str, Float[Tensor, "directions"]], quantile: float = NULL_QUANTILE) -> Cuts:
    """The quantiles of kurtosis and variance over random directions; `null` is their `vocabulary_moments`."""
    return Cuts(*(float(np.quantile(null[name].cpu().numpy(), quantile)) for name in ("vocab_kurt", "vocab_var")))


def roles(neurons: pd.DataFrame, cuts: Cuts) -> pd.Series:
    """Prediction, suppression, partition or none, from the columns vocab_kurt, vocab_skew and vocab_var.

    Kurtosis above its cut makes a prediction neuron if the skew is positive, a suppression neuron if it is negative;
    any other neuron with variance above its cut is a partition neuron.
    """
    peaked, skew = neurons["vocab_kurt"] > cuts.kurtosis, neurons["vocab_skew"]
    conditions = [peaked & (skew > 0), peaked & (skew < 0), neurons["vocab_var"] > cuts.variance]
    return pd.Series(np.select(conditions, ROLES, NO_ROLE), neurons.index)


def unlearned_tokens(
    unit_unembedding: Float[Tensor, "d_model vocabulary"], pieces: Sequence[bytes]
) -> Bool[Tensor, "vocabulary"]:
    """Tokens of which a model has learned only that they do not occur: their unembeddings share one direction.

    The direction is the mean unembedding of the bytes that UTF-8 does not use: a byte-level BPE has tokens for them,
    but no text contains them. `pieces` are the bytes of each token. Without such tokens the mask is empty.
    """
    never = [token for token, piece in enumerate(pieces) if len(piece) == 1 and piece[0] in BYTES_NOT_IN_UTF8]
    if not never:
        return torch.zeros_like(unit_unembedding[0], dtype=torch.bool)
    return normalize(unit_unembedding[:, never].mean(dim=1), dim=0) @ unit_unembedding > UNLEARNED_COSINE


class ClassScores(NamedTuple):
    """How token classes explain logit effects: variance reduction, and mean inside the class minus outside."""

    score: Float[Tensor, "neurons labels"]
    effect: Float[Tensor, "neurons labels"]


class Contrasts(NamedTuple):
    """What token classes read: the mean unembedding in a class minus that outside, and its share of the vocabulary."""

    contrast: Float[Tensor, "labels d_model"]
    share: Float[Tensor, "labels"]


def class_contrasts(
    unit_unembedding: Float[Tensor, "d_model vocabulary"], member: Bool[np.ndarray, "labels vocabulary"]
) -> Contrasts:
    """Contrasts of classes; 0 where a class holds no token or every token. Tokens that pad an embedding are in none."""
    inside = torch.from_numpy(member).to(unit_unembedding)  # (labels, vocabulary)
    inside = pad(inside, (0, unit_unembedding.shape[1] - inside.shape[1]))
    tokens = inside.shape[1]
    number = inside.sum(dim=1)  # (labels)
    sums = inside @ unit_unembedding.T  # (labels, d_model)
    rest = unit_unembedding.sum(dim=1) - sums
    contrast = sums / number[:, None] - rest / (tokens - number)[:, None]
    contrast = torch.where(((number > 0) & (number < tokens))[:, None], contrast, 0.0)
    return Contrasts(contrast, number / tokens)


def class_scores(
    w_out: Float[Tensor, "neurons d_model"], classes: Contrasts, variance: Float[Tensor, "neurons"]
) -> ClassScores:
    """Variance reduction (docs/method.md §5) of cos(w_out, W_U[:, v]) by membership of v in each class.

    With β the class's share of the vocabulary, 1 − [(1−β) σ²₀ + β σ²₁] / σ² = β (1−β) (μ₁ − μ₀)² / σ². A class mean
    of cosines is the cosine's product with the class's mean unembedding, so no value per token is needed.
    `variance` is that of the cosines over the vocabulary. Both are 0 where the contrast is, and the score where the
    neuron writes nothing.
    """
    effect = normalize(w_out, dim=1) @ classes.contrast.T  # (neurons, labels)
    score = classes.share * (1 - classes.share) * effect.square() / variance[:, None]
    return ClassScores(torch.where(variance[:, None] > 0, score, 0.0), effect)


def best_class_by_sign(scores: ClassScores, sign: int) -> tuple[np.ndarray, np.ndarray]:
    """Index and score of each neuron's best class of those that it raises (sign 1) or lowers (−1); score 0 if none."""
    score, index = torch.where(scores.effect * sign > 0, scores.score, 0.0).max(dim=1)
    return index.cpu().numpy(), score.cpu().numpy()


def neurons_of_role(circuits: pd.DataFrame, role: str) -> pd.DataFrame:
    """A role's neurons (`role_learned`); `label` and `label_score` become the class that the role is about.

    It is the best class that a prediction neuron raises, that a suppression neuron lowers, or either way for a
    partition neuron, however low its score.
    """
    own = circuits[circuits["role_learned"] == role]
    raises = own["raised_score"] >= own["lowered_score"] if role == "partition" else role == "prediction"
    label = np.where(raises, own["raised"], own["lowered"])
    score = np.where(raises, own["raised_score"], own["lowered_score"])
    return own.assign(role=role, label=label, label_score=score)


def example_neurons(circuits: pd.DataFrame, number: int) -> pd.DataFrame:
    """`number` neurons of each role with the largest kurtosis (partition: variance), first those with a class."""
    chosen = []
    for role in ROLES:
        own = neurons_of_role(circuits, role)
        by = "learned_var" if role == "partition" else "learned_kurt"
        own = own.assign(named=own["label_score"] > own["null_score"]).sort_values(["named", by], ascending=False)
        chosen.append(own.drop(columns="named").head(number))
    return pd.concat(chosen, ignore_index=True)


def extreme_tokens(effects: Float[np.ndarray, "vocabulary"], number: int) -> tuple[list[int], list[int]]:
    """Ids of the `number` tokens that a neuron raises most and of those that it lowers most, strongest first.

    Tokens without an effect (NaN, `tables.logit_effects`) are neither.
    """
    order = np.argsort(effects, kind="stable")[: np.isfinite(effects).sum()]  # NaN sorts last
    return order[::-1][:number].tolist(), order[:number].tolist()


def last_layers(layers: int) -> list[int]:
    """The last sixth of the depth, at least two layers: the paper's last 4 of 24 (figure 6c)."""
    return list(range(max(0, layers - max(2, layers // 6)), layers))


def role_counts(circuits: pd.DataFrame, column: str) -> pd.DataFrame:
    """Neurons of each role by seed and layer: columns seed, layer, and one per role."""
    counts = circuits.groupby(["seed", "layer", column], sort=False).size().unstack(fill_value=0)
    return counts.reindex(columns=ROLES, fill_value=0).reset_index().rename_axis(columns=None)


def layer_quantiles(circuits: pd.DataFrame, column: str, quantiles: Sequence[float]) -> pd.DataFrame:
    """Quantiles of a column within seed and layer, over seeds: columns layer, quantile, mean, low, high."""
    by_seed = circuits.groupby(["seed", "layer"])[column].quantile(list(quantiles))
    over = by_seed.rename_axis(["seed", "layer", "quantile"]).groupby(["layer", "quantile"])
    return over.agg(mean="mean", low="min", high="max").reset_index()
