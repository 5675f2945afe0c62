"""What a run will cost, before any weight is read: memory, passes, operations, disk, and time here and on GPUs.

`work` counts what each term has to do, in a unit of its own; `lib.collect.prices` has the seconds of one unit
(docs/scaling.md). `python -m lib.collect.forecast params.yaml` (`make plan`) prints it.
"""

import argparse
import re
import sys
from collections import Counter
from dataclasses import replace

from lib.base.errors import InputError, exit_on_input_error, listed
from lib.base.files import read_json
from lib.base.hub import seed_config
from lib.base.machine import cores, device_of
from lib.base.params import Params, read_params
from lib.cache import refuse_same_weights
from lib.collect import planner, prices
from lib.collect.first_look import PILOT_BLOCKS, loss_blocks
from lib.collect.planner import FIRST, PARTS, Plan, Setting, Shape, Unit, pack, pass_memory, setting_of
from lib.collect.preflight import Preflight
from lib.collect.prices import Rates
from lib.collect.processes import Processes
from lib.kernels.correlation import BIAS_DRAWS
from lib.kernels.grouped import ACTIVE, FEW, HALVES, SQUARE, SUM, Layout
from lib.labels.groupings import written_groupings
from lib.labels.labels import TOKENS_KEPT, WORD_PLACES
from lib.labels.syntax import unread_tokens
from lib.labels.token_classes import TOKEN_CLASSES
from lib.models.trunk import no_interventions
from lib.run import Run
from lib.text.tokenise import check_text, made_token_file

FREQUENT_WORDS = 300  # at most, with a label of their own
OTHER_LABELS = {"position": 8, "domain": 20, "linguistics": 160, "topic": 63}  # about, by grouping
FOLLOWED = 16  # pairs that are followed, for each neuron of two seeds: of 20 candidates each, some coincide
CHAPTER_MEMORY = 4e9  # bytes of the two chapters that are made at the same time
CHAPTER_DISK = 0.5e9  # bytes of tables, notebooks and pages


