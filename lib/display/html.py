"""HTML views of neurons: the text around their strongest activations, and a browsable table of neurons.

Plain HTML with one small style sheet, no script and nothing fetched, so it works in JupyterLab and in an exported page
that forbids scripts. All text from the corpus is escaped.
"""

from collections.abc import Sequence
from html import escape
from zlib import crc32

import numpy as np
import pandas as pd

from lib.text.tokens import token_text

LEVELS = 9  # steps of shading
STYLE = (
    "<style>.neuron-text{display:block;background:#fff;color:#111;font:13px/1.7 ui-monospace,Menlo,Consolas,monospace;"
    "white-space:break-spaces;overflow-wrap:anywhere;margin:2px 0;padding:1px 6px;border-left:3px solid #d9d9d9}"
    ".neuron-text i{font-style:normal;border-radius:2px}.neuron-text b{text-decoration:underline}"
    ".neuron-text small{color:#555;user-select:none}"
    + "".join(
        f".neuron-text .s{level}{{background:rgba(213,94,0,{level / LEVELS * 0.75:.2f})}}"
        for level in range(1, LEVELS + 1)
    )
    + ".neuron-table{font:13px/1.5 system-ui,sans-serif;background:#fff;color:#111;overflow-x:auto}"
    ".neuron-table .row{display:grid;grid-auto-flow:column;grid-auto-columns:minmax(5.5em,1fr);text-align:right}"
    ".neuron-table .row>*{padding:1px 6px}.neuron-table .head{border-bottom:2px solid #999;font-weight:600}"
    ".neuron-table .head{align-items:end}.neuron-table .head label{cursor:pointer;position:relative}"
    ".neuron-table .head input{position:absolute;opacity:0}.neuron-table .head label:has(:focus-visible){outline:2px solid}"
    ".neuron-table .head label:has(:checked){color:#0072B2}.neuron-table .head label:has(:checked)::after{content:'\u25be'}"
    ".neuron-table .neurons{display:flex;flex-direction:column}.neuron-table .neuron{border-bottom:1px solid #cfcfcf}"
    ".neuron-table:has(.reverse:checked) .neurons{flex-direction:column-reverse}"
    ".neuron-table summary{cursor:pointer}.neuron-table summary .neuron-text{display:inline;border:0;padding:0}</style>"
)


class Examples:
    """The strongest examples of one seed's neurons, as HTML.

    `arrays` is the run's accumulator: `<seed>.value`, `.block`, `.position` (layers, d_mlp, k) with block −1 where
    there is none, and `.window` (layers, d_mlp, k, 2·radius + 1), the activations around the example. `text` has
    `tokens` (blocks, context), `domain` (blocks) and `domains`.
    """

    def __init__(self, arrays: dict[str, np.ndarray], seed: str, text, tokenizer):
        self.value, self.block, self.position, self.window = (
            arrays[f"{seed}.{name}"] for name in ("value", "block", "position", "window")
        )
        self.text, self.tokenizer = text, tokenizer
        self._tokens: dict[int, str] = {}

    def html(self, layer: int, neuron: int, limit: int = 5) -> str:
        """The strongest `limit` examples, one line each: activation, domain, tokens shaded by activation."""
        return "".join(self.lines(layer, neuron, limit))

    def lines(self, layer: int, neuron: int, limit: int = 5) -> list[str]:
        """The same as a list; one line saying so if there is no example."""
        ranks = range(min(limit, self.value.shape[-1]))
        lines = [self._line(layer, neuron, rank) for rank in ranks if self.block[layer, neuron, rank] >= 0]
        return lines or ["<span class=neuron-text>no example: the neuron saw no counted token</span>"]

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
            pieces.append(f"<i class=s{level}>{piece}</i>" if level else piece)
        domain = escape(self.text.domains[int(self.text.domain[block])])
        return f"<span class=neuron-text><small>{self.value[at]:.2f} · {domain}</small>  {''.join(pieces)}</span>"

    def _text(self, token: int) -> str:
        if token not in self._tokens:
            self._tokens[token] = token_text(self.tokenizer, token)
        return self._tokens[token]


