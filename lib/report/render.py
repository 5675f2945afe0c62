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
from lib.report.execute import leave_out_web_addresses

EXPLORER = "neurons.html"  # the page of single neurons, linked where there is one


def render(folder: Path) -> Path:
    """Writes outputs/<run>/report and provenance.json from the run's notebooks, tables and figures."""
    leave_out_web_addresses()
    from lib.base.tensors import write_table, write_tables_shown
    from lib.report import front, pages
    from lib.report.explorer import can_explore
    from lib.report.explorer_files import write_explorer
    from lib.run import Run

    params = read_params(folder / "params.yaml")
    report = folder / "report"
    run = Run(params)
    run.folder = folder  # which need not be where a run of this name writes
    explorable = can_explore(run)
    neurons = f"{EXPLORER}#{params.reference}/" if explorable else None
    chapters = [pages.read_chapter(notebook, neurons) for notebook in sorted((folder / "notebooks").glob("*.ipynb"))]
    provenance = provenance_of(params, folder, {chapter.title: chapter.wall_seconds for chapter in chapters})
    extras = [{"name": EXPLORER, "title": "Neurons"}] if explorable else []
    shared = {"chapters": chapters, "provenance": provenance, "extras": extras}
    claims = front.claims_of(params, folder)
    if claims is not None:
        write_table(folder / "tables" / "ledger.parquet", claims.table)
    content = front.front_page(params, folder, provenance) | front.claims_page(claims, chapters)
    own = {"index.html": pages.page("front.html.j2", current="index.html", **shared, **content)}
    benchmarks = front.benchmarks_page()
    if benchmarks["machines"]:
        own["benchmarks.html"] = pages.page("benchmarks.html.j2", current="benchmarks.html", **benchmarks, **shared)
    written, shown = {}, {name: table for chapter in chapters for name, table in chapter.tables.items()}
    for name, html in own.items():
        written[name], tables = pages.finished(html, Path(name).stem)
        shown |= tables
    if claims is not None:
        shown["ledger"] = claims.table
    neighbours = [*chapters, None]
    for index, chapter in enumerate(chapters):
        written[chapter.name] = pages.page(
            "chapter.html.j2",
            current=chapter.name,
            chapter=chapter,
            sections=chapter.sections,
            previous=chapters[index - 1] if index else {"name": "index.html", "title": "Overview"},
            next=neighbours[index + 1],
            **shared,
        )
    if explorable:
        written[EXPLORER] = write_explorer(run, report, **shared)
    for stale in set(report.glob("*.html")) - {report / name for name in written}:
        stale.unlink()
    write_tables_shown(report / "data", shown)
    write_if_changed(folder / "provenance.json", json.dumps(provenance, indent=2, ensure_ascii=False) + "\n")
    for name in sorted(written, key=lambda name: name == "index.html"):  # the front page last: make looks at its time
        (report / name).unlink(missing_ok=True)
        write_if_changed(report / name, written[name])
    return report / "index.html"


def _seed_provenance(params: Params, name: str) -> dict[str, str | None]:
    """Where a seed comes from; of the Hub also the revision that was asked for and the commit that it stood for."""
    source = {"source": params.seeds[name]}
    if not params.is_on_hub(name):
        return source
    folder = seed_folder(params, name)
    return source | {"revision": params.revision_of(name) or "main", "commit": folder.name if folder else None}


def provenance_of(params: Params, folder: Path, notebooks: dict[str, float | None]) -> dict:
    """Where a report comes from: code, versions, seeds, text, device and times, as far as they are known."""
    done = read_json(folder / "stats" / "done.json")
    hashes = done.get("seed_hashes", {})
    commit = _git("rev-parse", "HEAD")
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
        "pass": {
            key: done.get(key)
            for key in ("blocks", "device", "device_name", "precision", "wall_seconds", "peak_memory_bytes")
        },
        "notebooks": notebooks,
    }


def _package_versions() -> dict[str, str]:
    """Versions of the packages pinned in requirements.txt, as installed."""
    pins = re.findall(r"^([A-Za-z0-9_.-]+)==", (parameters.ROOT / "requirements.txt").read_text(), re.MULTILINE)
    return {name: metadata.version(name) for name in pins}


def _git(*arguments: str) -> str | None:
    """What git answers about this repository, or None if it is not a git checkout."""
    if not (parameters.ROOT / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", parameters.ROOT, *arguments], capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
