"""Cost of chapter 4: grouped moments per token, scores of one seed, and the published way to the same scores.

`python -m bench.families` prints one line each. Activations are random, of the shipped seeds' sizes; token ids and
labels are those of the shipped text. The published way is a pandas groupby per neuron and label, timed on a
sample and extrapolated, since it is linear in neurons, labels and tokens.
"""

import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch

from lib.base.params import ROOT, read_params
from lib.chapters.families.scoring import Rotation, seed_families
from lib.collect.grouped_tables import grouped_tables
from lib.collect.planner import BATCH
from lib.kernels.grouped import GroupedMoments, Places
from lib.labels.groupings import run_groupings, run_label_sets
from lib.run import Run

LAYERS, NEURONS, SEEDS = 6, 1024, 5
SAMPLE = 40  # pairs of neuron and label that the published way is timed on
ROUNDS = 12  # batches


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def published_way(v: np.ndarray, labels: np.ndarray) -> float:
    """Mean seconds of a groupby of one neuron by one binary label; rows of both are tokens."""

    def score(neuron: int, label: int) -> float:
        grouped = pd.Series(v[:, neuron]).groupby(labels[:, label])
        return 1 - (grouped.var(ddof=0) * grouped.size()).sum() / len(v) / v[:, neuron].var()

    pairs = [(index % v.shape[1], index % labels.shape[1]) for index in range(SAMPLE)]
    return seconds(lambda: [score(*pair) for pair in pairs]) / SAMPLE


def main() -> None:
    """Command line."""
    run = Run(read_params(ROOT / "params" / "tiny.yaml"))
    text, groupings = run.text, run_groupings(run)
    sets = run_label_sets(run, groupings)
    ids = {name: one.ids for name, one in groupings.items()}
    places = Places(ids, grouped_tables(groupings, sets, text))
    work = [GroupedMoments(places.layout, torch.tensor([[0.0], [1.0]]).expand(2, NEURONS)) for _ in range(LAYERS)]
    batch_blocks = BATCH["cpu"]
    post = torch.randn(batch_blocks * text.context, NEURONS).bfloat16()

    def batch(number: int) -> None:
        blocks = torch.arange(number * batch_blocks, (number + 1) * batch_blocks)
        at = places.at(blocks, text.counted(blocks).flatten())
        for layer in work:
            layer.update(post, at)

    for number in range(ROUNDS):
        batch(number)
    each = (
        seconds(lambda: [batch(number) for number in range(ROUNDS)]) / ROUNDS / post.shape[0]
    )  # per token of one seed
    tokens = text.tokens.numel()
    print(
        f"grouped moments: {1e6 * each:.2f} µs a token and seed, "
        f"{each * tokens * SEEDS:.0f} s for {tokens:,} tokens of {SEEDS} seeds"
    )
    statistics = [layer.compact() for layer in work]
    turn = torch.linalg.qr(torch.randn(LAYERS, NEURONS, NEURONS)).Q
    rotation = Rotation(turn, torch.ones(LAYERS, NEURONS))
    labels = sum(len(one.labels) for one in sets)
    ours = seconds(lambda: seed_families(statistics, sets, rotation))
    print(
        f"scores of one seed: {ours:.1f} s for {LAYERS * NEURONS:,} neurons × {labels:,} labels, "
        f"{torch.get_num_threads()} threads"
    )
    generator = np.random.default_rng(0)
    rows = 100_000
    pair = published_way(generator.normal(size=(rows, 8)).astype(np.float32), generator.random((rows, 8)) < 0.05)
    whole = pair * tokens / rows * LAYERS * NEURONS * labels
    print(
        f"a groupby per neuron and label: {1e3 * pair:.1f} ms on {rows:,} tokens, "
        f"so {whole / 86400:.1f} days for the same"
    )


if __name__ == "__main__":
    main()
