"""The report runner on fixture notebooks: what runs, what stops with which message, and what the pages hold."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from base64 import b64encode
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import lib
from lib.base.errors import InputError
from lib.base.files import file_sha256
from lib.base.params import ROOT, read_params
from lib.base.tensors import write_table
from lib.cache import PASS, code_of
from lib.chapters.universality import properties
from lib.display import findings
from lib.report import __main__ as report
from lib.report import archive, example, execute, glossary, ledger, notebook_pages, pages, render, resolve, search
from tests.base.test_params import is_sentence

pytestmark = pytest.mark.usefixtures("without_grouped_moments")

FIXTURES = ROOT / "tests" / "notebooks"
PIXEL = (  # a transparent PNG of one pixel
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """outputs/smoke below a temporary folder, with resolved parameters."""
    monkeypatch.setattr("lib.base.params.OUTPUTS", tmp_path)
    resolve.resolve(ROOT / "params" / "smoke.yaml", "smoke")
    return tmp_path / "smoke"


# ---------------------------------------------------------------- resolve


def test_resolve_writes_parameters_with_overrides_and_touches_nothing_the_second_time(folder):
    for file in ("params.yaml", "statistics.yaml"):
        os.utime(folder / file, (1, 1))
    resolve.resolve(ROOT / "params" / "smoke.yaml", "smoke")
    assert (folder / "params.yaml").stat().st_mtime == (folder / "statistics.yaml").stat().st_mtime == 1
    resolve.resolve(ROOT / "params" / "smoke.yaml", "smoke", seed="b")
    assert (folder / "params.yaml").stat().st_mtime > 1 and read_params(folder / "params.yaml").reference == "b"
    assert (folder / "statistics.yaml").stat().st_mtime == 1  # no new pass for another reference
    resolve.resolve(ROOT / "params" / "smoke.yaml", "smoke", tokens="10240")
    assert (folder / "statistics.yaml").stat().st_mtime > 1


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"tokens": "many"}, "token_budget is 'many'"),
        ({"tokens": "-5"}, "token_budget is '-5'"),
        ({"seed": "z"}, "reference is 'z'"),
    ],
)
def test_resolve_refuses_before_it_writes(folder, options, expected):
    before = (folder / "params.yaml").read_bytes()
    with pytest.raises(InputError, match=expected) as error:
        resolve.resolve(ROOT / "params" / "smoke.yaml", "smoke", **options)
    assert is_sentence(str(error.value)) and (folder / "params.yaml").read_bytes() == before


def test_resolve_refuses_a_folder_of_other_statistics_and_leaves_it_alone(folder):
    (folder / "stats").mkdir()
    (folder / "stats" / "key.json").write_text(json.dumps(read_params(folder / "params.yaml").statistics_key))
    before = (folder / "params.yaml").read_bytes()
    resolve.resolve(ROOT / "params" / "smoke.yaml", "smoke")
    with pytest.raises(InputError, match=r"token_budget = 20480 \(now 10240\)"):
        resolve.resolve(ROOT / "params" / "smoke.yaml", "smoke", tokens="10240")
    assert (folder / "params.yaml").read_bytes() == before


def test_resolve_notices_a_text_that_changed_since_the_pass(tmp_path, monkeypatch):
    monkeypatch.setattr("lib.base.params.OUTPUTS", tmp_path)
    text, file = tmp_path / "text.safetensors", tmp_path / "p.yaml"
    text.write_bytes(b"before")
    values = yaml.safe_load((ROOT / "params" / "smoke.yaml").read_text()) | {"text": str(text)}
    file.write_text(yaml.safe_dump(values))
    params = resolve.resolve(file, "smoke")
    key = tmp_path / "smoke" / "stats" / "key.json"
    key.parent.mkdir(parents=True)
    key.write_text(json.dumps(params.statistics_key | {"hashes": {"text": file_sha256(text)}}))
    resolve.resolve(file, "smoke")
    text.write_bytes(b"after")
    os.utime(text, (1, 1))  # however old the new file looks
    with pytest.raises(InputError, match="was made from other files \\(text changed") as error:
        resolve.resolve(file, "smoke")
    assert is_sentence(str(error.value))


def test_statistics_of_other_code_are_kept_with_a_note(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lib.base.params.OUTPUTS", tmp_path)
    done = tmp_path / "smoke" / "stats" / "done.json"
    done.parent.mkdir(parents=True)
    for code, noted in ((code_of(PASS), False), ("other", True)):
        done.write_text(json.dumps({"code": code}))
        resolve.resolve(ROOT / "params" / "smoke.yaml", "smoke")
        assert ("note: the code of the pass has changed" in capsys.readouterr().err) == noted
    assert done.exists()


def test_a_missing_compiler_is_said_once_before_the_passes(folder, monkeypatch, capsys):
    params = read_params(folder / "params.yaml")
    monkeypatch.setattr("lib.kernels.native.why_slower", lambda: "there is no g++")
    line = resolve.announcement(params)
    assert line.startswith("smoke: about ")
    assert capsys.readouterr().err == "note: there is no g++, so torch does the work of compiled loops, more slowly.\n"
    (folder / "stats").mkdir()
    (folder / "stats" / "done.json").touch()
    assert resolve.announcement(params) is None and capsys.readouterr().err == ""


@pytest.mark.parametrize("free, refused", [(1e8, True), (3e9, False)])
def test_a_full_disk_is_refused_or_named_before_anything_slow(tmp_path, monkeypatch, capsys, free, refused):
    params = read_params(ROOT / "params" / "smoke.yaml")
    monkeypatch.setattr(type(params), "folder", tmp_path / "not" / "yet")
    monkeypatch.setattr(resolve, "disk_usage", {tmp_path: SimpleNamespace(free=free)}.get)
    if refused:
        with pytest.raises(InputError, match=r"needs up to 4.0 GB of disk in .*, where 0.1 GB are free; free some"):
            resolve._check_disk(params, 4e9)
    else:
        resolve._check_disk(params, 4e9)
        assert capsys.readouterr().err.startswith("note: smoke needs up to 4.0 GB of disk")


# ---------------------------------------------------------------- execute


@pytest.fixture(scope="module")
def complete(tmp_path_factory) -> Path:
    """A run's folder with the executed fixture and its rendered report."""
    folder = tmp_path_factory.mktemp("run") / "smoke"
    folder.mkdir()
    shutil.copy(ROOT / "params" / "smoke.yaml", folder / "params.yaml")
    execute.execute(FIXTURES / "01_complete.ipynb", folder / "params.yaml")
    rows = [
        {"seed": seed, "neurons": 1000, "universal": count, "share": count / 1000, "mean_excess": 0.123, "dead": 0}
        for seed, count in {"a": 42, "b": 37, "c": 55}.items()
    ]
    write_table(folder / "tables" / "references.parquet", pd.DataFrame(rows))
    excess = np.repeat([0.6, 0.1] * 3, [42, 958, 37, 963, 55, 945])
    everyone = pd.DataFrame(
        {"seed": np.repeat(["a", "b", "c"], 1000), "layer": 0, "neuron": [*range(1000)] * 3, "excess_corr": excess}
    )
    everyone = everyone.assign(dead=False, **dict.fromkeys(properties.PROPERTIES, 0.5))
    write_table(folder / "tables" / "neurons_all_seeds.parquet", everyone)
    done = {
        "tokens_counted": 19681,
        "seed_hashes": {"a": "0" * 64},
        "shapes": dict.fromkeys("abc", (2, 500)),
        "wall_seconds": 61.2,
    }
    (folder / "stats").mkdir()
    (folder / "stats" / "done.json").write_text(json.dumps(done))
    render.render(folder)
    return folder


