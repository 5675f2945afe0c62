"""What the front page and the page of benchmarks show, from whichever tables, figures and records a run has."""

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from lib.base import params as parameters
from lib.base.files import read_json
from lib.base.params import Params
from lib.display.claims import Evidence
from lib.report import answer, ledger, pages
from lib.report.pages import Chapter, count, percent

# The front page shows the first of these that the run has drawn, or else its first figure.
HEADLINE_FIGURES = ("universality_scatter", "figure_02a_11_distributions")


class RunClaims(NamedTuple):
    """A run's ledger, its summary in a sentence, and the report's answer in five."""

    table: pd.DataFrame
    summary: str
    answer: list[str]


def claims_of(params: Params, folder: Path) -> RunClaims | None:
    """The ledger's claims on whichever of the run's tables are there; None for a run without any of them."""
    files = {name: folder / "tables" / f"{name}.parquet" for name in ledger.NEEDED}
    tables = {name: pd.read_parquet(path) for name, path in files.items() if path.exists()}
    if not tables:
        return None
    evidence = Evidence(tables, params.reference, params.threshold)
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
        where = f"chapter {int(row['chapter'][:2])}"
        rows.append(row | {"href": href, "where": where})
    return {"answer": claims.answer, "ledger": {"summary": claims.summary, "rows": rows}}


def front_page(params: Params, folder: Path, provenance: dict) -> dict:
    """What the front page shows beside the chapters, computed from whichever of the run's tables are there."""
    done = read_json(folder / "stats" / "done.json")
    references = {row["seed"]: row for row in _read_rows(folder / "tables" / "references.parquet")}
    losses = {row["seed"]: row for row in _read_rows(folder / "tables" / "losses.parquet") if row["domain"] == "all"}
    shape = f" of {done['layers']} layers with {done['neurons']:,} neurons each" if "layers" in done else ""
    figures = sorted(
        (folder / "figures").glob("*.png"), key=lambda path: (path.stem not in HEADLINE_FIGURES, path.name)
    )
    return {
        "models": f"This report looks at {len(params.seeds)} models{shape} that differ in their random seed only.",
        "picture": pages.embedded_picture(figures[0]) if figures else None,
        "seed_table": _seed_table(params, references, losses, provenance),
        "tables": _table_list(folder / "tables"),
        "benchmarks": [machine["device"] for machine in benchmarks_page()["machines"]],
    }


def benchmarks_page(folder: Path | None = None) -> dict:
    """What `make bench` measured, one machine a file of `folder` (bench/): machines, and rows by group side by side.

    A row that a machine has not measured has an empty cell there.
    """
    records = {path.stem: read_json(path) for path in sorted((folder or parameters.ROOT / "bench").glob("*.json"))}
    groups: dict[str, dict[str, dict]] = {}
    for name, record in records.items():
        for row in record["rows"]:
            shared = groups.setdefault(row["group"], {}).setdefault(row["what"], {"bar": row["bar"], "cells": {}})
            shared["cells"][name] = row["measured"]
    return {
        "machines": [{"name": name, **record["machine"]} for name, record in records.items()],
        "groups": [
            {
                "title": title,
                "rows": [
                    {"what": what, "bar": row["bar"], "cells": [row["cells"].get(name, "") for name in records]}
                    for what, row in rows.items()
                ],
            }
            for title, rows in groups.items()
        ],
    }


def _seed_table(params: Params, references: dict, losses: dict, provenance: dict) -> list[list[str]]:
    """The table of seeds, its first row the heads; a column whose numbers are not known is left out."""
    columns = {
        "seed": {name: name + (" (reference)" if name == params.reference else "") for name in params.seeds},
        "model": dict(params.seeds),
        "revision": {name: seed.get("revision") or "" for name, seed in provenance["seeds"].items()},
        "SHA-256": {name: (seed["sha256"] or "")[:12] for name, seed in provenance["seeds"].items()},
        "loss [nats per token]": {name: f"{row['loss']:.3f}" for name, row in losses.items()},
        "universal neurons": {name: count(row["universal"]) for name, row in references.items()},
        "share": {name: percent(row["share"]) for name, row in references.items()},
    }
    known = {head: cells for head, cells in columns.items() if any(cells.values())}
    return [list(known), *([cells.get(name, "") for cells in known.values()] for name in params.seeds)]


def _table_list(folder: Path) -> list[dict]:
    """File, rows and columns of each table, neurons and matches first."""
    import pyarrow.parquet

    files = sorted(folder.glob("*.parquet"), key=lambda path: (path.stem not in ("neurons", "matches"), path.name))
    described = []
    for path in files:
        schema = pyarrow.parquet.read_metadata(path)
        described.append({"file": path.name, "rows": schema.num_rows, "columns": schema.schema.to_arrow_schema().names})
    return described


def _read_rows(path: Path) -> list[dict]:
    if not path.exists():
        return []
    return pd.read_parquet(path).to_dict("records")
