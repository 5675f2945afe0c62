"""The neuron explorer's files: neurons.html and, in a folder beside it, data that its script loads when a neuron asks for it.

A page opened from a disk may load scripts but not data, so each data file is a script with one call: gzipped
safetensors (the neurons of a seed, or CHUNK of them in detail) or gzipped JSON (the run), in base64.
"""

import gzip
import json
from base64 import b64encode
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Int
from safetensors.numpy import save

from lib.base.files import file_sha256, write_atomically, write_if_changed, write_json
from lib.cache import code_of, fresh
from lib.chapters.universality.properties import layer_percentiles
from lib.report import explorer
from lib.report.explorer import PLAIN, WORDS
from lib.report.pages import TEMPLATES, page
from lib.run import Run

PAGE, FOLDER = "neurons.html", "neurons"
CHUNK = 256  # neurons in one file of details
EXAMPLES = 155_000  # strongest examples that all files have room for: about 14 MB
MOST, FEWEST = 10, 2  # examples of a neuron
NONE = 65_535  # where a neuron has no word
UNKNOWN = 255  # where a percentile is undefined
SHADES, UNCOUNTED, OUTSIDE = 253, 254, 255  # activations in so many steps; a token that does not count; no token
COSINE = 10_000  # cosines are whole numbers of this fraction
TABLES = (
    "neurons_all_seeds",
    "matches_all_seeds",
    "families",
    "circuits",
    "roles",
    "mean_ablation",
    "fixed_activation",
    "query_paths",
)


def smallest_unsigned(values: np.ndarray) -> np.ndarray:
    """Whole numbers from 0 in the smallest of one, two and four bytes that holds them."""
    most = int(values.max(initial=0))
    return values.astype(np.uint8 if most < 2**8 else np.uint16 if most < 2**16 else np.uint32)


