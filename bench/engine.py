"""The report's own way: the whole of it, from seeds and text, and its statistics alone, from activations."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.base.hub import seed_source
from lib.base.machine import device_of
from lib.base.params import ROOT, Params
from lib.collect.first_look import pilot
from lib.collect.one_pass import Pass
from lib.collect.planner import CANDIDATES, PARTS, batch_blocks, pack, setting_of
from lib.collect.preflight import Preflight
from lib.collect.reader import Batch, SeedReader
from lib.collect.statistics import sketched
from lib.kernels.correlation import Comparison, Covariance, Scale, candidates, compare
from lib.kernels.followed import Followed, union
from lib.kernels.sketch import Products, Sketch, Within, placed
from lib.models.trunk import Trunk, load_model
from lib.run import Run
from lib.text.blocks import Text

RANDOM_SEED = 0
CONTEXT = 256


def shipped_run(seeds: tuple[str, ...], tokens: int, precision: str, name: str = "bench", **others) -> Run:
    """A run over shipped seeds; by default the first of them is the reference, compared with each in one rotation."""
    folders = {seed: str(ROOT / "data" / "seeds" / seed) for seed in seeds}
    values = {"reference": seeds[0], "compare": "reference", "rotations": 1, "random_seed": RANDOM_SEED} | others
    text = str(ROOT / "data" / "tokens.safetensors")
    budget = {"context": CONTEXT, "token_budget": tokens}
    return Run(Params(run=name, seeds=folders, text=text, precision=precision, **budget, **values))


def fresh_pass(run: Run, kind: type[Pass] = Pass, grouped: bool = False) -> Pass:
    """The first pass of a run, with its models and pilot, nothing read yet."""
    params, device = run.params, device_of(run.params)
    inputs = Preflight(run, grouped)
    plan = pack(setting_of(params, inputs.shapes, device, groups=inputs.layout))
    if len(plan.passes) > 1:
        raise RuntimeError("the benchmark is of runs that take one pass; this machine has too little free memory.")
    scalings = {}
    for name in plan.setting.seeds:
        trunk = Trunk(load_model(seed_source(params, name)).to(device), plan.setting.precision == "bf16")
        scalings[name] = pilot(name, trunk, run.text, device)
    work = kind(inputs, plan, 0, scalings, device)
    work.load_models()
    return work


def whole(run: Run) -> tuple[dict[str, Tensor], dict]:
    """The report's own pass and algebra, all its accumulators but grouped moments included.

    Returns corr and baseline of the reference (compared seeds, total), and times and sizes.
    """
    times = [time.perf_counter()]
    work, device = fresh_pass(run), device_of(run.params)
    times.append(time.perf_counter())
    for number in range(len(work.done)):
        if number == work.reading.first:
            work.follow(work.candidates(CANDIDATES))
        work.advance(number)
    _synchronise(device)
    times.append(time.perf_counter())
    scales = {name: Scale.of(reader.moments) for name, reader in work.readers.items()}
    comparison = compare(work.covariance(), scales, work.followed, run.params.random_seed, draws=1)
    times.append(time.perf_counter())
    bases = [reader.trunk.base for reader in work.readers.values()]
    return _of_reference(comparison, run.params.reference), {
        "fixed_seconds": times[1] - times[0] + times[3] - times[2],
        "pass_seconds": times[2] - times[1],
        "precision": work.plan.setting.precision,
        "products": work.plan.setting.products,
        "model_bytes": size(parameter for base in bases for parameter in base.parameters()),
        "accumulator_bytes": size(
            tensor for accumulator in work.accumulators().values() for tensor in accumulator.state_dict().values()
        ),
    }


def _of_reference(comparison: Comparison, reference: str) -> dict[str, Float[Tensor, "compared total"]]:
    pairs = sorted(pair for pair in comparison.corr if pair[0] == reference)
    baseline = [comparison.baseline[pair][0] for pair in pairs]
    return {"corr": torch.stack([comparison.corr[pair] for pair in pairs]), "baseline": torch.stack(baseline)}


def size(tensors) -> int:
    """Bytes of some tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass
