"""Parameters to outputs/<run>/params.yaml, checked against what the folder holds."""

import re
import sys
from pathlib import Path
from shutil import disk_usage

from lib.base import progress
from lib.base.errors import InputError
from lib.base.files import read_json
from lib.base.params import Params, read_params, write_params, write_statistics_key
from lib.cache import PASS, code_of, refuse_other_statistics, refuse_same_weights


def resolve(parameter_file: Path, run: str, seed: str | None = None, tokens: str | None = None) -> Params:
    """Writes outputs/<run>/params.yaml and statistics.yaml, each only if it changes.

    Raises InputError if the parameters cannot be used, or if the folder holds statistics of other parameters,
    seeds or text.
    """
    budget = int(tokens) if tokens and re.fullmatch(r"\d+", tokens) else tokens
    params = read_params(parameter_file, run=run, reference=seed, token_budget=budget)
    _refuse_missing_device(params)
    _check_documents(params)
    refuse_same_weights(params)
    refuse_other_statistics(params, params.text_path)
    _note_other_code(params)
    write_statistics_key(params, params.folder / "statistics.yaml")
    write_params(params, params.folder / "params.yaml")
    return params


def announcement(params: Params) -> str | None:
    """What a report of the run will take, in one line; None where its passes are done, or cannot run.

    Notes it for the stages, which show how far the whole report is. InputError for models that cannot be used, as far
    as configs and headers show, so that they are refused within seconds.
    """
    (params.folder / progress.FILE).unlink(missing_ok=True)
    if (params.folder / "stats" / "done.json").exists():
        return None
    from lib.base.machine import device_of  # slow to import
    from lib.collect.forecast import estimate
    from lib.collect.preflight import Preflight
    from lib.kernels.native import why_slower
    from lib.run import Run

    shapes = Preflight(Run(params)).shapes
    try:
        stages, memory, disk = estimate(params, shapes)
    except InputError:  # it is raised again where it is in the way
        return None
    _check_disk(params, disk)
    progress.begin(params.folder, stages)
    if device_of(params).type == "cpu" and (why := why_slower()):
        print(f"note: {why}, so torch does the work of compiled loops, more slowly.", file=sys.stderr)
    seconds = sum(stages.values())
    time = f"{seconds / 60:.0f} minutes" if seconds < 100 * 60 else f"{seconds / 3600:.0f} hours"
    needs = f"{memory / 1e9:.0f} GB of memory and {disk / 1e9:.0f} GB of disk"
    return f"{params.run}: about {time}, {needs} on this machine"


def _check_disk(params: Params, needed: float) -> None:
    """Refuses a disk with less than half of the bytes that a run is expected to need, and says where it may be short.

    The forecast counts saved states at their largest, so that half of it is too little for any run.
    """
    folder = next(path for path in (params.folder, *params.folder.parents) if path.exists())
    have = disk_usage(folder).free + sum(path.stat().st_size for path in params.folder.rglob("*") if path.is_file())
    text = f"{params.run} needs up to {needed / 1e9:.1f} GB of disk in {params.folder}"
    text += f", where {have / 1e9:.1f} GB are free"
    if have < needed / 2:
        raise InputError(f"{text}; free some, or shorten the run with TOKENS=….")
    if have < needed:
        print(f"note: {text}.", file=sys.stderr)


def _note_other_code(params: Params) -> None:
    """Says that the passes ran with other code. They may have taken hours, so an edit does not repeat them."""
    made_by = read_json(params.folder / "stats" / "done.json").get("code")
    if made_by and made_by != code_of(PASS):
        repeat = f"to repeat it, delete its results with `make clean RUN={params.run}`"
        print(f"note: the code of the pass has changed since it ran; {repeat}.", file=sys.stderr)


def _refuse_missing_device(params: Params) -> None:
    if params.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise InputError("device is 'cuda', but torch finds no CUDA device; this machine allows auto and cpu.")


def _check_documents(params: Params) -> None:
    """Local documents must be readable, and must not have changed since statistics were made from them."""
    if params.text_source is None or params.text_source.dataset is not None:
        return
    from lib.text.tokenise import check_text, local_files_changed  # slow to import

    if local_files_changed(params) and (params.folder / "stats" / "done.json").exists():
        raise InputError(
            f"files of the text {params.text_title} have changed since outputs/{params.run} was made from them; choose "
            f"another name with RUN=…, or delete it with `make clean RUN={params.run}`."
        )
    if note := check_text(params):
        print(f"note: {note}", file=sys.stderr)
