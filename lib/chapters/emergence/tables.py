"""Chapter 7's tables: each checkpoint is measured as a small run, of which a few tables are kept.

`python -m lib.chapters.emergence.tables params/tiny.yaml` (`make emergence`) writes outputs/<run>/emergence; `--export
data/emergence` also writes the tables that ship there. A finished checkpoint is not measured again; an interrupted one
resumes from its last saved state. Its statistics, gigabytes, are deleted once its tables are written. `--keep FOLDER`
takes over older tables' points that are not measured now, since checkpoints do not last for ever.
"""

import argparse
import contextlib
import shutil
import sys
import time
from pathlib import Path

import pandas as pd
import torch

from lib.base import params as parameters
from lib.base.errors import InputError, exit_on_input_error
from lib.base.files import file_sha256, read_json, write_json
from lib.base.hub import seed_folder, seed_source, weights_sha256
from lib.base.params import Params, read_params
from lib.base.tensors import write_table
from lib.cache import content_sha256, fresh, refuse_other_statistics
from lib.chapters.circuits import roles
from lib.chapters.circuits.tables import weights_of
from lib.chapters.emergence import statistics
from lib.chapters.emergence.checkpoints import (
    Point,
    constant_rate_steps,
    equal_points,
    equal_words,
    is_shipped,
    lacks_tokeniser,
    link_seed,
    points,
    weights_of_points,
)
from lib.chapters.families.summary import FAMILIES, with_excess
from lib.chapters.universality.tables import tabulate
from lib.collect.passes import collect
from lib.collect.planner import seed_shapes
from lib.collect.seed_checks import shared_groups
from lib.models import weights
from lib.models.trunk import load_model
from lib.run import Run, with_universal

TOKENS = 300_000  # positions of text for each checkpoint
ROTATIONS = 1  # draws; chapter 2 shows how little they differ in their mean
TABLES = ("losses", "layers", "heads", "neurons")
RECORD = "emergence.json"
SHIPPED = Path("data") / "emergence"
PARTNERS_FROM = 0.25  # excess from which a neuron's matches ship; only persistence of universal neurons needs them
OF_POINT = ("label", "step", "tokens", "seeds", "w_in", "shared", "precision", "seconds")  # of a point's record


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
    """The tables that are kept of one checkpoint (TABLES), by name, from its run's tables and models."""
    neurons, matches, text = run.table("neurons_all_seeds"), run.table("matches_all_seeds"), run.text
    allowed = torch.tensor(sorted(set(range(text.vocab_size)) - {text.bos_id, *text.newline_ids}))
    blocks, random_seed = statistics.HEAD_BLOCKS, run.params.random_seed
    repeated = statistics.repeated_tokens(blocks, text.context, allowed, text.bos_id, random_seed)
    parts, cuts = {"layers": [], "heads": []}, {}
    for seed, own in neurons.groupby("seed", sort=False):
        _, unembedding = weights_of(run, seed)
        directions = roles.random_directions(roles.NULL_DIRECTIONS, len(unembedding), random_seed).to(unembedding)
        null = {name: one.cpu() for name, one in weights.vocabulary_moments(directions, unembedding).items()}
        cuts[seed] = roles.null_cuts(null)
        model = load_model(seed_source(run.params, seed))
        found = {
            "layers": statistics.layer_indicators(own, matches[matches["seed"] == seed], null),
            "heads": statistics.head_table(model, text.tokens[:blocks], repeated),
        }
        for name, table in found.items():
            parts[name].append(table.drop(columns="seed", errors="ignore").assign(seed=seed))
    made = {name: pd.concat(tables, ignore_index=True) for name, tables in parts.items()}
    return made | {"losses": run.table("losses"), "neurons": statistics.neuron_rows(neurons, matches, cuts)}


def measured_point(params: Params, point: Point, tokens: int, folder: Path) -> dict:
    """Writes the tables of one checkpoint to `folder` unless they are fresh; returns what they were made from."""
    own = Run(point_params(params, point, tokens))
    asked = own.params.statistics_key | {"rotations": own.params.rotations, "threshold": own.params.threshold}
    local = {} if point.revisions else {name: Path(source) for name, source in point.sources.items()}
    for name, source in local.items():
        if lacks_tokeniser(source):
            link_seed(source, seed_folder(params, name), own.folder / "seeds" / name)
    record = read_json(folder / "made.json")
    made_from = {"asked": asked, "text_sha256": file_sha256(own.text_path)}
    if local:
        made_from["seeds"] = {name: weights_sha256(source, content_sha256) for name, source in local.items()}
    if not fresh(folder / "made.json", record | made_from):
        record = _measured(own, point, asked, folder)
    _delete_all_but_text(own.folder)
    return record


