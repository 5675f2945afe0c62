"""What a unit of each term of `lib.collect.forecast.work` costs in seconds, from the rates that a machine reaches.

Rates of this machine are measured on random numbers, those of GPUs follow from data sheets (docs/scaling.md). What a
chapter costs was measured in whole reports: chapters.json, which `python -m bench.chapters` makes from finished runs.
"""

import heapq
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from lib.base.files import read_json
from lib.base.params import ROOT
from lib.collect.planner import Setting, Shape
from lib.kernels.examples import TopExamples
from lib.kernels.sketch import EXACT, product
from lib.models.trunk import Trunk

RESIDUAL_BYTES = 100  # moved for each component of the residual stream, a layer: LayerNorms, additions, q, k and v
NEURON_BYTES = 8  # for each activation of a forward pass: the product's result, GELU, the screen for examples
# Bytes moved by elementwise work, a unit of each term: on a GPU counted for bf16, on a CPU fitted to timings, where
# indexed sums, the best 16 and maxima are slower than memory.
BYTES = {
    "cpu": {"statistics": 6, "sketch": 68, "following": 0.6, "label sums": 5, "candidates": 500, "matches": 250},
    "cuda": {"statistics": 10, "sketch": 26, "following": 2, "label sums": 9, "candidates": 40, "matches": 40},
}
ROTATION = 4e-10  # seconds for each cubed neuron of a layer: rotations are drawn in fp64, on the CPU
PLACING = 7e-6  # seconds for each token whose labels are looked up, on the CPU, once for all seeds
CPU_MLP = 0.5  # share of a CPU's bf16 rate that MLPs and rotations reach
CPU_DISK = 400e6  # bytes a second
STARTING = 8.0  # seconds in which a command loads its libraries and checks what it is given
COMMANDS = 3  # of a report, beside its chapters
AT_ONCE = 2  # chapters that are made at the same time
CHAPTERS = Path(__file__).with_name("chapters.json")


@dataclass(frozen=True)
class Rates:
    """What a machine reaches: operations a second by part (`wide` in fp32), bytes a second of memory and disk, and the
    seconds that launching the kernels of one layer on one batch takes."""

    maps: float
    scores: float
    mlp: float
    products: float
    rotations: float
    wide: float
    memory: float
    disk: float
    launch: float = 0.0

    def prices(self, setting: Setting) -> dict[str, float]:
        """Seconds for a unit of each term."""
        counted = {name: size / self.memory for name, size in BYTES[setting.device].items()}
        return counted | {
            "launches": self.launch,
            "maps": 1 / self.maps,
            "scores": 1 / self.scores,
            "MLPs": 1 / self.mlp,
            "forward bytes": 1 / self.memory if self.launch else 0,  # else they are in the measured rates
            "products": 1 / self.products,
            "rotations": 1 / self.rotations,
            "deviations": 1 / self.wide,
            "cosines": 1 / self.wide,
            "drawing": ROTATION,
            "labels": PLACING,
            "disk": 1 / self.disk,
        }


# NVIDIA's data sheets (SXM): 67e12 operations a second in fp32, 495e12 in TF32 and 989e12 in bf16 without sparsity, and
# the memory's bandwidth, times the shares that bench/h200.json measured (docs/scaling.md; that of TF32 is taken to be
# bf16's). By name: memory and rates.
FP32, TF32, BF16 = 0.43 * 67e12, 0.25 * 495e12, 0.25 * 989e12
GPUS = {
    name: (memory, Rates(TF32, FP32, BF16, BF16, BF16, FP32, 0.3 * bandwidth, disk=1e9, launch=0.22e-3))
    for name, memory, bandwidth in (("H100", 80e9, 3.35e12), ("H200", 141e9, 4.8e12))
}


def rates(setting: Setting, device: torch.device) -> Rates:
    """This machine's rates, measured within seconds: matrix products, the passes' own of two layers, and copies."""
    size = 1024 if device.type == "cpu" else 8192
    squares = [torch.randn(size, size, device=device)]
    squares.append(squares[0].bfloat16() if setting.precision == "bf16" else squares[0])
    wide, fast = (2 * size**3 / _timed(partial(torch.mm, one, one), device) for one in squares)
    rows, piece = min(setting.rows, 4 * size) or setting.batch * setting.context, [] if setting.sketches else [EXACT]
    left, right = (squares[1].new_ones(rows, columns) for columns in (size, 4 * size))
    products = 2 * left.numel() * right.shape[1] / _timed(lambda: product(left, right, *piece), device)
    moved = torch.ones(2, 2**23, device=device)
    memory = 2 * moved[0].nbytes / _timed(lambda: moved[0].copy_(moved[1]), device)
    return Rates(wide, wide, fast * CPU_MLP, products, fast * CPU_MLP, wide, memory, CPU_DISK)


def layer_operations(shape: Shape, context: int) -> tuple[int, int, int]:
    """Operations for each token of one layer: attention's maps, its scores with half the context, and its MLP."""
    return 8 * shape.width**2, 2 * shape.width * context, 4 * shape.width * shape.neurons


