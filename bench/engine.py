"""The report's own way: the whole of it, from seeds and text, and its statistics alone, from activations."""

import time
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lib.collect import BATCH, CHUNK, Pass
from lib.correlation import compare
from lib.kernels.covariance import OPERAND_DTYPES, CrossCovariance
from lib.kernels.fused import INT8_LIMIT, fastest_layer_statistics
from lib.kernels.moments import Moments
from lib.params import ROOT, Params
from lib.store import Run

RANDOM_SEED = 0
CONTEXT = 256
ROWS = BATCH * CONTEXT  # tokens that the elementwise kernel sees at a time, as in the pass
CHUNK_TOKENS = CHUNK * CONTEXT  # tokens in one covariance product, as in the pass


def shipped_run(seeds: tuple[str, ...], tokens: int, precision: str, name: str = "bench") -> Run:
    """A run over shipped seeds, the first of them the reference; one rotation."""
    folders = {seed: str(ROOT / "data" / "seeds" / seed) for seed in seeds}
    text = str(ROOT / "data" / "tokens.safetensors")
    return Run(
        Params(
            run=name, seeds=folders, reference=seeds[0], text=text, context=CONTEXT, token_budget=tokens,
            random_seed=RANDOM_SEED, rotations=1, precision=precision,
        )  # fmt: skip
    )


class _Silent:
    """A progress bar that shows nothing."""

    def update(self, _count: int) -> None:
        pass


def whole(run: Run) -> tuple[dict[str, Tensor], dict]:
    """The report's own pass and algebra.

    Returns corr and baseline of the reference (compared seeds, total), and times and sizes.
    """
    times = [time.perf_counter()]
    work = Pass(run)
    times.append(time.perf_counter())
    while work.next_block < work.blocks:
        work.advance(_Silent())
    times.append(time.perf_counter())
    comparison = compare(work.covariance, work.moments, run.params.random_seed, draws=1)
    times.append(time.perf_counter())
    reference = work.names.index(run.params.reference)
    others = [index for index in range(len(work.names)) if index != reference]
    return {"corr": comparison.corr[reference, others], "baseline": comparison.baseline[0, reference, others]}, {
        "fixed_seconds": times[1] - times[0] + times[3] - times[2],
        "pass_seconds": times[2] - times[1],
        "precision": work.precision,
        "model_bytes": size(parameter for model in work.models.values() for parameter in model.parameters()),
        "accumulator_bytes": size(
            tensor for accumulator in work.accumulators().values() for tensor in accumulator.state_dict().values()
        ),
    }


def size(tensors) -> int:
    """Bytes of some tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass
class Given:
    """One seed's activations of a number of tokens, one tensor (tokens, neurons) a layer."""

    pre: list[Float[Tensor, "tokens neurons"]]
    post: list[Float[Tensor, "tokens neurons"]]


class Statistics:
    """What the pass does with activations once it has them, for one pair of seeds."""

    def __init__(self, given: dict[str, Given], precision: str):
        self.dtype, some = OPERAND_DTYPES[precision], next(iter(given.values()))
        self.layers, self.neurons, self.device = len(some.pre), some.pre[0].shape[1], some.pre[0].device
        self.moments = {
            name: Moments(
                torch.stack([torch.stack([x.mean(0), 1 / x.std(0)]) for x in own.pre]),
                torch.stack([_post_scaling(x, self.dtype) for x in own.post]),
            )
            for name, own in given.items()
        }
        self.kernel = fastest_layer_statistics()
        self.dither = torch.rand(ROWS, self.neurons, device=self.device)
        self.ones = torch.ones(ROWS, 1, device=self.device)
        self.covariance = CrossCovariance(list(given), self.layers, self.neurons, self.dtype, self.device)

    def operand(self, name: str, given: Given, tokens: int) -> Tensor:
        """The operand (tokens, layers × neurons) of a chunk, which repeats the given tokens where it is longer."""
        operand = torch.empty(tokens, self.layers * self.neurons, dtype=self.dtype, device=self.device)
        moments = self.moments[name]
        for start in range(0, tokens, ROWS):
            rows = slice(start % len(given.pre[0]), start % len(given.pre[0]) + ROWS)
            for layer in range(self.layers):
                scalings = moments.pre_scaling[layer], moments.post_scaling[layer]
                pre, post = given.pre[layer][rows], given.post[layer][rows]
                sums, part = self.kernel(pre, post, self.ones, *scalings, self.dither, self.dtype)
                moments.update(layer, sums)
                operand[start : start + ROWS, layer * self.neurons : (layer + 1) * self.neurons] = part
            moments.count(ROWS)
        return operand

    def stream(self, given: dict[str, Given], tokens: int) -> None:
        """Adds one chunk of tokens (a multiple of ROWS) of every seed."""
        self.covariance.update({name: self.operand(name, own, tokens) for name, own in given.items()})

    def result(self) -> dict[str, Float[Tensor, "total"]]:
        """corr and baseline of the first seed against the second."""
        comparison = compare(self.covariance, self.moments, RANDOM_SEED, draws=1)
        return {"corr": comparison.corr[0, 1], "baseline": comparison.baseline[0, 0, 1]}

    def operations(self, tokens: int) -> int:
        """Operations (2 per product) of the covariances of a chunk: the pair, and each layer with itself."""
        return 2 * tokens * (self.layers * self.neurons) ** 2 + 2 * 2 * tokens * self.layers * self.neurons**2


def _post_scaling(post: Float[Tensor, "tokens neurons"], dtype: torch.dtype) -> Float[Tensor, "2 neurons"]:
    if dtype != torch.int8:
        return torch.stack([post.mean(0), 1 / post.std(0)])
    low, high = post.amin(0), post.amax(0)
    return torch.stack([(low + high) / 2, 2 * INT8_LIMIT / (1.5 * (high - low))])
