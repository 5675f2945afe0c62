"""The machine that a run uses: its device, memory and name."""

import os
import platform
import resource
import sys
from pathlib import Path

import torch

from lib.base.params import Params

SHARE = 0.8  # of the memory that is free, for memory_gb: auto


def device_of(params: Params) -> torch.device:
    """The device a run uses; `auto` is a GPU if there is one.

    Each process of a machine has a GPU of its own, or shares one where there are fewer. It becomes the process's
    default, on which libraries and kernels keep their scratch memory.
    """
    if params.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's with the number of threads used."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)
    return f"{model or platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def cores() -> int:
    """The cores that this process may use, or all of the machine's where a system does not say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory(device: torch.device) -> float:
    """Free bytes on a GPU, or on this machine, at most the limit of this process's control group."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    info = Path("/proc/meminfo")
    if info.exists():
        lines = dict(line.split(":", 1) for line in info.read_text(encoding="utf-8").splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    else:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2
    return min([free, *control_group_limits(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))])


def allowed_memory(params: Params, device: torch.device) -> float:
    """Bytes that a run may take on a device: memory_gb, or a share of what is free."""
    return free_memory(device) * SHARE if params.memory_gb == "auto" else params.memory_gb * 1e9


def peak_memory() -> int:
    """The most memory that this process has held, in bytes; macOS counts bytes, Linux kilobytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def control_group_limits(groups: Path, root: Path) -> list[float]:
    """Memory limits in bytes of this process's control group and all above it, as Slurm or a container sets them."""
    found = []
    for line in groups.read_text(encoding="utf-8").splitlines() if groups.exists() else ():
        _, controllers, own = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, name = (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
        place = top / own.lstrip("/")
        for folder in (place, *place.parents):
            limit = folder / name
            if (
                folder.is_relative_to(top)
                and limit.is_file()
                and (allowed := limit.read_text(encoding="utf-8").strip()) != "max"
            ):
                found.append(float(allowed))
    return found
