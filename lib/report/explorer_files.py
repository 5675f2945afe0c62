"""The neuron explorer's files: neurons.html, and in a folder beside it the data that its script loads when needed.

A page opened from disk may load scripts but no data. So each data file is a script with one call, which holds gzipped
safetensors (the neurons of a seed, or the details of NEURONS_A_FILE of them) or gzipped JSON (the run), in base64.
"""

import gzip
import json
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Int
from safetensors.numpy import save

from lib.base.files import file_sha256, write_atomically, write_if_changed, write_json
from lib.cache import code_of, fresh
from lib.chapters.universality.properties import layer_percentiles
from lib.report import explorer, own_text
from lib.report.explorer import PLAIN, WORDS
from lib.report.pages import TEMPLATES, page
from lib.run import Run

PAGE, FOLDER = "neurons.html", "neurons"
NEURONS_A_FILE = 256
TOTAL_EXAMPLES = 155_000  # in all files: about 14 MB
MIN_EXAMPLES, MAX_EXAMPLES = 2, 10  # of a neuron
NO_WORD, NO_PERCENTILE = 65_535, 255
SHADES, UNCOUNTED, OUTSIDE = 253, 254, 255  # steps of activation; a token that does not count; no token
COSINE_STEPS = 10_000
TABLES = (
    "neurons_all_seeds matches_all_seeds families circuits roles mean_ablation fixed_activation query_paths".split()
)
Arrays = dict[str, np.ndarray]


def smallest_unsigned(values: np.ndarray) -> np.ndarray:
    """Whole numbers from 0, in one, two or four bytes each."""
    return values.astype(np.min_scalar_type(int(values.max(initial=0))))


def shaded(activation: np.ndarray, tokens: np.ndarray) -> Arrays:
    """Activations (rows, k, window) in SHADES steps between `low` and `high` (rows) of each neuron."""
    known = np.isfinite(activation)
    low = np.where(known, activation, 0).min((1, 2), initial=0)
    high = np.where(known, activation, -np.inf).max((1, 2), initial=-np.inf)
    high = np.where(high > low, high, low + 1)
    steps = np.rint((activation - low[:, None, None]) / (high - low)[:, None, None] * SHADES)
    steps = np.where(tokens < 0, OUTSIDE, np.where(known, steps, UNCOUNTED))
    return {"shade": steps.astype(np.uint8), "low": low.astype(np.float32), "high": high.astype(np.float32)}


def seed_arrays(
    frame: pd.DataFrame, rows: Int[np.ndarray, "rows"], columns: list[str], words: list[str]
) -> dict[str, np.ndarray]:
    """What the page lists of every shown neuron of a seed: `layer`, `neuron` (rows); `values` (columns, rows);
    `percentile` (columns, rows) in whole percent; `plain` (PLAIN, rows); `words` (WORDS, rows), indices of `words`."""
    index = {word: number for number, word in enumerate(words)}
    here = frame.reindex(columns=columns)
    percentiles = layer_percentiles(here.assign(layer=frame["layer"]), columns).iloc[rows].to_numpy(float).T
    texts = frame.reindex(columns=list(WORDS)).iloc[rows]
    return {
        "layer": smallest_unsigned(frame["layer"].to_numpy()[rows]),
        "neuron": smallest_unsigned(frame["neuron"].to_numpy()[rows]),
        "values": here.iloc[rows].to_numpy(np.float32).T,
        "percentile": np.nan_to_num(np.rint(percentiles), nan=NO_PERCENTILE).astype(np.uint8),
        "plain": frame.reindex(columns=list(PLAIN)).iloc[rows].to_numpy(np.float32).T,
        "words": np.stack([texts[name].map(index).fillna(NO_WORD).to_numpy() for name in WORDS]).astype(np.uint16),
    }


def detail_arrays(found: Arrays, logits: pd.DataFrame, matches: Arrays, histogram: Arrays) -> Arrays:
    """What the page shows of single neurons: examples (`explorer.windows`), tokens (`explorer.logit_tokens`), matches
    (`explorer.match_arrays`) and histogram (`counts` (rows, bins), `low`, `high` (rows)); all over the same rows."""
    made = shaded(found["activation"], found["tokens"])
    made |= {"value": found["value"].astype(np.float32), "block": found["block"].astype(np.int32)}
    made |= {name: smallest_unsigned(np.maximum(found[name], 0)) for name in ("position", "domain", "tokens")}
    for name in ("promoted", "suppressed"):
        made[name] = smallest_unsigned(np.stack(logits[name].to_list()))
        made[f"{name}_cos"] = np.rint(COSINE_STEPS * np.stack(logits[f"{name}_cos"].to_list())).astype(np.int16)
    made |= {name: values.astype(np.int32 if name == "partner" else np.float32) for name, values in matches.items()}
    edges = {"first": histogram["low"].astype(np.float32), "last": histogram["high"].astype(np.float32)}
    return made | edges | {"counts": smallest_unsigned(histogram["counts"])}


