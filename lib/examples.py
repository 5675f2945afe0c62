"""HTML views of neurons: the text around their strongest activations, and a browsable table of neurons.

Plain HTML with one small style sheet and one small script, no library and nothing fetched; it works in JupyterLab and
in the exported report. All text from the corpus is escaped.
"""

from collections.abc import Sequence
from html import escape

import numpy as np
import pandas as pd

LEVELS = 9  # steps of shading
VISIBLE = str.maketrans({"\n": "⏎", "\r": "␍", "\t": "⇥", "\ufeff": "⟨U+FEFF⟩", "\u200b": "⟨U+200B⟩"})

STYLE = (
    "<style>.neuron-text{background:#fff;color:#111;font:13px/1.7 ui-monospace,Menlo,Consolas,monospace;"
    "white-space:pre-wrap;overflow-wrap:anywhere;margin:2px 0;padding:1px 6px;border-left:3px solid #d9d9d9}"
    ".neuron-text i{font-style:normal;border-radius:2px}.neuron-text b{text-decoration:underline}"
    ".neuron-text small{color:#555;user-select:none}"
    + "".join(f".neuron-text .s{level}{{background:rgba(213,94,0,{level / LEVELS * 0.75:.2f})}}" for level in range(1, LEVELS + 1))
    + ".neuron-table{border-collapse:collapse;font:13px/1.5 system-ui,sans-serif;background:#fff;color:#111}"
    ".neuron-table th,.neuron-table td{padding:2px 10px;text-align:right;border-bottom:1px solid #e6e6e6}"
    ".neuron-table th button{all:unset;cursor:pointer;font-weight:600}.neuron-table th button:focus{outline:2px solid #0072B2}"
    ".neuron-table td.more{text-align:left;border-bottom:2px solid #cfcfcf}.neuron-table summary{cursor:pointer}</style>"
)

SCRIPT = """<script>
function sortNeurons(button) {
  const head = button.closest("th"), table = head.closest("table"), column = head.cellIndex;
  const down = head.getAttribute("aria-sort") !== "descending";
  table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const value = body => parseFloat(body.rows[0].cells[column].dataset.value);
  [...table.tBodies].sort((a, b) => down ? value(b) - value(a) : value(a) - value(b))
    .forEach(body => table.append(body));
}
</script>"""


def _byte_of_letter() -> dict[str, int]:
    """Byte-level BPE writes every byte as one letter; this is the way back (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {chr(byte): byte for byte in printable}
    table |= {chr(256 + index): byte for index, byte in enumerate(sorted(set(range(256)) - set(printable)))}
    return table


BYTE_OF_LETTER = _byte_of_letter()


def token_text(tokenizer, token: int) -> str:
    """One token as a reader can see it: line ends and tabs as signs, bytes that are no whole character as ⟨E2 80⟩."""
    text = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    if "\ufffd" in text:
        letters = tokenizer.convert_ids_to_tokens(token)
        if all(letter in BYTE_OF_LETTER for letter in letters):
            return "⟨" + " ".join(f"{BYTE_OF_LETTER[letter]:02X}" for letter in letters) + "⟩"
    return text.translate(VISIBLE)


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
        lines = [
            self._line(layer, neuron, rank)
            for rank in range(min(limit, self.value.shape[-1]))
            if self.block[layer, neuron, rank] >= 0
        ]
        return "".join(lines) or "<p>No example: the neuron was never counted.</p>"

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
        return f"<div class=neuron-text><small>{self.value[at]:.2f} · {domain}</small>  {''.join(pieces)}</div>"

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
    """A table of neurons, sorted by a click on a column head; each row opens to the neuron's examples.

    `chosen` has layer, neuron and `columns`; its order is the order shown at first.
    """
    shown = ["layer", "neuron", *columns]
    if chosen.empty:
        return STYLE + "<p>No neuron to show.</p>"
    head = "".join(
        f'<th scope=col><button type=button onclick="sortNeurons(this)" title="sort">{escape(name)}</button></th>'
        for name in shown
    )
    bodies = []
    for record in chosen[shown].to_dict("records"):
        cells = "".join(f'<td data-value="{record[name]}">{_cell(record[name])}</td>' for name in shown)
        lines = examples.html(int(record["layer"]), int(record["neuron"]), limit)
        bodies.append(
            f"<tbody><tr>{cells}</tr><tr><td class=more colspan={len(shown)}>"
            f"<details><summary>examples</summary>{lines}</details></td></tr></tbody>"
        )
    table = f"<table class=neuron-table><thead><tr>{head}</tr></thead>{''.join(bodies)}</table>"
    return STYLE + SCRIPT + f'<div style="overflow-x:auto">{table}</div>'


def _cell(value) -> str:
    return f"{value:,}" if isinstance(value, int | np.integer) else f"{value:.3f}"
