"""The loops of native.cpp, compiled as torch.compile compiles its own kernels, where a compiler is at hand."""

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

LANES = 64  # the loops take numbers of neurons that are multiples of it
SUFFIXES = {torch.float32: "float", torch.bfloat16: "bfloat16"}  # of the functions, by the activations' type


@cache
def library() -> ctypes.CDLL | None:
    """native.cpp compiled, or None where that does not work."""
    from torch._inductor.codecache import CppCodeCache

    try:
        return CppCodeCache.load(Path(__file__).with_suffix(".cpp").read_text(encoding="utf-8"))
    except Exception:  # of many kinds; whoever calls has another way, and torch.compile tells what is missing
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
