"""One seed's grouped moments as scores read them: a row for each of today's labels.

The pass sums the labels that it knows. A label of the token itself that came later is summed here from those of single
tokens; one of the previous or next token, or of syntax, cannot be, and is left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, takewhile
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Int
from scipy.sparse import csr_array
from torch import Tensor

from lib.base.errors import InputError
from lib.base.tensors import TensorFiles
from lib.collect.grouped_tables import GROUPS, RECORD
from lib.labels.labels import TOKENS_KEPT, Grouping, LabelSet, token_rows
from lib.run import Run


@dataclass(frozen=True)
class KnownLabels:
    """The labels that a run's statistics can score, by set; of each its row in their table, or −1 if it is summed from
    single tokens, whose rows are `tokens`; and the names of the labels that are left out."""

    sets: list[LabelSet]
    rows: list[Int[np.ndarray, "labels"]]
    tokens: Int[np.ndarray, "groups"]
    left_out: list[str]


def known_labels(run: Run, sets: Sequence[LabelSet], groupings: Mapping[str, Grouping] | None = None) -> KnownLabels:
    """Which of the labels the run's statistics know; InputError if they know none.

    Those over one of `groupings` are left out if its groups are not those that were summed, in the same order.
    """
    recorded, kept, rows, left_out = run.recorded(RECORD), [], [], []
    if not recorded:
        raise InputError(
            f"outputs/{run.params.run} was made without sums by label, which the families need; choose another name "
            f"with RUN=…, or delete it with `make clean RUN={run.params.run}`."
        )
    tokens, groups = token_rows(run.labelled), recorded.get(GROUPS, {})
    changed = {name for name, one in (groupings or {}).items() if groups.get(name, one.key) != one.key}
    for one in sets:
        row_of = {key: row for row, key in enumerate([] if one.grouping in changed else recorded.get(one.grouping, []))}
        row = np.array([row_of.get(key, -1) for key in one.keys], dtype=int)
        known = row >= 0
        if one.grouping == "token":
            known |= ~one.member[:, tokens == TOKENS_KEPT].any(1)
        left_out += one.labels["label"][~known].tolist()
        if known.any():
            kept.append(replace(one, labels=one.labels[known].reset_index(drop=True), member=one.member[known]))
            rows.append(row[known])
    return KnownLabels(kept, rows, tokens, left_out)


class SeedStatistics(Sequence[Mapping[str, Tensor]]):
    """The compact grouped moments of one seed with the rows of the known labels, one layer in memory at a time."""

    def __init__(self, folder: Path, seed: str, labels: KnownLabels):
        files = (folder / f"grouped-{seed}.{layer}.safetensors" for layer in count())
        self.paths, self.labels = list(takewhile(Path.exists, files)), labels
        self._held: tuple[int, dict[str, Tensor]] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, layer: int) -> dict[str, Tensor]:
        if self._held is None or self._held[0] != layer:
            files = TensorFiles([self.paths[layer]])
            own = {name: files.tensor(name) for name in files.names()}
            for one, rows in zip(self.labels.sets, self.labels.rows, strict=True):
                own |= with_rows(own, one, rows, self.labels.tokens)
            self._held = layer, own
        return self._held[1]


def with_rows(
    own: Mapping[str, Tensor], one: LabelSet, rows: Int[np.ndarray, "labels"], tokens: Int[np.ndarray, "groups"]
) -> dict[str, Tensor]:
    """`count`, `mean` and `spread` of a set's labels, from these rows of their table, or from single tokens for −1,
    without the spread."""
    new = rows < 0
    found = {key: own[f"{one.table}.{key}"].index_select(axis, torch.from_numpy(rows.clip(0))) for key, axis in AXES}
    if new.any():
        member, number = _by_row(one.member[new], tokens), own["token.count"].numpy()
        labelled = number @ member.T  # (halves, labels)
        for half, weights in enumerate(number):
            sums = member @ (weights[:, None] * own["token.mean"][half].float().numpy())
            found["mean"][half, new] = torch.from_numpy(sums / labelled[half, :, None].clip(1)).float()
        found["count"][:, new], found["spread"][new] = torch.from_numpy(labelled), np.nan
    return {f"{one.table}.{key}": tensor for key, tensor in found.items()}


AXES = ("count", 1), ("mean", 1), ("spread", 0)  # of the tensors of a table of labels, the axis of rows


def _by_row(member: Bool[np.ndarray, "labels groups"], tokens: Int[np.ndarray, "groups"]) -> csr_array:
    """Membership of the rows of single tokens, (labels, rows)."""
    label, group = np.nonzero(member)
    return csr_array((np.ones(len(label), dtype=int), (label, tokens[group])), (len(member), tokens.max() + 1))


def seed_statistics(run: Run, seed: str, labels: KnownLabels) -> SeedStatistics:
    """The grouped moments of one seed; InputError for a run whose pass did not collect them."""
    made = SeedStatistics(run.folder / "stats", seed, labels)
    if not made.paths:
        raise InputError(
            f"outputs/{run.params.run} was made without grouped moments, which the families need; choose another name "
            f"with RUN=…, or delete it with `make clean RUN={run.params.run}`."
        )
    return made