def test_notebook_runs_in_this_python_with_the_run_s_parameters(complete):
    executed = nbformat.read(complete / "notebooks" / "01_complete.ipynb", as_version=4)
    printed = [
        output for cell in executed.cells for output in cell.get("outputs", []) if output.get("name") == "stdout"
    ]
    assert printed[0].text.strip() == sys.executable  # although the notebook names a kernel that is not installed
    assert "Seed a, threshold 0.5" in executed.cells[-1].outputs[-1].data["text/markdown"]
    assert not (complete / "unfinished").exists()


def test_failing_cell_stops_with_its_error_and_keeps_what_ran(folder, capfd):
    (folder / "notebooks").mkdir()
    (folder / "notebooks" / "failing.ipynb").write_text("an earlier success")
    assert report.main(["execute", str(FIXTURES / "failing.ipynb"), str(folder / "params.yaml")]) == 1
    message = capfd.readouterr().err.strip()
    partial, log = folder / "unfinished" / "failing.ipynb", folder / "unfinished" / "failing.log"
    assert message.startswith("error: failing.ipynb stopped in cell [4] with ZeroDivisionError: division by zero")
    assert str(partial) in message and str(log) in message and "\n" not in message
    assert "return a / 0" in log.read_text() and "\x1b" not in log.read_text()
    assert "ZeroDivisionError" in partial.read_text()
    assert (folder / "notebooks" / "failing.ipynb").read_text() == "an earlier success"


def test_bad_input_in_a_notebook_is_only_its_sentence(folder, capfd):
    assert report.main(["execute", str(FIXTURES / "input_error.ipynb"), str(folder / "params.yaml")]) == 2
    expected = "error: reference is 'z', but must be the name of one of the seeds.\n"
    assert capfd.readouterr().err == expected


def test_full_disk_in_a_notebook_is_one_sentence(folder, capfd):
    assert report.main(["execute", str(FIXTURES / "full_disk.ipynb"), str(folder / "params.yaml")]) == 2
    message = capfd.readouterr().err
    assert message.startswith("error: no space left on the disk") and message.count("\n") == 1


def test_dying_kernel_is_one_sentence(folder, capfd):
    assert report.main(["execute", str(FIXTURES / "dying.ipynb"), str(folder / "params.yaml")]) == 1
    message = capfd.readouterr().err
    assert message.startswith("error: the kernel of dying.ipynb died in cell [4]") and message.count("\n") == 1
    assert (folder / "unfinished" / "dying.ipynb").exists()


