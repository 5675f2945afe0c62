"""Families of neurons: from grouped moments to every neuron's best explanation among many labels (docs/method.md §5).

A binary label's score is the share of a neuron's variance that it explains. Labels are chosen on the even blocks of the
text and scored on the odd ones. A neuron is explained if it scores above what rotated neurons of its layer reach by the
same choice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.labels.labels import LabelSet

UNEXPLAINED = "unexplained"
ALL_TOKENS = "token_labels"  # the table in which every counted token has a group
EVEN, ODD = 0, 1  # labels are chosen on even blocks, scored on odd ones
FEWEST_TOKENS = 10  # a label needs as many tokens with it, and without it, in each half
CHANCE_QUANTILE = 0.95  # of the best held-out scores of a layer's rotated neurons
NEAR_TIE_RATIO = 0.9  # of the runner-up's score to the best

# Gurnee et al., arXiv 2401.12181, section 4 and published tables: GPT2-medium's universal neurons
PUBLISHED_UNIVERSAL, PUBLISHED_UNEXPLAINED, PUBLISHED_WELL_EXPLAINED = 1211, 283, 180
PUBLISHED_LOW, PUBLISHED_HIGH = 0.05, 0.5  # the two counts are of scores below and from here
# and of universal neurons of its models (docs/method.md §5): best scores, number of position neurons
PUBLISHED_BEST = {"unigram": ("the word “to”", 0.987), "syntax": ("negation", 0.629)}
PUBLISHED_POSITION = 20
LETTERS = 26

# one seed's layers, each as `GroupedMoments.compact` gives it, with a row for each label (`families.statistics`)
Statistics = Sequence[Mapping[str, Tensor]]


@dataclass(frozen=True)
class Scores:
    """`value` is the score in each half, 0 where not scored. On the odd half, `labelled` is the score among tokens that
    have a group, `difference` the mean z with the label minus that without. `total`: neurons of all layers."""

    value: Float[Tensor, "2 labels total"]
    labelled: Float[Tensor, "labels total"]
    difference: Float[Tensor, "labels total"]


def variance_reduction(
    share: Float[Tensor, "labels 1"], difference: Float[Tensor, "labels neurons"], variance: Float[Tensor, "neurons"]
) -> Float[Tensor, "labels neurons"]:
    """The score from group means alone: 1 − [(1−β)σ²(v|0) + βσ²(v|1)] / σ²(v) = β(1−β)(μ₁ − μ₀)² / σ²(v), §5.

    `share` is β, `difference` is μ₁ − μ₀. 0 for a neuron that does not vary.
    """
    return torch.where(variance > 0, share * (1 - share) * difference**2 / variance.clamp(min=1e-30), 0).clamp(max=1)


@dataclass(frozen=True)
class _Contrast:
    """Labels of one set in one layer and half: tokens with the label against those without."""

    share: Float[Tensor, "labels 1"]  # β, 0 where not scored
    difference: Float[Tensor, "labels neurons"]  # μ₁ − μ₀
    variance: Float[Tensor, "neurons"]

    @classmethod
    def of(cls, one: LabelSet, own: Mapping[str, Tensor], tokens_of: str, half: int) -> "_Contrast":
        """From the means on each label and its number of tokens, against all tokens of a table."""
        mean, labelled = own[f"{one.table}.mean"][half].float(), own[f"{one.table}.count"][half, :, None]
        tokens = own[f"{tokens_of}.tokens"][half]
        scored = (labelled >= FEWEST_TOKENS) & (tokens - labelled >= FEWEST_TOKENS)
        share = torch.where(scored, labelled / tokens.clamp(min=1), 0)
        center, variance = (own[f"{tokens_of}.{name}"][half].float() for name in ("center", "variance"))
        return cls(share, (mean - center) / (1 - share) * scored, variance)

    def score(self) -> Float[Tensor, "labels neurons"]:
        return variance_reduction(self.share, self.difference, self.variance)


def score_labels(statistics: Statistics, sets: Sequence[LabelSet]) -> Scores:
    """Scores of all labels, in the order of `sets`, for one seed's neurons.

    Scores are over all counted tokens, so that kinds of labels compare; a label is 0 where its kind is unknown.
    """
    layers, neurons = len(statistics), len(statistics[0]["deviation"])
    labels = sum(len(one.labels) for one in sets)
    value = torch.zeros(2, labels, layers * neurons)
    labelled_score, difference = (torch.zeros(labels, layers * neurons) for _ in range(2))
    for layer in range(layers):
        own, columns, start = statistics[layer], slice(layer * neurons, (layer + 1) * neurons), 0
        for one in sets:
            rows = slice(start, start + len(one.labels))
            start = rows.stop
            for half in (EVEN, ODD):
                contrast = _Contrast.of(one, own, ALL_TOKENS, half)
                value[half, rows, columns] = contrast.score()
            difference[rows, columns] = contrast.difference  # of the odd half, the last
            labelled_score[rows, columns] = _Contrast.of(one, own, one.table, ODD).score()
    return Scores(value, labelled_score, difference)


def label_table(sets: Sequence[LabelSet], own: Mapping[str, Tensor]) -> pd.DataFrame:
    """One row per label in the order of the scores: label, family, kind, grouping, groups, tokens of both halves."""
    total, parts = max(1, int(own[f"{ALL_TOKENS}.tokens"].sum())), []
    for one in sets:
        even, odd = own[f"{one.table}.count"].numpy()
        columns = {"tokens_chosen": even, "tokens_scored": odd, "share": (even + odd) / total}
        parts.append(one.labels.assign(grouping=one.grouping, groups=one.member.sum(1), **columns))
    return pd.concat(parts, ignore_index=True)


# ---------------------------------------------------------------- choice and assignment


@dataclass(frozen=True)
class Choice:
    """Per family and neuron the label that is best on the even half."""

    families: tuple[str, ...]
    label: Int[np.ndarray, "families total"]  # row of the label table
    chosen_score: Float[np.ndarray, "families total"]  # on the even half
    score: Float[np.ndarray, "families total"]  # on the odd half


def choose(value: Float[Tensor, "2 labels total"], families: Sequence[str]) -> Choice:
    """For each family the label that is best on the even half, with its scores on both; `families` has each label's."""
    names = tuple(dict.fromkeys(families))
    label, even, odd = [], [], []
    for name in names:
        rows = torch.tensor([index for index, one in enumerate(families) if one == name])
        best, at = value[EVEN, rows].max(0)
        label.append(rows[at])
        even.append(best)
        odd.append(value[ODD, rows].gather(0, at[None])[0])
    return Choice(names, *(torch.stack(part).numpy() for part in (label, even, odd)))


