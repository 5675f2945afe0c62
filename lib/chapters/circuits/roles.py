"""What neurons do to the next-token distribution, read from weights: roles and token classes (METHOD §6).

A neuron's direct effect on the logit of token v is its activation times w_out · W_U[:, v]. The shape of that effect over
the vocabulary makes it a prediction, suppression or partition neuron; how much of its variance a class of tokens explains
says what it predicts, suppresses or partitions. Random directions through the same W_U say what chance gives.
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
DIRECTIONS = 10_000  # random directions of the null
QUANTILE = 0.999  # of the null, above which a value is more than chance
NOT_IN_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}
ONE_WAY = (
    0.8  # cosine with the mean unembedding of such bytes from which a token counts as one of which nothing was learned
)


class Cuts(NamedTuple):
    """A neuron with more than `kurtosis` promotes or suppresses few tokens; one with more than `variance` splits many."""

    kurtosis: float
    variance: float


PUBLISHED_CUTS = Cuts(10.0, 0.005)  # arXiv 2401.12181, section 5.1 (kurtosis) and its published code (variance)
PUBLISHED_HIGH_KURTOSIS = {20: 130.8, 21: 142.2, 22: 207.2, 23: 339.2}  # GPT2-medium: layer → neurons, mean over seeds


def random_directions(number: int, d_model: int, random_seed: int) -> Float[Tensor, "number d_model"]:
    """Isotropic directions with mean zero over the residual stream, as processed writing weights have."""
    drawn = torch.randn(number, d_model, generator=torch.Generator().manual_seed(random_seed))
    return normalize(drawn - drawn.mean(dim=1, keepdim=True), dim=1)


def null_cuts(null: dict[str, Float[Tensor, "directions"]], quantile: float = QUANTILE) -> Cuts:
    """The cuts that one random direction in 1 / (1 − quantile) exceeds; `null` is `vocabulary_moments` of such directions."""
    kurtosis, variance = (float(np.quantile(null[name].numpy(), quantile)) for name in ("vocab_kurt", "vocab_var"))
    return Cuts(kurtosis, variance)


def roles(neurons: pd.DataFrame, cuts: Cuts) -> pd.Series:
    """Prediction, suppression, partition or none, from the columns vocab_kurt, vocab_skew and vocab_var.

    Kurtosis above its cut makes a prediction neuron if the skew is positive and a suppression neuron if it is
    negative; any other neuron with variance above its cut is a partition neuron.
    """
    peaked = neurons["vocab_kurt"] > cuts.kurtosis
    named = np.select(
        [
            peaked & (neurons["vocab_skew"] > 0),
            peaked & (neurons["vocab_skew"] < 0),
            neurons["vocab_var"] > cuts.variance,
        ],
        ROLES,
        NO_ROLE,
    )
    return pd.Series(named, neurons.index)


def unlearned(
    unit_unembedding: Float[Tensor, "d_model vocabulary"], pieces: Sequence[bytes]
) -> Bool[Tensor, "vocabulary"]:
    """The tokens of which a model has learned nothing but that they do not come: their unembeddings all point one way.

    The way is that of the bytes that UTF-8 does not have, which a byte-level BPE has tokens for and no text contains; `pieces` are the
    bytes of each token. None, where a vocabulary has no such bytes, or the model has not learned to make them unlikely.
    """
    never = [token for token, piece in enumerate(pieces) if len(piece) == 1 and piece[0] in NOT_IN_UTF8]
    if not never:
        return torch.zeros(unit_unembedding.shape[1], dtype=torch.bool)
    return normalize(unit_unembedding[:, never].mean(dim=1), dim=0) @ unit_unembedding > ONE_WAY


class ClassScores(NamedTuple):
    """How token classes explain logit effects: variance reduction, and mean inside the class minus outside."""

    score: Float[Tensor, "neurons labels"]
    effect: Float[Tensor, "neurons labels"]


def class_scores(
    w_out: Float[Tensor, "neurons d_model"],
    unit_unembedding: Float[Tensor, "d_model vocabulary"],
    variance: Float[Tensor, "neurons"],
    member: Bool[np.ndarray, "labels vocabulary"],
) -> ClassScores:
    """Variance reduction (METHOD §5) of cos(w_out, W_U[:, v]) by membership of v in each class.

    With β the class's share of the vocabulary, 1 − [(1−β) σ²₀ + β σ²₁] / σ² = β (1−β) (μ₁ − μ₀)² / σ², and a class
    mean of cosines is the cosine's product with the class's mean unembedding: no value per token is needed.
    `variance` is that of the cosines over the vocabulary. Score and effect are 0 where the class holds no token or
    every token, and the score where the neuron writes nothing. Tokens with which an embedding is padded are in no class.
    """
    inside = torch.from_numpy(member).to(unit_unembedding)  # (labels, vocabulary)
    inside = pad(inside, (0, unit_unembedding.shape[1] - inside.shape[1]))
    tokens = inside.shape[1]
    number = inside.sum(dim=1)  # (labels)
    sums = inside @ unit_unembedding.T  # (labels, d_model)
    rest = unit_unembedding.sum(dim=1) - sums
    contrast = sums / number[:, None] - rest / (tokens - number)[:, None]
    contrast = torch.where(((number > 0) & (number < tokens))[:, None], contrast, 0.0)
    effect = normalize(w_out, dim=1) @ contrast.T  # (neurons, labels)
    share = number / tokens
    score = share * (1 - share) * effect.square() / variance[:, None]
    return ClassScores(torch.where(variance[:, None] > 0, score, 0.0), effect)


def best_class(scores: ClassScores, sign: int) -> tuple[np.ndarray, np.ndarray]:
    """Index and score of the class that explains most of those that a neuron raises (sign 1) or lowers (sign −1).

    The score is 0 where there is no such class.
    """
    score, index = torch.where(scores.effect * sign > 0, scores.score, 0.0).max(dim=1)
    return index.numpy(), score.numpy()


def of_role(circuits: pd.DataFrame, role: str) -> pd.DataFrame:
    """A role's neurons by the calibrated cuts, with the class that the role is about as `label` and `label_score`.

    A prediction neuron's class is the best of those that it raises, a suppression neuron's the best of those that it
    lowers, a partition neuron's the better of the two, however low the score.
    """
    own = circuits[circuits["role_calibrated"] == role]
    raises = own["raised_score"] >= own["lowered_score"] if role == "partition" else role == "prediction"
    label = np.where(raises, own["raised"], own["lowered"])
    score = np.where(raises, own["raised_score"], own["lowered_score"])
    return own.assign(role=role, label=label, label_score=score)


def example_neurons(circuits: pd.DataFrame, number: int) -> pd.DataFrame:
    """For each role the `number` neurons of largest kurtosis (partition: variance), those with a class beyond chance first."""
    chosen = []
    for role in ROLES:
        own = of_role(circuits, role)
        by = "vocab_var" if role == "partition" else "vocab_kurt"
        own = own.assign(named=own["label_score"] > own["null_score"]).sort_values(["named", by], ascending=False)
        chosen.append(own.drop(columns="named").head(number))
    return pd.concat(chosen, ignore_index=True)


def extreme_tokens(effects: Float[np.ndarray, "vocabulary"], number: int) -> tuple[list[int], list[int]]:
    """Ids of the `number` tokens that a neuron promotes most and of those that it suppresses most, strongest first."""
    order = np.argsort(effects, kind="stable")
    return order[::-1][:number].tolist(), order[:number].tolist()


def last_layers(layers: int) -> list[int]:
    """The last sixth of the depth, two layers at least: the paper's last 4 of 24 (figure 6c)."""
    return list(range(max(0, layers - max(2, layers // 6)), layers))


def role_counts(circuits: pd.DataFrame, column: str) -> pd.DataFrame:
    """Neurons of each role by seed and layer: columns seed, layer, and one per role."""
    counts = circuits.groupby(["seed", "layer", column], sort=False).size().unstack(fill_value=0)
    return counts.reindex(columns=ROLES, fill_value=0).reset_index().rename_axis(columns=None)


def layer_quantiles(circuits: pd.DataFrame, column: str, quantiles: Sequence[float]) -> pd.DataFrame:
    """Quantiles of a column within seed and layer, over seeds: columns layer, quantile, mean, low, high."""
    by_seed = (
        circuits.groupby(["seed", "layer"])[column].quantile(list(quantiles)).rename_axis(["seed", "layer", "quantile"])
    )
    over = by_seed.groupby(["layer", "quantile"])
    return over.agg(mean="mean", low="min", high="max").reset_index()
