"""The processes that share a run, as torchrun starts them: who handles which chunks, and how their states are merged.

One process is the same with one member. Gloo connects processes on CPUs, NCCL those on GPUs.
"""

import copy
import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

PATIENCE = timedelta(hours=6)  # one process may write a large file while the others wait


class Processes:
    """This process among those that share the run."""

    def __init__(self, device: torch.device):
        self.device = device
        self.count = int(os.environ.get("WORLD_SIZE", 1))
        self.rank = int(os.environ.get("RANK", 0)) if self.count > 1 else 0
        if self.count > 1 and not dist.is_initialized():
            if device.type == "cuda":
                torch.cuda.set_device(device)
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)

    @staticmethod
    def on_this_machine() -> int:
        """How many processes share this machine's memory."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if int(os.environ.get("WORLD_SIZE", 1)) > 1 else 1

    @property
    def first(self) -> bool:
        """True for the one process that writes what all have in common."""
        return self.rank == 0

    def agree(self, content: Any) -> Any:
        """What the first process holds, in every process."""
        if self.count == 1:
            return content
        box = [content]
        dist.broadcast_object_list(box, device=self.device)
        return box[0]

    def wait(self) -> None:
        """Returns once every process is here."""
        if self.count > 1:
            dist.barrier()

    def merge(self, accumulator) -> None:
        """Merges the accumulators of all processes into the first one's, in the order of ranks."""
        state = accumulator.state_dict()
        for rank in range(1, self.count):
            if self.rank == rank:
                for tensor in state.values():
                    dist.send(_bytes(tensor.to(self.device)), 0)
            elif self.first:
                received = {}
                for name, own in state.items():
                    received[name] = torch.empty_like(own, device=self.device)
                    dist.recv(_bytes(received[name]), rank)
                merge_loaded(accumulator, received)
                state = accumulator.state_dict()

    def close(self) -> None:
        """Leaves the group once every process is here."""
        if self.count > 1:
            dist.barrier()
            dist.destroy_process_group()


def merge_loaded(accumulator, state: dict[str, torch.Tensor]) -> None:
    """Merges an accumulator's saved or received state into it."""
    other = copy.copy(accumulator)
    other.load_state_dict(state)
    accumulator.merge(other)


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)  # gloo does not know every type


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
