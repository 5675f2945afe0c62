"""What the explorer notebook computes for a typed text: neurons that fire, as sets of matches, and labels that hold.

All seeds read the text, so this runs the models. Functions return tables or HTML; lib/lab/widgets.py has the controls.
"""

from collections.abc import Mapping, Sequence
from functools import cache, partial
from html import escape
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from lib.base.errors import InputError
from lib.display.captions import count
from lib.display.html import LEVELS, STYLE, shaded
from lib.labels.labels import LabelSet, position_labels, shifted
from lib.models.trunk import Trunk

MAX_TOKENS_SHOWN = 200  # of a typed text
SETS_SHOWN = 12
UNUSUAL = 2  # standard deviations above the mean
NEURON = ["seed", "layer", "neuron"]
PARTNER = ["model", "match_layer", "match_neuron"]


def text_tokens(tokenizer, typed: str, bos: int, context: int) -> list[int]:
    """A typed text as the models read it: BOS and its tokens; InputError if it is empty or longer than the context."""
    tokens = tokenizer(typed, add_special_tokens=False)["input_ids"]
    if not tokens:
        raise InputError("Type a text for the models to read.")
    if len(tokens) >= context:
        raise InputError(f"The text has {len(tokens):,} tokens; the models read at most {context - 1:,}.")
    return [bos, *tokens]


def activations(trunk: Trunk, tokens: list[int]) -> Float[np.ndarray, "layers tokens neurons"]:
    """Every neuron's activation on every token after BOS."""
    found: list[Tensor] = []
    trunk.run(torch.tensor([tokens]), lambda _layer, _pre, post: found.append(post[0, 1:].float()))
    return torch.stack(found).numpy()


def fired(post: Float[np.ndarray, "layers tokens neurons"], own: pd.DataFrame) -> pd.DataFrame:
    """One row per universal neuron that fires: its activation on some token lies UNUSUAL standard deviations above its
    mean. Columns: layer, neuron, excess_corr, `token` (index after BOS), `activation` there, `deviations`.

    `own` has the seed's rows of neurons_all_seeds; their activation_mean and activation_std are over the run's text.
    """
    chosen = own[own["is_universal"] & (own["activation_std"] > 0)]
    on = post[chosen["layer"], :, chosen["neuron"]]  # (chosen, tokens)
    token = on.argmax(1) if len(chosen) else np.zeros(0, int)
    peak = on[np.arange(len(chosen)), token]
    deviations = (peak - chosen["activation_mean"]) / chosen["activation_std"]
    rows = chosen[["layer", "neuron", "excess_corr"]].assign(token=token, activation=peak, deviations=deviations)
    return rows[deviations >= UNUSUAL].sort_values("deviations", ascending=False).reset_index(drop=True)


def matched_sets(fired_in: Mapping[str, pd.DataFrame], matches: pd.DataFrame) -> pd.DataFrame:
    """The rows of `fired` of all seeds with columns `seed` and `set`: neurons that mutual best matches connect.

    `matches` is matches_all_seeds. Sets come in the order of their largest deviation.
    """
    rows = pd.concat([own.assign(seed=seed) for seed, own in fired_in.items()], ignore_index=True)
    ends = rows[NEURON].assign(end=rows.index)
    edges = matches[matches["mutual"]].merge(ends, on=NEURON)
    edges = edges.merge(ends.set_axis([*PARTNER, "other"], axis=1), on=PARTNER)
    links = csr_array((np.ones(len(edges)), (edges["end"], edges["other"])), shape=(len(rows), len(rows)))
    rows["set"] = connected_components(links, directed=False)[1] if len(rows) else 0
    strongest = rows.groupby("set")["deviations"].transform("max")
    return rows.assign(strongest=strongest).sort_values(["strongest", "set", "seed"], ascending=[False, True, True])


def labels_holding(
    vocabulary: LabelSet, context: int, tokens: Sequence[int]
) -> tuple[pd.Index, Bool[np.ndarray, "labels tokens"]]:
    """Names of labels, and at which tokens after BOS each holds: labels of the token itself, of the token before and
    after, and of the position. Topics, domains and syntax of a typed text are not known.

    `vocabulary` has the labels of every token of the vocabulary (`token_labels`).
    """
    own, position = vocabulary.member[:, list(tokens)], position_labels(context)
    after = np.concatenate([own[:, 2:], np.zeros_like(own[:, :1])], axis=1)
    tables = [vocabulary.labels, *(shifted(vocabulary, f"{one}_token").labels for one in ("previous", "next"))]
    names = pd.concat([*tables, position.labels])["label"]
    return pd.Index(names), np.concatenate([own[:, 1:], own[:, :-1], after, position.member[:, 1 : len(tokens)]])


