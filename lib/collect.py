"""The one pass: every block of text goes once through every seed, and every accumulator is fed from it.

The pass is saved every few minutes and goes on from there after a kill; it ends with one safetensors file per
accumulator in outputs/<run>/stats and a summary in done.json. `python -m lib.collect outputs/<run>/params.yaml`.
"""

import platform
import resource
import sys
import time
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from lib.correlation import compare
from lib.errors import InputError
from lib.hub import weights_sha256
from lib.kernels.covariance import OPERAND_DTYPES, CrossCovariance, fastest_precision
from lib.kernels.examples import TopExamples
from lib.kernels.fused import INT8_LIMIT, fastest_layer_statistics
from lib.kernels.histogram import Histogram
from lib.kernels.moments import Moments
from lib.params import read_params
from lib.seeds import Trunk, check_seed, load_model, token_losses
from lib.store import Run, read_tensors, write_json, write_table, write_tensors
from lib.text import file_sha256

BATCH = 8  # blocks in one forward pass
CHUNK = 64  # blocks in one covariance product, at most
PILOT = 64  # blocks that fix shifts and scales
HISTOGRAM_EVERY = 8  # one batch in so many is counted into the histograms
LOSS_BLOCKS = 256  # blocks on which each seed's loss is measured
HEADROOM = 1.5  # int8 operands cover the pilot's range times this
SAVE_SECONDS = 180
SNAPSHOTS = (1 / 16, 1 / 8, 1 / 4, 1 / 2)  # shares of the text after which best matches are recorded


