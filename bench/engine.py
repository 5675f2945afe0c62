"""The report's own way: the whole of it, from seeds and text, and its statistics alone, from activations."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.base.hub import seed_source
from lib.base.machine import device_of
from lib.base.params import ROOT, Params
from lib.collect.first_look import pilot
from lib.collect.one_pass import Pass
from lib.collect.planner import CHUNK, batch_blocks, pack, setting_of, shared_shape
from lib.collect.preflight import Preflight
from lib.collect.reader import Dither, SeedReader
from lib.kernels.correlation import Comparison, Covariance, compare
from lib.kernels.covariance import OPERAND_DTYPES, LayerProducts, symmetric_share
from lib.models.trunk import Trunk, load_model, mixed_precision
from lib.run import Run
from lib.text.blocks import Text

RANDOM_SEED = 0
CONTEXT = 256


def rows(device: torch.device, neurons: int, tokens: int) -> int:
    """Tokens in a forward pass, of a text of so many."""
    return batch_blocks(device.type, CONTEXT, neurons, tokens // CONTEXT) * CONTEXT


def chunk_tokens(device: torch.device) -> int:
    """Tokens in a covariance product."""
    return CHUNK[device.type] * CONTEXT


def shipped_run(seeds: tuple[str, ...], tokens: int, precision: str, name: str = "bench") -> Run:
    """A run over shipped seeds; the first of them is the reference, compared with each other one in one rotation."""
    folders = {seed: str(ROOT / "data" / "seeds" / seed) for seed in seeds}
    text = str(ROOT / "data" / "tokens.safetensors")
    return Run(
        Params(
            run=name,
            seeds=folders,
            reference=seeds[0],
            compare="reference",
            text=text,
            context=CONTEXT,
            token_budget=tokens,
            random_seed=RANDOM_SEED,
            rotations=1,
            precision=precision,
        )
    )


class _Silent:
    """A progress bar that shows nothing."""

    def update(self, _count: int) -> None:
        pass


def whole(run: Run) -> tuple[dict[str, Tensor], dict]:
    """The report's own pass and algebra, all its accumulators included.

    Returns corr and baseline of the reference (compared seeds, total), and times and sizes.
    """
    times = [time.perf_counter()]
    params, device = run.params, device_of(run.params)
    plan = pack(setting_of(params, shared_shape(params), device))
    precision, names = plan.setting.precision, plan.setting.seeds
    scalings = {
        name: pilot(
            name,
            Trunk(load_model(seed_source(params, name)).to(device), mixed_precision(precision)),
            run.text,
            precision,
            device,
        )
        for name in names
    }
    if len(plan.passes) > 1:
        raise RuntimeError("the benchmark is of runs that take one pass; this machine has too little free memory.")
    work = Pass(Preflight(run, grouped=False), plan, 0, scalings, device)
    times.append(time.perf_counter())
    for chunk in range(len(work.done)):
        work.advance(chunk, _Silent())
    _synchronise(device)
    times.append(time.perf_counter())
    moments = {name: reader.moments for name, reader in work.readers.items()}
    comparison = compare(work.covariance(), moments, params.random_seed, draws=1)
    times.append(time.perf_counter())
    bases = [reader.trunk.base for reader in work.readers.values()]
    return _of_reference(comparison, names.index(params.reference)), {
        "fixed_seconds": times[1] - times[0] + times[3] - times[2],
        "pass_seconds": times[2] - times[1],
        "precision": precision,
        "model_bytes": size(parameter for base in bases for parameter in base.parameters()),
        "accumulator_bytes": size(
            tensor for accumulator in work.accumulators().values() for tensor in accumulator.state_dict().values()
        ),
    }


def _of_reference(comparison: Comparison, reference: int) -> dict[str, Float[Tensor, "compared total"]]:
    others = [index for index in range(len(comparison.corr)) if index != reference]
    return {"corr": comparison.corr[reference, others], "baseline": comparison.baseline[0, reference, others]}


def size(tensors) -> int:
    """Bytes of some tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass
class Given:
    """One seed's activations of a number of tokens (whole batches), one tensor (tokens, neurons) a layer.

    Stands in for a trunk: a block's first token id says which of the given tokens its activations are.
    """

    pre: list[Float[Tensor, "tokens neurons"]]
    post: list[Float[Tensor, "tokens neurons"]]

    def run(self, tokens: Int[Tensor, "blocks context"], visit: Callable, layers: int | None = None) -> None:
        """Calls visit(layer, pre, post) as `lib.models.trunk.Trunk` does."""
        start, given = (int(tokens[0, 0]) - 1) * CONTEXT, len(self.pre[0])
        stop = start + tokens.numel()
        part = slice(start, stop) if stop <= given else torch.arange(start, stop, device=tokens.device) % given
        for layer in range(layers or len(self.pre)):
            visit(layer, *(x[layer][part].view(-1, CONTEXT, x[layer].shape[1]) for x in (self.pre, self.post)))

    def text(self, tokens: int) -> Text:
        """Blocks of tokens whose first ones number the given activations, repeatedly; every token counts."""
        blocks, length = len(self.pre[0]) // CONTEXT, max(CHUNK[self.pre[0].device.type], tokens // CONTEXT)
        tokens = (torch.arange(length) % blocks + 1)[:, None].expand(length, CONTEXT)
        none = torch.zeros(length, dtype=torch.int64)
        return Text(tokens, none, none, ("",), "", blocks + 1, 0, ())


class Statistics:
    """What the pass does with activations once it has them, for one pair of seeds and without examples and histograms.

    `tokens` is the length of the text that they are taken from, which decides int8's steps.
    """

    def __init__(self, given: dict[str, Given], precision: str, tokens: int):
        some = next(iter(given.values()))
        self.names, self.dtype, self.device = tuple(given), OPERAND_DTYPES[precision], some.pre[0].device
        self.layers, self.neurons, self.text = len(some.pre), some.pre[0].shape[1], some.text(tokens)
        self.readers = {
            name: SeedReader(name, own, pilot(name, own, self.text, precision, self.device), self.layers, precision)
            for name, own in given.items()
        }
        self.dither = Dither(
            RANDOM_SEED,
            len(given),
            (rows(self.device, self.neurons, self.text.tokens.numel()), self.neurons),
            self.device,
        )

        def products() -> LayerProducts:
            return LayerProducts(self.layers, self.neurons, self.dtype, self.device)

        self.pair, self.within = [products() for _ in range(self.layers)], products()

    def stream(self, tokens: int) -> None:
        """Adds a chunk of tokens (whole batches, at most `chunk_tokens`) of both seeds."""
        blocks = torch.arange(tokens // CONTEXT)
        a, b = (
            reader.operands(self.text, blocks, lambda batch, index=index: self.dither.of(index, batch))
            for index, reader in enumerate(self.readers.values())
        )
        for layer, products in enumerate(self.pair):
            products.update(a[layer], b)
        self.within.update_own(b)  # the baseline rotates the second seed

    def result(self) -> dict[str, Float[Tensor, "compared total"]]:
        """corr and baseline of the first seed against the second."""
        covariance = Covariance(
            self.names,
            (self.names,),
            self.names[:1],
            self.layers,
            self.neurons,
            pair=lambda _a, layer, _b, other: self.pair[layer].sums[other],
            within=lambda _seed, layer: self.within.sums[layer],
        )
        moments = {name: reader.moments for name, reader in self.readers.items()}
        return _of_reference(compare(covariance, moments, RANDOM_SEED, draws=1), 0)

    def operations(self, tokens: int) -> int:
        """Operations (2 per product) of a chunk's covariances: the pair, and each layer of one seed with itself."""
        own = symmetric_share(self.neurons, self.dtype, self.device.type) * self.layers * self.neurons**2
        return round(2 * tokens * ((self.layers * self.neurons) ** 2 + own))