def test_full_disk_while_rendering_is_one_sentence(complete, capfd, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("lib.report.render.write_if_changed", full)
    assert report.main(["render", str(complete)]) == 2
    assert capfd.readouterr().err.startswith("error: no space left on the disk")
    monkeypatch.undo()
    render.render(complete)


# ---------------------------------------------------------------- pages


def read_page(folder: Path, name: str) -> BeautifulSoup:
    return BeautifulSoup((folder / "report" / name).read_text(), "html.parser")


@pytest.mark.parametrize("name", ["index.html", "01_complete.html", "ledger.html", "data.html", "glossary.html"])
def test_a_page_fetches_nothing(complete, name):
    page = read_page(complete, name)
    notebook_pages.check_offline(page)
    assert not page.find_all(["iframe", "object", "embed", "video", "audio"])
    assert all(link["href"].startswith("data:") for link in page.find_all("link"))
    policy = page.find("meta", attrs={"http-equiv": True})["content"]
    script, index = page.find_all("script")  # our own, and the policy lets no other run; the search's index is data
    assert index["type"] == "application/json" and json.loads(index.string)
    assert not script.has_attr("src") and b64encode(sha256(script.string.encode()).digest()).decode() in policy
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy
    outside = re.findall(r"https?://[^\s\"'<]+", str(page))
    assert {address.split("/")[2] for address in outside} <= {"arxiv.org", "www.w3.org"}  # a link and MathML's name


def test_chapter_shows_equations_pictures_and_tables_and_folds_code(complete):
    page = read_page(complete, "01_complete.html")
    assert page.find("math", display="block").find("munder") and "\\frac" not in page.main.get_text()
    assert "costs $5 and not $10" in page.main.get_text() and page.find("code", string="$HOME")
    assert page.find("img")["alt"] == 'An orange "rectangle"' and page.find("img")["src"].startswith("data:image/png")
    assert all(block.find_parent("details") for block in page.select(".highlight"))
    folds = page.select("details.foot details.source > summary")  # of what stands at the end
    assert [fold.string for fold in folds] == ["Parameters in the notebook", "Parameters of this run"]
    assert not any(fold.has_attr("open") for fold in page.select(".body details, .opening details"))
    printed = [output.get_text() for output in page.select(".output_stream")]
    assert len(printed) == 1 and sys.executable in printed[0]  # what went to stderr is not part of a report
    assert page.select_one(".scroll > table th[scope=row]").string == "a"
    assert page.find("a", href="02_second.html#a-table") and page.find("h2", id="a-table")


def test_pages_lead_to_each_other(complete):
    for name in ("index.html", "01_complete.html"):
        page = read_page(complete, name)
        links = [link["href"] for link in page.select("nav.chapters a")]
        assert links == ["index.html", "01_complete.html", "ledger.html", "data.html", "glossary.html"]
        assert page.select_one("nav.chapters [aria-current]")["href"] == name
        ids = [element["id"] for element in page.find_all(id=True)]
        assert len(ids) == len(set(ids))


def test_front_page_says_what_was_computed(complete):
    text = " ".join(read_page(complete, "index.html").main.get_text().split())
    assert text.index("is called universal if") < text.index("4.20 % of seed a's neurons, 42 in all, are universal.")
    assert "is above 0.5 on average" in text and "In the paper's models it is 1.2 % to 4.2 %." in text
    assert "cannot tell A small share of the neurons, at least 1 %, is universal" in text
    assert "19,681 tokens" in text and "3 models that differ" in text and "Each has 2 layers of 500 neurons." in text
    assert "Does the runner do what it should?" in text and "was not measured in this run" in text


def test_front_page_without_tables_or_statistics(folder):
    render.render(folder)
    assert "Eight claims" not in read_page(folder, "index.html").get_text()
    assert not (folder / "report" / "ledger.html").exists()
    assert "a (reference)" in read_page(folder, "data.html").get_text()


def test_the_front_page_s_claims_lead_to_their_rows(complete):
    chips = read_page(complete, "index.html").select("a.chip")
    rows = read_page(complete, "ledger.html").select("table.ledger tr[id]")
    assert len(chips) == 8 and len(rows) == len(ledger.CLAIMS)
    assert {chip["href"] for chip in chips} < {f"ledger.html#{row['id']}" for row in rows}
    assert "@article{gurnee2024universal" in read_page(complete, "index.html").get_text()


def test_provenance_is_recorded_and_shown(complete):
    provenance = json.loads((complete / "provenance.json").read_text())
    assert provenance["packages"]["papermill"] and provenance["text"]["tokens_counted"] == 19681
    assert provenance["seeds"]["a"] == {"source": "data/seeds/a", "sha256": "0" * 64}
    assert provenance["notebooks"]["A fixture"] > 0
    assert "19,681 tokens counted" in read_page(complete, "01_complete.html").footer.get_text()
    text = read_page(complete, "data.html").main.get_text()
    assert "000000000000" in text and "19,681 tokens counted" in text and "1 min 1 s" in text and "papermill" in text


def test_pages_of_removed_chapters_are_deleted(folder):
    (folder / "report").mkdir()
    (folder / "report" / "00_gone.html").write_text("")
    render.render(folder)
    kept = {"index.html", "data.html", "glossary.html"}
    assert {path.name for path in (folder / "report").glob("*.html")} == kept


def test_a_run_without_examples_has_no_page_of_neurons(folder):
    (folder / "report").mkdir()
    (folder / "report" / "neurons.html").write_text("of an earlier run")
    render.render(folder)
    assert (
        "neurons.html" not in str(read_page(folder, "index.html").nav)
        and not (folder / "report" / "neurons.html").exists()
    )


# ---------------------------------------------------------------- archive


def test_archive_holds_the_report_and_sums_that_are_right(complete, capsys):
    assert archive.main([str(complete)]) == 0
    packed = complete.with_name("smoke.tar.gz")
    assert str(packed) in capsys.readouterr().out
    first = packed.read_bytes()
    with tarfile.open(packed) as tar:
        inside = {
            name.removeprefix("smoke/"): tar.extractfile(f"smoke/{name.removeprefix('smoke/')}").read()
            for name in tar.getnames()
        }
    sums = dict(line.split("  ")[::-1] for line in inside.pop("SHA256SUMS").decode().splitlines())
    assert sums == {name: sha256(data).hexdigest() for name, data in inside.items()}
    assert {"params.yaml", "provenance.json", "report/index.html", "tables/ledger.parquet"} <= set(inside) and not any(
        "stats" in name for name in inside
    )
    assert inside["report/index.html"] == (complete / "report" / "index.html").read_bytes()
    archive.main([str(complete)])
    assert packed.read_bytes() == first


def test_the_example_keeps_what_readers_need_and_stays_small(complete):
    for name, size in (
        ("figures/shown.png", 9),
        ("figures/hidden.png", 9),
        ("figures/shown.svg", 9),
        ("tables/large.parquet", example.LARGEST_TABLE + 1),
        ("tables/small.parquet", 9),
        ("report/data/1.parquet", 9),
        ("report/data/1.csv", 9),
        ("report/neurons/explorer.js", 9),
        ("report/neurons/seed.a.0.js", 9),
        ("notebooks/01.ipynb", 9),
        (f"notebooks/{example.NOTEBOOK}", 9),
        ("stats/pair.safetensors", 9),
    ):
        (complete / name).parent.mkdir(parents=True, exist_ok=True)
        (complete / name).write_bytes(b"x" * size)
    kept = {path.as_posix() for path in example.chosen(complete, {"shown.png"})}
    assert {
        "params.yaml",
        "provenance.json",
        "report/index.html",
        "figures/shown.png",
        "tables/small.parquet",
        "report/data/1.csv",
        "report/neurons/explorer.js",
        f"notebooks/{example.NOTEBOOK}",
    } <= kept
    assert (
        not {
            "notebooks/01.ipynb",
            "figures/hidden.png",
            "figures/shown.svg",
            "tables/large.parquet",
            "report/data/1.parquet",
            "report/neurons/seed.a.0.js",
        }
        & kept
    )
    assert not any(name.startswith("stats") for name in kept)


def test_the_example_names_what_is_left_out_and_has_no_broken_link(tmp_path):
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "here.parquet").touch()
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "x.png").touch()
    page = tmp_path / "report" / "index.html"
    page.parent.mkdir()
    links = [f'<a href="../tables/{name}.parquet">{name}.parquet</a>' for name in ("here", "gone")]
    links += ['<a data-gzip="H4sI" href="../figures/x.svg">SVG</a>', '<a href="../figures/x.png">PNG</a>']
    links += ['<a href="../figures/gone.png" download>PNG</a>', '<a href="data/x.parquet">Parquet</a>']
    page.write_text(f"<h1>Title</h1>{''.join(links)}")
    example.say_what_is_missing(page)
    assert (
        page.read_text() == f'<h1>Title</h1>\n{example.REDUCED}{links[0]}gone.parquet<a href="../figures/x.png">PNG</a>'
    )


