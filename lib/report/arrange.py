"""The order of a chapter's page: question, answer, results, and at its foot what only some readers look for.

A notebook begins with its parameters and ends with its findings in short; a page begins with the findings.
"""

import re

from bs4 import BeautifulSoup, Tag

FOOT = "About this chapter"
PARAMETERS = ("celltag_parameters", "celltag_injected-parameters")


def arrange(soup: BeautifulSoup) -> None:
    """Lifts the box In short under the question, and moves parameters, versions and sources into a fold at the end.

    `soup` has a notebook's cells side by side; the first has title and question.
    """
    wrap_equations(soup)
    title = soup.find("h1")
    if title is None:
        return
    question = title.find_next("p")
    _lift(soup, question or title)
    foot = [*_after(question), *_setup(soup)]
    if foot:
        fold = soup.new_tag("details", attrs={"class": "foot"})
        fold.append(soup.new_tag("summary", string=FOOT))
        fold.extend(element.extract() for element in foot)
        soup.append(fold)


def wrap_equations(soup: BeautifulSoup) -> None:
    """Puts each displayed equation into a box that can scroll; no browser scrolls the formula itself."""
    for formula in soup.find_all("math", display="block"):
        formula.wrap(soup.new_tag("span", attrs={"class": "equation"}))


def _lift(soup: BeautifulSoup, above: Tag) -> None:
    box = soup.select_one(".in-short")
    if box is None:
        return
    cell = list(box.parents)[-2]  # the last parent is the soup
    above.insert_after(box.extract())
    cell.decompose()
    for link in box.find_all("a", href=True):
        figure = soup.find(id=link["href"].removeprefix("#"))
        if figure is None:  # this run has not drawn it
            link.decompose()
        else:
            link.string = name_of(figure)


def name_of(figure: Tag) -> str:
    """What a link to a figure says: its number, where its caption has one."""
    caption = figure.find("figcaption")
    number = re.match(r"Figure [\d.]*\d", caption.get_text().strip()) if caption else None
    return number[0] if number else "figure"


def _after(question: Tag | None) -> list[Tag]:
    """What follows the question in its cell, without the box."""
    following = question.find_next_siblings() if question else []
    return [element for element in following if "in-short" not in element.get("class", [])]


def _setup(soup: BeautifulSoup) -> list[Tag]:
    """The cells of parameters, and code and printed lines of the cell after them, which imports."""
    parameters = soup.select(", ".join(f".{tag}" for tag in PARAMETERS))
    after = parameters[-1].find_next_sibling() if parameters else None
    imports = after.select("details.source, .output_stream") if after and "code_cell" in after["class"] else []
    return [*parameters, *imports]
