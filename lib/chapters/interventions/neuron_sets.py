"""What a model loses without a layer's universal neurons: sets of neurons ablated together, beside random sets.

From per-neuron tables to sets, from sets to changes of the prediction, and from these to a set's rank among the random
ones of its layer. High-power neurons change the prediction strongly, universal or not, so the random sets have the
power of the set. docs/method.md §7, causal importance (arXiv 2508.00903).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lib.chapters.interventions.engine import Fix, run
from lib.chapters.interventions.single_neurons import TILE, mean_and_error, predicting
from lib.kernels.predictions import Cases, prediction_statistics, product_dtype
from lib.models.folded import full_precision
from lib.models.processed import Processed

UNIVERSAL, RANDOM = "universal", "random"
KINDS = ("mean", "zero")
OUTCOMES = ("loss_change", "kl", "residual_power")
DRAWS = 10
TOLERANCE = 0.05  # of a random set's power, and in the first layer of its information on the position
MATCHED = 0.15  # how far off a random set's power may be to be compared
STEPS = 2000  # exchanges of one neuron on the way to it


class NeuronSet(NamedTuple):
    """Neurons of one layer that are ablated together; `draw` counts the random sets of a layer.

    `power` is the sum of their powers, `information` that of their position information, NaN where unknown.
    """

    layer: int
    group: str  # UNIVERSAL, RANDOM, or the family of a part of the first layer's universal neurons
    draw: int
    neurons: tuple[int, ...]
    power: float = np.nan
    information: float = np.nan


@full_precision()
def single_powers(
    model: Processed,
    blocks: tuple[Int[Tensor, "blocks context"], Bool[Tensor, "blocks context"]],
    means: Float[Tensor, "layers neurons"],
) -> Float[Tensor, "layers neurons"]:
    """Mean (a − `means`)² ‖w_out‖² of each neuron: the power of what its own mean ablation adds to the residual stream.

    On the tokens that `ablations` measures: a neuron that fires rarely may not fire on them at all.
    """
    tokens, measured = blocks[0].to(model.device), predicting(blocks[1]).to(model.device)
    means = means.to(model.device)
    squares = torch.zeros_like(means, dtype=torch.float64)
    for part, some in zip(tokens.split(model.batch), measured.split(model.batch), strict=True):
        trace = run(model, part)
        for layer, mean in enumerate(means):
            activation = model.neuron_activations(trace.middle[layer][some], layer, slice(None))
            squares[layer] += (activation - mean).square().sum(0).double()
    norms = torch.stack([block.w_out.square().sum(1) for block in model.blocks])
    return (squares / measured.sum() * norms).cpu()


def matched_set(
    values: Float[np.ndarray, "neurons measures"],
    target: Float[np.ndarray, "measures"],
    size: int,
    random: np.random.Generator,
) -> Int[np.ndarray, "size"]:
    """`size` random rows whose sums of `values` are within TOLERANCE of `target`, or the nearest that were found.

    A random set is changed step by step: a random member is replaced by a random outsider that brings the measure that
    is farthest off nearer. A target is reached relative to itself, or to the sum of an average set where that is larger
    and the measure is not the first.
    """
    scale = np.maximum(target, np.append(0.0, size * values[:, 1:].mean(0))).clip(1e-30)
    order = random.permutation(len(values))
    inside, outside = order[:size], order[size:]
    for _ in range(STEPS):
        total = values[inside].sum(0)
        distance = np.abs((total - target) / scale).max()
        if distance <= TOLERANCE:
            break
        place = random.integers(size)
        changed = total - values[inside[place]] + values[outside]
        nearer = np.flatnonzero(np.abs((changed - target) / scale).max(1) < distance)
        if len(nearer):
            other = random.choice(nearer)
            inside[place], outside[other] = outside[other], inside[place]
    return inside


def neuron_sets(neurons: pd.DataFrame, random_seed: int, draws: int = DRAWS) -> list[NeuronSet]:
    """One seed's sets: each layer's universal neurons, up to `draws` random sets beside them, and the first layer's
    universal neurons by family.

    `neurons` has layer, neuron, is_universal, dead, power (`single_powers`), position_information and family, the last
    two NaN where unknown. Random sets are as large, distinct, of live neurons that are not universal, and match the
    set's power; in the first layer also its information on the position. A set larger than half of those neurons is
    left out, since its random sets would nearly coincide.
    """
    random, sets = np.random.default_rng(random_seed), []
    measured = neurons.rename(columns={"position_information": "information"})
    for layer, own in measured[~measured["dead"]].groupby("layer"):
        chosen, rest = own[own["is_universal"]], own[~own["is_universal"]]
        if not 0 < 2 * len(chosen) <= len(rest):
            continue
        known = ["power", "information"] if layer == 0 and own["information"].notna().all() else ["power"]
        values, target = rest[known].to_numpy(float), chosen[known].to_numpy(float).sum(0)
        drawn = {}  # neurons → rows
        for _ in range(3 * draws):
            if len(drawn) < draws:
                rows = np.sort(matched_set(values, target, len(chosen), random))
                drawn[tuple(rest["neuron"].iloc[rows])] = rows
        sets.append(_set(int(layer), UNIVERSAL, 0, chosen))
        sets += [_set(int(layer), RANDOM, draw, rest.iloc[rows]) for draw, rows in enumerate(drawn.values())]
        if layer == 0 and chosen["family"].nunique() > 1:
            sets += [_set(0, family, 0, members) for family, members in chosen.groupby("family")]
    return sets


def _set(layer: int, group: str, draw: int, members: pd.DataFrame) -> NeuronSet:
    sums = (float(members[name].sum(skipna=False)) for name in ("power", "information"))
    return NeuronSet(layer, group, draw, tuple(sorted(map(int, members["neuron"]))), *sums)


class _UnchangedPredictions:
    """The unchanged run's predictions on some tokens, and how far changed ones are from them."""

    def __init__(self, model: Processed, final: Float[Tensor, "tokens d_model"], target: Int[Tensor, "tokens"]):
        self.model, self.target, self.normalised = model, target, model.normalise(final)
        self.logits = torch.addmm(model.unembedding_bias, self.normalised, model.unembedding)
        self.coarse = model.unembedding.to(product_dtype(model.unembedding))
        self.likely = self.logits.argmax(1)
        self.loss = self._losses(torch.zeros_like(self.normalised))
        expected = [logits.softmax(-1) @ model.unembedding.T for logits in self.logits.split(TILE)]
        self.beyond = model.unembedding.T[target] - torch.cat(
            expected
        )  # the target's unembedding less the expected one

    def changes(
        self, final: Float[Tensor, "tokens d_model"]
    ) -> tuple[Float[Tensor, "tokens"], Float[Tensor, "tokens"]]:
        """Change of the loss, and KL(unchanged ‖ changed), in nats.

        With p the unchanged and q the changed prediction, l their logits and t the target, KL = Σ p (log p − log q) is
        Δloss + Δl(t) − Σ p Δl; and since logits are linear in the normalised residual stream, so is Δl.
        """
        moved = self.model.normalise(final) - self.normalised
        loss = self._losses(moved) - self.loss
        return loss, loss + (moved * self.beyond).sum(-1)

    def _losses(self, moved: Float[Tensor, "tokens d_model"]) -> Float[Tensor, "tokens"]:
        """Each token's loss where its normalised residual stream is moved."""
        constants, parts = self.logits.new_zeros(3, self.logits.shape[1]), []
        tiles = (values.split(TILE) for values in (moved, self.logits, self.target, self.likely))
        for rows, logits, target, likely in zip(*tiles, strict=True):
            each, one = torch.arange(len(rows), device=rows.device), torch.ones_like(rows[:, 0])
            cases = Cases(each, each, one, one, torch.zeros_like(one))
            effects = rows.to(self.coarse.dtype) @ self.coarse
            parts.append(prediction_statistics(logits, effects, cases, constants, target, likely)[:, 0])
        return torch.cat(parts)


