"""What the front page and the page of benchmarks show, from the tables, figures and records that exist."""

import json
import re
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow.parquet

from lib.base import params as parameters
from lib.base.errors import listed
from lib.base.files import read_json
from lib.display.captions import p_words, percent
from lib.display.claims import UNASKED, VERDICTS, Evidence
from lib.report import answer, ledger, pages
from lib.report.notebook_pages import Chapter
from lib.report.untrained import untrained_rows
from lib.run import Run

# The front page shows the first of these that the run has drawn, or else its first figure.
HEADLINE_FIGURES = ("universality_scatter", "figure_02a_11_distributions")
SIZE_WORDS = dict(zip(VERDICTS, ("size as published", "another size", "size too uncertain"), strict=True))


class RunClaims(NamedTuple):
    """A run's ledger, its summary, the report's answer, and whether untrained models were measured."""

    table: pd.DataFrame
    summary: str
    answer: list[str]
    untrained: bool


def claims_of(run: Run) -> RunClaims | None:
    """The ledger on the tables that the run has; None for a run without any of them."""
    needed = dict.fromkeys((*ledger.NEEDED, *answer.NEEDED))
    tables = {name: run.table(name) for name in needed if run.has(name)}
    if not tables:
        return None
    evidence = Evidence(tables, run.params.reference, run.params.threshold)
    untrained = untrained_rows(run.params)
    table = ledger.ledger(evidence, untrained)
    return RunClaims(table, ledger.summary(table), answer.answer(evidence, table), untrained is not None)


def claims_page(claims: RunClaims | None, chapters: list[Chapter]) -> dict:
    """What the front page shows of the claims: the answer, and the ledger's rows with a link to each figure.

    A row also has `size`, the size verdict or why there is none, and `facts`, what stands in its fold: (head, text).
    Its `untrained` is short.
    """
    if claims is None:
        return {"answer": [], "ledger": None}
    by_stem = {Path(chapter.name).stem: chapter for chapter in chapters}
    rows = []
    for row in claims.table.to_dict("records"):
        chapter = by_stem.get(row["chapter"])
        drawn = chapter is not None and f'id="{row["figure"]}"' in chapter.opening + chapter.rest
        href = f"{chapter.name}#{row['figure']}" if drawn else chapter.name if chapter else None
        shown = {"href": href, "where": f"chapter {int(row['chapter'][:2])}", "facts": _facts(row)}
        shown["size"] = "" if row["no_size"] else SIZE_WORDS[row["size_verdict"]]
        value = re.split(r" \(| in each of ", row["untrained"])[0]  # the interval and the details are in the fold
        shown["untrained"] = f"{value}: {row['untrained_verdict']}" if row["untrained_verdict"] else ""
        shown["untrained"] = UNASKED if row["untrained"] == UNASKED else shown["untrained"]
        rows.append(row | shown)
    return {"answer": claims.answer, "ledger": {"rows": rows, "summary": claims.summary, "untrained": claims.untrained}}


def _facts(row: dict) -> list[tuple[str, str]]:
    """How a row of the ledger was decided: bound and reason, seeds, p-value, and what is special about it."""
    each = ", ".join(f"{seed} {_number(value)}" for seed, value in json.loads(row["by_seed"]).items())
    decided = f"{p_words(row['p_value'])}, corrected {p_words(row['p_corrected'])}" if row["p_value"] > 0 else ""
    decided = "seeds have one and the same value" if row["p_value"] == 0 else decided
    facts = {
        "bound": f"{row['side']} {_number(row['bound'])}: {row['why']}",
        "by seed": f"{each}; {row['agree']} of {row['seeds']} on the claimed side" if each else "",
        "mean against bound": decided,
        "by construction": row["by_construction"],
        "size not comparable": row["no_size"],
        "control": row["control"],
        "untrained models": f"{row['untrained']}: {row['untrained_verdict']}" if row["untrained_verdict"] else "",
        "claimed by": row["source"],
    }
    return [(head, text) for head, text in facts.items() if text]


def _number(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")


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
