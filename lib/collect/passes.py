"""The passes of a run, one after the other: what each process reads, saves and adds up.

outputs/<run>/stats ends with safetensors files `<kind>-<pass>` and a summary, done.json. `python -m lib.collect
outputs/<run>/params.yaml` runs them, or `torchrun --nproc-per-node=K -m lib.collect outputs/<run>/params.yaml`.
"""

import contextlib
import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from lib.base.errors import InputError, exit_on_input_error
from lib.base.files import locked, write_json
from lib.base.machine import device_name, device_of, peak_memory
from lib.base.params import read_params
from lib.base.progress import Progress
from lib.base.tensors import TensorFiles, read_tensors, write_tensors
from lib.cache import PASS, code_of
from lib.collect.first_look import first_look
from lib.collect.grouped_tables import record_labels
from lib.collect.one_pass import Pass
from lib.collect.planner import CANDIDATES, Plan, Setting, pack, pass_memory, setting_of
from lib.collect.preflight import Preflight
from lib.collect.processes import Processes, shares
from lib.collect.statistics import CANDIDATES_FILE, read_candidates
from lib.kernels import native
from lib.kernels.fused import LOOP_TYPES, OPERAND_DTYPES, gpu_loop
from lib.labels.groupings import written_groupings
from lib.run import Run

LISTING_SECONDS = 120  # within which files written by other machines must appear
SAVE_SECONDS = 30  # for each gigabyte of a state, between two times that it is saved; three times as many at least


def collect(run: Run, grouped: bool = True) -> None:
    """Runs the passes, or what is left of them; returns at once if all are complete.

    A run that does not look at families does without `grouped` moments.
    """
    inputs = Preflight(run, grouped)
    inputs.check()
    if inputs.complete:
        return
    processes, stats = Processes(), run.folder / "stats"
    busy = (
        f"another process is working on {run.folder}; wait until it ends, or stop it, and run the same command again."
    )
    with contextlib.ExitStack() as held:
        if processes.first:
            held.enter_context(locked(stats, busy))
        if not processes.agree((stats / "done.json").exists()):  # another process may have ended it meanwhile
            _collect(inputs, processes)


def _collect(inputs: Preflight, processes: Processes) -> None:
    run, params, stats = inputs.run, inputs.params, inputs.run.folder / "stats"
    device, begun = device_of(params), None
    groups = tuple(map(tuple, processes.agree(inputs.layout if processes.first else ())))
    if groups and not processes.first:
        inputs.groupings = written_groupings(run, LISTING_SECONDS)
    setting = setting_of(params, inputs.shapes, device, Processes.on_this_machine(), groups)
    if processes.first:
        record_labels(run, inputs.label_sets, inputs.groupings, any(stats.glob("pass-*")))
        begun = _planned(run, setting)
        write_json(stats / "key.json", params.statistics_key | {"hashes": inputs.hashes})
        if not (stats / "pilot.safetensors").exists():
            first_look(inputs, begun["precision"], device)
    plan = Plan.resumed(setting, processes.agree(begun))
    scalings = read_pilot(stats, device)
    for number in range(len(plan.passes)):
        if not processes.agree((stats / f"pass-{number:02d}.json").exists()):
            _run_pass(Pass(inputs, plan, number, scalings, device), processes, stats)
        processes.wait()
    if processes.first:
        write_json(stats / "done.json", summary(run, plan, device, processes.count))
        for path in stats.glob("pass-*"):
            path.unlink()
    processes.wait()


def read_pilot(stats: Path, device: torch.device) -> dict[str, dict[str, Tensor]]:
    """The pilot's shifts, scales and ranges by seed and name (`PILOT_NAMES`)."""
    scalings: dict[str, dict[str, Tensor]] = {}
    for key, tensor in read_tensors(stats / "pilot.safetensors").items():
        name, what = key.split(".")
        scalings.setdefault(name, {})[what] = tensor.to(device)
    return scalings


