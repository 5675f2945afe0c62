"""A run's groupings are written once and read by whoever asks; what they were made from decides if they are fresh."""

import threading
import time
from dataclasses import replace

import pytest
import torch

from lib.base.errors import InputError
from lib.chapters.families.statistics import known_labels
from lib.collect.grouped_tables import record_labels
from lib.labels import groupings, labels
from lib.labels.groupings import run_groupings, written_groupings
from lib.labels.labels import Grouping, position_labels
from lib.labels.topics import topic_labels
from lib.run import Run


@pytest.fixture
def run(make_run, seed_folders) -> Run:
    return make_run(seed_folders, token_budget=200 * 256, label_tokens=100 * 256)


@pytest.fixture
def counted(monkeypatch) -> list:
    """What is made from now on, without syntax and topics."""
    made = []

    def make(run: Run) -> dict[str, Grouping]:
        made.append(run.folder)
        return labels.groupings(run.labelled, run.tokenizer)

    monkeypatch.setattr(groupings, "made_groupings", make)
    return made


def test_groupings_are_made_once_and_read(run, monkeypatch):
    assert written_groupings(run) is None
    first = run_groupings(run)
    monkeypatch.setattr(groupings, "made_groupings", None)
    again = run_groupings(Run(run.params))
    assert list(first) == list(again)
    assert {"token", "previous_token", "next_token", "position", "domain", "linguistics", "topic"} <= set(first)
    for name, one in first.items():
        assert again[name].groups == one.groups and again[name].ids.dtype == torch.int32
        assert torch.equal(again[name].ids, one.ids) and one.ids.shape == run.labelled.tokens.shape


def test_another_definition_parameter_or_text_makes_them_anew(run, counted, monkeypatch):
    run_groupings(run)
    run_groupings(Run(run.params.model_copy(update={"label_tokens": 80 * 256})))
    assert len(counted) == 2
    run_groupings(Run(run.params.model_copy(update={"label_tokens": 80 * 256, "threshold": 0.4})))
    assert len(counted) == 2, "the threshold is none of theirs"
    run_groupings(Run(run.params.model_copy(update={"label_tokens": 80 * 256, "domains": {"law": "prose"}})))
    assert len(counted) == 3
    run_groupings(run)
    assert len(counted) == 4
    monkeypatch.setattr(groupings, "code_of", lambda module: f"edited {module}")
    run_groupings(run)
    run_groupings(run)
    assert len(counted) == 5


def test_another_process_waits_for_the_file_and_never_makes_it(run, counted):
    writer = threading.Thread(target=lambda: (time.sleep(0.5), run_groupings(run)))
    writer.start()
    found = written_groupings(Run(run.params), seconds=60)
    writer.join()
    assert len(counted) == 1 and "next_token" in found
    with pytest.raises(InputError, match="did not appear within 0 s"):
        written_groupings(Run(run.params.model_copy(update={"context": 128})), seconds=0.01)
    assert len(counted) == 1


def test_topics_in_another_order_are_left_out_rather_than_taken_for_each_other(run):
    made = run_groupings(run)
    position, topic = position_labels(run.params.context), topic_labels(made["topic"].groups)
    record_labels(run, [position, topic], made, begun=False)
    assert known_labels(run, [position, topic], made).left_out == []
    turned = tuple(reversed(made["topic"].groups))
    others = made | {"topic": replace(made["topic"], groups=turned)}
    known = known_labels(run, [position, topic_labels(turned)], others)
    assert known.left_out == [f"topic: {name}" for name in turned] and len(known.sets) == 1