def shaded(activation: np.ndarray, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Activations (rows, k, window) in SHADES steps between `low` and `high` (rows) of each neuron."""
    with np.errstate(all="ignore"):
        known = np.isfinite(activation)
        low = np.where(known, activation, 0).min((1, 2), initial=0)
        high = np.where(known, activation, -np.inf).max((1, 2), initial=-np.inf)
        high = np.where(high > low, high, low + 1)
        steps = np.rint((activation - low[:, None, None]) / (high - low)[:, None, None] * SHADES)
    steps = np.where(known, steps, UNCOUNTED)
    return {
        "shade": np.where(tokens < 0, OUTSIDE, steps).astype(np.uint8),
        "low": low.astype(np.float32),
        "high": high.astype(np.float32),
    }


def seed_arrays(
    frame: pd.DataFrame, rows: Int[np.ndarray, "rows"], columns: list[str], words: list[str]
) -> dict[str, np.ndarray]:
    """What the page lists of every shown neuron of a seed: `layer`, `neuron` (rows); `values` (columns, rows);
    `percentile` (columns, rows) in whole percent; `plain` (PLAIN, rows); `words` (WORDS, rows), indices of `words`."""
    index = {word: number for number, word in enumerate(words)}
    here = frame.reindex(columns=columns)
    percentiles = layer_percentiles(here.assign(layer=frame["layer"]), columns).iloc[rows].to_numpy(float).T
    plain = frame.reindex(columns=list(PLAIN)).astype(float).iloc[rows]
    texts = frame.reindex(columns=list(WORDS)).iloc[rows]
    return {
        "layer": smallest_unsigned(frame["layer"].to_numpy()[rows]),
        "neuron": smallest_unsigned(frame["neuron"].to_numpy()[rows]),
        "values": here.iloc[rows].to_numpy(np.float32).T,
        "percentile": np.where(np.isfinite(percentiles), np.rint(np.nan_to_num(percentiles)), UNKNOWN).astype(np.uint8),
        "plain": plain.to_numpy(np.float32).T,
        "words": np.stack([texts[name].map(index).fillna(NONE).to_numpy() for name in WORDS]).astype(np.uint16),
    }


def detail_arrays(
    found: dict[str, np.ndarray], logits: pd.DataFrame, matches: dict[str, np.ndarray], counts: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """What the page shows of single neurons: examples (`explorer.windows`), tokens (`explorer.logit_tokens`), matches
    (`explorer.match_arrays`) and histogram (`counts` (rows, bins), `first`, `last` (rows)); all over the same rows."""
    made = shaded(found["activation"], found["tokens"])
    made |= {"value": found["value"].astype(np.float32), "block": found["block"].astype(np.int32)}
    made |= {name: smallest_unsigned(np.maximum(found[name], 0)) for name in ("position", "domain", "tokens")}
    for name in ("promoted", "suppressed"):
        made[name] = smallest_unsigned(np.stack(logits[name].to_list()))
        made[f"{name}_cos"] = np.rint(COSINE * np.stack(logits[f"{name}_cos"].to_list())).astype(np.int16)
    made |= {"partner": matches["partner"].astype(np.int32)}
    made |= {name: matches[name].astype(np.float32) for name in ("corr", "baseline")}
    return made | {
        "counts": smallest_unsigned(counts["counts"]),
        "first": counts["first"].astype(np.float32),
        "last": counts["last"].astype(np.float32),
    }


def as_script(name: str, content: bytes) -> str:
    """A script that hands one file's content to the page."""
    packed = gzip.compress(content, compresslevel=9, mtime=0)
    return f'explorerFile({json.dumps(name)},"{b64encode(packed).decode()}");\n'


def write_data(run: Run, folder: Path) -> None:
    """Writes the explorer's data files, unless they are there for these very tables and statistics."""
    tables = {name: run.folder / "tables" / f"{name}.parquet" for name in TABLES}
    made_from = {
        "tables": {name: file_sha256(path) for name, path in tables.items() if path.exists()},
        "done": file_sha256(run.folder / "stats" / "done.json"),
        "code": [code_of("lib.report.explorer"), code_of(__name__)],
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
        write_atomically(
            folder / f"{name}.js", lambda path, name=name, content=content: path.write_text(as_script(name, content))
        )
    write_json(record, made_from)


def _files(run: Run):
    """(name, content) of every data file: `run`, each seed, and its neurons CHUNK at a time.

    No seed's name has a dot, so that no two files share a name.
    """
    matches = run.table("matches_all_seeds")
    seeds, width = list(run.done["seeds"]), run.done["neurons"]
    frames = {seed: explorer.seed_frame(run, seed) for seed in seeds}
    room = explorer.room_for(run)
    shown = {seed: explorer.rows_shown(frame, matches, seed, room) for seed, frame in frames.items()}
    columns = explorer.ranked_columns(pd.concat([frames[run.params.reference], *frames.values()]))
    words = sorted(
        {word for frame in frames.values() for name in WORDS if name in frame for word in frame[name].dropna().unique()}
    )
    yield (
        "run",
        explorer.as_json(
            explorer.description(run, columns, shown, words) | {"plain": PLAIN, "texts": WORDS, "chunk": CHUNK}
        ),
    )

    total = sum(map(len, shown.values()))
    limit = int(np.clip(EXAMPLES // max(1, total), FEWEST, MOST))
    logits = explorer.logit_tokens(run, shown)
    examples, histogram = run.stats("examples"), run.stats("histogram")
    for seed in seeds:
        rows = shown[seed]
        yield (
            f"seed.{seed}",
            save(_contiguous(seed_arrays(frames[seed], rows, [name for name, _, _ in columns], words))),
        )
        found = explorer.windows(run, examples, seed, rows, limit)
        pairs = explorer.match_arrays(matches, seed, [other for other in seeds if other != seed], rows, width)
        flat = {
            name: histogram[f"{seed}.{name}"].reshape(-1, *histogram[f"{seed}.{name}"].shape[2:])[rows]
            for name in ("counts", "low", "high")
        }
        bins = {"counts": flat["counts"], "first": flat["low"], "last": flat["high"]}
        own = logits[logits["seed"] == seed]
        for number, start in enumerate(range(0, len(rows), CHUNK)):
            part = slice(start, start + CHUNK)
            arrays = [{name: values[part] for name, values in group.items()} for group in (found, pairs, bins)]
            yield (
                f"seed.{seed}.{number}",
                save(_contiguous(detail_arrays(arrays[0], own.iloc[part], arrays[1], arrays[2]))),
            )


def _contiguous(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.ascontiguousarray(values) for name, values in arrays.items()}


def write_explorer(run: Run, report: Path, **shared) -> str:
    """Writes the data and the script into `report`/neurons and returns the page's HTML; `shared` is what all pages need."""
    write_data(run, report / FOLDER)
    write_if_changed(report / FOLDER / "explorer.js", (TEMPLATES / "explorer.js").read_text())
    style = (TEMPLATES / "explorer.css").read_text()
    return page("explorer.html.j2", current=PAGE, explorer_style=style, done=run.done, **shared)
