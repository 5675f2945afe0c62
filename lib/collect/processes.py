"""The processes that share a run, as torchrun starts them: who handles which chunks, and how they keep in step.

One process is the same with one member. What they must agree on goes through torchrun's own key-value store, what they
have summed goes from one to the other tensor by tensor (NCCL between GPUs, gloo otherwise), and states on disk are only
there to resume from. The first process alone looks which files there are: on a file system that machines share, another
one may see an older folder.
"""

import json
import os
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor

from lib.base.errors import InputError

PATIENCE = timedelta(hours=12)  # processes wait for the slowest
PIECE = 2**29  # bytes sent at a time
LISTING_SECONDS = 120  # within which a file written by another machine must appear


class Processes:
    """This process among those that share the run; all must make the same calls in the same order."""

    def __init__(self, device: torch.device | str = "cpu"):
        self.count = int(os.environ.get("WORLD_SIZE", 1))
        self.rank = int(os.environ.get("RANK", 0)) if self.count > 1 else 0
        self.calls, self.device, self.connected = 0, torch.device(device), False
        if self.count > 1:
            store, _, _ = next(dist.rendezvous("env://"))
            self.store = dist.PrefixStore(self._session(store), store)

    def _session(self, store: dist.Store) -> str:
        """A name that all processes of this start share, and no earlier one.

        torchrun may keep its store when it restarts processes, so entries may come from dead ones. Each process
        therefore announces itself under a random name, and the first answers that name until all have joined.
        """
        own = uuid4().hex
        if not self.first:
            store.set(f"process {self.rank}", own)
            store.wait([f"session of {own}"], PATIENCE)
            session = store.get(f"session of {own}").decode()
            store.set(f"{session} joined by {self.rank}", "")
            return session
        missing = set(range(1, self.count))
        while missing:
            for rank in sorted(missing):
                if store.check([f"process {rank}"]):
                    store.set(f"session of {store.get(f'process {rank}').decode()}", own)
            missing = {rank for rank in missing if not store.check([f"{own} joined by {rank}"])}
            time.sleep(0.05)
        return own

    @staticmethod
    def on_this_machine() -> int:
        """How many processes share this machine's memory."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if int(os.environ.get("WORLD_SIZE", 1)) > 1 else 1

    @property
    def first(self) -> bool:
        """True for the one process that writes what all have in common."""
        return self.rank == 0

    def agree(self, content: Any) -> Any:
        """What the first process holds, in every process; anything that JSON can hold."""
        if self.count == 1:
            return content
        key = self._next("agreed")
        if self.first:
            self.store.set(key, json.dumps(content))
        self.store.wait([key], PATIENCE)
        return json.loads(self.store.get(key))

    def wait(self) -> None:
        """Returns once every process is here."""
        if self.count == 1:
            return
        key = self._next("arrived")
        if self.store.add(key, 1) == self.count:
            self.store.set(key + " all", "")
        self.store.wait([key + " all"], PATIENCE)

    def _next(self, what: str) -> str:
        self.calls += 1
        return f"{what} {self.calls}"

    def appeared(self, path: Path) -> Path:
        """The path of a file that the first process has written, once this one sees it; InputError if it never does."""
        for _ in range(LISTING_SECONDS):
            if path.exists():
                return path
            time.sleep(1)
        raise InputError(
            f"process {self.rank} does not see {path}, which the first process has written; all processes need the "
            "same outputs folder, on a file system that their machines share."
        )

    # ------------------------------------------------------------ sums

    def connect(self) -> None:
        """Connects the processes directly: by NCCL where each has a GPU of its own, or else by gloo."""
        if self.connected:
            return
        own = self.device.type == "cuda" and torch.cuda.device_count() >= self.on_this_machine()
        backend = self.agree("nccl" if own and dist.is_nccl_available() else "gloo")
        self.wire = self.device if backend == "nccl" else torch.device("cpu")
        group = dist.PrefixStore("sums", self.store)
        dist.init_process_group(backend, store=group, rank=self.rank, world_size=self.count, timeout=PATIENCE)
        self.connected = True

    def send(self, tensor: Tensor, to: int) -> None:
        """Sends a tensor to a process that asks for it by `receive`; as bytes, since NCCL does not know every type."""
        for piece in _bytes(tensor.to(self.wire).contiguous()):
            dist.send(piece, to)

    def receive(self, like: Tensor, source: int) -> Tensor:
        """A tensor of the shape and type of `like`, on this process's device, from a process that sends it."""
        made = torch.empty(like.shape, dtype=like.dtype, device=self.wire)
        for piece in _bytes(made):
            dist.recv(piece, source)
        return made.to(self.device)

    def close(self) -> None:
        """Ends the connection."""
        if self.connected:
            dist.destroy_process_group()
            self.connected = False


def _bytes(tensor: Tensor) -> tuple[Tensor, ...]:
    """A tensor's memory in pieces that every library can send; none of an empty tensor."""
    return tensor.flatten().view(torch.uint8).split(PIECE) if tensor.numel() else ()


class Incoming:
    """A state that another process sends tensor by tensor, read as `lib.base.tensors.TensorFiles` is: in its order."""

    mapped = False

    def __init__(self, processes: Processes, source: int, like: Mapping[str, Tensor]):
        self.processes, self.source, self.like = processes, source, like

    def names(self) -> list[str]:
        """All tensors' names."""
        return list(self.like)

    def tensor(self, name: str) -> Tensor:
        """The next tensor, which must have this name."""
        return self.processes.receive(self.like[name], self.source)


def tree(rank: int, count: int) -> tuple[list[int], int | None]:
    """From which processes one takes over what they have summed, in this order, and to which it then gives its sums.

    The first gives them to none. It takes from about log₂ of their number, while others take from others.
    """
    sources, step = [], 1
    while step < count:
        if rank & step:
            return sources, rank - step
        sources += [rank + step] if rank + step < count else []
        step *= 2
    return sources, None


def shares(
    done: dict[str, list[bool]], chunks: int, processes: int
) -> tuple[list[list[str]], list[list[int]], list[str]]:
    """Which saved states and which remaining chunks each process takes, and which states are stale.

    `done` tells for each saved state, by its file's name, which chunks it holds. States of the same pass hold different
    chunks, except where one was merged into another and the process died before deleting it: the smaller is stale.
    Every chunk ends in one state or with one process.
    """
    held, kept, stale = [False] * chunks, [], []
    for name in sorted(done, key=lambda name: (-sum(done[name]), name)):
        if any(a and b for a, b in zip(held, done[name], strict=True)) or not any(done[name]):
            stale.append(name)
            continue
        kept.append(name)
        held = [a or b for a, b in zip(held, done[name], strict=True)]
    remaining = [chunk for chunk in range(chunks) if not held[chunk]]
    states: list[list[str]] = [[] for _ in range(processes)]
    homeless = []
    for name in kept:
        rank = int(name.split("-")[-1])
        if rank < processes:
            states[rank].append(name)
        else:
            homeless.append(name)
    for index, name in enumerate(homeless):
        states[index % processes].append(name)
    return states, [remaining[rank::processes] for rank in range(processes)], stale
