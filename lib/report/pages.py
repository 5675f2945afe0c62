"""From executed notebooks to HTML pages that open offline: equations as MathML, pictures embedded, code folded.

Nothing in a page asks for anything outside it; a picture without a description for screen readers is refused. Each
figure links to its files and each table to itself as CSV and Parquet.
"""

import gzip
import re
from base64 import b64encode
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import pandas as pd
from bs4 import BeautifulSoup
from jinja2 import Environment, FileSystemLoader, StrictUndefined, pass_context
from latex2mathml.converter import convert
from markupsafe import Markup, escape
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath, MathInlineParser
from PIL import Image

from lib.base.errors import InputError
from lib.display.plots import SYMBOL

TEMPLATES = Path(__file__).parent / "templates"
FIGURE_FILES = ("svg", "png")  # that a figure may be saved as
_MATHML = "{http://www.w3.org/1998/Math/MathML}"
_NO_ALT = "No description has been provided for this image"  # what nbconvert writes where there is none
_WITH_LIMITS = {"max", "min", "sup", "inf", "lim"}  # operators whose subscript stands below them in a display

ElementTree.register_namespace("", _MATHML[1:-1])


@dataclass(frozen=True)
class Chapter:
    """One executed notebook as a page: its first cell is the opening, which holds title and question."""

    name: str  # of the HTML file
    title: str
    question: str
    sections: list[tuple[str, str]]  # (id, title)
    opening: str
    rest: str
    wall_seconds: float | None
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)  # by the name of their files in report/data


def mathml(latex: str, display: bool = False) -> str:
    """A LaTeX formula as MathML; InputError if it uses anything that would come out wrong."""
    source = latex.strip().replace("{aligned}", "{align}")
    try:
        root = ElementTree.fromstring(convert(source, display="block" if display else "inline"))
    except Exception as error:  # latex2mathml's errors share no base class
        raise InputError(f"the equation {latex.strip()!r} is not LaTeX that can be rendered ({error!r})") from error
    for parent in root.iter():
        _join_upright_letters(parent)
        _space_after_functions(parent)
        if display and parent.tag == f"{_MATHML}msub" and parent[0].text in _WITH_LIMITS:
            parent.tag = f"{_MATHML}munder"
    unknown = re.search(r"\\[A-Za-z]+|&", "".join(root.itertext()))
    if unknown:
        raise InputError(f"the equation {latex.strip()!r} has {unknown[0]!r}, which cannot be rendered")
    return ElementTree.tostring(root, encoding="unicode")


def _join_upright_letters(parent: ElementTree.Element) -> None:
    r"""\mathrm{out} comes as three identifiers; one upright word is meant."""
    letters = [child for child in parent if child.tag == f"{_MATHML}mi" and child.get("mathvariant") == "normal"]
    if parent.tag == f"{_MATHML}mrow" and len(letters) == len(parent) > 1:
        word = "".join(child.text or "" for child in letters)
        for child in letters:
            parent.remove(child)
        ElementTree.SubElement(parent, f"{_MATHML}mi").text = word


def _space_after_functions(parent: ElementTree.Element) -> None:
    r"""\ln p comes without the thin space that TeX sets between a function's name and what it is of."""
    for index in reversed(range(1, len(parent))):
        name, argument = parent[index - 1], parent[index]
        if parent.tag == f"{_MATHML}mrow" and name.tag == f"{_MATHML}mi" and len(name.text or "") > 1:
            if argument.tag in (f"{_MATHML}{kind}" for kind in ("mi", "mn", "msub", "msup", "msubsup", "mfrac")):
                parent.insert(index, ElementTree.Element(f"{_MATHML}mspace", width="0.167em"))


class _InlineParser(MathInlineParser):
    """A `$` before a blank opens no formula and one before a digit closes none, so that prices stay prices; nor does it span code."""

    SPECIFICATION = {
        **MathInlineParser.SPECIFICATION,
        "inline_math_tex": r"(?<![$\\])\$(?=\S)(?P<math_inline_tex>[^$`]*?[^\s$`\\])\$(?![$\d])",
    }


class _Renderer(IPythonRenderer):
    """Markdown to HTML with formulas rendered ahead."""

    def block_math(self, body: str) -> str:
        return mathml(body, display=True)

    def inline_math(self, body: str) -> str:
        return mathml(body)

    def latex_environment(self, name: str, body: str) -> str:
        return mathml(f"\\begin{{{name}}}{body}\\end{{{name}}}", display=True)


