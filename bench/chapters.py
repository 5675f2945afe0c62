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

from bench.machine import description
from lib.base.files import read_json, write_json
from lib.base.hub import seed_config
from lib.base.machine import device_of
from lib.base.params import read_params
from lib.collect import prices
from lib.collect.forecast import likely_layout, seconds
from lib.collect.planner import Setting, Shape, pack, seed_shapes, setting_of
from lib.models.trunk import no_interventions

DRAWING = 3.0  # seconds of a cell


def split(notebook: Path) -> tuple[float, float]:
    """Seconds of an executed notebook: drawing and loading, and work."""
    made = json.loads(notebook.read_text(encoding="utf-8"))
    taken = [cell["metadata"].get("papermill", {}).get("duration") or 0.0 for cell in made["cells"]]
    work = sum(max(0.0, one - DRAWING) for one in taken)
    return made["metadata"]["papermill"]["duration"] - work, work


def measured(folder: Path) -> dict:
    """One finished report: its setting, the seconds of its stages, and of its chapters by number."""
    params, done = read_params(folder / "params.yaml"), read_json(folder / "stats" / "done.json")
    shapes = seed_shapes(params)
    setting = setting_of(params, shapes, device_of(params), groups=likely_layout(shapes, params))
    setting = replace(setting, blocks=done["blocks"], precision=done["precision"], memory=1e12)
    notebooks = {path.name[:2]: path for path in sorted((folder / "notebooks").glob("0*.ipynb"))}
    ends = [json.loads(path.read_text(encoding="utf-8"))["metadata"]["papermill"]["end_time"] for path in notebooks.values()]
    began, drawn = read_json(folder / "progress.json")["began"], max(datetime.fromisoformat(one).timestamp() for one in ends)
    finished = datetime.fromisoformat(read_json(folder / "provenance.json")["made"]).timestamp()
    first, last = ((folder / "tables" / f"{name}.parquet").stat().st_mtime for name in ("ledger", "passages"))
    finished, pages = max(finished, last), max(0.0, last - first)
    taken = {name: split(path) for name, path in notebooks.items()}
    return {
        "run": params.run,
        "setting": asdict(setting),
        "draws": params.rotations,
        "interventions": not no_interventions(params),
        "largest": str(seed_config(params, max(shapes, key=lambda seed: shapes[seed].total))),
        "chapters": taken | {"pages": (finished - drawn - pages, pages)},
        "seconds": {
            "passes": began["tables"] - began["passes"],
            "tables": began["chapters"] - began["tables"],
            "chapters": drawn - began["chapters"],
            "pages": finished - drawn,
        },
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
            drawing, working = run["chapters"][name]
            neurons, operations = work[name]
            if not neurons:  # left out of this run
                continue
            neurons *= len(runs) > 1 or not operations
            weight = 1 / (drawing + working)  # errors count by their share of the chapter
            rows += [[weight, weight * neurons * (len(runs) > 1), 0, 0], [0, 0, weight * neurons, weight * operations / wide]]
            taken += [weight * drawing, weight * working]
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
    for run, folder in zip(runs, given.runs, strict=True):
        params, setting = read_params(folder / "params.yaml"), setting_from(run["setting"])
        device, largest = device_of(params), max(setting.shapes.values(), key=lambda shape: shape.total)
        forward = prices.forward_rate(setting, largest, run.pop("largest"), device)
        run["rates"] = asdict(replace(prices.rates(setting, device), maps=forward, scores=forward, mlp=forward))
    record = {"machine": description(device), "chapters": fitted(runs, runs[0]["rates"]["wide"]), "runs": runs}
    write_json(prices.CHAPTERS, record)
    for run in runs:
        expected = forecast(run, record)
        stages = ", ".join(f"{name} {expected[name]:,.0f} ({taken:,.0f})" for name, taken in run["seconds"].items())
        ratio = sum(expected.values()) / sum(run["seconds"].values())
        print(f"{run['run']}: forecast (taken) in seconds: {stages}; together {ratio:.2f} of what it took")
    return 0


if __name__ == "__main__":
    sys.exit(main())