class Pass:
    """The accumulators of one run, and how far they have come."""

    def __init__(self, run: Run):
        params = run.params
        self.run, self.text, self.names = run, run.text, sorted(params.seeds)
        self.device = torch.device(
            ("cuda" if torch.cuda.is_available() else "cpu") if params.device == "auto" else params.device
        )
        self.precision = (
            fastest_precision(self.device, run.text.tokens.numel()) if params.precision == "auto" else params.precision
        )
        self.operand_dtype = OPERAND_DTYPES[self.precision]
        forward_dtype = torch.bfloat16 if self.precision in ("bf16", "int8") else torch.float32
        self.models = {
            name: load_model(params.seed_source(name), forward_dtype).to(self.device) for name in self.names
        }
        self.trunks = {name: Trunk(model) for name, model in self.models.items()}
        self.layers, self.neurons = _shape(self.models)
        self.blocks = len(self.text.tokens)
        self.chunk = max(BATCH, min(CHUNK, self.blocks // 16 // BATCH * BATCH))
        self.next_block = 0
        self.seconds = 0.0
        self.statistics = fastest_layer_statistics()
        self._prepare()

    def _prepare(self) -> None:
        """Shifts and scales from a pilot spread over the text, then empty accumulators."""
        spread = torch.linspace(0, self.blocks - 1, min(PILOT, self.blocks)).long()
        tokens, counted = self.text.tokens[spread], self.text.counted(spread)
        self.moments, self.examples, self.histograms, self.dither = {}, {}, {}, {}
        for index, name in enumerate(self.names):
            pre_scaling, post_scaling, low, high = self._pilot(name, tokens, counted)
            self.moments[name] = Moments(pre_scaling, post_scaling)
            self.examples[name] = TopExamples(self.layers, self.neurons, device=self.device)
            self.histograms[name] = Histogram(low, high)
            generator = torch.Generator().manual_seed(self.run.params.random_seed * 1000 + index)
            # rows are used from a start that moves with the batch, so the tile is a little longer than a batch
            rows = 2 * BATCH * self.text.context if self.precision == "int8" else BATCH * self.text.context
            self.dither[name] = torch.rand(rows, self.neurons, generator=generator).to(self.device)
        self.covariance = CrossCovariance(self.names, self.layers, self.neurons, self.operand_dtype, self.device)

    def _pilot(self, name: str, tokens: Tensor, counted: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Scalings (layers, 2, neurons) of pre-activation and activation, and the pre-activation's range."""
        pres, posts = ([[] for _ in range(self.layers)] for _ in range(2))
        for start in range(0, len(tokens), BATCH):
            rows = counted[start : start + BATCH].flatten().to(self.device)

            def visit(layer: int, pre: Tensor, post: Tensor, rows=rows) -> None:
                pres[layer].append(pre.flatten(0, 1)[rows].to(torch.bfloat16))
                posts[layer].append(post.flatten(0, 1)[rows].to(torch.bfloat16))

            self.trunks[name].run(tokens[start : start + BATCH].to(self.device), visit)
        pre_scaling, post_scaling, lows, highs = [], [], [], []
        for layer in range(self.layers):
            pre, post = torch.cat(pres[layer]).float(), torch.cat(posts[layer]).float()
            pres[layer] = posts[layer] = None
            self._refuse_nan(name, layer, pre.sum(0))
            deviation = _floored(pre.std(0, correction=0))
            pre_scaling.append(torch.stack([pre.mean(0), 1 / deviation]))
            lows.append(pre.amin(0) - deviation / 2)
            highs.append(pre.amax(0) + deviation / 2)
            if self.precision == "int8":
                low, high = post.amin(0), post.amax(0)
                step = _floored((high - low) * HEADROOM / (2 * INT8_LIMIT))
                post_scaling.append(torch.stack([(low + high) / 2, 1 / step]))
            else:
                post_scaling.append(torch.stack([post.mean(0), 1 / _floored(post.std(0, correction=0))]))
        return torch.stack(pre_scaling), torch.stack(post_scaling), torch.stack(lows), torch.stack(highs)

    def _refuse_nan(self, name: str, layer: int, sums: Tensor) -> None:
        broken = (~sums.isfinite()).nonzero()
        if len(broken):
            neuron = int(broken[0, -1])
            raise InputError(
                f"seed '{name}', layer {layer}, neuron {neuron}: its activation is NaN or infinite on this text, so no "
                "correlation with it is defined; check the model's weights."
            )

    def advance(self, bar: tqdm) -> None:
        """One chunk of blocks through every seed and into every accumulator."""
        started = time.perf_counter()
        stop = min(self.next_block + self.chunk, self.blocks)
        blocks = torch.arange(self.next_block, stop)
        operands = {name: self._forward(name, blocks, bar) for name in self.names}
        self.covariance.update(operands)
        self.next_block = stop
        self.seconds += time.perf_counter() - started

    def _forward(self, name: str, blocks: Tensor, bar: tqdm) -> Tensor:
        """One seed's activations on some blocks: moments, histogram and examples fed, operand returned."""
        context, total = self.text.context, self.layers * self.neurons
        operand = torch.empty(len(blocks) * context, total, dtype=self.operand_dtype, device=self.device)
        for start in range(0, len(blocks), BATCH):
            batch = blocks[start : start + BATCH]
            self._forward_batch(name, batch, operand[start * context : (start + len(batch)) * context])
            bar.update(len(batch) * context)
        return operand

    def _forward_batch(self, name: str, batch: Tensor, operand: Tensor) -> None:
        """As `_forward` for one batch, writing its rows (tokens, layers × neurons) of the operand."""
        tokens, mask = self._padded(batch)
        weights, flat = mask.flatten().float()[:, None], mask.flatten()
        moments, examples, histogram = self.moments[name], self.examples[name], self.histograms[name]
        number = int(batch[0]) // BATCH
        offset = number * 379 % (len(self.dither[name]) - len(flat) + 1)
        dither = self.dither[name][offset : offset + len(flat)]

        def visit(layer: int, pre: Tensor, post: Tensor) -> None:
            scalings = moments.pre_scaling[layer], moments.post_scaling[layer]
            pre_rows, post_rows = pre.flatten(0, 1), post.flatten(0, 1)  # (tokens, neurons)
            sums, part = self.statistics(pre_rows, post_rows, weights, *scalings, dither, self.operand_dtype)
            self._refuse_nan(name, layer, sums)
            moments.update(layer, sums)
            operand[:, layer * self.neurons : (layer + 1) * self.neurons] = part[: len(operand)]
            examples.update(layer, post[: len(batch)], mask[: len(batch)], batch)
            if number % HISTOGRAM_EVERY == 0:
                histogram.update(layer, pre_rows, flat)

        self.trunks[name].run(tokens, visit)
        moments.count(int(mask.sum()))

    def _padded(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and counted mask of a batch, filled up with uncounted blocks so that its shape never changes."""
        tokens = torch.full((BATCH, self.text.context), self.text.bos_id)
        mask = torch.zeros(BATCH, self.text.context, dtype=torch.bool)
        tokens[: len(batch)], mask[: len(batch)] = self.text.tokens[batch], self.text.counted(batch)
        return tokens.to(self.device), mask.to(self.device)

    def accumulators(self) -> dict[str, object]:
        """Every accumulator by the prefix of its tensors in a saved state."""
        named = {"covariance": self.covariance}
        for kind, group in (("moments", self.moments), ("examples", self.examples), ("histogram", self.histograms)):
            named |= {f"{kind}.{name}": accumulator for name, accumulator in group.items()}
        return named

    def state_dict(self) -> dict[str, Tensor]:
        """All accumulators' tensors and how far the pass has come."""
        state = {"next_block": torch.tensor(self.next_block), "seconds": torch.tensor(self.seconds)}
        for prefix, accumulator in self.accumulators().items():
            state |= {f"{prefix}/{name}": tensor for name, tensor in accumulator.state_dict().items()}
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Goes on from a saved state."""
        self.next_block, self.seconds = int(state["next_block"]), float(state["seconds"])
        for prefix, accumulator in self.accumulators().items():
            own = {key.split("/", 1)[1]: value for key, value in state.items() if key.startswith(prefix + "/")}
            accumulator.load_state_dict({name: tensor.to(self.device) for name, tensor in own.items()})

    def snapshot(self) -> dict[str, Tensor]:
        """Best matches and one rotation's baseline on the tokens so far, averaged over compared seeds."""
        comparison = compare(self.covariance, self.moments, self.run.params.random_seed, draws=1)
        return {
            "corr": comparison.corr.nanmean(1),  # (seeds, total)
            "baseline": comparison.baseline[0].nanmean(1),
            "tokens": torch.tensor(self.moments[self.names[0]].tokens),
        }

    def losses(self) -> list[dict]:
        """Each seed's loss in nats per token on the first blocks of the text, over all and by domain."""
        rows = []
        tokens, domain = self.text.tokens[:LOSS_BLOCKS], self.text.domain[:LOSS_BLOCKS]
        for name, model in self.models.items():
            losses = torch.cat([token_losses(model, part.to(self.device)).cpu() for part in tokens.split(BATCH)])
            rows.append({"seed": name, "domain": "all", "loss": float(losses.mean()), "tokens": losses.numel()})
            for index in domain.unique().tolist():
                own = losses[domain == index]
                label = self.text.domains[index]
                rows.append({"seed": name, "domain": label, "loss": float(own.mean()), "tokens": own.numel()})
        return rows


def _floored(scale: Tensor) -> Tensor:
    """Scales no smaller than a hundredth of their median: a neuron silent in the pilot may still fire later."""
    return scale.clamp(min=max(float(scale.median()) / 100, 1e-6))


def _shape(models: dict) -> tuple[int, int]:
    """(layers, neurons a layer), which all seeds must share."""
    shapes = {}
    for name, model in models.items():
        config = model.config
        width = getattr(config, "n_inner", None) or getattr(config, "intermediate_size", None) or 4 * config.hidden_size
        shapes[name] = (config.num_hidden_layers, width)
    if len(set(shapes.values())) > 1:
        raise InputError(f"the seeds differ in shape (layers, neurons a layer): {shapes}; they must be the same model.")
    return next(iter(shapes.values()))


def check(run: Run) -> None:
    """Refuses seeds and text that cannot be used, before any work is done."""
    params = run.params
    for name in sorted(params.seeds):
        check_seed(name, Path(params.seed_source(name)), run.text, params.context)


def collect(run: Run) -> None:
    """Runs the pass, or what is left of it; returns at once if it is complete."""
    stats = run.folder / "stats"
    run.params.refuse_other_statistics()
    complete = (stats / "done.json").exists()
    for name in sorted(run.params.seeds):  # what a pass reads is checked first; what it has read is told by its hash
        run.params.seed_source(name) if complete else run.params.fetch_seed(name)
    hashes = file_hashes(run)
    _refuse_other_files(run, hashes)
    if complete:
        return
    check(run)
    write_json(stats / "key.json", run.params.statistics_key | {"hashes": hashes})
    work = Pass(run)
    state = stats / "state.safetensors"
    if state.exists():
        work.load_state_dict(read_tensors(state))
    else:
        write_table(run.folder / "tables" / "losses.parquet", pd.DataFrame(work.losses()))
    _run_to_end(work, stats, state)


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


def _run_to_end(work: Pass, stats: Path, state: Path) -> None:
    marks = [round(share * work.blocks) for share in SNAPSHOTS]
    total = work.blocks * work.text.context * len(work.names)
    done = work.next_block * work.text.context * len(work.names)
    saved = time.monotonic()
    with tqdm(total=total, initial=done, unit="tok", unit_scale=True, desc="pass", file=sys.stderr) as bar:
        while work.next_block < work.blocks:
            before = work.next_block
            work.advance(bar)
            if any(before < mark <= work.next_block < work.blocks for mark in marks):
                write_tensors(stats / f"snapshot-{work.next_block:06d}.safetensors", work.snapshot())
            if time.monotonic() - saved > SAVE_SECONDS and work.next_block < work.blocks:
                write_tensors(state, work.state_dict())
                saved = time.monotonic()
    _finish(work, stats)
    state.unlink(missing_ok=True)


def _finish(work: Pass, stats: Path) -> None:
    for kind in ("covariance", "moments", "examples", "histogram"):
        tensors = {}
        for prefix, accumulator in work.accumulators().items():
            if prefix.split(".")[0] == kind:
                seed = prefix.removeprefix(kind).lstrip(".")
                tensors |= {f"{seed}.{key}".lstrip("."): value for key, value in accumulator.state_dict().items()}
        write_tensors(stats / f"{kind}.safetensors", tensors)
    clipped = {name: float(moments.clipped_share().max()) for name, moments in work.moments.items()}
    hashes = work.run.recorded("stats/key.json")["hashes"]
    write_json(
        stats / "done.json",
        {
            "tokens_counted": work.moments[work.names[0]].tokens,
            "blocks": work.blocks,
            "context": work.text.context,
            "layers": work.layers,
            "neurons": work.neurons,
            "precision": work.precision,
            "device": str(work.device),
            "device_name": device_name(work.device),
            "wall_seconds": round(work.seconds, 1),
            "tokens_per_second": round(work.blocks * work.text.context * len(work.names) / work.seconds),
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "largest_clipped_share": clipped,
            "seed_hashes": {name: hashes[f"seed {name}"] for name in work.names if f"seed {name}" in hashes},
            "text_hash": hashes["text"],
        },
    )


def load_accumulators(run: Run) -> tuple[CrossCovariance, dict[str, Moments]]:
    """The finished covariances and moments of a run, for the algebra that follows."""
    names = sorted(run.params.seeds)
    moments = {}
    stored = read_tensors(run.folder / "stats" / "moments.safetensors")
    for name in names:
        state = {key.split(".", 1)[1]: value for key, value in stored.items() if key.startswith(name + ".")}
        moments[name] = Moments(state["pre_scaling"], state["post_scaling"])
        moments[name].load_state_dict(state)
    dtype = OPERAND_DTYPES[run.done["precision"]]
    covariance = CrossCovariance(names, run.done["layers"], run.done["neurons"], dtype, torch.device("meta"))
    covariance.load_state_dict(read_tensors(run.folder / "stats" / "covariance.safetensors"))
    return covariance, moments


def device_name(device: torch.device) -> str:
    """The processor as its maker names it, with the number of cores or GPUs used."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)
    return f"{model or platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def main() -> int:
    """Command line: one parameter file, as resolved by `lib.report resolve`."""
    if len(sys.argv) != 2:
        print("usage: python -m lib.collect outputs/<run>/params.yaml", file=sys.stderr)
        return 2
    try:
        collect(Run(read_params(sys.argv[1])))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
