"""Plans hold every accumulator once and keep to the memory limit; chunks are shared without loss."""

import threading
import time
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config

from lib.base.errors import InputError
from lib.base.machine import control_group_limits
from lib.collect import forecast
from lib.collect.forecast import GPUS, operations, published, seconds
from lib.collect.planner import (
    INT8_SUMS,
    Plan,
    Setting,
    Shape,
    batch_blocks,
    pack,
    pass_memory,
    release_order,
    shape_of,
    units_of,
)
from lib.collect.processes import Processes, shares
from lib.kernels.covariance import multiplies_panels

pytestmark = pytest.mark.usefixtures("without_grouped_moments")

SMALL = Shape(layers=12, neurons=3072, width=768, vocabulary=50257, positions=1024, parameters=124_439_808)
SETTING = Setting(tuple("abcde"), tuple("abcde"), SMALL, blocks=80, context=256, precision="int8", memory=20e9)


@settings(max_examples=30, deadline=None)
@given(
    memory=st.floats(5e9, 80e9),
    seeds=st.integers(2, 6),
    alone=st.booleans(),
    precision=st.sampled_from(["fp64", "fp32", "int8"]),
)
def test_every_unit_lies_in_one_pass_that_fits(memory, seeds, alone, precision):
    names = tuple("abcdef"[:seeds])
    setting = replace(
        SETTING, seeds=names, references=names[-1:] if alone else names, memory=memory, precision=precision
    )
    plan = pack(setting)
    assert [unit for part in plan.passes for unit in part.units] == units_of(setting)
    pairs = sum(unit.memory for unit in units_of(setting) if unit.kind == "pair")
    assert pairs == len(setting.pairs) * SMALL.total**2 * setting.accumulator_bytes
    for part in plan.passes:
        assert pass_memory(setting, part) <= memory and part.chunk % setting.batch == 0
        depths = part.depths(SMALL.layers)
        for unit in part.units:
            assert depths[unit.seed] >= unit.stop and (unit.other is None or depths[unit.other] == SMALL.layers)
        held = set()
        met = set()
        for seed, later in release_order(part, depths):
            held.add(seed)
            met |= {(unit.seed, unit.other) for unit in part.units if {unit.seed, unit.other} <= held}
            held &= later
        assert met == {(unit.seed, unit.other) for unit in part.units if unit.other}  # every pair is held together once


def test_a_resumed_plan_keeps_its_passes():
    begun = pack(SETTING)
    again = pack(replace(SETTING, memory=60e9))
    assert len(again.passes) < len(begun.passes)
    assert Plan.resumed(again.setting, begun.as_json()).passes == begun.passes


def test_8_bit_products_of_long_contexts_stay_within_their_sums():
    small = replace(SETTING, shape=replace(SMALL, layers=2, neurons=256), blocks=100_000)
    for context, blocks in ((256, 64), (2048, 64), (4096, 32), (8192, 16)):
        parts = pack(replace(small, context=context)).passes
        assert (
            {part.chunk for part in parts} == {blocks} and blocks * context <= INT8_SUMS and INT8_SUMS * 127**2 <= 2**31
        )


@pytest.mark.parametrize(
    ("device", "context", "neurons", "text", "blocks"),
    [
        ("cpu", 256, 64, 4000, 8),
        ("cuda", 256, 64, 4000, 128),
        ("cuda", 256, 1024, 4000, 128),
        ("cuda", 256, 1025, 4000, 64),
        ("cuda", 256, 3072, 4000, 32),
        ("cuda", 1024, 16384, 4000, 32),
        ("cuda", 256, 64, 1171, 64),
        ("cuda", 256, 64, 200, 32),
    ],
)
def test_narrow_layers_go_in_larger_batches_through_a_gpu(device, context, neurons, text, blocks):
    assert batch_blocks(device, context, neurons, text) == blocks


def test_what_cannot_fit_is_refused():
    with pytest.raises(InputError, match="this run needs at least 2.1 GB"):
        pack(replace(SETTING, memory=1.75e9))


def test_operations_and_times_grow_with_pairs_and_tokens():
    plan = pack(SETTING)
    counted = operations(SETTING, plan)
    tokens = 80 * 256
    share = 13 / 24 if multiplies_panels(3072) else 3 / 4  # of a symmetric product
    assert counted["products"] == 2 * tokens * (10 * 36864**2 + share * 5 * 12 * 3072**2)
    speeds = published(SETTING, "H100")
    more = replace(SETTING, blocks=800)
    assert seconds(pack(more), speeds, 5)["passes"] > seconds(plan, speeds, 5)["passes"]
    assert seconds(plan, speeds, 5)["tables"] > seconds(plan, speeds, 1)["tables"] and set(GPUS) >= {"H100", "H200"}


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


def test_a_gpu_that_is_too_small_is_told_after_the_rest(monkeypatch, make_run, seed_folders):
    monkeypatch.setattr(forecast, "GPUS", {"small": GPUS["H100"] | {"memory": 1e6}, "H100": GPUS["H100"]})
    told = forecast.lines(make_run(seed_folders).params)
    assert told[-1] == "does not fit into the memory of one small" and "time on one H100" in told[-2]


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
