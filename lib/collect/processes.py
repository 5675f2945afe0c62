"""The processes that share a run, as torchrun starts them: who handles which chunks, and how they keep in step.

One process is the same with one member. What they must agree on goes through torchrun's own key-value store, and states
through files: each is on disk anyway, so that nothing is lost when a process dies, and no connection between
processes can be left hanging when they are started again.
"""

import json
import os
import time
from datetime import timedelta
from typing import Any
from uuid import uuid4

import torch.distributed as dist

PATIENCE = timedelta(hours=12)  # processes wait for the slowest


class Processes:
    """This process among those that share the run; all must make the same calls in the same order."""

    def __init__(self):
        self.count = int(os.environ.get("WORLD_SIZE", 1))
        self.rank = int(os.environ.get("RANK", 0)) if self.count > 1 else 0
        self.calls = 0
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
