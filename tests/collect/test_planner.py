"""Plans hold every accumulator once and keep to the memory limit; forecasts count what a run does."""

import math
import re
import threading
import time
from dataclasses import replace
from itertools import combinations

import pytest
import torch
import torch.distributed as dist
from conftest import save_seed, small_model
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config

from lib.base.errors import InputError
from lib.base.files import read_json
from lib.base.machine import control_group_limits
from lib.base.params import ROOT
from lib.collect import forecast, prices
from lib.collect.forecast import FOLLOWED, disk, seconds, work
from lib.collect.planner import (
    CORE,
    FIRST,
    PARTS,
    PassPlan,
    Plan,
    Reading,
    Setting,
    Shape,
    batch_blocks,
    pack,
    pass_memory,
    seed_shapes,
    setting_of,
    shape_of,
    units_of,
    work_memory,
)
from lib.collect.prices import GPUS
from lib.collect.processes import Processes, shares, tree
from lib.kernels.examples import TopExamples
from lib.kernels.followed import Followed
from lib.kernels.histogram import Histogram
from lib.kernels.moments import Moments
from lib.kernels.sketch import Products, Sketch, Within
from lib.report.resolve import announcement

pytestmark = pytest.mark.usefixtures("without_grouped_moments")

SMALL = Shape(layers=12, neurons=3072, width=768, vocabulary=50257, positions=1024, parameters=124_439_808)
MEDIUM = Shape(layers=24, neurons=4096, width=1024, vocabulary=50257, positions=1024, parameters=354_823_168)
LABELS = ("token", 5000, "sum"), ("token_labels", 256, "sum square"), ("position", 9, "sum")
SETTING = Setting(
    dict.fromkeys("abcde", SMALL),
    tuple("abcde"),
    blocks=800,
    context=256,
    precision="fp32",
    products="sketch",
    sketch_rows=4096,
    memory=20e9,
)


@settings(max_examples=60, deadline=None)
@given(
    memory=st.floats(1e9, 80e9),
    shapes=st.lists(st.sampled_from([SMALL, MEDIUM]), min_size=2, max_size=5),
    alone=st.booleans(),
    exact=st.booleans(),
    blocks=st.integers(4, 100),
    groups=st.sampled_from([(), LABELS]),
)
def test_every_unit_lies_in_one_pass_that_fits_and_those_of_matches_in_the_first(
    memory, shapes, alone, exact, blocks, groups
):
    shapes = dict(zip("abcde", shapes, strict=False))
    references = tuple(shapes)[-1:] if alone else tuple(shapes)
    products = "exact" if exact else "sketch"
    setting = replace(
        SETTING, shapes=shapes, references=references, products=products, blocks=blocks, groups=groups, memory=memory
    )
    units = units_of(setting)
    core = tuple(unit for unit in units if unit.kind in CORE)
    compared = [pair for pair in combinations(shapes, 2) if not alone or set(pair) & set(references)]
    assert {tuple(sorted(pair)) for pair in setting.pairs} == set(compared)
    assert [(unit.seed, unit.other) for unit in core if unit.kind == "followed"] == list(setting.pairs)
    if pass_memory(setting, PassPlan(core)) > memory:
        with pytest.raises(InputError, match="this run needs at least .* GB of memory in one process"):
            pack(setting)
        return
    plan = pack(setting)
    assert [unit for part in plan.passes for unit in part.units] == units
    assert plan.passes[0].units[: len(core)] == core
    for number, part in enumerate(plan.passes):
        assert pass_memory(setting, part) <= memory and part.compares == (number == 0)
        depths = part.depths(shapes)
        assert all(depths[unit.seed] >= unit.stop for unit in part.units)
        assert number or depths == {seed: shape.layers for seed, shape in shapes.items()}


