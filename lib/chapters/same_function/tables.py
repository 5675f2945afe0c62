"""The tables of chapter 08: the ladder of maps, neuron by neuron and layer by layer, and transplants.

Two seeds read one sample of the text (docs/method.md §12). The reference is compared with the seed that follows it;
with `same_function: all` every seed with every other one. Otherwise two more seeds are compared with the one that
follows each, on fewer neurons and without most transplants, since a claim is decided over three seeds or more.
"""

import sys
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from lib.cache import kept
from lib.chapters.interventions.tables import model_of
from lib.chapters.same_function import ladder, transplants
from lib.chapters.same_function.folds import FOLDS, TURNS, Blocks, Layer
from lib.chapters.same_function.ladder import Predictor, Target
from lib.chapters.universality.null_tables import Sample, read, trunk_of, wide
from lib.kernels.correlation import haar_rotation
from lib.models.trunk import no_interventions
from lib.run import Run

POSITIONS, MOST_POSITIONS = 24, 24_576  # of the sample: for each neuron of a layer, and at most
FEWEST_BLOCKS = 4 * FOLDS
TRANSPLANTED = 5  # one block in so many of the sample is read again with replaced neurons; no divisor of FOLDS
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
    """A pair's ladder, and what transplants need of it. `neurons` are those explained, by layer; `source` reads the
    other seed."""

    rows: pd.DataFrame
    layers: pd.DataFrame
    targets: list[Target]
    neurons: list[Int[Tensor, "k"]]
    source: Source


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
    fold = Blocks.of(sample.counted).fold
    values = read(trunk_of(run, pair.seed), sample, dict(enumerate(neurons)), pre=False)
    own = [Layer.of(values.pop(layer).to(wide(run)), fold) for layer in range(len(neurons))]
    del values
    source, found = Source(run, pair.other, sample), []
    turn = haar_rotation(run.done["shapes"][pair.other][1], run.params.random_seed, ROTATION_DRAW).to(own[0].mean)
    for null in (False, True):
        targets = [Target(layer, keeps=not null) for layer in own]
        names = tqdm(total=0, desc=f"{pair.seed} from {pair.other}{', rotated' if null else ''}", file=sys.stderr)

        def predictor(layer: int, ridge: bool = True, null=null, names=names) -> Predictor:
            names.update()
            pre, act = source.pre(layer), source.trunk.activations[layer]
            values = ladder.rotated_activations(pre, act, turn) if null else act(pre)
            return Predictor.of(values, fold, ridge)

        ladder.explained_by(targets, predictor, source.layers)
        if pair.full:  # these maps depend on how many neurons are explained at once
            ladder.whole_layers(targets, partial(predictor, ridge=False))
        names.close()
        found.append(targets)
    rows, layers = [], []
    for layer, (target, null) in enumerate(zip(*found, strict=True)):
        own_rows = ladder.neuron_rows(target, null, neurons[layer].tolist())
        rows.append(own_rows.assign(layer=layer, sampled=sampled[layer]))
        nulls = pd.DataFrame(null.pairs).set_index("other_layer").add_prefix("null_")
        layers.append(pd.DataFrame(target.pairs).set_index("other_layer").join(nulls).reset_index().assign(layer=layer))
    whose = {"seed": pair.seed, "model": pair.other, "full": pair.full, "tokens": len(fold)}
    tables = (pd.concat(some, ignore_index=True).assign(**whose) for some in (rows, layers))
    return Compared(*tables, found[0], neurons, source)


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
    """ladder_layers.parquet: one row per pair of layers: linear CKA, mean R² of each rung, nulls."""
    return _kept(run, "ladder_layers")