@full_precision()
def ablations(
    model: Processed,
    blocks: tuple[Int[Tensor, "blocks context"], Bool[Tensor, "blocks context"]],
    sets: Sequence[NeuronSet],
    held: Float[Tensor, "layers neurons"],
    progress: Callable = lambda chunks: chunks,
) -> pd.DataFrame:
    """One row per set: all its neurons held at their values in `held`, in one run.

    `blocks` is tokens and the mask of those that count. Columns layer, group, draw, neurons (how many), power,
    information, tokens, blocks, and means over counted tokens with their standard errors over blocks (`_error`): change
    of loss and KL(unchanged ‖ ablated), in nats, and `residual_power`, the squared length of what the ablation adds to
    the residual stream behind its layer.
    """
    tokens, measured = blocks[0].to(model.device), predicting(blocks[1]).to(model.device)
    sums = torch.zeros(len(tokens), len(sets), len(OUTCOMES), dtype=torch.float64, device=model.device)
    for start in progress(range(0, len(tokens), model.batch)):
        part, some = (one[start : start + model.batch] for one in (tokens, measured))
        block = start + some.nonzero()[:, 0]
        unchanged = run(model, part)
        predictions = _UnchangedPredictions(model, unchanged.final[some], part.roll(-1, 1)[some])
        for index, one in enumerate(sets):
            fixes = [Fix(one.layer, neuron, float(held[one.layer, neuron])) for neuron in one.neurons]
            ablated = run(model, part, fixes, unchanged)
            added = (ablated.before[one.layer + 1] - unchanged.before[one.layer + 1])[some]
            found = torch.stack([*predictions.changes(ablated.final[some]), added.square().sum(-1)], 1)
            sums[:, index].index_add_(0, block, found.double())
    number = measured.sum(1).double().cpu()
    mean, error = mean_and_error(sums.cpu(), number)
    table = pd.DataFrame([one._replace(neurons=len(one.neurons)) for one in sets], columns=NeuronSet._fields)
    table = table.assign(tokens=int(number.sum()), blocks=len(tokens))
    for index, outcome in enumerate(OUTCOMES):
        table[outcome], table[f"{outcome}_error"] = mean[:, index].numpy(), error[:, index].numpy()
    return table


