"""The neuron explorer's files: neurons.html, and in a folder beside it the data that its script loads when needed.

A page opened from disk may load scripts but no data. So each data file is a script with one call, whose string holds
gzipped safetensors or gzipped JSON, a letter a byte: the page loads it as x-user-defined, which keeps all bytes apart.

| file | holds |
|---|---|
| run | the run, as JSON |
| seed.<seed> | what the page lists and finds of each neuron |
| tokens.<seed> | tokens that each neuron promotes and suppresses, and those it fires on most |
| seed.<seed>.<number> | the details of NEURONS_A_FILE neurons |
| passages | activations of best matches on a neuron's own examples |
| weights | the reference seed in 8 bits, for one's own text; small models only |
| contexts, contexts.<number> | the text and the examples by activation interval of the reference (`contexts.files`) |
"""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Int
from safetensors.numpy import save

from lib.base.files import file_sha256, write_atomically, write_if_changed, write_json
from lib.cache import code_of, fresh
from lib.chapters.universality.properties import layer_percentiles
from lib.report import contexts, explorer, explorer_passages, explorer_weights, own_text
from lib.report.explorer import PLAIN, WORDS
from lib.report.pages import TEMPLATES, page
from lib.run import Run

PAGE, FOLDER = "neurons.html", "neurons"
NEURONS_A_FILE = 256
TOTAL_EXAMPLES = 155_000  # in all files: about 14 MB
MIN_EXAMPLES, MAX_EXAMPLES = 2, 10  # of a neuron
NO_WORD, NO_PERCENTILE = 65_535, 255
SHADES, UNCOUNTED, OUTSIDE = 253, 254, 255  # steps of activation; a token that does not count; no token
COSINE_STEPS, Z_STEPS = 10_000, 100
KEPT = "the universal ones, those that the pages link to, and their best matches"
PEAKS = 3  # of the tokens that a neuron fires on most, those that search knows
PARTS = "contexts explorer explorer_files explorer_passages explorer_weights own_text".split()
MADE_BY = [f"lib.report.{name}" for name in PARTS]
TABLES = (
    "neurons_all_seeds matches_all_seeds families circuits roles mean_ablation fixed_activation query_paths".split()
)
Arrays = dict[str, np.ndarray]
Rows = dict[str, Int[np.ndarray, "rows"]]  # of each seed


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


