"""Parameters to outputs/<run>/params.yaml, checked against what the folder holds."""

import re
from pathlib import Path

from lib.base.errors import InputError
from lib.base.files import file_sha256, read_json
from lib.base.hub import seed_folder, weight_files, weights_sha256
from lib.base.params import Params, read_params, write_params, write_statistics_key


def resolve(parameter_file: Path, run: str, seed: str | None = None, tokens: str | None = None) -> Params:
    """Writes outputs/<run>/params.yaml and statistics.yaml, each only if it changes.

    Raises InputError if the parameters cannot be used, or if the folder holds statistics of other parameters,
    seeds or text.
    """
    budget = int(tokens) if tokens and re.fullmatch(r"\d+", tokens) else tokens
    params = read_params(parameter_file, run=run, reference=seed, token_budget=budget)
    _refuse_missing_device(params)
    params.refuse_other_statistics()
    _refuse_other_inputs(params)
    write_statistics_key(params, params.folder / "statistics.yaml")
    write_params(params, params.folder / "params.yaml")
    _forget_other_tables(params)
    return params


def _refuse_missing_device(params: Params) -> None:
    if params.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise InputError(
                "device is 'cuda', but torch finds no CUDA device; on this machine auto and cpu are allowed."
            )


def _refuse_other_inputs(params: Params) -> None:
    """Statistics are stale if a seed or the text has other contents than the pass read; only newer files are hashed."""
    record = params.folder / "stats" / "done.json"
    done = read_json(record)
    _refuse_other_documents(params, bool(done))
    own = params.text_path
    inputs = [([own], done.get("text_hash"), lambda: file_sha256(own))] if own else []
    for name, expected in done.get("seed_hashes", {}).items():
        folder = seed_folder(params, name)
        if folder is not None:
            inputs.append((weight_files(folder), expected, lambda folder=folder: weights_sha256(folder)))
    for files, expected, sha256 in inputs:
        present = [path for path in files if path.is_file()] if expected else []
        newer = [path for path in present if path.stat().st_mtime > record.stat().st_mtime]
        if newer and sha256() != expected:
            raise InputError(
                f"{newer[0]} has changed since outputs/{params.run} was made from it; choose another name with RUN=…, "
                f"or delete it with `make clean RUN={params.run}`."
            )


def _refuse_other_documents(params: Params, used: bool) -> None:
    """Local documents must be there, and what statistics were made from must not have changed since."""
    if params.text_source is None or params.text_source.dataset is not None:
        return
    from lib.text.tokenise import local_files_changed  # imports what no run of a token file needs

    if local_files_changed(params) and used:
        raise InputError(
            f"files of the text {params.text_title} have changed since outputs/{params.run} was made from them; choose "
            f"another name with RUN=…, or delete it with `make clean RUN={params.run}`."
        )


def _forget_other_tables(params: Params) -> None:
    """A live notebook may have left tables of another threshold; without their record make writes them again."""
    record = params.folder / "tables" / "done.json"
    if any(getattr(params, key, value) != value for key, value in read_json(record).items()):
        record.unlink()
