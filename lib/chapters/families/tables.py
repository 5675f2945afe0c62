"""From a run's grouped moments to the tables of families: families.parquet, labels.parquet, family_chance.parquet.

Rows are of all seeds that serve as reference. Scoring is algebra on the statistics: after an edit of the token classes,
`open_families` scores again without a model.
"""

import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from lib.base.errors import InputError
from lib.base.files import write_json
from lib.base.tensors import TensorFiles, write_table
from lib.cache import code_of, fresh
from lib.chapters.families.scoring import Rotation, label_table, seed_families
from lib.chapters.families.summary import matched_pairs, with_excess
from lib.kernels.correlation import haar_rotation, rotated_deviation
from lib.labels.groupings import run_groupings, run_label_sets
from lib.labels.labels import Grouping, LabelSet
from lib.labels.token_classes import TOKEN_CLASSES, TokenClass
from lib.run import Run

ROTATION_DRAW = 1_000  # none of chapter 2's draws


class SeedStatistics(Sequence[Mapping[str, Tensor]]):
    """The compact grouped moments of one seed, one layer in memory at a time."""

    def __init__(self, folder: Path, seed: str, layers: int):
        self.paths = [folder / f"grouped-{seed}.{layer}.safetensors" for layer in range(layers)]
        self._held: tuple[int, dict[str, Tensor]] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, layer: int) -> dict[str, Tensor]:
        if self._held is None or self._held[0] != layer:
            files = TensorFiles([self.paths[layer]])
            self._held = layer, {name: files.tensor(name) for name in files.names()}
        return self._held[1]


def seed_statistics(run: Run, seed: str) -> SeedStatistics:
    """The grouped moments of one seed; InputError for a run whose pass did not collect them."""
    made = SeedStatistics(run.folder / "stats", seed, run.done["layers"])
    if not all(path.exists() for path in made.paths):
        raise InputError(
            f"outputs/{run.params.run} was made without grouped moments, which the families need; choose another name "
            f"with RUN=…, or delete it with `make clean RUN={run.params.run}`."
        )
    return made


def random_rotation(run: Run, seed: str) -> Rotation:
    """A rotation of each layer of a seed, with the deviations of its rotated neurons from the run's covariances."""
    from lib.collect.statistics import load_statistics

    statistics = load_statistics(run)
    covariance, (layers, neurons) = statistics.covariance, statistics.covariance.shapes[seed]
    turn = haar_rotation(neurons, run.params.random_seed, ROTATION_DRAW)
    deviations = [
        rotated_deviation(covariance.within(seed, layer), statistics.scales[seed].layer(layer, neurons), turn)
        for layer in range(layers)
    ]
    return Rotation(turn.expand(layers, -1, -1), torch.stack(deviations))


def labels_digest(sets: Sequence[LabelSet]) -> str:
    """SHA-256 of all labels: names, families and members."""
    digest = hashlib.sha256()
    for one in sets:
        digest.update(f"{one.grouping}{one.member.shape}{one.labels.to_csv()}".encode())
        digest.update(one.member.tobytes())
    return digest.hexdigest()


def tabulate_families(run: Run, sets: list[LabelSet]) -> None:
    """Writes the tables of families unless they are fresh for these labels and this code; runs no model."""
    made_from = {"labels": labels_digest(sets), "seeds": run.done["seed_hashes"], "code": code_of(__name__)}
    if fresh(run.folder / "tables" / "families.json", made_from):
        return
    tables, written = run.folder / "tables", {"families": [], "family_chance": []}
    for seed in tqdm(run.done["references"], desc="families", file=sys.stderr):
        own = seed_statistics(run, seed)
        for made, table in zip(written.values(), seed_families(own, sets, random_rotation(run, seed)), strict=True):
            table.insert(0, "seed", seed)
            made.append(table)
    (tables / "families.json").unlink(missing_ok=True)
    for name, made in written.items():
        write_table(tables / f"{name}.parquet", pd.concat(made, ignore_index=True))
    write_table(tables / "labels.parquet", label_table(sets, own[0]))
    write_json(tables / "families.json", made_from)


class Families:
    """What chapter 4 reads.

    `all_seeds` is families.parquet, `reference` its rows of the reference seed with their excess; `chance` has that
    seed's chance level by layer, `statistics` its grouped moments. `pairs` are matched neurons of two seeds.
    """

    def __init__(self, run: Run, sets: list[LabelSet], groupings: dict[str, Grouping]):
        seed, levels = run.params.reference, run.table("family_chance")
        self.all_seeds, self.labels, self.sets = run.table("families"), run.table("labels"), sets
        self.reference = with_excess(self.all_seeds[self.all_seeds["seed"] == seed], run.table("neurons_all_seeds"))
        self.chance = levels[levels["seed"] == seed].reset_index(drop=True)
        self.pairs = matched_pairs(self.all_seeds, run.table("matches_all_seeds"))
        self.statistics = seed_statistics(run, seed)
        self.word_places = groupings["word_place"].groups if "word_place" in groupings else ()


def open_families(run: Run, extra_classes: tuple[TokenClass, ...] = ()) -> Families:
    """The families of a run, scored again if its labels have changed; `extra_classes` are more token classes."""
    groupings = run_groupings(run)
    sets = run_label_sets(run, groupings, (*TOKEN_CLASSES, *extra_classes))
    tabulate_families(run, sets)
    return Families(run, sets, groupings)
