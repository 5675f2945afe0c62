"""From a run's grouped moments to the tables of families: families.parquet, labels.parquet, family_chance.parquet.

Rows are of all seeds that serve as reference. Scoring is algebra on the statistics: after an edit of the token classes,
`open_families` scores again without a pass, and leaves out the labels that the statistics cannot know. Only the chance
level runs the models, on a sample of the text.
"""

import hashlib
import sys
from collections.abc import Sequence

import pandas as pd
from tqdm import tqdm

from lib.base.files import write_json
from lib.base.tensors import write_table
from lib.cache import code_of, fresh
from lib.chapters.families.rotated import Rotated, keeps_nonlinearity
from lib.chapters.families.scoring import ALL_TOKENS, label_table, seed_families
from lib.chapters.families.statistics import KnownLabels, known_labels, seed_statistics
from lib.chapters.families.summary import matched_pairs, with_excess
from lib.labels.groupings import run_groupings, run_label_sets
from lib.labels.labels import Grouping, LabelSet
from lib.labels.token_classes import TOKEN_CLASSES, TokenClass
from lib.run import Run


def labels_digest(sets: Sequence[LabelSet]) -> str:
    """SHA-256 of all labels: names, families and members."""
    digest = hashlib.sha256()
    for one in sets:
        digest.update(f"{one.grouping}{one.member.shape}{one.labels.to_csv()}".encode())
        digest.update(one.member.tobytes())
    return digest.hexdigest()


def tabulate_families(run: Run, labels: KnownLabels, groupings: dict[str, Grouping]) -> None:
    """Writes the tables of families unless they are fresh for these labels and this code."""
    sets = labels.sets
    made_from = {"labels": labels_digest(sets), "seeds": run.done["seed_hashes"], "code": code_of(__name__)}
    if fresh(run.folder / "tables" / "families.json", made_from):
        return
    tables, written = run.folder / "tables", {"families": [], "family_chance": []}
    rotated = Rotated(run, labels, groupings)
    for seed in tqdm(run.done["references"], desc="families", unit="seed", file=sys.stderr):
        own = seed_statistics(run, seed, labels)
        found = seed_families(own, rotated.statistics(seed, own), sets)
        found[1]["nonlinear"] = keeps_nonlinearity(run, seed)
        for made, table in zip(written.values(), found, strict=True):
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
    `left_out` are the labels that the statistics cannot score; `sampled` are the counted tokens that labels are known
    on, and all of the text.
    """

    def __init__(self, run: Run, labels: KnownLabels, groupings: dict[str, Grouping]):
        seed, levels = run.params.reference, run.table("family_chance")
        self.all_seeds, self.labels, self.sets = run.table("families"), run.table("labels"), labels.sets
        self.reference = with_excess(self.all_seeds[self.all_seeds["seed"] == seed], run.table("neurons_all_seeds"))
        self.chance = levels[levels["seed"] == seed].reset_index(drop=True)
        self.pairs = matched_pairs(self.all_seeds, run.table("matches_all_seeds"))
        self.statistics, self.left_out = seed_statistics(run, seed, labels), labels.left_out
        self.sampled = int(self.statistics[0][f"{ALL_TOKENS}.tokens"].sum()), run.done["tokens_counted"]
        self.word_places = groupings["word_place"].groups if "word_place" in groupings else ()


def open_families(run: Run, extra_classes: tuple[TokenClass, ...] = ()) -> Families:
    """The families of a run, scored again if its labels have changed; `extra_classes` are more token classes."""
    groupings = run_groupings(run)
    labels = known_labels(run, run_label_sets(run, groupings, (*TOKEN_CLASSES, *extra_classes)), groupings)
    tabulate_families(run, labels, groupings)
    return Families(run, labels, groupings)
