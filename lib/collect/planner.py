"""What a run will take: its accumulators packed into as few passes over the text as fit in memory.

Everything that a pass may hold is a `Unit`: what it accumulates, which layers of which seeds it needs, and its memory.
`units_of` lists a run's units in the order in which they are packed, and `pack` fills one pass after another up to
the memory limit. A pass runs the seeds that its units need, as far as the last layer that they need.

To add an accumulator (docs/contributing.md): list its units in `units_of` with their bytes, one per seed, or one per
seed and layer where a seed's is large (then name the kind in LAYERWISE), and say in `lib.collect.one_pass.ACCUMULATORS`
how it is made and fed. Its tensors lie in stats/<kind>-<pass>.safetensors, as `<seed>.<tensor>` or
`<seed>.<layer>.<tensor>`.
"""

from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import torch

from lib.base.errors import InputError
from lib.base.hub import seed_config
from lib.base.machine import free_memory
from lib.base.params import Params
from lib.kernels.covariance import OPERAND_DTYPES, fastest_precision, layers_at_once
from lib.kernels.grouped import Layout, memory_bytes

BATCH = {"cpu": 8, "cuda": 32}  # fewest blocks in one forward pass
GPU_MAX_BATCH = 128  # blocks
GPU_BATCH_ACTIVATIONS = 2**25  # per layer; narrower layers get larger batches
CHUNK = {"cpu": 64, "cuda": 128}  # most blocks in one covariance product
OPERANDS = 640e6  # most bytes of operands in one covariance product; on a GPU a tenth of its memory
BASE = 0.7e9  # bytes that Python and its libraries take
INT8_SUMS = 2**31 // 127**2  # tokens whose 8-bit products an int32 sum always holds
SHARE = 0.8  # of the memory that is free, for memory_gb: auto


@dataclass(frozen=True)
class Shape:
    """The shape that all seeds of a run share: layers, neurons a layer, and what else memory and time depend on."""

    layers: int
    neurons: int
    width: int
    vocabulary: int
    positions: int
    parameters: int

    @property
    def total(self) -> int:
        """Neurons of one seed."""
        return self.layers * self.neurons


@dataclass(frozen=True)
class Unit:
    """One accumulator: kind, seed, the layers it reads (first to stop − 1), and its bytes.

    A `pair` unit holds one layer of `seed` against all layers of the seed `other`.
    """

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

    def depth(self, seed: str, layers: int) -> int:
        """How many layers of a seed it needs."""
        return self.stop if seed == self.seed else layers if seed == self.other else 0


LAYERWISE = ("pair", "grouped")  # kinds with one unit for each layer of a seed


@dataclass(frozen=True)
class Setting:
    """All that a plan depends on."""

    seeds: tuple[str, ...]
    references: tuple[str, ...]
    shape: Shape
    blocks: int
    context: int
    precision: str
    memory: float  # bytes that one process may take
    processes: int = 1
    groups: Layout = ()  # of the grouped moments
    device: str = "cpu"  # or "cuda"

    @property
    def batch(self) -> int:
        """Blocks in one forward pass."""
        return batch_blocks(self.device, self.context, self.shape.neurons, self.blocks)

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Pairs of seeds whose products are summed; a single reference comes first in each."""
        if len(self.references) == 1:
            return tuple((self.references[0], seed) for seed in self.seeds if seed not in self.references)
        return tuple(combinations(self.seeds, 2))

    @property
    def rotated(self) -> tuple[str, ...]:
        """Seeds whose layers are rotated: for the baseline those that a reference is compared with, for the null of the
        families' scores, which need grouped moments, the references."""
        return tuple(
            seed for seed in self.seeds if self.groups or any(seed != reference for reference in self.references)
        )

    @property
    def accumulator_bytes(self) -> int:
        """Bytes of one summed product."""
        return 8 if self.precision == "fp64" else 4

    @property
    def operand_bytes(self) -> int:
        """Bytes of one activation in a product."""
        return OPERAND_DTYPES[self.precision].itemsize

    @property
    def model_bytes(self) -> int:
        """Bytes of one seed's weights as they run."""
        return self.shape.parameters * 4


