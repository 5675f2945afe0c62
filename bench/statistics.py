"""What the statistics cost by the number of neurons, on given activations: the sketch's way and the exact one."""

import math

import torch
from torch.nn.functional import gelu

from bench.engine import CONTEXT, RANDOM_SEED, Given, Statistics
from bench.machine import median, seconds
from lib.collect.planner import batch_blocks

SHAPES = ((3, 512), (6, 1024), (12, 1024), (12, 3072))  # layers, neurons a layer
BATCHES = 2  # of distinct activations


def synthetic(layers: int, neurons: int, device: torch.device) -> dict[str, Given]:
    """Two seeds' activations of a few batches: neurons mix 64 shared features, some alike in both seeds."""
    generator = torch.Generator().manual_seed(RANDOM_SEED)
    tokens = BATCHES * batch_blocks(device.type, CONTEXT, neurons, 2**20) * CONTEXT
    features, given = torch.randn(tokens, 64, generator=generator), {}
    for name in ("a", "b"):
        pre = []
        for _ in range(layers):
            mixed = features @ torch.randn(64, neurons, generator=generator) / 8
            pre.append((mixed + torch.randn(tokens, neurons, generator=generator)).to(device, torch.bfloat16))
        given[name] = Given(pre, [gelu(x, approximate="tanh") for x in pre])
    return given


def cost(given: dict[str, Given], precision: str, rows: int, exact: bool, rounds: int) -> dict[str, float]:
    """Seconds a token of the stream, and seconds of what is done once: naming candidates, matches and a baseline."""
    ours = Statistics(given, precision, rows, exact)
    ours.stream()
    once = seconds(ours.device, ours.choose)
    ours.stream()
    taken = median([seconds(ours.device, ours.stream) for _ in range(rounds)]) / (ours.batch * CONTEXT)
    return {"per_token": taken, "once": once + seconds(ours.device, ours.result)}


def costs(device: torch.device, precision: str, rows: int, rounds: int) -> dict:
    """`cost` of both ways at each of SHAPES, with the exponents of N that fit the costs a token best."""
    found = []
    for layers, neurons in SHAPES:
        given = synthetic(layers, neurons, device)
        ways = {way: cost(given, precision, rows, way == "exact", rounds) for way in ("sketch", "exact")}
        found.append({"neurons": layers * neurons} | ways)
    return {
        "precision": precision,
        "rows": rows,
        "sizes": found,
        "exponents": {way: exponent([(one["neurons"], one[way]["per_token"]) for one in found]) for way in ways},
    }


def exponent(points: list[tuple[float, float]]) -> float:
    """The slope of the best line through points on logarithmic axes."""
    x, y = ([math.log(value) for value in values] for values in zip(*points, strict=True))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    products = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return products / sum((a - mean_x) ** 2 for a in x)