def transplant_table(run: Run) -> pd.DataFrame:
    """transplants.parquet: one row per seed, set and partner (`transplants.effect_rows`).

    With neurons (how many), r2 (mean squared correlation with the match on the run's text), tokens and blocks. Pairs
    that are not in full have the universal neurons of all layers only.
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
            for name, part in zip(NAMES, _of_pair(run, pair), strict=True):
                parts[name].append(part)
        _made[key] = {name: pd.concat(some, ignore_index=True) for name, some in parts.items()}
    return _made[key]


def _of_pair(run: Run, pair: Pair) -> tuple[pd.DataFrame, ...]:
    """The tables of a pair; its activations are freed before the next one's are read."""
    found = compared(run, pair)
    return found.rows, found.layers, _transplants(run, pair, found)


# ---------------------------------------------------------------- transplants


@torch.inference_mode()
def _transplants(run: Run, pair: Pair, found: Compared) -> pd.DataFrame:
    model, sample = model_of(run, pair.seed), sample_of(run)
    blocks, own = Blocks.of(sample.counted), _candidates(run, pair, found)
    own["power"] = _powers(model, found)
    sets = transplants.neuron_sets(own)
    if not pair.full:
        sets = [one._replace(partners=("match", "second", "random")) for one in sets if one.name == "universal"]
    tokens, counted = (of[::TRANSPLANTED] for of in (sample.tokens, sample.counted))
    predicted, fold = _predictions(run, pair, found, sets), blocks.fold[blocks.block % TRANSPLANTED == 0]
    unchanged, number = transplants.losses(model, tokens, counted, {}), transplants.predicting(counted).sum(1).double()
    rows = []
    for one in tqdm(sets, desc=f"transplants into {pair.seed}", file=sys.stderr):
        changes = {}
        for partner in ("mean", *one.partners):
            values = _values(found, one.neurons, predicted[partner], fold)
            changes[partner] = transplants.losses(model, tokens, counted, values) - unchanged
        about = own.merge(one.neurons, on=KEY)
        about = {"set": one.name, "neurons": len(one.neurons), "r2": float(about["square"].mean())}
        about |= {"tokens": int(number.sum()), "blocks": len(tokens)}
        rows += [about | row for row in transplants.effect_rows(changes, number)]
    columns = ["set", "neurons", "r2", "tokens", "blocks", "partner", "loss_change", "loss_change_error"]
    made = pd.DataFrame(rows, columns=[*columns, "recovered", "low", "high"])
    return made.assign(seed=pair.seed, model=pair.other, full=pair.full)


def _candidates(run: Run, pair: Pair, found: Compared) -> pd.DataFrame:
    """The explained neurons with is_universal, excess_corr, and `square`, that of the correlation with the match on the
    run's text."""
    table, matches = run.table("neurons_all_seeds"), run.table("matches_all_seeds")
    own = table.loc[table["seed"] == pair.seed, [*KEY, "is_universal", "excess_corr"]]
    match = matches.loc[(matches["seed"] == pair.seed) & (matches["model"] == pair.other), [*KEY, "corr"]]
    own = found.rows[KEY].merge(own.merge(match, on=KEY), on=KEY, validate="one_to_one")
    return own.assign(square=own.pop("corr").clip(lower=0) ** 2)


def _powers(model, found: Compared) -> np.ndarray:
    """Var(a)·‖w_out‖² of the explained neurons, in the order of rows."""
    powers = []
    for layer, (target, neurons) in enumerate(zip(found.targets, found.neurons, strict=True)):
        norm = model.blocks[layer].w_out[neurons].square().sum(1)
        powers.append((target.layer.deviation.square().cpu() * norm).double().numpy())
    return np.concatenate(powers)


