"""The box "In short" of a chapter: its two or three findings, each with a link to the figure that shows it.

The chapter's last cell shows it; the page lifts it under the question (lib/report/arrange.py).
"""

import re
from collections.abc import Iterable
from html import escape
from typing import NamedTuple

from IPython.display import HTML


class Finding(NamedTuple):
    """A sentence or two (Markdown's ** for the number that decides), and the name of the figure that shows it."""

    text: str
    figure: str = ""


def in_short(findings: Iterable[Finding]) -> HTML:
    """The findings as a list; one without a figure has no link."""
    lines = [f"<li>{_bold(finding.text)}{_link(finding.figure)}</li>" for finding in findings]
    return HTML(f'<div class="in-short"><p><b>In short</b></p><ul>{"".join(lines)}</ul></div>')


def _bold(text: str) -> str:
    return re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", escape(text, quote=False))


def _link(figure: str) -> str:
    return f' <a href="#{escape(figure)}">figure</a>' if figure else ""
