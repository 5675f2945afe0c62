"""One pass over the text: every block goes once through the seeds that the pass needs and into all its accumulators.

`lib.collect.planner` decides by memory which accumulators a pass holds; a run that fits takes one pass. The state of a
pass can be saved, loaded and merged, so that passes resume after a kill and processes share the text.
"""

import copy
import time
from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm import tqdm

from lib.base.tensors import TensorFiles
from lib.collect.planner import PassPlan, Plan, Unit, release_order
from lib.collect.preflight import Preflight
from lib.collect.reader import Dither, SeedReader, Seen
from lib.kernels.correlation import Covariance, compare, products_at
from lib.kernels.covariance import OPERAND_DTYPES, LayerProducts, Operands
from lib.kernels.examples import TopExamples
from lib.kernels.fused import SUMS
from lib.kernels.grouped import GroupedMoments, Places
from lib.kernels.histogram import Histogram
from lib.models.trunk import Trunk, load_model, mixed_precision
from lib.run import Run

HISTOGRAM_EVERY = 8  # batches: one in eight is counted into the histograms
PART_SUMS = ("operand1", "post1", "post2")


def _examples(_run: Run, _unit: Unit, scaling: dict[str, Tensor]) -> TopExamples:
    return TopExamples(*scaling["low"].shape, device=scaling["low"].device)


def _histogram(_run: Run, _unit: Unit, scaling: dict[str, Tensor]) -> Histogram:
    return Histogram(scaling["low"], scaling["high"])


def _feed_examples(examples: TopExamples, seen: Seen) -> None:
    post, counted = seen.post.view(seen.shape), seen.counted.view(seen.shape[:2])
    examples.update(seen.layer, post, counted, seen.blocks)


def _feed_histogram(histogram: Histogram, seen: Seen) -> None:
    if seen.batch % HISTOGRAM_EVERY == 0:
        histogram.update(seen.layer, seen.pre, seen.counted)


# How the accumulators of one seed are made from the run, their unit and the seed's pilot (`PILOT_NAMES`), and
# how they are fed each layer's activations (`reader.Seen`), from the unit's first layer to the one before its stop.
ACCUMULATORS: dict[str, tuple[Callable, Callable]] = {
    "examples": (_examples, _feed_examples),
    "histogram": (_histogram, _feed_histogram),
}


