"""Parameters: what is read is what was written, and everything wrong is one sentence naming key, value and remedy."""

import json
import os
import re
from datetime import date
from pathlib import Path

import pytest
import yaml

from lib.base import params as parameters
from lib.base.errors import InputError
from lib.base.hub import seed_config, seed_folder, seed_source
from lib.base.params import ROOT, STATISTICS_KEYS, Params, read_params, write_params
from lib.cache import refuse_other_statistics

GOOD = {
    "run": "test",
    "seeds": {"a": "data/seeds/a", "b": "owner/model-b", "c": "/elsewhere/c"},
    "reference": "a",
    "text": "data/tokens.safetensors",
    "context": 256,
    "token_budget": 20480,
}


@pytest.fixture
def write(tmp_path):
    """write(**changes): a parameter file with these keys changed, or left out where the value is `...`."""

    def write(**changes):
        values = {key: value for key, value in (GOOD | changes).items() if value is not ...}
        path = tmp_path / "params.yaml"
        path.write_text(yaml.safe_dump(values, allow_unicode=True))
        return path

    return write


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "params").glob("*.yaml")))
def test_shipped_files_are_valid_and_named_after_their_run(name):
    params = read_params(ROOT / "params" / f"{name}.yaml")
    assert params.run == name and params.reference in params.seeds
    if name.startswith("polypythias-"):
        assert len(params.seeds) == 9 and params.compare == "all" and params.revision == "step143000"
    elif "-in-" in name:  # one seed of a size against all of another
        assert len(params.seeds) == 6 and params.compare == "reference" and params.reference == next(iter(params.seeds))
    elif name not in ("tiny", "quick", "full", "smoke"):  # the paper's studies
        assert len(params.seeds) == 5 and params.context == 512 and params.token_budget == 100_000_000
        assert params.label_tokens == 10_000_000
        assert all(params.is_on_hub(seed) and params.revision_of(seed) for seed in params.seeds)


def test_the_quick_and_the_full_run_are_the_default_one_with_less_or_more_to_read():
    names = "tiny", "quick", "full"
    tiny, quick, full = (read_params(ROOT / "params" / f"{name}.yaml").model_dump() for name in names)
    assert {key for key in tiny if tiny[key] != quick[key]} == {"run", "seeds", "token_budget", "rotations"}
    assert {key for key in tiny if tiny[key] != full[key]} == {"run", "token_budget"}
    assert full["token_budget"] == 1_000_000
    assert quick["seeds"].items() < tiny["seeds"].items() and quick["token_budget"] < tiny["token_budget"]


def test_defaults_fill_what_is_not_given(write):
    params = read_params(write())
    assert (params.rotations, params.threshold, params.precision, params.revision) == (5, 0.5, "auto", None)


def test_overrides_win_unless_none(write):
    params = read_params(write(), reference="b", threshold=None, run="other")
    assert (params.reference, params.threshold, params.run) == ("b", 0.5, "other")


