"""The loops of native.cpp, compiled when first called for, where a compiler is at hand."""

import ctypes
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

LANES = 64  # the loops take numbers of neurons that are multiples of it
SUFFIXES = {torch.float32: "float", torch.bfloat16: "bfloat16"}  # of the functions, by the activations' type
COMPILERS = {"g++": "-fopenmp", "clang++": "-fopenmp=libgomp"}  # each with what gives it torch's own threads
# products and sums are rounded apart, as in torch's expression, so that the operands are the same
FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=off", "-shared", "-fPIC")


@cache
def library() -> ctypes.CDLL | None:
    """native.cpp compiled for this processor, which takes a second, or None where that does not work."""
    compiler = next((name for name in COMPILERS if shutil.which(name)), None)
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "native.so"
        command = [compiler, *FLAGS, COMPILERS[compiler], Path(__file__).with_suffix(".cpp"), "-o", made]
        try:
            subprocess.run(command, check=True, capture_output=True)
            return ctypes.CDLL(str(made))
        except (OSError, subprocess.CalledProcessError):  # whoever calls has another way, and torch.compile tells what is missing
            return None


def takes(*activations: Tensor) -> bool:
    """Whether the loops read such activations (tokens, neurons)."""
    first = activations[0]
    alike = all(one.is_contiguous() and one.dtype == first.dtype and not one.is_cuda for one in activations)
    return alike and first.dtype in SUFFIXES and first.shape[1] % LANES == 0 and library() is not None


def call(name: str, activations: Tensor, *arguments: Tensor | int | None) -> None:
    """Calls a loop of native.cpp for the type of the activations, which come first; tensors must have the types it names."""
    given = [ctypes.c_int64(one) if isinstance(one, int) else None if one is None else ctypes.c_void_p(one.data_ptr()) for one in (activations, *arguments)]
    getattr(library(), f"{name}_{SUFFIXES[activations.dtype]}")(*given)
