"""A device that this machine does not have: tensors whose values lie in its memory and who say that they do not.

PyTorch refuses an operation on tensors of two devices, but only where there are two. Here it is refused for a tensor
that was made on the CPU although it meets others of `ELSEWHERE`, and such a tensor cannot become a NumPy array. Copies
between devices, lists as an index and single numbers are allowed; an index on the CPU, which CUDA would copy, is not.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes, _get_current_dispatch_mode
from torch.utils._pytree import tree_map

ELSEWHERE = torch.device("meta")  # the one kind of device that needs no driver
ACROSS = ("copy_",)  # between devices


class WrongDeviceError(RuntimeError):
    """An operation met tensors of two devices."""


class _Tensor(torch.Tensor):
    """A tensor of the CPU, `own`, that says it is elsewhere."""

    @staticmethod
    def __new__(cls, own: torch.Tensor) -> "_Tensor":
        like = {"strides": own.stride(), "storage_offset": own.storage_offset(), "dtype": own.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, own.size(), **like, device=ELSEWHERE)
        made.own = own
        return made

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), named=None):
        raise WrongDeviceError("a tensor of `elsewhere` is used after its end")

    def tolist(self) -> list:
        """Numbers, as of any device."""
        return self.own.tolist()

    # PyTorch copies no values of lists to `ELSEWHERE`

    def new_tensor(self, data) -> torch.Tensor:
        """Beside this tensor, with its type."""
        return torch.tensor(data, dtype=self.dtype).to(ELSEWHERE)

    def __getitem__(self, index) -> torch.Tensor:
        return super().__getitem__(_without_lists(index))

    def __setitem__(self, index, values) -> None:
        super().__setitem__(_without_lists(index), values)


def _without_lists(index):
    parts = index if isinstance(index, tuple) else (index,)
    return tuple(
        torch.tensor(part, dtype=torch.long).to(ELSEWHERE) if isinstance(part, list) else part for part in parts
    )


class _Elsewhere(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        places, asked = set(), []

        def here(value):
            if isinstance(value, _Tensor):
                places.add(ELSEWHERE)
                return value.own
            if isinstance(value, torch.Tensor) and value.dim():
                places.add(value.device)
            if isinstance(value, torch.device):
                asked.append(value)
                return torch.device("cpu")
            return value

        name = function.overloadpacket.__name__
        if name == "_has_compatible_shallow_copy_type":
            return False  # a module that moves asks whether its parameters can take the new tensors in
        arguments, named = tree_map(here, (arguments, named or {}))
        if len(places) > 1 and not asked and name not in ACROSS:
            raise WrongDeviceError(f"{function} takes tensors of {' and '.join(sorted(map(str, places)))}")
        away, found = ELSEWHERE in (asked or places), function(*arguments, **named)
        return tree_map(lambda value: _Tensor(value) if away and isinstance(value, torch.Tensor) else value, found)


def at_home(function: Callable) -> Callable:
    """The function outside `elsewhere`, as for loading models, for which transformers needs the true device meta."""

    def called(*arguments, **named):
        with _disable_current_modes():
            return function(*arguments, **named)

    return called


@contextlib.contextmanager
def elsewhere(monkeypatch) -> Iterator[torch.device]:
    """The device `ELSEWHERE`, on which everything that is asked for works while the context lasts."""
    tensor = torch.tensor

    def filled(data, **named) -> torch.Tensor:
        if _get_current_dispatch_mode() is None or named.get("device") in (None, "cpu", torch.device("cpu")):
            return tensor(data, **named)
        return tensor(data, **(named | {"device": "cpu"})).to(named["device"])

    with monkeypatch.context() as changed, _Elsewhere():
        changed.setattr(torch, "tensor", filled)
        changed.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # which knows no such device
        yield ELSEWHERE
