"""The pass in one process and in two, launched by torchrun as a user would."""

import os
import shutil
import subprocess
import sys

from bench.engine import shipped_run
from lib.params import ROOT, write_params
from lib.store import Run

SEEDS = ("a", "b", "c", "d", "e")


def pass_seconds(processes: int, threads: int, tokens: int, precision: str) -> float:
    """Wall time of the pass over `tokens` tokens of the shipped text, as it records it."""
    run: Run = shipped_run(SEEDS, tokens, precision, name=f"bench-{processes}x{threads}")
    shutil.rmtree(run.folder, ignore_errors=True)
    run.folder.mkdir(parents=True)
    write_params(run.params, run.folder / "params.yaml")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["-m", "lib.collect", str(run.folder / "params.yaml")]
    try:
        subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, check=True)
        return run.done["wall_seconds"]
    finally:
        shutil.rmtree(run.folder)


def scaling(tokens: int, precision: str, cores: int) -> dict:
    """Seconds with one process on one core's share, on all cores, and two processes that share the cores."""
    half = max(cores // 2, 1)
    layouts = {"one_half": (1, half), "one_all": (1, cores), "two": (2, half)}
    return {name: pass_seconds(*layout, tokens, precision) for name, layout in layouts.items()}
