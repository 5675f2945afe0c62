"""From seeds and text to each reference neuron's best correlation and rotation baseline, by either way.

`python -m bench.whole ours|published …` runs one way in a process of its own, so that neither inherits the other's
memory or warm caches; it saves the result and prints one line of JSON with times and memory.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from bench import engine, published
from bench.machine import seconds, this_device
from lib.base.hub import seed_source
from lib.base.machine import peak_memory
from lib.base.params import ROOT
from lib.base.tensors import read_tensors, write_tensors
from lib.kernels.correlation import haar_rotation
from lib.models.trunk import load_model
from lib.run import Run


def published_way(run: Run) -> tuple[dict[str, Tensor], dict]:
    """The published algorithm for the reference and every other seed, results as in `engine.whole`."""
    params, device, text = run.params, this_device(), run.text
    result, runs, started = {"corr": [], "baseline": []}, [], time.perf_counter()
    reference = load_model(seed_source(params, params.reference)).to(device)
    layers, neurons = reference.config.n_layer, reference.config.n_inner

    def batches():
        for start in range(0, len(text.tokens), published.BATCH):
            part = slice(start, start + published.BATCH)
            yield text.tokens[part].to(device), text.counted(part)

    for name in sorted(params.seeds):
        if name == params.reference:
            continue
        other = load_model(seed_source(params, name)).to(device)
        turn = haar_rotation(neurons, params.random_seed, 0).float().to(device).expand(layers, -1, -1)
        for kind, rotation in (("corr", None), ("baseline", turn)):

            def work(kind=kind, other=other, rotation=rotation):
                result[kind].append(published.pair_correlations(reference, other, batches(), rotation))

            runs.append(seconds(device, work))
    return {kind: torch.stack(rows) for kind, rows in result.items()}, {
        "fixed_seconds": time.perf_counter() - started - sum(runs),
        "pass_seconds": sum(runs),
        "run_seconds": runs,
        "precision": "fp32",
        "model_bytes": 2 * engine.size(reference.parameters()),
        "accumulator_bytes": 8 * (layers * neurons) ** 2,
    }


def measured(
    way: str, seeds: tuple[str, ...], tokens: int, precision: str, products: str = "auto"
) -> tuple[dict[str, Tensor], dict]:
    """One way in a child process: (result, times and memory)."""
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "result.safetensors"
        command = [sys.executable, "-m", "bench.whole", way, "--seeds", *seeds, "--tokens", str(tokens)]
        command += ["--precision", precision, "--products", products, "--save", str(saved)]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        return read_tensors(saved), json.loads(done.stdout.splitlines()[-1])


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_memory()


def main() -> None:
    """Command line of the child."""
    parser = argparse.ArgumentParser(prog="python -m bench.whole", description=__doc__.splitlines()[0])
    parser.add_argument("way", choices=("ours", "published"))
    parser.add_argument("--seeds", nargs="+", required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--products", default="auto")
    parser.add_argument("--save", type=Path, required=True)
    given = parser.parse_args()
    device = this_device()
    before = _peak(device)
    started = time.perf_counter()
    run = engine.shipped_run(tuple(given.seeds), given.tokens, given.precision, products=given.products)
    result, record = {"ours": engine.whole, "published": published_way}[given.way](run)
    record |= {"seconds": time.perf_counter() - started, "tokens": run.text.tokens.numel()}
    record |= {"peak_bytes": _peak(device), "imports_bytes": before}
    write_tensors(given.save, result)
    print(json.dumps(record))


if __name__ == "__main__":
    main()
