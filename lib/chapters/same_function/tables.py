"""The tables of chapter 08: the ladder of maps, neuron by neuron and layer by layer, and transplants.

Two seeds read one sample of the text (docs/method.md §12). The reference is compared with the seed that follows it;
with `same_function: all` every seed with every other one. Otherwise two more seeds are compared with the one that
follows each, on fewer neurons and without most transplants, since a claim is decided over three seeds or more.
"""

import sys
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from lib.cache import kept
from lib.chapters.interventions.tables import model_of
from lib.chapters.same_function import ladder, transplants
from lib.chapters.same_function.ladder import FIT, SCORE, Layer, Parts, Predictor, Target
from lib.chapters.universality.null_tables import Sample, read, trunk_of, wide
from lib.kernels.correlation import haar_rotation
from lib.models.trunk import no_interventions
from lib.run import Run

POSITIONS, MOST_POSITIONS = 24, 24_576  # of the sample: for each neuron of a layer, and at most
FEWEST_BLOCKS = 2 * len(ladder.PATTERN)
MOST_NEURONS = 1_024  # of a layer that are explained
OTHER_NEURONS, OTHER_SEEDS = 128, 2  # the same, of seeds other than the reference, and how many of these
HELD_BYTES = 2**30  # of the other seed's pre-activations in memory at once
ROTATION_DRAW = 4_000  # none of other chapters' draws, nor of heads
KEY = ["layer", "neuron"]
NAMES = ("ladder", "ladder_layers", "transplants")
_made: dict[str, dict[str, pd.DataFrame]] = {}  # the tables of a run, made together


def unsupported(run: Run) -> str | None:
    """Why the chapter is left out for this run, in a sentence, or None."""
    blocks = len(run.text.tokens)
    if blocks < FEWEST_BLOCKS:
        return f"The text has {blocks} blocks, and {FEWEST_BLOCKS} are needed to fit, choose and score."
    return no_interventions(run.params)


class Pair(NamedTuple):
    """A seed whose neurons are explained, the seed that explains them, and whether in full."""

    seed: str
    other: str
    full: bool


def pairs(run: Run) -> list[Pair]:
    """The seeds that are compared, the reference first."""
    seeds, reference = sorted(run.params.seeds), run.params.reference
    ordered = [reference, *(seed for seed in seeds if seed != reference)]
    if run.params.same_function == "all":
        return [Pair(seed, other, True) for seed in ordered for other in seeds if other != seed]
    known = [seed for seed in ordered if seed in run.done["references"]][: 1 + OTHER_SEEDS]
    following = {seed: seeds[(seeds.index(seed) + 1) % len(seeds)] for seed in known}
    return [Pair(seed, following[seed], seed == reference) for seed in known]


# ---------------------------------------------------------------- the sample


