"""The pass beside its forward passes alone, and two passes at once beside one alone."""

import os
import subprocess
import sys
import time

import torch

from bench.engine import fresh_pass, shipped_run
from bench.machine import median, seconds
from bench.scaling import SEEDS, timed
from lib.base.machine import device_of
from lib.collect.planner import CANDIDATES


def overhead(tokens: int, rounds: int) -> dict:
    """Tokens a second through all seeds: forward passes alone, and the pass without and with grouped moments.

    The three take turns, batch by batch, so that all see the same machine. Candidates are chosen before.
    """
    run = shipped_run(SEEDS, tokens, "auto", compare="all", products="sketch")
    device, works = device_of(run.params), {}
    for name, grouped in (("pass", False), ("pass with grouped moments", True)):
        works[name] = fresh_pass(run, grouped=grouped)
        works[name].advance(0)
    pairs = works["pass"].candidates(CANDIDATES)
    for work in works.values():
        work.follow(pairs)
    plain = works["pass"]

    def forward(number: int) -> None:
        tokens = run.text.tokens[plain.reading.batches[number]].to(device)
        for reader in plain.readers.values():
            reader.trunk.run(tokens, lambda *_: None)

    ways = {"forward passes alone": forward} | {name: work.advance for name, work in works.items()}
    taken = {name: [] for name in ways}
    numbers = range(plain.reading.first, len(plain.done))[: 3 * rounds]
    for number in numbers:
        for name, way in ways.items():
            taken[name].append(seconds(device, lambda way=way, number=number: way(number)))
    size = len(run.text.tokens[plain.reading.batches[numbers[0]]]) * run.text.context
    return {name: size / median(times[rounds // 2 :]) for name, times in taken.items()}


def at_once(tokens: int) -> dict:
    """Seconds of a pass alone, and of two of different runs at once."""
    threads = torch.get_num_threads()
    alone = timed(1, threads, tokens, "auto", "bench-alone")["command"]
    program = "import sys; from bench.scaling import timed; "
    program += "print(timed(1, *map(int, sys.argv[1:3]), 'auto', sys.argv[3])['command'])"
    started, running = time.perf_counter(), []
    for name in ("bench-one", "bench-other"):
        command = [sys.executable, "-c", program, str(threads), str(tokens), name]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ))
    both = [float(one.communicate()[0].splitlines()[-1]) for one in running]
    return {"tokens": tokens, "alone": alone, "both": both, "together": time.perf_counter() - started}