def comparisons(table: pd.DataFrame) -> pd.DataFrame:
    """One row per seed, kind and layer: the universal neurons beside the random sets whose power is within MATCHED of
    theirs. A layer without any is left out: no other neurons have this power.

    `table` has the columns of `ablations`, seed and kind. Columns seed, kind, layer, neurons, draws, tokens, blocks;
    `power_low` and `power_high`, the smallest and largest `power` of a random set over that of the set; and for
    each of OUTCOMES its value, `_random` (mean over draws), `_spread` (their standard deviation), and how many draws
    are `_below` and `_level` with the set. `loss_change_excess` is the change of loss less `loss_change_random`; its
    `_error` adds the errors of the set, of the random ones and of the draws as if independent. That is conservative:
    all sets are measured on the same text.
    """
    keys, rows = ["seed", "kind", "layer"], []
    drawn = dict(list(table[table["group"] == RANDOM].groupby(keys)))
    for own in table[table["group"] == UNIVERSAL].to_dict("records"):
        others = drawn[tuple(own[key] for key in keys)]
        others = others[(others["power"] / own["power"] - 1).abs() <= MATCHED]
        if others.empty:
            continue
        row = {name: own[name] for name in (*keys, "neurons", "tokens", "blocks")} | {"draws": len(others)}
        ratio = others["power"] / own["power"]
        row |= {"power_low": ratio.min(), "power_high": ratio.max()}
        for outcome in OUTCOMES:
            value, random = own[outcome], others[outcome]
            below, level = int((random < value).sum()), int((random == value).sum())
            numbers = {"": value, "_random": random.mean(), "_spread": random.std(), "_below": below, "_level": level}
            row |= {outcome + ending: number for ending, number in numbers.items()}
        row["loss_change_excess"] = own["loss_change"] - row["loss_change_random"]
        of_draws = row["loss_change_spread"] / np.sqrt(len(others)) if len(others) > 1 else 0.0
        errors = own["loss_change_error"], others["loss_change_error"].mean(), of_draws
        rows.append(row | {"loss_change_excess_error": np.sqrt(np.square(errors).sum())})
    columns = [*keys, "neurons", "tokens", "blocks", "draws", "power_low", "power_high"]
    columns += [outcome + ending for outcome in OUTCOMES for ending in ("", "_random", "_spread", "_below", "_level")]
    return pd.DataFrame(rows, columns=[*columns, "loss_change_excess", "loss_change_excess_error"])


def shares_below(compared: pd.DataFrame, outcome: str = "loss_change") -> pd.Series:
    """By seed the share of random sets, over all layers, with a smaller outcome than their layer's set, ties counted
    half; the chance level is a half."""
    sums = compared.groupby("seed")[[f"{outcome}_below", f"{outcome}_level", "draws"]].sum()
    return (sums[f"{outcome}_below"] + sums[f"{outcome}_level"] / 2) / sums["draws"]


def first_layer_lead(compared: pd.DataFrame) -> pd.Series:
    """By seed how much more the first layer's set raises the loss beyond its random sets than that of the layer that
    comes next; only seeds with universal neurons in the first layer and another."""
    excess = compared.pivot(index="seed", columns="layer", values="loss_change_excess")
    if 0 not in excess or excess.shape[1] < 2:
        return pd.Series(dtype=float)
    return (excess[0] - excess.drop(columns=0).max(axis=1)).dropna()


def family_parts(table: pd.DataFrame) -> pd.DataFrame:
    """One row per seed and family of the first layer's universal neurons, the largest change of loss first.

    Columns seed, family, neurons, loss_change, loss_change_error, and `share`, the change of loss over that of the
    whole set; NaN where that is within two standard errors of 0.
    """
    first = table[(table["layer"] == 0) & (table["kind"] == "mean")]
    parts = first[~first["group"].isin([UNIVERSAL, RANDOM])].rename(columns={"group": "family"})
    whole = first[first["group"] == UNIVERSAL].set_index("seed")
    clear = whole["loss_change"].where(whole["loss_change"].abs() > 2 * whole["loss_change_error"])
    parts = parts.assign(share=parts["loss_change"] / parts["seed"].map(clear).astype(float))
    columns = ["seed", "family", "neurons", "loss_change", "loss_change_error", "share"]
    return parts.sort_values(["seed", "loss_change"], ascending=[True, False], ignore_index=True)[columns]