def test_units_take_the_memory_of_their_accumulators():
    tiny = replace(SMALL, layers=2, neurons=64)
    setting = replace(SETTING, shapes={"a": tiny, "b": replace(tiny, layers=3)}, references=("a",), blocks=8)
    pairs = torch.zeros(2, 16 * (128 + 192), dtype=torch.int64)
    scaling = torch.ones(2, 2, 64)
    for products, made in {
        "sketch": {"sketch": Sketch(4096, 128)},
        "exact": {"products": Products(2, 64, 192, torch.float32)},
    }.items():
        own = replace(setting, products=products, blocks=100 if products == "exact" else 8)
        made |= {
            "moments": Moments(scaling, scaling),
            "examples": TopExamples(2, 64),
            "histogram": Histogram(scaling[:, 0], scaling[:, 1]),
            "followed": Followed({("a", "b"): pairs}, {}, PARTS, torch.float32),
        }
        planned = {unit.kind: unit.memory for unit in units_of(own) if unit.seed == "a"}
        assert set(planned) == set(made)
        for kind, accumulator in made.items():
            used = sum(tensor.nbytes for tensor in accumulator.state_dict().values())
            used += pairs.nbytes if kind == "followed" else 0
            assert used <= 1.02 * planned[kind] <= 1.3 * used, kind
    within = [unit for unit in units_of(own) if unit.kind == "products" and unit.other is None]
    assert within[1].memory == Within(3, 64, 64, torch.float32).sums.nbytes


def test_a_resumed_plan_keeps_its_passes():
    grouped = replace(SETTING, groups=(("token", 20_000, "sum square"),))
    begun = pack(grouped)
    again = pack(replace(grouped, memory=90e9, precision="bf16", products="exact"))
    assert len(again.passes) < len(begun.passes)
    resumed = Plan.resumed(again.setting, begun.as_json())
    assert resumed.passes == begun.passes and resumed.setting == replace(begun.setting, memory=90e9)


@given(blocks=st.integers(1, 300), batch=st.integers(1, 40))
def test_a_text_is_read_once_its_first_part_from_all_over_it(blocks, batch):
    reading = Reading.of(blocks, batch)
    read = torch.cat(reading.batches)
    assert sorted(read.tolist()) == list(range(blocks)) and max(map(len, reading.batches)) <= batch
    first = torch.cat(reading.batches[: reading.first])
    assert first.tolist() == list(range(0, blocks, FIRST))
    parts = [reading.part(number) for number in range(len(reading.batches))]
    late = parts[reading.first :]
    assert parts[: reading.first] == [None] * reading.first and late == sorted(late)
    assert not late or (late[0] == 0 and late[-1] < PARTS and (len(late) < PARTS or set(late) == set(range(PARTS))))


@pytest.mark.parametrize(
    ("device", "context", "neurons", "text", "blocks"),
    [
        ("cpu", 256, 64, 4000, 8),
        ("cpu", 4096, 64, 4000, 1),
        ("cuda", 256, 64, 4000, 128),
        ("cuda", 256, 1024, 4000, 128),
        ("cuda", 256, 1025, 4000, 64),
        ("cuda", 256, 3072, 4000, 32),
        ("cuda", 512, 4096, 4000, 16),
        ("cuda", 1024, 16384, 4000, 8),
        ("cuda", 256, 64, 1171, 64),
        ("cuda", 256, 64, 200, 32),
    ],
)
def test_narrow_layers_go_in_larger_batches_through_a_gpu(device, context, neurons, text, blocks):
    assert batch_blocks(device, context, neurons, text) == blocks


def test_what_cannot_fit_is_refused():
    with pytest.raises(
        InputError, match="needs at least 10.8 GB .* allows 9.5 GB; allow more, or use a smaller sketch"
    ):
        pack(replace(SETTING, memory=9.5e9))
    with pytest.raises(InputError, match="allow more, or use fewer processes, or smaller models"):
        pack(replace(SETTING, memory=9e9, products="exact"))


def test_rows_that_are_copied_to_name_candidates_need_memory():
    part = pack(SETTING).passes[0]
    copied = work_memory(replace(SETTING, precision="bf16", sketch_rows=2**20), part)
    assert copied > 2**20 * 5 * SMALL.total * 2 > work_memory(replace(SETTING, sketch_rows=2**20), part)


