"""Families of neurons: from grouped moments to every neuron's best explanation among many labels (METHOD §5).

The score of a binary label is the share of a neuron's variance that the label explains. A label is chosen on the even
blocks of the text and scored on the odd ones; what random directions of the same layer reach by the same
choice is the level that a neuron must pass to be called explained.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix
from torch import Tensor

from lib.base.errors import InputError
from lib.labels.labels import LabelSet

UNEXPLAINED = "unexplained"
ALL_TOKENS = "token"  # the grouping in which every counted token has a group
EVEN, ODD = 0, 1  # labels are chosen on even blocks, scored on odd ones
FEWEST_TOKENS = 10  # a label with fewer labelled tokens in one half, on either side, is not scored
QUANTILE = 0.95  # of the best held-out scores of a layer's rotated neurons: the level of chance
NEAR_TIE = 0.9  # a runner-up of at least this share of the best score is a near-tie
TOP_SHARE = 0.05  # the neurons of largest excess that are shown beside the universal ones

# Gurnee et al., arXiv 2401.12181, section 4 and published tables: GPT2-medium's universal neurons
PUBLISHED_UNIVERSAL, PUBLISHED_UNEXPLAINED, PUBLISHED_WELL_EXPLAINED = 1211, 283, 180
PUBLISHED_LOW, PUBLISHED_HIGH = 0.05, 0.5  # scores below and from which the two counts are taken
# and of universal neurons of its models (METHOD §5): best scores, layers (where it names the model, of how many), numbers
PUBLISHED_BEST = {"unigram": ("the word “to”", 0.987), "syntax": ("negation", 0.629)}
PUBLISHED_LAYERS = {
    "unigram": "mostly in layers 0 and 1",
    "previous_token": "layers 4 to 6 of 24",
    "position": "layers 0 to 2",
}
LETTERS, PUBLISHED_LETTERS, PUBLISHED_POSITION = 26, 18, 20

Statistics = Sequence[Mapping[str, Tensor]]  # one seed's layers, each as `GroupedMoments.compact` gives it


@dataclass(frozen=True)
class Rotation:
    """One random rotation of each layer's neurons and what it makes of their variances (METHOD §2), raw activation units."""

    turn: Float[Tensor, "layers n n"]
    deviation: Float[Tensor, "layers n"]  # of the rotated neurons over all counted tokens


@dataclass(frozen=True)
class Scores:
    """`value` (halves, labels, neurons of all layers), 0 where not scored. On the odd half `labelled` (labels, total) is
    the score among the tokens that have a label of this kind, and `difference` (labels, total) the mean z of the tokens
    with the label minus that of all others."""

    value: Float[Tensor, "2 labels total"]
    labelled: Float[Tensor, "labels total"]
    difference: Float[Tensor, "labels total"]


def variance_reduction(
    share: Float[Tensor, "labels 1"], difference: Float[Tensor, "labels neurons"], variance: Float[Tensor, "neurons"]
) -> Float[Tensor, "labels neurons"]:
    """METHOD §5 from group means alone: 1 − [(1−β)σ²(v|0) + βσ²(v|1)] / σ²(v) = β(1−β)(μ₁ − μ₀)² / σ²(v).

    `difference` is μ₁ − μ₀. The two sides are equal because σ² is the variance within the classes plus that between
    them. 0 for a neuron that does not vary.
    """
    return torch.where(variance > 0, share * (1 - share) * difference**2 / variance.clamp(min=1e-30), 0).clamp(max=1)


def check_statistics(statistics: Statistics, sets: Sequence[LabelSet]) -> None:
    """InputError if a label set speaks of groups that the statistics do not have."""
    for one in sets:
        key = f"{one.grouping}.count"
        if key not in statistics[0]:
            raise InputError(
                f"labels over '{one.grouping}' cannot be scored: the statistics have no such grouping; they were made by an older "
                "version, or before lib/text/domains.py named the text's domains; `make clean` deletes them."
            )
        groups = statistics[0][key].shape[1]
        if one.member.shape[1] != groups:
            raise InputError(
                f"labels over '{one.grouping}' speak of {one.member.shape[1]} groups, but the statistics have {groups}; "
                "they were made for another text or tokeniser, or by an older version; `make clean` deletes them."
            )


@dataclass(frozen=True)
class _OnLabel:
    """One layer and half: what the labels of one set are worth over some tokens."""

    share: Float[Tensor, "labels 1"]  # β, 0 where not scored
    difference: Float[Tensor, "labels neurons"]  # μ₁ − μ₀
    variance: Float[Tensor, "neurons"]

    @classmethod
    def of(cls, mean: Tensor, positive: Tensor, own: Mapping[str, Tensor], tokens_of: str, half: int) -> "_OnLabel":
        """From the means on each label and the tokens that carry it, against all tokens of a grouping."""
        tokens = own[f"{tokens_of}.count"][half].sum()
        scored = (positive >= FEWEST_TOKENS) & (tokens - positive >= FEWEST_TOKENS)
        share = torch.where(scored, positive / tokens.clamp(min=1), 0)
        center, variance = (own[f"{tokens_of}.{name}"][half].float() for name in ("center", "variance"))
        return cls(share, (mean - center) / (1 - share) * scored, variance)

    def score(self) -> Float[Tensor, "labels neurons"]:
        return variance_reduction(self.share, self.difference, self.variance)