WRONG = {
    "unknown key": ({"referense": "a"}, ["referense", "'a'", "did you mean 'reference'", "token_budget"]),
    "text for a number": ({"context": "256"}, ["context", "'256'", "whole number"]),
    "fraction for a whole number": ({"token_budget": 1e6}, ["token_budget", "1000000.0", "whole number"]),
    "truth for a number": ({"rotations": True}, ["rotations", "true", "whole number"]),
    "number for text": ({"revision": 400000}, ["revision", "400000", "quotes"]),
    "a revision of no seed": ({"revision": {"z": "step1"}}, ["revision", '"z"', "name: revision"]),
    "no revision in it": ({"revision": {}}, ["revision", "{}", "branch"]),
    "an empty revision": ({"revision": {"b": ""}}, ["revision", '"b"', "branch"]),
    "a number as one seed's revision": ({"revision": {"b": 400}}, ["revision", "400", "quotes"]),
    "list for a mapping": ({"seeds": ["x", "y"]}, ["seeds", '["x", "y"]', "two or more"]),
    "one seed": ({"seeds": {"a": "x"}}, ["seeds", "two or more"]),
    "no seeds": ({"seeds": None}, ["seeds", "null", "two or more"]),
    "the same model twice": ({"seeds": {"a": "x", "b": "x"}}, ["seeds", "different"]),
    "a name that cannot be a key": ({"seeds": {"a.1": "x", "b": "y"}}, ["seeds", "a.1", "letters"]),
    "a number as a seed's name": ({"seeds": {1: "x", "b": "y"}}, ["seeds", "letters"]),
    "reference not among the seeds": ({"reference": "z"}, ["reference", "'z'", "a, b and c"]),
    "missing key": ({"text": ...}, ["text", "missing", "token file"]),
    "no rotation": ({"rotations": 0}, ["rotations", "0", "from 1"]),
    "context of one": ({"context": 1}, ["context", "3 or more"]),
    "labels on one context": ({"label_tokens": 511}, ["label_tokens", "511", "two contexts of 256"]),
    "budget below one context": ({"token_budget": 255}, ["token_budget", "255", "256"]),
    "negative seed": ({"random_seed": -1}, ["random_seed", "-1", "from 0"]),
    "threshold above one": ({"threshold": 1.5}, ["threshold", "1.5", "0 to 1"]),
    "threshold not a number": ({"threshold": float("nan")}, ["threshold", "NaN", "0 to 1"]),
    "unknown precision": ({"precision": "fp16"}, ["precision", "'fp16'", "bf16"]),
    "unknown device": ({"device": "gpu"}, ["device", "'gpu'", "cuda"]),
    "text that is empty": ({"text": ""}, ["text", "token file", "dataset"]),
    "text that is a number": ({"text": 5}, ["text", "5", "token file"]),
    "neither dataset nor files": ({"text": {"split": "test"}}, ["text must have one of the keys dataset and files"]),
    "both dataset and files": (
        {"text": {"dataset": "a/b", "split": "x", "files": "c"}},
        ["text must have one of the keys"],
    ),
    "dataset without split": ({"text": {"dataset": "a/b"}}, ["key 'text.split' is missing", "splits"]),
    "unknown key of the text": ({"text": {"files": "c", "feild": "x"}}, ["text.feild", "'x'", "did you mean 'field'"]),
    "number for a text's field": ({"text": {"files": "c", "field": 5}}, ["text.field is 5", "name of the field"]),
    "split of local files": ({"text": {"files": "c", "split": "test"}}, ["text.split is 'test'", "text.dataset only"]),
    "address for a dataset": ({"text": {"dataset": "https://x/y", "split": "t"}}, ["text.dataset", "owner/name"]),
    "an unknown kind of text": ({"domains": {"x": "proze"}}, ["domains", "proze", "prose, english, code"]),
    "Norwegian without quotes": ({"domains": {"x": False}}, ["domains", "false", "in quotes"]),
    "a date as a domain": ({"domains": {date(2020, 1, 1): "prose"}}, ["domains is", '"2020-01-01": "prose"']),
    "a kind for no domain": ({"domains": "prose"}, ["domains", "'prose'", "name: kind"]),
    "the cache's name": ({"run": "cache"}, ["run", "'cache'", "folder name"]),
    "a path as the run's name": ({"run": "../x"}, ["run", "'../x'", "folder name"]),
}


def is_sentence(text: str) -> bool:
    return "\n" not in text and text.endswith(".") and not re.search(r"[.!] [A-Z]", text)


@pytest.mark.parametrize("changes, expected", WRONG.values(), ids=WRONG.keys())
def test_wrong_value_is_one_sentence(write, changes, expected):
    with pytest.raises(InputError) as error:
        read_params(write(**changes))
    assert is_sentence(str(error.value)) and len(str(error.value)) < 400
    assert all(part in str(error.value) for part in expected), str(error.value)


