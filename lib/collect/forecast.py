"""What a run will cost, before any weight is read: memory, passes, operations, disk, and time here and on GPUs.

Operations are counted from the shape; speeds are measured for a few seconds on a random model of the same width and
on products of the same size. `python -m lib.collect.forecast params.yaml` (`make plan`) prints it.
"""

import argparse
import re
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from scipy.sparse import random_array

from lib.base.errors import InputError, exit_on_input_error
from lib.base.hub import seed_config
from lib.base.machine import device_of
from lib.base.params import Params, read_params
from lib.collect.passes import SNAPSHOTS
from lib.collect.planner import Plan, Setting, Shape, pack, pass_memory, setting_of, work_memory
from lib.collect.preflight import Preflight
from lib.collect.processes import Processes
from lib.kernels.correlation import Scale, block_baseline, haar_rotation
from lib.kernels.covariance import OPERAND_DTYPES, LayerProducts, Operands, symmetric_share
from lib.kernels.examples import TopExamples
from lib.kernels.fused import fastest_layer_statistics
from lib.kernels.grouped import ACTIVE, SQUARE, SUM, GroupedMoments, Layout, Places, Table
from lib.labels.labels import TOKENS_KEPT
from lib.labels.syntax import needs_spacy
from lib.labels.token_classes import TOKEN_CLASSES
from lib.models.trunk import Trunk, mixed_precision
from lib.run import Run
from lib.text.tokenise import made_token_file

# NVIDIA's data sheets (SXM): dense peaks without sparsity, memory, bandwidth.
GPUS = {
    "H100": {"bf16": 989e12, "fp32": 67e12, "memory": 80e9, "bandwidth": 3.35e12},
    "H200": {"bf16": 989e12, "fp32": 67e12, "memory": 141e9, "bandwidth": 4.8e12},
}
# The shares of these peaks that a run is taken to reach.
PRODUCT_SHARE, FORWARD_SHARE, ALGEBRA_SHARE, TRAFFIC_SHARE = 0.6, 0.25, 0.5, 0.3
ACTIVATION_TRAFFIC = 40  # bytes moved for each activation that is measured
GROUPED_TRAFFIC = 20  # bytes moved for each activation and table of grouped moments
TRIED_GROUPS = 4096  # of each grouping when the speed of grouped moments is measured
LABELS_A_TOKEN = 7  # of those of its text
FREQUENT_WORDS = 300  # at most, with a label of their own
GPU_DISK = 1e9  # bytes a second that statistics are written and read with
COMPILING = 20.0  # seconds that torch.compile and loading libraries take


@dataclass(frozen=True)
class Speeds:
    """Seconds for the parts of a run on one device."""

    product: float  # a product of two layers, for each token
    layer: float  # one layer of one seed, forward and with examples, for each token
    elementwise: float  # one layer's statistics and operands, for each token
    grouped: float  # one layer's grouped moments, for each token
    logits: float  # the last logits of one seed, for each token
    rotation: float  # drawing one layer's rotation and its rotated deviations
    rotated: float  # one block's baseline
    matched: float  # one block's best matches both ways
    disk: float  # a byte written and later read


def operations(setting: Setting, plan: Plan) -> dict[str, float]:
    """Multiplications and additions of products and forward passes in all passes."""
    shape, tokens = setting.shape, setting.blocks * setting.context
    blocks = _blocks(plan)
    layers = sum(depth for part in plan.passes for depth in part.depths(shape.layers).values())
    per_layer = sum(_layer_operations(shape, setting.context))
    return {"products": 2.0 * blocks * shape.neurons**2 * tokens, "forward": float(layers * per_layer * tokens)}


def _blocks(plan: Plan) -> float:
    """Products of two layers in all passes; of one with itself only part is computed."""
    weights = {
        "pair": 1.0,
        "within": symmetric_share(
            plan.setting.shape.neurons, OPERAND_DTYPES[plan.setting.precision], plan.setting.device
        ),
    }
    return sum(plan.setting.shape.layers * weights.get(unit.kind, 0.0) for part in plan.passes for unit in part.units)


def _layer_operations(shape: Shape, context: int) -> tuple[int, int]:
    """Operations for each token of one layer's attention and of its MLP."""
    return 2 * (4 * shape.width**2 + 2 * shape.width * context), 4 * shape.width * shape.neurons