def rounded(values: np.ndarray) -> np.ndarray:
    """fp32 numbers with a mantissa of 13 bits: four digits are right, and zeros at the end compress well."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + np.uint32(1 << 9)) & np.uint32(0xFFFFFFFF << 10 & 0xFFFFFFFF)).view(np.float32)


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
        "values": rounded(here.iloc[rows].to_numpy(np.float32).T),
        "percentile": np.nan_to_num(np.rint(percentiles), nan=NO_PERCENTILE).astype(np.uint8),
        "plain": frame.reindex(columns=list(PLAIN)).iloc[rows].to_numpy(np.float32).T,
        "words": np.stack([texts[name].map(index).fillna(NO_WORD).to_numpy() for name in WORDS]).astype(np.uint16),
    }


def _matrix(lists: pd.Series) -> np.ndarray:
    """Lists of one length as (rows, length); (0, 0) without any."""
    return np.stack(lists.to_list()) if len(lists) else np.zeros((0, 0))


def token_arrays(logits: pd.DataFrame, peaks: np.ndarray) -> Arrays:
    """Tokens (rows, number) that neurons promote and suppress (`explorer.logit_tokens`), with cosines, and `peak`
    (rows, PEAKS), those of their strongest examples."""
    made = {"peak": smallest_unsigned(np.maximum(peaks, 0))}
    for name in ("promoted", "suppressed"):
        made[name] = smallest_unsigned(_matrix(logits[name]))
        made[f"{name}_cos"] = np.rint(COSINE_STEPS * _matrix(logits[f"{name}_cos"])).astype(np.int16)
    return made


def weight_arrays(near: pd.DataFrame) -> Arrays:
    """Neighbours and connections (`explorer_weights.neighbours`) by flat index, with cosines and z; −1 for none."""
    made = {}
    for name in near.columns.drop(explorer.KEY):
        values = _matrix(near[name])
        if name in explorer_weights.LISTS:
            made[name] = values.astype(np.int16 if values.max(initial=0) < 2**15 else np.int32)
        else:
            steps = Z_STEPS if name.endswith("_z") else COSINE_STEPS
            made[name] = np.rint(steps * values.astype(float)).clip(-(2**15), 2**15 - 1).astype(np.int16)
    return made


def detail_arrays(found: Arrays, matches: Arrays, histogram: Arrays) -> Arrays:
    """What the page shows of single neurons: examples (`explorer.windows`), matches (`explorer.match_arrays`) and
    histogram (`counts` (rows, bins), `low`, `high` (rows)); all over the same rows."""
    made = shaded(found["activation"], found["tokens"])
    made |= {"value": found["value"].astype(np.float32), "block": found["block"].astype(np.int32)}
    made |= {name: smallest_unsigned(np.maximum(found[name], 0)) for name in ("position", "domain", "tokens")}
    made |= {name: values.astype(np.int32 if name == "partner" else np.float32) for name, values in matches.items()}
    edges = {"first": histogram["low"].astype(np.float32), "last": histogram["high"].astype(np.float32)}
    return made | edges | {"counts": smallest_unsigned(histogram["counts"])}


def passage_file(table: pd.DataFrame, seeds: list[str], widths: dict[str, int], examples: Arrays) -> Arrays:
    """`explorer_passages.passage_arrays` with the activations in shades between `low` and `high` of each passage."""
    found = explorer_passages.passage_arrays(table, seeds, widths, examples)
    each = found["activation"].reshape(-1, 1, found["activation"].shape[-1])
    made = shaded(each, np.zeros(each.shape, int))
    shape = found["activation"].shape
    made["shade"] = made["shade"].reshape(shape)
    made |= {name: made[name].reshape(shape[:-1]) for name in ("low", "high")}
    return made | {"seed": found["seed"], "flat": found["flat"], "top": found["top"].astype(np.float32)}


def as_script(name: str, content: bytes) -> bytes:
    """A script that hands one file's content to the page."""
    packed = gzip.compress(content, compresslevel=9, mtime=0)
    for one, escaped in ((b"\\", rb"\\"), (b'"', rb"\""), (b"\n", rb"\n"), (b"\r", rb"\r")):
        packed = packed.replace(one, escaped)
    return b'explorerFile(%s,"%s");\n' % (json.dumps(name).encode("ascii"), packed)


def write_data(run: Run, folder: Path) -> None:
    """Writes the explorer's data files, unless they are fresh."""
    tables = [name for name in TABLES if run.has(name)]
    made_from = {
        "tables": {name: file_sha256(run.folder / "tables" / f"{name}.parquet") for name in tables},
        "done": file_sha256(run.folder / "stats" / "done.json"),
        "code": [code_of(module) for module in MADE_BY],
        "search": file_sha256(explorer.SEARCH),
        "training": explorer_weights.training_record(run),
        "threshold": run.params.threshold,
        "reference": run.params.reference,
        "text": run.params.text_title,
    }
    record = folder / "made.json"
    if fresh(record, made_from):
        return
    for stale in folder.glob("*.js*"):
        stale.unlink()
    write_files(run, folder)
    write_json(record, made_from)


