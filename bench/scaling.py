"""The pass in one process and in two, launched by torchrun as a user would."""

import os
import shutil
import subprocess
import sys
import time

from bench.engine import shipped_run
from lib.base.params import ROOT, write_params
from lib.run import Run

SEEDS = ("a", "b", "c", "d", "e")


def timed(processes: int, threads: int, tokens: int, precision: str, name: str = "") -> dict[str, float]:
    """Seconds of the pass over `tokens` tokens of the shipped text, as it records them, and of the whole command."""
    run: Run = shipped_run(SEEDS, tokens, precision, name=name or f"bench-{processes}x{threads}")
    shutil.rmtree(run.folder, ignore_errors=True)
    run.folder.mkdir(parents=True)
    write_params(run.params, run.folder / "params.yaml")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["-m", "lib.collect", str(run.folder / "params.yaml")]
    environment, started = os.environ | {"OMP_NUM_THREADS": str(threads)}, time.perf_counter()
    try:
        subprocess.run(command, cwd=ROOT, env=environment, check=True, stderr=subprocess.DEVNULL)
        return {"pass": run.done["wall_seconds"], "command": time.perf_counter() - started}
    finally:
        shutil.rmtree(run.folder)


def scaling(tokens: int, precision: str, cores: int) -> dict[str, dict[str, float]]:
    """One process on half the cores, two processes that share all, and one process on all."""
    half = max(cores // 2, 1)
    layouts = {"one_half": (1, half), "two": (2, half), "one_all": (1, cores)}
    return {name: timed(*layout, tokens, precision) for name, layout in layouts.items()}
