"""A preview is a run of what a pass has saved so far; the pass goes on as if nobody had looked."""

import pytest

from lib.base.errors import InputError
from lib.chapters.universality.tables import tabulate
from lib.collect import passes
from lib.collect.one_pass import Pass
from lib.collect.passes import collect
from lib.collect.preview import main, preview

pytestmark = pytest.mark.usefixtures("without_grouped_moments")


def stopped(run, monkeypatch, at: int) -> None:
    """Runs a pass, saving after every batch, until it is interrupted at one."""
    real = Pass.advance

    def advance(self, number, bar=None):
        if number == at:
            raise KeyboardInterrupt
        real(self, number, bar)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(passes, "SAVE_SECONDS", 0)
        patched.setattr(passes, "SAVE_SHARE", float("inf"))
        patched.setattr(Pass, "advance", advance)
        collect(run)


def test_a_preview_shows_what_was_read(make_run, seed_folders, monkeypatch):
    run = make_run(seed_folders, products="sketch", sketch_rows=1024, token_budget=80 * 256)
    with pytest.raises(InputError, match="nothing to show yet"):
        preview(run)
    stopped(run, monkeypatch, at=1)
    with pytest.raises(InputError, match="first part"):
        preview(run)
    stopped(run, monkeypatch, at=9)
    before = sorted(path.name for path in (run.folder / "stats").iterdir())
    made = preview(run)
    tabulate(made)
    assert made.params.run == f"{run.params.run}-preview" and len(made.neurons) == 2 * 48
    assert 0 < made.done["preliminary"] < 1 and 0 < made.done["tokens_counted"] < 80 * 256
    assert sorted(path.name for path in (run.folder / "stats").iterdir()) == before
    first_pass = run.folder / "stats" / "pass-00.json"
    first_pass.write_text("{}")  # as where a second pass reads the labels
    with pytest.raises(InputError, match="labels are still read"):
        preview(run)
    first_pass.unlink()
    collect(run)
    assert run.done["tokens_counted"] > made.done["tokens_counted"]
    with pytest.raises(InputError, match="is complete"):
        preview(run)


def test_a_preview_of_no_run_says_what_begins_one(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["preview", "outputs/nothing/params.yaml"])
    assert main() == 2
    assert capsys.readouterr().err == (
        "error: there is no run in outputs/nothing to look at; `make report RUN=nothing` begins it.\n"
    )
