"""What is fresh: a result is made again after an edit of what computes it, and only then."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import TEXT
from safetensors.torch import load_file, save_file

from lib import cache
from lib.base import params as parameters
from lib.base.errors import InputError
from lib.base.files import file_sha256, read_json, write_json
from lib.collect.preflight import Preflight

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


def replaced(path: Path, content: bytes, times: tuple[int, int]) -> None:
    """What `mv`, `cp -p`, `rsync -a` and `tar x` do: another file of this name, with its own date."""
    other = path.with_name("other")
    other.write_bytes(content)
    os.utime(other, ns=times)
    os.replace(other, path)


@pytest.mark.parametrize("older_by", [10**18, 1, 0])
def test_a_file_replaced_by_one_of_its_size_is_noticed_whatever_its_date(tmp_path, monkeypatch, older_by):
    monkeypatch.setattr(parameters, "OUTPUTS", tmp_path / "outputs")
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    assert cache.content_sha256(file) == file_sha256(file)
    replaced(file, b"two", (file.stat().st_mtime_ns - older_by,) * 2)
    assert cache.content_sha256(file) == file_sha256(file)


@pytest.mark.parametrize(
    ("name", "old", "new", "told"),
    [
        ("model.safetensors", b"transformer.h.0.mlp.c_fc.bias", b"transformer.h.0.mlp.c_fc.bian", "seed b"),
        ("config.json", b'"gelu_new"', b'"gelu"    ', "config b"),
        ("text.safetensors", b"speeches", b"sermons ", "text"),
    ],
)
def test_statistics_of_files_that_were_replaced_by_older_ones_are_refused(
    make_run, seed_folders, tmp_path, name, old, new, told
):
    folders = {seed: shutil.copytree(seed_folders[seed], tmp_path / seed) for seed in "ab"}
    text = Path(shutil.copy(TEXT, tmp_path / "text.safetensors"))
    run = make_run(folders, text=str(text))
    made_with = run.params.statistics_key | {"hashes": cache.input_hashes(run.params, text)}
    write_json(run.folder / "stats" / "key.json", made_with)
    cache.refuse_other_statistics(run.params, text)
    path = text if name == text.name else folders["b"] / name
    changed = path.read_bytes().replace(old, new, 1)
    assert changed != path.read_bytes()
    replaced(path, changed, (10**9, 10**9))
    with pytest.raises(InputError, match=rf"was made from other files \({told} changed"):
        cache.refuse_other_statistics(run.params, text)


def test_a_config_that_is_only_written_otherwise_is_the_same(make_run, seed_folders, tmp_path):
    folders = {seed: shutil.copytree(seed_folders[seed], tmp_path / seed) for seed in "ab"}
    run = make_run(folders)
    before, path = cache.input_hashes(run.params, None), folders["a"] / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"transformers_version": "9", "_name_or_path": "x"}))
    assert cache.input_hashes(run.params, None) == before


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"[1]", b"\xff", b"[" * 100_000])
def test_a_damaged_record_is_one_sentence(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError, match="x.json is damaged: it does not hold a JSON object\\."):
        read_json(tmp_path / "x.json")


# ---------------------------------------------------------------- the same weights under two names


def in_shards(folder: Path) -> Path:
    """The seed with its weights in two files."""
    weights = load_file(folder / "model.safetensors")
    for number, names in enumerate(np.array_split(sorted(weights), 2), 1):
        save_file({str(name): weights[name] for name in names}, folder / f"model-0000{number}-of-00002.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text("{}")
    return folder


@pytest.mark.parametrize("how", ["slash", "symlink", "copy", "link of weights", "shards"])
def test_the_same_weights_under_two_names_are_refused(make_run, seed_folders, tmp_path, how):
    own = Path(shutil.copytree(seed_folders["a"], tmp_path / "own"))
    other = tmp_path / "other"
    if how == "shards":
        in_shards(own)
    if how == "symlink":
        other.symlink_to(own)
    elif how != "slash":
        shutil.copytree(own, other)
    if how == "link of weights":
        (other / "model.safetensors").unlink()
        (other / "model.safetensors").symlink_to(own / "model.safetensors")
    source = f"{own}/" if how == "slash" else str(other)
    run = make_run({"a": own, "b": source, "c": seed_folders["c"]})
    with pytest.raises(InputError, match=r"seeds: 'a' \(.*\) and 'b' \(.*\) have the same weights"):
        cache.refuse_same_weights(run.params)


def test_seeds_that_share_a_part_of_their_weights_are_two(make_run, seed_folders, tmp_path):
    own, other = (in_shards(Path(shutil.copytree(seed_folders[name], tmp_path / name))) for name in "ab")
    shutil.copy(own / "model-00001-of-00002.safetensors", other)
    cache.refuse_same_weights(make_run({"a": own, "b": other}).params)


def test_two_revisions_of_one_commit_are_refused(hub, make_run, seed_folders):
    files = {path.name: path.read_bytes() for path in seed_folders["a"].iterdir()}
    hub.add("models", "owner/model", files)
    hub.add("models", "owner/model", files, "v1")
    run = make_run({"a": "owner/model", "b": "owner/model"}, revision={"b": "v1"})
    with pytest.raises(InputError, match="have the same weights"):
        Preflight(run).check()