def batch_blocks(device: str, context: int, neurons: int, blocks: int) -> int:
    """Blocks in one forward pass, by the neurons of a layer and the `blocks` of the text; on a GPU a power of two.

    On a GPU, launching the kernels of a narrow layer takes longer than running them: four times as long for the
    shipped seeds in batches of 32 blocks.
    A short text still has sixteen batches where the least allows it.
    """
    fitting = min(GPU_BATCH_ACTIVATIONS // (context * neurons), blocks // 16) if device == "cuda" else 0
    return max(BATCH[device], min(GPU_MAX_BATCH, 1 << fitting.bit_length() >> 1))


def units_of(setting: Setting) -> list[Unit]:
    """Every accumulator of a run, those of a seed before the first pair that needs the seed."""
    shape, square = setting.shape, setting.shape.neurons**2 * setting.accumulator_bytes
    begun, units = set(), []
    for a, b in setting.pairs:
        for seed in (a, b):
            if seed in begun:
                continue
            begun.add(seed)
            units += [
                Unit("moments", seed, 0, shape.layers, 104 * shape.total),
                Unit("examples", seed, 0, shape.layers, 20 * 60 * shape.total),
                Unit("histogram", seed, 0, shape.layers, 64 * 8 * shape.total),
            ]
            if seed in setting.rotated:
                units.append(Unit("within", seed, 0, shape.layers, shape.layers * square))
        units += [Unit("pair", a, layer, layer + 1, shape.layers * square, b) for layer in range(shape.layers)]
    if setting.groups:  # last, since a pass for them alone runs few seeds
        memory = memory_bytes(setting.groups, shape.neurons)
        units += [
            Unit("grouped", seed, layer, layer + 1, memory)
            for seed in setting.references
            for layer in range(shape.layers)
        ]
    return units


@dataclass(frozen=True)
class PassPlan:
    """The units of one pass over the text and how many blocks go into one product."""

    units: tuple[Unit, ...]
    chunk: int

    @property
    def measured(self) -> set[str]:
        """The seeds whose moments or products the pass sums; the others' activations it only groups or counts."""
        kinds = ("moments", "within", "pair")
        return {seed for unit in self.units if unit.kind in kinds for seed in (unit.seed, unit.other) if seed}

    def depths(self, layers: int) -> dict[str, int]:
        """The seeds to run, in the order that keeps the fewest operands, and how many layers of each."""
        seeds = sorted({seed for unit in self.units for seed in (unit.seed, unit.other) if seed})
        pairs = {(unit.seed, unit.other) for unit in self.units if unit.other}
        ordered = sorted(seeds, key=lambda seed: (-sum(seed in pair for pair in pairs), seed))
        return {seed: max(unit.depth(seed, layers) for unit in self.units) for seed in ordered}


@dataclass(frozen=True)
class Plan:
    """A run's passes."""

    setting: Setting
    passes: tuple[PassPlan, ...]

    def takes_snapshots(self, part: PassPlan, count: int) -> bool:
        """Whether a pass records `count` times how results converge: only one that holds all products can.

        A snapshot's rotations take 4·N²·n operations a pair and all products 2·N²·tokens.
        """
        products = {"pair", "within"}
        holders = [one for one in self.passes if any(unit.kind in products for unit in one.units)]
        cheap = count * 4 * self.setting.shape.neurons < self.setting.blocks * self.setting.context
        return holders == [part] and self.setting.processes == 1 and cheap

    def as_json(self) -> dict:
        """The passes by the names of their units, to go on with the same ones after a kill."""
        passes = [{"chunk": part.chunk, "units": [f"{u.kind}.{u.name}" for u in part.units]} for part in self.passes]
        return {"precision": self.setting.precision, "passes": passes}

    @classmethod
    def resumed(cls, setting: Setting, begun: dict) -> "Plan":
        """The passes that a run began with, even if memory, device or number of processes differ now.

        They keep their precision, which the pilot's scales and the moments of finished passes depend on.
        """
        setting = replace(setting, precision=begun["precision"])
        units = {f"{unit.kind}.{unit.name}": unit for unit in units_of(setting)}
        passes = [PassPlan(tuple(units[name] for name in part["units"]), part["chunk"]) for part in begun["passes"]]
        return cls(setting, tuple(passes))


def work_memory(setting: Setting, passing: PassPlan) -> float:
    """Bytes of a pass beyond weights and accumulators: libraries, operands, and the activations of a batch."""
    shape, tokens = setting.shape, setting.batch * setting.context
    depths = passing.depths(shape.layers)
    whole = (
        -(-passing.chunk // setting.batch) * setting.batch
    )  # a plan that was begun on another device may not have whole batches
    operands = _most_operands(passing, depths) * shape.neurons * setting.operand_bytes * whole * setting.context
    # a batch's attention and residual in the trunk; pre, post and scratch of one layer; the dither
    scratch = 12 if setting.groups else 8  # grouped moments: x and sums by row
    batch = tokens * (12 * shape.width + scratch * shape.neurons) * 4
    wide = min(shape.layers, layers_at_once(shape.neurons, setting.accumulator_bytes, setting.device))
    products = (2 + wide) * shape.neurons**2 * setting.accumulator_bytes
    return BASE + operands + batch + products


def _most_operands(passing: PassPlan, depths: dict[str, int]) -> int:
    """The most layers of operands that are held at once, seeds being run in the order of `depths`."""
    held, most = set(), 0
    for seed, later in release_order(passing, depths):
        held.add(seed)
        most = max(most, sum(depths[name] for name in held & passing.measured))
        held &= later
    return most


def release_order(passing: PassPlan, depths: dict[str, int]) -> list[tuple[str, set[str]]]:
    """The seeds in order, each with those whose operands a later seed still needs."""
    names = list(depths)
    steps = []
    for index, seed in enumerate(names):
        needed = set()
        for unit in passing.units:
            pair = {unit.seed, unit.other}
            if unit.other and pair & set(names[index + 1 :]):
                needed |= pair
        steps.append((seed, needed))
    return steps


def pass_memory(setting: Setting, passing: PassPlan) -> float:
    """Peak bytes of one process in one pass."""
    weights = setting.model_bytes * len(passing.depths(setting.shape.layers))
    return weights + sum(unit.memory for unit in passing.units) + work_memory(setting, passing)


def _with_chunk(setting: Setting, units: tuple[Unit, ...]) -> PassPlan:
    """The pass with the largest chunk whose operands are small enough."""
    single = PassPlan(units, 1)
    depths = single.depths(setting.shape.layers)
    block = _most_operands(single, depths) * setting.shape.neurons * setting.operand_bytes * setting.context
    batch, most = setting.batch, CHUNK[setting.device]
    limit = OPERANDS if setting.device == "cpu" else setting.memory / 10
    fitting = int(limit // block) // batch * batch if block else most
    if setting.precision == "int8":
        most = min(most, INT8_SUMS // setting.context // batch * batch)
    # at least sixteen chunks in the text, unless it is short, for snapshots and for sharing among processes
    return PassPlan(units, max(batch, min(most, fitting, setting.blocks // 16 // batch * batch)))


def pack(setting: Setting) -> Plan:
    """Fills pass after pass up to the memory limit; InputError, in one sentence, where a single unit does not fit."""
    passes: list[PassPlan] = []
    held: tuple[Unit, ...] = ()
    for unit in units_of(setting):
        wider = _with_chunk(setting, (*held, unit))
        if pass_memory(setting, wider) <= setting.memory:
            held = wider.units
            continue
        if held:
            passes.append(_with_chunk(setting, held))
        held = (unit,)
        least = pass_memory(setting, _with_chunk(setting, held))
        if least > setting.memory:
            raise InputError(
                f"this run needs at least {least / 1e9:.1f} GB of memory in one process, but memory_gb allows "
                f"{setting.memory / 1e9:.1f} GB; allow more, use fewer processes, or use smaller models."
            )
    return Plan(setting, (*passes, _with_chunk(setting, held)))


def shape_of(source: str) -> Shape:
    """A model's shape from its config alone; its weights are counted on the meta device, none is read."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(source)
    inner = getattr(config, "n_inner", None) or getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    parameters = sum(tensor.numel() for tensor in model.parameters())
    return Shape(
        config.num_hidden_layers,
        inner,
        config.hidden_size,
        config.vocab_size,
        config.max_position_embeddings,
        parameters,
    )


def shared_shape(params: Params) -> Shape:
    """The shape of all seeds; InputError where a config cannot be read or they differ."""
    from lib.models.trunk import read_config

    shapes = {}
    for name in sorted(params.seeds):
        folder = seed_config(params, name)
        read_config(name, Path(folder))
        shapes[name] = shape_of(folder)
    if len(set(shapes.values())) > 1:
        found = {name: (shape.layers, shape.neurons) for name, shape in shapes.items()}
        raise InputError(f"the seeds differ in shape (layers, neurons a layer): {found}; they must be the same model.")
    return next(iter(shapes.values()))


def setting_of(params: Params, shape: Shape, device: torch.device, processes: int = 1, groups: Layout = ()) -> Setting:
    """What the plan of a run depends on, on this device; `processes` share the memory of this machine.

    `groups` is the layout of grouped moments (`lib.kernels.grouped`); without it nothing grouped is planned.
    They are planned for the references, layer by layer, since those of one layer of a large model take gigabytes.
    """
    blocks = params.token_budget // params.context
    precision = params.precision
    if precision == "auto":
        precision = fastest_precision(device, blocks * params.context)
    if (
        precision == "int8"
        and batch_blocks(device.type, params.context, shape.neurons, blocks) * params.context > INT8_SUMS
    ):
        precision = "fp32"  # a single batch could pass what 8-bit products are summed in
    memory = free_memory(device) * SHARE if params.memory_gb == "auto" else params.memory_gb * 1e9
    return Setting(
        tuple(sorted(params.seeds)),
        tuple(sorted(params.seeds)) if params.compare == "all" else (params.reference,),
        shape,
        blocks,
        params.context,
        precision,
        memory if device.type == "cuda" else memory / processes,
        processes,
        groups,
        device.type,
    )
