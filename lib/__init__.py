"""Kernels and statistics behind the report on universal neurons; the notebooks call these modules.

Every entry imports this first, so it holds what must be so before any other import.
"""

import os
import sys
import warnings
from pathlib import Path

PYTHONS = ("3.11", "3.12", "3.13")  # the versions that the pinned packages are for; the Makefile takes the newest

if ".".join(map(str, sys.version_info[:2])) not in PYTHONS:
    sys.exit(
        f"error: Python {', '.join(PYTHONS[:-1])} or {PYTHONS[-1]} is needed, but this is {sys.version.split()[0]}."
    )


def _is_foreign(path: str) -> bool:
    """Whether a place for modules comes from PYTHONPATH and is outside the repository."""
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return bool(path) and path in given and not Path(path).resolve().is_relative_to(Path(__file__).resolve().parents[1])


def _one_sentence(kind, error, trace) -> None:
    """Ctrl-C ends every entry with a sentence, at whatever line it comes."""
    if issubclass(kind, KeyboardInterrupt):
        print("\nstopped; the same command goes on from what is saved.", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.path.sort(key=_is_foreign)  # another numpy on PYTHONPATH comes after this environment's
if sys.excepthook is sys.__excepthook__:
    sys.excepthook = _one_sentence
# Waiting threads soon sleep, so that two runs share the cores. They try for some microseconds first: to be woken takes
# longer than most gaps between two loops (docs/benchmarks.md). OpenMP reads this when torch loads it.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ |= {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "2000")}
# A GPU's memory in segments that grow: batches, states and products differ in size, and what one frees fits another.
# torch reads this when it is loaded; the second is its older name.
if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():
    os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm falls back to plain text, which is wanted
