"""Runs side by side: what is refused, and settings, shares and verdicts of each run."""

import json
import shutil

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


def test_a_run_without_ledger_is_unfinished(folders):
    (folders / "tiny" / "tables" / "ledger.parquet").unlink()
    with pytest.raises(InputError, match="make report RUN=tiny"):
        runs.finished_runs(["mine", "tiny"])


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