def test_the_example_replaces_only_an_earlier_example(tmp_path):
    run, into = tmp_path / "run", tmp_path / "into"
    run.mkdir()
    example.refuse_other_folder(into, run)  # a new folder
    into.mkdir()
    example.refuse_other_folder(into, run)  # an empty one
    (into / "report").mkdir()
    (into / "screenshots").mkdir()
    example.refuse_other_folder(into, run)
    (into / "notes.txt").touch()
    (tmp_path / "file").touch()
    for folder, expected in (
        (into, "it has notes.txt"),
        (tmp_path / "file", "is a file"),
        (run, "must not lie in the run"),
        (tmp_path, "is not an example report"),
    ):
        with pytest.raises(InputError, match=expected) as error:
            example.refuse_other_folder(folder, run)
        assert is_sentence(str(error.value))
    (into / "notes.txt").unlink()
    (into / "screenshots").rmdir()
    with pytest.raises(InputError, match="it has no screenshots"):
        example.refuse_other_folder(into, run)


def test_archive_of_a_report_made_with_other_parameters_is_refused(complete, capsys):
    params = complete / "params.yaml"
    before = params.read_text()
    params.write_text(before.replace("threshold: 0.5", "threshold: 0.25"))
    assert archive.main([str(complete)]) == 2
    params.write_text(before)
    assert (
        "is not finished (it has no report for its params.yaml: threshold differed when it was made)"
        in capsys.readouterr().err
    )


def test_archive_of_an_unfinished_run_is_one_sentence(folder, capsys):
    assert archive.main([str(folder)]) == 2
    message = capsys.readouterr().err
    assert (
        message.startswith("error: the run in")
        and "is not finished (it has no provenance.json)" in message
        and message.count("\n") == 1
    )
    assert not folder.with_name("smoke.tar.gz").exists()


def write_notebook(path: Path, *cells) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=list(cells)), path)
    return path


def shown(data: dict, metadata: dict | None = None):
    return new_code_cell("show()", outputs=[new_output("display_data", data, metadata=metadata or {})])


