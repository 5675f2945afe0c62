"""The terms of the field: their page, and a note at the first use of each on every other page."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml
from bs4 import BeautifulSoup

PAGE = "glossary.html"
PROSE = ["p", "li"]
UNMARKED = "a b button code dfn em figcaption footer label math nav pre script strong style summary table title".split()


class Term(NamedTuple):
    """What pages may call it (a regular expression), what it means, and its place on the glossary's page."""

    words: str
    meaning: str
    anchor: str


@cache
def terms() -> Mapping[str, Term]:
    """All terms by name, in the order of glossary.yaml."""
    entries = yaml.safe_load(Path(__file__).with_name("glossary.yaml").read_text(encoding="utf-8"))
    return {
        name: Term(entry["words"], entry["meaning"], "term-" + re.sub(r"\W+", "-", name.lower()))
        for name, entry in entries.items()
    }


def mark_terms(soup: BeautifulSoup) -> None:
    """Links each term where the page's prose first uses it; page.js shows its meaning beside it."""
    for term in terms().values():
        pattern = re.compile(rf"(?<![\w.-])(?:{term.words})(?![\w-])", re.IGNORECASE)
        for text in soup.find_all(string=pattern):
            if text.find_parent(PROSE) is None or text.find_parent(UNMARKED) is not None:
                continue
            found = pattern.search(text)
            link = soup.new_tag(
                "a", attrs={"class": "term", "href": f"{PAGE}#{term.anchor}", "data-note": term.meaning}
            )
            link.string = found[0]
            text.replace_with(text[: found.start()], link, text[found.end() :])
            break
