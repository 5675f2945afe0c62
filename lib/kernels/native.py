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
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")


@cache
def libraries() -> tuple[ctypes.CDLL, ...]:
    """The sources compiled for this processor, in a second; those that fail are left out, and torch does their work."""
    if shutil.which(COMPILER) is None:
        return ()
    loaded, running = [], {}
    with (
        contextlib.suppress(OSError),
        tempfile.TemporaryDirectory() as folder,
    ):  # no place to write, or none to run from
        for source, contraction in SOURCES.items():
            made = Path(folder) / f"{source}.so"
            command = [COMPILER, *FLAGS, contraction, Path(__file__).with_name(source), "-o", made]
            running[made] = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        codes = {made: process.wait() for made, process in running.items()}
        loaded += [ctypes.CDLL(str(made)) for made, code in codes.items() if code == 0]
        if any(codes.values()):
            failed = ", ".join(made.stem for made, code in codes.items() if code)
            warnings.warn(
                f"{COMPILER} could not compile {failed} of lib/kernels; torch does their work, more slowly",
                stacklevel=2,
            )
    return tuple(loaded)


def takes(name: str, *activations: Tensor) -> bool:
    """Whether a loop is there and reads such activations (…, neurons)."""
    first = activations[0]
    alike = all(one.is_contiguous() and one.dtype == first.dtype and not one.is_cuda for one in activations)
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