def seconds(plan: Plan, speeds: Speeds, draws: int) -> dict[str, float]:
    """Predicted seconds of the passes and of the algebra after them."""
    setting, shape = plan.setting, plan.setting.shape
    tokens = setting.blocks * setting.context / setting.processes
    blocks = _blocks(plan)
    depths = [(part, part.depths(shape.layers)) for part in plan.passes]
    layers = sum(depth for _, own in depths for depth in own.values())
    measured = sum(own[seed] for part, own in depths for seed in part.measured)
    grouped = sum(unit.kind == "grouped" for part in plan.passes for unit in part.units)
    look = (
        min(setting.blocks, 64) * shape.layers * (speeds.layer + speeds.elementwise)
        + min(setting.blocks, 256) * (shape.layers * speeds.layer + speeds.logits)
    ) * setting.context
    each = blocks * speeds.product + layers * speeds.layer + measured * speeds.elementwise + grouped * speeds.grouped
    passes = tokens * each + len(setting.seeds) * look + COMPILING
    compared = sum(any(seed != reference for reference in setting.references) for seed in setting.seeds)
    directions = sum(seed != reference for reference in setting.references for seed in setting.seeds)
    matched = len(setting.pairs) * shape.layers**2 * speeds.matched
    rotated = compared * shape.layers * speeds.rotation + directions * shape.layers**2 * speeds.rotated
    passes += (
        len(SNAPSHOTS) * (matched + rotated) * any(plan.takes_snapshots(part, len(SNAPSHOTS)) for part in plan.passes)
    )
    algebra = matched + draws * rotated
    return {"passes": passes + disk(plan) * speeds.disk, "tables": algebra + disk(plan) * speeds.disk * (1 + draws) / 2}


def disk(plan: Plan) -> float:
    """Bytes of statistics that the run leaves."""
    return float(sum(unit.memory for part in plan.passes for unit in part.units))


def measured(setting: Setting, plan: Plan, source: str, device: torch.device) -> Speeds:
    """Speeds of this device, from a few seconds on random numbers of the run's sizes."""
    n = setting.shape.neurons
    dtype = OPERAND_DTYPES[setting.precision]
    rows, layers = max(part.chunk for part in plan.passes) * setting.context, min(setting.shape.layers, 4)
    operands = [Operands.empty(rows, layers, n, dtype, device) for _ in range(2)]
    for own in operands:
        view = own.in_order(0)
        view.copy_(torch.randn(view.shape, device=device) * 20)
    sums = LayerProducts(layers, n, dtype, device)
    product = _timed(lambda: sums.update(operands[0][0], operands[1]), device, 5) / layers / rows
    del operands
    wide = sums.sums.dtype
    block, turn = sums.sums[0], torch.randn(n, n, dtype=wide, device=device)
    ones = torch.ones(n, dtype=wide, device=device)
    scale = Scale(ones, ones, ones, 1)
    rotated = _timed(lambda: block_baseline(block, scale, scale, turn), device, 3)
    matched = _timed(
        lambda: [((block * ones[:, None] - torch.outer(ones, ones)) * ones).max(axis) for axis in (1, 0)], device, 3
    )
    generator = torch.Generator().manual_seed(0)
    double = torch.randn(n, n, dtype=torch.float64, device=device)
    rotation = _timed(lambda: haar_rotation(n, generator), torch.device("cpu"), 1)
    rotation += _timed(lambda: double @ double, device, 1)
    layer, elementwise, logits = _forward(setting, source, device)
    return Speeds(product, layer, elementwise, _grouped(setting, device), logits, rotation, rotated, matched, 1 / 400e6)


