"""What the passes left in a run's folder, for the algebra that follows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.base.tensors import TensorFiles
from lib.kernels.correlation import Covariance, Pair, Scale, Shape
from lib.kernels.followed import Followed
from lib.kernels.moments import Moments
from lib.kernels.sketch import EXACT, halved, product, squares
from lib.run import Run

CANDIDATES_FILE = "candidates.safetensors"


class _Made(dict):
    """Values by seed, each made when first asked for."""

    def __init__(self, make: Callable[[str], Tensor]):
        self.make = make

    def __missing__(self, seed: str) -> Tensor:
        self[seed] = self.make(seed)
        return self[seed]


def sketched(
    seeds: tuple[str, ...],
    pairs: tuple[Pair, ...],
    references: tuple[str, ...],
    shapes: Mapping[str, Shape],
    rows: Mapping[str, Float[Tensor, "rows total"]],
    exact: bool,
    halve: bool = True,
) -> Covariance:
    """The products of seeds estimated from their sketches; exact where each token has a row of its own.

    With `halve` also from half as many rows.
    """

    def own(seed: str, layer: int) -> Tensor:
        neurons = shapes[seed][1]
        return rows[seed][:, layer * neurons : (layer + 1) * neurons]

    number, half, piece = 0 if exact else len(rows[seeds[0]]), None, (EXACT,) if exact else ()
    if number > 1 and halve:
        halves = _Made(lambda seed: halved(rows[seed]))
        half = sketched(seeds, pairs, references, shapes, halves, exact, halve=False)
    return Covariance(
        *(seeds, pairs, references, shapes),
        stripe=lambda a, layer, b: product(own(a, layer), rows[b], *piece),
        within=lambda seed, layer: product(own(seed, layer), own(seed, layer), *piece),
        rows=number,
        squares=lambda seed: squares(rows[seed]),
        half=half,
    )


def read_candidates(stats: Path) -> dict[Pair, Int[Tensor, "2 number"]]:
    """The pairs that the pass follows, by pair of seeds; empty before its first part has ended."""
    path = stats / CANDIDATES_FILE
    files = TensorFiles([path] if path.exists() else [])
    return {tuple(name.split(".")): files.tensor(name).long() for name in files.names()}


@dataclass(frozen=True)
class Statistics:
    """A finished pass: products, moments and scales by seed, and the followed pairs."""

    covariance: Covariance
    moments: dict[str, Moments]
    scales: dict[str, Scale]
    followed: Followed


def load_statistics(run: Run, device: torch.device | str = "cpu") -> Statistics:
    """A run's statistics; sketches are read to the device, sums over all pairs block by block."""
    stats, done = run.folder / "stats", run.done
    stored = TensorFiles(sorted(stats.glob("moments-*.safetensors")))
    seeds, references, moments = tuple(done["seeds"]), tuple(done["references"]), {}
    for name in seeds:
        keys = ("sums", "tokens", "pre_scaling", "post_scaling")
        state = {key: stored.tensor(f"{name}.{key}").to(device) for key in keys}
        moments[name] = Moments(state["pre_scaling"], state["post_scaling"])
        moments[name].load_state_dict(state)
    pairs, shapes = read_candidates(stats), {seed: tuple(done["shapes"][seed]) for seed in seeds}
    if done["rows"]:

        def rows(seed: str) -> Tensor:
            own = TensorFiles([stats / f"sketch-{seed}.safetensors"]).tensor("rows").to(device)
            # kept in bf16 in any case, which a device that does not sum in it may multiply slowly
            return own.float() if own.dtype == torch.bfloat16 and done["precision"] != "bf16" else own

        covariance = sketched(seeds, tuple(pairs), references, shapes, _Made(rows), done["products"] == "exact")
    else:
        sums = TensorFiles(sorted(stats.glob("products-*.safetensors")))
        covariance = Covariance(
            seeds,
            tuple(pairs),
            references,
            shapes,
            stripe=lambda a, layer, b: sums.part(f"{a}.{b}.sums", layer).to(device),
            within=lambda seed, layer: sums.part(f"{seed}.sums", layer).to(device),
        )
    scales = {seed: Scale.of(one) for seed, one in moments.items()}
    return Statistics(covariance, moments, scales, load_followed(run, device))


def load_followed(run: Run, device: torch.device | str = "cpu") -> Followed:
    """The sums of a finished pass's followed pairs."""
    stats = run.folder / "stats"
    files, pairs = TensorFiles(sorted(stats.glob("followed-*.safetensors"))), read_candidates(stats)
    state = {name: files.tensor(name).to(device) for name in files.names()}
    wide = next(iter(state[f"{a}.{b}.products"] for a, b in pairs)).dtype
    totals = {seed: layers * neurons for seed, (layers, neurons) in run.done["shapes"].items()}
    made = Followed(pairs, totals, len(state["tokens"]), wide, device)
    made.load_state_dict(state)
    return made