def _predictions(
    run: Run, pair: Pair, found: Compared, sets: list[transplants.NeuronSet]
) -> dict[str, list[Float[Tensor, "tokens k"]]]:
    """By partner and layer what is predicted of each explained neuron in the transplanted blocks, by the maps of the
    turn in which a block is scored, in deviations of its fitting folds. Second-best and random partners are those of
    the neurons of `sets` that ask for them."""
    blocks = Blocks.of(sample_of(run).counted)
    again, made = blocks.block % TRANSPLANTED == 0, {}
    fold = blocks.fold[again]
    for name in ("mean", *transplants.PARTNERS):
        made[name] = [of.layer.mean.new_zeros(len(fold), of.layer.mean.numel()) for of in found.targets]
    wanted, model = _with_controls(found, sets), model_of(run, pair.other)
    for number in range(found.source.layers):
        other = Layer.of(found.source.trunk.activations[number](found.source.pre(number)), blocks.fold)
        power = other.deviation.square().cpu() * model.blocks[number].w_out.square().sum(1)
        marginal = power.numpy(), sum((one * one * one).sum(0) for one in other.folds).cpu().numpy()
        for turn in range(FOLDS):
            rows, y = (fold == turn).nonzero(), other.scaled(turn, turn, rows=again[blocks.fold == turn])
            for layer, target in enumerate(found.targets):
                if number not in ladder.near(layer, len(found.targets), found.source.layers):
                    continue
                mine, weights = target.of_all(turn, number)
                made["all"][layer][rows, mine] = y @ weights
                mine, theirs = _partners(target.best(turn), number)
                made["match"][layer][rows, mine] = y[:, theirs] * target.rungs["one"].weight[turn, mine]
                controls = {"second": _partners(target.second(turn), number, wanted[layer])}
                mine, theirs = _partners(target.best(turn), number, wanted[layer])
                random = np.random.default_rng([run.params.random_seed, layer, number, turn])
                if len(mine):
                    like = transplants.like(*marginal, theirs.cpu().numpy(), random)
                    controls["random"] = mine, torch.from_numpy(like).to(theirs)
                for name, (mine, theirs) in controls.items():
                    slope = _slopes((target.layer, mine), (other, theirs), turn)
                    made[name][layer][rows, mine] = y[:, theirs] * slope
    return made


def _with_controls(found: Compared, sets: list[transplants.NeuronSet]) -> list[Bool[Tensor, "k"]]:
    """By layer which explained neurons are in a set that asks for second-best or random partners."""
    asked = {"second", "random"}
    keys = {key for one in sets if asked & {*one.partners} for key in one.neurons.itertuples(index=False, name=None)}
    return [
        torch.tensor([(layer, neuron) in keys for neuron in own.tolist()], dtype=torch.bool)
        for layer, own in enumerate(found.neurons)
    ]


def _partners(places: Int[Tensor, "2 k"], number: int, wanted: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The neurons (of those wanted) with a partner in the other seed's `number`-th layer, and these partners."""
    here = places[0] == number
    mine = (here if wanted is None else here & wanted.to(here.device)).nonzero()[:, 0]
    return mine, places[1, mine]


def _slopes(own: tuple[Layer, Tensor], other: tuple[Layer, Tensor], turn: int) -> Float[Tensor, "k"]:
    """Of single neurons on single ones of another layer, in deviations of the turn's fitting folds."""
    fit, total = TURNS[turn].fit, 0.0
    for fold in fit:
        x, y = (of.scaled(turn, fold, neurons=neurons) for of, neurons in (own, other))
        total = total + (x * y).sum(0)
    return total / own[0].number(fit)


def _values(
    found: Compared, neurons: pd.DataFrame, predicted: list[Tensor], fold: Int[Tensor, "tokens"]
) -> transplants.Values:
    """The activations of a set's neurons, layer by layer, from predictions in deviations of the fitting folds."""
    values = {}
    for layer, own in neurons.groupby("layer"):
        wanted = torch.tensor(own["neuron"].tolist())
        columns, of = torch.searchsorted(found.neurons[layer], wanted), found.targets[layer].layer
        mean, deviation = (one[:, columns][fold] for one in (of.fit_mean, of.fit_deviation))
        in_sample = predicted[layer][:, columns] * deviation + mean
        values[int(layer)] = wanted, (in_sample * of.deviation[columns] + of.mean[columns]).float().cpu()
    return values
