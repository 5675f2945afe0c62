"""Seeds from the Hub: every fault is recovered or explained in one sentence, and no partial file is ever used."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pyarrow
import pytest
from small_models import save_small_model

from lib.base.errors import InputError
from lib.base.files import file_sha256
from lib.base.hub import fetch, fetch_config, needed_files, snapshot, weight_names
from lib.base.params import ROOT, read_params
from lib.chapters.circuits.tables import logit_effects, role_table
from lib.chapters.interventions.tables import weight_table
from lib.chapters.universality.tables import tabulate
from lib.collect.passes import collect
from lib.collect.planner import shape_of

pytestmark = pytest.mark.usefixtures("without_grouped_moments")

MODEL, REVISION = "EleutherAI/pythia-160m-seed1", "step143000"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_small_model("neox", 0, tmp_path_factory.mktemp("model"))


@pytest.fixture
def served(hub, folder):
    hub.add("models", MODEL, folder, REVISION)
    return hub


def refused(*arguments) -> str:
    """The sentence with which `fetch` refuses; what is in the cache then is not taken for a model."""
    with pytest.raises(InputError) as caught:
        fetch("a", *arguments)
    text = str(caught.value)
    assert text.startswith("seed 'a': ") and text.endswith(".") and "\n" not in text and ". " not in text, text
    assert snapshot(*arguments) is None
    return text


def assert_fetched(folder: Path) -> None:
    fetched = fetch("a", MODEL, REVISION)
    for path in folder.iterdir():
        assert file_sha256(fetched / path.name) == file_sha256(path)


def test_a_seed_is_downloaded_once_and_then_read_from_the_cache(served, folder):
    assert snapshot(MODEL, REVISION) is None
    assert_fetched(folder)
    assert any(path.endswith("model.safetensors") and status == 302 for _, path, status in served.requests)
    served.heal()
    assert snapshot(MODEL, REVISION) == fetch("a", MODEL, REVISION)
    assert served.requests == []


def test_a_commit_hash_is_a_revision_like_any_other(hub, folder):
    pinned = hub.add("models", MODEL, folder)
    hub.add("models", MODEL, {"config.json": b"{}"})  # main has moved on since
    assert fetch("a", MODEL, pinned) == snapshot(MODEL, pinned)
    assert fetch("a", MODEL, pinned).name == pinned
    assert "no weights" in refused(MODEL, "main") and "no revision" in refused(MODEL, "0" * 40)


def test_only_what_a_seed_needs_is_downloaded(hub, folder):
    more = {path.name: path for path in folder.iterdir()} | {
        name: b"\0" * 10 for name in ("pytorch_model.bin", "optimizer.pt", "flax_model.msgpack", "onnx/model.onnx")
    }
    hub.add("models", MODEL, more, REVISION)
    fetched = fetch("a", MODEL, REVISION)
    assert {path.name for path in fetched.iterdir()} == {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("fault", ["drop", "slow", "corrupt", "429", "500"])
def test_a_temporary_fault_is_recovered(served, folder, fault, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 2**16)  # far less than the weights
    served.fail(fault, "/storage/")
    assert_fetched(folder)
    if fault == "drop":  # the second half only
        assert [status for _, path, status in served.requests if "/storage/" in path] == [200, 206]


@pytest.mark.parametrize("fault", ["429", "500"])
@pytest.mark.parametrize("part", ["/revision/", "/tree/", "/config.json"])
def test_a_busy_hub_is_asked_again(served, folder, fault, part):
    served.fail(fault, part)
    assert_fetched(folder)


PERMANENT = {
    "token": ("401", "/api/", "hf auth login"),
    "permission": ("403", "/api/", "forbids access"),
    "file gone": ("404", "model.safetensors", "answers 404"),
    "rate limit": ("429", "/api/", "rate limit"),
    "server": ("500", "/resolve/", "status 500"),
    "corrupt": ("corrupt", "/storage/", "damaged twice"),
}


@pytest.mark.parametrize("fault, part, words", PERMANENT.values(), ids=PERMANENT.keys())
def test_a_permanent_fault_is_one_sentence_and_a_later_attempt_works(served, folder, fault, part, words):
    served.fail(fault, part, times=1000)
    text = refused(MODEL, REVISION)
    assert words in text and MODEL in text
    served.heal()
    assert_fetched(folder)


def test_what_the_hub_does_not_have_is_one_sentence(served, folder, tmp_path):
    assert "neither a folder 'owner/none' nor a model" in refused("owner/none", None)
    assert "no revision 'step1'" in refused(MODEL, "step1")
    assert "name that the Hub allows" in refused("owner/-none-", None)
    served.add("models", "owner/gated", folder, gated=True)
    assert "accept its terms at" in refused("owner/gated", None)
    for file, words in (
        ("config.json", "no config"),
        ("model.safetensors", "no weights"),
        ("tokenizer.json", "no tokeniser"),
    ):
        rest = {path.name: path for path in folder.iterdir() if path.name != file}
        served.add("models", "owner/part", rest, file)
        assert words in refused("owner/part", file)


def test_without_network_or_offline_only_the_cache_is_used(served, folder, monkeypatch):
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    said = refused(MODEL, REVISION)
    assert "unset HF_HUB_OFFLINE" in said and f"there is no '{MODEL}'" in said and served.requests == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    said = refused(MODEL, REVISION)
    assert f"there is no folder '{MODEL}', and no connection to the Hub" in said
    monkeypatch.setattr(constants, "ENDPOINT", served.url)
    fetched = fetch("a", MODEL, REVISION)
    close_session()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch("a", MODEL, REVISION) == fetched


def test_a_killed_download_is_not_used_and_resumes(served, folder, tmp_path):
    served.fail("slow", "/storage/")
    code = f"from lib.base.hub import fetch; fetch('a', {MODEL!r}, {REVISION!r})"
    environment = os.environ | {
        "HF_ENDPOINT": served.url,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "0",
    }
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "cache").rglob("*.incomplete")) and time.monotonic() < deadline:
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list((tmp_path / "cache").rglob("*.incomplete")) and snapshot(MODEL, REVISION) is None
    assert_fetched(folder)


def test_a_file_damaged_in_the_cache_is_downloaded_again(served, folder):
    path = fetch("a", MODEL, REVISION) / "config.json"
    path.resolve().write_text(path.read_text() + " ")
    assert_fetched(folder)


def test_a_plan_downloads_the_config_only(served):
    shape = shape_of(str(fetch_config("a", MODEL, REVISION)))
    assert (shape.layers, shape.neurons) == (2, 48)
    assert not any("storage" in path for _, path, _ in served.requests) and snapshot(MODEL, REVISION) is None
    served.heal()
    assert fetch_config("a", MODEL, REVISION) and served.requests == []
    with pytest.raises(InputError, match="seed 'a': there is neither a folder 'owner/none'"):
        fetch_config("a", "owner/none")


def test_weight_files_in_shards_and_in_one_file():
    shards = {f"model-0000{i}-of-00002.safetensors" for i in (1, 2)}
    index = {"model.safetensors.index.json"}
    assert weight_names(shards | index) == sorted(shards)
    assert weight_names({*index, "model-00001-of-00002.safetensors"}) == [] == weight_names({"config.json"})
    assert weight_names({"pytorch_model.bin", "model.safetensors"}) == ["model.safetensors"]
    assert needed_files({*shards, *index, "config.json", "x.bin"}) == shards | index | {"config.json"}


STUDIES = {"gpt2-small": "crfm", "pythia-160m": "neox"}


def pile() -> dict[str, bytes]:
    """The files of monology/pile-uncopyrighted, which declares no splits: few documents, and none in `train`."""
    words = (ROOT / "README.md").read_text().split("\n\n")
    lines = [json.dumps({"text": text, "meta": {"pile_set_name": f"set {i % 3}"}}) for i, text in enumerate(words)]
    packed = pyarrow.Codec("zstd").compress("\n".join(lines).encode(), asbytes=True)
    return {
        "README.md": b"---\nlicense: other\n---\n",
        "train/00.jsonl.zst": b"",
        "val.jsonl.zst": b"",
        "test.jsonl.zst": packed,
    }


@pytest.mark.parametrize("study, architecture", STUDIES.items())
def test_a_study_runs_on_small_models_and_a_second_time_without_a_request(hub, tmp_path, make_run, study, architecture):
    params = read_params(ROOT / "params" / f"{study}.yaml")
    for index, (name, source) in enumerate(params.seeds.items()):
        hub.add("models", source, save_small_model(architecture, index, tmp_path / name), params.revision_of(name))
    hub.add("datasets", params.text.dataset, pile())
    text = params.text.model_dump(exclude_none=True)
    run = make_run(params.seeds, revision=params.revision, text=text, token_budget=4 * 256)
    collect(run)
    tabulate(run)
    neurons = run.table("neurons")
    assert len(neurons) == 96 and neurons.notna().all(axis=None)
    assert set(run.done["seed_hashes"]) == set(params.seeds) and set(run.text.domains) == {"set 0", "set 1", "set 2"}
    roles, weights = role_table(run), weight_table(run)  # also where an embedding is padded beyond the text's tokens
    assert len(roles) == len(weights) == 96 * len(params.seeds)
    assert logit_effects(run, run.params.reference, roles.head(2)).shape == (2, run.text.vocab_size)
    hub.heal()
    (run.folder / "stats" / "done.json").unlink()
    (run.folder / "tables" / "done.json").unlink()
    again = type(run)(run.params)
    collect(again)
    tabulate(again)
    assert hub.requests == []
    pd.testing.assert_frame_equal(again.table("neurons"), neurons)
