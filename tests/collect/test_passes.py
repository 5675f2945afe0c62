"""The pass as a whole on small models: a planted truth, and kills in the middle."""

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import weakref
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import PRODUCTS, TEXT, activations, permuted, save_seed, small_model, tables_of
from transformers import GPT2LMHeadModel

import lib.collect
from lib.base.errors import InputError
from lib.base.files import locked, write_json
from lib.base.params import ROOT, read_params
from lib.base.tensors import TensorFiles, read_tensors, write_tensors
from lib.collect.one_pass import Pass
from lib.collect.passes import State, collect
from lib.collect.planner import CORE, PassPlan, Plan, Reading, pack, pass_memory, seed_shapes, setting_of
from lib.collect.preflight import Preflight
from lib.labels.groupings import run_groupings
from lib.run import Run

pytestmark = pytest.mark.usefixtures("without_grouped_moments")


def need(run: Run) -> float:
    """Bytes of the run's pass if it is one."""
    setting = setting_of(run.params, seed_shapes(run.params), torch.device("cpu"), groups=Preflight(run).layout)
    return pass_memory(setting, pack(setting).passes[0])


def less_memory(run: Run, share: float = 0.5) -> float:
    """Gigabytes for which the first pass holds all that matches need, and a share of the rest."""
    setting = setting_of(run.params, seed_shapes(run.params), torch.device("cpu"), groups=Preflight(run).layout)
    (whole,) = pack(setting).passes
    needed = PassPlan(tuple(unit for unit in whole.units if unit.kind in CORE))
    rest = sum(unit.memory for unit in whole.units if unit.kind not in CORE)
    return (pass_memory(setting, needed) + share * rest) / 1e9


