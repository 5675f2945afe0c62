"""The passes of a run, one after the other: what each process reads, saves and adds up.

outputs/<run>/stats ends with safetensors files `<kind>-<pass>` and a summary, done.json. `python -m lib.collect
outputs/<run>/params.yaml` runs them, or `torchrun --nproc-per-node=K -m lib.collect outputs/<run>/params.yaml`.
"""

import contextlib
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from lib.base.errors import InputError, exit_on_input_error
from lib.base.files import locked, write_json
from lib.base.machine import device_name, device_of
from lib.base.params import read_params
from lib.base.tensors import TensorFiles, read_tensors, write_tensors
from lib.cache import PASS, code_of
from lib.collect.first_look import first_look
from lib.collect.grouped_tables import record_labels
from lib.collect.one_pass import Pass
from lib.collect.planner import Plan, Setting, pack, pass_memory, setting_of
from lib.collect.preflight import Preflight
from lib.collect.processes import Processes, shares
from lib.kernels import native
from lib.kernels.covariance import OPERAND_DTYPES
from lib.kernels.fused import GPU_TYPES, gpu_loop
from lib.run import Run

LISTING_SECONDS = 120  # within which files written by other machines must appear
SAVE_SECONDS = 180  # between two saves of a state of up to a gigabyte; for larger ones, for each gigabyte
SNAPSHOTS = (1 / 16, 1 / 8, 1 / 4, 1 / 2)  # shares of the text after which best matches are recorded
PARTS = 16  # of the text, after each of which the products with the first snapshot's best matches are recorded