@pytest.mark.parametrize(
    "content, expected",
    {
        "not YAML": ("run: [tiny", "line"),
        "tab": ("run:\n\ttiny", "line 2"),
        "a list": ("- run", "key: value"),
        "empty": ("", "key: value"),
        "a key twice": ("run: a\nrun: b", "line 2: key 'run' is given twice"),
        "no such date": ("run: 2020-13-41", "cannot be read (month must be in 1..12)"),
        "contains itself": ("seeds: &a {x: *a}", "cannot be read (Circular reference detected)"),
        "nested without end": ("a: " + "[" * 5000, "cannot be read (maximum recursion depth exceeded"),
        "a seed twice": ("seeds:\n  a: x\n  a: y", "'a' is given twice"),
        "a number as key": ("1: x", "unknown key '1'"),
    }.values(),
)
def test_unreadable_file_is_one_sentence(tmp_path, content, expected):
    path = tmp_path / "p.yaml"
    path.write_text(content)
    with pytest.raises(InputError) as error:
        read_params(path)
    assert is_sentence(str(error.value)) and expected in str(error.value)


def test_missing_or_binary_file_is_one_sentence(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "none.yaml", tmp_path, tmp_path / "binary.yaml"):
        with pytest.raises(InputError, match=re.escape(str(path))) as error:
            read_params(path)
        assert is_sentence(str(error.value))


def test_written_parameters_read_back_and_are_left_alone_when_the_same(write, tmp_path):
    params, copy = read_params(write(revision="checkpoint-400")), tmp_path / "copy" / "params.yaml"
    write_params(params, copy)
    assert read_params(copy) == params
    os.utime(copy, (1, 1))
    write_params(params, copy)
    assert copy.stat().st_mtime == 1
    write_params(params.model_copy(update={"threshold": 0.4}), copy)
    assert copy.stat().st_mtime > 1 and read_params(copy).threshold == 0.4


def test_text_is_a_token_file_or_a_source_of_documents(write, tmp_path):
    assert read_params(write()).text_source is None
    files = read_params(write(text="corpus/*.txt"))
    assert (
        files.text_path is None
        and files.text_source.path == ROOT / "corpus/*.txt"
        and files.text_source.field == "text"
    )
    pile = read_params(write(text={"dataset": "owner/pile", "split": "test", "domain": "meta.set"}))
    assert pile.text_source.path is None and pile.text_title == "owner/pile split test"
    write_params(pile, tmp_path / "copy.yaml")
    again = read_params(tmp_path / "copy.yaml")
    assert again == pile and json.loads(json.dumps(again.statistics_key)) == pile.statistics_key


