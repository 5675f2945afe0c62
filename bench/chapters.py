"""`python -m bench.chapters outputs/tiny outputs/gpt2-shape …`: what chapters cost, from finished reports.

Each report must have been made in one go on this machine, which should have nothing else to do now: its rates are
measured again. Writes lib/collect/chapters.json, which `make plan` reads, and prints each run's forecast beside what it
took. A cell's first seconds count as drawing, the rest as work; by how much work grows is fitted over the runs.
"""

import argparse
import json
import sys
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path

import numpy as np
from scipy.optimize import nnls

from bench.machine import description, this_device
from lib.base.files import read_json, write_json
from lib.base.hub import seed_config
from lib.base.machine import device_of
from lib.base.params import read_params
from lib.collect import prices
from lib.collect.forecast import likely_layout, seconds
from lib.collect.planner import Setting, Shape, pack, seed_shapes, setting_of
from lib.models.trunk import no_interventions

DRAWING = 3.0  # seconds of a cell


def split(notebook: dict) -> tuple[float, float]:
    """Seconds of an executed notebook: drawing and loading, and work."""
    taken = [cell["metadata"].get("papermill", {}).get("duration") or 0.0 for cell in notebook["cells"]]
    work = sum(max(0.0, one - DRAWING) for one in taken)
    return notebook["metadata"]["papermill"]["duration"] - work, work


def times(folder: Path) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """The seconds of a finished report's stages, and of its chapters and pages, drawing and work."""
    paths = {path.name[:2]: path for path in sorted((folder / "notebooks").glob("0*.ipynb"))}
    notebooks = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items()}
    drawn = max(
        datetime.fromisoformat(one["metadata"]["papermill"]["end_time"]).timestamp() for one in notebooks.values()
    )
    made = datetime.fromisoformat(read_json(folder / "provenance.json")["made"]).timestamp()
    # the tables of the pages, which are the last to be made in full
    first, last = ((folder / "tables" / f"{name}.parquet").stat().st_mtime for name in ("ledger", "passages"))
    began, pages, work = read_json(folder / "progress.json")["began"], max(made, last) - drawn, last - first
    stages = {
        "passes": began["tables"] - began["passes"],
        "tables": began["chapters"] - began["tables"],
        "chapters": drawn - began["chapters"],
        "pages": pages,
    }
    return stages, {name: split(one) for name, one in notebooks.items()} | {"pages": (pages - work, work)}


def measured(folder: Path) -> dict:
    """One finished report: its setting, this machine's rates, the seconds of its stages and of its chapters."""
    params, done = read_params(folder / "params.yaml"), read_json(folder / "stats" / "done.json")
    shapes, device = seed_shapes(params), device_of(params)
    setting = setting_of(params, shapes, device, groups=likely_layout(shapes, params))
    setting = replace(setting, blocks=done["blocks"], precision=done["precision"], memory=1e12)
    largest = max(shapes, key=lambda seed: shapes[seed].total)
    forward = prices.forward_rate(setting, shapes[largest], seed_config(params, largest), device)
    stages, chapters = times(folder)
    return {
        "run": params.run,
        "setting": asdict(setting),
        "draws": params.rotations,
        "interventions": not no_interventions(params),
        "rates": asdict(replace(prices.rates(setting, device), maps=forward, scores=forward, mlp=forward)),
        "seconds": stages,
        "chapters": chapters,
    }


def setting_from(stored: dict) -> Setting:
    """A setting as `measured` stores it."""
    shapes = {seed: Shape(**shape) for seed, shape in stored["shapes"].items()}
    groups = tuple(map(tuple, stored["groups"]))
    return Setting(**stored | {"shapes": shapes, "references": tuple(stored["references"]), "groups": groups})


def fitted(runs: list[dict], wide: float) -> dict[str, dict[str, float]]:
    """What each chapter always takes, and seconds of work for each thousand neurons and each operation (as a multiple
    of one in fp32). One run alone cannot tell the two apart."""
    works = [prices.chapter_work(setting_from(run["setting"]), run["interventions"]) for run in runs]
    found = {}
    for name in works[0]:
        rows, taken = [], []
        for run, work in zip(runs, works, strict=True):
            neurons, operations = work[name]
            if not neurons or name not in run["chapters"]:  # left out of this run
                continue
            drawing, working = run["chapters"][name]
            several = len(runs) > 1
            share = 1 / (drawing + working)  # an error counts by its share of the chapter
            rows.append([share, share * neurons * several, 0, 0])
            rows.append([0, 0, share * neurons * (several or not operations), share * operations / wide])
            taken += [share * drawing, share * working]
        if not rows:
            continue
        start, drawn, neurons, operations = nnls(np.array(rows), np.array(taken))[0]
        found[name] = {"start": start, "neurons": drawn + neurons, "operations": operations}
    return found


def forecast(run: dict, record: dict) -> dict[str, float]:
    """The seconds of a run's stages by the forecast, at a record's rates and prices."""
    setting, rates = setting_from(run["setting"]), prices.Rates(**run["rates"])
    passes, tables = (sum(one.values()) for one in seconds(pack(setting), rates, run["draws"]))
    chapters = prices.chapter_seconds(prices.chapter_work(setting, run["interventions"]), rates.wide, record)
    whole = prices.report_seconds(chapters)
    return {
        "passes": passes + prices.STARTING,
        "tables": tables + prices.STARTING,
        "chapters": whole - chapters["pages"],
        "pages": chapters["pages"],
    }


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.chapters", description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    given = parser.parse_args()
    runs = [measured(folder) for folder in given.runs]
    record = {"machine": description(this_device()), "chapters": fitted(runs, runs[0]["rates"]["wide"]), "runs": runs}
    write_json(prices.CHAPTERS, record)
    for run in runs:
        expected = forecast(run, record)
        stages = ", ".join(f"{name} {expected[name]:,.0f} ({taken:,.0f})" for name, taken in run["seconds"].items())
        ratio = sum(expected.values()) / sum(run["seconds"].values())
        print(f"{run['run']}: forecast (taken) in seconds: {stages}; together {ratio:.2f} of what it took")
    return 0


if __name__ == "__main__":
    sys.exit(main())