def gallery_html(examples: Examples, chosen: pd.DataFrame, limit: int = 5) -> str:
    """A heading and the strongest examples of each neuron in `chosen` (rows with layer, neuron)."""
    parts = [
        f"<h4>layer {row.layer} neuron {row.neuron}</h4>{examples.html(int(row.layer), int(row.neuron), limit)}"
        for row in chosen.itertuples()
    ]
    return STYLE + "".join(parts)


def neuron_table_html(examples: Examples, chosen: pd.DataFrame, columns: Sequence[str], limit: int = 5) -> str:
    """A table of neurons that sorts without a script; under each row stands the neuron's strongest example.

    A choice of a column head orders the rows by the ranks that each row carries, largest first (layer and neuron:
    smallest first); "reverse" turns the order around; a click on an example shows the next ones. `chosen` has layer,
    neuron and `columns`; it is first shown sorted by the first of `columns`.
    """
    if chosen.empty:
        return STYLE + "<p>No neuron to show.</p>"
    shown = ["layer", "neuron", *columns]
    ranks = pd.concat(
        [chosen[["layer", "neuron"]].rank(method="first"), chosen[list(columns)].rank(method="first", ascending=False)],
        axis=1,
    ).fillna(len(chosen) + 1)  # undefined values last
    name = f"sort-{crc32(chosen[shown].to_csv().encode()):08x}"  # another name for every table of a page
    rules = "".join(
        f".neuron-table:has(#{name}-{index}:checked) .neuron{{order:var(--r{index})}}" for index in range(len(shown))
    )
    head = "".join(
        f"<span role=columnheader><label><input type=radio name={name} id={name}-{index}{' checked' if index == 2 else ''}> "
        f"{escape(column).replace('_', '_<wbr>')}</label></span>"
        for index, column in enumerate(shown)
    )
    rows = []
    for values, rank in zip(chosen[shown].to_dict("records"), ranks[shown].to_numpy(int), strict=True):
        order = ";".join(f"--r{index}:{place}" for index, place in enumerate(rank))
        cells = "".join(f"<span role=cell>{_cell(value)}</span>" for value in values.values())
        first, *more = examples.lines(int(values["layer"]), int(values["neuron"]), limit)
        rows.append(
            f'<div class=neuron role=rowgroup style="{order}"><div class=row role=row>{cells}</div>'
            f"<div role=row><div role=cell><details><summary>{first}</summary>{''.join(more)}</details></div></div></div>"
        )
    return (
        f"{STYLE}<style>{rules}</style><div class=neuron-table><label><input type=checkbox class=reverse> reverse</label>"
        f'<div role=table aria-label="Neurons"><div class="row head" role=row>{head}</div><div class=neurons>{"".join(rows)}</div></div></div>'
    )


def _cell(value) -> str:
    return f"{value:,}" if isinstance(value, int | np.integer) else f"{value:.3f}"


def table_html(table: pd.DataFrame) -> str:
    """A table as HTML, without its index: columns of words are left-aligned and wrap, numbers stay right-aligned."""
    worded = [not pd.api.types.is_numeric_dtype(table[column]) for column in table]
    left = "text-align:left"
    heads = "".join(
        f'<th style="{left}">{escape(str(name))}</th>' if words else f"<th>{escape(str(name))}</th>"
        for name, words in zip(table, worded, strict=True)
    )
    word = f'<td class="words" style="{left};white-space:normal;overflow-wrap:break-word">'
    rows = "".join(
        "<tr>"
        + "".join(
            f"{word if words else '<td>'}{escape(str(cell))}</td>" for cell, words in zip(row, worded, strict=True)
        )
        + "</tr>"
        for row in table.itertuples(index=False)
    )
    return f'<table class="dataframe words"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'