def _measured(own: Run, point: Point, asked: dict, folder: Path) -> dict:
    try:
        refuse_other_statistics(own.params, own.text_path)
    except InputError:  # begun with another budget or other weights
        shutil.rmtree(own.folder / "stats")
        shutil.rmtree(own.folder / "tables", ignore_errors=True)
    if len({(shape.layers, shape.neurons) for shape in seed_shapes(own.params).values()}) > 1:
        raise InputError("checkpoints are compared layer by layer, so chapter 07 needs seeds of one shape.")
    started = time.monotonic()
    collect(own, grouped=False)
    tabulate(own)
    for name, table in measure(own).items():
        write_table(folder / f"{name}.parquet", table)
    record = {
        "asked": asked,
        "label": point.label,
        "step": point.step,
        "tokens": point.tokens,
        "seeds": own.done["seed_hashes"],
        "w_in": own.table("seed_checks").set_index("seed")["w_in_sha256"].to_dict(),
        "shared": shared_groups(own.table("initialisation")),
        "text_sha256": own.done["text_hash"],
        "counted": own.done["tokens_counted"],
        "precision": own.done["precision"],
        **dict(zip(("layers", "neurons"), own.done["shapes"][own.params.reference], strict=True)),
        "seconds": round(time.monotonic() - started),
    }
    write_json(folder / "made.json", record)
    return record


def _delete_all_but_text(folder: Path) -> None:
    """Leaves of a point's run only text.json, by which the next call finds its text."""
    for path in folder.glob("*"):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "text.json":
            path.unlink()
    with contextlib.suppress(OSError):  # not there, or not empty
        folder.rmdir()


def kept_record(folder: Path, settings: dict) -> dict:
    """The record of the tables in `folder`; InputError if there is none or if it was made with other settings."""
    record = read_json(folder / RECORD)
    if not record:
        raise InputError(f"{folder} has no {RECORD}, so there are no points in it that could be kept.")
    other = sorted(key for key, value in settings.items() if record.get(key) != value)
    if other:
        others = ", ".join(other)
        raise InputError(f"the points in {folder} were made with another {others} and cannot stand beside these.")
    return record


def kept_points(folder: Path, measured: list[dict], settings: dict) -> tuple[list[dict], dict[str, pd.DataFrame]]:
    """Records and tables of the points in `folder` that are not in `measured`.

    An older final point with other seeds is renamed to shipped-<step>.
    """
    now = {own["label"]: own["seeds"] for own in measured}
    names, records = {}, []
    for point in kept_record(folder, settings)["points"]:
        old_final = point["label"] == "final" and point["seeds"] != now.get("final")
        names[point["label"]] = label = f"shipped-{point['step']}" if old_final else point["label"]
        records += [] if label in now else [point | {"label": label}]
    labels, tables = [point["label"] for point in records], {}
    for name in TABLES:
        rows = pd.read_parquet(folder / f"{name}.parquet").astype({"point": str})
        rows["point"] = rows["point"].map(names)
        tables[name] = rows[rows["point"].isin(labels)]
    return records, tables


