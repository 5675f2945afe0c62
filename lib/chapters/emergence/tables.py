"""Chapter 6's tables: the pass and the tables of every checkpoint, one small run a checkpoint, and what is kept of each.

`python -m lib.chapters.emergence.tables params/tiny.yaml` (`make emergence`) writes outputs/<run>/emergence; with `--export
data/emergence` also there, the tables that ship. A checkpoint that is finished is not done again, and one that was cut off
goes on from its pass's last saved state; its statistics, gigabytes, are deleted when its tables are written. `--keep
FOLDER` takes over from older tables the points that are not measured now, since checkpoints do not last for ever.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

import pandas as pd
import torch

from lib.base import params as parameters
from lib.base.errors import InputError, exit_on_input_error
from lib.base.files import file_sha256, write_json
from lib.base.hub import seed_folder, seed_source, weights_sha256
from lib.base.params import Params, read_params
from lib.base.tensors import write_table
from lib.cache import content_sha256
from lib.chapters.circuits import roles
from lib.chapters.circuits.tables import weights_of
from lib.chapters.emergence import statistics
from lib.chapters.emergence.checkpoints import Point, lacks_tokeniser, link_seed, points
from lib.chapters.families.summary import FAMILIES, with_excess
from lib.chapters.universality.properties import frequency_cosine_correlation, property_tests, reference_shares
from lib.chapters.universality.tables import tabulate
from lib.collect.passes import collect
from lib.models import weights
from lib.models.trunk import load_model
from lib.run import Run

TOKENS = 300_000
ROTATIONS = 1  # draws: chapter 2 shows how little those of one seed differ in their mean
TABLES = ("seeds", "losses", "layers", "heads", "properties", "neurons")
RECORD = "emergence.json"
SHIPPED = Path("data") / "emergence"
PARTNERS_FROM = 0.25  # excess from which on a neuron's matches ship: persistence asks for them of universal neurons only, and they are bulky


def point_params(params: Params, point: Point, tokens: int) -> Params:
    """The parameters of the small run of one checkpoint: outputs/emergence-<run>-<checkpoint>."""
    values = params.model_dump(exclude_none=True) | {
        "run": f"emergence-{params.run}-{point.label}",
        "token_budget": tokens,
        "rotations": min(ROTATIONS, params.rotations),
        "compare": "all",
        "seeds": point.sources,
    }
    values.pop("revision", None)
    if point.revisions:
        return Params(**values, revision=point.revisions)
    into = Params(**values).folder / "seeds"
    folders = {name: str(into / name if lacks_tokeniser(source) else source) for name, source in point.sources.items()}
    return Params(**(values | {"seeds": folders}))


def measure(run: Run) -> dict[str, pd.DataFrame]:
    """What is kept of one checkpoint, by name of table (TABLES), from its run's tables and models."""
    neurons, matches, threshold = run.table("neurons_all_seeds"), run.table("matches_all_seeds"), run.params.threshold
    text = run.text
    allowed = torch.tensor(sorted(set(range(text.vocab_size)) - {text.bos_id, *text.newline_ids}))
    repeated = statistics.repeated_tokens(
        statistics.HEAD_BLOCKS, text.context, allowed, text.bos_id, run.params.random_seed
    )
    parts, cuts = {"seeds": [], "layers": [], "heads": [], "properties": []}, {}
    for seed, own in neurons.groupby("seed", sort=False):
        _, unembedding = weights_of(run, seed)
        directions = roles.random_directions(roles.NULL_DIRECTIONS, len(unembedding), run.params.random_seed)
        null = weights.vocabulary_moments(directions, unembedding)
        cuts[seed] = roles.null_cuts(null)
        found = {
            "seeds": reference_shares(own).assign(frequency_cosine=frequency_cosine_correlation(own)),
            "layers": statistics.layer_indicators(own, matches[matches["seed"] == seed], null),
            "heads": statistics.head_table(
                load_model(seed_source(run.params, seed)), text.tokens[: statistics.HEAD_BLOCKS], repeated
            ),
            "properties": property_tests(own)[
                ["property", "label", "published", "effect", "median_percentile", "p_corrected", "verdict"]
            ],
        }
        for name, table in found.items():
            parts[name].append(table.drop(columns="seed", errors="ignore").assign(seed=seed))
    made = {name: pd.concat(tables, ignore_index=True) for name, tables in parts.items()}
    return made | {"losses": run.table("losses"), "neurons": statistics.neuron_rows(neurons, matches, cuts)}


