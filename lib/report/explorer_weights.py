"""Neurons near a neuron within its own model: by its weights, and over training.

Neighbours have the most similar w_in or w_out. Connections are earlier neurons whose w_out, and later ones whose w_in,
point most along or against its own, in standard deviations of the layer that they are in.
"""

from functools import cache

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy.stats import norm
from torch import Tensor
from torch.nn.functional import normalize

from lib.base.hub import seed_source
from lib.base.machine import device_of
from lib.cache import kept
from lib.chapters.emergence.tables import open_chapter
from lib.models import weights
from lib.models.folded import folded, full_precision
from lib.models.trunk import load_model
from lib.run import Run

NEIGHBOURS, CONNECTIONS = 3, 5
LISTS = ("near_in", "near_out", "earlier", "later")  # each with its cosines, `<name>_cos`
HUNDREDTHS, UNKNOWN = 100, -128  # of the excess over training; a checkpoint without the neuron
Found = dict[str, np.ndarray]


def nearest(unit: Float[Tensor, "neurons d_model"], rows: Int[Tensor, "rows"], number: int) -> tuple[Tensor, Tensor]:
    """The `number` other neurons of largest cosine with each of `rows`, and these cosines, the largest first."""
    cosine = unit[rows] @ unit.T  # (rows, neurons)
    cosine.scatter_(1, rows[:, None], -torch.inf)
    values, others = cosine.topk(min(number, cosine.shape[1] - 1), dim=1)
    return others, values


def connected(
    cosine: Float[Tensor, "rows neurons"], layers: int, allowed: Float[Tensor, "rows layers"], number: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The `number` neurons with the largest |z| in the allowed layers: index (−1 for none), cosine and z.

    z is the cosine's distance to its mean over the neurons of the same layer, in their standard deviations. `neurons`
    is layers × width.
    """
    by_layer = cosine.unflatten(1, (layers, -1))
    deviation = by_layer.std(dim=2, correction=0, keepdim=True).clamp(min=1e-12)
    z = ((by_layer - by_layer.mean(dim=2, keepdim=True)) / deviation).masked_fill(~allowed[..., None], 0).flatten(1)
    found = z.abs().topk(min(number, z.shape[1]), dim=1)
    index = found.indices.masked_fill(found.values == 0, -1)
    return index, cosine.gather(1, found.indices), z.gather(1, found.indices)


@full_precision()
def near_and_connected(
    w_in: list[Tensor] | None, w_out: list[Tensor], rows: Int[np.ndarray, "rows"]
) -> dict[str, np.ndarray]:
    """LISTS of some neurons of a model, by flat index, with `<name>_cos`, and `earlier_z`, `later_z`.

    Weights are folded, (neurons, d_model) by layer. Without `w_in` (gated neurons) only near_out.
    """
    layers, width = len(w_out), len(w_out[0])
    writes = normalize(torch.cat(w_out), dim=1)
    reads = None if w_in is None else normalize(torch.cat(w_in), dim=1)
    place = torch.arange(layers, device=writes.device)
    parts: dict[str, list[Tensor]] = {}

    def keep(**found: Tensor) -> None:
        for name, values in found.items():
            parts.setdefault(name, []).append(values)

    for some in torch.from_numpy(rows).to(writes.device).split(max(1, weights.COSINES_AT_ONCE * 4 // len(writes))):
        index, cosine = nearest(writes, some, NEIGHBOURS)
        keep(near_out=index, near_out_cos=cosine)
        if reads is None:
            continue
        index, cosine = nearest(reads, some, NEIGHBOURS)
        keep(near_in=index, near_in_cos=cosine)
        own = (some // width)[:, None]
        index, cosine, z = connected(reads[some] @ writes.T, layers, place < own, CONNECTIONS)
        keep(earlier=index, earlier_cos=cosine, earlier_z=z)
        index, cosine, z = connected(writes[some] @ reads.T, layers, place > own, CONNECTIONS)
        keep(later=index, later_cos=cosine, later_z=z)
    return {name: torch.cat(values).cpu().numpy() for name, values in parts.items()}


def neighbours(run: Run, shown: dict[str, Int[np.ndarray, "rows"]]) -> pd.DataFrame:
    """neighbours.parquet: `near_and_connected` of the shown neurons of every seed, as lists."""
    widths = {seed: neurons for seed, (_, neurons) in run.done["shapes"].items()}

    def make() -> pd.DataFrame:
        parts = []
        for seed, rows in shown.items():
            own = folded(load_model(seed_source(run.params, seed)).to(device_of(run.params)))
            found = near_and_connected(own.w_in, own.w_out, rows)
            table = pd.DataFrame({"seed": seed, "layer": rows // widths[seed], "neuron": rows % widths[seed]})
            parts.append(table.assign(**{name: list(values) for name, values in found.items()}))
        return pd.concat(parts, ignore_index=True)

    depends_on = {"rows": {seed: [len(rows), int(rows.sum())] for seed, rows in shown.items()}}
    return kept(run, "neighbours", __name__, depends_on, make)


def chance_z(neurons: int) -> float | None:
    """The median over random draws of the largest |z| of so many neurons, if z is normal."""
    return float(norm.isf((1 - 0.5 ** (1 / neurons)) / 2)) if neurons else None


_chapter = cache(open_chapter)


def training_record(run: Run) -> list | None:
    """What `training` depends on: the checkpoints as they were measured."""
    chapter = _chapter(run)
    return None if chapter is None else chapter.record["points"]


def training(run: Run, shown: dict[str, Int[np.ndarray, "rows"]]) -> tuple[list[dict], Found]:
    """Checkpoints (label, tokens), and the excess of each seed's shown neurons there (rows, points) as int8.

    In hundredths; UNKNOWN where a table lacks the neuron. Nothing for a run without tables of checkpoints.
    """
    chapter = _chapter(run)
    if chapter is None:
        return [], {}
    points, found = chapter.tables["points"], {}
    for seed, own in chapter.tables["neurons"].groupby("seed"):
        if seed not in shown:
            continue
        width = run.done["shapes"][seed][1]
        wide = own.assign(row=own["layer"].astype(int) * width + own["neuron"]).pivot(
            index="row", columns="point", values="excess_corr"
        )
        values = wide.reindex(index=shown[seed], columns=points["point"]).to_numpy(float)
        found[seed] = np.nan_to_num(np.rint(HUNDREDTHS * values).clip(-127, 127), nan=UNKNOWN).astype(np.int8)
    tokens = [int(one) if one == one else None for one in pd.to_numeric(points["tokens"])]
    return [{"label": label, "tokens": number} for label, number in zip(points["point"], tokens, strict=True)], found
