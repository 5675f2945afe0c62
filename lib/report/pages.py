"""What all pages share: templates, and links that save tables.

Pages open offline. Each table links to itself as CSV and Parquet.
"""

import re
from base64 import b64encode
from hashlib import sha256
from pathlib import Path

import pandas as pd
from bs4 import BeautifulSoup
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from lib.display.captions import count
from lib.display.plots import SYMBOL
from lib.report.glossary import mark_terms

TEMPLATES = Path(__file__).parent / "templates"
NAME = re.compile(r"\bL(\d+)(\.|H)(\d+)\b")  # of a neuron or an attention head
NOT_PROSE = ["pre", "code", "script", "style", "math"]


def plain(element) -> str:
    """An element's text without the anchor of a heading, in one line."""
    texts = [text for text in element.find_all(string=True) if not text.find_parent(class_="anchor-link")]
    return " ".join("".join(texts).split())


def replace_in_prose(soup: BeautifulSoup, pattern: str, replacement: str) -> None:
    """Replaces a pattern in every text that is no code and no formula."""
    for text in soup.find_all(string=re.compile(pattern)):
        if not text.find_parent(NOT_PROSE):
            text.replace_with(re.sub(pattern, replacement, text))


def keep_percents_together(soup: BeautifulSoup) -> None:
    """Keeps a number and its percent sign on one line."""
    replace_in_prose(soup, r"(?<=\d) (?=%)", "\u00a0")


def set_symbols(soup: BeautifulSoup) -> None:
    """Sets the index of w_out and the like below the line; copied and searched text stays as it was."""
    for text in soup.find_all(string=SYMBOL):
        if not text.find_parent([*NOT_PROSE, "title", "option"]):
            marked = SYMBOL.sub(r"<i>\1</i><span class=under>_</span><sub>\2</sub>", str(escape(text)))
            text.replace_with(BeautifulSoup(marked, "html.parser"))


def explain_names(soup: BeautifulSoup) -> None:
    """Gives the names of neurons and heads, L5.2 and L5H2, a title that says what they mean."""
    for text in soup.find_all(string=NAME):
        if not text.find_parent([*NOT_PROSE, "abbr", "title", "option"]) and not text.find_parent(class_="term"):
            marked = NAME.sub(_explained, str(escape(text)))
            text.replace_with(BeautifulSoup(marked, "html.parser"))


def _explained(name: re.Match) -> str:
    kind = "neuron" if name[2] == "." else "head"
    return f'<abbr title="layer {name[1]}, {kind} {name[3]}">{name[0]}</abbr>'


# ---------------------------------------------------------------- tables


def table_rows(table) -> list[list]:
    """The cells of an HTML table by row, the head first, without rows of another length (a neuron's examples)."""
    if table.name == "table":
        rows = [row.find_all(["th", "td"]) for row in table.find_all("tr")]
    else:
        rows = [row.find_all(attrs={"role": ["columnheader", "cell"]}) for row in table.find_all(attrs={"role": "row"})]
    return [row for row in rows if len(row) == len(rows[0])]


def read_table(element) -> pd.DataFrame:
    """What an HTML table shows; a column whose cells are all numbers is numeric."""
    head, *body = [[plain(cell) for cell in row] for row in table_rows(element)] or [[]]
    names: list[str] = []
    for name in head:
        base = name or "row"
        names.append(base if base not in names else f"{base} {len(names) + 1}")
    table = pd.DataFrame(body, columns=names, dtype=str)
    for name in names:
        numbers = pd.to_numeric(table[name].str.replace(r",(?=\d{3})", "", regex=True), errors="coerce")
        if len(table) and numbers.notna().all():
            table[name] = numbers
    return table


def add_table_tools(soup: BeautifulSoup, stem: str) -> dict[str, pd.DataFrame]:
    """Links every table to its CSV and Parquet files; returns the tables by name.

    Screen readers know a scrolling box by the heading above it.
    """
    tables = {}
    for number, element in enumerate(soup.select("table:not(.ledger), [role=table]"), 1):
        name = element.get("data-table") or f"{stem}-{number}"
        tables[name] = read_table(element)
        heading = element.find_previous(["h1", "h2", "h3"])
        about = plain(heading) if heading else f"table {number}"
        box = element.find_parent(class_="scroll") or element
        if box is not element:
            box.attrs |= {"tabindex": "0", "role": "region", "aria-label": f"Table {number}: {about}"}
        tools = soup.new_tag("p", attrs={"class": "tools"})
        for kind, ending in {"CSV": "csv", "Parquet": "parquet"}.items():
            link = {"href": f"data/{name}.{ending}", "download": "", "aria-label": f"{kind} of table {number}"}
            tools.append(soup.new_tag("a", attrs=link, string=kind))
        box.insert_after(tools)
    return tables


# ---------------------------------------------------------------- whole pages


def page(template: str, **content) -> str:
    """A whole HTML page from one of the templates in lib/report/templates."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": count, "duration": duration, "memory": memory, "bold": bold}
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    allowed = b64encode(sha256(script.encode()).digest()).decode()  # the page's policy lets no other script run
    shared = {
        "style": (TEMPLATES / "style.css").read_text(encoding="utf-8"),
        "script": script,
        "script_hash": f"'sha256-{allowed}'",
    }
    return environment.get_template(template).render(**shared, **content)


def finished(html: str, stem: str) -> tuple[str, dict[str, pd.DataFrame]]:
    """A page of our own templates with links under its tables, and these tables by name."""
    soup = BeautifulSoup(html, "html.parser")
    keep_percents_together(soup)
    tables = add_table_tools(soup, stem)
    mark_terms(soup)
    explain_names(soup)
    set_symbols(soup)
    return str(soup), tables


def bold(text: str) -> Markup:
    """A sentence with **numbers** as HTML; everything else is escaped."""
    return Markup(re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", str(escape(text))))


def duration(seconds: float) -> str:
    """Seconds as the two largest of hours, minutes and seconds."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def memory(size: float) -> str:
    """Bytes in GB or MB, decimal."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
