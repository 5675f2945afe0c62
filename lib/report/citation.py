"""How to cite the report and the paper, from CITATION.cff."""

import yaml

from lib.base import params as parameters


def citation(provenance: dict) -> dict[str, str | None]:
    """`report` and `paper` as BibTeX, and `repository`, its address (None if CITATION.cff names none)."""
    record = yaml.safe_load((parameters.ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    paper, address = record["preferred-citation"], record.get("repository-code")
    commit = provenance["git_commit"]
    own = {
        "title": record["title"],
        "author": f"{{{_authors(record)}}}",
        "year": provenance["made"][:4],
        "note": f"Run {provenance['run']}" + (f", commit {commit[:12]}" if commit else ""),
        "url": address,
    }
    theirs = {
        "title": paper["title"],
        "author": _authors(paper),
        "year": str(paper["year"]),
        "journal": paper["journal"],
        "url": paper["url"],
    }
    return {
        "report": _bibtex("misc", "universal_neurons_report", own),
        "paper": _bibtex("article", f"{paper['authors'][0]['family-names'].lower()}{paper['year']}universal", theirs),
        "repository": address,
    }


def _authors(record: dict) -> str:
    return " and ".join(
        author.get("name") or f"{author['family-names']}, {author['given-names']}" for author in record["authors"]
    )


def _bibtex(kind: str, key: str, fields: dict[str, str | None]) -> str:
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items() if value]
    return "\n".join([f"@{kind}{{{key},", *lines, "}"])