def measured_point(params: Params, point: Point, tokens: int, folder: Path) -> dict:
    """Writes the tables of one checkpoint below `folder` unless they are there; what they were made from."""
    own = Run(point_params(params, point, tokens))
    asked = own.params.statistics_key | {"rotations": own.params.rotations, "threshold": own.params.threshold}
    record = _read(folder / "made.json")
    for name, source in point.sources.items() if not point.revisions else ():
        if lacks_tokeniser(source):
            link_seed(Path(source), seed_folder(params, name), own.folder / "seeds" / name)
    if (
        record.get("asked") == asked
        and record.get("text_sha256") == file_sha256(own.text_path)
        and not _changed(point, record)
    ):
        _tidy(own.folder)
        return record
    key = own.folder / "stats" / "key.json"
    if _read(key) and any(_read(key).get(name) != value for name, value in own.params.statistics_key.items()):
        shutil.rmtree(own.folder / "stats")  # begun with another budget
        shutil.rmtree(own.folder / "tables", ignore_errors=True)
    started = time.monotonic()
    collect(own, grouped=False, snapshots=())
    tabulate(own)
    for name, table in measure(own).items():
        write_table(folder / f"{name}.parquet", table)
    record = {
        "asked": asked,
        "label": point.label,
        "step": _whole(point.step),
        "tokens": _whole(point.tokens),
        "seeds": own.done["seed_hashes"],
        "text_sha256": own.done["text_hash"],
        "counted": own.done["tokens_counted"],
        "precision": own.done["precision"],
        "layers": own.done["layers"],
        "neurons": own.done["neurons"],
        "seconds": round(time.monotonic() - started),
    }
    write_json(folder / "made.json", record)
    _tidy(own.folder)
    return record


def _tidy(folder: Path) -> None:
    """Leaves of a point's run only text.json, by which the next call finds its text."""
    for path in folder.iterdir() if folder.exists() else ():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "text.json":
            path.unlink()
    if folder.exists() and not any(folder.iterdir()):
        folder.rmdir()


def _changed(point: Point, record: dict) -> bool:
    """Whether a local seed's weights are others than those measured."""
    sources = {} if point.revisions else point.sources
    return any(
        weights_sha256(Path(source), content_sha256) != record["seeds"].get(name) for name, source in sources.items()
    )


def _whole(number: float) -> int | None:
    return round(number) if number == number else None


def _read(path: Path) -> dict:
    return json.loads(path.read_text()) if path.is_file() else {}


def kept_record(folder: Path, settings: dict) -> dict:
    """The record of the tables in `folder`; InputError if there is none or if it was made with other settings."""
    record = _read(folder / RECORD)
    if not record:
        raise InputError(f"{folder} has no {RECORD}, so there are no points in it that could be kept.")
    other = sorted(key for key, value in settings.items() if record.get(key) != value)
    if other:
        raise InputError(
            f"the points in {folder} were made with another {', '.join(other)} and cannot stand beside these."
        )
    return record


def kept_points(folder: Path, measured: list[dict], settings: dict) -> tuple[list[dict], dict[str, pd.DataFrame]]:
    """Records and tables of the points in `folder` but for those measured now; older final seeds become shipped-<step>."""
    record = kept_record(folder, settings)
    now = {own["label"]: own["seeds"] for own in measured}
    name = {
        point["label"]: f"shipped-{point['step']}"
        if point["label"] == "final" and point["seeds"] != now.get("final")
        else point["label"]
        for point in record["points"]
    }
    records = [point | {"label": name[point["label"]]} for point in record["points"] if name[point["label"]] not in now]
    tables = {}
    for table in TABLES:
        rows = pd.read_parquet(folder / f"{table}.parquet").astype({"point": str})
        rows["point"] = rows["point"].map(name)
        tables[table] = rows[rows["point"].isin([point["label"] for point in records])]
    return records, tables


def tabulate_emergence(
    params: Params, tokens: int | None = None, steps: list[int] | None = None, keep: Path | None = None
) -> Path:
    """outputs/<run>/emergence with the tables of all checkpoints, those that are missing measured; returns the folder.

    The points of the tables in `keep` that are not measured now stand beside them.
    """
    tokens = tokens or min(TOKENS, params.token_budget)
    settings = {
        "text": params.text_title,
        "token_budget": tokens,
        "rotations": min(ROTATIONS, params.rotations),
        "threshold": params.threshold,
        "random_seed": params.random_seed,
    }
    chosen = points(params, steps, beside=len(kept_record(keep, settings)["points"]) if keep else 0)
    folder, records = params.folder / "emergence", []
    for number, point in enumerate(chosen, 1):
        print(f"{point.label} ({number} of {len(chosen)})", file=sys.stderr, flush=True)
        records.append(measured_point(params, point, tokens, folder / "points" / point.label))
    settings |= {name: records[0][name] for name in ("text_sha256", "counted", "layers", "neurons")}
    older, kept = kept_points(keep, records, settings) if keep else ([], {})
    for name in TABLES:
        parts = [
            pd.read_parquet(folder / "points" / point.label / f"{name}.parquet").assign(point=point.label)
            for point in chosen
        ]
        table = pd.concat([*([kept[name]] if kept else []), *parts], ignore_index=True)
        write_table(folder / f"{name}.parquet", table.astype({"point": "category", "seed": "category"}))
    own = ("label", "step", "tokens", "seeds", "precision", "seconds")
    every = sorted(
        [*older, *({name: record[name] for name in own} for record in records)],
        key=lambda point: float("inf") if point["step"] is None else point["step"],
    )
    write_json(folder / RECORD, {"run": params.run, **settings, "points": every})
    return folder


