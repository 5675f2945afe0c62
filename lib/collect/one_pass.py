"""The passes over the text: every block goes once through the seeds that a pass needs and into all its accumulators.

Which accumulators a pass holds is planned by memory (`lib.collect.planner`); runs that fit take one pass. Each process saves its state every few
minutes and goes on from there after a kill; outputs/<run>/stats ends with safetensors files `<kind>-<pass>` and a
summary in done.json. `python -m lib.collect outputs/<run>/params.yaml`, or with several processes
`torchrun --nproc-per-node=K -m lib.collect outputs/<run>/params.yaml`.
"""

import contextlib
import copy
import platform
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor
from tqdm import tqdm

from lib.base.errors import InputError, told
from lib.base.files import file_sha256
from lib.base.hub import weights_sha256
from lib.base.params import read_params
from lib.collect.planner import (
    BATCH,
    PassPlan,
    Plan,
    Setting,
    Unit,
    device_of,
    pack,
    pass_memory,
    release_order,
    setting_of,
    shared_shape,
)
from lib.collect.processes import Processes, shares
from lib.collect.reader import Dither, SeedReader, Seen, pilot
from lib.kernels import native
from lib.kernels.correlation import Covariance, compare, products_at
from lib.kernels.covariance import OPERAND_DTYPES, LayerProducts, Operands
from lib.kernels.examples import TopExamples
from lib.kernels.fused import GPU_TYPES, SUMS, gpu_loop
from lib.kernels.grouped import GroupedMoments, Places
from lib.kernels.histogram import Histogram
from lib.kernels.moments import Moments
from lib.labels.groupings import group_sizes, run_groupings
from lib.models.trunk import Trunk, check_seed, check_weights, load_model, mixed_precision, token_losses
from lib.run import Run, TensorFiles, alone, read_tensors, write_json, write_table, write_tensors

HISTOGRAM_EVERY = 8  # one batch in so many is counted into the histograms
LOSS_BLOCKS = 256  # blocks on which each seed's loss is measured
LOSS_LOGITS = 2**22  # logits computed at a time, at most: what is freed of more goes back to the system, and is slow to get again
LISTING_SECONDS = 120  # until all that other machines wrote must be seen
SAVE_SECONDS = 180  # between two saves, for each gigabyte of state (and for less)
SNAPSHOTS = (1 / 16, 1 / 8, 1 / 4, 1 / 2)  # shares of the text after which best matches are recorded
PART_SUMS = ("operand1", "post1", "post2")
PARTS = 16  # of the text, after each of which the products with the first snapshot's best matches are recorded


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


# How the accumulators of one seed are made, from the run, their unit and the seed's pilot (`lib.collect.reader.PILOT_NAMES`), and
# how they are fed each layer's activations (`lib.collect.reader.Seen`) from the unit's first layer to the one before its stop.
ACCUMULATORS: dict[str, tuple[Callable, Callable]] = {
    "examples": (_examples, _feed_examples),
    "histogram": (_histogram, _feed_histogram),
}


