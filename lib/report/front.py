"""What the front page and the page of data show, from the tables, figures and records that exist."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow.parquet
from bs4 import BeautifulSoup, SoupStrainer

from lib.base.errors import listed
from lib.base.files import read_json
from lib.display.captions import percent
from lib.display.claims import Evidence, statements
from lib.display.findings import Finding
from lib.report import answer, ledger
from lib.report.arrange import name_of
from lib.report.drawings import embedded_picture
from lib.report.notebook_pages import Chapter
from lib.report.untrained import untrained_rows
from lib.run import Run

# The front page shows the first of these that the run has drawn, or else its first figure.
HEADLINE_FIGURES = ("universality_scatter", "figure_02a_11_distributions")


class RunClaims(NamedTuple):
    """A run's ledger, the report's answer, why fewer neurons than published may be universal (or empty),
    and whether untrained models were measured."""

    table: pd.DataFrame
    answer: list[Finding]
    why_fewer: str
    untrained: bool


def claims_of(run: Run) -> RunClaims | None:
    """The ledger on the tables that the run has; None for a run without any of them."""
    needed = dict.fromkeys((*ledger.NEEDED, *answer.NEEDED))
    tables = {name: run.table(name) for name in needed if run.has(name)}
    if not tables:
        return None
    evidence = Evidence(tables, run.params.reference, run.params.threshold)
    untrained, done = untrained_rows(run.params), read_json(run.folder / "stats" / "done.json")
    table = ledger.ledger(evidence, untrained)
    why = answer.why_fewer(evidence, done.get("shapes", {}), done.get("tokens_counted"))
    return RunClaims(table, answer.answer(evidence, table), why, untrained is not None)


def figures_of(chapters: list[Chapter]) -> dict[str, dict[str, str]]:
    """Address (`href`) and name in words (`where`) of the figures that chapters show, by their names."""
    return {
        figure["id"]: {"href": f"{chapter.name}#{figure['id']}", "where": name_of(figure)}
        for chapter in chapters
        for figure in BeautifulSoup(chapter.rest, "html.parser", parse_only=SoupStrainer("figure")).select("figure[id]")
    }


def front_page(run: Run, claims: RunClaims | None, figures_shown: Mapping[str, Mapping[str, str]]) -> dict:
    """What the front page shows beside the chapters' questions; `figures_shown` as `figures_of` gives them."""
    done = read_json(run.folder / "stats" / "done.json")
    first = [run.folder / "figures" / f"{name}.png" for name in HEADLINE_FIGURES]
    figures = [path for path in [*first, *sorted((run.folder / "figures").glob("*.png"))] if path.exists()]
    return {
        "models": _models(len(run.params.seeds), done.get("shapes", {})),
        "threshold": f"{run.params.threshold:g}",
        "picture": embedded_picture(figures[0]) if figures else None,
        "answer": [
            {"text": finding.text, **figures_shown.get(finding.figure, {"href": None})}
            for finding in (claims.answer if claims else ())
        ],
        "why_fewer": claims.why_fewer if claims else "",
        "chips": _chips(claims.table) if claims else [],
        "number_of_claims": len(claims.table) if claims else 0,
    }


def _chips(table: pd.DataFrame) -> list[dict[str, str]]:
    """The claims of the front page in their order: verdict, short statement, address in the ledger."""
    chosen = {name: statement for name, statement in statements().items() if statement.front}
    verdicts = table.set_index("name")["verdict"]
    return [
        {"verdict": verdicts[name], "short": chosen[name].short, "href": f"ledger.html#claim-{name}"}
        for name in sorted(chosen, key=lambda name: chosen[name].front)
        if name in verdicts
    ]


def _models(number: int, shapes: dict[str, tuple[int, int]]) -> str:
    """Which models are compared, in a sentence; `shapes` has layers and neurons a layer of each seed."""
    words = {seed: f"{layers} layers of {neurons:,} neurons" for seed, (layers, neurons) in shapes.items()}
    text = f"This report compares {number} models"
    if len({*words.values()}) > 1:
        return f"{text}: {listed([f'{seed} of {shape}' for seed, shape in words.items()])}."
    each = f" Each has {next(iter(words.values()))}." if words else ""
    return f"{text} that differ only in their random seed.{each}"


def data_page(run: Run, provenance: dict) -> dict:
    """What the page of data shows: the seeds, with hashes and losses, and the tables with their columns."""
    return {"seed_table": _seed_table(run, provenance), "tables": _table_list(run.folder / "tables")}


def _seed_table(run: Run, provenance: dict) -> list[list[str]]:
    """The table of seeds, its first row the heads; a column of which nothing is known is left out."""
    params = run.params
    shares = run.table("references").to_dict("records") if run.has("references") else []
    losses = run.table("losses").query("domain == 'all'").to_dict("records") if run.has("losses") else []
    columns = {
        "seed": {name: name + (" (reference)" if name == params.reference else "") for name in params.seeds},
        "model": dict(params.seeds),
        "revision": {name: seed.get("revision") or "" for name, seed in provenance["seeds"].items()},
        "SHA-256": {name: seed["sha256"] or "" for name, seed in provenance["seeds"].items()},
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