class _Exporter(HTMLExporter):
    """nbconvert's exporter with our template and our Markdown."""

    def __init__(self):
        super().__init__(template_name=TEMPLATES.name, extra_template_basedirs=[str(TEMPLATES.parent)])
        self.exclude_input_prompt = self.exclude_output_prompt = True
        self.anchor_link_text = "#"

    @pass_context
    def markdown2html(self, context, source: str) -> str:
        """Markdown to HTML, called by the template."""
        cell = context.get("cell", {})
        renderer = _Renderer(
            escape=False,
            attachments=cell.get("attachments", {}),
            embed_images=True,
            path=context.get("resources", {}).get("metadata", {}).get("path", ""),
            anchor_link_text=self.anchor_link_text,
        )
        return MarkdownWithMath(renderer, inline=_InlineParser(hard_wrap=False)).render(source)


def read_chapter(notebook: Path, neurons: str | None = None) -> Chapter:
    """An executed notebook as a chapter; InputError if a picture has no alt text or the page would need the network.

    A section whose code showed nothing, for want of what it is about, is left out. Figures link to their files in the folder `figures` beside that of the notebook, where those are, and neurons to their
    pages, where `neurons` is what comes before `layer/neuron` in these pages' addresses for the reference seed's neurons.
    """
    nb = nbformat.read(notebook, as_version=4)
    nb.cells = [cell for section in _sections(nb.cells) for cell in section if not _silent(section)]
    try:
        body, _ = _Exporter().from_notebook_node(nb, {"metadata": {"path": str(notebook.parent)}})
        soup = BeautifulSoup(body, "html.parser")
        _tidy(soup)
        check_offline(soup)
        add_figure_tools(soup, notebook.parent.parent / "figures")
        tables = add_table_tools(soup, notebook.stem)
        if neurons is not None:
            link_neurons(soup, neurons)
        _set_minus_signs(soup)
        _set_symbols(soup)
    except InputError as error:
        raise InputError(f"{notebook.name}: {error}.") from error
    title = soup.find("h1")
    cells = [str(cell) for cell in soup.find_all(recursive=False)]
    return Chapter(
        name=f"{notebook.stem}.html",
        title=_plain(title) if title else notebook.stem,
        question=_first_sentence(title.find_next("p") if title else soup.find("p")),
        sections=[(heading.get("id", ""), _plain(heading)) for heading in soup.find_all("h2")],
        opening="".join(cells[:1]),
        rest="".join(cells[1:]),
        wall_seconds=nb.metadata.get("papermill", {}).get("duration"),
        tables=tables,
    )


def _sections(cells: list) -> list[list]:
    """Cells grouped by the headings of second level that begin them."""
    sections: list[list] = [[]]
    for cell in cells:
        if cell.cell_type == "markdown" and cell.source.startswith("## "):
            sections.append([])
        sections[-1].append(cell)
    return sections


def _silent(section: list) -> bool:
    code = [cell for cell in section if cell.cell_type == "code"]
    return bool(code) and section[0].source.startswith("## ") and not any(cell.outputs for cell in code)


def _tidy(soup: BeautifulSoup) -> None:
    """Scripts dropped, tables scrollable, links between notebooks made links between pages, ids unique."""
    for script in soup.find_all("script"):
        script.decompose()
    _keep_percents_together(soup)
    for table in soup.find_all("table"):
        del table["border"]
        table.wrap(soup.new_tag("div", attrs={"class": "scroll"}))
        for header in table.find_all("th"):
            header["scope"] = "col" if header.find_parent("thead") else "row"
            header.attrs.pop("valign", None)
    for link in soup.find_all("a", href=True):
        link["href"] = re.sub(r"^(?!\w+:)([^#?]*)\.ipynb(?=$|#)", r"\1.html", link["href"])
    for formula in soup.find_all("math", display="inline"):
        after = formula.next_sibling
        mark = re.match(r"[,.;:!?)]+", after) if isinstance(after, str) else None
        if mark:  # a browser would break the line between them
            after.replace_with(after[mark.end() :])
            formula.wrap(soup.new_tag("span", attrs={"class": "together"})).append(mark[0])
    seen = set()
    for heading in soup.find_all(["h1", "h2", "h3", "h4"]):
        base = name = re.sub(r"[^\w-]+", "-", _plain(heading)).strip("-").lower() or "section"
        number = 1
        while name in seen:
            number += 1
            name = f"{base}-{number}"
        seen.add(name)
        heading["id"] = name
        anchor = heading.find("a", class_="anchor-link")
        if anchor:
            anchor.attrs |= {"href": f"#{name}", "aria-label": "Link to this section"}


