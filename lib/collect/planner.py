"""What a run will take: its accumulators packed into as few passes over the text as fit in memory.

Everything that a pass may hold is a `Unit`: what it accumulates, which layers of which seeds it needs, and its memory.
Matches need all seeds at the same time, so that their units make the first pass; `pack` adds what else fits, and fills
further passes with the rest. A pass runs the seeds that its units need, as far as the last layer that they need.

To add an accumulator (docs/contributing.md): list its units in `units_of` with their bytes, one per seed, or one per
seed and layer where a seed's is large (then name the kind in LAYERWISE), and say in `lib.collect.one_pass.ACCUMULATORS`
how it is made and fed. Its tensors lie in stats/<kind>-<pass>.safetensors, as `<seed>.<tensor>` or
`<seed>.<layer>.<tensor>`.
"""

from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from lib.base.errors import InputError, first_line
from lib.base.hub import seed_config
from lib.base.machine import allowed_memory
from lib.base.params import SHORT, Params
from lib.kernels.fused import OPERAND_DTYPES, fastest_precision
from lib.kernels.grouped import Layout, memory_bytes

BATCH_TOKENS = 2048  # about, in one forward pass on a CPU, so that what is read of them stays in its caches
GPU_BATCH_TOKENS = 8192  # at least, in one forward pass on a GPU
GPU_MAX_BATCH_TOKENS = 32768
GPU_BATCH_ACTIVATIONS = 2**25  # per layer; narrower layers get larger batches
BASE = 0.7e9  # bytes that Python and its libraries take
FIRST = 4  # one block in so many is in the first part of the text, which names the candidates
CANDIDATES = 20  # neurons of another seed that are followed for each neuron
PARTS = 16  # of the text after its first part, for intervals and convergence
ENOUGH = 2**25  # tokens; in a longer text pairs are followed on one batch in several, spread over it
BEGUN = ("precision", "products", "device")  # what a begun run keeps of its setting; batches follow the device
CORE = ("moments", "sketch", "products", "followed")  # kinds of which the first pass needs all units


@dataclass(frozen=True)
class Shape:
    """The shape of a seed: layers, neurons a layer, and what else memory and time depend on."""

    layers: int
    neurons: int
    width: int
    vocabulary: int
    positions: int
    parameters: int

    @property
    def total(self) -> int:
        """Neurons of the seed."""
        return self.layers * self.neurons


@dataclass(frozen=True)
class Unit:
    """One accumulator: kind, seed, the layers it reads (first to stop − 1), its bytes, and a pair's other seed."""

    kind: str
    seed: str
    first: int
    stop: int
    memory: int
    other: str | None = None

    @property
    def name(self) -> str:
        """What its tensors are called in files."""
        where = f"{self.seed}.{self.first}" if self.kind in LAYERWISE else self.seed
        return where if self.other is None else f"{where}.{self.other}"


LAYERWISE = ("grouped",)  # kinds with one unit for each layer of a seed