@pytest.mark.parametrize(
    "cell, expected",
    {
        "picture without alt text": (shown({"image/png": PIXEL}), "no alt text"),
        "drawing without alt text": (shown({"image/svg+xml": "<svg/>"}), "no alt text"),
        "picture from outside": (new_markdown_cell("![a cat](https://example.org/cat.png)"), "would fetch"),
        "frame": (shown({"text/html": "<iframe src='//example.org'></iframe>"}), "would fetch"),
        "style from outside": (
            shown({"text/html": "<style>@import url(https://example.org/a.css)</style>"}),
            "would fetch",
        ),
        "unknown command": (new_markdown_cell(r"$\nosuchcommand x$"), "nosuchcommand"),
        "broken equation": (new_markdown_cell("$x_{$"), "not LaTeX"),
    }.values(),
)
def test_pages_that_could_not_be_shown_are_refused(folder, cell, expected):
    write_notebook(folder / "notebooks" / "01_bad.ipynb", cell)
    with pytest.raises(InputError, match=expected) as error:
        render.render(folder)
    assert str(error.value).startswith("01_bad.ipynb: ") and not (folder / "report").exists()


@pytest.mark.parametrize("content", [lambda whole: whole[:-100], lambda _: b"", lambda _: b"{}", lambda _: b"[1]"])
def test_an_executed_notebook_cut_short_is_one_sentence(complete, folder, capfd, content):
    whole = (complete / "notebooks" / "01_complete.ipynb").read_bytes()
    (folder / "notebooks").mkdir()
    (folder / "notebooks" / "01_complete.ipynb").write_bytes(content(whole))
    assert report.main(["render", str(folder)]) == 2
    error = capfd.readouterr().err
    assert "01_complete.ipynb is cut short or no notebook; delete it and run" in error and error.count("\n") == 1


def test_drawing_with_alt_text_is_embedded(tmp_path):
    cell = shown({"image/svg+xml": "<svg/>"}, {"image/svg+xml": {"alt": "nothing drawn"}})
    chapter = notebook_pages.read_chapter(write_notebook(tmp_path / "x.ipynb", new_markdown_cell("# X"), cell))
    assert 'alt="nothing drawn"' in chapter.rest and "data:image/svg+xml;base64" in chapter.rest


def test_a_section_whose_code_shows_nothing_is_left_out(tmp_path):
    silent = shown({})
    silent.outputs = []
    cells = (
        new_markdown_cell("# X"),
        silent,
        new_markdown_cell("## Empty\n\nnothing here"),
        silent,
        new_markdown_cell("## Words"),
        new_markdown_cell("## Full"),
        silent,
        shown({"text/plain": "seen"}),
    )
    chapter = notebook_pages.read_chapter(write_notebook(tmp_path / "x.ipynb", *cells))
    assert [name for _, name in chapter.sections] == ["Words", "Full"] and "nothing here" not in chapter.rest


IN_SHORT = findings.in_short([findings.Finding("**5 %** of <it>.", "made"), findings.Finding("No.", "not_made")]).data


def test_a_page_opens_with_its_findings_and_ends_with_its_parameters(tmp_path):
    picture = shown({"image/png": PIXEL}, {"image/png": {"alt": "a dot", "name": "made"}})
    cells = (
        new_markdown_cell("# X\n\n**Question.** Why?\n\nThis chapter follows section 3."),
        new_code_cell("threshold = None", metadata={"tags": ["parameters"]}),
        new_code_cell(
            "import x",
            outputs=[new_output("stream", name="stdout", text="x 1.0"), *shown({"text/html": "<p>origin</p>"}).outputs],
        ),
        new_markdown_cell("## Result\n\n$$x$$"),
        picture,
        new_code_cell("in_short()", metadata={"tags": ["in-short"]}, outputs=shown({"text/html": IN_SHORT}).outputs),
    )
    chapter = notebook_pages.read_chapter(write_notebook(tmp_path / "x.ipynb", *cells))
    opening, rest = (BeautifulSoup(part, "html.parser") for part in (chapter.opening, chapter.rest))
    assert [element.name for element in opening.h1.find_next_siblings()] == ["p", "div"] and chapter.question == "Why?"
    assert [pages.plain(item) for item in opening.select(".in-short li")] == ["5 % of <it>. figure", "No."]
    assert opening.select_one(".in-short a")["href"] == "#made" and rest.find(id="made")
    foot = rest.find_all(recursive=False)[-1]
    assert foot["class"] == ["foot"] and "follows section 3" in foot.get_text() and "x 1.0" in foot.get_text()
    body = rest.get_text().removesuffix(foot.get_text())
    assert "origin" in body and "threshold" not in body and "in_short" not in rest.get_text()
    assert rest.select_one("span.equation > math") and [title for _, title in chapter.sections] == ["Result"]


def test_terms_are_explained_where_a_page_first_uses_them():
    soup = BeautifulSoup(
        "<h2>Seeds</h2><p><a>seed</a> <code>seed</code> Seeds and seeds, baseline_draws</p><p>seed</p>", "html.parser"
    )
    glossary.mark_terms(soup)
    (link,) = soup.select("a.term")
    assert (
        link.get_text() == "Seeds" and link["href"] == "glossary.html#term-seed" and "random seed" in link["data-note"]
    )


def test_names_of_neurons_and_heads_are_explained():
    soup = BeautifulSoup("<p>L5.12 and L4H3, not XL5.1</p><code>L5.2</code>", "html.parser")
    pages.explain_names(soup)
    assert [(name.get_text(), name["title"]) for name in soup.find_all("abbr")] == [
        ("L5.12", "layer 5, neuron 12"),
        ("L4H3", "layer 4, head 3"),
    ]


