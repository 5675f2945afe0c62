"""Runs side by side: what is refused, and settings, shares and verdicts of each run."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from lib.base.errors import InputError
from lib.base.params import read_params, write_params
from lib.base.tensors import write_table
from lib.chapters.published import captions_runs as captions
from lib.chapters.published import figures_runs as figures
from lib.chapters.published import runs
from lib.run import Run
from tests.base.test_params import is_sentence


@pytest.fixture
def folders(complete, tmp_path, monkeypatch):
    """The complete run as `tiny`, and as `mine` with another threshold and another verdict of its first claim."""
    monkeypatch.setattr("lib.base.params.OUTPUTS", tmp_path)
    for name, threshold in (("tiny", 0.5), ("mine", 0.0)):
        for part in ("stats", "tables"):
            shutil.copytree(complete.folder / part, tmp_path / name / part)
        params = read_params(complete.folder / "params.yaml", run=name, threshold=threshold)
        write_params(params, tmp_path / name / "params.yaml")
    ledger = pd.read_parquet(tmp_path / "mine" / "tables" / "ledger.parquet")
    ledger.loc[ledger.index[-1], ["verdict", "here"]] = ["holds", "0.5 % (0.4 % to 0.6 %, 95 % over 3 seeds); a note"]
    write_table(tmp_path / "mine" / "tables" / "ledger.parquet", ledger)
    return tmp_path


@pytest.mark.parametrize(
    "names, expected",
    [
        ("mine", "RUNS is mine"),
        ("", "RUNS is nothing"),
        ("mine mine", "RUNS is mine and mine"),
        ("mine none", "run 'none' is missing"),
        ("mine half", "run 'half' is unfinished, outputs/half has no params.yaml"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused_in_a_sentence(folders, capsys, names, expected):
    (folders / "half").mkdir()
    assert runs.main([names]) == 2
    said = capsys.readouterr().err.removeprefix("error: ").strip()
    assert said.startswith(expected) and is_sentence(said) and not (folders / "mine" / runs.RECORD).exists()


def test_a_run_without_tables_is_unfinished(folders):
    (folders / "tiny" / "tables" / "neurons_all_seeds.parquet").unlink()
    with pytest.raises(InputError, match="make report RUN=tiny"):
        runs.finished_runs(["mine", "tiny"])


def test_runs_without_ledger_are_compared_in_the_rest(folders):
    (folders / "tiny" / "tables" / "ledger.parquet").unlink()
    both = runs.finished_runs(["mine", "tiny"])
    assert runs.settings(both).loc[1, ["holds", "cannot tell"]].tolist() == ["–", "–"]
    assert list(runs.ledgers(both)) == ["claim", "mine", "agree"]
    assert "Fewer than two" in captions.ledgers(runs.ledgers(both))
    (folders / "mine" / "tables" / "ledger.parquet").unlink()
    assert "Fewer than two" in captions.ledgers(runs.ledgers(both))


def by_size(neurons: list[int], alpha: float, spread: float, seeds: int = 9) -> pd.DataFrame:
    """Runs of these sizes whose numbers of universal neurons follow a power law, with noise from seed to seed."""
    generator, rows = np.random.default_rng(3), []
    for number in neurons:
        for seed in range(seeds):
            universal = 0.8 * number**alpha * np.exp(spread * generator.normal())
            rows.append((f"seed{seed}", number, universal, f"size{number}", universal / number))
    return pd.DataFrame(rows, columns=["seed", "neurons", "universal", "run", "share"])


def test_the_exponent_of_a_power_law_is_found_with_its_interval():
    exact = runs.exponent(by_size([3072, 6144, 12288, 36864], 0.7, 0))
    assert exact["alpha"] == pytest.approx(0.7) and exact["constant"] == pytest.approx(np.log(0.8))
    assert exact["low"] == pytest.approx(0.7) and exact["high"] == pytest.approx(0.7)
    table = by_size([3072, 6144, 12288, 36864, 98304], 0.7, 0.3)
    fit = runs.exponent(table)
    assert fit["low"] < 0.7 < fit["high"] and fit["low"] < fit["alpha"] < fit["high"]
    # the standard error of the slope, from the variance of each size's mean (delta method)
    x = np.log(sorted(table["neurons"].unique()))
    weights = (x - x.mean()) / np.square(x - x.mean()).sum()
    mean, error = (getattr(table.groupby("neurons")["universal"], how)() for how in ("mean", "sem"))
    expected = np.sqrt(np.square(weights * error / mean).sum())
    assert (fit["high"] - fit["low"]) / (2 * 1.96) == pytest.approx(expected, rel=0.2)
    said = captions.sizes(table, fit)
    assert "falls with size" in said.text and f"{fit['alpha']:.2f}" in said.title
    assert len(figures.sizes(table, fit).axes) == 2


def test_sizes_without_universal_neurons_have_no_logarithm(folders):
    table = by_size([100, 200, 400], 1.5, 0.01)
    table.loc[table["neurons"] == 100, ["universal", "share"]] = 0
    fit = runs.exponent(table)
    assert fit["alpha"] == pytest.approx(1.5, abs=0.05) and (fit["sizes"], fit["left_out"]) == (2, 1)
    said = captions.sizes(table, fit)
    assert "rises with size" in said.text and "Not in the fit: 1 size without universal" in said.text
    table["universal"] = table["universal"].where(table["neurons"] == 400, 0)
    assert runs.exponent(table) is None and "No exponent" in captions.sizes(table, None).title
    figures.sizes(table, None)
    found = runs.sizes(runs.finished_runs(["mine", "tiny"]))
    assert found["neurons"].tolist() == [96] * 6 and found["share"].equals(found["universal"] / found["neurons"])
    assert found.groupby("run")["share"].mean()["mine"] == pytest.approx(
        runs.shares(runs.finished_runs(["mine", "tiny"])).loc[0, "universal"]
    )


def test_the_first_run_notes_all_names(folders):
    assert runs.main(["mine tiny"]) == 0
    assert json.loads((folders / "mine" / runs.RECORD).read_text()) == {"runs": ["mine", "tiny"]}
    opened = runs.open_runs(folders / "mine" / "params.yaml")
    assert [run.params.run for run in opened] == ["mine", "tiny"]
    assert [run.params.run for run in runs.open_runs(folders / "mine" / "params.yaml", ["tiny", "mine"])][0] == "tiny"


def test_tables_have_what_each_run_has(folders):
    both = runs.finished_runs(["mine", "tiny"])
    table = runs.settings(both)
    assert table["threshold"].tolist() == [0.0, 0.5] and table["layers × neurons"].tolist() == ["2 × 48"] * 2
    counted = both[1].table("ledger")["verdict"].value_counts()
    assert table.loc[1, "cannot tell"] == counted["cannot tell"]
    assert "**threshold**" in captions.settings(table)

    shares = runs.shares(both)
    excess = Run(both[0].params).table("neurons_all_seeds")["excess_corr"]
    assert shares.loc[0, "universal"] == pytest.approx((excess > 0).mean())
    curves = runs.curves(both)
    assert curves["mine"].equals(curves["tiny"].rename("mine")) and curves["mine"].iloc[0] == pytest.approx(
        shares.loc[0, "universal"]
    )
    said = captions.curves(shares)
    assert "each run's own threshold" in said.title and "in mine and" in said.title
    assert len(figures.curves(curves, shares, 96).axes[0].lines) >= 4
    same = captions.curves(pd.concat([shares.iloc[:1], shares.iloc[:1].assign(run="other")]))
    assert "equally many" in same.title


def test_claims_on_which_runs_differ_come_first(folders):
    both = runs.finished_runs(["mine", "tiny"])
    table = runs.ledgers(both)
    last = both[0].table("ledger").iloc[-1]
    assert table["agree"].tolist() == [False] + [True] * (len(table) - 1)
    assert table.loc[0, "claim"] == last["claim"] and table.loc[0, "mine"] == "holds: 0.5 %"
    assert f"the same on **{len(table) - 1}** of {len(table)} claims" in captions.ledgers(table)
    ledger = both[1].table("ledger").iloc[:-1]
    write_table(both[1].folder / "tables" / "ledger.parquet", ledger)
    assert runs.ledgers(both).loc[0, "tiny"] == "–"