def test_each_of_several_processes_has_room_for_what_another_sends():
    part = pack(SETTING).passes[0]
    alone, one_of_two = (pass_memory(replace(SETTING, processes=number), part) for number in (1, 2))
    assert one_of_two - alone == max(unit.memory for unit in part.units) > 4096 * SMALL.total * 4 - 1


def test_work_is_what_a_run_of_two_shapes_does():
    shapes = {"a": SMALL, "b": MEDIUM}
    setting = replace(SETTING, shapes=shapes, references=("a",), memory=1e12, groups=LABELS)
    n_a, n_b, tokens = 12 * 3072, 24 * 4096, 800 * 256
    passes, tables = work(pack(setting), 5)
    look = (128 + 64) * 256  # losses and pilot
    maps, scores = 8 * (12 * 768**2 + 24 * 1024**2), 512 * (12 * 768 + 24 * 1024)
    logits = 128 * 256 * 50257 * (768 + 1024)
    assert passes["maps"] == (tokens + look) * maps
    assert passes["scores"] == (tokens + look) * scores + 2 * logits
    assert passes["MLPs"] == (tokens + look) * 4 * (n_a * 768 + n_b * 1024)
    assert passes["launches"] == (12 + 24) * (tokens + look) / 2048
    assert passes["statistics"] == passes["sketch"] == tokens * (n_a + n_b)
    assert passes["label sums"] == 4 * tokens * n_a and passes["labels"] == tokens
    assert passes["following"] == 0.75 * tokens * FOLLOWED * (n_a + n_b)
    assert passes["candidates"] == tables["matches"] == n_a * n_b
    assert passes["products"] == 2 * 4096 * n_a * n_b
    within = 2 * 4096 * (n_a * 3072 + n_b * 4096)
    assert tables["products"] == pytest.approx((1 + 1 / 24) * 2 * 4096 * n_a * n_b + 1.5 * within)
    # b is rotated, and twice in half the rows for one layer of a
    assert tables["rotations"] == pytest.approx((5 + 2 / 12) * 2 * n_a * n_b * 4096)
    assert tables["deviations"] == (5 + 2) * 2 * (n_a * 3072**2 + n_b * 4096**2)
    assert tables["cosines"] == 2 * n_a * (768 * 2 * n_a + (768 + 1000) * 50257)  # of the reference
    assert tables["drawing"] == 5 * (3072**3 + 4096**3)
    every, after = work(pack(replace(setting, references=("a", "b"))), 5)
    assert after["rotations"] == pytest.approx(2 * n_a * n_b * (5 * (3072 + 4096) + 2 / 12 * 4096))
    assert every["label sums"] == 4 * tokens * (n_a + n_b)
    exact, after = work(pack(replace(setting, products="exact")), 5)
    assert exact["products"] == 2 * tokens * (n_a * n_b + n_a * 3072 + n_b * 4096) and not exact["sketch"]
    assert after["rotations"] == 5 * 2 * n_a * n_b * 4096 and not after["products"]
    short, after = work(pack(replace(setting, products="exact", blocks=32)), 5)  # a row for each token
    assert short["products"] == 2 * 2048 * n_a * n_b and after["products"] == 2 * 8192 * n_a * n_b + 2 * within
    assert after["deviations"] == 5 * 2 * (n_a * 3072**2 + n_b * 4096**2)


def test_results_are_smaller_than_states():
    setting = replace(SETTING, memory=1e12, processes=2, groups=LABELS)
    results, states = disk(pack(setting))
    neurons = 5 * SMALL.total
    assert results["sketch"] == 2 * 4096 * neurons and states["sketch"] == 2 * 4 * 4096 * neurons
    assert results["followed"] == 4 * FOLLOWED * neurons * (8 + 16 * 4)  # every seed is in four pairs
    means = 4 * 5000 + (8 + 4) * 256 + 8 * 9  # by half, in fp16 or fp32; spreads
    assert results["grouped"] == neurons * means < states["grouped"]
    assert results["examples"] == states["examples"] / 2


