"""The machine a benchmark runs on: what it is, its clock, and the peak rate of its matrix products."""

import re
import statistics
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime

import torch

from lib.base.machine import cores, device_name
from lib.base.params import ROOT


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
        "cores": cores(),
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
