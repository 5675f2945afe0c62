"""The loops of the C++ files beside this one, compiled when first called for, where a compiler is at hand."""

import contextlib
import ctypes
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

LANES = 64  # the loops take numbers of neurons that are multiples of it
SUFFIXES = {torch.float32: "float", torch.bfloat16: "bfloat16"}  # of the functions, by the activations' type
COMPILER = "g++"  # its OpenMP takes torch's own threads; clang's wants a library of its own
# native.cpp rounds products and sums apart, as torch's expressions do, so that the operands are the same
SOURCES = {"native.cpp": "-ffp-contract=off", "forward.cpp": "-ffp-contract=fast"}
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # options of mallopt in glibc's malloc.h
RAN: dict[str, str] = {}  # loops over activations that this process has called, and what they last ran in
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")


@cache
def libraries() -> tuple[ctypes.CDLL, ...]:
    """The sources compiled for this processor, in a second; those that fail are left out, and torch does their work."""
    return tuple(_loaded()[0].values())


def why_slower() -> str | None:
    """Why torch does the work of some loops, more slowly, in words; None where all were compiled."""
    loaded, why = _loaded()
    return why if len(loaded) < len(SOURCES) else None


@cache
def _loaded() -> tuple[dict[str, ctypes.CDLL], str]:
    """The compiled sources by name, and what stands in the way of the others.

    Where programs in the temporary folder may not be run (noexec), they are made here, beside the sources.
    """
    if shutil.which(COMPILER) is None:
        return {}, f"there is no {COMPILER}"
    loaded, why = {}, ""
    for place in (None, Path(__file__).parent):
        try:
            with tempfile.TemporaryDirectory(dir=place) as folder:
                made = _compiled(Path(folder))
                loaded = {name: ctypes.CDLL(str(path)) for name, path in made.items()}
                failed = ", ".join(name for name in SOURCES if name not in made)
                return loaded, f"{COMPILER} could not compile {failed} of lib/kernels"
        except OSError as error:  # no place to write, or none to run from
            why = f"no program can be made and run in {place or tempfile.gettempdir()} ({error.strerror or error})"
    return loaded, why


def _compiled(folder: Path) -> dict[str, Path]:
    """The sources that the compiler takes, at the same time, by name."""
    running = {}
    for source, contraction in SOURCES.items():
        command = [COMPILER, *FLAGS, contraction, Path(__file__).with_name(source), "-o", folder / f"{source}.so"]
        running[source] = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    codes = {source: process.wait() for source, process in running.items()}
    return {source: folder / f"{source}.so" for source, code in codes.items() if code == 0}


@cache
def warn_slower(what: str, why: str) -> None:
    """Warns, once, that torch does a loop's work on a GPU, step by step."""
    warnings.warn(f"{what} {why}; torch does its work, several times as slowly", stacklevel=3)


def takes(name: str, *activations: Tensor) -> bool:
    """Whether a loop is there and reads such activations (…, neurons)."""
    first = activations[0]
    alike = all(one.is_contiguous() and one.dtype == first.dtype and one.device.type == "cpu" for one in activations)
    return alike and first.dtype in SUFFIXES and first.shape[-1] % LANES == 0 and _loop(name, first) is not None


def call(name: str, activations: Tensor, *arguments: Tensor | int | float | None) -> None:
    """Calls a loop for the type of the activations, which come first; tensors must have the types it names."""
    _loop(name, activations)(*map(_given, (activations, *arguments)))


def _loop(name: str, activations: Tensor) -> Callable | None:
    return function(f"{name}_{SUFFIXES[activations.dtype]}")


@cache
def function(name: str) -> Callable | None:
    """A loop by its whole name, or None where there is none for this processor."""
    return next((getattr(one, name) for one in libraries() if hasattr(one, name)), None)


def _given(argument: Tensor | int | float | None):
    match argument:
        case None:
            return None
        case int():
            return ctypes.c_int64(argument)
        case float():
            return ctypes.c_float(argument)
    return ctypes.c_void_p(argument.data_ptr())


@cache
def keep_freed_memory() -> None:
    """Lets the C library keep up to a gigabyte of freed memory, so that each batch's activations need not be
    fetched from the system anew, page by page; only glibc knows how."""
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 2**25)
        mallopt(M_TRIM_THRESHOLD, 2**30)
