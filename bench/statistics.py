"""The statistics alone, on given activations: the published way and ours, and our share of the GEMM peak."""

from functools import partial

import torch
from torch.nn.functional import gelu

from bench import published
from bench.engine import CONTEXT, RANDOM_SEED, Given, Statistics, chunk_tokens, rows
from bench.machine import gemm_peak, interleaved, median, seconds
from lib.collect.planner import BATCH
from lib.kernels.correlation import rotations
from lib.kernels.covariance import OPERAND_DTYPES
from lib.kernels.fused import compiled_layer_statistics, layer_statistics, native_layer_statistics

SHAPES = ((3, 512), (6, 1024), (12, 1024))  # layers, neurons a layer
BATCHES = 4  # forward passes' worth of distinct activations, which the published way adds at a time


def synthetic(layers: int, neurons: int, device: torch.device) -> dict[str, Given]:
    """Two seeds' activations of a few batches: neurons mix 64 shared features, some alike in both seeds."""
    generator, tokens = torch.Generator().manual_seed(RANDOM_SEED), BATCHES * BATCH[device.type] * CONTEXT
    features = torch.randn(tokens, 64, generator=generator)
    given = {}
    for name in ("a", "b"):
        mixed = [
            features @ torch.randn(64, neurons, generator=generator) / 8
            + torch.randn(tokens, neurons, generator=generator)
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

    ours.stream(rows(device, neurons, tokens))  # compiles
    with torch.inference_mode():
        work = {"published": published_stream, "ours": partial(ours.stream, chunk_tokens(device))}
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
        "published_seconds_per_token": median(stream["published"]) / len(a[0]),
        "ours_seconds_per_token": median(stream["ours"]) / chunk_tokens(device),
        "published_seconds_at_end": end["published"],
        "ours_seconds_at_end": end["ours"],
        "largest_difference": difference,
    }


def share_of_peak(layers: int, neurons: int, device: torch.device, precision: str, tokens: int, rounds: int) -> dict:
    """Rate of the covariance kernel, preparing operands included, against the peak of the same type of product."""
    given = synthetic(layers, neurons, device)
    ours = Statistics(given, precision, tokens)
    ours.stream(rows(device, neurons, tokens))
    peak, rate = [], []
    for _ in range(rounds):
        peak.append(gemm_peak(device, ours.dtype))
        taken = seconds(device, lambda: ours.stream(chunk_tokens(device)))
        rate.append(ours.operations(chunk_tokens(device)) / taken)
    return {"precision": precision, "neurons": layers * neurons, "peak": median(peak), "rate": median(rate)}


def elementwise(device: torch.device, precision: str, rounds: int) -> dict[str, float]:
    """Seconds a value of a layer's sums and operands in bf16: the plain expression, compiled, and our loop."""
    generator, (_, neurons), tokens = torch.Generator().manual_seed(RANDOM_SEED), SHAPES[1], chunk_tokens(device)
    pre = torch.randn(tokens, neurons, generator=generator)
    scaling = torch.stack([torch.zeros(neurons), torch.full((neurons,), 20.0)])
    given = (
        pre.bfloat16(),
        gelu(pre, approximate="tanh").bfloat16(),
        torch.ones(tokens, 1),
        scaling,
        scaling,
        pre.abs() % 1,
    )
    given = (
        *(one.to(device) for one in given),
        torch.empty(tokens, neurons, dtype=OPERAND_DTYPES[precision], device=device),
    )
    kernels = {"plain": layer_statistics, "compiled": compiled_layer_statistics()}
    if native_layer_statistics(*given) is not None:
        kernels["native"] = native_layer_statistics
    kernels["compiled"](*given)
    times = interleaved(device, {name: partial(kernel, *given) for name, kernel in kernels.items()}, 10 * rounds)
    return {name: median(taken) / pre.numel() for name, taken in times.items()}