class Pass:
    """The seeds and accumulators of one pass in one process, and which chunks of the text they have seen."""

    def __init__(self, run: Run, plan: Plan, number: int, scalings: dict[str, dict[str, Tensor]], device: torch.device):
        self.run, self.text, self.plan, self.number, self.device = run, run.text, plan, number, device
        self.planned: PassPlan = plan.passes[number]
        setting = plan.setting
        self.layers, self.neurons, self.names = setting.shape.layers, setting.shape.neurons, setting.seeds
        self.depths = self.planned.depths(self.layers)
        self.order = release_order(self.planned, self.depths)
        precision = setting.precision
        self.readers = {
            name: SeedReader(
                name, Trunk(_model(run, name, device), mixed_precision(precision)), scalings[name], depth, precision,
                name in self.planned.measured,
            )
            for name, depth in self.depths.items()
        }
        rows = setting.batch * run.text.context
        self.dither = Dither(run.params.random_seed, len(self.names), (rows, self.neurons), device)
        grouped = any(unit.kind == "grouped" for unit in self.planned.units)
        groups = dict(setting.groups) if grouped else {}
        ids = {name: one.ids for name, one in run_groupings(run).items()} if grouped else {}
        self.places = Places(ids, groups, device)
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
        accumulator = GroupedMoments(places.groups, scaling)

        def feed(seen: Seen) -> None:
            if seen.layer == unit.first:
                accumulator.update(seen.post, places, places.at(seen.blocks, seen.counted))

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
            state = {name: saved.tensor(f"{prefix}/{name}").to(self.device, copy=True) for name in accumulator.state_dict()}
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
            setting.seeds, setting.pairs, setting.references, self.layers, self.neurons,
            pair=lambda a, layer, b, other: found["pair", a, layer, b].sums[other],
            within=lambda seed, layer: found["within", seed, 0, None].sums[layer],
        )  # fmt: skip

    def snapshot(self) -> dict[str, Tensor]:
        """Best matches and one rotation's baseline on the tokens so far, averaged over compared seeds; and each match's partner."""
        moments = {name: reader.moments for name, reader in self.readers.items()}
        comparison = compare(self.covariance(), moments, self.run.params.random_seed, draws=1)
        return {
            "corr": comparison.corr.nanmean(1),  # (seeds, total)
            "baseline": comparison.baseline[0].nanmean(1),
            "partner": comparison.partner,
            "tokens": torch.tensor(moments[self.names[0]].tokens),
        }

    def part(self, partner: Int[Tensor, "seeds seeds total"]) -> dict[str, Tensor]:
        """What the correlations with these partners are computed from, on the tokens so far (`lib.chapters.universality.uncertainty`)."""
        moments = [self.readers[name].moments for name in self.names]
        sums = [one.sums[:, [SUMS.index(name) for name in PART_SUMS]].movedim(1, 0).flatten(1) for one in moments]
        return {
            "products": products_at(self.covariance(), partner),
            "sums": torch.stack(sums),  # (seeds, PART_SUMS, total)
            "tokens": torch.tensor(moments[0].tokens),
        }


def _model(run: Run, name: str, device: torch.device):
    return load_model(run.params.seed_source(name)).to(device)