def _timed(work: Callable, device: torch.device, times: int) -> float:
    """Seconds of one call, the median of some after the first: other work on the machine must not make the forecast."""
    if times > 1:
        work()
    taken = []
    for _ in range(times):
        _finish(device)
        started = time.perf_counter()
        work()
        _finish(device)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _grouped(setting: Setting, device: torch.device) -> float:
    """Seconds for each token of one layer's grouped moments, on random groups."""
    batch, n = setting.batch, setting.shape.neurons
    shape, ids, tables = (4 * batch, setting.context), {}, {}
    for name, rows, kinds in setting.groups:
        ids[name] = torch.randint(TRIED_GROUPS, shape)
        share = min(1, (LABELS_A_TOKEN if SQUARE in kinds.split() else 1) / rows)  # of the rows that a group is in
        member = random_array((rows, TRIED_GROUPS), density=share, format="csc", rng=0).astype(bool)
        tables[name] = Table(name, member, tuple(kinds.split()))
    places = Places(ids, tables, device)
    work = GroupedMoments(places.layout, torch.ones(2, n, device=device))
    post = torch.randn(batch * setting.context, n, device=device)
    post = post.bfloat16() if mixed_precision(setting.precision) else post
    counted = torch.ones(len(post), dtype=torch.bool, device=device)
    at = [places.at(torch.arange(batch) + start, counted) for start in range(0, shape[0], batch)]
    return _timed(lambda: [work.update(post, one) for one in at], device, 3) / len(at) / len(post) if tables else 0.0


def _forward(setting: Setting, source: str, device: torch.device) -> tuple[float, float, float]:
    """Seconds for each token of one layer, of its statistics, and of the logits, on a random model."""
    from transformers import AutoConfig, AutoModelForCausalLM

    depth = 3
    config = AutoConfig.from_pretrained(source, num_hidden_layers=depth, attn_implementation="sdpa")
    model = AutoModelForCausalLM.from_config(config).float().to(device).eval()
    mixed = mixed_precision(setting.precision)
    trunk, summed, n = Trunk(model, mixed), fastest_layer_statistics(), setting.shape.neurons
    tokens = torch.randint(0, setting.shape.vocabulary, (setting.batch, setting.context), device=device)
    rows = tokens.numel()
    weights, scaling = torch.ones(rows, 1, device=device), torch.ones(2, n, device=device)
    dither = torch.rand(rows, n, device=device)
    examples = TopExamples(depth, n, device=device)
    counted = torch.ones_like(tokens, dtype=torch.bool)

    flat = torch.randn(rows, n, device=device).to(torch.bfloat16 if mixed else torch.float32)

    def visit(layer, _pre, post):
        examples.update(layer, post, counted, torch.arange(setting.batch))

    layer = _timed(lambda: trunk.run(tokens, visit), device, 3) / depth / rows
    operand = torch.empty(rows, n, dtype=OPERAND_DTYPES[setting.precision], device=device)
    elementwise = _timed(lambda: summed(flat, flat, weights, scaling, scaling, dither, operand), device, 4) / rows
    hidden = torch.zeros(setting.context, setting.shape.width, device=device)
    head = model.get_output_embeddings()
    with torch.inference_mode():
        logits = _timed(lambda: head(hidden).float().log_softmax(1), device, 3) / setting.context
    return layer, elementwise, logits


def published(setting: Setting, gpu: str) -> Speeds:
    """Speeds of a GPU from its data sheet and the shares of its peak that are taken to be reached."""
    peaks, shape = GPUS[gpu], setting.shape
    product_peak = peaks["bf16"] if setting.precision in ("bf16", "int8") else peaks["fp32"]
    attention, mlp = _layer_operations(shape, setting.context)
    cube = 2.0 * shape.neurons**3
    algebra = cube / (ALGEBRA_SHARE * peaks["fp32"])
    return Speeds(
        product=2.0 * shape.neurons**2 / (PRODUCT_SHARE * product_peak),
        layer=(attention / peaks["fp32"] + mlp / product_peak) / FORWARD_SHARE,
        elementwise=ACTIVATION_TRAFFIC * shape.neurons / (TRAFFIC_SHARE * peaks["bandwidth"]),
        grouped=GROUPED_TRAFFIC * len(setting.groups) * shape.neurons / (TRAFFIC_SHARE * peaks["bandwidth"]),
        logits=2.0 * shape.width * shape.vocabulary / (FORWARD_SHARE * peaks["fp32"]),
        rotation=5 * algebra,
        rotated=algebra,
        matched=algebra / 10,
        disk=1 / GPU_DISK,
    )


