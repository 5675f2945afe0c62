"""The pass as a whole on small models: a planted truth, and kills in the middle."""

import gc
import json
import os
import signal
import subprocess
import sys
import time
import weakref

import pandas as pd
import pytest
import torch
from conftest import permuted, save_seed, small_model, tables_of

import lib.collect
from lib.base.errors import InputError
from lib.base.files import locked, write_json
from lib.base.params import ROOT
from lib.base.tensors import read_tensors, write_tensors
from lib.collect.passes import collect
from lib.collect.planner import Plan, pack, pass_memory, setting_of, shared_shape
from lib.collect.preflight import Preflight
from lib.labels.groupings import run_groupings
from lib.run import Run

pytestmark = pytest.mark.usefixtures("without_grouped_moments")


@pytest.mark.parametrize("precision", ["fp64", "int8"])
def test_a_permuted_copy_matches_itself_neuron_by_neuron(make_run, tmp_path, precision):
    model = small_model(3)
    copy, orders = permuted(model, seed=8)
    tokens = torch.randint(0, 8192, (2, 64), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(copy(tokens).logits, model(tokens).logits, atol=1e-4, rtol=1e-4)
    folders = {"a": save_seed(model, tmp_path / "a"), "b": save_seed(copy, tmp_path / "b")}
    run = make_run(folders, precision=precision)
    matches = tables_of(run)["matches"]
    live = ~run.neurons["dead"].to_numpy()
    assert live.mean() > 0.9
    found = matches[live]
    assert (found["match_layer"] == found["layer"]).all()
    partner = [
        orders[layer][match].item() for layer, match in zip(found["match_layer"], found["match_neuron"], strict=True)
    ]
    assert partner == found["neuron"].tolist()
    assert found["corr"].min() >= 0.999


SLOW_RUN = """
import os, sys, time
from pathlib import Path
import lib.base.params, lib.collect.passes, lib.run
from lib.kernels.fused import layer_statistics
lib.base.params.OUTPUTS = Path(sys.argv[2])
lib.collect.passes.SAVE_SECONDS = 0
lib.collect.reader.fastest_layer_statistics = lambda: layer_statistics
if "RANK" in os.environ:
    lib.collect.preflight.run_groupings = lambda run: {}  # products are what processes share here; saving them is quick
advance = lib.collect.one_pass.Pass.advance
def slow(self, chunk, bar):
    advance(self, chunk, bar)
    os.write(1, f"{os.getpid()} {chunk}\\n".encode())  # in one piece, whoever else writes
    time.sleep(0.05)
lib.collect.one_pass.Pass.advance = slow
lib.collect.passes.collect(lib.run.Run(lib.base.params.read_params(sys.argv[1])))
"""


def start_slowly(run, tmp_path, *launcher) -> subprocess.Popen:
    """Starts the pass in another process, which tells its id and the chunk after each chunk and saves as often."""
    run.folder.mkdir(parents=True)
    threads = "1" if launcher else str(torch.get_num_threads())  # sums come out the same with as many threads
    file, script = run.folder / "params.yaml", tmp_path / "slow_run.py"
    file.write_text(json.dumps(run.params.model_dump(mode="json")))  # JSON is YAML
    script.write_text(SLOW_RUN)
    return subprocess.Popen(
        [sys.executable, *launcher, str(script), str(file), str(run.folder.parent)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": threads},
    )


def test_a_killed_pass_goes_on_to_the_same_tables(make_run, seed_folders, tmp_path, monkeypatch):
    monkeypatch.setattr("lib.collect.preflight.run_groupings", run_groupings)  # grouped moments go on as well
    settings = {"precision": "int8", "token_budget": 200 * 256}
    whole = tables_of(make_run(seed_folders, run="whole", **settings))
    run = make_run(seed_folders, run="killed", **settings)
    process = start_slowly(run, tmp_path)
    for line in process.stdout:
        if int(line.split()[1]) >= 5:
            break
    time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert (run.folder / "stats" / "pass-00.state-0.safetensors").exists() and not (
        run.folder / "stats" / "done.json"
    ).exists()
    again = tables_of(run)
    for name, table in whole.items():
        pd.testing.assert_frame_equal(again[name], table, check_exact=True)
    for path in (run.folder.parent / "whole" / "stats").glob("grouped-*"):
        expected, found = read_tensors(path), read_tensors(run.folder / "stats" / path.name)
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.items()), path.name


def test_two_processes_one_of_them_killed_end_with_the_tables_of_one(make_run, seed_folders, tmp_path):
    settings = {"precision": "fp64", "token_budget": 200 * 256}
    whole = tables_of(make_run(seed_folders, run="whole", **settings))
    run = make_run(seed_folders, run="shared", **settings)
    launcher = "-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=2", "--monitor-interval=0.1"
    process = start_slowly(run, tmp_path, *launcher)
    killed, chunks = None, []
    for line in process.stdout:
        pid, chunk = map(int, line.split())
        chunks.append(chunk)
        if killed is None and len(chunks) >= 9:
            killed = pid
            os.kill(pid, signal.SIGKILL)
    assert process.wait() == 0 and killed is not None and sorted(set(chunks)) == list(range(25))
    assert len(chunks) < 2 * 25  # it went on rather than started again
    again = tables_of(run)
    for name in ("convergence", "sampling"):  # a process alone sees no state of the whole midway
        whole[name] = again[name] = pd.DataFrame()
    for name, table in whole.items():
        pd.testing.assert_frame_equal(again[name], table, check_exact=False, rtol=1e-12, atol=1e-12)


def test_several_passes_end_with_the_tables_of_one(make_run, seed_folders):
    whole = make_run(seed_folders, run="whole")
    one = tables_of(whole)
    setting = setting_of(whole.params, shared_shape(whole.params), torch.device("cpu"))
    alone = pack(setting).passes[0]
    pairs = sum(unit.memory for unit in alone.units if unit.kind == "pair")
    small = (pass_memory(setting, alone) - 0.7 * pairs) / 1e9
    run = make_run(seed_folders, run="parts", memory_gb=small)
    parts = tables_of(run)
    assert run.done["passes"] > 1
    for name in ("convergence", "sampling"):  # a pass alone has no matches of the whole midway
        one[name] = parts[name] = pd.DataFrame()
    for name, table in one.items():
        pd.testing.assert_frame_equal(parts[name], table, check_exact=True)
    with pytest.raises(InputError, match="memory_gb"):
        collect(make_run(seed_folders, run="none", memory_gb=0.01))


def test_a_pass_for_grouped_moments_alone_finds_those_of_one_pass(make_run, seed_folders, monkeypatch):
    monkeypatch.setattr("lib.collect.preflight.run_groupings", run_groupings)
    whole = make_run(seed_folders, run="whole", precision="int8")
    collect(whole)
    setting = setting_of(whole.params, shared_shape(whole.params), torch.device("cpu"), groups=Preflight(whole).layout)
    alone = pack(setting).passes[0]
    grouped = sum(unit.memory for unit in alone.units if unit.kind == "grouped")
    run = make_run(
        seed_folders, run="parts", precision="int8", memory_gb=(pass_memory(setting, alone) - 0.6 * grouped) / 1e9
    )
    collect(run)
    planned = Plan.resumed(setting, json.loads((run.folder / "stats" / "plan.json").read_text())).passes
    assert len(planned) > 1 and planned[0].measured == set(run.params.seeds) and not planned[-1].measured
    for path in (whole.folder / "stats").glob("*-*.safetensors"):
        if path.name.startswith(("snapshot", "part")):
            continue
        expected, found = read_tensors(path), read_tensors(run.folder / "stats" / path.name)
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_a_run_goes_on_in_the_precision_that_it_began_with(make_run, seed_folders, monkeypatch):
    run = make_run(seed_folders, precision="auto")
    with monkeypatch.context() as stopped:
        stopped.setattr("lib.collect.planner.fastest_precision", lambda device, tokens: "fp64")
        stopped.setattr("lib.collect.passes._run_pass", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            collect(run)
    monkeypatch.setattr("lib.collect.planner.fastest_precision", lambda device, tokens: "int8")
    collect(run)
    assert run.done["precision"] == "fp64"
    assert next(iter(run.stats("pair").values())).dtype == "float64"


def test_a_pass_is_not_complete_while_another_machine_s_state_is_not_seen(tmp_path, monkeypatch):
    chunks = torch.tensor([[True, False, False], [False, True, False], [False, True, True]])
    mine, other = (tmp_path / f"pass-00.state-{rank}.safetensors" for rank in range(2))
    slept = []

    def seen_late(seconds):
        slept.append(seconds)
        write_tensors(other, {"done": chunks[min(len(slept), 2)]})  # first an older state

    monkeypatch.setattr("time.sleep", seen_late)
    assert lib.collect.passes._others(tmp_path, "pass-00.state-", mine, chunks[0]) == [other] and len(slept) == 2
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(InputError, match="every part of the text once"):
        lib.collect.passes._others(tmp_path, "pass-00.state-", mine, chunks[1])


def test_a_pass_leaves_no_memory_to_the_next(make_run, seed_folders, monkeypatch):
    """Accumulators take gigabytes: they must go with their pass, not when the garbage collector comes round."""
    monkeypatch.setattr("lib.collect.preflight.run_groupings", run_groupings)
    passes, make = [], lib.collect.passes.Pass

    def watched(*arguments):
        assert all(one() is None for one in passes)
        made = make(*arguments)
        passes.append(weakref.ref(made))
        return made

    monkeypatch.setattr("lib.collect.passes.Pass", watched)
    gc.disable()
    try:
        run = make_run(seed_folders, run="small")
        setting = setting_of(run.params, shared_shape(run.params), torch.device("cpu"), groups=Preflight(run).layout)
        whole = pack(setting).passes[0]
        grouped = sum(unit.memory for unit in whole.units if unit.kind == "grouped")
        collect(make_run(seed_folders, run="parts", memory_gb=(pass_memory(setting, whole) - 0.6 * grouped) / 1e9))
    finally:
        gc.enable()
    assert len(passes) > 1 and passes[-1]() is None


def test_a_reference_alone_has_the_same_tables(make_run, seed_folders):
    everything, alone = (
        make_run(seed_folders, reference="b"),
        make_run(seed_folders, run="alone", reference="b", compare="reference"),
    )
    first, second = tables_of(everything), tables_of(alone)
    for name in ("neurons", "matches"):
        pd.testing.assert_frame_equal(second[name], first[name], check_exact=False, rtol=1e-9, atol=1e-12)
    with pytest.raises(InputError, match="reference"):
        collect(make_run(seed_folders, run="alone", reference="a", compare="reference"))


def test_the_same_run_twice_gives_identical_tables(make_run, seed_folders):
    first, second = (tables_of(make_run(seed_folders, run=name, precision="auto")) for name in ("first", "second"))
    for name, table in first.items():
        pd.testing.assert_frame_equal(second[name], table, check_exact=True)


def test_a_second_process_on_the_same_run_is_told_so(make_run, seed_folders):
    run = make_run(seed_folders)
    with (
        locked(run.folder / "stats"),
        pytest.raises(InputError, match="another process is working on .*; wait until it ends"),
    ):
        collect(run)
    collect(run)


def test_less_memory_is_heeded_until_a_pass_has_saved_something(make_run, seed_folders, monkeypatch):
    """A lower memory_gb gives more passes until a pass has saved its state; then it is refused."""

    def interrupted(*_):
        raise KeyboardInterrupt

    run = make_run(seed_folders)
    with monkeypatch.context() as patch:
        patch.setattr("lib.collect.passes._run_pass", interrupted)
        with pytest.raises(KeyboardInterrupt):
            collect(run)
    setting = setting_of(run.params, shared_shape(run.params), torch.device("cpu"))
    alone_pass = pack(setting).passes[0]
    pairs = sum(unit.memory for unit in alone_pass.units if unit.kind == "pair")
    less = Run(run.params.model_copy(update={"memory_gb": (pass_memory(setting, alone_pass) - 0.7 * pairs) / 1e9}))
    (run.folder / "stats" / "pass-00.state-0.safetensors").touch()
    with pytest.raises(
        InputError, match="memory_gb allows .* but this run began with passes of up to .*make clean RUN="
    ):
        collect(less)
    (run.folder / "stats" / "pass-00.state-0.safetensors").unlink()
    collect(less)
    assert less.done["passes"] > 1


def test_a_run_made_with_other_parameters_is_refused_and_left_alone(make_run, seed_folders):
    run = make_run(seed_folders)
    collect(run)
    before = (run.folder / "stats" / "done.json").read_text()
    with pytest.raises(InputError, match="token_budget"):
        collect(make_run(seed_folders, token_budget=10 * 256))
    assert (run.folder / "stats" / "done.json").read_text() == before
    collect(make_run(seed_folders, reference="b", threshold=0.4))  # algebra only: no new pass


def test_a_nan_activation_is_named(make_run, seed_folders, tmp_path, monkeypatch):
    model = small_model(5)
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.bias[7] = 3e38  # finite weights, overflowing activations
        model.transformer.h[1].mlp.c_fc.weight[:, 7] = 3e38
    folders = {"a": seed_folders["a"], "b": save_seed(model, tmp_path / "b")}
    with pytest.raises(InputError, match="seed 'b', layer 1, neuron 7"):
        collect(make_run(folders))


def test_a_full_disk_leaves_what_was_saved(make_run, seed_folders, monkeypatch):
    run = make_run(seed_folders)
    write_json(run.folder / "stats" / "key.json", {"kept": True})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(InputError, match="no space left"):
        write_json(run.folder / "stats" / "key.json", {"kept": False})
    assert json.loads((run.folder / "stats" / "key.json").read_text()) == {"kept": True}
    assert not list((run.folder / "stats").glob("*.writing"))


def test_seeds_of_different_shape_are_refused(make_run, seed_folders, tmp_path):
    folders = {"a": seed_folders["a"], "b": save_seed(small_model(1, layers=3), tmp_path / "b")}
    with pytest.raises(InputError, match="same model"):
        collect(make_run(folders))
