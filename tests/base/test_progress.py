"""How far a whole report is: shares of stages that took what they were expected to take, and longer."""

import pytest

from lib.base.progress import Progress, begin


def test_a_stage_is_seen_as_a_part_of_the_whole(tmp_path):
    begin(tmp_path, {"passes": 100.0, "tables": 50.0, "chapters": 50.0})
    passes = Progress(tmp_path, "passes", now=1000.0)
    assert passes.text(0.0, now=1000.0) == "whole report 0%, 3 min left"
    assert passes.text(0.5, now=1050.0) == "whole report 25%, 2 min left"
    assert passes.text(0.5, now=1100.0) == "whole report 33%, 3 min left"  # twice as slow as expected
    tables = Progress(tmp_path, "tables", now=1100.0)
    assert tables.text(1.0, now=1150.0) == "whole report 75%, 50 s left"
    for begun in (1150.0, 1170.0):  # two chapters at the same time
        chapters = Progress(tmp_path, "chapters", now=begun)
    assert chapters.text(1.0, now=1200.0) == "whole report 100%, 10 s left"


@pytest.mark.parametrize("stage", ["passes", "chapters"])
def test_a_stage_alone_says_nothing_of_a_whole(tmp_path, stage):
    assert Progress(tmp_path, stage).text(0.5) == ""