def _certain_groups(shape: Shape, context: int, tokens: int) -> Layout:
    """The large tables of grouped moments, by bounds that the model and the budget set."""
    of_tokens = ("token_labels", "previous_token_labels", "next_token_labels")
    labels = ((name, len(TOKEN_CLASSES) + FREQUENT_WORDS, f"{SUM} {SQUARE}") for name in of_tokens)
    single = ("token", min(shape.vocabulary, tokens, TOKENS_KEPT + 1), SUM), ("position", context, f"{SUM} {ACTIVE}")
    return (*labels, *single)


def lines(params: Params) -> list[str]:
    """The forecast of a run, one line a fact; InputError if it cannot fit."""
    inputs, device = Preflight(Run(params)), device_of(params)
    # all groupings are known only of a text that is tokenised and read by spaCy; else the large ones, by bounds
    known = made_token_file(params)
    unread = bool(known) and needs_spacy(inputs.run)
    certain = _certain_groups(inputs.shape, params.context, params.token_budget)
    groups = inputs.layout if known and not unread else certain
    shape = inputs.shape
    setting = setting_of(params, shape, device, Processes.on_this_machine(), groups)
    plan = pack(setting)
    facts = [
        f"run {params.run}: {len(setting.seeds)} seeds of {shape.layers} × {shape.neurons:,} neurons, "
        f"{len(setting.pairs)} pairs, {setting.blocks * setting.context:,} tokens, products in {setting.precision}",
        f"passes over the text: {len(plan.passes)}, each within {setting.memory / 1e9:.1f} GB",
    ]
    for number, part in enumerate(plan.passes):
        seeds, by_kind = len(part.depths(shape.layers)), {}
        for unit in part.units:
            by_kind.setdefault(unit.kind, []).append(unit.memory)
        facts += [
            f"pass {number + 1}: {pass_memory(setting, part) / 1e9:.2f} GB = weights of {seeds} seeds "
            f"{setting.model_bytes * seeds / 1e9:.2f}, work {work_memory(setting, part) / 1e9:.2f}, "
            + ", ".join(f"{kind} {sum(sizes) / 1e9:.2f}" for kind, sizes in by_kind.items())
        ]
    counted = operations(setting, plan)
    facts += [
        f"operations: products {counted['products']:.3g}, forward {counted['forward']:.3g}",
        f"disk: {disk(plan) / 1e9:.2f} GB of statistics, and as much again for saved states",
    ]
    if not known or unread:
        facts.append(
            "the text is not prepared yet: only the large groupings of labels are counted, by upper bounds, so that "
            "passes, disk and time may differ"
        )
    if unread:
        facts.append(
            "not counted: before the passes spaCy labels the syntax of English prose, some minutes per million tokens"
        )
    places = [("this machine", plan, measured(setting, plan, seed_config(params, params.reference), device))]
    lacking = []
    for gpu, peaks in GPUS.items():
        there = replace(setting, memory=0.9 * peaks["memory"], processes=1, precision="bf16", device="cuda")
        try:
            there_plan = pack(there)
        except InputError:  # names a limit of memory that nobody has set
            lacking.append(f"does not fit into the memory of one {gpu}")
            continue
        speeds = replace(
            published(there, gpu), rotation=places[0][2].rotation
        )  # rotations are drawn on the CPU, here as there
        places.append(
            (f"one {gpu} with this machine's CPU, bf16, {PRODUCT_SHARE:.0%} of its published peak", there_plan, speeds)
        )
    for place, planned, speeds in places:
        parts = seconds(planned, speeds, params.rotations)
        facts.append(
            f"time on {place}: passes {parts['passes']:,.0f} s ({len(planned.passes)}), "
            f"tables {parts['tables']:,.0f} s, "
            f"together {sum(parts.values()) / 60:,.1f} min"
        )
    return facts + lacking


@exit_on_input_error
def main(arguments: list[str] | None = None) -> int:
    """Command line: one parameter file, and what `make` says instead of it; 0 on success, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m lib.collect.forecast", description=__doc__.splitlines()[0])
    parser.add_argument("params")
    parser.add_argument("--run")
    parser.add_argument("--seed")
    parser.add_argument("--tokens")
    given = parser.parse_args(arguments)
    tokens = given.tokens
    budget = int(tokens) if tokens and re.fullmatch(r"\d+", tokens) else tokens
    for line in lines(read_params(given.params, run=given.run, reference=given.seed, token_budget=budget)):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