@dataclass(frozen=True)
class _Weights:
    """How the means on a set's labels come from the means of groups, in one half of the text."""

    average: Tensor  # (labels, groups), sparse, rows sum to 1
    positive: Float[Tensor, "labels 1"]  # tokens that carry the label

    @classmethod
    def of(cls, one: LabelSet, count: Int[Tensor, "groups"]) -> "_Weights":
        weights = csr_matrix(one.member.astype(np.float32)).multiply(count.numpy()[None]).tocsr()
        positive = np.asarray(weights.sum(1), dtype=np.float32)
        weights = weights.multiply(1 / positive.clip(1)).tocsr()
        parts = (torch.from_numpy(np.array(part)) for part in (weights.indptr, weights.indices))
        values = torch.from_numpy(weights.data.astype(np.float32))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse")  # beta since torch 1.10; tested here against fp64
            return cls(torch.sparse_csr_tensor(*parts, values, weights.shape), torch.from_numpy(positive))


def score_labels(
    statistics: Statistics, sets: Sequence[LabelSet], rotation: Rotation
) -> tuple[Scores, Float[Tensor, "2 labels total"]]:
    """Scores of all labels, in the order of `sets`, for all neurons of one seed; and values for its rotated neurons.

    All scores are over all counted tokens, so that labels of different kinds compare: a label is 0 where its kind is
    not known, as syntax is outside the English prose. A rotated neuron's mean on a label is a rotation of the neurons'
    means; its variance in a half of the text is its variance over the text times the ratio that the neurons it
    mixes have.
    """
    check_statistics(statistics, sets)
    layers, neurons = len(statistics), len(statistics[0]["deviation"])
    weights = [[_Weights.of(one, statistics[0][f"{one.grouping}.count"][half]) for half in (EVEN, ODD)] for one in sets]
    labels = sum(len(one.labels) for one in sets)
    value, null = (torch.zeros(2, labels, layers * neurons) for _ in range(2))
    labelled, difference = (torch.zeros(labels, layers * neurons) for _ in range(2))
    for layer in range(layers):
        own, columns, start = statistics[layer], slice(layer * neurons, (layer + 1) * neurons), 0
        turn, deviation = rotation.turn[layer].float(), own["deviation"].float()
        mixed = turn**2 * deviation**2  # what each neuron adds to a rotated one's variance, covariances apart
        for one, by_half in zip(sets, weights, strict=True):
            rows = slice(start, start + len(one.labels))
            start = rows.stop
            for half in (EVEN, ODD):
                mean = by_half[half].average @ own[f"{one.grouping}.mean"][half].float()
                on_label = _OnLabel.of(mean, by_half[half].positive, own, ALL_TOKENS, half)
                value[half, rows, columns] = on_label.score()
                ratio = (mixed @ on_label.variance) / mixed.sum(1).clamp(min=1e-30)
                variance = rotation.deviation[layer].float() ** 2 * ratio
                turned = (on_label.difference * deviation) @ turn.T
                null[half, rows, columns] = variance_reduction(on_label.share, turned, variance)
            difference[rows, columns] = on_label.difference  # of the odd half
            labelled[rows, columns] = _OnLabel.of(mean, by_half[ODD].positive, own, one.grouping, ODD).score()
    return Scores(value, labelled, difference), null


def label_table(sets: Sequence[LabelSet], own: Mapping[str, Tensor]) -> pd.DataFrame:
    """One row per label in the order of the scores: label, family, kind, grouping, groups, tokens of both halves."""
    parts = []
    for one in sets:
        count = own[f"{one.grouping}.count"].numpy()
        parts.append(
            one.labels.assign(
                grouping=one.grouping,
                groups=one.member.sum(1),
                tokens_chosen=one.member @ count[EVEN],
                tokens_scored=one.member @ count[ODD],
                share=(one.member @ count.sum(0)) / max(1, int(own[f"{ALL_TOKENS}.count"].sum())),
            )
        )
    return pd.concat(parts, ignore_index=True)


# ---------------------------------------------------------------- choice and assignment


@dataclass(frozen=True)
class Choice:
    """Per family and neuron the label chosen on the even half; arrays (families, total)."""

    families: tuple[str, ...]
    label: Int[np.ndarray, "families total"]  # row of the label table
    chosen_score: Float[np.ndarray, "families total"]  # on the even half
    score: Float[np.ndarray, "families total"]  # on the odd half

    def best(self) -> Float[np.ndarray, "total"]:
        """The best held-out score over families."""
        return self.score.max(0)