def assign(choice: Choice, chance: Float[np.ndarray, "layers"], labels: pd.DataFrame, scores: Scores) -> pd.DataFrame:
    """One row per neuron of a seed: its family, the chosen label, scores on both halves, and the runner-up.

    `family` is `best_family`, that of the best held-out score, or "unexplained" where that score does not pass the
    layer's `chance` level. The runner-up is the best label of another family. `score_<family>` and `label_<family>`
    are the held-out score and the label within each family. `first_family` has the best score on the even half,
    `first_score`; its label scores `first_held_out` on the odd half.
    """
    everyone = np.arange(choice.score.shape[1])
    layer, neuron = np.divmod(everyone, len(everyone) // len(chance))
    names, label_names = np.array(choice.families), labels["label"].to_numpy()
    ranked = np.argsort(-choice.score, axis=0, kind="stable")
    best, first = ranked[0], choice.chosen_score.argmax(axis=0)
    chosen, score = choice.label[best, everyone], choice.score[best, everyone]
    columns = {
        "layer": layer,
        "neuron": neuron,
        "family": np.where(score > chance[layer], names[best], UNEXPLAINED),
        "best_family": names[best],
        "label": label_names[chosen],
        "kind": labels["kind"].to_numpy()[chosen],
        "chosen_score": choice.chosen_score[best, everyone],
        "score": score,
        "gap": choice.chosen_score[best, everyone] - score,
        "chance": chance[layer],
        "labelled_score": scores.labelled.numpy()[chosen, everyone],
        "difference": scores.difference.numpy()[chosen, everyone],
    }
    if len(names) > 1:
        second = ranked[1]
        runner_up = choice.score[second, everyone]
        columns |= {
            "runner_up_family": names[second],
            "runner_up_label": label_names[choice.label[second, everyone]],
            "runner_up_score": runner_up,
            "near_tie": (score > chance[layer]) & (runner_up >= NEAR_TIE_RATIO * score),
        }
    columns |= {
        "first_family": names[first],
        "first_score": choice.chosen_score[first, everyone],
        "first_held_out": choice.score[first, everyone],
    }
    for name, scores_of, label in zip(choice.families, choice.score, choice.label, strict=True):
        columns |= {f"score_{name}": scores_of, f"label_{name}": label_names[label]}
    return pd.DataFrame(columns)


def position_information(own: Mapping[str, Tensor]) -> Float[np.ndarray, "neurons"]:
    """Mutual information in bits of [activation > 0] and position, per neuron of a layer (docs/method.md §5).

    Without the bias of the estimate, (positions − 1) / (2 ln 2 · tokens) for a neuron that ignores position.
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
    statistics: Statistics, rotated: Statistics, sets: Sequence[LabelSet]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(families, chance) of one seed: `assign`'s table with `position_information`, and per layer the chance level
    with the median and the largest of its rotated neurons' best held-out scores."""
    families = [name for one in sets for name in one.labels["family"]]
    layers = range(len(statistics))
    best = choose(score_labels(rotated, sets).value, families).score.max(0).reshape(len(layers), -1)
    level, scores = np.quantile(best, CHANCE_QUANTILE, axis=1), score_labels(statistics, sets)
    table = assign(choose(scores.value, families), level, label_table(sets, statistics[0]), scores)
    table["position_information"] = np.concatenate([position_information(statistics[layer]) for layer in layers])
    columns = {"layer": layers, "chance": level, "median": np.median(best, 1), "largest": best.max(1)}
    return table, pd.DataFrame(columns)