def _planned(run: Run, setting: Setting) -> dict:
    """The plan that this run began with, or a new one where no pass has saved anything yet, as JSON.

    InputError if it does not fit into memory_gb.
    """
    begun, stats = run.recorded("stats/plan.json"), run.folder / "stats"
    if not begun or not any([*stats.glob("pass-*.json"), *stats.glob("pass-*.safetensors")]):
        for pattern in ("candidates.*", "pass-*"):  # of passes of which nothing else is left
            for path in stats.glob(pattern):
                path.unlink()
        begun = pack(setting).as_json()
        write_json(run.folder / "stats" / "plan.json", begun)
    elif run.params.memory_gb != "auto":
        plan = Plan.resumed(setting, begun)
        left = [part for number, part in enumerate(plan.passes) if not run.recorded(f"stats/pass-{number:02d}.json")]
        need = max((pass_memory(setting, part) for part in left), default=0)
        if need > run.params.memory_gb * 1e9:
            raise InputError(
                f"memory_gb allows {run.params.memory_gb:g} GB, but this run began with passes of up to "
                f"{need / 1e9:.1f} GB a process; give it as much, or `make clean RUN={run.params.run}` and begin anew."
            )
    return begun


def _run_pass(work: Pass, processes: Processes, stats: Path) -> None:
    """Runs this process's share of a pass, saving now and then; then the first process writes what all found."""
    prefix = f"pass-{work.number:02d}.state-"
    mine = stats / f"{prefix}{processes.rank}.safetensors"
    dealt = None
    if processes.first:
        saved = {path.stem: path for path in stats.glob(f"{prefix}*.safetensors")}
        done = {name: TensorFiles([path]).tensor("done").tolist() for name, path in saved.items()}
        dealt = shares(done, len(work.done), processes.count)
        for name in dealt[2]:
            saved[name].unlink()
    states, batches, _ = processes.agree(dealt)
    if work.planned.compares and (pairs := read_candidates(stats)):
        work.follow(pairs)
    for name in states[processes.rank]:
        work.merge_state(TensorFiles([stats / f"{name}.safetensors"]))
    adopted = [name for name in states[processes.rank] if stats / f"{name}.safetensors" != mine]
    if adopted:
        write_tensors(mine, work.state_dict())
        for name in adopted:
            (stats / f"{name}.safetensors").unlink()
    work.load_models()
    own = batches[processes.rank]
    early = [number for number in own if work.in_first_part and number < work.reading.first]
    late = [number for number in own if number not in set(early)]
    with _bar(work, processes) as bar:
        _advance(work, early, bar, mine, all_of_it=False)
        if work.in_first_part:
            write_tensors(mine, work.state_dict())
            processes.wait()
            if processes.first:
                _choose(work, stats, prefix, mine)
            processes.wait()
            work.follow(read_candidates(stats))
        _advance(work, late, bar, mine, all_of_it=processes.count == 1)
    if processes.count > 1 and own:
        write_tensors(mine, work.state_dict())
    processes.wait()
    if processes.first:
        for path in _others(stats, prefix, mine, work.done):
            work.merge_state(TensorFiles([path]))
        finish(work, stats)
        for path in stats.glob(f"{prefix}*"):
            path.unlink()


def _choose(work: Pass, stats: Path, prefix: str, mine: Path) -> None:
    """Adds what all processes saw of the text's first part, and writes which pairs are followed from now on."""
    others = _others(stats, prefix, mine, work.done, work.reading.first)
    for path in others:
        work.merge_state(TensorFiles([path]))
    pairs = work.candidates(CANDIDATES)
    write_tensors(stats / CANDIDATES_FILE, {f"{a}.{b}": pair.int() for (a, b), pair in pairs.items()})
    if others:  # back to what this process saw
        work.done[:] = False
        work.merge_state(TensorFiles([mine]))


def _others(stats: Path, prefix: str, mine: Path, done: Tensor, first: int | None = None) -> list[Path]:
    """The states of the other processes, once they hold each batch (of the `first` ones) that this one has not `done`,
    each once.

    On a file system shared by machines, a file that another machine wrote may appear late, or as an older version.
    InputError if batches are missing after LISTING_SECONDS.
    """
    waited = 0
    while True:
        paths = [path for path in sorted(stats.glob(f"{prefix}*.safetensors")) if path != mine]
        if (sum(TensorFiles([path]).tensor("done")[:first].int() for path in paths) + done[:first].int() == 1).all():
            return paths
        if waited == LISTING_SECONDS:
            raise InputError(
                f"the processes' states in {stats} do not hold every part of the text once; run the same command again."
            )
        time.sleep(1)
        waited += 1