@pytest.mark.parametrize(
    ("products", "precision"),
    [("rows", "fp64"), ("rows", "bf16"), ("sums", "bf16"), ("sketch", "fp64"), ("sketch", "bf16")],
)
def test_a_permuted_copy_matches_itself_neuron_by_neuron(make_run, tmp_path, products, precision):
    model = small_model(3)
    copy, orders = permuted(model, seed=8)
    tokens = torch.randint(0, 8192, (2, 64), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(copy(tokens).logits, model(tokens).logits, atol=1e-4, rtol=1e-4)
    folders = {"a": save_seed(model, tmp_path / "a"), "b": save_seed(copy, tmp_path / "b")}
    run = make_run(folders, precision=precision, **PRODUCTS[products])
    matches = tables_of(run)["matches"]
    assert run.done["products"] == PRODUCTS[products]["products"] and run.done["precision"] == precision
    live = ~run.neurons["dead"].to_numpy()
    assert live.mean() > 0.9
    found = matches[live]
    assert (found["match_layer"] == found["layer"]).all()
    partner = [
        orders[layer][match].item() for layer, match in zip(found["match_layer"], found["match_neuron"], strict=True)
    ]
    assert partner == found["neuron"].tolist()
    # in bf16 the operands are rounded, by 2⁻⁹ at most, and a CPU rounds products
    assert (found["corr"] - 1).abs().max() < (1e-3 if precision == "fp64" else 2e-3)


SLOW_RUN = """
import os, sys, time
from pathlib import Path
import lib.base.params, lib.collect.passes, lib.run
lib.base.params.OUTPUTS = Path(sys.argv[2])
lib.collect.passes.SAVE_SECONDS, lib.collect.passes.SAVE_SHARE = 0, float("inf")
if not GROUPED:
    lib.collect.preflight.run_groupings = lambda run: {}  # saving what is shared is quick without them
def told(what):
    os.write(1, f"{os.getpid()} {what}\\n".encode())  # in one piece, whoever else writes
    time.sleep(0.05)
advance, choose = lib.collect.one_pass.Pass.advance, lib.collect.passes._choose
def slow(self, batch, bar):
    advance(self, batch, bar)
    told(batch)
def chosen(*arguments):
    choose(*arguments)
    told("candidates")
lib.collect.one_pass.Pass.advance, lib.collect.passes._choose = slow, chosen
lib.collect.passes.collect(lib.run.Run(lib.base.params.read_params(sys.argv[1])))
"""


def start_slowly(run, tmp_path, *launcher, grouped: bool = False) -> subprocess.Popen:
    """Starts the pass in another process, which tells its id and the batch after each batch and saves as often."""
    run.folder.mkdir(parents=True, exist_ok=True)
    threads = "1" if launcher else str(torch.get_num_threads())  # sums come out the same with as many threads
    file, script = run.folder / "params.yaml", tmp_path / "slow_run.py"
    file.write_text(json.dumps(run.params.model_dump(mode="json")))  # JSON is YAML
    script.write_text(SLOW_RUN.replace("GROUPED", str(grouped)))
    return subprocess.Popen(
        [sys.executable, *launcher, str(script), str(file), str(run.folder.parent)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": threads},
    )


@pytest.mark.parametrize(
    ("products", "kills"), [("rows", ["6"]), ("sums", ["candidates"]), ("sketch", ["1", "candidates", "6"])]
)
def test_a_killed_pass_goes_on_to_the_same_tables(make_run, seed_folders, tmp_path, monkeypatch, products, kills):
    """Killed in the text's first part (3 of 10 batches), when the candidates are known, and later."""
    grouped = products == "rows"  # grouped moments go on as well
    if grouped:
        monkeypatch.setattr("lib.collect.preflight.run_groupings", run_groupings)
    settings = PRODUCTS[products] | {"precision": "bf16", "token_budget": 72 * 256}
    whole = tables_of(make_run(seed_folders, run="whole", **settings))
    run = make_run(seed_folders, run="killed", **settings)
    stats = run.folder / "stats"
    for last in kills:
        process = start_slowly(run, tmp_path, grouped=grouped)
        for line in process.stdout:
            if line.split()[1] == last:
                break
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert (stats / "pass-00.state-0.safetensors").exists() and not (stats / "done.json").exists()
        assert (stats / "candidates.safetensors").exists() == (last != "1")
    read, advance = [], lib.collect.one_pass.Pass.advance
    monkeypatch.setattr(
        "lib.collect.one_pass.Pass.advance", lambda self, batch, bar: [read.append(batch), advance(self, batch, bar)]
    )
    again = tables_of(run)
    first = {"candidates": 3, "6": 6}[last]  # the last batch may not have been saved
    assert read in ([*range(first, 10)], [*range(first + 1, 10)])
    for name, table in whole.items():
        pd.testing.assert_frame_equal(again[name], table, check_exact=True)
    for path in (run.folder.parent / "whole" / "stats").glob("*.safetensors"):
        torch.testing.assert_close(read_tensors(stats / path.name), read_tensors(path), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("products", "lines"), [("sketch", 2), ("sums", 7)])
def test_two_processes_one_of_them_killed_end_with_the_tables_of_one(make_run, seed_folders, tmp_path, products, lines):
    """Killed in the first part of the text, and after it; convergence and sampling are filled as well."""
    settings = PRODUCTS[products] | {"precision": "fp64", "token_budget": 100 * 256}
    whole = tables_of(make_run(seed_folders, run="whole", **settings))
    run = make_run(seed_folders, run="shared", **settings)
    launcher = "-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=2", "--monitor-interval=0.1"
    process = start_slowly(run, tmp_path, *launcher)
    killed, batches = None, []
    for line in process.stdout:
        pid, batch = line.split()
        batches += [int(batch)] if batch.isdigit() else []
        if killed is None and len(batches) >= lines:
            killed = int(pid)
            os.kill(killed, signal.SIGKILL)
    assert process.wait() == 0 and killed is not None and sorted(set(batches)) == list(range(14))
    assert len(batches) < 2 * 14  # it went on rather than started again
    again = tables_of(run)
    assert run.done["processes"] == 2 and again["convergence"]["tokens"].nunique() > 2
    assert again["sampling"]["excess_se"].notna().all() and len(again["share_intervals"])
    for name, table in whole.items():
        pd.testing.assert_frame_equal(again[name], table, check_exact=False, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("products", PRODUCTS)
def test_several_passes_end_with_the_tables_of_one(make_run, seed_folders, products):
    whole = make_run(seed_folders, run="whole", **PRODUCTS[products])
    one = tables_of(whole)
    assert whole.done["passes"] == 1 and whole.done["loops"] == "torch"  # 48 neurons in fp64: no loop takes them
    run = make_run(seed_folders, run="parts", memory_gb=less_memory(whole), **PRODUCTS[products])
    parts = tables_of(run)
    assert run.done["passes"] > 1
    for name, table in one.items():
        pd.testing.assert_frame_equal(parts[name], table, check_exact=True)
        assert (run.folder / "tables" / f"{name}.parquet").read_bytes() == (
            whole.folder / "tables" / f"{name}.parquet"
        ).read_bytes()
    with pytest.raises(InputError, match="memory_gb"):
        collect(make_run(seed_folders, run="none", memory_gb=0.01))


def test_a_pass_for_grouped_moments_alone_finds_those_of_one_pass(make_run, seed_folders, monkeypatch):
    monkeypatch.setattr("lib.collect.preflight.run_groupings", run_groupings)
    whole = make_run(seed_folders, run="whole", precision="bf16")
    collect(whole)
    run = make_run(seed_folders, run="parts", precision="bf16", memory_gb=less_memory(whole))
    collect(run)
    setting = setting_of(whole.params, seed_shapes(whole.params), torch.device("cpu"), groups=Preflight(whole).layout)
    planned = Plan.resumed(setting, json.loads((run.folder / "stats" / "plan.json").read_text())).passes
    assert len(planned) > 1 and planned[0].compares and not planned[-1].compares
    for path in (whole.folder / "stats").glob("*.safetensors"):
        expected, found = read_tensors(path), {}
        kind = path.name.split("-")[0]
        for other in (run.folder / "stats").glob(f"{kind}-*" if path.name.endswith("-00.safetensors") else path.name):
            found |= read_tensors(other)
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_a_run_goes_on_in_the_precision_that_it_began_with(make_run, seed_folders, monkeypatch):
    run = make_run(seed_folders, precision="auto")
    with monkeypatch.context() as stopped:
        stopped.setattr("lib.collect.planner.fastest_precision", lambda device: "fp64")
        stopped.setattr("lib.collect.passes._choose", lambda *arguments: 1 / 0)  # a state has been saved
        with pytest.raises(ZeroDivisionError):
            collect(run)
    monkeypatch.setattr("lib.collect.planner.fastest_precision", lambda device: "bf16")
    collect(run)
    assert run.done["precision"] == "fp64"
    assert run.stats("followed")["a.b.products"].dtype == "float64"


def test_a_state_that_holds_what_another_holds_is_refused(make_run, seed_folders, tmp_path):
    """On a file system shared by machines a file that another machine wrote may be read as an older version."""
    run = make_run(seed_folders)
    inputs = Preflight(run)
    setting = setting_of(run.params, inputs.shapes, torch.device("cpu"))
    names = ("pre_scaling", "post_scaling", "low", "high")
    scaling = {name: torch.ones((2, 2, 48) if "scaling" in name else (2, 48)) for name in names}
    work = Pass(inputs, pack(setting), 0, dict.fromkeys(seed_folders, scaling), torch.device("cpu"))
    work.done[1] = True
    write_tensors(tmp_path / "state.safetensors", work.state_dict())
    with pytest.raises(InputError, match="same part of the text"):
        work.merge_state(TensorFiles([tmp_path / "state.safetensors"]))
    work.empty()
    work.merge_state(TensorFiles([tmp_path / "state.safetensors"]))
    assert work.done.tolist() == [False, True, False]


@pytest.mark.parametrize("complete", [True, False])
def test_a_process_with_an_older_view_of_the_folder_follows_the_first(make_run, seed_folders, monkeypatch, complete):
    """It sees neither that the run is done nor the text that the first process made, and makes neither again."""
    said, waited, went_on = [complete, str(TEXT), complete], [], []

    class Second:
        count, rank, first, device = 2, 1, False, torch.device("cpu")

        def agree(self, content):
            return said.pop(0)

        def appeared(self, path):
            waited.append(path)
            return path

        def close(self):
            pass

    def made_again(*_):
        raise AssertionError("the text is made by the first process only")

    monkeypatch.setattr("lib.collect.passes.Processes", lambda device: Second())
    monkeypatch.setattr("lib.text.tokenise.token_file", made_again)
    monkeypatch.setattr("lib.collect.passes._collect", lambda inputs, processes: went_on.append(inputs))
    collect(make_run(seed_folders))
    assert waited == [TEXT] and len(went_on) == (not complete)


def test_a_state_is_saved_when_it_takes_a_twentieth_of_the_time_since_the_last(monkeypatch, tmp_path):
    now, takes = [1000.0], 8.0

    def write(path, state):
        now[0] += takes

    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("lib.collect.passes.write_tensors", write)
    work = SimpleNamespace(units=[SimpleNamespace(memory=5e9)], state_dict=dict)
    state = State(tmp_path / "state", work)  # 5 GB, at 1 GB a second until one was saved
    for wait, due in ((99, False), (2, True)):
        now[0] += wait
        assert state.due == due
    state.save()
    for wait, due in ((159, False), (2, True)):
        now[0] += wait
        assert state.due == due
    takes = 0.01
    state.save()
    now[0] += 59
    assert not state.due


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
        collect(make_run(seed_folders, run="parts", memory_gb=less_memory(run)))
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


@pytest.mark.parametrize("products", PRODUCTS)
def test_the_same_run_twice_gives_identical_tables(make_run, seed_folders, products):
    settings = PRODUCTS[products] | {"precision": "auto"}
    first, second = (make_run(seed_folders, run=name, **settings) for name in ("first", "second"))
    for name, table in tables_of(first).items():
        pd.testing.assert_frame_equal(tables_of(second)[name], table, check_exact=True)
    for path in (first.folder / "stats").glob("*.safetensors"):
        assert path.read_bytes() == (second.folder / "stats" / path.name).read_bytes()


def test_another_random_seed_gives_another_sketch(make_run, seed_folders):
    first, second = (
        make_run(seed_folders, run=f"seed-{number}", random_seed=number, **PRODUCTS["sketch"]) for number in (0, 1)
    )
    collect(first)
    collect(second)
    rows, others = (
        read_tensors(run.folder / "stats" / "sketch-a.safetensors")["rows"].float() for run in (first, second)
    )
    assert rows.shape == (4096, 96) and not torch.equal(rows, others)
    for name, tensor in first.stats("moments").items():
        np.testing.assert_array_equal(second.stats("moments")[name], tensor)


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
    less = Run(run.params.model_copy(update={"memory_gb": less_memory(run)}))
    (run.folder / "stats" / "pass-00.state-0.safetensors").touch()
    with pytest.raises(
        InputError, match="memory_gb allows .* but this run began with passes of up to .*make clean RUN="
    ):
        collect(less)
    with monkeypatch.context() as patch:  # a smaller card
        whole, smaller = lib.collect.passes.setting_of, 0.75 * need(run)
        patch.setattr("lib.collect.passes.setting_of", lambda *given: replace(whole(*given), memory=smaller))
        auto = Run(run.params.model_copy(update={"memory_gb": "auto"}))
        with pytest.raises(InputError, match="there are .* GB of free memory here .* this run began with passes of up"):
            collect(auto)
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


@pytest.mark.parametrize("products", ["rows", "sums"])
def test_seeds_of_different_shape_are_compared(make_run, tmp_path, products):
    """Other numbers of layers and neurons, and a padded vocabulary; the tokeniser is the same."""
    models = {"a": small_model(0), "b": small_model(1, layers=3), "c": small_model(2, neurons=40)}
    models["c"].resize_token_embeddings(8200)
    folders = {name: save_seed(model, tmp_path / name) for name, model in models.items()}
    run = make_run(folders, **PRODUCTS[products])
    made = tables_of(run)
    assert run.done["shapes"] == {"a": [2, 48], "b": [3, 48], "c": [2, 40]}
    flat = {name: activations(folder, 20) for name, folder in folders.items()}
    for (a, b), own in made["matches_all_seeds"].groupby(["seed", "model"]):
        corr = np.corrcoef(flat[a].T, flat[b].T)[: flat[a].shape[1], flat[a].shape[1] :]
        np.testing.assert_allclose(own["corr"], corr.max(1), atol=1e-5)
        found = run.done["shapes"][b][1] * own["match_layer"] + own["match_neuron"]
        np.testing.assert_allclose(corr[np.arange(len(corr)), found], corr.max(1), atol=1e-5)
    assigned = made["assignments"]
    left = assigned.query("model == 'c' and match_layer < 0")
    assert len(left) == 2 * 48 - 2 * 40 and left["corr"].isna().all()
    assert not (assigned["model"] == "b").sum() - 96 and assigned.query("model == 'b'")["corr"].notna().all()


def test_statistics_of_the_version_before_are_refused(make_run, seed_folders, tmp_path):
    """They knew no sketch, and 8-bit products; one sentence says how to delete them."""
    run = make_run(seed_folders)
    key = {name: value for name, value in run.params.statistics_key.items() if "sketch" not in name != "products"}
    write_json(run.folder / "stats" / "key.json", key | {"precision": "int8", "hashes": {}})
    write_json(run.folder / "stats" / "done.json", {"layers": 2, "neurons": 48, "precision": "int8"})
    with pytest.raises(InputError, match=r"precision = .int8.*`make clean RUN=test`\.$") as caught:
        collect(run)
    assert "\n" not in str(caught.value)
    file = tmp_path / "old.yaml"
    file.write_text(json.dumps(run.params.model_dump(mode="json", exclude_none=True) | {"precision": "int8"}))
    with pytest.raises(InputError, match=r"precision is .int8., but must be .*`make clean`") as caught:
        read_params(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("blocks", "batch"), [(1, 8), (2, 1), (5, 8), (20, 8), (200, 8), (1000, 4)])
def test_a_text_is_read_once_its_first_part_spread_over_it(blocks, batch):
    reading = Reading.of(blocks, batch)
    assert torch.cat(reading.batches).sort().values.tolist() == list(range(blocks))
    early = torch.cat(reading.batches[: reading.first])
    assert early.tolist() == list(range(0, blocks, 4)) and max(map(len, reading.batches)) <= batch
    parts = [reading.part(number) for number in range(len(reading.batches))]
    assert parts[: reading.first] == [None] * reading.first and parts[reading.first :] == sorted(parts[reading.first :])
    late = len(reading.batches) - reading.first
    assert len(set(parts[reading.first :])) == min(late, 16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_model_in_two_formats_is_refused(make_run, seed_folders, tmp_path, dtype):
    copy = GPT2LMHeadModel.from_pretrained(seed_folders["a"], dtype=dtype)
    shutil.copytree(seed_folders["a"], tmp_path / "copy")
    copy.save_pretrained(tmp_path / "copy", max_shard_size="200KB")
    run = make_run({"a": seed_folders["a"], "b": tmp_path / "copy", "c": seed_folders["c"]})
    (tmp_path / "copy" / "model.safetensors").unlink(missing_ok=True)
    with pytest.raises(InputError, match="'a' and 'b' are one model in two formats"):
        collect(run)
