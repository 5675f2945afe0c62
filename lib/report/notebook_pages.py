"""From an executed notebook to a chapter in HTML: equations as MathML, links to neurons and files, ids of headings.

A chapter holds everything it shows: a picture without alt text, or anything that a browser would fetch, is refused.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import pandas as pd
from bs4 import BeautifulSoup
from jinja2 import pass_context
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath, MathInlineParser

from lib.base.errors import InputError
from lib.report.arrange import arrange
from lib.report.drawings import add_figures
from lib.report.glossary import mark_terms
from lib.report.pages import (
    TEMPLATES,
    add_table_tools,
    explain_names,
    keep_percents_together,
    plain,
    replace_in_prose,
    set_symbols,
    table_rows,
)

_MATHML = "{http://www.w3.org/1998/Math/MathML}"
_NO_ALT = "No description has been provided for this image"  # nbconvert's words
_WITH_LIMITS = {"max", "min", "sup", "inf", "lim"}  # a display puts their subscript below
_ARGUMENTS = {f"{_MATHML}{kind}" for kind in ("mi", "mn", "msub", "msup", "msubsup", "mfrac")}

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


# ---------------------------------------------------------------- equations and Markdown


def mathml(latex: str, display: bool = False) -> str:
    """A LaTeX formula as MathML; InputError if it cannot be rendered."""
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
    r"""latex2mathml makes \mathrm{out} three identifiers; this makes it one."""
    letters = [child for child in parent if child.tag == f"{_MATHML}mi" and child.get("mathvariant") == "normal"]
    if parent.tag == f"{_MATHML}mrow" and len(letters) == len(parent) > 1:
        word = "".join(child.text or "" for child in letters)
        for child in letters:
            parent.remove(child)
        ElementTree.SubElement(parent, f"{_MATHML}mi").text = word


def _space_after_functions(parent: ElementTree.Element) -> None:
    r"""Adds the thin space of TeX between a function's name and its argument, as in \ln p."""
    for index in reversed(range(1, len(parent) if parent.tag == f"{_MATHML}mrow" else 0)):
        name, argument = parent[index - 1], parent[index]
        if name.tag == f"{_MATHML}mi" and len(name.text or "") > 1 and argument.tag in _ARGUMENTS:
            parent.insert(index, ElementTree.Element(f"{_MATHML}mspace", width="0.167em"))


class _InlineParser(MathInlineParser):
    """A `$` before a blank opens no formula, and one before a digit closes none, so prices stay prices; no formula
    spans code."""

    SPECIFICATION = {
        **MathInlineParser.SPECIFICATION,
        "inline_math_tex": r"(?<![$\\])\$(?=\S)(?P<math_inline_tex>[^$`]*?[^\s$`\\])\$(?![$\d])",
    }


class _Renderer(IPythonRenderer):
    """Markdown to HTML with rendered formulas."""

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
        renderer = _Renderer(
            escape=False,
            attachments=context.get("cell", {}).get("attachments", {}),
            embed_images=True,
            path=context.get("resources", {}).get("metadata", {}).get("path", ""),
            anchor_link_text=self.anchor_link_text,
        )
        return MarkdownWithMath(renderer, inline=_InlineParser(hard_wrap=False)).render(source)


# ---------------------------------------------------------------- chapters


def read_chapter(notebook: Path, neurons: str | None = None) -> Chapter:
    """An executed notebook as a chapter; InputError if a picture has no alt text or the page would need the network.

    A section whose code showed nothing is left out. Figures link to their files in ../figures. `neurons` is the address
    of the reference seed's neurons, up to `layer/neuron`; with it, neurons link to their pages.
    """
    try:
        nb = nbformat.read(notebook, as_version=4)
    except Exception as error:  # whatever nbformat meets in a file that is cut short
        raise InputError(
            f"{notebook} is cut short or no notebook; delete it and run the same command again."
        ) from error
    nb.cells = [cell for section in _sections(nb.cells) if not _silent(section) for cell in section]
    try:
        body, _ = _Exporter().from_notebook_node(nb, {"metadata": {"path": str(notebook.parent)}})
        soup = BeautifulSoup(body, "html.parser")
        _tidy(soup)
        check_offline(soup)
        add_figures(soup, notebook.parent.parent / "figures")
        tables = add_table_tools(soup, notebook.stem)
        if neurons is not None:
            link_neurons(soup, neurons)
        arrange(soup)
        mark_terms(soup)
        explain_names(soup)
        # last, because tables are read as numbers before
        replace_in_prose(soup, r"(?<![^\s(\[,])-(?=\.?\d)", "\u2212")
        set_symbols(soup)
    except InputError as error:
        raise InputError(f"{notebook.name}: {error}.") from error
    title = soup.find("h1")
    cells = [str(cell) for cell in soup.find_all(recursive=False)]
    return Chapter(
        name=f"{notebook.stem}.html",
        title=plain(title) if title else notebook.stem,
        question=_first_sentence(title.find_next("p") if title else soup.find("p")),
        sections=[(heading.get("id", ""), plain(heading)) for heading in soup.find_all("h2")],
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


def _first_sentence(paragraph) -> str:
    text = re.sub(r"^Question[.:]\s*", "", plain(paragraph)) if paragraph else ""
    sentence = re.match(r".+?[.?!](?=\s|$)", text)
    return sentence[0] if sentence else text


def _tidy(soup: BeautifulSoup) -> None:
    """Drops scripts, makes tables scroll, turns links between notebooks into links between pages, makes ids unique."""
    for script in soup.find_all("script"):
        script.decompose()
    keep_percents_together(soup)
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
    _name_headings(soup)


def _name_headings(soup: BeautifulSoup) -> None:
    seen = set()
    for heading in soup.find_all(["h1", "h2", "h3", "h4"]):
        base = name = re.sub(r"[^\w-]+", "-", plain(heading)).strip("-").lower() or "section"
        number = 1
        while name in seen:
            number += 1
            name = f"{base}-{number}"
        seen.add(name)
        heading["id"] = name
        anchor = heading.find("a", class_="anchor-link")
        if anchor:
            anchor.attrs |= {"href": f"#{name}", "aria-label": "Link to this section"}


def link_neurons(soup: BeautifulSoup, address: str) -> None:
    """Links the reference seed's neurons to their pages: in tables with columns layer and neuron, and in headings."""
    for table in soup.select("table, [role=table]"):
        head, *body = table_rows(table) or [[]]
        names = [plain(cell) for cell in head]
        if "seed" in names or not {"layer", "neuron"} <= set(names):
            continue
        for row in body:
            layer, neuron = (plain(row[names.index(name)]).replace(",", "") for name in ("layer", "neuron"))
            cell, label = row[names.index("neuron")], f"Page of layer {layer} neuron {neuron}"
            link = soup.new_tag("a", attrs={"href": f"{address}{layer}/{neuron}", "aria-label": label})
            link.extend(list(cell.contents))
            cell.append(link)
    for heading in soup.find_all("h4"):
        named = re.match(r"layer (\d+) neuron (\d+)(?!\d)", plain(heading))
        if named and heading.string:
            heading.string.wrap(soup.new_tag("a", attrs={"href": f"{address}{named[1]}/{named[2]}"}))


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