class Source:
    """Pre-activations of all neurons of a seed, one layer at a time, a few layers in memory."""

    def __init__(self, run: Run, seed: str, sample: Sample):
        self.trunk, self.sample, self.layers = trunk_of(run, seed), sample, run.done["shapes"][seed][0]
        width, size = run.done["shapes"][seed][1], wide(run).itemsize
        self.held = max(1, HELD_BYTES // (len(sample.position) * width * size))
        self.now, self.dtype = {}, wide(run)

    def pre(self, layer: int) -> Float[Tensor, "tokens n"]:
        """A layer's pre-activations on the counted tokens."""
        if layer not in self.now:
            self.now = {}
            some = range(layer, min(layer + self.held, self.layers))
            self.now = read(self.trunk, self.sample, dict.fromkeys(some, slice(None)), pre=True)
        return self.now[layer].to(self.dtype)


@dataclass
class Compared:
    """A pair's ladder, and what transplants need of it. `neurons` are those explained, by layer."""

    rows: pd.DataFrame
    layers: pd.DataFrame
    targets: list[Target]
    neurons: list[Int[Tensor, "k"]]


def sample_of(run: Run) -> Sample:
    """The chapter's sample of the run's text."""
    width = max(width for _, width in run.done["shapes"].values())
    wanted = min(POSITIONS * width, MOST_POSITIONS)
    return Sample.of(run.text, max(wanted, FEWEST_BLOCKS * run.text.context))


def chosen_neurons(run: Run, pair: Pair) -> tuple[list[Int[Tensor, "k"]], list[np.ndarray]]:
    """Which neurons of each layer are explained, and which of these stand for all: so many drawn at random, or all of
    them. The universal ones are added."""
    table = run.table("neurons_all_seeds")
    own, most = table[table["seed"] == pair.seed], MOST_NEURONS if pair.full else OTHER_NEURONS
    random, chosen, sampled = np.random.default_rng(run.params.random_seed), [], []
    for _, layer in own.groupby("layer"):
        drawn = random.permutation(layer["neuron"].to_numpy())[:most]
        of = np.union1d(drawn, layer.loc[layer["is_universal"], "neuron"])
        chosen.append(torch.from_numpy(of.astype(np.int64)))
        sampled.append(np.isin(of, drawn))
    return chosen, sampled


@torch.inference_mode()
def compared(run: Run, pair: Pair) -> Compared:
    """The ladder of a pair of seeds."""
    sample, (neurons, sampled) = sample_of(run), chosen_neurons(run, pair)
    parts = Parts.of(sample.counted)
    values = read(trunk_of(run, pair.seed), sample, dict(enumerate(neurons)), pre=False)
    own = [Layer.of(values.pop(layer).to(wide(run)), parts.part) for layer in range(len(neurons))]
    del values
    source, found = Source(run, pair.other, sample), []
    turn = haar_rotation(run.done["shapes"][pair.other][1], run.params.random_seed, ROTATION_DRAW).to(own[0].mean)
    for null in (False, True):
        targets = [Target(layer, parts, keeps=not null) for layer in own]
        names = tqdm(total=0, desc=f"{pair.seed} from {pair.other}{', rotated' if null else ''}", file=sys.stderr)

        def predictor(layer: int, null=null, names=names) -> Predictor:
            names.update()
            pre, act = source.pre(layer), source.trunk.activations[layer]
            return Predictor.of(ladder.rotated_activations(pre, act, turn) if null else act(pre), parts.part)

        ladder.explained_by(targets, predictor, source.layers)
        names.close()
        found.append(targets)
    rows, layers = [], []
    for layer, (target, null) in enumerate(zip(*found, strict=True)):
        own_rows = ladder.neuron_rows(target, null, neurons[layer].tolist())
        rows.append(own_rows.assign(layer=layer, sampled=sampled[layer]))
        nulls = pd.DataFrame(null.pairs).set_index("other_layer").add_prefix("null_")
        layers.append(pd.DataFrame(target.pairs).set_index("other_layer").join(nulls).reset_index().assign(layer=layer))
    whose = {"seed": pair.seed, "model": pair.other, "full": pair.full, "tokens": int((parts.part == SCORE).sum())}
    tables = (pd.concat(some, ignore_index=True).assign(**whose) for some in (rows, layers))
    return Compared(*tables, found[0], neurons)


# ---------------------------------------------------------------- tables


def _made_from(run: Run) -> dict:
    asked = {"pairs": [list(pair) for pair in pairs(run)], "random_seed": run.params.random_seed}
    asked |= {"tokens": run.text.tokens.numel(), "precision": run.done["precision"]}
    return asked | {"threshold": run.params.threshold}  # universal neurons are always explained


def neuron_table(run: Run) -> pd.DataFrame:
    """ladder.parquet: one row per explained neuron and compared seed, columns of `ladder.neuron_rows` beside seed,
    model, full (pair in full), layer, sampled (stands for all), tokens (scored)."""
    return _kept(run, "ladder")


def layer_table(run: Run) -> pd.DataFrame:
    """ladder_layers.parquet: one row per pair of layers: linear CKA, mean R² of each rung (below 0 as 0), nulls."""
    return _kept(run, "ladder_layers")


def transplant_table(run: Run) -> pd.DataFrame:
    """transplants.parquet: one row per seed, set and partner (`transplants.effect_rows`).

    With neurons (how many), r2 (mean R² of the rung `one`), tokens and blocks. Pairs that are not in full have the
    universal neurons of all layers only.
    """
    return _kept(run, "transplants")


def _kept(run: Run, name: str) -> pd.DataFrame:
    return kept(run, name, __name__, _made_from(run), lambda: _tables(run)[name])


def _tables(run: Run) -> dict[str, pd.DataFrame]:
    """All tables, since they share what takes long."""
    key = f"{run.folder} {_made_from(run)}"
    if key not in _made:
        parts = {name: [] for name in NAMES}
        for pair in pairs(run):
            found = compared(run, pair)
            for name, part in zip(NAMES, (found.rows, found.layers, _transplants(run, pair, found)), strict=True):
                parts[name].append(part)
        _made[key] = {name: pd.concat(some, ignore_index=True) for name, some in parts.items()}
    return _made[key]


# ---------------------------------------------------------------- transplants


@torch.inference_mode()
def _transplants(run: Run, pair: Pair, found: Compared) -> pd.DataFrame:
    model, sample = model_of(run, pair.seed), sample_of(run)
    parts = Parts.of(sample.counted)
    table = run.table("neurons_all_seeds")
    own = table.loc[table["seed"] == pair.seed, [*KEY, "is_universal", "excess_corr"]]
    own = found.rows.merge(own, on=KEY, validate="one_to_one")
    own["power"] = _powers(model, found)
    sets = transplants.neuron_sets(own)
    if not pair.full:
        sets = [one._replace(partners=("match", "random")) for one in sets if one.name == "universal"]
    chosen = torch.tensor([ladder.PATTERN[block % len(ladder.PATTERN)] == SCORE for block in range(len(sample.tokens))])
    tokens, counted = sample.tokens[chosen], sample.counted[chosen]
    predicted = _predictions(run, pair, found, sample, parts)
    unchanged, number = transplants.losses(model, tokens, counted, {}), transplants.predicting(counted).sum(1).double()
    rows = []
    for one in tqdm(sets, desc=f"transplants into {pair.seed}", file=sys.stderr):
        changes = {}
        for partner in ("mean", *one.partners):
            values = _values(found, one.neurons, predicted[partner])
            changes[partner] = transplants.losses(model, tokens, counted, values) - unchanged
        about = own.merge(one.neurons, on=KEY)
        about = {"set": one.name, "neurons": len(one.neurons), "r2": float(about["r2_one"].clip(0, 1).mean())}
        about |= {"tokens": int(number.sum()), "blocks": len(tokens)}
        rows += [about | row for row in transplants.effect_rows(changes, number)]
    columns = ["set", "neurons", "r2", "tokens", "blocks", "partner", "loss_change", "loss_change_error"]
    made = pd.DataFrame(rows, columns=[*columns, "recovered", "low", "high"])
    return made.assign(seed=pair.seed, model=pair.other, full=pair.full)


def _powers(model, found: Compared) -> np.ndarray:
    """Var(a)·‖w_out‖² of the explained neurons, in the order of rows."""
    powers = []
    for layer, (target, neurons) in enumerate(zip(found.targets, found.neurons, strict=True)):
        norm = model.blocks[layer].w_out[neurons].square().sum(1)
        powers.append((target.layer.deviation.square().cpu() * norm).double().numpy())
    return np.concatenate(powers)


def _predictions(run: Run, pair: Pair, found: Compared, sample: Sample, parts: Parts) -> dict[str, list[Tensor]]:
    """By partner and layer what is predicted of each explained neuron on SCORE, in deviations: (tokens, k)."""
    made = {
        name: [of.rungs[rung].predicted for of in found.targets] for name, rung in (("match", "one"), ("all", "all"))
    }
    made["mean"] = [torch.zeros_like(one) for one in made["match"]]
    second = [of.second().cpu() for of in found.targets]
    matches = [torch.stack([of.rungs["one"].layer, of.rungs["one"].neuron]).cpu() for of in found.targets]
    other = trunk_of(run, pair.other)
    everything = read(other, sample, dict.fromkeys(range(run.done["shapes"][pair.other][0]), slice(None)), pre=False)
    layers = {layer: Layer.of(values.to(wide(run)), parts.part) for layer, values in everything.items()}
    random = [_random_partners(run, pair, one, layers) for one in matches]
    for name, places in (("second", second), ("random", random)):
        made[name] = [_from_single(of, place, layers) for of, place in zip(found.targets, places, strict=True)]
    return made


def _random_partners(run: Run, pair: Pair, match: Int[Tensor, "2 k"], layers: dict[int, Layer]) -> Int[Tensor, "2 k"]:
    """Layer and neuron of a partner like each match (`transplants.like`); −1 for a neuron without a match."""
    drawn, model = match.clone(), model_of(run, pair.other)
    for layer in match[0].unique().tolist():
        if layer < 0:
            continue
        of, own = layers[layer], (match[0] == layer).nonzero()[:, 0]
        power = of.deviation.square().cpu() * model.blocks[layer].w_out.square().sum(1)
        skew = of.parts[FIT].pow(3).mean(0).cpu()
        random = np.random.default_rng([run.params.random_seed, layer])
        partner = transplants.like(power.numpy(), skew.numpy(), match[1, own].numpy(), random)
        drawn[1, own] = torch.from_numpy(partner)
    return drawn


def _from_single(target: Target, place: Int[Tensor, "2 k"], layers: dict[int, Layer]) -> Float[Tensor, "tokens k"]:
    """Each neuron predicted from one of the other seed's, with the slope of FIT; the mean where there is none."""
    x = target.layer.parts
    made = torch.zeros_like(x[SCORE])
    for layer in place[0].unique().tolist():
        if layer >= 0:
            own = (place[0] == layer).nonzero()[:, 0]
            fit, scored = (layers[layer].parts[part][:, place[1, own]] for part in (FIT, SCORE))
            made[:, own] = scored * (fit * x[FIT][:, own]).mean(0)
    return made


def _values(found: Compared, neurons: pd.DataFrame, predicted: list[Tensor]) -> transplants.Values:
    """The activations of a set's neurons, layer by layer, from predictions in deviations."""
    values = {}
    for layer, own in neurons.groupby("layer"):
        wanted = torch.tensor(own["neuron"].tolist())
        columns = torch.searchsorted(found.neurons[layer], wanted)
        of = found.targets[layer].layer
        activations = of.mean[columns] + of.deviation[columns] * predicted[layer][:, columns]
        values[int(layer)] = wanted, activations.float().cpu()
    return values
