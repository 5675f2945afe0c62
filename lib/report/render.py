"""The pages of a report, from executed notebooks, tables and figures."""

import json
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from lib.base import params as parameters
from lib.base.files import read_json, write_if_changed
from lib.base.hub import seed_folder
from lib.base.params import Params, read_params
from lib.report.execute import skip_web_address_parsers

EXPLORER, LEDGER = "neurons.html", "ledger.html"  # the page of single neurons, and that of all claims
EXTRAS = {  # pages beside the chapters; minor ones stand in the menu of a narrow screen and at the foot of each page
    EXPLORER: {"title": "Neurons", "minor": False},
    LEDGER: {"title": "Ledger", "minor": False},
    "data.html": {"title": "Data and provenance", "minor": True},
    "glossary.html": {"title": "Glossary", "minor": True},
}


def render(folder: Path) -> Path:
    """Writes outputs/<run>/report and provenance.json; returns the path of the front page."""
    skip_web_address_parsers()
    from lib.base.tensors import write_table, write_tables_shown
    from lib.report import front, notebook_pages, pages
    from lib.report.citation import citation
    from lib.report.explorer import can_explore
    from lib.report.explorer_files import write_explorer
    from lib.report.glossary import terms
    from lib.report.ledger_page import ledger_page
    from lib.report.search import with_index
    from lib.run import Run

    run = Run(read_params(folder / "params.yaml"))
    run.folder = folder
    report, explorable = folder / "report", can_explore(run)
    neurons = f"{EXPLORER}#{run.params.reference}/" if explorable else None
    notebooks = sorted((folder / "notebooks").glob("*.ipynb"))
    chapters = [notebook_pages.read_chapter(notebook, neurons) for notebook in notebooks]
    provenance = provenance_of(run.params, folder, {chapter.title: chapter.wall_seconds for chapter in chapters})
    claims = front.claims_of(run)
    if claims is not None:
        write_table(folder / "tables" / "ledger.parquet", claims.table)
    missing = {EXPLORER: not explorable, LEDGER: claims is None}
    extras = [about | {"name": name} for name, about in EXTRAS.items() if not missing.get(name)]
    shared = {"chapters": chapters, "provenance": provenance, "extras": extras, "citation": citation(provenance)}

    figures = front.figures_of(chapters)
    own = {"index": front.front_page(run, claims, figures), "data": front.data_page(run, provenance)}
    own["glossary"] = {"terms": terms()}
    if claims is not None:
        own["ledger"] = ledger_page(claims, chapters, figures)
    written, shown = {}, {name: table for chapter in chapters for name, table in chapter.tables.items()}
    for name, content in own.items():
        template = "front" if name == "index" else name
        html = pages.page(f"{template}.html.j2", current=f"{name}.html", **shared, **content)
        written[f"{name}.html"], tables = pages.finished(html, name)
        shown |= tables
    if claims is not None:
        shown["ledger"] = claims.table  # with the columns that the page leaves out
    neighbours = [{"name": "index.html", "title": "Overview"}, *chapters, None]
    for index, (chapter, notebook) in enumerate(zip(chapters, notebooks, strict=True)):
        written[chapter.name] = pages.page(
            "chapter.html.j2",
            current=chapter.name,
            chapter=chapter,
            notebook=notebook.name,
            sections=chapter.sections,
            previous=neighbours[index],
            next=neighbours[index + 2],
            **shared,
        )
    if explorable:
        written[EXPLORER] = write_explorer(run, report, **shared)
    written = with_index(written)

    for stale in set(report.glob("*.html")) - {report / name for name in written}:
        stale.unlink()
    write_tables_shown(report / "data", shown)
    write_if_changed(folder / "provenance.json", json.dumps(provenance, indent=2, ensure_ascii=False) + "\n")
    for name in sorted(written, key=lambda name: name == "index.html"):  # the front page last: make looks at its time
        (report / name).unlink(missing_ok=True)
        write_if_changed(report / name, written[name])
    return report / "index.html"


# ---------------------------------------------------------------- provenance


def provenance_of(params: Params, folder: Path, notebooks: dict[str, float | None]) -> dict:
    """Where a report comes from: code, versions, seeds, text, device and times, as far as they are known."""
    done = read_json(folder / "stats" / "done.json")
    hashes = done.get("seed_hashes", {})
    commit = _git("rev-parse", "HEAD")
    measured = ("blocks", "device", "device_name", "loops", "processes", "precision", "wall_seconds")
    measured += ("peak_memory_bytes", "preliminary")
    return {
        "run": params.run,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "parameters": params.model_dump(mode="json", exclude_none=True),
        "git_commit": commit,
        "git_dirty": bool(_git("status", "--porcelain", "--", ".", ":!outputs")) if commit else None,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": _package_versions(),
        "seeds": {name: _seed_provenance(params, name) | {"sha256": hashes.get(name)} for name in params.seeds},
        "text": {
            "source": params.text_title,
            "commit": read_json(folder / "text.json").get("commit"),
            "sha256": done.get("text_hash"),
            "tokens_counted": done.get("tokens_counted"),
        },
        "pass": {key: done.get(key) for key in measured},
        "notebooks": notebooks,
    }


def _seed_provenance(params: Params, name: str) -> dict[str, str | None]:
    """Where a seed comes from; for the Hub also its revision and commit."""
    source = {"source": params.seeds[name]}
    if not params.is_on_hub(name):
        return source
    folder = seed_folder(params, name)
    return source | {"revision": params.revision_of(name) or "main", "commit": folder.name if folder else None}


def _package_versions() -> dict[str, str]:
    """Installed versions of the packages that requirements.txt pins."""
    pins = re.findall(
        r"^([A-Za-z0-9_.-]+)==", (parameters.ROOT / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE
    )
    return {name: metadata.version(name) for name in pins}


def _git(*arguments: str) -> str | None:
    """git's answer about this repository, or None outside a checkout."""
    if not (parameters.ROOT / ".git").exists():
        return None
    command = ["git", "-C", parameters.ROOT, *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