def losses(name: str, model, text) -> list[dict]:
    """One seed's loss in nats per token on the first blocks of the text, over all and by domain."""
    tokens, domain = text.tokens[:LOSS_BLOCKS], text.domain[:LOSS_BLOCKS]
    size = min(BATCH[model.device.type], max(1, LOSS_LOGITS // (text.context * text.vocab_size)))
    found = torch.cat([token_losses(model, part.to(model.device)).cpu() for part in tokens.split(size)]).double()
    predicted = tokens[:, 1:] != text.bos_id  # BOS begins the next document or fills the end of a block
    rows = []
    for index, title in [(None, "all"), *((index, text.domains[index]) for index in domain.unique().tolist())]:
        own = found[predicted] if index is None else found[domain == index][predicted[domain == index]]
        if len(own):
            title = f"{title} (domain)" if title == "all" and index is not None else title
            rows.append({"seed": name, "domain": title, "loss": float(own.mean()), "tokens": len(own)})
    return rows


def _first_look(run: Run, precision: str, device: torch.device) -> None:
    """Every seed's loss (tables/losses.parquet) and pilot (stats/pilot.safetensors), one model at a time."""
    rows, scalings = [], {}
    for name in tqdm(sorted(run.params.seeds), desc="losses and ranges", unit="seed"):
        model = _model(run, name, device)
        trunk = Trunk(model, mixed_precision(precision))  # which gives the model its fast steps
        rows += losses(name, model, run.text)
        found = pilot(name, trunk, run.text, precision, device)
        scalings |= {f"{name}.{key}": tensor for key, tensor in found.items()}
    write_table(run.folder / "tables" / "losses.parquet", pd.DataFrame(rows))
    write_tensors(run.folder / "stats" / "pilot.safetensors", scalings)


def check(run: Run) -> None:
    """Refuses seeds and text that cannot be used, before any work is done."""
    params = run.params
    for name in sorted(params.seeds):
        check_seed(name, Path(params.seed_source(name)), run.text, params.context)


def collect(run: Run, grouped: bool = True, snapshots: tuple[float, ...] = SNAPSHOTS) -> None:
    """Runs the passes, or what is left of them; returns at once if all are complete.

    A run that looks at neither families nor convergence does without `grouped` moments and without `snapshots`, which
    take more than the products where there is little text.
    """
    stats = run.folder / "stats"
    run.params.refuse_other_statistics()
    complete = (stats / "done.json").exists()
    for name in sorted(run.params.seeds):  # what a pass reads is checked first, before the text is made; what it has read is told by its hash
        if complete:
            run.params.seed_source(name)
        else:
            check_weights(name, Path(run.params.fetch_seed(name)))
    hashes = file_hashes(run)
    _refuse_other_files(run, hashes)
    if complete:
        return
    processes = Processes()
    with contextlib.ExitStack() as held:
        if processes.first:
            held.enter_context(alone(stats, f"another process is working on {run.folder}; wait until it ends, or stop it, and run the same command again."))
        if not processes.agree((stats / "done.json").exists()):  # another process may have ended it meanwhile
            _collect(run, processes, hashes, grouped, snapshots)


def _collect(run: Run, processes: Processes, hashes: dict[str, str], grouped: bool, snapshots: tuple[float, ...]) -> None:
    stats, begun = run.folder / "stats", None
    device, shape = device_of(run.params), shared_shape(run.params)
    groups = tuple(map(tuple, processes.agree(group_sizes(run) if processes.first and grouped else ())))
    setting = setting_of(run.params, shape, device, Processes.on_this_machine(), groups)
    if processes.first:
        check(run)
        begun = _planned(run, setting)
        write_json(stats / "key.json", run.params.statistics_key | {"hashes": hashes})
        if not (stats / "pilot.safetensors").exists():
            _first_look(run, begun["precision"], device)
    plan = Plan.resumed(setting, processes.agree(begun))
    stored, scalings = read_tensors(stats / "pilot.safetensors"), {}
    for key, tensor in stored.items():
        name, what = key.split(".")
        scalings.setdefault(name, {})[what] = tensor.to(device)
    for number in range(len(plan.passes)):
        if not processes.agree((stats / f"pass-{number:02d}.json").exists()):
            _run_pass(Pass(run, plan, number, scalings, device), processes, stats, snapshots)
        processes.wait()
    if processes.first:
        write_json(stats / "done.json", _summary(run, plan, device, processes.count))
        for path in stats.glob("pass-*"):
            path.unlink()
    processes.wait()


def _planned(run: Run, setting: Setting) -> dict:
    """The plan that this run began with, or a new one where no pass has saved anything yet, as JSON; InputError if it cannot fit."""
    begun = {"precision": setting.precision} | (run.recorded("stats/plan.json") or {})  # a plan of older code did not say it
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
                f"memory_gb allows {run.params.memory_gb:g} GB, but this run began with passes of up to {need / 1e9:.1f} GB a process; "
                f"give it as much, or `make clean RUN={run.params.run}` and begin anew."
            )
    return begun


def file_hashes(run: Run) -> dict[str, str]:
    """SHA-256 of the text and of each seed's weights, by `text` and `seed <name>`; nothing for what is not there."""
    hashes = {"text": file_sha256(run.text_path)} if run.text_path.is_file() else {}
    for name in sorted(run.params.seeds):
        folder = run.params.seed_folder(name)
        weights = weights_sha256(folder) if folder else None
        hashes |= {f"seed {name}": weights} if weights else {}
    return hashes


def _refuse_other_files(run: Run, hashes: dict[str, str]) -> None:
    made_with = (run.recorded("stats/key.json") or {}).get("hashes", hashes)
    changed = sorted(name for name in made_with if made_with[name] != hashes.get(name))
    if changed:
        raise InputError(
            f"outputs/{run.params.run} was made with other files ({', '.join(changed)} changed since); choose another "
            f"name with RUN=…, or delete it with `make clean RUN={run.params.run}`."
        )


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

    On a file system shared by machines a file that another one wrote may be seen late, or an older one of that name. InputError if
    chunks are missing still.
    """
    waited = 0
    while True:
        paths = [path for path in sorted(stats.glob(f"{prefix}*.safetensors")) if path != mine]
        if (sum(TensorFiles([path]).tensor("done").int() for path in paths) + done.int() == 1).all():
            return paths
        if waited == LISTING_SECONDS:
            raise InputError(f"the processes' states in {stats} do not hold every part of the text once; run the same command again.")
        time.sleep(1)
        waited += 1


def _advance(work: Pass, chunks: list[int], marks: list[int], processes: Processes, state: Path) -> None:
    """Chunks through the pass, with a state saved now and then and a snapshot at each of the marks."""
    blocks, context, size = len(work.text.tokens), work.text.context, work.planned.chunk
    seeds = len(work.readers)
    gigabytes = sum(unit.memory for unit in work.units) / 1e9
    saved = time.monotonic()
    with tqdm(
        total=blocks * context * seeds // processes.count, initial=int(work.done.sum()) * size * context * seeds,
        unit="tok", unit_scale=True, desc=f"pass {work.number + 1}/{len(work.plan.passes)}", file=sys.stderr,
        disable=not processes.first,
    ) as bar:  # fmt: skip
        for chunk in chunks:
            work.advance(chunk, bar)
            before, now = chunk * size, min((chunk + 1) * size, blocks)
            if any(before < mark <= now < blocks for mark in marks):
                write_tensors(state.parent / f"snapshot-{now:06d}.safetensors", work.snapshot())
            if marks and any(before < round(blocks * part / PARTS) <= now for part in range(1, PARTS + 1)):
                first = min(state.parent.glob("snapshot-*.safetensors"), default=None)  # none where the text is a few blocks
                if first:
                    write_tensors(state.parent / f"part-{now:06d}.safetensors", work.part(read_tensors(first)["partner"]))
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
    }


def _loops(device: torch.device, precision: str) -> str:
    """What the loops over activations ran in."""
    if device.type == "cuda":
        return "Triton" if OPERAND_DTYPES[precision] in GPU_TYPES and gpu_loop(device) else "torch"
    return "C++" if native.libraries() else "torch"


def load_accumulators(run: Run, device: torch.device | str = "cpu") -> tuple[Covariance, dict[str, Moments]]:
    """The finished covariances, block by block from disk to the device, and moments of a run, for the algebra that follows."""
    stats = run.folder / "stats"
    stored = TensorFiles(sorted(stats.glob("moments-*.safetensors")))
    seeds, references = tuple(run.done["seeds"]), tuple(run.done["references"])
    moments = {}
    for name in seeds:
        state = {key: stored.tensor(f"{name}.{key}").to(device) for key in ("sums", "tokens", "pre_scaling", "post_scaling")}
        moments[name] = Moments(state["pre_scaling"], state["post_scaling"])
        moments[name].load_state_dict(state)
    pair = TensorFiles(sorted(stats.glob("pair-*.safetensors")))
    within = TensorFiles(sorted(stats.glob("within-*.safetensors")))
    pairs = sorted({(name.split(".")[0], name.split(".")[2]) for name in pair.names()})
    covariance = Covariance(
        seeds, tuple(pairs), references, run.done["layers"], run.done["neurons"],
        pair=lambda a, layer, b, other: pair.part(f"{a}.{layer}.{b}.sums", other).to(device),
        within=lambda seed, layer: within.part(f"{seed}.sums", layer).to(device),
    )  # fmt: skip
    return covariance, moments


def device_name(device: torch.device) -> str:
    """The processor as its maker names it, with the number of cores or GPUs used."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)
    return f"{model or platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


@told
def main() -> int:
    """Command line: one parameter file, as resolved by `lib.report.steps resolve`."""
    if len(sys.argv) != 2:
        print("usage: python -m lib.collect outputs/<run>/params.yaml", file=sys.stderr)
        return 2
    collect(Run(read_params(sys.argv[1])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