class Given:
    """One seed's activations of a number of tokens (whole batches), one tensor (tokens, neurons) a layer.

    Stands in for a trunk: a block's first token id says which of the given tokens its activations are.
    """

    pre: list[Float[Tensor, "tokens neurons"]]
    post: list[Float[Tensor, "tokens neurons"]]

    def run(self, tokens: Int[Tensor, "blocks context"], visit: Callable, layers: int | None = None) -> None:
        """Calls visit(layer, pre, post) as `lib.models.trunk.Trunk` does."""
        start, given = (int(tokens[0, 0]) - 1) * CONTEXT, len(self.pre[0])
        stop = start + tokens.numel()
        part = slice(start, stop) if stop <= given else torch.arange(start, stop, device=tokens.device) % given
        for layer in range(layers or len(self.pre)):
            visit(layer, *(x[layer][part].view(-1, CONTEXT, x[layer].shape[1]) for x in (self.pre, self.post)))

    def text(self, blocks: int) -> Text:
        """Blocks of tokens whose first ones number the given activations, repeatedly; every token counts."""
        tokens = (torch.arange(blocks) % (len(self.pre[0]) // CONTEXT) + 1)[:, None].expand(blocks, CONTEXT)
        none = torch.zeros(blocks, dtype=torch.int64)
        return Text(tokens, none, none, ("",), "", blocks + 1, 0, ())


class Statistics:
    """What the pass does with activations once it has them, for one pair of seeds and without examples and histograms:
    sketches and followed pairs, or with `exact` the products of all pairs and those within the second seed's layers."""

    def __init__(self, given: dict[str, Given], precision: str, rows: int, exact: bool = False):
        some = next(iter(given.values()))
        self.pair, self.rows, self.exact = tuple(given), rows, exact
        self.layers, self.neurons, self.device = len(some.pre), some.pre[0].shape[1], some.pre[0].device
        self.batch = batch_blocks(self.device.type, CONTEXT, self.neurons, 2**20)
        self.text = some.text(64 * self.batch)
        self.readers = {}
        for name, own in given.items():
            self.readers[name] = SeedReader(name, pilot(name, own, self.text, self.device), self.layers, precision)
            self.readers[name].trunk = own
        self.dtype, total = self.readers[self.pair[0]].dtype, self.layers * self.neurons
        if exact:
            self.products = Products(self.layers, self.neurons, total, self.dtype, self.device)
            self.within = Within(self.layers, self.neurons, self.neurons, self.dtype, self.device)
        else:
            self.sketches = {name: Sketch(rows, total, device=self.device) for name in given}
        self.followed: Followed | None = None
        self.seen = 0

    def stream(self) -> None:
        """Adds a batch of tokens of both seeds."""
        blocks = torch.arange(self.batch) + self.seen % len(self.text.tokens)
        numbers = torch.arange(self.batch * CONTEXT) + self.seen * CONTEXT
        row, sign = (one.to(self.device) for one in placed(numbers, self.rows, RANDOM_SEED, self.exact))
        counted = torch.ones(len(numbers), dtype=torch.bool, device=self.device)
        batch = Batch(self.seen, blocks, self.text.tokens[blocks].to(self.device), counted, sign[:, None])
        read = {name: reader.read(batch) for name, reader in self.readers.items()}
        operands = {name: operand for name, (operand, _) in read.items()}
        self.seen += self.batch
        if self.exact:
            a, b = operands.values()
            self.products.update(a, b)
            self.within.update(b)  # the baseline rotates the second seed
            return
        for name, sketch in self.sketches.items():
            sketch.update(operands[name], row)
        if self.followed:
            self.followed.update(0, operands, {name: sums for name, (_, sums) in read.items()}, len(numbers))

    def choose(self) -> None:
        """Names the candidates from what was seen so far, to follow them from now on."""
        scales = {name: Scale.of(reader.moments) for name, reader in self.readers.items()}
        pairs = {self.pair: union(*candidates(self.covariance(), self.pair, scales, CANDIDATES))}
        wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        total = self.layers * self.neurons
        self.followed = Followed(pairs, dict.fromkeys(self.pair, total), PARTS, wide, self.device)

    def covariance(self) -> Covariance:
        """The products so far."""
        shapes = dict.fromkeys(self.pair, (self.layers, self.neurons))
        names = self.pair, (self.pair,), self.pair[:1], shapes
        if self.exact:
            return Covariance(
                *names, lambda _a, layer, _b: self.products.sums[layer], lambda _s, n: self.within.sums[n]
            )
        return sketched(*names, {name: one.rows.to(self.dtype) for name, one in self.sketches.items()}, False)

    def result(self) -> dict[str, Float[Tensor, "compared total"]]:
        """corr and baseline of the first seed against the second."""
        scales = {name: Scale.of(reader.moments) for name, reader in self.readers.items()}
        return _of_reference(compare(self.covariance(), scales, self.followed, RANDOM_SEED, draws=1), self.pair[0])