def forward_rate(setting: Setting, shape: Shape, source: str, device: torch.device) -> float:
    """Operations a second of a forward pass with examples, on a random model of the width of the seed in `source`."""
    from transformers import AutoConfig, AutoModelForCausalLM

    layers = 2
    few = {"num_hidden_layers": layers, "vocab_size": 64, "pad_token_id": None}  # wide embeddings take long to draw
    kinds = getattr(AutoConfig.from_pretrained(source, trust_remote_code=False), "layer_types", None)
    few |= {"layer_types": kinds[:layers]} if kinds else {}
    config = AutoConfig.from_pretrained(source, attn_implementation="sdpa", trust_remote_code=False, **few)
    trunk = Trunk(
        AutoModelForCausalLM.from_config(config, trust_remote_code=False).float().to(device).eval(),
        setting.precision == "bf16",
    )
    tokens = torch.randint(64, (setting.batch, setting.context), device=device)
    examples, counted = TopExamples(layers, shape.neurons, device=device), torch.ones_like(tokens, dtype=torch.bool)

    def visit(layer: int, _pre, post) -> None:
        examples.update(layer, post, counted, torch.arange(setting.batch))

    operations = layers * sum(layer_operations(shape, setting.context)) * tokens.numel()
    return operations / _timed(lambda: trunk.run(tokens, visit), device)


def _timed(work: Callable, device: torch.device) -> float:
    """Seconds of one call, the median of three after the first, so that other work on the machine matters little."""
    taken = []
    for _ in range(4):
        _finish(device)
        started = time.perf_counter()
        work()
        _finish(device)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[1:])


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


# ---------------------------------------------------------------- chapters

# Tokens that chapters read at most, as their modules say
NULL_TOKENS, NULL_SAMPLE, NULLS = 24_576, (600, 120), 3  # 03: sampled neurons of the reference, of each other
DIRECTIONS, POWERS = 10_000, 1_000  # 05: random directions; four powers of a cosine take as long as such a width
EFFECT_TOKENS, CASES = 8_192, (24 * 9, 24)  # 06: values and neurons, of the reference and of each other
SET_TOKENS, SETS = (12_288, 3_072), (11, 6)  # 06: of the same, and sets of a layer


def chapter_work(setting: Setting, interventions: bool) -> dict[str, tuple[float, float]]:
    """What grows with the run in each chapter, by its number, and in the pages: thousands of neurons, and operations.

    Without `interventions` chapter 06 has nothing to do.
    """
    shapes, references, tokens = setting.shapes, setting.references, setting.tokens
    every, own = (sum(shapes[seed].total for seed in seeds) / 1000 for seeds in (shapes, references))
    trunk = {seed: one.layers * sum(layer_operations(one, setting.context)) for seed, one in shapes.items()}
    read, few = min(NULL_TOKENS, tokens), min(EFFECT_TOKENS, tokens / 10)
    nulls = sum(read * (trunk[seed] + 2 * NULLS * one.layers * one.neurons**2) for seed, one in shapes.items())
    effects = 0.0
    for number, seed in enumerate(references):
        shape = shapes[seed]
        others = sum(one.total for other, one in shapes.items() if other != seed)
        nulls += 2 * read * NULL_SAMPLE[number > 0] * others * (1 + NULLS)
        cases = CASES[number > 0] * few + shape.layers * SETS[number > 0] * min(SET_TOKENS[number > 0], tokens / 10)
        effects += cases * (trunk[seed] / 2 + 2 * shape.width * shape.vocabulary)  # half the layers, and the logits
    cosines = sum(2 * (one.total + DIRECTIONS) * one.vocabulary * (one.width + POWERS) for one in shapes.values())
    work = {path.name[:2]: (own, 0.0) for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))}
    return work | {
        "03": (own, nulls),
        "05": (every, cosines),
        "06": (own, effects) if interventions else (0.0, 0.0),
        "pages": (shapes[references[0]].total / 1000, 0.0),
    }


def chapter_seconds(work: dict[str, tuple[float, float]], wide: float, measured: dict | None = None) -> dict:
    """Seconds of each chapter, and of the pages, alone: what it always takes, and what its work takes at `wide`
    operations a second in fp32. `measured` is the content of chapters.json; chapters that it lacks are left out."""
    made = {}
    for name, one in (measured or read_json(CHAPTERS))["chapters"].items():
        neurons, operations = work[name]
        made[name] = one["start"] + neurons * one["neurons"] + operations * one["operations"] / wide
    return made


def report_seconds(chapters: dict[str, float]) -> float:
    """Seconds of all chapters, AT_ONCE at the same time as `make report` starts them, and of the pages after them.

    05 first, and 06, which waits for it, last.
    """
    free = [0.0] * AT_ONCE
    for name in sorted(chapters.keys() - {"pages"}, key=lambda name: (name == "06", name != "05", name)):
        heapq.heapreplace(free, free[0] + chapters[name])
    return max(free) + chapters["pages"]
