"""What the ledger's page shows: a row for each claim by the question that it answers, with its details in a fold."""

import json
import re
from collections.abc import Mapping

from lib.display.captions import count, p_words
from lib.display.claims import UNASKED, VERDICTS, statements
from lib.report import ledger
from lib.report.front import RunClaims
from lib.report.notebook_pages import Chapter

SIZE_WORDS = dict(zip(VERDICTS, ("size as published", "another size", "size too uncertain"), strict=True))
EMERGENCE = "07_emergence.html"  # its claims are a family of tests of their own
DIFFERENCES = ("property_", "frequency_cosine")
QUESTIONS = (  # in this order; a question's chapter, and of chapter 03 the claims on differences apart
    ("How many neurons are universal, and where?", "03", False),
    ("How do universal neurons differ?", "03", True),
    ("What do neurons respond to?", "04", False),
    ("What do neurons do by their weights?", "05", False),
    ("What happens in the running model?", "06", False),
    ("Does another seed have the same in another basis?", "08", False),
)


def ledger_page(claims: RunClaims, chapters: list[Chapter], figures_shown: Mapping[str, Mapping[str, str]]) -> dict:
    """Groups of rows in the order of the questions, the number of each verdict, and where claims on training are.

    A row has the ledger's columns and `shown` (value, interval), `size`, `facts` (what stands in its fold), `href` and
    `where` (its figure).
    """
    rows = [row | _shown(row) | _place(row, chapters, figures_shown) for row in claims.table.to_dict("records")]
    keys = [(row["chapter"][:2], row["name"].startswith(DIFFERENCES)) for row in rows]
    groups = {
        question: [row for row, key in zip(rows, keys, strict=True) if key == (chapter, differences)]
        for question, chapter, differences in QUESTIONS
    }
    counts = claims.table["verdict"].value_counts().reindex(VERDICTS, fill_value=0)
    shown = [
        {"id": re.sub(r"\W+", "-", question.lower()).strip("-"), "title": question, "rows": own}
        for question, own in groups.items()
        if own
    ]
    emergence = EMERGENCE if any(chapter.name == EMERGENCE for chapter in chapters) else None
    sections = [(group["id"], group["title"]) for group in shown]
    return {
        "groups": shown,
        "sections": sections + ([("when-do-they-arise", "When do they arise?")] if emergence else []),
        "summary": ledger.summary(claims.table),
        "sources": ledger.sources(claims.table),
        "total": count(len(claims.table), "claim"),
        "counts": counts.to_dict(),
        "untrained": claims.untrained,
        "emergence": emergence,
    }


def _place(row: dict, chapters: list[Chapter], figures_shown: Mapping[str, Mapping[str, str]]) -> dict:
    """Where the row's figure is; its chapter if the figure was not drawn."""
    page = next((chapter.name for chapter in chapters if chapter.name == f"{row['chapter']}.html"), None)
    return {"href": page, "where": f"chapter {int(row['chapter'][:2])}"} | figures_shown.get(row["figure"], {})


def _shown(row: dict) -> dict:
    value, interval, _ = in_parts(row["here"])
    size = "" if row["no_size"] else SIZE_WORDS[row["size_verdict"]]
    return {"effect": value, "interval": interval, "size": size, "brief": brief(row), "facts": _facts(row)}


def in_parts(here: str) -> tuple[str, str, str]:
    """The sentence of a row in parts: value, interval and details (lib.display.claims.in_words)."""
    found = re.match(r"(.+?) \((.+?), 95 % over \d+ seeds\)(?:; (.*))?$", here)
    if found:
        return found[1], found[2], found[3] or ""
    value, _, details = here.partition("; ")
    return value, "", details


def brief(row: dict) -> str:
    """What was published, as one range where it is several values of one quantity."""
    values = statements()[row["name"]].values if row["name"] in statements() else ()
    if len(values) < 2:
        return row["published"]
    numbers = re.findall(r"[−+]?[\d.]+(?: %)?(?= \()", row["published"])
    if len(numbers) != len(values):
        return row["published"]
    ends = (numbers[values.index(end)] for end in (min(values), max(values)))
    return " to ".join(ends)


def _facts(row: dict) -> list[tuple[str, str]]:
    """How a row was decided: details, bound and reason, seeds, p-value, and what is special about it."""
    each = ", ".join(f"{seed} {_number(value)}" for seed, value in json.loads(row["by_seed"]).items())
    decided = f"{p_words(row['p_value'])}, corrected {p_words(row['p_corrected'])}" if row["p_value"] > 0 else ""
    decided = "seeds have one and the same value" if row["p_value"] == 0 else decided
    untrained = f"{row['untrained']}: {row['untrained_verdict']}" if row["untrained_verdict"] else ""
    facts = {
        "here": row["here"],
        "published": row["published"],
        "would decide it": row["decides"] if row["decides"] != row["here"] else "",
        "bound": f"{row['side']} {_number(row['bound'])}: {row['why']}",
        "by seed": f"{each}; {row['agree']} of {row['seeds']} on the claimed side" if each else "",
        "mean against bound": decided,
        "by construction": row["by_construction"],
        "size not comparable": row["no_size"],
        "control": row["control"],
        "untrained models": UNASKED if row["untrained"] == UNASKED else untrained,
        "claimed by": row["source"],
    }
    return [(head, text) for head, text in facts.items() if text]


def _number(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")