def test_the_search_knows_pages_sections_figures_claims_and_terms(complete):
    index = json.loads(read_page(complete, "01_complete.html").find(id="search-index").string)
    by_place = {(page, anchor): (title, text) for page, anchor, title, text in index}
    assert by_place["01_complete.html", ""] == ("A fixture", "Does the runner do what it should? It says so here.")
    assert by_place["01_complete.html", "excess-correlation"][1].startswith("With")
    assert by_place["01_complete.html", "figure-1"][0] == 'An orange "rectangle"'
    assert "cannot tell" in by_place["ledger.html", "claim-universal_share"][1]
    assert by_place["glossary.html", "term-seed"][0] == "seed"
    made = {path.name: BeautifulSoup(path.read_text(), "html.parser") for path in (complete / "report").glob("*.html")}
    assert all(made[page].find(id=anchor) for page, anchor in by_place if anchor)
    assert (
        "</script>"
        not in search.with_index({"x.html": "<main><h1>&lt;/script&gt;</h1></main>@search-index@"})["x.html"]
    )


def test_scripts_are_left_out(tmp_path):
    cells = (
        shown({"text/html": "<p>kept</p><script>alert(1)</script>"}),
        shown({"application/javascript": "alert(1)"}),
    )
    chapter = notebook_pages.read_chapter(write_notebook(tmp_path / "x.ipynb", new_markdown_cell("# X"), *cells))
    assert "kept" in chapter.rest and "alert" not in chapter.rest


def test_symbols_have_their_index_below_the_line(tmp_path):
    cells = (
        new_markdown_cell("# X\n\nThe w_out of & `w_out`, w_in_norm"),
        shown({"text/html": "<table><thead><tr><th>w_in</th></tr></thead></table>"}),
    )
    chapter = notebook_pages.read_chapter(write_notebook(tmp_path / "x.ipynb", *cells))
    assert (
        'The <i>w</i><span class="under">_</span><sub>out</sub> of &amp; <code>w_out</code>, w_in_norm'
        in chapter.opening
    )
    assert "<sub>in</sub>" in chapter.rest
    (table,) = chapter.tables.values()
    assert list(table.columns) == ["w_in"]


@pytest.mark.parametrize(
    "latex, expected",
    {
        r"w_{\mathrm{out}}": "<mi>out</mi>",
        r"\ln p": '<mi>ln</mi><mspace width="0.167em" /><mi>p</mi>',
        r"\begin{aligned} a &= b \\ c &= d \end{aligned}": "<mtable",
        r"a < b": "&lt;",
    }.items(),
)
def test_latex_becomes_mathml(latex, expected):
    assert expected in notebook_pages.mathml(latex)


@pytest.mark.parametrize(
    "text, formulas",
    [
        ("costs $5 or $10", 0),
        ("`$a$` and $b$", 1),
        ("$a$, $b$-th", 2),
        ("US$ 5 and 6 $", 0),
        (r"\$a$", 0),
        ("$$a$$", 1),
    ],
)
def test_dollars_of_prices_are_no_formulas(tmp_path, text, formulas):
    chapter = notebook_pages.read_chapter(write_notebook(tmp_path / "x.ipynb", new_markdown_cell(text)))
    assert chapter.opening.count("<math") == formulas


def test_punctuation_stays_with_its_formula(tmp_path):
    chapter = notebook_pages.read_chapter(
        write_notebook(tmp_path / "x.ipynb", new_markdown_cell("If $a$; then $b$ too."))
    )
    together = BeautifulSoup(chapter.opening, "html.parser").select("span.together")
    assert [span.get_text() for span in together] == ["a;"] and "; then" not in chapter.opening
    assert " ".join(BeautifulSoup(chapter.opening, "html.parser").get_text().split()) == "If a; then b too."


@pytest.mark.parametrize("seconds, text", [(1.23, "1.2 s"), (42, "42 s"), (61.2, "1 min 1 s"), (7260, "2 h 1 min")])
def test_duration_has_its_two_largest_units(seconds, text):
    assert pages.duration(seconds) == text


# ---------------------------------------------------------------- make


@pytest.fixture
def make(tmp_path):
    """make(*arguments) in a small copy of the repository whose Python only writes down which steps ran."""
    for name in ("Makefile", "requirements.txt", "constraints.txt", "params"):
        (shutil.copytree if name == "params" else shutil.copy)(ROOT / name, tmp_path / name)
    for name in (
        "notebooks/02_two.ipynb",
        "notebooks/04_four.ipynb",
        "notebooks/optional/published.ipynb",
        "notebooks/optional/runs.ipynb",
        "lib/chapters/universality/tables.py",
        "lib/chapters/universality/matching.py",
        "lib/chapters/universality/captions.py",
        "lib/chapters/families/scoring.py",
        "lib/chapters/families/captions.py",
        "lib/chapters/families/claims.py",
        "lib/collect/one_pass.py",
        "lib/display/plots.py",
        "lib/report/pages.py",
        "lib/report/templates/page.js",
        "lib/training/train.py",
        "lib/kernels/loops.cpp",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (1, 1))
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    fake_python = ROOT / "tests" / "fake_python.py"
    python.write_text(f"#!/bin/sh\nexec '{sys.executable}' '{fake_python}' \"$@\"\n")
    python.chmod(0o755)
    (tmp_path / ".venv" / ".ready").write_text("")

    def make(*arguments):
        log = tmp_path / "log"
        log.write_text("")
        # as a user's shell calls it, not as a make below the `make test` that runs this
        environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
        done = subprocess.run(["make", *arguments], cwd=tmp_path, capture_output=True, text=True, env=environment)
        steps = [line for line in log.read_text().split("\n") if line and line != "resolve"]
        runs = groupby(steps, key=lambda step: step.startswith("execute"))  # chapters are made in any order
        return done, [step for chapters, run in runs for step in (sorted(run) if chapters else run)]

    return make


