"""What is fresh and what must be made again: one rule for statistics, tables, kept results and the explorer's files.

A result is fresh if the record beside it equals what it would be made from now: its inputs, and the code that makes it.
That code is the module that makes it and every module it imports from the rooms that compute, without comments and
docstrings, and the C++ sources where a kernel is among them. So an edit of a caption repeats nothing, and one of a
kernel repeats whatever it computes. Only the passes over the text, which may have taken hours, are not thrown away for
an edit of the code: `make report` says so in a line, and after `make clean` it repeats them.
"""

import ast
import filecmp
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.base import params as parameters
from lib.base.errors import InputError, listed
from lib.base.files import file_sha256, read_json, write_json
from lib.base.hub import seed_folder, weight_files, weights_sha256
from lib.base.params import Params

if TYPE_CHECKING:  # resolving parameters comes here too, and must not wait for torch
    from pandas import DataFrame

    from lib.run import Run

COMPUTING = ("kernels", "text", "models", "labels", "collect", "chapters")  # rooms whose code decides numbers
NATIVE = ("*.cpp", "*.h")  # in lib/kernels
COSMETIC = ("transformers_version", "_name_or_path")  # keys of a config.json that say nothing about the model
REPORTS = "UNIVERSAL_NEURONS_REPORTS"  # set in the kernels that execute a report's chapters, which write into the run
SHOWN = ("figures", "notebooks", "report", "unfinished")  # folders that no chapter reads
PASS = "lib.collect.passes"  # the module that makes statistics


# ---------------------------------------------------------------- inputs


def content_sha256(path: Path) -> str:
    """SHA-256 of a file, hashed again only where its size or one of its times is another than at the last call.

    The time of its last change of any kind tells a file that `cp -p` or `tar x` put there from one of that date.
    """
    memory = parameters.OUTPUTS / parameters.CACHE / "hashes.json"
    known, state = read_json(memory), path.stat()
    now = [state.st_size, state.st_mtime_ns, state.st_ctime_ns]
    name = str(path.resolve())
    if known.get(name, [])[:-1] != now:
        known[name] = [*now, file_sha256(path)]
        write_json(memory, known)
    return known[name][-1]


def input_hashes(params: Params, text: Path | None) -> dict[str, str]:
    """SHA-256 of the text and of each seed's weights and configuration, by `text`, `seed <name>` and `config <name>`;
    nothing for what is not there."""
    hashes = {"text": content_sha256(text)} if text and text.is_file() else {}
    for name in sorted(params.seeds):
        folder = seed_folder(params, name)
        weights = weights_sha256(folder, content_sha256) if folder else None
        hashes |= {f"seed {name}": weights, f"config {name}": config_sha256(folder)} if weights else {}
    return hashes


def config_sha256(folder: Path) -> str:
    """SHA-256 of what a seed's config.json says about the model, however it is written."""
    said = read_json(folder / "config.json")
    model = {key: value for key, value in said.items() if key not in COSMETIC}
    return hashlib.sha256(json.dumps(model, sort_keys=True).encode()).hexdigest()


def refuse_same_weights(params: Params) -> None:
    """Raises InputError if two seeds that are on this machine have the same weights, whatever they are called."""
    folders = {name: seed_folder(params, name) for name in params.seeds}
    files = {name: weight_files(folder) for name, folder in folders.items() if folder}
    for (one, own), (two, other) in combinations(files.items(), 2):
        if own and len(own) == len(other) and all(map(_same_bytes, own, other)):
            raise InputError(
                f"seeds: '{one}' ({params.seeds[one]}) and '{two}' ({params.seeds[two]}) have the same weights, so "
                "that every neuron would be universal; name models that were trained from different random seeds."
            )


def _same_bytes(one: Path, two: Path) -> bool:
    """Whether two files are one or hold the same; reads no further than to the first difference."""
    return one.samefile(two) or filecmp.cmp(one, two, shallow=False)