class Emergence:
    """The tables of a run's checkpoints: `record`, `points` (point, step, tokens) and `tables`, by the names of TABLES.

    `families` are chapter 4's rows of the run's reference seed with excess_corr, or None.
    """

    def __init__(self, folder: Path, shipped: bool, families: pd.DataFrame | None = None):
        self.folder, self.shipped, self.families = folder, shipped, families
        self.record = _read(folder / RECORD)
        self.points = pd.DataFrame(self.record["points"])[["label", "step", "tokens"]].rename(
            columns={"label": "point"}
        )
        self.tables = {name: self._table(name) for name in TABLES}

    def early_and_late(self, threshold: float, start: str | None) -> tuple[pd.DataFrame, pd.DataFrame, str]:
        """The universal neurons of the end as early or late (`when`), the share of each kind in both, and what a kind is.

        Early are those universal since `start` or before. A kind is the family of chapter 4 where the run has one, of its
        reference seed only, otherwise the role.
        """
        place = self.points["point"].tolist().index(start) if start else 0
        groups = statistics.first_universal(self.tables["neurons"], threshold)
        groups["when"] = (groups["order"] <= place).map({True: "early", False: "late"})
        if self.families is None:
            return groups, statistics.kinds_of(groups, groups["role"].astype(str)), "role"
        known = groups.merge(self.families[[*statistics.KEYS, "family"]], on=statistics.KEYS)
        return groups, statistics.kinds_of(known, known["family"].map(FAMILIES)), "family"

    def _table(self, name: str) -> pd.DataFrame:
        table = pd.read_parquet(self.folder / f"{name}.parquet").astype({"point": str, "seed": str})
        order = {point: place for place, point in enumerate(self.points["point"])}
        return table.iloc[table["point"].map(order).argsort(kind="stable")].reset_index(drop=True)


def open_chapter(run: Run) -> Emergence | None:
    """A run's own checkpoint tables, else those that ship if its seeds are shipped ones, else None."""
    own, shipped = run.folder / "emergence", parameters.ROOT / SHIPPED
    if (own / RECORD).is_file():
        return Emergence(own, shipped=False, families=_families(run, own))
    home = (parameters.ROOT / "data" / "seeds").resolve()
    folders = [None if run.params.is_on_hub(name) else seed_folder(run.params, name) for name in run.params.seeds]
    ours = all(
        folder is not None and folder.resolve().parent == home and folder.name == name
        for name, folder in zip(run.params.seeds, folders, strict=True)
    )
    return (
        Emergence(shipped, shipped=True, families=_families(run, shipped))
        if ours and (shipped / RECORD).is_file()
        else None
    )


def _families(run: Run, folder: Path) -> pd.DataFrame | None:
    """The run's families of its reference seed, if that seed is the model of the last checkpoint."""
    last, reference = _read(folder / RECORD)["points"][-1], run.params.reference
    table = run.folder / "tables" / "families.parquet"
    if not table.is_file() or last["seeds"].get(reference) != run.done["seed_hashes"].get(reference):
        return None
    known = with_excess(pd.read_parquet(table), run.table("neurons_all_seeds"))
    return known[known["seed"] == reference].reset_index(drop=True)


def export(folder: Path, to: Path) -> None:
    """Copies the tables and their record, and nothing else, to where they ship, without the matches of neurons far from universal."""
    to.mkdir(parents=True, exist_ok=True)
    for name in (*(f"{table}.parquet" for table in TABLES if table != "neurons"), RECORD):
        shutil.copyfile(folder / name, to / name)
    neurons = pd.read_parquet(folder / "neurons.parquet")
    neurons.loc[neurons["excess_corr"] < PARTNERS_FROM, [name for name in neurons if name.startswith("partner_")]] = -1
    write_table(to / "neurons.parquet", neurons)


@exit_on_input_error
def main(arguments: list[str] | None = None) -> int:
    """Command line; 0 on success, 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m lib.chapters.emergence.tables", description=__doc__.splitlines()[0]
    )
    parser.add_argument("params", type=Path, help="a parameter file")
    parser.add_argument("--run", help="the run's name, where it is not the file's")
    parser.add_argument(
        "--tokens", type=int, help=f"positions of text for each checkpoint (default {TOKENS:,}, or the run's if fewer)"
    )
    parser.add_argument(
        "--steps",
        type=int,
        nargs="*",
        help="the checkpoints' steps (default: log-spaced ones; none: the run's seeds alone)",
    )
    parser.add_argument("--keep", type=Path, help="tables whose points are kept, but for those measured now")
    parser.add_argument("--export", type=Path, help="also write the tables there")
    given = parser.parse_args(arguments)
    folder = tabulate_emergence(read_params(given.params, run=given.run), given.tokens, given.steps, given.keep)
    if given.export:
        export(folder, given.export)
    print(f"Tables: {given.export or folder}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
