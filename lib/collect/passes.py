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
from lib.collect.processes import LISTING_SECONDS, Incoming, Processes, shares, tree
from lib.collect.statistics import CANDIDATES_FILE, read_candidates
from lib.kernels import native
from lib.labels.groupings import written_groupings
from lib.run import Run

SAVE_SECONDS = 60  # between two times that a state is saved, at least,
SAVE_SHARE = 0.05  # of the time since the last one, which saving it may take
SAVE_SPEED = 1e9  # bytes a second, until one was saved


def collect(run: Run, grouped: bool = True) -> None:
    """Runs the passes, or what is left of them; returns at once if all are complete.

    A run that does not look at families does without `grouped` moments.
    """
    inputs, processes, stats = Preflight(run, grouped), Processes(device_of(run.params)), run.folder / "stats"
    inputs.complete = processes.agree(inputs.complete)
    _check(inputs, processes)
    if inputs.complete:
        return
    busy = (
        f"another process is working on {run.folder}; wait until it ends, or stop it, and run the same command again."
    )
    with contextlib.ExitStack() as held:
        held.callback(processes.close)
        if processes.first:
            held.enter_context(locked(stats, busy))
        if not processes.agree((stats / "done.json").exists()):  # another process may have ended it meanwhile
            _collect(inputs, processes)


def _check(inputs: Preflight, processes: Processes) -> None:
    """Checks a run's inputs in the first process, which makes the text, and then in the others, which read it."""
    if processes.first:
        inputs.check()
    text = Path(processes.agree(str(inputs.run.text_path) if processes.first else None))
    if not processes.first:
        inputs.run.text_path = processes.appeared(text)
        inputs.check()


def _collect(inputs: Preflight, processes: Processes) -> None:
    run, params, stats = inputs.run, inputs.params, inputs.run.folder / "stats"
    device, begun = processes.device, None
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
    scalings = read_pilot(processes.appeared(stats / "pilot.safetensors"), device)
    for number in range(len(plan.passes)):
        if not processes.agree((stats / f"pass-{number:02d}.json").exists()):
            _run_pass(Pass(inputs, plan, number, scalings, device), processes, stats)
        processes.wait()
    if processes.first:
        write_json(stats / "done.json", summary(run, plan, device, processes.count))
        for path in stats.glob("pass-*"):
            path.unlink()
    processes.wait()


def read_pilot(path: Path, device: torch.device) -> dict[str, dict[str, Tensor]]:
    """The pilot's shifts, scales and ranges by seed and name (`PILOT_NAMES`)."""
    scalings: dict[str, dict[str, Tensor]] = {}
    for key, tensor in read_tensors(path).items():
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
    else:
        _refuse_too_large(run, Plan.resumed(setting, begun))
    return begun


def _refuse_too_large(run: Run, plan: Plan) -> None:
    """InputError where what is left of a begun plan does not fit: sums of one pass cannot be taken apart."""
    setting, given = plan.setting, run.params.memory_gb
    left = [part for number, part in enumerate(plan.passes) if not run.recorded(f"stats/pass-{number:02d}.json")]
    need = max((pass_memory(setting, part) for part in left), default=0)
    allowed = setting.memory * (1.25 if given == "auto" else 1)  # a new plan leaves a fifth of what is free
    if need <= allowed:
        return
    begun = f"but this run began with passes of up to {need / 1e9:.1f} GB a process"
    anew = f"or `make clean RUN={run.params.run}` and begin anew."
    if given == "auto":
        raise InputError(
            f"there are {allowed / 1e9:.1f} GB of free memory here for a process, {begun}; go on where there is as "
            f"much, {anew}"
        )
    raise InputError(f"memory_gb allows {given:g} GB, {begun}; give it as much, {anew}")


class State:
    """The file of this process's state of a pass, and when it is due again: a save may take SAVE_SHARE of the time
    since the last one."""

    def __init__(self, path: Path, work: Pass):
        self.path, self.work = path, work
        self.took = sum(unit.memory for unit in work.units) / SAVE_SPEED
        self.at = time.monotonic()

    def save(self) -> None:
        """Writes the state, tensor by tensor."""
        begun = time.monotonic()
        write_tensors(self.path, self.work.state_dict())
        self.at = time.monotonic()
        self.took = self.at - begun

    @property
    def due(self) -> bool:
        """Whether a save is worth its time again."""
        return time.monotonic() - self.at > max(SAVE_SECONDS, self.took / SAVE_SHARE)