def test_paths_start_at_the_root_and_hub_ids_differ_from_folders(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = read_params(write())
    assert params.text_path == ROOT / "data/tokens.safetensors"
    assert seed_folder(params, "a") == ROOT / "data/seeds/a"
    assert seed_folder(params, "b") is None and params.is_on_hub("b")
    assert seed_source(params, "c") == Path("/elsewhere/c")


def test_a_revision_for_all_seeds_or_for_each(write):
    params = read_params(write(revision="step1"))
    assert [params.revision_of(name) for name in "abc"] == ["step1"] * 3
    params = read_params(write(revision={"b": "step1"}))
    assert [params.revision_of(name) for name in "abc"] == [None, "step1", None]
    checkpoints = {"seeds": {"a": "owner/x", "b": "owner/x"}, "revision": {"a": "step1", "b": "step2"}}
    assert read_params(write(**checkpoints)).revision_of("b") == "step2"  # two checkpoints are two models


def test_statistics_key_holds_exactly_what_the_pass_depends_on(write):
    params = read_params(write())
    free = {"run": "x", "reference": "b", "threshold": 0.1, "rotations": 9, "device": "cpu", "memory_gb": 2.5}
    free["same_function"] = "all"
    bound = {
        "seeds": {"a": "x", "b": "y"},
        "revision": "r",
        "text": "t",
        "domains": {"forum": "prose"},
        "context": 128,
        "token_budget": 10240,
        "random_seed": 1,
        "precision": "fp64",
        "products": "exact",
        "sketch_rows": 4096,
        "compare": "reference",
    }
    assert set(bound) == set(STATISTICS_KEYS)
    assert {*free, *bound, "label_tokens"} == set(Params.model_fields)
    assert params.model_copy(update=free).statistics_key == params.statistics_key
    for key, value in {**bound, "label_tokens": params.token_budget - 1}.items():
        assert params.model_copy(update={key: value}).statistics_key != params.statistics_key
    enough = params.model_copy(update={"label_tokens": params.token_budget})
    assert enough.statistics_key == params.statistics_key, "all tokens have labels"


def test_statistics_of_other_parameters_are_refused_naming_each_key(write, tmp_path, monkeypatch):
    monkeypatch.setattr(parameters, "OUTPUTS", tmp_path)
    params = read_params(write())
    refuse_other_statistics(params, None)  # nothing there yet
    record = params.folder / "stats" / "key.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps(params.statistics_key))
    refuse_other_statistics(params.model_copy(update={"reference": "b"}), None)
    other = params.model_copy(update={"token_budget": 10240, "random_seed": 3})
    with pytest.raises(InputError) as error:
        refuse_other_statistics(other, None)
    text = str(error.value)
    assert is_sentence(text) and "token_budget = 20480 (now 10240)" in text and "random_seed = 0 (now 3)" in text
    assert "context" not in text and "make clean RUN=test" in text
    fewer = params.model_copy(update={"label_tokens": 5120})
    with pytest.raises(InputError, match=r"with label_tokens = 'all' \(now 5120\);"):
        refuse_other_statistics(fewer, None)
    record.write_text(json.dumps(fewer.statistics_key))
    refuse_other_statistics(fewer, None)
    with pytest.raises(InputError, match=r"with label_tokens = 5120 \(now 'all'\);"):
        refuse_other_statistics(params, None)


@pytest.mark.parametrize(
    "run, meant",
    [
        ("gpt2-smal", "gpt2-small"),
        ("GPT2_small", "gpt2-small"),
        ("gpt2", "gpt2-small"),
        ("pythia", "pythia-160m"),
        ("fulll", "full"),
        ("full-2", "full"),
        ("quik", "quick"),
        ("tinny", "tiny"),
    ],
)
def test_a_run_whose_name_looks_like_a_slip_is_refused(monkeypatch, run, meant):
    monkeypatch.chdir(ROOT)
    with pytest.raises(InputError, match=f"give RUN={meant}, or a parameter file") as error:
        read_params("", run=run)
    assert is_sentence(str(error.value))
    assert read_params("params/smoke.yaml", run=run).run == run


@pytest.mark.parametrize("run", ["tiny-2", "tiny2", "mine", "first_look", "b"])
def test_a_run_without_a_file_has_the_default_s_parameters_and_says_so(monkeypatch, capsys, run):
    monkeypatch.chdir(ROOT)
    assert read_params("", run=run) == read_params("params/tiny.yaml", run=run)
    said = capsys.readouterr().err
    assert said == f"note: there is no params/{run}.yaml, so {run} has the parameters of params/tiny.yaml.\n"


def test_a_run_has_its_own_file(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert read_params("", run="smoke") == read_params("params/smoke.yaml") and capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "beside, expected",
    [
        ([], "is no folder {0}/typo."),
        ([".git"], "is no folder {0}/typo."),
        ([".git", "b", "a"], "; {0} has a and b."),
        ([f"m{one:02}" for one in range(12)], "; {0} has m00, m01, m02, m03, m04, m05, m06, m07, m08, m09 and 2 more."),
    ],
)
def test_a_missing_folder_is_told_what_lies_beside_it(write, tmp_path, beside, expected):
    models = tmp_path / "models"
    for name in ("", *beside):
        (models / name).mkdir()
    with pytest.raises(InputError) as error:
        seed_config(read_params(write(seeds={"a": f"{models}/typo", "b": f"{models}/b"})), "a")
    assert is_sentence(str(error.value)) and str(error.value).endswith(expected.format(models))