def choose(value: Float[Tensor, "2 labels total"], families: Sequence[str]) -> Choice:
    """For each family the label that is best on the even half, with its scores on both; `families` names each label's."""
    names = tuple(dict.fromkeys(families))
    label, even, odd = [], [], []
    for name in names:
        rows = torch.tensor([index for index, one in enumerate(families) if one == name])
        best, at = value[EVEN, rows].max(0)
        label.append(rows[at])
        even.append(best)
        odd.append(value[ODD, rows].gather(0, at[None])[0])
    return Choice(names, *(torch.stack(part).numpy() for part in (label, even, odd)))


def chance_level(null: Choice, layers: int) -> Float[np.ndarray, "layers"]:
    """Per layer the QUANTILE of the best held-out scores that its rotated neurons reach with the same labels."""
    return np.quantile(null.best().reshape(layers, -1), QUANTILE, axis=1)


def assign(choice: Choice, level: Float[np.ndarray, "layers"], labels: pd.DataFrame, scores: Scores) -> pd.DataFrame:
    """One row per neuron of a seed: its family, the chosen label, scores on both halves, and the runner-up.

    `family` is that of the best held-out score, or "unexplained" where that does not pass the level of the neuron's
    layer (`chance`); `best_family` and `label` are given in either case. `labelled_score` and `difference` as in
    `Scores`. The runner-up is the best label of another family. `score_<family>` and `label_<family>` are the
    held-out score and the label chosen within each family. `first_family` is that of the best score on the half that chooses,
    `first_score`, and `first_held_out` what that family's label scores on the other half.
    """
    total = choice.score.shape[1]
    neurons = total // len(level)
    order = np.argsort(-choice.score, axis=0, kind="stable")
    everyone = np.arange(total)
    names = np.array(choice.families)
    table = pd.DataFrame({"layer": everyone // neurons, "neuron": everyone % neurons})
    first = order[0]
    chosen = choice.label[first, everyone]
    score = choice.score[first, everyone]
    chance = level[table["layer"]]
    table["family"] = np.where(score > chance, names[first], UNEXPLAINED)
    table["best_family"], table["label"] = names[first], labels["label"].to_numpy()[chosen]
    table["kind"] = labels["kind"].to_numpy()[chosen]
    table["chosen_score"], table["score"] = choice.chosen_score[first, everyone], score
    table["gap"] = table["chosen_score"] - table["score"]
    table["chance"] = chance
    table["labelled_score"] = scores.labelled.numpy()[chosen, everyone]
    table["difference"] = scores.difference.numpy()[chosen, everyone]
    if len(names) > 1:
        second = order[1]
        runner = choice.label[second, everyone]
        table["runner_up_family"], table["runner_up_label"] = names[second], labels["label"].to_numpy()[runner]
        table["runner_up_score"] = choice.score[second, everyone]
        table["near_tie"] = (score > chance) & (table["runner_up_score"] >= NEAR_TIE * score)
    before = choice.chosen_score.argmax(axis=0)
    table["first_family"], table["first_score"] = names[before], choice.chosen_score[before, everyone]
    table["first_held_out"] = choice.score[before, everyone]
    for index, name in enumerate(choice.families):
        table[f"score_{name}"], table[f"label_{name}"] = (
            choice.score[index],
            labels["label"].to_numpy()[choice.label[index]],
        )
    return table


def position_information(own: Mapping[str, Tensor]) -> Float[np.ndarray, "neurons"]:
    """Mutual information in bits of [activation > 0] and position, per neuron of a layer (METHOD §5), both halves together.

    The estimate is positive by about (positions − 1) / (2 ln 2 · tokens) for a neuron that ignores position;
    that much is taken off.
    """
    count = own["position.count"].double()  # (halves, positions)
    active = (own["position.active"].double() * count[:, :, None]).sum(0)  # (positions, neurons)
    at = count.sum(0)
    tokens = float(at.sum())
    by_position = _entropy(active / at.clamp(min=1)[:, None])
    information = _entropy(active.sum(0) / tokens) - (at[:, None] / tokens * by_position).sum(0)
    bias = (int((at > 0).sum()) - 1) / (2 * np.log(2) * tokens)
    return (information - bias).clamp(min=0).numpy()


def _entropy(share: Tensor) -> Tensor:
    """Entropy in bits of an event of this probability."""
    return -(torch.xlogy(share, share) + torch.xlogy(1 - share, 1 - share)) / np.log(2)


def seed_families(
    statistics: Statistics, sets: Sequence[LabelSet], rotation: Rotation
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(families, chance) of one seed: `assign`'s table with `position_information`, and per layer the level of chance
    with quantiles of the rotated neurons' best held-out score."""
    scores, null = score_labels(statistics, sets, rotation)
    families = [name for one in sets for name in one.labels["family"]]
    labels = label_table(sets, statistics[0])
    layers = len(statistics)
    turned = choose(null, families)
    level = chance_level(turned, layers)
    table = assign(choose(scores.value, families), level, labels, scores)
    table["position_information"] = np.concatenate([position_information(statistics[layer]) for layer in range(layers)])
    best = turned.best().reshape(layers, -1)
    chance = pd.DataFrame(
        {"layer": range(layers), "chance": level, "median": np.median(best, 1), "largest": best.max(1)}
    )
    return table, chance