def _bar(work: Pass, processes: Processes) -> tqdm:
    each = work.plan.setting.batch * work.plan.setting.context * len(work.readers)
    return tqdm(
        total=work.plan.setting.tokens * len(work.readers) // processes.count,
        initial=int(work.done.sum()) * each,
        unit="tok",
        unit_scale=True,
        desc=f"pass {work.number + 1}/{len(work.plan.passes)}",
        file=sys.stderr,
        disable=not processes.first,
    )


def _advance(work: Pass, batches: list[int], bar: tqdm, state: Path, all_of_it: bool) -> None:
    """Batches through the pass, with a state saved now and then, but not after the last if that ends the pass."""
    gigabytes, saved = sum(unit.memory for unit in work.units) / 1e9, time.monotonic()
    progress = Progress(work.inputs.run.folder, "passes")
    for number in batches:
        work.advance(number, bar)
        bar.set_postfix_str(progress.text((work.number + bar.n / bar.total) / len(work.plan.passes)), refresh=False)
        if time.monotonic() - saved > SAVE_SECONDS * max(3, gigabytes) and not (all_of_it and number == batches[-1]):
            write_tensors(state, work.state_dict())
            saved = time.monotonic()


def finish(work: Pass, stats: Path) -> None:
    """Writes the pass's accumulators, one file a kind, and last the note that it is complete.

    Sketches and grouped moments are large: the former have a file a seed, those that mix tokens in bf16, far below
    their noise; the latter one a layer, in the compact form that scores need.
    """
    by_kind: dict[str, dict[str, Tensor]] = {}
    for unit, accumulator in work.units.items():
        if unit.kind == "grouped":
            write_tensors(stats / f"grouped-{unit.name}.safetensors", accumulator.compact())
            continue
        if unit.kind == "sketch":
            rows = accumulator.rows if work.plan.setting.own_rows else accumulator.rows.bfloat16()
            write_tensors(stats / f"sketch-{unit.name}.safetensors", {"rows": rows})
            continue
        tensors = by_kind.setdefault(unit.kind, {})
        tensors |= {f"{unit.name}.{key}": tensor for key, tensor in accumulator.state_dict().items()}
    if work.followed:
        by_kind["followed"] = work.followed.state_dict()
    for kind, tensors in by_kind.items():
        write_tensors(stats / f"{kind}-{work.number:02d}.safetensors", tensors)
    tokens = next(iter(work.readers.values())).moments.tokens
    write_json(stats / f"pass-{work.number:02d}.json", {"seconds": work.seconds, "tokens": tokens})


def summary(run: Run, plan: Plan, device: torch.device, processes: int) -> dict:
    """What the passes tell about themselves."""
    passes = [run.recorded(f"stats/pass-{number:02d}.json") for number in range(len(plan.passes))]
    setting = plan.setting
    seconds = sum(part["seconds"] for part in passes)
    read = setting.tokens * sum(len(part.depths(setting.shapes)) for part in plan.passes)
    hashes = run.recorded("stats/key.json")["hashes"]
    return {
        "tokens_counted": passes[0]["tokens"],
        "blocks": setting.blocks,
        "context": setting.context,
        "shapes": {seed: (shape.layers, shape.neurons) for seed, shape in setting.shapes.items()},
        "seeds": setting.seeds,
        "references": setting.references,
        "precision": setting.precision,
        "products": setting.products,
        "rows": setting.rows,
        "passes": len(passes),
        "processes": processes,
        "device": device.type,
        "device_name": device_name(device),
        "loops": _loops(device, setting.precision),
        "wall_seconds": round(seconds, 1),
        "tokens_per_second": round(read / max(seconds, 1e-9)),
        "peak_memory_bytes": peak_memory(),
        "seed_hashes": {name: hashes[f"seed {name}"] for name in setting.seeds if f"seed {name}" in hashes},
        "text_hash": hashes["text"],
        "code": code_of(PASS),
    }


def _loops(device: torch.device, precision: str) -> str:
    """What the loops over activations ran in."""
    if device.type == "cuda":
        return "Triton" if OPERAND_DTYPES[precision] in LOOP_TYPES and gpu_loop(device) else "torch"
    return "C++" if native.libraries() else "torch"


@exit_on_input_error
def main() -> int:
    """Command line: one parameter file, as resolved by `lib.report resolve`."""
    if len(sys.argv) != 2:
        print("usage: python -m lib.collect outputs/<run>/params.yaml", file=sys.stderr)
        return 2
    collect(Run(read_params(sys.argv[1])))
    return 0