def _keep_percents_together(soup: BeautifulSoup) -> None:
    """No line of prose breaks between a number and its per cent sign."""
    for text in soup.find_all(string=re.compile(r"\d %")):
        if not text.find_parent(["pre", "code", "script", "style"]):
            text.replace_with(re.sub(r"(?<=\d) (?=%)", "\u00a0", text))


def _set_minus_signs(soup: BeautifulSoup) -> None:
    """Negative numbers get a minus sign in place of a hyphen, once the tables have been read as numbers."""
    for text in soup.find_all(string=re.compile(r"-\.?\d")):
        if not text.find_parent(["pre", "code", "script", "style", "math"]):
            text.replace_with(re.sub(r"(?<![^\s(\[,])-(?=\.?\d)", "\u2212", text))


def _set_symbols(soup: BeautifulSoup) -> None:
    """w_out and its like in sentences and cells with the index below the line; whoever copies or searches finds the text as it was."""
    for text in soup.find_all(string=SYMBOL):
        if not text.find_parent(["pre", "code", "script", "style", "math", "title", "option"]):
            text.replace_with(
                BeautifulSoup(
                    SYMBOL.sub(r"<i>\1</i><span class=under>_</span><sub>\2</sub>", str(escape(text))), "html.parser"
                )
            )


def add_figure_tools(soup: BeautifulSoup, folder: Path) -> None:
    """Makes every picture a figure with its name as anchor and links to its files in `folder`, those that are there."""
    for number, image in enumerate(soup.find_all("img"), 1):
        frame = image.find_parent(attrs={"data-figure": True})
        name = frame["data-figure"] if frame else ""
        figure = image.wrap(soup.new_tag("figure", attrs={"class": "picture", "id": name or f"figure-{number}"}))
        tools = soup.new_tag("figcaption", attrs={"class": "tools"})
        for kind in FIGURE_FILES if name else ():
            if (folder / f"{name}.{kind}").exists():
                link = {**figure_file(folder / f"{name}.{kind}"), "aria-label": f"{kind.upper()} of this figure"}
                tools.append(soup.new_tag("a", attrs=link, string=kind.upper()))
        figure.append(tools)
        if frame:
            del frame["data-figure"]


def figure_file(path: Path) -> dict[str, str]:
    """Attributes of a link that saves a figure's file. A browser shows a drawing of another file instead of saving it, so
    that the page holds it, compressed; a PNG is on the page already."""
    link = {"href": f"../figures/{path.name}", "download": path.name}
    return link | (
        {"data-gzip": b64encode(gzip.compress(path.read_bytes(), mtime=0)).decode()} if path.suffix == ".svg" else {}
    )


def add_table_tools(soup: BeautifulSoup, stem: str) -> dict[str, pd.DataFrame]:
    """Links under every table to it as CSV and Parquet; returns the tables by name, to be written beside the page.

    A scrolling box is named after the heading above it, so that it can be told apart by a screen reader.
    """
    tables = {}
    for number, element in enumerate(soup.select("table, [role=table]"), 1):
        name = element.get("data-table") or f"{stem}-{number}"
        tables[name] = read_table(element)
        heading = element.find_previous(["h1", "h2", "h3"])
        about = _plain(heading) if heading else f"table {number}"
        box = element.find_parent(class_="scroll") or element
        if box is not element:
            box.attrs |= {"tabindex": "0", "role": "region", "aria-label": f"Table {number}: {about}"}
        tools = soup.new_tag("p", attrs={"class": "tools"})
        for kind, ending in {"CSV": "csv", "Parquet": "parquet"}.items():
            link = {"href": f"data/{name}.{ending}", "download": "", "aria-label": f"{kind} of table {number}"}
            tools.append(soup.new_tag("a", attrs=link, string=kind))
        box.insert_after(tools)
    return tables


def _rows(table) -> list[list]:
    """An HTML table's cells row by row, those of the head first; rows of another length are left out: a neuron's examples."""
    if table.name == "table":
        rows = [row.find_all(["th", "td"]) for row in table.find_all("tr")]
    else:
        rows = [row.find_all(attrs={"role": ["columnheader", "cell"]}) for row in table.find_all(attrs={"role": "row"})]
    return [row for row in rows if len(row) == len(rows[0])]


