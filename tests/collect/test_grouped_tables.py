"""What the pass sums by group and label, and that a pass goes on with the labels that it began with."""

import numpy as np
import pandas as pd
import pytest
import torch

from lib.base.errors import InputError
from lib.collect.grouped_tables import grouped_tables, record_labels
from lib.kernels.grouped import layout_of
from lib.labels import labels
from lib.labels.labels import Grouping, LabelSet
from tests.base.test_params import is_sentence


def labels_of(*members) -> list[LabelSet]:
    names = pd.DataFrame({"label": [f"label {index}" for index in range(len(members))], "family": "x", "kind": "x"})
    return [LabelSet("token", names, np.array(members, dtype=bool))]


def test_every_label_and_every_single_group_has_a_row(make_run, seed_folders, monkeypatch):
    monkeypatch.setattr(labels, "TOKENS_KEPT", 100)
    run = make_run(seed_folders)
    groupings = labels.groupings(run.text, run.tokenizer)
    sets = labels.label_sets(run.text, run.tokenizer)
    tables = grouped_tables(groupings, sets, run.text)
    rows = {name: number for name, number, _ in layout_of(tables)}
    assert rows == {one.table: len(one.labels) for one in sets} | {"token": 101, "position": 256, "domain": 15}
    assert next(iter(tables)) == "token_labels"  # the moments of the neurons are over its tokens
    groups = tables["token"].member.sum(1)
    assert (groups[:100] == 1).all() and groups.sum() == len(labels.occurring(run.text))
    for one in sets:
        assert (tables[one.table].member.toarray() == one.member).all()
    assert grouped_tables({}, [], run.text) == {}


def test_a_pass_goes_on_only_with_the_labels_it_began_with(make_run, seed_folders):
    run = make_run(seed_folders)
    ids = torch.zeros(1, 1, dtype=torch.int32)
    groups, others = ({"token": Grouping("token", names, ids)} for names in (("a", "b", "c"), ("b", "a", "c")))
    record_labels(run, labels_of([1, 0, 0], [0, 1, 1]), groups, begun=False)
    record_labels(run, labels_of([1, 0, 0], [0, 1, 1]), groups, begun=True)
    for labels_now, groups_now in (
        (labels_of([1, 0, 0], [0, 1, 0]), groups),
        (labels_of([1, 0, 0], [0, 1, 1]), others),
    ):
        with pytest.raises(InputError) as error:
            record_labels(run, labels_now, groups_now, begun=True)
        assert is_sentence(str(error.value)) and "`make clean RUN=test`" in str(error.value)
    record_labels(run, labels_of([1, 0, 0]), groups, begun=False)  # nothing is saved, so a new plan takes new labels
    record_labels(run, labels_of([1, 0, 0]), groups, begun=True)