# ---------------------------------------------------------------- HTML


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@cache
def neuron_address(report: Path) -> str:
    """The address of a report's page of neurons, up to `seed/layer/neuron`; empty if there is no such page.

    The report is served to this machine only: JupyterLab forbids the pages that it serves to load their data.
    """
    if not (report / "neurons.html").exists():
        return ""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(report)))
    Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}/neurons.html#"


def shaded_text(
    texts: Sequence[str], values: Float[np.ndarray, "tokens"], labelled: Bool[np.ndarray, "tokens"] | None = None
) -> str:
    """A text as HTML, each token shaded by its activation relative to the largest; the value on hover.

    Tokens where the label holds are bold.
    """
    most = max(float(np.max(values, initial=0)), 1e-9)
    pieces, bold = [], np.zeros(len(texts), bool) if labelled is None else labelled
    for text, value, holds in list(zip(texts, values, bold, strict=True))[:MAX_TOKENS_SHOWN]:
        level = int(np.clip(np.ceil(LEVELS * value / most - 0.5), 0, LEVELS))
        piece = f"<b>{escape(text)}</b>" if holds else escape(text)
        pieces.append(shaded(piece, level, f"{value:.3g}"))
    return f"<div class=neuron-text>{''.join(pieces)}</div>"


def sets_html(
    rows: pd.DataFrame,
    posts: Mapping[str, Float[np.ndarray, "layers tokens neurons"]],
    texts: Sequence[str],
    holding: tuple[pd.Index, Bool[np.ndarray, "labels tokens"]],
    address: str,
) -> str:
    """`matched_sets` as HTML: under each set the text once per neuron, shaded by its activation, the tokens bold that
    carry the neuron's label. `rows` also has `label` and `score`, NaN for unexplained neurons."""
    parts, places = [STYLE], {name: place for place, name in enumerate(holding[0])}
    for _, own in list(rows.groupby("set", sort=False))[:SETS_SHOWN]:
        seeds = own["seed"].nunique()
        only = f"In seed {own['seed'].iloc[0]} only"
        title = f"Matched in {seeds} of {count(len(posts), 'seed')}" if seeds > 1 else only
        parts.append(f"<h4>{escape(title)}</h4>")
        for row in own.itertuples():
            name = f"{row.seed}/{row.layer}/{row.neuron}"
            linked = f'<a href="{escape(address + name)}" target=_blank>{escape(name)}</a>' if address else escape(name)
            said = f"{escape(row.label)}, score {row.score:.2f}" if isinstance(row.label, str) else "unexplained"
            where = f"{row.deviations:.1f} standard deviations above its mean on “{escape(texts[row.token])}”"
            labelled = holding[1][places[row.label]] if row.label in places else None
            text = shaded_text(texts, posts[row.seed][row.layer, :, row.neuron], labelled)
            parts.append(f"<div><small>{linked}: {said}; {where}</small>{text}</div>")
    more = rows["set"].nunique() - SETS_SHOWN
    return "".join(parts) + (f"<p>{count(more, 'weaker set')} more.</p>" if more > 0 else "")


def labels_html(texts: Sequence[str], holding: tuple[pd.Index, np.ndarray], used: Sequence[str]) -> str:
    """A table of the text's tokens and the labels that hold at each; of all labels those in `used`."""
    names, member = holding
    chosen = names.isin(list(used))
    rows = []
    for place, text in list(enumerate(texts))[:MAX_TOKENS_SHOWN]:
        here = ", ".join(map(escape, names[chosen & member[:, place]]))
        rows.append(f"<tr><td><b>{escape(text)}</b></td><td class=words>{here}</td></tr>")
    head = "<thead><tr><th>token</th><th style='text-align:left'>labels</th></tr></thead>"
    table = f"<table class=dataframe>{head}<tbody>{''.join(rows)}</tbody></table>"
    return f"<details><summary>Labels at each token</summary>{table}</details>"