def test_times_grow_with_tokens_draws_and_seeds():
    def taken(draws=5, **changes):
        rates = GPUS["H200"][1]
        return [
            sum(one.values())
            for one in seconds(pack(replace(SETTING, device="cuda", **{"memory": 120e9} | changes)), rates, draws)
        ]

    passes, tables = taken()
    assert taken(blocks=8000)[0] > 4 * passes and taken(blocks=8000)[1] == tables
    assert taken(draws=1)[1] < tables and taken(draws=1)[0] == passes
    assert taken(references=("a",))[0] < passes and taken(references=("a",))[1] < tables
    assert sum(taken(shapes=dict.fromkeys("abcde", MEDIUM))) > 2 * (passes + tables)


def test_rates_of_a_gpu_give_what_was_measured_on_one():
    """The record is of the shipped seeds' shape, in batches of 8,192 tokens, with attention all in fp32."""
    recorded = read_json(ROOT / "bench" / "h200.json")["parts"]
    tiny = Shape(layers=6, neurons=1024, width=256, vocabulary=8192, positions=256, parameters=6_900_000)
    setting = replace(SETTING, shapes={"a": tiny, "b": tiny}, blocks=200, device="cuda", precision="bf16")
    assert setting.batch == 32
    price = replace(GPUS["H200"][1], maps=GPUS["H200"][1].scores).prices(setting)
    done = forecast._forward(tiny, 6, 1e6, setting)
    rate = 1e6 / sum(number * price[term] for term, number in done.items())
    assert rate == pytest.approx(recorded["forward"]["measured"]["trunk_mixed"], rel=0.05)
    assert price["statistics"] == pytest.approx(recorded["elementwise"]["measured"]["native"], rel=0.05)
    peak = recorded["peak"]["measured"][0]
    assert price["products"] == pytest.approx(1 / peak["rate"], rel=0.05)


def test_the_shape_comes_from_the_config_alone(tmp_path):
    GPT2Config().save_pretrained(tmp_path)  # no weights there
    assert shape_of(str(tmp_path)) == SMALL


@given(
    chunks=st.integers(1, 12),
    holders=st.lists(st.integers(-1, 4), min_size=12, max_size=12),
    merged=st.booleans(),
    processes=st.integers(1, 4),
)
def test_every_chunk_is_counted_once_whoever_died(chunks, holders, merged, processes):
    done = {
        f"pass-00.state-{rank}": [holder == rank for holder in holders[:chunks]]
        for rank in range(5)
        if rank in holders[:chunks]
    }
    if merged and len(done) > 1:  # the last was merged into the first, which was saved, and the process died then
        first, last = min(done), max(done)
        done[first] = [a or b for a, b in zip(done[first], done[last], strict=True)]
    states, dealt, stale = shares(done, chunks, processes)
    counted = torch.zeros(chunks, dtype=torch.int64)
    for name in sum(states, []):
        counted += torch.tensor(done[name]).long()
    for own in dealt:
        counted[own] += 1
    assert (counted == 1).all()
    assert sorted(sum(states, []) + stale) == sorted(done) and max(map(len, dealt)) - min(map(len, dealt)) <= 1


@given(count=st.integers(1, 40))
def test_what_all_processes_hold_comes_to_the_first_once(count):
    held, waiting = {rank: [rank] for rank in range(count)}, list(reversed(range(count)))
    for rank in waiting:  # a process sends once it has heard from all that it takes over from
        sources, target = tree(rank, count)
        for source in sources:
            assert tree(source, count)[1] == rank and source > rank
            held[rank] += held.pop(source)
        assert (target is None) == (rank == 0)
        assert len(sources) <= math.ceil(math.log2(count)) if count > 1 else not sources
    assert sorted(held.pop(0)) == list(range(count)) and not held


def test_a_file_of_another_machine_is_waited_for_but_not_for_hours(monkeypatch, tmp_path):
    slept, late = [], tmp_path / "late"

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == 3:
            late.touch()

    monkeypatch.setattr("time.sleep", sleep)
    assert Processes().appeared(late) == late and len(slept) == 3
    with pytest.raises(InputError, match="does not see .*missing, which the first process has written"):
        Processes().appeared(tmp_path / "missing")
    assert sum(slept) < 200