def refuse_other_statistics(params: Params, text: Path | None) -> None:
    """Raises InputError if the run's statistics were made with other parameters, or from other files."""
    made_with = read_json(params.folder / "stats" / "key.json")
    if not made_with:
        return
    ways_out = f"choose another name with RUN=…, or delete it with `make clean RUN={params.run}`."
    all_labelled = {"label_tokens": "all"}  # where the key does not say it
    made_with, now = all_labelled | made_with, all_labelled | params.statistics_key
    differences = [
        f"{name} = {parameters.quoted(made_with.get(name))} (now {parameters.quoted(value)})"
        for name, value in now.items()
        if made_with.get(name) != value
    ]
    if len(differences) == 1 and "reference" in params.statistics_key and made_with["reference"] != params.reference:
        raise InputError(
            f"outputs/{params.run} has the matches of seed {made_with['reference']} only (compare: reference); `make "
            f"report RUN={params.run}-{params.reference} SEED={params.reference} "
            f"PARAMS=outputs/{params.run}/params.yaml` makes those of seed {params.reference}."
        )
    if differences:
        raise InputError(f"outputs/{params.run} was made with {listed(differences)}; {ways_out}")
    now = input_hashes(params, text)
    changed = [name for name, sha256 in made_with.get("hashes", {}).items() if now.get(name, sha256) != sha256]
    if changed:
        raise InputError(
            f"outputs/{params.run} was made from other files ({listed(changed)} changed since then); {ways_out}"
        )


# ---------------------------------------------------------------- code


def code_of(module: str) -> str:
    """SHA-256 of the code behind a module's results, `lib.chapters.families.tables` for example."""
    digest = hashlib.sha256()
    modules = _behind(module)
    for name in sorted(modules):
        digest.update(f"{name}\n{_parsed(name)[0]}\n".encode())
        table = _path(name).with_suffix(".yaml")  # a module's data, which stands beside it
        digest.update(table.read_bytes() if table.is_file() else b"")
    if any(name.startswith("lib.kernels.") for name in modules):
        for pattern in NATIVE:
            for path in sorted((parameters.ROOT / "lib" / "kernels").glob(pattern)):
                digest.update(path.read_bytes())
    return digest.hexdigest()


def _behind(module: str) -> set[str]:
    """A module and all that it imports, directly or not, from the rooms that compute."""
    found, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += [other for other in _parsed(name)[1] if other.split(".")[1] in COMPUTING]
    return found


@cache
def _parsed(module: str) -> tuple[str, tuple[str, ...]]:
    """A module's syntax tree without docstrings, as text, and the modules of lib that it imports."""
    tree, imported = ast.parse(_path(module).read_text(encoding="utf-8")), []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("lib."):
            names = (f"{node.module}.{name.name}" for name in node.names)
            imported += [name if _path(name).is_file() else node.module for name in names]
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:]
    return ast.dump(tree), tuple(name for name in imported if _path(name).is_file())


def _path(module: str) -> Path:
    return parameters.ROOT.joinpath(*module.split(".")).with_suffix(".py")


# ---------------------------------------------------------------- results


def fresh(record: Path, made_from: dict[str, Any]) -> bool:
    """Whether the record of a result says that it was made from just this."""
    return read_json(record) == as_recorded(made_from)


def as_recorded(made_from: dict[str, Any]) -> dict[str, Any]:
    """What JSON gives back of it: tuples as lists."""
    return json.loads(json.dumps(made_from))


def kept(run: "Run", name: str, module: str, inputs: dict[str, Any], make: Callable[[], "DataFrame"]) -> "DataFrame":
    """The run's table `name`, made and written unless it is fresh.

    What it was made from stands beside it in tables/<name>.json: the seeds, `inputs` and the code of `module`.
    """
    from lib.base.tensors import write_table

    made_from = {"seeds": run.done["seed_hashes"], "code": code_of(module), **inputs}
    record = run.folder / "tables" / f"{name}.json"
    if not fresh(record, made_from):
        record.unlink(missing_ok=True)
        write_table(run.folder / "tables" / f"{name}.parquet", make())
        write_json(record, made_from)
    return run.table(name)


# ---------------------------------------------------------------- live sessions


def is_live() -> bool:
    """Whether this is somebody's session, not a chapter that `make report` executes."""
    return REPORTS not in os.environ


def live_folder(folder: Path) -> Path:
    """A run's folder for a live session, of links to the run's files; a file that the session writes replaces its link.

    So a session writes nothing into the run. There is one folder for each process and run, deleted at the end.
    """
    made = Path(_temporary(folder).name)
    for path in folder.rglob("*"):
        inside = path.relative_to(folder)
        if path.is_file() and inside.parts[0] not in SHOWN and not os.path.lexists(made / inside):
            (made / inside).parent.mkdir(parents=True, exist_ok=True)
            (made / inside).symlink_to(path.absolute())
    return made


@cache
def _temporary(folder: Path) -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix=f"{folder.name}-live-", ignore_cleanup_errors=True)
