"""What the pass sums by group and by label: the tables of `lib.kernels.grouped`, and a record of the labels.

Labels are sums of their own rather than choices among sums by token, which would be twenty times as large. So a label
that is edited after the pass can be scored only where its tokens have sums (`lib.chapters.families.statistics`).
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.sparse import csc_array

from lib.base.errors import InputError
from lib.base.files import write_json
from lib.kernels.grouped import ACTIVE, SQUARE, SUM, Table
from lib.labels.labels import Grouping, LabelSet, token_rows
from lib.run import Run
from lib.text.blocks import Text

RECORD, GROUPS = "stats/labels.json", "groups"  # what is summed: keys of labels by grouping, and of groupings
BY_GROUP = {  # groupings that are summed by single groups too, which figures show or labels of one's own need
    "token": (SUM,),
    "position": (SUM, ACTIVE),
    "domain": (SUM,),
    "word_place": (SUM, SQUARE),
}


def grouped_tables(groupings: Mapping[str, Grouping], sets: Sequence[LabelSet], text: Text) -> dict[str, Table]:
    """The tables of a run's labels, those of the token itself first, and of single groups."""
    tables = {one.table: Table(one.grouping, csc_array(one.member), (SUM, SQUARE)) for one in sets}
    for name, kinds in BY_GROUP.items():
        if name in groupings:
            groups = np.arange(len(groupings[name].groups))
            rows = token_rows(text) if name == "token" else groups
            tables[name] = Table(name, csc_array((np.ones(len(rows), dtype=bool), (rows, groups))), kinds)
    return tables


def record_labels(run: Run, sets: Sequence[LabelSet], groupings: Mapping[str, Grouping], begun: bool) -> None:
    """Writes which labels the run's statistics sum, and over which groups; InputError if a pass has begun with
    others."""
    groups = {GROUPS: {name: one.key for name, one in groupings.items()}} if groupings else {}
    keys = {one.grouping: one.keys for one in sets} | groups
    if not begun:
        write_json(run.folder / RECORD, keys)
    elif groups | run.recorded(RECORD) != keys:
        raise InputError(
            f"the labels have changed since the passes of {run.params.run} began, perhaps by an edit of "
            f"token_classes.yaml; undo it, or `make clean RUN={run.params.run}` and begin anew."
        )
