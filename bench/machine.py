"""The machine a benchmark runs on: what it is, its clock, and the peak rate of its matrix products."""

import os
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

import torch

from lib.base.machine import device_name
from lib.base.params import ROOT
from lib.kernels.covariance import product

# (rows, columns, summed) of products whose best rate counts as the peak: square ones, and a chunk of many tokens
SHAPES = {"cpu": ((2048, 2048, 2048), (3072, 3072, 8192)), "cuda": ((8192, 8192, 8192), (16384, 16384, 8192))}
PEAK_SECONDS = 0.5  # for which each shape is repeated


def this_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def file_stem(device: torch.device) -> str:
    """`cpu`, `cpu-amx` where it has matrix units, or a GPU's model in small letters (`h200`)."""
    if device.type == "cpu":
        return "cpu-amx" if torch.cpu._is_amx_tile_supported() else "cpu"
    words = re.sub(r"[^a-z0-9]+", " ", torch.cuda.get_device_name(device).lower()).split()
    return next((word for word in words if re.fullmatch(r"[a-z]+\d+[a-z]*", word)), "-".join(words))


def description(device: torch.device) -> dict:
    """What a reader needs to judge the numbers."""
    commit = subprocess.run(
        ["git", "-C", ROOT, "describe", "--always", "--dirty", "--exclude=*"], capture_output=True, text=True
    )
    return {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "device": device_name(device),
        "cpu": device_name(torch.device("cpu")),
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
        "commit": commit.stdout.strip() or None,
    }


def seconds(device: torch.device, work: Callable[[], object]) -> float:
    """Wall time of a call, the device's queue included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def interleaved(device: torch.device, work: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each piece of work in each round, A B A B …, so that a slow minute strikes all alike."""
    times = {name: [] for name in work}
    for _ in range(rounds):
        for name, call in work.items():
            times[name].append(seconds(device, call))
    return times


def median(values: list[float]) -> float:
    """The median."""
    return statistics.median(values)


def gemm_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Rate of leftᵀ·right in operations per second (2 per product), operands ready, of the best shape and layout.

    Each is timed several times and its median counts, as the median of the kernel's times does.
    """
    best = 0.0
    for rows, columns, summed in SHAPES[device.type]:
        left, right = _operand(rows, summed, dtype, device), _operand(summed, columns, dtype, device)
        for ready in (left.T, left.T.contiguous()):  # (summed, rows), once with the sum's axis contiguous
            work = partial(product, ready, right)
            once = min(seconds(device, work) for _ in range(2))  # the first warms up
            times = [seconds(device, work) for _ in range(max(3, min(50, round(PEAK_SECONDS / once))))]
            best = max(best, 2 * rows * columns * summed / median(times))
    return best


def _operand(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    if dtype == torch.int8:
        return torch.randint(-127, 128, (rows, columns), dtype=dtype, device=device)
    return torch.randn(rows, columns, device=device).to(dtype)