class Pass:
    """The seeds and accumulators of one pass in one process, and which chunks of the text they have seen."""

    def __init__(
        self, inputs: Preflight, plan: Plan, number: int, scalings: dict[str, dict[str, Tensor]], device: torch.device
    ):
        run = inputs.run
        self.run, self.text, self.plan, self.number, self.device = run, run.text, plan, number, device
        self.planned: PassPlan = plan.passes[number]
        setting = plan.setting
        self.layers, self.neurons, self.names = setting.shape.layers, setting.shape.neurons, setting.seeds
        self.depths = self.planned.depths(self.layers)
        self.order = release_order(self.planned, self.depths)
        precision = setting.precision
        self.readers = {
            name: SeedReader(
                name,
                Trunk(load_model(inputs.folders[name]).to(device), mixed_precision(precision)),
                scalings[name],
                depth,
                precision,
                name in self.planned.measured,
            )
            for name, depth in self.depths.items()
        }
        rows = setting.batch * run.text.context
        self.dither = Dither(run.params.random_seed, len(self.names), (rows, self.neurons), device)
        grouped = any(unit.kind == "grouped" for unit in self.planned.units)
        ids = {name: one.ids for name, one in inputs.groupings.items()} if grouped else {}
        self.places = Places(ids, inputs.tables if grouped else {}, device)
        self.units = {unit: self._accumulator(unit, scalings[unit.seed]) for unit in self.planned.units}
        self.done = torch.zeros(-(-len(self.text.tokens) // self.planned.chunk), dtype=torch.bool)
        self.seconds = 0.0

    def _accumulator(self, unit: Unit, scaling: dict[str, Tensor]):
        if unit.kind in ("pair", "within"):
            return LayerProducts(self.layers, self.neurons, OPERAND_DTYPES[self.plan.setting.precision], self.device)
        reader = self.readers[unit.seed]
        if unit.kind == "moments":
            return reader.moments
        if unit.kind == "grouped":
            return self._grouped(unit, scaling["post_standard"][unit.first])
        make, feed = ACCUMULATORS[unit.kind]
        accumulator = make(self.run, unit, scaling)
        reader.feeds.append(lambda seen: unit.first <= seen.layer < unit.stop and feed(accumulator, seen))
        return accumulator

    def _grouped(self, unit: Unit, scaling: Tensor) -> GroupedMoments:
        places = self.places  # a feed that knew the pass would keep its memory beyond its end, into the next pass
        accumulator = GroupedMoments(places.layout, scaling)

        def feed(seen: Seen) -> None:
            if seen.layer == unit.first:
                accumulator.update(seen.post, places.at(seen.blocks, seen.counted))

        self.readers[unit.seed].feeds.append(feed)
        return accumulator

    def advance(self, chunk: int, bar: tqdm) -> None:
        """One chunk of blocks through every seed and into every accumulator."""
        started = time.perf_counter()
        size = self.planned.chunk
        blocks = torch.arange(chunk * size, min((chunk + 1) * size, len(self.text.tokens)))
        held: dict[str, Operands] = {}
        for name, later in self.order:
            index = self.names.index(name)
            held[name] = self.readers[name].operands(self.text, blocks, lambda batch, i=index: self.dither.of(i, batch))
            bar.update(len(blocks) * self.text.context)
            for unit, products in self.units.items():
                if unit.kind == "within" and unit.seed == name:
                    products.update_own(held[name])
                elif unit.kind == "pair" and name in (unit.seed, unit.other) and {unit.seed, unit.other} <= held.keys():
                    products.update(held[unit.seed][unit.first], held[unit.other])
            held = {seed: operands for seed, operands in held.items() if seed in later}
        self.done[chunk] = True
        self.seconds += time.perf_counter() - started

    def accumulators(self) -> dict[str, object]:
        """Every accumulator by the prefix of its tensors in a saved state."""
        named = {f"{unit.kind}.{unit.name}": accumulator for unit, accumulator in self.units.items()}
        # a seed's moments are needed by all passes that run it, and written by the one that has them as a unit
        return named | {f"moments.{name}": reader.moments for name, reader in self.readers.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """All accumulators' tensors and which chunks they have seen."""
        state = {"done": self.done, "seconds": torch.tensor(self.seconds)}
        for prefix, accumulator in self.accumulators().items():
            state |= {f"{prefix}/{name}": tensor for name, tensor in accumulator.state_dict().items()}
        return state

    def merge_state(self, saved: TensorFiles) -> None:
        """Adds a saved state of this pass, which saw other chunks; the first is taken as it is."""
        fresh = not self.done.any()
        self.done |= saved.tensor("done")
        self.seconds = max(self.seconds, float(saved.tensor("seconds")))
        for prefix, accumulator in self.accumulators().items():
            # copied, or the sums would be the mapped file, which then stays on the disk until the pass ends
            state = {
                name: saved.tensor(f"{prefix}/{name}").to(self.device, copy=True) for name in accumulator.state_dict()
            }
            if fresh:
                accumulator.load_state_dict(state)
            else:
                other = copy.copy(accumulator)
                other.load_state_dict(state)
                accumulator.merge(other)

    def covariance(self) -> Covariance:
        """The products so far; only if the pass holds them all."""
        found = {(unit.kind, unit.seed, unit.first, unit.other): products for unit, products in self.units.items()}
        setting = self.plan.setting
        return Covariance(
            setting.seeds,
            setting.pairs,
            setting.references,
            self.layers,
            self.neurons,
            pair=lambda a, layer, b, other: found["pair", a, layer, b].sums[other],
            within=lambda seed, layer: found["within", seed, 0, None].sums[layer],
        )

    def snapshot(self) -> dict[str, Tensor]:
        """Best matches, partners and one rotation's baseline on the tokens so far, averaged over compared seeds."""
        moments = {name: reader.moments for name, reader in self.readers.items()}
        comparison = compare(self.covariance(), moments, self.run.params.random_seed, draws=1)
        return {
            "corr": comparison.corr.nanmean(1),  # (seeds, total)
            "baseline": comparison.baseline[0].nanmean(1),
            "partner": comparison.partner,
            "tokens": torch.tensor(moments[self.names[0]].tokens),
        }

    def part(self, partner: Int[Tensor, "seeds seeds total"]) -> dict[str, Tensor]:
        """What the correlations with these partners are computed from, on the tokens so far."""
        moments = [self.readers[name].moments for name in self.names]
        sums = [one.sums[:, [SUMS.index(name) for name in PART_SUMS]].movedim(1, 0).flatten(1) for one in moments]
        return {
            "products": products_at(self.covariance(), partner),
            "sums": torch.stack(sums),  # (seeds, PART_SUMS, total)
            "tokens": torch.tensor(moments[0].tokens),
        }