def tabulate_emergence(
    params: Params, tokens: int | None = None, steps: list[int] | None = None, keep: Path | None = None
) -> Path:
    """Measures the checkpoints that have no tables and writes outputs/<run>/emergence; returns that folder.

    The points of the tables in `keep` that are not measured now are added.
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
    if equal := equal_points(weights_of_points(chosen)):
        print(f"note: equal weights: {equal_words(equal)} (chapter 07).", file=sys.stderr)
    folder, records = params.folder / "emergence", []
    for number, point in enumerate(chosen, 1):
        print(f"{point.label} ({number} of {len(chosen)})", file=sys.stderr, flush=True)
        records.append(measured_point(params, point, tokens, folder / "points" / point.label))
    settings |= {name: records[0][name] for name in ("text_sha256", "counted", "layers", "neurons")}
    older, kept = kept_points(keep, records, settings) if keep else ([], {})
    settings["constant_rate"] = constant_rate_steps(params) or (kept_record(keep, {}) if keep else {}).get(
        "constant_rate"
    )
    for name in TABLES:
        paths = {point.label: folder / "points" / point.label / f"{name}.parquet" for point in chosen}
        parts = [pd.read_parquet(path).assign(point=label) for label, path in paths.items()]
        table = pd.concat([*([kept[name]] if kept else []), *parts], ignore_index=True)
        write_table(folder / f"{name}.parquet", table.astype({"point": "category", "seed": "category"}))
    every = [*older, *({name: record.get(name) for name in OF_POINT} for record in records)]
    every.sort(key=lambda point: float("inf") if point["step"] is None else point["step"])
    write_json(folder / RECORD, {"run": params.run, **settings, "points": every})
    return folder


class Emergence:
    """The tables of a run's checkpoints, in the order of training.

    `record` says what they were made from; `tables` has TABLES by name, `points` and, where the run has them,
    `families`: chapter 4's rows of the reference seed. `is_universal` is set where there is an excess. `points` has
    point, step, tokens and constant, whether the learning rate is known to be that of the constant phase.
    """

    def __init__(self, folder: Path, threshold: float, shipped: bool = False, families: pd.DataFrame | None = None):
        self.shipped, self.record = shipped, read_json(folder / RECORD)
        points = pd.DataFrame(self.record["points"])[["label", "step", "tokens"]].rename(columns={"label": "point"})
        points["constant"] = pd.to_numeric(points["step"]).between(*self.record.get("constant_rate") or (1, 0))
        order = {point: place for place, point in enumerate(points["point"])}
        self.tables = {"points": points} | ({} if families is None else {"families": families})
        for name in TABLES:
            table = pd.read_parquet(folder / f"{name}.parquet").astype({"point": str, "seed": str})
            self.tables[name] = table.iloc[table["point"].map(order).argsort(kind="stable")].reset_index(drop=True)
        self.tables = {name: with_universal(table, threshold) for name, table in self.tables.items()}

    @property
    def constant_until(self) -> int | None:
        """The last step at the constant learning rate; None where the schedule is not known."""
        return self.record["constant_rate"][-1] if self.record.get("constant_rate") else None

    def early_and_late(self) -> tuple[pd.DataFrame, pd.DataFrame, str]:
        """The universal neurons of the end as early or late (`when`), the share of each kind in both, what a kind is.

        Early: universal since the middle of training or before. A kind is the family where the run has the reference
        seed's families, otherwise the role.
        """
        points = self.tables["points"]
        place = points["point"].tolist().index(statistics.middle_point(points))
        groups = statistics.first_universal(self.tables["neurons"])
        groups["when"] = (groups["order"] <= place).map({True: "early", False: "late"})
        if "families" not in self.tables:
            return groups, statistics.kinds_of(groups, groups["role"].astype(str)), "role"
        known = groups.merge(self.tables["families"][[*statistics.KEYS, "family"]], on=statistics.KEYS)
        return groups, statistics.kinds_of(known, known["family"].map(FAMILIES)), "family"


def open_chapter(run: Run) -> Emergence | None:
    """A run's own checkpoint tables, else those that ship if all its seeds are shipped ones, else None."""
    params, own = run.params, run.folder / "emergence"
    if (own / RECORD).is_file():
        return Emergence(own, params.threshold, families=_families(run, own))
    folders = {name: None if params.is_on_hub(name) else seed_folder(params, name) for name in params.seeds}
    shipped = parameters.ROOT / SHIPPED
    if not all(is_shipped(folder) and folder.name == name for name, folder in folders.items()):
        return None
    if not (shipped / RECORD).is_file():
        return None
    return Emergence(shipped, params.threshold, shipped=True, families=_families(run, shipped))


def _families(run: Run, folder: Path) -> pd.DataFrame | None:
    """The run's families of its reference seed, if that seed is the model of the last checkpoint."""
    if not (run.folder / "tables" / "families.parquet").is_file():
        return None
    last, reference = read_json(folder / RECORD)["points"][-1], run.params.reference
    if last["seeds"].get(reference) != run.done["seed_hashes"].get(reference):
        return None
    known = with_excess(run.table("families"), run.table("neurons_all_seeds"))
    return known[known["seed"] == reference].reset_index(drop=True)


def export(folder: Path, to: Path) -> None:
    """Copies the tables and their record to where they ship, without the matches of neurons far from universal."""
    to.mkdir(parents=True, exist_ok=True)
    for name in (*(f"{table}.parquet" for table in TABLES if table != "neurons"), RECORD):
        shutil.copyfile(folder / name, to / name)
    neurons = pd.read_parquet(folder / "neurons.parquet")
    neurons.loc[neurons["excess_corr"] < PARTNERS_FROM, [name for name in neurons if name.startswith("partner_")]] = -1
    write_table(to / "neurons.parquet", neurons)


@exit_on_input_error
def main(arguments: list[str] | None = None) -> int:
    """Command line; 0 on success, 2 for bad input."""
    about = __doc__.splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m lib.chapters.emergence.tables", description=about)
    parser.add_argument("params", type=Path, help="a parameter file")
    parser.add_argument("--run", help="the run's name (default: the file's)")
    budget = f"positions of text for each checkpoint (default {TOKENS:,}, or the run's if fewer)"
    parser.add_argument("--tokens", type=int, help=budget)
    steps = "the checkpoints' steps (default: log-spaced ones; none: only the run's seeds)"
    parser.add_argument("--steps", type=int, nargs="*", help=steps)
    parser.add_argument("--keep", type=Path, help="older tables whose points are kept unless measured now")
    parser.add_argument("--export", type=Path, help="also write the tables there")
    given = parser.parse_args(arguments)
    folder = tabulate_emergence(read_params(given.params, run=given.run), given.tokens, given.steps, given.keep)
    if given.export:
        export(folder, given.export)
    print(f"Tables: {given.export or folder}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