def test_processes_started_again_do_not_read_what_dead_ones_left(monkeypatch):
    """torchrun keeps its store over a restart; the second process comes first and must not take the old answer."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def client(_):
        yield dist.TCPStore("127.0.0.1", server.port, is_master=False, wait_for_workers=False), 0, 2

    monkeypatch.setattr(dist, "rendezvous", client)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for content in ("first start", "second start"):
        heard = []
        monkeypatch.setenv("RANK", "1")
        second = threading.Thread(target=lambda heard=heard: heard.append(Processes().agree(None)))
        second.start()
        time.sleep(0.3)
        monkeypatch.setenv("RANK", "0")
        assert Processes().agree(content) == content
        second.join(timeout=20)
        assert heard == [content]


def test_the_forecast_of_seeds_of_different_shape(make_run, seed_folders, tmp_path):
    deeper = save_seed(small_model(7, layers=3), tmp_path / "deeper")
    params = make_run({"a": seed_folders["a"], "d": deeper}, products="sketch", sketch_rows=64).params
    said = forecast.lines(params)
    assert not params.folder.exists(), "a forecast writes no labels"
    assert said[0].startswith("run test: 2 seeds of 2 × 48 or 3 × 48 neurons, 1 pairs, 5,120 tokens, sketch products")
    assert said[1].startswith("passes over the text: 1, ") and said[2].startswith("pass 1: ")
    assert [line.split(":")[0] for line in said[3:6]] == ["tables", "operations", "disk"]
    assert [line.split(",")[0].split(":")[0] for line in said[-3:]] == [
        "time on this machine",
        "time on one H100",
        "time on one H200",
    ]


def test_a_sample_with_labels_takes_its_share_of_the_label_sums(make_run, seed_folders):
    params = make_run(seed_folders).params
    found = []
    for label_tokens in (10 * 256, 20 * 256, 10**9):
        setting = setting_of(
            params.model_copy(update={"label_tokens": label_tokens}),
            seed_shapes(params),
            torch.device("cpu"),
            groups=(("token_labels", 9, "sum"),),
        )
        passes, _ = work(pack(setting), 1)
        found.append((passes["label sums"], passes["labels"]))
    assert found[0] == (found[1][0] / 2, found[1][1] / 2) and found[1] == found[2]


def test_a_gpu_that_is_too_small_is_told_after_the_rest(monkeypatch, make_run, seed_folders):
    monkeypatch.setattr(prices, "GPUS", {"small": (1e6, GPUS["H100"][1]), "H100": GPUS["H100"]})
    told = forecast.lines(make_run(seed_folders).params)
    assert told[-1] == "does not fit into the memory of one small" and "time on one H100" in told[-2]


def test_a_report_says_what_it_will_take_until_its_passes_are_done(make_run, seed_folders, tmp_path):
    params = make_run(seed_folders).params
    said = r"test: about \d minutes, 4 GB of memory and 1 GB of disk on this machine"  # mostly chapters being drawn
    assert re.fullmatch(said, announcement(params))
    (params.folder / "stats").mkdir(parents=True)
    (params.folder / "stats" / "done.json").write_text("{}")
    assert announcement(params) is None
    with pytest.raises(InputError, match="seed 'b': there is no folder"):
        announcement(make_run({"a": seed_folders["a"], "b": tmp_path / "missing"}, run="other").params)


def test_the_limits_of_control_groups_above_this_process_are_seen(tmp_path):
    """As Slurm sets them (version 2, in a group above the own), and containers of old hosts (version 1)."""
    groups, root = tmp_path / "cgroup", tmp_path / "fs"
    for place, limit in (
        ("job/memory.max", "8000"),
        ("job/step/memory.max", "max"),
        ("memory/box/memory.limit_in_bytes", "5000"),
        ("other/memory.max", "1"),
    ):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_text(limit + "\n")
    groups.write_text("0::/job/step\n")
    assert control_group_limits(groups, root) == [8000]
    groups.write_text("5:cpu,cpuacct:/box\n4:memory:/box\n")
    assert control_group_limits(groups, root) == [5000]
    assert control_group_limits(tmp_path / "none", root) == []