def link_neurons(soup: BeautifulSoup, address: str) -> None:
    """Makes every neuron of the reference seed a link to its page: in tables with columns layer and neuron, and in headings."""
    for table in soup.select("table, [role=table]"):
        head, *body = _rows(table) or [[]]
        names = [_plain(cell) for cell in head]
        if {"layer", "neuron"} <= set(names) and "seed" not in names:
            for row in body:
                layer, neuron = (_plain(row[names.index(name)]).replace(",", "") for name in ("layer", "neuron"))
                cell = row[names.index("neuron")]
                link = soup.new_tag(
                    "a",
                    attrs={
                        "href": f"{address}{layer}/{neuron}",
                        "aria-label": f"Page of layer {layer} neuron {neuron}",
                    },
                )
                link.extend(list(cell.contents))
                cell.append(link)
    for heading in soup.find_all("h4"):
        named = re.match(r"layer (\d+) neuron (\d+)(?!\d)", _plain(heading))
        if named and heading.string:
            heading.string.wrap(soup.new_tag("a", attrs={"href": f"{address}{named[1]}/{named[2]}"}))


def read_table(element) -> pd.DataFrame:
    """What an HTML table shows: a column is of numbers if all its cells are, thousands separated or not."""
    head, *body = [[_plain(cell) for cell in row] for row in _rows(element)] or [[]]
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


def check_offline(soup: BeautifulSoup) -> None:
    """Raises InputError for a picture without alt text and for anything that a browser would fetch."""
    for image in soup.find_all("img"):
        if image.get("alt", "").strip() in ("", _NO_ALT):
            raise InputError(
                "a picture has no alt text; show it with the gallery of lib.display.plots or with Image(…, alt=…)"
            )
    for element in soup.find_all(True):
        fetched = [element.get(name) for name in ("src", "srcset", "poster", "data", "background")]
        if element.name in ("link", "image", "use"):
            fetched += [element.get("href"), element.get("xlink:href")]
        styles = element.get("style", "") + (element.get_text() if element.name == "style" else "")
        fetched += [match[1] for match in re.finditer(r"(?:url\(|@import)\s*['\"]?([^'\")\s;]+)", styles)]
        outside = next((source for source in fetched if source and not source.startswith(("data:", "#"))), None)
        if outside:
            raise InputError(f"the page would fetch {outside[:100]!r}; a report holds everything it shows")


def _plain(element) -> str:
    """An element's text without the anchor of a heading, in one line."""
    texts = [text for text in element.find_all(string=True) if not text.find_parent(class_="anchor-link")]
    return " ".join("".join(texts).split())


def _first_sentence(paragraph) -> str:
    if paragraph is None:
        return ""
    text = re.sub(r"^Question[.:]\s*", "", _plain(paragraph))
    sentence = re.match(r".+?[.?!](?=\s|$)", text)
    return sentence[0] if sentence else text


def embedded_picture(path: Path) -> dict:
    """A PNG as the front page shows it: source (data URL), alt (its `Description`, as lib.display.plots writes it), width in
    CSS pixels, and its files beside it."""
    with Image.open(path) as picture:
        alt = picture.info.get("Description") or path.stem.replace("_", " ")
        width = picture.width // 2  # figures are drawn at twice the resolution that they are shown at
    files = [
        {"kind": kind.upper(), "link": figure_file(path.with_suffix(f".{kind}"))}
        for kind in FIGURE_FILES
        if path.with_suffix(f".{kind}").exists()
    ]
    return {
        "source": "data:image/png;base64," + b64encode(path.read_bytes()).decode(),
        "alt": alt,
        "width": width,
        "files": files,
    }


def finished(html: str, stem: str) -> tuple[str, dict[str, pd.DataFrame]]:
    """A page of our own templates with links under its tables, and these tables by name."""
    soup = BeautifulSoup(html, "html.parser")
    _keep_percents_together(soup)
    tables = add_table_tools(soup, stem)
    _set_symbols(soup)
    return str(soup), tables


def bold(text: str) -> Markup:
    """A sentence with **numbers** as HTML; everything else is escaped."""
    return Markup(re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", str(escape(text))))


def page(template: str, **content) -> str:
    """A whole HTML page from one of the templates in lib/report/templates."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": count, "percent": percent, "duration": duration, "memory": memory, "bold": bold}
    script = (TEMPLATES / "page.js").read_text()
    allowed = b64encode(
        sha256(script.encode()).digest()
    ).decode()  # the page's policy lets this script run and no other
    shared = {"style": (TEMPLATES / "style.css").read_text(), "script": script, "script_hash": f"'sha256-{allowed}'"}
    return environment.get_template(template).render(**shared, **content)


def count(number: float) -> str:
    """1234567 as 1,234,567."""
    return f"{int(number):,}"


def percent(share: float) -> str:
    """A share as percent, with more decimals the smaller it is, two at most."""
    value = 100 * share
    decimals = 0 if value >= 99.5 or value == 0 else 1 if value >= 10 else 2
    return f"{value:.{decimals}f} %"


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
