"""The HTML of the report's notebooks: neurons' strongest examples, a sortable table of neurons, plain tables.

There is one style sheet (neurons.css), no script and nothing fetched, so it works in JupyterLab and in exported pages
that forbid scripts. Where even the style sheet is dropped, as on GitHub, tables stay tables, an example's own token is
bold and tokens with at least half of its activation are underlined. All text from the corpus is escaped.
"""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from zlib import crc32

import numpy as np
import pandas as pd

from lib.text.tokens import token_text

LEVELS = 9  # steps of shading
STRONG = 5  # the step from which a token is underlined where there is no style sheet
SHADES = "".join(
    f".neuron-text .s{level}{{background:rgba(213,94,0,{level / LEVELS * 0.75:.2f})}}" for level in range(1, LEVELS + 1)
)
CSS = Path(__file__).with_name("neurons.css").read_text(encoding="utf-8")
STYLE = f"<style>{' '.join(CSS.split())}{SHADES}</style>"


class Examples:
    """The strongest examples of one seed's neurons, as HTML.

    `arrays` is the run's accumulator: `<seed>.value`, `.block`, `.position` (layers, d_mlp, k) with block −1 for no
    example, and `.window` (layers, d_mlp, k, 2·radius + 1), the activations around the example.
    """

    def __init__(self, arrays: dict[str, np.ndarray], seed: str, text, tokenizer):
        self.value, self.block, self.position, self.window = (
            arrays[f"{seed}.{name}"] for name in ("value", "block", "position", "window")
        )
        self.text, self.tokenizer = text, tokenizer
        self._tokens: dict[int, str] = {}

    def html(self, layer: int, neuron: int, limit: int = 5) -> str:
        """The strongest `limit` examples, a line each: activation, domain, tokens shaded by activation."""
        return "".join(f"<div class=neuron-text>{line}</div>" for line in self.lines(layer, neuron, limit))

    def lines(self, layer: int, neuron: int, limit: int = 5) -> list[str]:
        """What stands in these lines; one that says so if there is no example."""
        ranks = range(min(limit, self.value.shape[-1]))
        lines = [self._line(layer, neuron, rank) for rank in ranks if self.block[layer, neuron, rank] >= 0]
        return lines or ["no example: the neuron saw no counted token"]

    def _line(self, layer: int, neuron: int, rank: int) -> str:
        at = (layer, neuron, rank)
        block, position, window = int(self.block[at]), int(self.position[at]), self.window[at].astype(np.float32)
        radius, strongest = len(window) // 2, float(self.value[layer, neuron, 0])
        tokens = self.text.tokens[block]
        pieces = []
        for place in range(max(0, position - radius), min(len(tokens), position + radius + 1)):
            activation = window[place - position + radius]
            share = activation / strongest if strongest > 0 and np.isfinite(activation) else 0
            level = int(np.clip(np.ceil(LEVELS * share - 0.5), 0, LEVELS))
            piece = escape(self._text(int(tokens[place])))
            piece = f"<b>{piece}</b>" if place == position else piece
            pieces.append(shaded(piece, level))
        domain = escape(self.text.domains[int(self.text.domain[block])])
        return f"<small>{self.value[at]:.2f} · {domain}</small>  {''.join(pieces)}"

    def _text(self, token: int) -> str:
        if token not in self._tokens:
            self._tokens[token] = token_text(self.tokenizer, token)
        return self._tokens[token]


def shaded(piece: str, level: int, hover: str = "") -> str:
    """A piece of HTML, shaded in one of LEVELS steps (0: not at all)."""
    tag, title = "u" if level >= STRONG else "span", f' title="{escape(hover)}"' if hover else ""
    return f"<{tag} class=s{level}{title}>{piece}</{tag}>" if level or hover else piece


