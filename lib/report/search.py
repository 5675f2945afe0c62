"""The search's index: what each page says where, from the pages themselves. Every page holds it (page.js searches).

An entry is [page, anchor, title, text]: a page with its question, a section with its prose, a figure with its caption,
a claim, or a term of the glossary.
"""

import json
from collections.abc import Mapping

from bs4 import BeautifulSoup, Tag

from lib.report.pages import plain

MARK = "@search-index@"  # where a page's template wants the index
MOST = 600  # letters of an entry's text
Entry = tuple[str, str, str, str]


def with_index(pages: Mapping[str, str]) -> dict[str, str]:
    """The finished pages by name, with the index of all of them."""
    entries = [entry for name, html in pages.items() for entry in entries_of(name, html)]
    index = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return {name: html.replace(MARK, index) for name, html in pages.items()}


def entries_of(name: str, html: str) -> list[Entry]:
    """The entries of one page."""
    main = BeautifulSoup(html, "html.parser").find("main")
    head = main.find("h1")
    about = main.select(".opening :is(p, li):not(.sources, .counts)")
    found = [(name, "", plain(head) if head else name, _text(about))]
    for section in main.select("h2[id], h3[id]"):
        found.append((name, section["id"], plain(section), _text(_prose_of(section))))
    for figure in main.select("figure[id]"):
        found.append((name, figure["id"], *_caption(figure)))
    for row in main.select("tr[id]"):
        verdict, here, published = (" ".join(cell.stripped_strings) for cell in row.find_all("td", recursive=False))
        said = f"{verdict}; here {here}; published: {published}"
        found.append((name, row["id"], plain(row.select_one(".claim")), said))
    for term in main.select("dt[id]"):
        found.append((name, term["id"], plain(term), _text([term.find_next_sibling("dd")])))
    return found


def _text(elements) -> str:
    text = " ".join(plain(element) for element in elements)
    return text if len(text) <= MOST else f"{text[:MOST].rsplit(' ', 1)[0]} …"


def _prose_of(section: Tag) -> list[Tag]:
    """The paragraphs between a heading and the next one."""
    found = []
    for element in section.find_all_next(["h2", "h3", "p", "li"]):
        if element.name in ("h2", "h3"):
            break
        if not element.find_parent(["table", "details", "figure", "footer"]) and "tools" not in element.get(
            "class", ""
        ):
            found.append(element)
    return found


def _caption(figure: Tag) -> tuple[str, str]:
    """A figure's title and text: its caption, or else its picture's description."""
    captions = [part for part in figure.find_all("figcaption") if "tools" not in part.get("class", [])]
    image = figure.find(["img", "svg"])
    described = (image.get("alt") or image.get("aria-label") or "") if image else ""
    text = _text(captions) or described
    title, _, rest = text.partition(". ")
    return title, rest
