"""What is fresh: a result is made again after an edit of what computes it, and only then."""

import os
import shutil

import pandas as pd
import pytest

from lib import cache
from lib.base import params as parameters
from lib.base.files import file_sha256

ABLATIONS = "lib.chapters.interventions.tables"


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of lib/ that may be edited, and `edit(file, old, new)`."""
    shutil.copytree(parameters.ROOT / "lib", tmp_path / "lib", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(parameters, "ROOT", tmp_path)
    cache._parsed.cache_clear()

    def edit(file: str, more: str) -> None:
        path = tmp_path / "lib" / file
        path.write_text(path.read_text(encoding="utf-8") + more, encoding="utf-8")
        cache._parsed.cache_clear()

    yield edit
    cache._parsed.cache_clear()


@pytest.mark.parametrize(
    ("file", "more", "again"),
    [
        ("kernels/forward.cpp", "\n// faster\n", True),
        ("chapters/interventions/engine.py", "\nTRIED = 1\n", True),
        ("models/processed.py", "\nTRIED = 1\n", True),
        ("models/processed.py", "\n# a comment\n", False),
        ("chapters/interventions/engine.py", '\n\ndef nothing():\n    """A docstring."""\n', True),
        ("chapters/interventions/captions.py", "\nTRIED = 1\n", False),
        ("display/plots.py", "\nTRIED = 1\n", False),
        ("base/files.py", "\nTRIED = 1\n", False),
        ("report/pages.py", "\nTRIED = 1\n", False),
    ],
)
def test_an_ablation_is_repeated_after_an_edit_of_what_computes_it_only(copied, file, more, again):
    before = cache.code_of(ABLATIONS)
    copied(file, more)
    assert (cache.code_of(ABLATIONS) != before) == again


def test_an_edited_docstring_repeats_nothing(copied, tmp_path):
    before = cache.code_of(ABLATIONS)
    for path in (tmp_path / "lib" / "chapters" / "interventions").glob("*.py"):
        path.write_text(path.read_text(encoding="utf-8").replace('"""', '"""Said otherwise. ', 1), encoding="utf-8")
    cache._parsed.cache_clear()
    assert cache.code_of(ABLATIONS) == before


def test_tables_that_compute_without_kernels_do_not_depend_on_them(copied):
    before = cache.code_of("lib.chapters.published.comparison")
    copied("kernels/forward.cpp", "\n// faster\n")
    assert cache.code_of("lib.chapters.published.comparison") == before


def test_a_kept_table_is_made_once_for_the_same_inputs(make_run, seed_folders):
    run, made = make_run(seed_folders), []
    run.done = {"seed_hashes": {"a": "1"}}

    def make() -> pd.DataFrame:
        made.append(1)
        return pd.DataFrame({"x": [1]})

    for inputs in ({"n": 1}, {"n": 1}, {"n": 2}):
        assert cache.kept(run, "made_up", ABLATIONS, inputs, make)["x"].tolist() == [1]
    assert len(made) == 2
    run.done = {"seed_hashes": {"a": "2"}}
    cache.kept(run, "made_up", ABLATIONS, {"n": 2}, make)
    assert len(made) == 3


def test_a_file_replaced_by_an_older_one_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(parameters, "OUTPUTS", tmp_path / "outputs")
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    assert cache.content_sha256(file) == file_sha256(file)
    file.write_bytes(b"two")  # of the same size
    os.utime(file, (1, 1))
    assert cache.content_sha256(file) == file_sha256(file)