def _run_pass(work: Pass, processes: Processes, stats: Path) -> None:
    """Runs this process's share of a pass, saving now and then; then the first process writes what all found."""
    prefix = f"pass-{work.number:02d}.state-"
    state = State(stats / f"{prefix}{processes.rank}.safetensors", work)
    dealt = None
    if processes.first:
        saved = {path.stem: path for path in stats.glob(f"{prefix}*.safetensors")}
        done = {name: TensorFiles([path]).tensor("done").tolist() for name, path in saved.items()}
        dealt = shares(done, len(work.done), processes.count)
        for name in dealt[2]:
            saved[name].unlink()
    states, batches, _ = processes.agree(dealt)
    candidates = stats / CANDIDATES_FILE
    if work.planned.compares and processes.agree(candidates.exists()):
        work.follow(read_candidates(processes.appeared(candidates).parent))
    taken = [stats / f"{name}.safetensors" for name in states[processes.rank]]
    for path in taken:
        work.merge_state(TensorFiles([processes.appeared(path)]))
    if adopted := [path for path in taken if path != state.path]:
        state.save()
        for path in adopted:
            path.unlink()
    work.load_models()
    own = batches[processes.rank]
    early = [number for number in own if work.in_first_part and number < work.reading.first]
    late = [number for number in own if number not in set(early)]
    with _bar(work, processes) as bar:
        _advance(work, early, bar, state, all_of_it=False)
        if work.in_first_part:
            _add_up(work, processes)
            if processes.first:
                state.save()
                _choose(work, stats)
            else:
                work.empty()
            processes.wait()
            if not processes.first:  # the first process's state holds what this one saw
                state.path.unlink(missing_ok=True)
            work.follow(read_candidates(processes.appeared(candidates).parent))
        _advance(work, late, bar, state, all_of_it=processes.count == 1)
    _add_up(work, processes)
    if processes.first:
        if not work.done.all():
            raise InputError(f"the states in {stats} do not hold all of the text; run the same command again.")
        finish(work, stats)
        for path in stats.glob(f"{prefix}*"):
            path.unlink()


def _add_up(work: Pass, processes: Processes) -> None:
    """Adds what all processes have summed into the first one's pass."""
    if processes.count == 1:
        return
    processes.wait()  # so that no one waits for another in a connection
    processes.connect()
    sources, target = tree(processes.rank, processes.count)
    for source in sources:
        work.merge_state(Incoming(processes, source, work.state_dict()))
    if target is not None:
        for tensor in work.state_dict().values():
            processes.send(tensor, target)


def _choose(work: Pass, stats: Path) -> None:
    """Writes which pairs are followed from now on."""
    pairs = work.candidates(CANDIDATES)
    write_tensors(stats / CANDIDATES_FILE, {f"{a}.{b}": pair.int() for (a, b), pair in pairs.items()})


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


def _advance(work: Pass, batches: list[int], bar: tqdm, state: State, all_of_it: bool) -> None:
    """Batches through the pass, with a state saved now and then, but not after the last if that ends the pass."""
    progress = Progress(work.inputs.run.folder, "passes")
    for number in batches:
        work.advance(number, bar)
        bar.set_postfix_str(progress.text((work.number + bar.n / bar.total) / len(work.plan.passes)), refresh=False)
        if state.due and not (all_of_it and number == batches[-1]):
            state.save()


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
    ended = {"seconds": work.seconds, "tokens": tokens, "loops": native.RAN}
    write_json(stats / f"pass-{work.number:02d}.json", ended)


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
        "loops": _loops(passes),
        "wall_seconds": round(seconds, 1),
        "tokens_per_second": round(read / max(seconds, 1e-9)),
        "peak_memory_bytes": peak_memory(),
        "seed_hashes": {name: hashes[f"seed {name}"] for name in setting.seeds if f"seed {name}" in hashes},
        "text_hash": hashes["text"],
        "code": code_of(PASS),
    }


def _loops(passes: list[dict]) -> str:
    """What the loops over activations ran in."""
    ran = {loop: where for part in passes for loop, where in part["loops"].items()}
    if len(set(ran.values())) == 1:
        return next(iter(ran.values()))
    return ", ".join(f"{where} ({loop})" for loop, where in sorted(ran.items())) or "not known"


@exit_on_input_error
def main() -> int:
    """Command line: one parameter file, as resolved by `lib.report resolve`."""
    if len(sys.argv) != 2:
        print("usage: python -m lib.collect outputs/<run>/params.yaml", file=sys.stderr)
        return 2
    collect(Run(read_params(sys.argv[1])))
    return 0