def test_make_redoes_what_changed_and_nothing_else(make, tmp_path):
    both = ["execute 02_two", "execute 04_four", "render"]
    everything = ["collect", "tables", *both]
    done, steps = make("report")
    assert done.returncode == 0 and steps == everything, done.stderr
    assert done.stdout.splitlines()[-1] == f"Report: {tmp_path}/outputs/tiny/report/index.html"
    done, steps = make("report")
    assert steps == [] and done.stdout == f"Report: {tmp_path}/outputs/tiny/report/index.html\n"
    for file, expected in {
        "notebooks/04_four.ipynb": ["execute 04_four", "render"],
        "lib/chapters/universality/captions.py": ["execute 02_two", "render"],  # of one folder: its chapters alone
        "lib/chapters/families/captions.py": ["execute 04_four", "render"],
        "lib/chapters/families/claims.py": ["execute 04_four", "render"],
        "lib/chapters/families/scoring.py": ["execute 04_four", "render"],  # nothing of an earlier chapter
        "lib/chapters/universality/matching.py": ["tables", *both],
        "lib/display/plots.py": ["tables", *both],
        "lib/kernels/loops.cpp": ["tables", *both],
        "lib/collect/one_pass.py": ["tables", *both],  # never a new pass for an edit
        "lib/report/pages.py": ["render"],
        "lib/report/templates/page.js": ["render"],
        "lib/training/train.py": [],
    }.items():
        (tmp_path / file).touch()
        assert make("report")[1] == expected, file
        assert make("report")[1] == []
    assert make("report", "SEED=b")[1] == everything[1:]
    assert make("report", "SEED=b")[1] == []
    assert make("report", "RUN=other", "TOKENS=512")[1] == everything
    assert "token_budget: 512" in (tmp_path / "outputs" / "other" / "params.yaml").read_text()


def test_make_compare_adds_a_page_that_stays(make, tmp_path):
    make("report")
    assert make("compare", "PUBLISHED=p.csv")[1] == ["compare p.csv", "execute published", "render"]
    assert make("report")[1] == []
    (tmp_path / "notebooks/02_two.ipynb").touch()
    assert make("report")[1] == ["execute 02_two", "render"]
    (tmp_path / "lib/chapters/universality/tables.py").touch()
    assert make("report")[1] == ["tables", "execute 02_two", "execute 04_four", "execute published", "render"]
    assert make("compare", "PUBLISHED=other.csv", "RUN=new")[1][-5:] == [
        "compare other.csv",
        "execute 02_two",
        "execute 04_four",
        "execute published",
        "render",
    ]


def test_make_compare_lays_runs_side_by_side_in_the_first_ones_report(make, tmp_path):
    for run in ("mine", "tiny"):
        make("report", f"RUN={run}", "PARAMS=params/tiny.yaml")
    assert make("compare", "RUNS=mine tiny")[1] == ["compare runs mine tiny", "execute runs", "render"]
    assert (tmp_path / "outputs" / "mine" / "notebooks" / "runs.ipynb").exists()
    assert make("report", "RUN=mine", "PARAMS=params/tiny.yaml")[1] == []  # the page stays
    done, steps = make("compare", "RUNS=../mine tiny")
    assert done.returncode and not steps and "RUN is '../mine'" in done.stderr


def test_make_untrained_runs_the_report_on_untrained_models_and_shows_the_pages_again(make):
    chapters = ["execute 02_two", "execute 04_four"]
    assert make("report")[1] == ["collect", "tables", *chapters, "render"]
    done, steps = make("untrained", "TOKENS=512", "SEED=b")
    assert done.returncode == 0, done.stderr
    assert steps == ["prepare --tokens 512", "collect", "tables", *chapters, "render", "keep"]
    assert make("report")[1] == ["render"]


def test_make_refuses_bad_input_and_keeps_the_run(make, tmp_path):
    make("report")
    for arguments, expected in {
        ("report", "SEED=z"): "reference is 'z'",
        ("report", "TOKENS=x"): "token_budget is 'x'",
        ("report", "PARAMS=none.yaml"): "none.yaml does not exist",
        ("report", "RUN=../x"): "must be a folder name",
        ("clean", "RUN=.."): "must be a folder name",
        ("clean", "RUN="): "must be one folder name",
    }.items():
        done, steps = make(*arguments)
        assert done.returncode != 0 and expected in done.stderr and steps == []
    assert make("report")[1] == []
    assert make("clean", "RUN=tiny")[0].returncode == 0 and not (tmp_path / "outputs" / "tiny").exists()


def test_make_runs_a_stopped_notebook_again(make, tmp_path):
    (tmp_path / "notebooks" / "02_two.ipynb").write_text("fail")
    done, steps = make("report")
    assert done.returncode != 0 and "execute 02_two" in steps and "render" not in steps
    (tmp_path / "notebooks" / "02_two.ipynb").write_text("")
    assert make("report")[1] == ["execute 02_two", "render"]


def python_of(folder: Path, name: str, version: str) -> str:
    """A stand-in for a Python of some version, which writes down that it was asked to make an environment."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    major, minor, _ = version.split(".")
    path.write_text(
        f"""#!{sys.executable}
