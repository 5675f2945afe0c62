"""One pass over the text: every block goes once through the seeds that the pass needs and into all its accumulators.

`lib.collect.planner` decides by memory which accumulators a pass holds; a run that fits takes one pass. The state of a
pass can be saved, loaded and merged, so that passes resume after a kill and processes share the text.
"""

import copy
import time
from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

from lib.base.errors import InputError
from lib.base.tensors import TensorFiles
from lib.collect.planner import PARTS, PassPlan, Plan, Reading, Unit
from lib.collect.preflight import Preflight
from lib.collect.processes import Incoming
from lib.collect.reader import Batch, SeedReader, Seen
from lib.collect.statistics import sketched
from lib.kernels.correlation import Covariance, Scale, candidates, sketched_scales
from lib.kernels.examples import TopExamples
from lib.kernels.followed import Followed, Pairs, union
from lib.kernels.fused import OPERAND_DTYPES
from lib.kernels.grouped import GroupedMoments, Places
from lib.kernels.histogram import Histogram
from lib.kernels.sketch import Products, Sketch, Within, placed
from lib.models.trunk import Trunk, load_model

HISTOGRAM_EVERY = 16  # batches: one in so many is counted into the histograms


def _examples(scaling: dict[str, Tensor]) -> TopExamples:
    return TopExamples(*scaling["low"].shape, device=scaling["low"].device)


def _histogram(scaling: dict[str, Tensor]) -> Histogram:
    return Histogram(scaling["low"], scaling["high"])


def _feed_examples(examples: TopExamples, seen: Seen) -> None:
    shape = seen.batch.tokens.shape
    examples.update(seen.layer, seen.post.view(*shape, -1), seen.batch.counted.view(shape), seen.batch.blocks)


def _feed_histogram(histogram: Histogram, seen: Seen) -> None:
    if seen.batch.number % HISTOGRAM_EVERY == 0:
        histogram.update(seen.layer, seen.pre, seen.batch.counted)


# How the accumulators of one seed are made from the seed's pilot (`PILOT_NAMES`), and how they are fed each layer's
# activations (`reader.Seen`), from the unit's first layer to the one before its stop.
ACCUMULATORS: dict[str, tuple[Callable, Callable]] = {
    "examples": (_examples, _feed_examples),
    "histogram": (_histogram, _feed_histogram),
}


