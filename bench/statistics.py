"""The statistics alone, on activations that are there already: the published way and ours, and our share of the GEMM peak."""

from functools import partial

import torch
from torch.nn.functional import gelu

from bench import published
from bench.engine import CHUNK_TOKENS, RANDOM_SEED, ROWS, Given, Statistics
from bench.machine import gemm_peak, interleaved, median, seconds
from lib.correlation import rotations

SHAPES = ((3, 512), (6, 1024), (12, 1024))  # layers, neurons a layer
TOKENS = 4 * ROWS  # distinct tokens of activations, and what the published way adds at a time


def synthetic(layers: int, neurons: int, device: torch.device) -> dict[str, Given]:
    """Two seeds' activations of TOKENS tokens: neurons that mix 64 shared features, some of them alike in both seeds."""
    generator = torch.Generator().manual_seed(RANDOM_SEED)
    features = torch.randn(TOKENS, 64, generator=generator)
    given = {}
    for name in ("a", "b"):
        mixed = [
            features @ torch.randn(64, neurons, generator=generator) / 8
            + torch.randn(TOKENS, neurons, generator=generator)
            for _ in range(layers)
        ]
        pre = [x.to(device) for x in mixed]
        given[name] = Given(pre, [gelu(x, approximate="tanh") for x in pre])
    return given


def compare_at(layers: int, neurons: int, device: torch.device, precision: str, tokens: int, rounds: int) -> dict:
    """Seconds a token and seconds at the end of both ways, one pair with its baseline, and how far results differ."""
    given = synthetic(layers, neurons, device)
    a, b = given["a"].post, given["b"].post
    turn = torch.stack(list(rotations(layers, neurons, RANDOM_SEED, 1, 0))).float().to(device)
    plain, rotated = (published.StreamedCorrelation(layers, neurons) for _ in range(2))
    ours = Statistics(given, precision, tokens)

    def published_stream() -> None:
        plain.update(a, b)
        rotated.update(a, published.rotate(b, turn))

    ours.stream(ROWS)  # compiles
    with torch.inference_mode():
        work = {"published": published_stream, "ours": partial(ours.stream, CHUNK_TOKENS)}
        stream = interleaved(device, work, rounds)
    result = {}
    end = {
        "published": seconds(device, lambda: result.update(published=(plain.largest(), rotated.largest()))),
        "ours": seconds(device, lambda: result.update(ours=ours.result())),
    }
    difference = max(
        float((ours_one[0] - published_one).abs().max())
        for ours_one, published_one in zip(
            (result["ours"]["corr"], result["ours"]["baseline"]), result["published"], strict=True
        )
    )
    return {
        "neurons": layers * neurons,
        "precision": precision,
        "published_seconds_per_token": median(stream["published"]) / TOKENS,
        "ours_seconds_per_token": median(stream["ours"]) / CHUNK_TOKENS,
        "published_seconds_at_end": end["published"],
        "ours_seconds_at_end": end["ours"],
        "largest_difference": difference,
    }


def share_of_peak(layers: int, neurons: int, device: torch.device, precision: str, tokens: int, rounds: int) -> dict:
    """Rate of the covariance kernel, preparing operands included, against the peak of the same type of product."""
    given = synthetic(layers, neurons, device)
    ours = Statistics(given, precision, tokens)
    ours.stream(ROWS)
    peak, rate = [], []
    for _ in range(rounds):
        peak.append(gemm_peak(device, ours.dtype))
        taken = seconds(device, lambda: ours.stream(CHUNK_TOKENS))
        rate.append(ours.operations(CHUNK_TOKENS) / taken)
    return {"precision": precision, "neurons": layers * neurons, "peak": median(peak), "rate": median(rate)}
