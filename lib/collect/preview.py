"""What a pass has found so far, as a run: `python -m lib.collect.preview outputs/<run>/params.yaml`.

It reads the states that the pass has saved and writes outputs/<run>-preview, from which the first chapters are made
like those of any run (`make preview`). The running pass and its folder are left alone.
"""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

from lib.base.errors import InputError, exit_on_input_error
from lib.base.files import write_json
from lib.base.machine import device_of
from lib.base.params import read_params, write_params, write_statistics_key
from lib.base.tensors import TensorFiles
from lib.collect.one_pass import Pass
from lib.collect.passes import finish, read_pilot, summary
from lib.collect.planner import Plan, setting_of
from lib.collect.preflight import Preflight
from lib.collect.statistics import CANDIDATES_FILE, read_candidates
from lib.run import Run

ENDING = "-preview"  # of the name of the run that is made


def preview(run: Run) -> Run:
    """The run outputs/<run>-preview, from the last saved states; InputError where there is nothing to show yet."""
    stats, name = run.folder / "stats", run.params.run
    if (stats / "done.json").exists():
        raise InputError(f"the pass of outputs/{name} is complete; `make report RUN={name}` shows it.")
    if (stats / "pass-00.json").exists():
        raise InputError(f"the seeds of outputs/{name} are compared; labels are still read, and a report follows.")
    begun, saved = run.recorded("stats/plan.json"), sorted(stats.glob("pass-00.state-*.safetensors"))
    if not begun or not saved or not (stats / CANDIDATES_FILE).exists():
        raise InputError(f"outputs/{name} has nothing to show yet: the first part of its text is not read, try later.")
    inputs, device = Preflight(run, grouped=False), device_of(run.params)
    plan = Plan.resumed(setting_of(run.params, inputs.shapes, device), begun, without=("grouped",))
    plan = replace(plan, passes=plan.passes[:1])
    work = Pass(inputs, plan, 0, read_pilot(stats / "pilot.safetensors", device), device)
    work.follow(read_candidates(stats))
    for path in saved:
        work.merge_state(TensorFiles([path]))
    if not int(work.followed.tokens.sum()):
        raise InputError(f"outputs/{name} has nothing to show yet: its next state is saved within minutes, try later.")
    made = Run(run.params.model_copy(update={"run": name + ENDING}))
    shutil.rmtree(made.folder, ignore_errors=True)
    (made.folder / "stats").mkdir(parents=True)
    write_params(made.params, made.folder / "params.yaml")
    write_statistics_key(made.params, made.folder / "statistics.yaml")
    for file in ("key.json", CANDIDATES_FILE, "pilot.safetensors"):
        shutil.copy(stats / file, made.folder / "stats" / file)
    (made.folder / "tables").mkdir()
    shutil.copy(run.folder / "tables" / "losses.parquet", made.folder / "tables")
    finish(work, made.folder / "stats")
    seen = int(work.done.sum()) / len(work.done)
    write_json(made.folder / "stats" / "done.json", summary(made, plan, device, len(saved)) | {"preliminary": seen})
    return made


@exit_on_input_error
def main() -> int:
    """Command line: the parameter file of a run whose pass is going on."""
    if len(sys.argv) != 2:
        print("usage: python -m lib.collect.preview outputs/<run>/params.yaml", file=sys.stderr)
        return 2
    folder = Path(sys.argv[1]).parent
    if not Path(sys.argv[1]).exists():
        raise InputError(f"there is no run in {folder} to look at; `make report RUN={folder.name}` begins it.")
    preview(Run(read_params(sys.argv[1])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
