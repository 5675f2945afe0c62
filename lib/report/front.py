"""What the front page and the page of benchmarks show, from the tables, figures and records that exist."""

from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow.parquet

from lib.base import params as parameters
from lib.base.errors import listed
from lib.base.files import read_json
from lib.display.captions import percent
from lib.display.claims import Evidence
from lib.report import answer, ledger, pages
from lib.report.notebook_pages import Chapter
from lib.run import Run

# The front page shows the first of these that the run has drawn, or else its first figure.
HEADLINE_FIGURES = ("universality_scatter", "figure_02a_11_distributions")


class RunClaims(NamedTuple):
    """A run's ledger, its summary, and the report's answer."""

    table: pd.DataFrame
    summary: str
    answer: list[str]


def claims_of(run: Run) -> RunClaims | None:
    """The ledger on the tables that the run has; None for a run without any of them."""
    tables = {name: run.table(name) for name in ledger.NEEDED if run.has(name)}
    if not tables:
        return None
    evidence = Evidence(tables, run.params.reference, run.params.threshold)
    table = ledger.ledger(evidence)
    return RunClaims(table, ledger.summary(table), answer.answer(evidence, table))


def claims_page(claims: RunClaims | None, chapters: list[Chapter]) -> dict:
    """What the front page shows of the claims: the answer, and the ledger's rows with a link to each figure."""
    if claims is None:
        return {"answer": [], "ledger": None}
    by_stem = {Path(chapter.name).stem: chapter for chapter in chapters}
    rows = []
    for row in claims.table.to_dict("records"):
        chapter = by_stem.get(row["chapter"])
        drawn = chapter is not None and f'id="{row["figure"]}"' in chapter.opening + chapter.rest
        href = f"{chapter.name}#{row['figure']}" if drawn else chapter.name if chapter else None
        rows.append(row | {"href": href, "where": f"chapter {int(row['chapter'][:2])}"})
    return {"answer": claims.answer, "ledger": {"summary": claims.summary, "rows": rows}}


def front_page(run: Run, provenance: dict) -> dict:
    """What the front page shows beside claims and chapters."""
    done = read_json(run.folder / "stats" / "done.json")
    first = [run.folder / "figures" / f"{name}.png" for name in HEADLINE_FIGURES]
    figures = [path for path in [*first, *sorted((run.folder / "figures").glob("*.png"))] if path.exists()]
    return {
        "models": _models(len(run.params.seeds), done.get("shapes", {})),
        "picture": pages.embedded_picture(figures[0]) if figures else None,
        "seed_table": _seed_table(run, provenance),
        "tables": _table_list(run.folder / "tables"),
        "benchmarks": [machine["device"] for machine in benchmarks_page()["machines"]],
    }


def _models(number: int, shapes: dict[str, tuple[int, int]]) -> str:
    """Which models are compared, in a sentence; `shapes` has layers and neurons a layer of each seed."""
    words = {seed: f" of {layers} layers with {neurons:,} neurons each" for seed, (layers, neurons) in shapes.items()}
    models = f"This report compares {number} models"
    if len({*words.values()}) > 1:
        return f"{models}: {listed([f'{seed}{shape}' for seed, shape in words.items()])}."
    return f"{models}{next(iter(words.values()), '')}, which differ only in their random seed."


def benchmarks_page(folder: Path | None = None) -> dict:
    """The records of `make bench`, one machine a file of `folder` (bench/): machines, and rows by group side by side.

    A row that a machine has not measured has an empty cell.
    """
    records = {path.stem: read_json(path) for path in sorted((folder or parameters.ROOT / "bench").glob("*.json"))}
    newest = max((record.get("format", 1) for record in records.values()), default=1)  # others are of a former engine
    records = {name: record for name, record in records.items() if record.get("format", 1) == newest}
    groups: dict[str, dict[str, dict]] = {}
    for machine, record in records.items():
        for row in record["rows"]:
            blank = {"what": row["what"], "bar": row["bar"], "cells": [""] * len(records)}
            own = groups.setdefault(row["group"], {}).setdefault(row["what"], blank)
            own["cells"][list(records).index(machine)] = row["measured"]
    return {
        "machines": [{"name": name, **record["machine"]} for name, record in records.items()],
        "groups": [{"title": title, "rows": list(rows.values())} for title, rows in groups.items()],
    }


def _seed_table(run: Run, provenance: dict) -> list[list[str]]:
    """The table of seeds, its first row the heads; a column of which nothing is known is left out."""
    params = run.params
    shares = run.table("references").to_dict("records") if run.has("references") else []
    losses = run.table("losses").query("domain == 'all'").to_dict("records") if run.has("losses") else []
    columns = {
        "seed": {name: name + (" (reference)" if name == params.reference else "") for name in params.seeds},
        "model": dict(params.seeds),
        "revision": {name: seed.get("revision") or "" for name, seed in provenance["seeds"].items()},
        "SHA-256": {name: (seed["sha256"] or "")[:12] for name, seed in provenance["seeds"].items()},
        "loss [nats per token]": {row["seed"]: f"{row['loss']:.3f}" for row in losses},
        "universal neurons": {row["seed"]: f"{int(row['universal']):,}" for row in shares},
        "share": {row["seed"]: percent(row["share"]) for row in shares},
    }
    known = {head: cells for head, cells in columns.items() if any(cells.values())}
    return [list(known), *([cells.get(name, "") for cells in known.values()] for name in params.seeds)]


def _table_list(folder: Path) -> list[dict]:
    """File, rows and columns of each table, neurons and matches first."""
    files = sorted(folder.glob("*.parquet"), key=lambda path: (path.stem not in ("neurons", "matches"), path.name))
    read = {path.name: pyarrow.parquet.read_metadata(path) for path in files}
    return [
        {"file": name, "rows": found.num_rows, "columns": found.schema.to_arrow_schema().names}
        for name, found in read.items()
    ]
