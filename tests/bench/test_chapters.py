"""Prices of chapters: fitted to what was measured, and forecasts near what finished reports took."""

from dataclasses import asdict, replace

import pytest

from bench.chapters import fitted, forecast, setting_from
from lib.base.files import read_json
from lib.collect import prices
from lib.collect.planner import Setting, Shape, pack

TINY = Shape(layers=6, neurons=1024, width=256, vocabulary=8192, positions=256, parameters=6_900_000)
SMALL = Shape(layers=12, neurons=3072, width=768, vocabulary=50257, positions=1024, parameters=124_439_808)
LLAMA = Shape(layers=30, neurons=1536, width=576, vocabulary=49152, positions=8192, parameters=134_515_008)
WIDE = 3e11


def setting(shape: Shape, seeds: str, blocks: int) -> Setting:
    return Setting(dict.fromkeys(seeds, shape), ("a",), blocks, 256, "bf16", "sketch", 16384, 1e12)


def test_prices_are_found_again_from_runs_of_three_shapes():
    planted, runs = {}, []
    for number, name in enumerate(prices.chapter_work(setting(TINY, "ab", 800), True)):
        planted[name] = {"start": 5.0 + number, "neurons": 0.2 * number, "operations": 0.5 + number / 4}
    for shape, seeds, blocks in ((TINY, "abcde", 800), (SMALL, "abcde", 80), (LLAMA, "ab", 16)):
        one = setting(shape, seeds, blocks)
        taken = {}
        for name, (neurons, operations) in prices.chapter_work(one, shape != LLAMA).items():
            price = planted[name]
            drawing = price["start"] + price["neurons"] * neurons / 2
            taken[name] = drawing, price["neurons"] * neurons / 2 + price["operations"] * operations / WIDE
        runs.append({"setting": asdict(one), "interventions": shape != LLAMA, "chapters": taken})
        assert setting_from(runs[-1]["setting"]) == one
    found = fitted(runs, WIDE)
    for name, price in planted.items():
        grows = prices.chapter_work(setting(TINY, "ab", 800), True)[name]
        for part, value in price.items():
            if part != "operations" or grows[1]:
                assert found[name][part] == pytest.approx(value, rel=1e-6), (name, part)


@pytest.mark.parametrize("run", read_json(prices.CHAPTERS)["runs"], ids=lambda run: run["run"])
def test_the_forecast_of_a_finished_report_is_within_a_fifth(run):
    expected = forecast(run, read_json(prices.CHAPTERS))
    assert sum(expected.values()) == pytest.approx(sum(run["seconds"].values()), rel=0.2)


@pytest.mark.parametrize(("shape", "seeds"), [(TINY, "abcde"), (SMALL, "abcde"), (LLAMA, "ab")])
def test_chapters_grow_with_the_run_and_go_faster_on_a_gpu(shape, seeds):
    def taken(wide=WIDE, interventions=True, **changes):
        one = replace(setting(shape, seeds, 800), **changes)
        assert len(pack(one).passes) == 1
        return prices.chapter_seconds(prices.chapter_work(one, interventions), wide)

    whole = taken()
    assert {"01", "02", "03", "04", "05", "06", "07", "pages"} <= set(whole) and min(whole.values()) > 0
    gpu = taken(wide=prices.GPUS["H200"][1].wide)
    assert all(gpu[name] <= whole[name] for name in whole) and gpu["06"] < whole["06"]
    assert taken(interventions=False)["06"] < whole["06"] and taken(blocks=80)["06"] < whole["06"]
    assert taken(references=tuple(seeds))["04"] > whole["04"]


def test_two_chapters_are_made_at_a_time_and_06_last():
    each = {"01": 5.0, "02": 5.0, "03": 60.0, "04": 50.0, "05": 20.0, "06": 100.0, "07": 10.0, "pages": 7.0}
    # 05, 04 and 07 on one side, 01, 02 and 03 on the other, then 06
    assert prices.report_seconds(each) == 70 + 100 + 7