def gallery_html(examples: Examples, chosen: pd.DataFrame, limit: int = 5) -> str:
    """A heading and the strongest examples of each neuron in `chosen` (rows with layer, neuron).

    Where the rows have a label and its score, the heading names them too.
    """
    parts = []
    for row in chosen.itertuples():
        label = f": {escape(row.label)}, score {row.score:.2f}" if "label" in chosen else ""
        strongest = examples.html(int(row.layer), int(row.neuron), limit)
        parts.append(f"<h4>layer {row.layer} neuron {row.neuron}{label}</h4>{strongest}")
    return STYLE + ("".join(parts) or "<p>No neuron to show.</p>")


def neuron_table_html(examples: Examples, chosen: pd.DataFrame, columns: Sequence[str], limit: int = 5) -> str:
    """A table of neurons that sorts without a script; under each row stands the neuron's strongest example.

    Choosing a column head orders the rows by the ranks that each row carries, largest first (layer and neuron: smallest
    first); "reverse" turns the order around; a click on an example shows the next ones. `chosen` has layer, neuron and
    `columns`; the table is first sorted by the first of `columns`.
    """
    if chosen.empty:
        return STYLE + "<p>No neuron to show.</p>"
    keys, columns = ["layer", "neuron"], list(columns)
    places, values = chosen[keys].rank(method="first"), chosen[columns].rank(method="first", ascending=False)
    ranks = places.join(values).fillna(len(chosen) + 1).to_numpy(int)  # undefined values last
    shown = chosen[keys + columns]
    name = f"sort-{crc32(shown.to_csv().encode()):08x}"  # differs between the tables of a page
    rules, heads, rows = [], [], []
    for index, column in enumerate(shown):
        rules.append(f".neuron-table:has(#{name}-{index}:checked) .neuron{{order:var(--r{index})}}")
        choice = f"<input type=radio name={name} id={name}-{index}{' checked' if index == 2 else ''}>"
        label = escape(column).replace("_", "_<wbr>")
        heads.append(f"<th role=columnheader scope=col><label>{choice} {label}</label></th>")
    for row, rank in zip(shown.to_dict("records"), ranks, strict=True):
        order = ";".join(f"--r{index}:{place}" for index, place in enumerate(rank))
        cells = "".join(f"<td role=cell>{_cell(value)}</td>" for value in row.values())
        first, *more = examples.lines(int(row["layer"]), int(row["neuron"]), limit)
        others = "".join(f"<div class=neuron-text>{line}</div>" for line in more)
        opened = f"<details><summary><span class=neuron-text>{first}</span></summary>{others}</details>"
        rows.append(
            f'<tbody class=neuron role=rowgroup style="{order}"><tr role=row>{cells}</tr>'
            f"<tr role=row><td role=cell colspan={len(heads)}>{opened}</td></tr></tbody>"
        )
    return (
        f"{STYLE}<style>{''.join(rules)}</style>"
        "<div class=neuron-table><label><input type=checkbox class=reverse> reverse</label>"
        f'<table role=table aria-label="Neurons"><thead role=rowgroup><tr role=row>{"".join(heads)}</tr></thead>'
        f"{''.join(rows)}</table></div>"
    )


def _cell(value) -> str:
    return f"{value:,}" if isinstance(value, int | np.integer) else f"{value:.3f}"


def table_html(table: pd.DataFrame) -> str:
    """A table as HTML, without its index: columns of words are left-aligned and wrap, numbers are right-aligned."""
    worded = [not pd.api.types.is_numeric_dtype(table[column]) for column in table]

    def row(cells: Sequence, tag: str, style: str) -> str:
        starts = (f"<{tag}{style}>" if words else f"<{tag}>" for words in worded)
        made = (f"{start}{escape(str(cell))}</{tag}>" for start, cell in zip(starts, cells, strict=True))
        return f"<tr>{''.join(made)}</tr>"

    head = row(list(table), "th", ' style="text-align:left"')
    style = ' class="words" style="text-align:left;white-space:normal;overflow-wrap:break-word"'
    rows = "".join(row(cells, "td", style) for cells in table.itertuples(index=False))
    return f'<table class="dataframe words"><thead>{head}</thead><tbody>{rows}</tbody></table>'