def write_files(run: Run, folder: Path, kept: Rows | None = None) -> None:
    """Writes the data files of all neurons that a run's page shows, or only of those kept, by flat index."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in _files(run, kept):
        script = as_script(name, content)
        write_atomically(folder / f"{name}.js", lambda path, script=script: path.write_bytes(script))


def _files(run: Run, kept: Rows | None = None) -> Iterator[tuple[str, bytes]]:
    """(name, content) of every data file; with `kept` only of these neurons, by flat index.

    No seed's name has a dot, so no two files share a name.
    """
    matches = run.table("matches_all_seeds")
    seeds, widths = list(run.done["seeds"]), {seed: neurons for seed, (_, neurons) in run.done["shapes"].items()}
    frames = explorer.seed_frames(run)
    room = max(1, explorer.MAX_NEURONS // len(seeds))
    shown = {seed: explorer.rows_shown(frame, matches, seed, room) for seed, frame in frames.items()}
    logits, near = explorer.logit_tokens(run, shown), explorer_weights.neighbours(run, shown)
    by_interval = contexts.context_table(run, shown[run.params.reference])
    if kept is not None:
        own = by_interval["layer"] * widths[run.params.reference] + by_interval["neuron"]
        by_interval = by_interval[own.isin(kept[run.params.reference])]
        logits, near = (_of_neurons(table, kept, widths) for table in (logits, near))
        shown = {seed: rows[np.isin(rows, kept[seed])] for seed, rows in shown.items()}
    columns = explorer.ranked_columns(pd.concat([frames[run.params.reference], *frames.values()]))
    used = [frame[name].dropna().unique() for frame in frames.values() for name in WORDS if name in frame]
    words = sorted({word for column in used for word in column})
    points, training = explorer_weights.training(run, shown)
    described = explorer.description(run, columns, shown, words) | ({} if kept is None else {"holds": KEPT})
    described |= {
        "contexts": len(by_interval) > 0,
        "plain": PLAIN,
        "texts": WORDS,
        "chunk": NEURONS_A_FILE,
        "training": points,
    }
    own = own_text.own_text(run) if kept is None else None
    yield "run", explorer.as_json(described | {"own_text": own and own.settings})
    if own:
        yield own_text.FILE, _saved(own.arrays)

    limit = int(np.clip(TOTAL_EXAMPLES // max(1, sum(map(len, shown.values()))), MIN_EXAMPLES, MAX_EXAMPLES))
    examples, histogram = run.stats("examples"), run.stats("histogram")
    for name, arrays in contexts.files(run, by_interval, NEURONS_A_FILE):
        yield name, _saved(arrays)
    passages = explorer_passages.passage_table(run)
    passages = passages if kept is None else _of_neurons(passages, kept, widths)
    yield "passages", _saved(passage_file(passages, seeds, widths, examples))
    for seed, rows in shown.items():
        yield f"seed.{seed}", _saved(seed_arrays(frames[seed], rows, [name for name, _, _ in columns], words))
        found = explorer.windows(run, examples, seed, rows, limit)
        peaks = found["tokens"][:, :PEAKS, found["tokens"].shape[2] // 2]
        yield f"tokens.{seed}", _saved(token_arrays(logits[logits["seed"] == seed], peaks))
        others = [other for other in seeds if other != seed]
        pairs = explorer.match_arrays(matches, seed, others, rows, widths)
        bins = {name: _by_neuron(histogram[f"{seed}.{name}"])[rows] for name in ("counts", "low", "high")}
        details = detail_arrays(found, pairs, bins) | weight_arrays(near[near["seed"] == seed])
        details |= {"training": training[seed]} if seed in training else {}
        for number, start in enumerate(range(0, len(rows), NEURONS_A_FILE)):
            part = slice(start, start + NEURONS_A_FILE)
            yield f"seed.{seed}.{number}", _saved({name: values[part] for name, values in details.items()})


def _of_neurons(table: pd.DataFrame, kept: Rows, widths: dict[str, int]) -> pd.DataFrame:
    """The rows of a table (KEY) whose neurons are kept."""
    flat = table["layer"] * table["seed"].map(widths) + table["neuron"]
    chosen = np.zeros(len(table), bool)
    for seed, rows in kept.items():
        chosen |= ((table["seed"] == seed) & flat.isin(rows)).to_numpy()
    return table[chosen].reset_index(drop=True)


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