def work(plan: Plan, draws: int) -> tuple[Counter, Counter]:
    """What one process does in all passes, and what the tables take after them, by term.

    Units: layers of a batch (launches), operations (attention's maps and scores, MLPs, products,
    rotations), bytes (forward bytes, disk),
    activations (statistics, sketch), activations times sums of a table (label sums), tokens (labels), pairs times
    tokens (following), correlations (candidates, matches), cubed neurons (drawing), operations in fp32 (deviations of
    rotated neurons, cosines of weights).
    """
    setting, shapes, passes, tables = plan.setting, plan.setting.shapes, Counter(), Counter()
    tokens, rows, labelled = setting.tokens / setting.processes, setting.rows, setting.labelled / setting.processes
    for shape in shapes.values():  # the first look, of one process
        looked, pilot = (
            number * setting.context for number in (loss_blocks(setting.blocks), min(setting.blocks, PILOT_BLOCKS))
        )
        passes += _forward(shape, shape.layers, looked + pilot, setting)
        passes["scores"] += 2 * shape.width * shape.vocabulary * looked  # logits, in fp32 too
    for part in plan.passes:
        for seed, depth in part.depths(shapes).items():
            passes += _forward(shapes[seed], depth, tokens, setting)
        passes["labels"] += labelled * any(unit.kind == "grouped" for unit in part.units)
        for unit in part.units:
            a, b = shapes[unit.seed], shapes[unit.other or unit.seed]
            match unit.kind:
                case "moments":
                    passes["statistics"] += tokens * a.total
                case "sketch":
                    passes["sketch"] += tokens * a.total
                case "products":
                    passes["products"] += 2 * tokens * a.total * (b.total if unit.other else a.neurons)
                case "followed":
                    passes["following"] += (1 - 1 / FIRST) * tokens / setting.every * FOLLOWED * (a.total + b.total)
                case "grouped":
                    passes["label sums"] += (
                        labelled * a.neurons * sum(len(kinds.split()) for _, _, kinds in setting.groups)
                    )
    mixed = setting.sketches  # then a layer of each pair is made from half the rows too
    halved = mixed * min(draws, BIAS_DRAWS)
    for a, b in setting.pairs:
        left, right = shapes[a], shapes[b]
        square = left.total * right.total
        passes["products"] += 2 * square * (rows // FIRST if setting.own_rows else rows)
        passes["candidates"] += square
        tables["products"] += 2 * square * rows * (1 + mixed / (2 * left.layers))
        tables["matches"] += square
        turned = sum(other.neurons for own, other in ((a, right), (b, left)) if own in setting.references)
        tables["rotations"] += 2 * square * turned * draws
        tables["rotations"] += 2 * square * right.neurons * halved / left.layers * (a in setting.references)
    for seed, shape in shapes.items():
        tables["products"] += 2 * rows * shape.total * shape.neurons * (1 + mixed / 2)  # layers with themselves
        tables["deviations"] += 2 * shape.total * shape.neurons**2 * (draws + halved)
        if seed in setting.references:  # w_in and w_out among neurons, w_out with the vocabulary
            tables["cosines"] += 2 * shape.total * 2 * shape.total * shape.width
            tables["cosines"] += 2 * shape.total * shape.vocabulary * (shape.width + prices.POWERS)
    tables["drawing"] = draws * sum(n**3 for n in {shape.neurons for shape in shapes.values()})
    results, states = (sum(one.values()) for one in disk(plan))
    passes["disk"], tables["disk"] = results + states, results
    return passes, tables


def _forward(shape: Shape, depth: int, tokens: float, setting: Setting) -> Counter:
    """Work of a forward pass of one seed through its first `depth` layers."""
    maps, scores, mlp = prices.layer_operations(shape, setting.context)
    moved = prices.RESIDUAL_BYTES * shape.width + prices.NEURON_BYTES * shape.neurons
    batches = tokens / (setting.batch * setting.context)
    each = {"maps": maps, "scores": scores, "MLPs": mlp, "forward bytes": moved}
    return Counter({"launches": depth * batches} | {term: depth * tokens * one for term, one in each.items()})


def seconds(plan: Plan, rates: Rates, draws: int) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of each term of `work`, in the passes and in the tables."""
    price = rates.prices(plan.setting)
    passes, tables = ({term: number * price[term] for term, number in one.items()} for one in work(plan, draws))
    return passes, tables


def disk(plan: Plan) -> tuple[Counter, Counter]:
    """By kind, bytes of the results that stay, and of the saved states of the largest pass while it runs."""
    results, states = Counter(), []
    for part in plan.passes:
        states.append(_by_kind(part.units, plan.setting.processes))
        for unit in part.units:
            results[unit.kind] += _kept(unit, plan.setting)
    return results, max(states, key=lambda one: sum(one.values()))


def _by_kind(units: tuple[Unit, ...], times: int = 1) -> Counter:
    """Bytes of accumulators."""
    return sum((Counter({unit.kind: unit.memory * times}) for unit in units), Counter())


def _kept(unit: Unit, setting: Setting) -> int:
    """Bytes of an accumulator's results: mixed sketches in bf16, the followed pairs that differ, and of grouped moments
    means by half (in fp16 where there are many rows) and spreads."""
    shape = setting.shapes[unit.seed]
    match unit.kind:
        case "sketch" if setting.sketches:
            return 2 * setting.rows * shape.total
        case "followed":
            pairs = FOLLOWED * (shape.total + setting.shapes[unit.other].total)
            return pairs * (8 + PARTS * setting.sum_bytes)
        case "grouped":
            each = ((rows, HALVES * (2 if rows > FEW else 4), kinds.split()) for _, rows, kinds in setting.groups)
            return shape.neurons * sum(rows * (mean + 4 * (SQUARE in kinds)) for rows, mean, kinds in each)
    return unit.memory


def tables_memory(setting: Setting) -> float:
    """Peak bytes of the algebra after the passes: sketches with their halves, and a few stripes of products."""
    shapes = setting.shapes.values()
    sketches = setting.rows * sum(shape.total for shape in shapes) * setting.operand_bytes
    stripe = max(shape.neurons for shape in shapes) * max(shape.total for shape in shapes) * setting.sum_bytes
    return planner.BASE + sketches * (1.5 if setting.sketches else 1) + 5 * stripe


def likely_layout(shapes: dict[str, Shape], params: Params) -> Layout:
    """The tables of grouped moments, by bounds that the models and the budget set, without a look at the text."""
    both, tokens = (
        f"{SUM} {SQUARE}",
        min(params.token_budget, params.label_tokens, *(shape.vocabulary for shape in shapes.values())),
    )
    of_token = (f"{which}token_labels" for which in ("", "previous_", "next_"))
    return (
        *((name, len(TOKEN_CLASSES) + FREQUENT_WORDS, both) for name in of_token),
        *((f"{name}_labels", rows, both) for name, rows in OTHER_LABELS.items()),
        ("token", min(tokens, TOKENS_KEPT + 1), SUM),
        ("position", params.context, f"{SUM} {ACTIVE}"),
        ("domain", OTHER_LABELS["domain"], SUM),
        ("word_place", FREQUENT_WORDS * len(WORD_PLACES), both),
    )


def estimate(params: Params, shapes: dict[str, Shape]) -> tuple[dict[str, float], float, float]:
    """About the seconds of a report's stages, and the bytes of memory and disk that it takes on this machine.

    Neither text nor weights are read, and the machine is measured for a second, so that it can be said at the start.
    """
    device = device_of(params)
    plan = pack(setting_of(params, shapes, device, groups=likely_layout(shapes, params)))
    setting, rates = plan.setting, prices.rates(plan.setting, device)
    passes, tables = seconds(plan, rates, params.rotations)
    chapters = prices.chapter_seconds(prices.chapter_work(setting, not no_interventions(params)), rates.wide)
    memory = max(tables_memory(setting), CHAPTER_MEMORY, *(pass_memory(setting, part) for part in plan.passes))
    stored = sum(sum(one.values()) for one in disk(plan)) + CHAPTER_DISK
    stages = {
        "passes": 2 * prices.STARTING + sum(passes.values()),
        "tables": prices.STARTING + sum(tables.values()),
        "chapters": prices.report_seconds(chapters),
    }
    return stages, memory, stored


def lines(params: Params) -> list[str]:
    """The forecast of a run, one line a fact; InputError if it cannot fit."""
    refuse_same_weights(params)
    note = check_text(params)
    inputs, device = Preflight(Run(params)), device_of(params)
    shapes = inputs.shapes
    # a plan reads the groupings that a run has written, and makes none
    known, groups = made_token_file(params), likely_layout(shapes, params)
    if written := written_groupings(inputs.run) if known else None:
        inputs.groupings = written
        groups = inputs.layout
    unread = unread_tokens(inputs.run) if known and not written else 0
    setting = setting_of(params, shapes, device, Processes.on_this_machine(), groups)
    plans, timed, lacking, interventions = [], [], [], not inputs.notes
    try:
        plans.append(pack(setting))
        largest = max(shapes, key=lambda seed: shapes[seed].total)
        forward = prices.forward_rate(setting, shapes[largest], seed_config(params, largest), device)
        rates = replace(prices.rates(setting, device), maps=forward, scores=forward, mlp=forward)
        timed.append(_time("this machine", plans[0], rates, params, interventions))
    except InputError as error:
        if params.memory_gb != "auto":
            raise
        lacking.append(f"does not fit into this machine's memory: {error}")
    for gpu, (memory, rates) in prices.GPUS.items():
        there = replace(setting, memory=0.9 * memory, processes=1, precision="bf16", device="cuda")
        try:
            plans.append(pack(there))
            place = f"one {gpu}, bf16, from its data sheet"
            timed.append(_time(place, plans[-1], rates, params, interventions))
        except InputError:  # names a limit of memory that nobody has set
            lacking.append(f"does not fit into the memory of one {gpu}")
    if not plans:
        raise InputError(lacking[0].partition(": ")[2])
    facts = _facts(plans[0], params) + inputs.notes
    if unread:
        facts.append(
            f"not counted: before the passes spaCy labels the syntax of {unread:,} tokens of English prose, about 3 "
            f"minutes per million tokens on one core; this machine has {cores()}"
        )
    if unknown := sorted(prices.chapter_work(setting, interventions).keys() - read_json(prices.CHAPTERS)["chapters"]):
        facts.append(f"not counted: {listed(unknown)}, not measured by `python -m bench.chapters` yet")
    return facts + ([note] if note else []) + timed + lacking


def _facts(plan: Plan, params: Params) -> list[str]:
    """What holds on any machine: shapes, passes and their memory, operations, disk."""
    setting, shapes = plan.setting, plan.setting.shapes
    forms = " or ".join(sorted({f"{shape.layers} × {shape.neurons:,}" for shape in shapes.values()}))
    products = f"{setting.products} products" + (f" of {setting.rows:,} rows" if setting.sketches else "")
    facts = [
        f"run {params.run}: {len(shapes)} seeds of {forms} neurons, {len(setting.pairs)} pairs, "
        f"{setting.tokens:,} tokens, {products} in {setting.precision}",
        f"passes over the text: {len(plan.passes)}, each within {setting.memory / 1e9:.1f} GB",
    ]
    for number, part in enumerate(plan.passes):
        weights = sum(4 * shapes[seed].parameters for seed in part.depths(shapes))
        facts.append(
            f"pass {number + 1}: {pass_memory(setting, part) / 1e9:.2f} GB = weights of {len(part.depths(shapes))} "
            f"seeds {weights / 1e9:.2f}, work {planner.work_memory(setting, part) / 1e9:.2f}, "
            + _gigabytes(_by_kind(part.units))
        )
    counted = sum(work(plan, params.rotations), Counter())
    terms = ", ".join(f"{term} {counted[term]:.3g}" for term in ("maps", "scores", "MLPs", "products", "rotations"))
    results, states = disk(plan)
    return [
        *facts,
        f"tables: {tables_memory(setting) / 1e9:.2f} GB of memory",
        f"operations: {terms}",
        f"disk: {sum(results.values()) / 1e9:.2f} GB of results ({_gigabytes(results)}), and up to "
        f"{sum(states.values()) / 1e9:.2f} GB of saved states while the passes run",
    ]


def _gigabytes(by_kind: Counter) -> str:
    return ", ".join(f"{kind} {size / 1e9:.2f}" for kind, size in by_kind.items())


def _time(place: str, plan: Plan, rates: Rates, params: Params, interventions: bool) -> str:
    """Time of passes, tables and chapters, and the terms that take most of the passes."""
    passes, tables = seconds(plan, rates, params.rotations)
    chapters = prices.chapter_seconds(prices.chapter_work(plan.setting, interventions), rates.wide)
    whole, after = sum(passes.values()), sum(tables.values())
    report = prices.report_seconds(chapters)
    together = whole + after + report + prices.COMMANDS * prices.STARTING
    terms = sorted(passes.items(), key=lambda term: -term[1])
    shares = ", ".join(f"{term} {taken:,.0f}" for term, taken in terms if taken >= whole / 100)
    each = ", ".join(f"{name} {taken:,.0f}" for name, taken in chapters.items())
    return (
        f"time on {place}: passes {whole:,.0f} s ({len(plan.passes)}), tables {after:,.0f} s, chapters and pages "
        f"{report:,.0f} s, together {together / 60:,.1f} min; seconds of the passes: {shares}; of the chapters, "
        f"{prices.AT_ONCE} at a time: {each}"
    )


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