@dataclass(frozen=True)
class Setting:
    """All that a plan depends on."""

    shapes: dict[str, Shape]  # by seed
    references: tuple[str, ...]
    blocks: int
    context: int
    precision: str
    products: str  # sketch or exact
    sketch_rows: int
    memory: float  # bytes that one process may take
    processes: int = 1
    groups: Layout = ()  # of the grouped moments
    device: str = "cpu"  # or "cuda"
    label_tokens: int = 2**63  # labels are summed on so many, or on all of a shorter text

    @property
    def seeds(self) -> tuple[str, ...]:
        """Names of the seeds, in order."""
        return tuple(sorted(self.shapes))

    @property
    def tokens(self) -> int:
        """Tokens of the text, counted or not."""
        return self.blocks * self.context

    @property
    def labelled(self) -> int:
        """Tokens of the text on which labels are summed."""
        return min(self.tokens, self.label_tokens)

    @property
    def batch(self) -> int:
        """Blocks in one forward pass."""
        return batch_blocks(self.device, self.context, max(one.neurons for one in self.shapes.values()), self.blocks)

    @property
    def every(self) -> int:
        """One batch in so many is sampled (`Reading`)."""
        return -(-self.tokens // ENOUGH)

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Pairs of seeds that are compared; a single reference comes first in each."""
        if len(self.references) == 1:
            return tuple((self.references[0], seed) for seed in self.seeds if seed not in self.references)
        return tuple(combinations(self.seeds, 2))

    @property
    def own_rows(self) -> bool:
        """Whether each token has a row of its own: exact, and no larger than a sketch of a long text."""
        return self.products == "exact" and self.tokens <= SHORT * self.sketch_rows

    @property
    def rows(self) -> int:
        """Rows of a seed's sketch; 0 where the products of each pair are summed instead."""
        return self.tokens if self.own_rows else 0 if self.products == "exact" else self.sketch_rows

    @property
    def sketches(self) -> bool:
        """Whether tokens are added up in rows, with signs."""
        return self.products == "sketch"

    @property
    def operand_bytes(self) -> int:
        """Bytes of one activation in a product."""
        return OPERAND_DTYPES[self.precision].itemsize

    @property
    def sum_bytes(self) -> int:
        """Bytes of one sum."""
        return 8 if self.precision == "fp64" else 4


def batch_blocks(device: str, context: int, neurons: int, blocks: int) -> int:
    """Blocks in one forward pass, by the neurons of a layer and the `blocks` of the text; on a GPU a power of two.

    On a GPU, launching the kernels of a narrow layer takes longer than running them: four times as long for the
    shipped seeds in batches of 8,192 tokens. A short text still has sixteen batches where the least allows it.
    """
    if device != "cuda":
        return max(1, BATCH_TOKENS // context)
    least, most = (max(1, tokens // context) for tokens in (GPU_BATCH_TOKENS, GPU_MAX_BATCH_TOKENS))
    fitting = min(GPU_BATCH_ACTIVATIONS // (context * neurons), blocks // 16)
    return max(least, min(most, 1 << fitting.bit_length() >> 1))


@dataclass(frozen=True)
class Reading:
    """The order in which a text is read: batches of blocks, the first part's first, then the others by their number."""

    batches: tuple[Int[Tensor, "blocks"], ...]
    first: int  # batches of the first part, whose blocks are spread over the whole text
    every: int = 1  # one batch in so many is sampled: pairs are followed there

    @classmethod
    def of(cls, blocks: int, batch: int, every: int = 1) -> "Reading":
        """Of a text of so many blocks."""
        everyone = torch.arange(blocks)
        early, late = (everyone[one].split(batch) for one in (everyone % FIRST == 0, everyone % FIRST != 0))
        return cls((*early, *(one for one in late if len(one))), len(early), every)

    def sampled(self, batch: int) -> bool:
        """Whether a batch is sampled."""
        return batch % self.every == 0

    def part(self, batch: int) -> int | None:
        """In which of the PARTS of the text after its first part a sampled batch lies."""
        if batch < self.first or not self.sampled(batch):
            return None
        return (batch - self.first) * PARTS // (len(self.batches) - self.first)


def units_of(setting: Setting) -> list[Unit]:
    """Every accumulator of a run, those that all matches need first."""
    units, later = [], []
    for seed in setting.seeds:
        shape = setting.shapes[seed]
        of_seed = seed, 0, shape.layers
        units.append(Unit("moments", *of_seed, 80 * shape.total))
        if setting.rows:
            width = setting.operand_bytes if setting.own_rows else setting.sum_bytes
            units.append(Unit("sketch", *of_seed, setting.rows * shape.total * width))
        else:
            units.append(Unit("products", *of_seed, shape.layers * shape.neurons**2 * setting.sum_bytes))
        later.append(Unit("examples", *of_seed, 20 * 60 * shape.total))
        later.append(Unit("histogram", *of_seed, 64 * 8 * shape.total))
    for a, b in setting.pairs:
        left, right = setting.shapes[a], setting.shapes[b]
        most = CANDIDATES * (left.total + right.total)
        units.append(Unit("followed", a, 0, left.layers, most * (16 + PARTS * setting.sum_bytes), b))
        if not setting.rows:
            units.append(Unit("products", a, 0, left.layers, left.total * right.total * setting.sum_bytes, b))
    for seed in setting.references if setting.groups else ():
        shape = setting.shapes[seed]
        memory = memory_bytes(setting.groups, shape.neurons)
        later += [Unit("grouped", seed, layer, layer + 1, memory) for layer in range(shape.layers)]
    return units + later


@dataclass(frozen=True)
class PassPlan:
    """The units of one pass over the text."""

    units: tuple[Unit, ...]

    @property
    def compares(self) -> bool:
        """Whether it is the pass that compares the seeds."""
        return any(unit.kind in CORE for unit in self.units)

    def depths(self, shapes: dict[str, Shape]) -> dict[str, int]:
        """The seeds to run, and how many layers of each."""
        seeds = sorted({unit.seed for unit in self.units} | {unit.other for unit in self.units if unit.other})
        if self.compares:
            return {seed: shapes[seed].layers for seed in seeds}
        return {seed: max(unit.stop for unit in self.units if unit.seed == seed) for seed in seeds}


@dataclass(frozen=True)
class Plan:
    """A run's passes."""

    setting: Setting
    passes: tuple[PassPlan, ...]

    def as_json(self) -> dict:
        """The passes by the names of their units, and what else a state depends on, to go on with after a kill."""
        setting = self.setting
        fixed = {name: getattr(setting, name) for name in BEGUN}
        return fixed | {"passes": [[f"{u.kind}.{u.name}" for u in part.units] for part in self.passes]}

    @classmethod
    def resumed(cls, setting: Setting, begun: dict, without: tuple[str, ...] = ()) -> "Plan":
        """The passes that a run began with, even if memory, device or number of processes differ now.

        Those `without` some kinds of units, where nobody wants them.

        They keep their precision and their batches, which the sums so far depend on.
        """
        setting = replace(setting, **{name: begun[name] for name in BEGUN})
        units = {f"{unit.kind}.{unit.name}": unit for unit in units_of(setting)}
        kept = [[name for name in part if name.split(".")[0] not in without] for part in begun["passes"]]
        return cls(setting, tuple(PassPlan(tuple(units[name] for name in part)) for part in kept if part))


def work_memory(setting: Setting, passing: PassPlan) -> float:
    """Bytes of a pass beyond weights and accumulators: libraries, a batch's activations and operands, and the algebra
    that names the candidates."""
    tokens, used = setting.batch * setting.context, [setting.shapes[seed] for seed in passing.depths(setting.shapes)]
    # a batch's attention and residual in the trunk; pre, post and scratch of one layer
    batch = tokens * max(12 * shape.width + 12 * shape.neurons for shape in used) * 4
    if not passing.compares:
        return BASE + batch
    operands = tokens * sum(shape.total for shape in used) * 2 * setting.operand_bytes  # by token and by neuron
    widest, largest = max(shape.neurons for shape in used), max(shape.total for shape in used)
    algebra = 3 * widest * largest * setting.sum_bytes  # between two batches
    if setting.own_rows or setting.operand_bytes < setting.sum_bytes:  # then the rows are copied, those seen so far
        rows = -(-setting.rows // FIRST) if setting.own_rows else setting.rows
        algebra += rows * sum(shape.total for shape in used) * setting.operand_bytes
    return BASE + max(operands + batch, algebra)


def pass_memory(setting: Setting, passing: PassPlan) -> float:
    """Peak bytes of one process in one pass; of several, each also takes in an accumulator of another one."""
    weights = sum(4 * setting.shapes[seed].parameters for seed in passing.depths(setting.shapes))
    taken_in = max(unit.memory for unit in passing.units) if setting.processes > 1 else 0
    return weights + sum(unit.memory for unit in passing.units) + taken_in + work_memory(setting, passing)


def pack(setting: Setting) -> Plan:
    """Fills pass after pass up to the memory limit; InputError, in one sentence, where one does not fit."""
    units = units_of(setting)
    held = [unit for unit in units if unit.kind in CORE]
    _refuse_too_large(setting, held)
    passes = []
    for unit in units[len(held) :]:
        if pass_memory(setting, PassPlan((*held, unit))) > setting.memory:
            passes.append(PassPlan(tuple(held)))
            held = []
            _refuse_too_large(setting, [unit])
        held.append(unit)
    return Plan(setting, (*passes, PassPlan(tuple(held))))


def _refuse_too_large(setting: Setting, units: list[Unit]) -> None:
    least = pass_memory(setting, PassPlan(tuple(units)))
    if least > setting.memory:
        fewer = "a smaller sketch_rows, " if setting.products == "sketch" else ""
        raise InputError(
            f"this run needs at least {least / 1e9:.1f} GB of memory in one process, but memory_gb allows "
            f"{setting.memory / 1e9:.1f} GB; allow more, or use {fewer}fewer processes, or smaller models."
        )


def shape_of(source: str) -> Shape:
    """A model's shape from its config alone; its weights are counted on the meta device, none is read."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from lib.models.architectures import positions_of
    from lib.models.trunk import mlps

    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    *_, writer = mlps(model)[0]
    parameters = sum(tensor.numel() for tensor in model.parameters())
    return Shape(
        config.num_hidden_layers,
        getattr(writer, "in_features", None) or len(writer.weight),  # the latter of a Conv1D
        config.hidden_size,
        config.vocab_size,
        positions_of(config),
        parameters,
    )


def seed_shapes(params: Params) -> dict[str, Shape]:
    """The shape of every seed; InputError where a config cannot be read."""
    from lib.models.trunk import read_config

    shapes = {}
    for name in sorted(params.seeds):
        folder = seed_config(params, name)
        read_config(name, Path(folder))
        try:
            shapes[name] = shape_of(folder)
        except InputError as error:
            raise InputError(f"seed '{name}': {error}") from error
        except Exception as error:  # transformers raises many types for sizes and names that do not go together
            why = f"no model can be made of {folder}/config.json ({type(error).__name__}: {first_line(error)})"
            raise InputError(f"seed '{name}': {why}.") from error
    return shapes


def setting_of(
    params: Params, shapes: dict[str, Shape], device: torch.device, processes: int = 1, groups: Layout = ()
) -> Setting:
    """What the plan of a run depends on, on this device; `processes` share the memory of this machine.

    `groups` is the layout of grouped moments (`lib.kernels.grouped`); without it nothing grouped is planned.
    They are planned for the references, layer by layer, since those of one layer of a large model take gigabytes.
    """
    memory = allowed_memory(params, device)
    return Setting(
        shapes,
        tuple(sorted(params.seeds)) if params.compare == "all" else (params.reference,),
        params.token_budget // params.context,
        params.context,
        fastest_precision(device) if params.precision == "auto" else params.precision,
        params.products_used,
        params.sketch_rows,
        memory if device.type == "cuda" else memory / processes,
        processes,
        groups,
        device.type,
        params.label_tokens,
    )
