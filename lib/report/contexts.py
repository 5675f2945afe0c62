"""Examples by activation interval: a fair sample of the tokens on which a neuron is weakly, fairly and highly active.

A sample of the text is read once more by the reference seed. A neuron's range, from 0 to its maximum on the whole text,
is cut into INTERVALS of one width. Each shows a few of its tokens, drawn at random, and says how well the neuron's
label holds there (docs/method.md §10).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from lib.base.files import file_sha256
from lib.base.machine import device_of
from lib.base.tensors import TensorFiles
from lib.cache import kept
from lib.chapters.universality.null_tables import trunk_of
from lib.labels.groupings import run_groupings, run_label_sets
from lib.labels.labels import TOKENS_KEPT, WORD_PLACES, Grouping, LabelSet, occurring, token_rows, word_places
from lib.run import Run
from lib.text.blocks import Text, evenly_spaced

SAMPLE_TOKENS = 51_200  # positions of text
INTERVALS, EACH, RADIUS = 10, 3, 8
BATCH_TOKENS = 2_048
TOP_TOKENS, LEAST_COUNT = 10, 20  # tokens by mean activation: how many, and how often one must occur
SHADES, UNCOUNTED, OUTSIDE = 253, 254, 255  # steps of activation; a token that does not count; no token
NO, YES, UNKNOWN = 0, 1, 2  # whether a token carries a label
SHIFT = {"previous_token": -1, "token": 0, "next_token": 1}
Arrays = dict[str, np.ndarray]
Activations = Float[np.ndarray, "neurons tokens"]
Intervals = UInt8[np.ndarray, "neurons tokens"]


# ---------------------------------------------------------------- the sample


@dataclass(frozen=True)
class Sample:
    """Blocks spread evenly over a text (`number` is their place in it), and which of their tokens count."""

    text: Text
    number: Int[Tensor, "blocks"]
    counted: Bool[np.ndarray, "tokens"]

    @classmethod
    def of(cls, run: Run) -> "Sample":
        """Of a run's text, from the blocks on which labels are known."""
        number = run.label_blocks[evenly_spaced(len(run.label_blocks), max(1, SAMPLE_TOKENS // run.text.context))]
        return cls(run.text.chosen(number), number, run.text.counted(number).flatten().numpy())

    def order(self) -> Int[np.ndarray, "counted"]:
        """Its counted tokens in a random order that depends on nothing but their numbers in the whole text."""
        context = self.text.context
        number = (self.number[:, None] * context + torch.arange(context)).flatten().numpy()
        here = np.flatnonzero(self.counted)
        return here[np.argsort(mixed(number[here]), kind="stable")]


def mixed(number: Int[np.ndarray, "n"]) -> np.ndarray:
    """Whole numbers as evenly spread 64-bit ones (the finaliser of SplitMix64)."""
    bits = (number.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def activations(run: Run, sample: Sample, rows: Int[np.ndarray, "rows"]) -> dict[int, Activations]:
    """By layer, the reference seed's activations of the neurons `rows` (flat indices, ascending) on the sample, fp16.

    They are in memory all at once: 100 kB a neuron.
    """
    seed, context = run.params.reference, sample.text.context
    layers, neurons = run.done["shapes"][seed]
    device = device_of(run.params)
    chosen = {layer: torch.from_numpy(rows[rows // neurons == layer] % neurons) for layer in range(layers)}
    chosen = {layer: own.to(device) for layer, own in chosen.items() if len(own)}
    tokens = sample.text.tokens.numel()
    found = {layer: torch.empty(len(own), tokens, dtype=torch.half, device=device) for layer, own in chosen.items()}
    trunk = trunk_of(run, seed)
    size = max(1, BATCH_TOKENS // context)
    for start in range(0, len(sample.text.tokens), size):
        batch = sample.text.tokens[start : start + size]

        def visit(layer: int, _pre: Tensor, post: Tensor, start=start, batch=batch) -> None:
            if layer in chosen:
                own = post[..., chosen[layer]].flatten(0, 1).float().clamp(-65504, 65504)
                found[layer][:, start * context : start * context + batch.numel()] = own.T  # rounded to fp16

        trunk.run(batch.to(device), visit, max(chosen) + 1)
    return {layer: found.pop(layer).cpu().numpy() for layer in chosen}


# ---------------------------------------------------------------- intervals and the contexts drawn from them


def intervals(activation: Activations, high: Float[np.ndarray, "neurons"]) -> Intervals:
    """In which of INTERVALS intervals of (0, high] each activation lies, from 1; 0 where it is not above 0."""
    width = np.where(high > 0, high, np.inf)[:, None] / INTERVALS
    return np.where(activation > 0, np.ceil(activation / width).clip(1, INTERVALS), 0).astype(np.uint8)


def drawn(interval: Intervals, order: Int[np.ndarray, "counted"]) -> Int[np.ndarray, "neurons intervals each"]:
    """The first EACH tokens of every interval in a random `order`; −1 where there are fewer."""
    shuffled = interval[:, order]
    neuron, at = np.nonzero(shuffled)  # by neuron, in the random order
    cell = neuron * INTERVALS + shuffled[neuron, at] - 1
    by_cell = np.argsort(cell.astype(np.min_scalar_type(shuffled.shape[0] * INTERVALS)), kind="stable")
    number = np.bincount(cell, minlength=len(interval) * INTERVALS)
    first = np.cumsum(number) - number
    made = np.full((len(number), EACH), -1, np.int32)
    for rank in range(EACH):
        enough = number > rank
        made[enough, rank] = order[at[by_cell[first[enough] + rank]]]
    return made.reshape(len(interval), INTERVALS, EACH)


def window_shades(
    activation: Activations, high: Float[np.ndarray, "neurons"], place: np.ndarray, sample: Sample
) -> UInt8[np.ndarray, "neurons intervals each window"]:
    """Activations around the places drawn, in SHADES steps from 0 to `high`."""
    reach, context = np.arange(-RADIUS, RADIUS + 1), sample.text.context
    at = place[..., None] + reach
    inside = (place >= 0)[..., None] & (at // context == (place // context)[..., None])
    at = np.where(inside, at, 0)
    values = np.take_along_axis(activation, at.reshape(len(at), -1), axis=1).reshape(at.shape).astype(np.float32)
    scale = np.where(high > 0, high, 1)[:, None, None, None]
    steps = np.rint((values / scale).clip(0, 1) * SHADES)
    return np.where(inside, np.where(sample.counted[at], steps, UNCOUNTED), OUTSIDE).astype(np.uint8)


# ---------------------------------------------------------------- labels


def carried(
    sample: Sample, tokenizer, groupings: Mapping[str, Grouping], sets: Sequence[LabelSet], wanted: set[str]
) -> dict[str, UInt8[np.ndarray, "tokens"]]:
    """For each wanted label whether the sample's tokens, which `groupings` are of, carry it: NO, YES or UNKNOWN.

    A label of a word is carried by the whole word alone: “la” is not a part of *tableau*, although a token there is.
    """
    alone = (word_places(sample.text, tokenizer) == WORD_PLACES.index("as word")).numpy()
    made = {}
    for one in sets:
        ids = groupings[one.grouping].ids.numpy()
        for label, kind, member in zip(one.labels["label"], one.labels["kind"], one.member, strict=True):
            if label not in wanted:
                continue
            yes = member[ids.clip(0)]
            if kind == "word":  # the first and the last column have no such neighbour, and an id of −1
                yes = yes & np.roll(alone, -SHIFT[one.grouping], axis=1)
            made[label] = np.where(ids < 0, UNKNOWN, yes).astype(np.uint8).flatten()
    return made


def counted_by_interval(
    interval: Intervals, carries: UInt8[np.ndarray, "tokens"], counted: Bool[np.ndarray, "tokens"]
) -> Int[np.ndarray, "neurons three intervals_and_0"]:
    """How many counted tokens carry a label (NO, YES, UNKNOWN) in each interval; interval 0 is no activation."""
    cell = carries[counted].astype(np.intp) * (INTERVALS + 1) + interval[:, counted]
    cells = 3 * (INTERVALS + 1)
    return np.stack([np.bincount(one, minlength=cells) for one in cell]).reshape(-1, 3, INTERVALS + 1)


# ---------------------------------------------------------------- tokens by mean activation


def mean_by_token(run: Run, layer: int, rows: Int[np.ndarray, "rows"]) -> Arrays:
    """The TOP_TOKENS tokens of largest mean activation, of those that occur LEAST_COUNT times in the labelled text:
    `top_token` (−1 for none), `top_mean`, `top_count`, all (rows, TOP_TOKENS). `rows` are neurons of the layer."""
    made = {"top_token": np.full((len(rows), TOP_TOKENS), -1, np.int32)}
    made |= {"top_mean": np.zeros((len(rows), TOP_TOKENS), np.float32)}
    made |= {"top_count": np.zeros((len(rows), TOP_TOKENS), np.int32)}
    path = run.folder / "stats" / f"grouped-{run.params.reference}.{layer}.safetensors"
    if not path.exists():
        return made
    files, row_of = TensorFiles([path]), token_rows(run.labelled)
    token = occurring(run.labelled)[row_of < TOKENS_KEPT]
    count = files.tensor("token.count").double().numpy()[:, : len(token)]  # (halves, tokens)
    z = files.tensor("token.mean").float().numpy()[:, : len(token)][..., rows]  # (halves, tokens, rows)
    total = count.sum(0)
    mean = np.einsum("ht,htr->tr", count / np.maximum(total, 1), z)
    mean = files.tensor("mean").numpy()[rows] + files.tensor("deviation").numpy()[rows] * mean
    mean = np.where((total >= LEAST_COUNT)[:, None], mean, -np.inf)
    best = np.argsort(-mean, axis=0, kind="stable")[:TOP_TOKENS].T  # (rows, TOP_TOKENS)
    value = np.take_along_axis(mean.T, best, axis=1)
    known, number = np.isfinite(value), best.shape[1]
    made["top_token"][:, :number] = np.where(known, token[best], -1)
    made["top_mean"][:, :number] = np.where(known, value, 0)
    made["top_count"][:, :number] = np.where(known, total[best], 0)
    return made


# ---------------------------------------------------------------- the table and the page's files


def context_table(run: Run, rows: Int[np.ndarray, "rows"]) -> pd.DataFrame:
    """contexts.parquet: layer and neuron of the reference's neurons `rows`, `high` the largest activation, and lists.

    `place` (intervals · each) and `shade` (· window) are the contexts; `carries` (intervals · each) whether the label
    holds there; `counts` (3 · (intervals + 1)); `top_token`, `top_mean`, `top_count`.
    """
    seed = run.params.reference
    neurons = run.done["shapes"][seed][1]
    path = run.folder / "tables" / "families.parquet"
    depends_on = {
        "rows": [len(rows), int(rows.sum())],
        "text": run.done["text_hash"],
        "families": file_sha256(path) if path.exists() else None,
        "reference": seed,
    }

    def make() -> pd.DataFrame:
        sample = Sample.of(run)
        order = sample.order()
        label, carries = _labels(run, sample, rows)
        highest = run.stats("examples")[f"{seed}.value"][..., 0].reshape(-1)
        parts = []
        for layer, found in activations(run, sample, rows).items():
            own = np.flatnonzero(rows // neurons == layer)
            high = highest[rows[own]].astype(np.float32)
            interval = intervals(found, high)
            place = drawn(interval, order)
            lists = {"place": place, "shade": window_shades(found, high, place, sample)}
            lists["carries"] = np.stack(
                [np.where(at < 0, UNKNOWN, carries[label[i]][at]) for i, at in zip(own, place, strict=True)]
            ).astype(np.uint8)
            lists["counts"] = np.concatenate(
                [
                    counted_by_interval(interval[i : i + 1], carries[label[at]], sample.counted)
                    for i, at in enumerate(own)
                ]
            )
            lists |= mean_by_token(run, layer, rows[own] % neurons)
            table = pd.DataFrame({"layer": layer, "neuron": rows[own] % neurons, "high": high})
            parts.append(table.assign(**{name: list(one.reshape(len(own), -1)) for name, one in lists.items()}))
        return pd.concat(parts, ignore_index=True)

    return kept(run, "contexts", __name__, depends_on, make)


def _labels(run: Run, sample: Sample, rows: Int[np.ndarray, "rows"]) -> tuple[list[str], Arrays]:
    """Each neuron's best label, "" for none, and which of the sample's tokens carry it."""
    carries = {"": np.full(sample.text.tokens.numel(), UNKNOWN, np.uint8)}
    if not run.has("families"):
        return [""] * len(rows), carries
    families, neurons = run.table("families"), run.done["shapes"][run.params.reference][1]
    own = families[families["seed"] == run.params.reference]
    named = pd.Series(own["label"].to_numpy(), own["layer"] * neurons + own["neuron"])
    groupings, at = run_groupings(run), torch.searchsorted(run.label_blocks, sample.number)
    sets = run_label_sets(run, groupings)
    of_sample = {name: replace(one, ids=one.ids[at]) for name, one in groupings.items()}
    carries |= carried(sample, run.tokenizer, of_sample, sets, set(named))
    label = named.reindex(rows).fillna("")
    return label.where(label.isin(list(carries)), "").tolist(), carries


def files(run: Run, table: pd.DataFrame, chunk: int) -> Iterator[tuple[str, Arrays]]:
    """(name, arrays) of the page's files: `contexts`, the sample, and `contexts.<number>`, `chunk` neurons each."""
    sample = Sample.of(run)
    yield (
        "contexts",
        {
            "tokens": sample.text.tokens.numpy().astype(np.int32 if run.text.vocab_size > 2**16 else np.uint16),
            "domain": sample.text.domain.numpy().astype(np.uint8),
            "block": sample.number.numpy().astype(np.int32),
            "counted": np.array([sample.counted.sum()], np.int32),
            "shape": np.array([INTERVALS, EACH, LEAST_COUNT], np.int32),
        },
    )
    kinds = {"place": np.int32, "shade": np.uint8, "carries": np.uint8, "counts": np.int32}
    kinds |= {"top_token": np.int32, "top_mean": np.float32, "top_count": np.int32}
    for number, start in enumerate(range(0, len(table), chunk)):
        part = table.iloc[start : start + chunk]
        made = {name: np.stack(part[name].to_list()).astype(kind) for name, kind in kinds.items()}
        yield f"contexts.{number}", made | {"high": part["high"].to_numpy(np.float32)}