import sys
if sys.argv[1:3] == ["-m", "venv"]:
    open({str(folder / "made")!r}, "a").write({name!r} + "\\n")
    sys.exit(1)
sys.version_info = ({major}, {minor}, 1)
exec(sys.argv[2])
"""
    )
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    "there, chosen",
    [
        (["3.11.9", "3.12.1"], "python3.12"),
        (["3.13.0", "3.12.1"], "python3.13"),
        (["3.11.2", "3.14.0"], "python3.11"),
        (["3.14.0", "3.10.1"], None),
        ([], None),
    ],
)
def test_make_takes_the_newest_python_that_the_packages_are_for(make, tmp_path, monkeypatch, there, chosen):
    for version in there:
        python_of(tmp_path / "bin", f"python{version.rpartition('.')[0]}", version)
    (tmp_path / "bin").mkdir(exist_ok=True)
    (tmp_path / "bin" / "python3.13").touch()  # not to be run, like a shim of a version that is not installed
    python_of(tmp_path / "bin", "python3", "3.14.0")
    (tmp_path / "bin" / "make").symlink_to(shutil.which("make"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    done, _ = make("report", "VENV=other")
    if chosen is None:
        assert done.stderr.startswith("error: Python 3.11, 3.12 or 3.13 is needed, but python3 is 3.14.1; name one")
    else:
        assert (tmp_path / "bin" / "made").read_text() == f"{chosen}\n", done.stderr
    assert done.returncode != 0


def test_make_says_which_python_is_missing(make, tmp_path):
    done, _ = make("report", "VENV=other", "PYTHON=python-that-is-not-there")
    expected = "error: Python 3.11, 3.12 or 3.13 is needed, but there is no python-that-is-not-there"
    assert done.returncode != 0 and expected in done.stderr
    python_of(tmp_path / "old" / "bin", "python", "3.10.4")
    done, _ = make("report", "VENV=old")
    assert done.returncode != 0 and "is needed, but old/bin/python is 3.10.1; delete that environment" in done.stderr


def test_the_versions_of_python_are_the_same_everywhere():
    newest_first = " ".join(reversed(lib.PYTHONS))
    assert f"PYTHONS = {newest_first}\n" in (ROOT / "Makefile").read_text()
    after = lib.PYTHONS[-1].split(".")
    bounds = f"python>={lib.PYTHONS[0]},<{after[0]}.{int(after[1]) + 1}\n"
    assert bounds in (ROOT / "environment.yml").read_text()


def test_make_needs_nothing_of_gnu_or_linux_beside_make():
    recipes = [line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("\t")]
    gnu = re.compile(
        r"\b(sed -i|readlink -f|realpath|stat -c|cp -[a-z]*[ta]|nproc|timeout|flock|date -d|grep -P)\b|--\w+=\S* rm"
    )
    assert not [line for line in recipes if gnu.search(line)]


# ---------------------------------------------------------------- make: names of runs, and two at once


@pytest.mark.parametrize(
    "name", ["a:b", "a$b", "a$(x)", "a[b", "a]", "a*", "a?", "a'b", 'a"b', "a;b", "a#b", "a%b", "-a", "a\\b"]
)
def test_make_refuses_names_that_make_or_a_shell_would_read_otherwise(make, tmp_path, name):
    done, steps = make("report", f"RUN={name}")
    assert done.returncode != 0 and steps == [] and not (tmp_path / "outputs").exists()
    assert f"RUN is '{name}', but must be a folder name of letters" in done.stderr and done.stderr.count("\n") == 1


def test_make_takes_a_parameter_file_of_any_name(make, tmp_path):
    name = "it's a$b [c]: d.yaml"
    shutil.copy(ROOT / "params" / "smoke.yaml", tmp_path / name)
    done, steps = make("report", "RUN=mine", f"PARAMS={name}")
    assert done.returncode == 0 and "render" in steps, done.stderr


def test_a_run_whose_name_looks_like_a_slip_is_refused(make, tmp_path):
    done, steps = make("report", "RUN=gpt2-smal")
    assert done.returncode != 0 and steps == [] and not (tmp_path / "outputs" / "gpt2-smal").exists()
    assert "RUN is 'gpt2-smal', but there is no params/gpt2-smal.yaml; give RUN=gpt2-small, or" in done.stderr


def test_a_second_report_of_a_run_is_one_sentence(make, tmp_path):
    python = str(tmp_path / ".venv" / "bin" / "python")
    lock = tmp_path / "outputs" / "cache" / "locks" / "tiny"
    first = subprocess.Popen([python, "-m", "lib.report", "alone", "tiny", "sleep", "100"], cwd=tmp_path)
    while not (lock.exists() and lock.read_text()):
        assert first.poll() is None
    done, steps = make("report")
    expected = (
        f"error: another `make report RUN=tiny` is at work (process {first.pid}); wait until it ends, or stop it.\n"
    )
    assert done.returncode != 0 and steps == [] and done.stderr.startswith(expected)
    assert not (tmp_path / "outputs" / "tiny").exists()
    first.kill()
    first.wait()
    assert "render" in make("report")[1]


def test_make_help_names_every_target(make):
    done, _ = make("help")
    targets = re.findall(r"^make (\w+) ", done.stdout, re.MULTILINE)
    assert {"help", "report", "compare", "archive", "test", "lab", "seeds", "lint", "clean"} <= set(targets)