def as_script(name: str, content: bytes) -> str:
    """A script that hands one file's content to the page."""
    packed = gzip.compress(content, compresslevel=9, mtime=0)
    return f'explorerFile({json.dumps(name)},"{b64encode(packed).decode()}");\n'


def write_data(run: Run, folder: Path) -> None:
    """Writes the explorer's data files, unless they are fresh."""
    tables = [name for name in TABLES if run.has(name)]
    made_from = {
        "tables": {name: file_sha256(run.folder / "tables" / f"{name}.parquet") for name in tables},
        "done": file_sha256(run.folder / "stats" / "done.json"),
        "code": [code_of(name) for name in ("lib.report.explorer", "lib.report.own_text", __name__)],
        "threshold": run.params.threshold,
        "reference": run.params.reference,
        "text": run.params.text_title,
    }
    record = folder / "made.json"
    if fresh(record, made_from):
        return
    for stale in folder.glob("*.js*"):
        stale.unlink()
    for name, content in _files(run):
        script = as_script(name, content)
        write_atomically(folder / f"{name}.js", lambda path, script=script: path.write_text(script, encoding="utf-8"))
    write_json(record, made_from)


def _files(run: Run) -> Iterator[tuple[str, bytes]]:
    """(name, content) of every data file: `run`, each seed, and its neurons NEURONS_A_FILE at a time.

    No seed's name has a dot, so no two files share a name.
    """
    matches = run.table("matches_all_seeds")
    seeds, widths = list(run.done["seeds"]), {seed: neurons for seed, (_, neurons) in run.done["shapes"].items()}
    frames = {seed: explorer.seed_frame(run, seed) for seed in seeds}
    room = max(1, explorer.MAX_NEURONS // len(seeds))
    shown = {seed: explorer.rows_shown(frame, matches, seed, room) for seed, frame in frames.items()}
    columns = explorer.ranked_columns(pd.concat([frames[run.params.reference], *frames.values()]))
    used = [frame[name].dropna().unique() for frame in frames.values() for name in WORDS if name in frame]
    words = sorted({word for column in used for word in column})
    described, own = explorer.description(run, columns, shown, words), own_text.own_text(run)
    described["own_text"] = own and own.settings
    yield "run", explorer.as_json(described | {"plain": PLAIN, "texts": WORDS, "chunk": NEURONS_A_FILE})

    if own:
        yield own_text.FILE, _saved(own.arrays)

    limit = int(np.clip(TOTAL_EXAMPLES // max(1, sum(map(len, shown.values()))), MIN_EXAMPLES, MAX_EXAMPLES))
    logits = explorer.logit_tokens(run, shown)
    examples, histogram = run.stats("examples"), run.stats("histogram")
    for seed, rows in shown.items():
        yield f"seed.{seed}", _saved(seed_arrays(frames[seed], rows, [name for name, _, _ in columns], words))
        others = [other for other in seeds if other != seed]
        groups = [
            explorer.windows(run, examples, seed, rows, limit),
            explorer.match_arrays(matches, seed, others, rows, widths),
            {name: _by_neuron(histogram[f"{seed}.{name}"])[rows] for name in ("counts", "low", "high")},
        ]
        own = logits[logits["seed"] == seed]
        for number, start in enumerate(range(0, len(rows), NEURONS_A_FILE)):
            part = slice(start, start + NEURONS_A_FILE)
            found, pairs, bins = ({name: values[part] for name, values in group.items()} for group in groups)
            yield f"seed.{seed}.{number}", _saved(detail_arrays(found, own.iloc[part], pairs, bins))


def _by_neuron(values: np.ndarray) -> np.ndarray:
    """(layers, neurons, …) as (layers · neurons, …)."""
    return values.reshape(-1, *values.shape[2:])


def _saved(arrays: Arrays) -> bytes:
    return save({name: np.ascontiguousarray(values) for name, values in arrays.items()})


def scripts() -> list[Path]:
    """The page's scripts in the order in which they run: what all share first, what starts the page last."""
    found = [path for pattern in ("explorer*.js", "own_text*.js") for path in TEMPLATES.glob(pattern)]
    return sorted(found, key=lambda path: (path.stem == "explorer_page", path.stem != "explorer", path.name))


def write_explorer(run: Run, report: Path, **shared) -> str:
    """Writes data and scripts into `report`/neurons; returns the page's HTML. `shared` is what all pages need."""
    write_data(run, report / FOLDER)
    for path in scripts():
        write_if_changed(report / FOLDER / path.name, path.read_text(encoding="utf-8"))
    style = "".join(path.read_text(encoding="utf-8") for path in sorted(TEMPLATES.glob("explorer*.css")))
    names = [path.name for path in scripts()]
    return page("explorer.html.j2", current=PAGE, explorer_style=style, explorer_scripts=names, done=run.done, **shared)