class Pass:
    """The seeds and accumulators of one pass in one process, and which batches of the text they have seen."""

    def __init__(
        self, inputs: Preflight, plan: Plan, number: int, scalings: dict[str, dict[str, Tensor]], device: torch.device
    ):
        self.inputs, self.plan, self.number, self.device = inputs, plan, number, device
        self.text, self.random_seed = inputs.text, inputs.params.random_seed
        self.planned: PassPlan = plan.passes[number]
        setting = plan.setting
        self.dtype = OPERAND_DTYPES[setting.precision]
        self.reading = Reading.of(setting.blocks, setting.batch, setting.every)
        self.readers = {
            name: SeedReader(name, scalings[name], depth, setting.precision, self.planned.compares)
            for name, depth in self.planned.depths(setting.shapes).items()
        }
        grouped = any(unit.kind == "grouped" for unit in self.planned.units)
        ids = {name: one.ids for name, one in inputs.groupings.items()} if grouped else {}
        self.places = Places(ids, inputs.tables if grouped else {}, device)
        self.scalings = scalings
        self.units: dict[Unit, object] = {}
        self.followed: Followed | None = None
        self.done = torch.zeros(len(self.reading.batches), dtype=torch.bool)
        self.seconds = 0.0
        self.empty()

    def empty(self) -> None:
        """Makes all accumulators but the followed pairs anew, one after the other, as if no batch had been seen."""
        self.done[:] = False
        for reader in self.readers.values():
            reader.empty()
        for unit in (unit for unit in self.planned.units if unit.kind != "followed"):
            self.units[unit] = None  # its memory goes first
            self.units[unit] = self._accumulator(unit, self.scalings[unit.seed])

    def _accumulator(self, unit: Unit, scaling: dict[str, Tensor]):
        setting, reader = self.plan.setting, self.readers[unit.seed]
        shape = setting.shapes[unit.seed]
        match unit.kind:
            case "moments":
                return reader.moments
            case "sketch":
                wide = torch.float64 if self.dtype == torch.float64 else torch.float32
                return Sketch(setting.rows, shape.total, self.dtype if setting.own_rows else wide, self.device)
            case "products" if unit.other:
                right = setting.shapes[unit.other].total
                return Products(shape.layers, shape.neurons, right, self.dtype, self.device)
            case "products":
                return Within(shape.layers, shape.neurons, shape.neurons, self.dtype, self.device)
            case "grouped":
                return self._grouped(unit, scaling["post_scaling"][unit.first].clone())  # a file holds no views
        make, feed = ACCUMULATORS[unit.kind]
        accumulator = make(scaling)
        reader.feeds.append(lambda seen: unit.first <= seen.layer < unit.stop and feed(accumulator, seen))
        return accumulator

    def _grouped(self, unit: Unit, scaling: Tensor) -> GroupedMoments:
        places = self.places  # a feed that knew the pass would keep its memory beyond its end, into the next pass
        accumulator, context = GroupedMoments(places.layout, scaling), self.text.context
        number = torch.full((len(self.text.tokens),), -1)  # of a block among those with labels
        number[self.inputs.run.label_blocks] = torch.arange(len(self.inputs.run.label_blocks))

        def feed(seen: Seen) -> None:
            labelled = number[seen.batch.blocks]
            known = labelled >= 0
            if seen.layer != unit.first or not known.any():
                return
            post, counted = seen.post, seen.batch.counted
            if not known.all():
                rows = known.repeat_interleave(context).to(post.device)
                post, counted = post[rows], counted[rows]
            accumulator.update(post, places.at(labelled[known], counted))

        self.readers[unit.seed].feeds.append(feed)
        return accumulator

    def load_models(self) -> None:
        """Loads the seeds, without which no batch can be read."""
        for name, reader in self.readers.items():
            reader.trunk = Trunk(load_model(self.inputs.folders[name]).to(self.device), self.dtype == torch.bfloat16)

    def follow(self, pairs: Pairs) -> None:
        """From now on follows these pairs, on batches after the text's first part."""
        totals = {seed: shape.total for seed, shape in self.plan.setting.shapes.items()}
        wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.followed = Followed(pairs, totals, PARTS, wide, self.device)

    def advance(self, number: int, bar: tqdm | None = None) -> None:
        """One batch of blocks through every seed and into every accumulator."""
        started, setting = time.perf_counter(), self.plan.setting
        blocks = self.reading.batches[number]
        numbers = (blocks[:, None] * setting.context + torch.arange(setting.context)).flatten()
        row, sign = (
            one.to(self.device) for one in placed(numbers, setting.rows, self.random_seed, not setting.sketches)
        )
        tokens, counted = self.text.tokens[blocks].to(self.device), self.text.counted(blocks).flatten().to(self.device)
        batch = Batch(number, blocks, tokens, counted, sign[:, None])
        operands, sums = {}, {}
        for name, reader in self.readers.items():
            operands[name], sums[name] = reader.read(batch)
            if bar is not None:
                bar.update(len(numbers))
        self.add(number, row, operands, sums, int(counted.sum()))
        self.done[number] = True
        self.seconds += time.perf_counter() - started

    def add(self, number: int, row: Tensor, operands: dict[str, Tensor], sums: dict[str, Tensor], counted: int) -> None:
        """Adds all seeds' operands on a batch to sketches, products and followed pairs."""
        for unit, accumulator in self.units.items():
            if unit.kind == "sketch":
                accumulator.update(operands[unit.seed], row)
            elif unit.kind == "products":
                accumulator.update(operands[unit.seed], *([operands[unit.other]] if unit.other else []))
        part = self.reading.part(number)
        if self.planned.compares and part is not None:
            self.followed.update(part, operands, sums, counted)

    @property
    def in_first_part(self) -> bool:
        """Whether the pass still looks for candidates."""
        return self.planned.compares and self.followed is None

    def accumulators(self) -> dict[str, object]:
        """Every accumulator by the prefix of its tensors in a saved state."""
        named = {f"{unit.kind}.{unit.name}": accumulator for unit, accumulator in self.units.items()}
        return named | ({"followed": self.followed} if self.followed else {})

    def state_dict(self) -> dict[str, Tensor]:
        """All accumulators' tensors and which batches they have seen."""
        state = {"done": self.done, "seconds": torch.tensor(self.seconds)}
        for prefix, accumulator in self.accumulators().items():
            state |= {f"{prefix}/{name}": tensor for name, tensor in accumulator.state_dict().items()}
        return state

    def merge_state(self, saved: TensorFiles | Incoming) -> None:
        """Adds a state of this pass, saved or from another process, which saw other batches; the first is taken as it
        is.

        InputError if it followed other pairs, or saw a batch that this one has seen.
        """
        fresh, names = not self.done.any(), set(saved.names())
        done = saved.tensor("done").cpu()
        if (self.done & done).any():
            raise InputError(
                "two states of the pass hold the same part of the text, perhaps because one was still being written; "
                "run the same command again."
            )
        self.done |= done
        self.seconds = max(self.seconds, float(saved.tensor("seconds")))
        for prefix, accumulator in self.accumulators().items():
            wanted = {name: f"{prefix}/{name}" for name in accumulator.state_dict()}
            if not names >= set(wanted.values()):
                continue  # nothing was followed yet
            # copied, or the sums would be the mapped file, which then stays on the disk until the pass ends
            state = {name: saved.tensor(stored).to(self.device, copy=saved.mapped) for name, stored in wanted.items()}
            try:
                other = accumulator if fresh else copy.copy(accumulator)
                other.load_state_dict(state)
                if not fresh:
                    accumulator.merge(other)
            except ValueError as error:
                raise InputError(str(error)) from error

    def covariance(self) -> Covariance:
        """The products so far."""
        setting = self.plan.setting
        found = {(unit.kind, unit.seed, unit.other): accumulator for unit, accumulator in self.units.items()}
        shapes = {seed: (shape.layers, shape.neurons) for seed, shape in setting.shapes.items()}
        names = setting.seeds, setting.pairs, setting.references, shapes
        if setting.rows:
            rows = {seed: found["sketch", seed, None].rows for seed in setting.seeds}
            if setting.own_rows:  # those of the batches seen, among as many as there are tokens
                blocks = torch.cat([self.reading.batches[number] for number in self.done.nonzero()[:, 0].tolist()])
                seen = (blocks[:, None] * setting.context + torch.arange(setting.context)).flatten().to(self.device)
                rows = {seed: own[seen] for seed, own in rows.items()}
            rows = {seed: own.to(self.dtype) for seed, own in rows.items()}
            return sketched(*names, rows, setting.own_rows)
        return Covariance(
            *names,
            stripe=lambda a, layer, b: found["products", a, b].sums[layer],
            within=lambda seed, layer: found["products", seed, None].sums[layer],
        )

    def candidates(self, k: int) -> Pairs:
        """The pairs to follow: for each neuron the k best matches of what was seen so far."""
        covariance = self.covariance()
        scales = sketched_scales(covariance, {name: Scale.of(one.moments) for name, one in self.readers.items()})
        return {pair: union(*candidates(covariance, pair, scales, k)).cpu() for pair in covariance.pairs}