def collect(run: Run, grouped: bool = True, snapshots: tuple[float, ...] = SNAPSHOTS) -> None:
    """Runs the passes, or what is left of them; returns at once if all are complete.

    A run that looks at neither families nor convergence does without `grouped` moments and without `snapshots`, which
    take more than the products where there is little text.
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
            _collect(inputs, processes, snapshots)


def _collect(inputs: Preflight, processes: Processes, snapshots: tuple[float, ...]) -> None:
    run, params, stats = inputs.run, inputs.params, inputs.run.folder / "stats"
    device, begun = device_of(params), None
    groups = tuple(map(tuple, processes.agree(inputs.layout if processes.first else ())))
    setting = setting_of(params, inputs.shape, device, Processes.on_this_machine(), groups)
    if processes.first:
        record_labels(run, inputs.label_sets, any(stats.glob("pass-*")))
        begun = _planned(run, setting)
        write_json(stats / "key.json", params.statistics_key | {"hashes": inputs.hashes})
        if not (stats / "pilot.safetensors").exists():
            first_look(inputs, begun["precision"], device)
    plan = Plan.resumed(setting, processes.agree(begun))
    stored, scalings = read_tensors(stats / "pilot.safetensors"), {}
    for key, tensor in stored.items():
        name, what = key.split(".")
        scalings.setdefault(name, {})[what] = tensor.to(device)
    for number in range(len(plan.passes)):
        if not processes.agree((stats / f"pass-{number:02d}.json").exists()):
            _run_pass(Pass(inputs, plan, number, scalings, device), processes, stats, snapshots)
        processes.wait()
    if processes.first:
        write_json(stats / "done.json", _summary(run, plan, device, processes.count))
        for path in stats.glob("pass-*"):
            path.unlink()
    processes.wait()


def _planned(run: Run, setting: Setting) -> dict:
    """The plan that this run began with, or a new one where no pass has saved anything yet, as JSON.

    InputError if it does not fit into memory_gb.
    """
    begun = {"precision": setting.precision} | (run.recorded("stats/plan.json") or {})
    setting = replace(setting, precision=begun["precision"])  # the pilot's scales are its
    stats = run.folder / "stats"
    if "passes" not in begun or not any([*stats.glob("pass-*.json"), *stats.glob("pass-*.safetensors")]):
        for pattern in ("snapshot-*", "part-*", "pass-*"):  # of passes of which nothing else is left
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


def _run_pass(work: Pass, processes: Processes, stats: Path, snapshots: tuple[float, ...]) -> None:
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
    states, chunks, _ = processes.agree(dealt)
    for name in states[processes.rank]:
        work.merge_state(TensorFiles([stats / f"{name}.safetensors"]))
    adopted = [name for name in states[processes.rank] if stats / f"{name}.safetensors" != mine]
    if adopted:
        write_tensors(mine, work.state_dict())
        for name in adopted:
            (stats / f"{name}.safetensors").unlink()
    _advance(work, chunks[processes.rank], _marks(work, processes, snapshots), processes, mine)
    if processes.count > 1 and chunks[processes.rank]:
        write_tensors(mine, work.state_dict())
    processes.wait()
    if processes.first:
        for path in _others(stats, prefix, mine, work.done):
            work.merge_state(TensorFiles([path]))
        _finish(work, stats)
        for path in stats.glob(f"{prefix}*"):
            path.unlink()


def _others(stats: Path, prefix: str, mine: Path, done: Tensor) -> list[Path]:
    """The states of the other processes, once they hold each chunk that this one has not `done`, each once.

    On a file system shared by machines, a file that another machine wrote may appear late, or as an older version.
    InputError if chunks are missing after LISTING_SECONDS.
    """
    waited = 0
    while True:
        paths = [path for path in sorted(stats.glob(f"{prefix}*.safetensors")) if path != mine]
        if (sum(TensorFiles([path]).tensor("done").int() for path in paths) + done.int() == 1).all():
            return paths
        if waited == LISTING_SECONDS:
            raise InputError(
                f"the processes' states in {stats} do not hold every part of the text once; run the same command again."
            )
        time.sleep(1)
        waited += 1


def _advance(work: Pass, chunks: list[int], marks: list[int], processes: Processes, state: Path) -> None:
    """Chunks through the pass, with a state saved now and then and a snapshot at each of the marks."""
    blocks, context, size = len(work.text.tokens), work.text.context, work.planned.chunk
    seeds = len(work.readers)
    gigabytes = sum(unit.memory for unit in work.units) / 1e9
    saved = time.monotonic()
    with tqdm(
        total=blocks * context * seeds // processes.count,
        initial=int(work.done.sum()) * size * context * seeds,
        unit="tok",
        unit_scale=True,
        desc=f"pass {work.number + 1}/{len(work.plan.passes)}",
        file=sys.stderr,
        disable=not processes.first,
    ) as bar:
        for chunk in chunks:
            work.advance(chunk, bar)
            before, now = chunk * size, min((chunk + 1) * size, blocks)
            if any(before < mark <= now < blocks for mark in marks):
                write_tensors(state.parent / f"snapshot-{now:06d}.safetensors", work.snapshot())
            if marks and any(before < round(blocks * part / PARTS) <= now for part in range(1, PARTS + 1)):
                first = min(state.parent.glob("snapshot-*.safetensors"), default=None)  # none in a very short text
                if first:
                    part = work.part(read_tensors(first)["partner"])
                    write_tensors(state.parent / f"part-{now:06d}.safetensors", part)
            if time.monotonic() - saved > SAVE_SECONDS * max(1, gigabytes) and chunk != chunks[-1]:
                write_tensors(state, work.state_dict())
                saved = time.monotonic()


def _marks(work: Pass, processes: Processes, snapshots: tuple[float, ...]) -> list[int]:
    """Blocks after which to take a snapshot, if the pass takes any."""
    taken = processes.count == 1 and work.plan.takes_snapshots(work.planned, len(snapshots))
    return [round(share * len(work.text.tokens)) for share in snapshots] if taken else []


def _finish(work: Pass, stats: Path) -> None:
    """Writes the pass's accumulators, one file a kind, and last the note that it is complete.

    Grouped moments are large: each layer has a file of its own, in the compact form that scores need.
    """
    by_kind: dict[str, dict[str, Tensor]] = {}
    for unit, accumulator in work.units.items():
        if unit.kind == "grouped":
            write_tensors(stats / f"grouped-{unit.name}.safetensors", accumulator.compact())
            continue
        tensors = by_kind.setdefault(unit.kind, {})
        tensors |= {f"{unit.name}.{key}": tensor for key, tensor in accumulator.state_dict().items()}
    for kind, tensors in by_kind.items():
        write_tensors(stats / f"{kind}-{work.number:02d}.safetensors", tensors)
    tokens = next(iter(work.readers.values())).moments.tokens
    write_json(stats / f"pass-{work.number:02d}.json", {"seconds": work.seconds, "tokens": tokens})


def _summary(run: Run, plan: Plan, device: torch.device, processes: int) -> dict:
    """What the passes tell about themselves."""
    passes = [run.recorded(f"stats/pass-{number:02d}.json") for number in range(len(plan.passes))]
    setting = plan.setting
    seconds = sum(part["seconds"] for part in passes)
    read = setting.blocks * setting.context * sum(len(part.depths(setting.shape.layers)) for part in plan.passes)
    hashes = run.recorded("stats/key.json")["hashes"]
    return {
        "tokens_counted": passes[0]["tokens"],
        "blocks": setting.blocks,
        "context": setting.context,
        "layers": setting.shape.layers,
        "neurons": setting.shape.neurons,
        "seeds": setting.seeds,
        "references": setting.references,
        "precision": setting.precision,
        "passes": len(passes),
        "processes": processes,
        "device": device.type,
        "device_name": device_name(device),
        "loops": _loops(device, setting.precision),
        "wall_seconds": round(seconds, 1),
        "tokens_per_second": round(read / max(seconds, 1e-9)),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "seed_hashes": {name: hashes[f"seed {name}"] for name in setting.seeds if f"seed {name}" in hashes},
        "text_hash": hashes["text"],
        "code": code_of(PASS),
    }


def _loops(device: torch.device, precision: str) -> str:
    """What the loops over activations ran in."""
    if device.type == "cuda":
        return "Triton" if OPERAND_DTYPES[precision] in GPU_TYPES and gpu_loop(device) else "torch"
    return "C++" if native.libraries() else "torch"


@exit_on_input_error
def main() -> int:
    """Command line: one parameter file, as resolved by `lib.report resolve`."""
    if len(sys.argv) != 2:
        print("usage: python -m lib.collect outputs/<run>/params.yaml", file=sys.stderr)
        return 2
    collect(Run(read_params(sys.argv[1])))
    return 0
