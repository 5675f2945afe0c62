"""Where a run's files lie and how they are read and written; nothing else touches outputs/<run>."""

import contextlib
import errno
import fcntl
import json
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file, save_file
from torch import Tensor

from lib.base.errors import InputError
from lib.base.files import write_atomically, write_if_changed
from lib.base.params import Params, read_params
from lib.text.blocks import Text, read_text


@contextlib.contextmanager
def alone(folder: Path, busy: str | None = None):
    """Waits until no other process is in a block of this kind for the same folder, or raises InputError with the sentence `busy`; a
    process that dies leaves it. With `busy`, file systems that cannot lock are let pass."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError as error:
            raise InputError(busy) from error
        except OSError as error:
            if not busy or error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                raise
        yield


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Saves tensors as safetensors, atomically."""
    on_host = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, lambda temporary: save_file(on_host, temporary, metadata))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Reads what `write_tensors` wrote; InputError for a corrupt file."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path} is corrupt ({error}); delete it and run again.") from error


class TensorFiles:
    """The tensors of several safetensors files, mapped into memory and read in parts, so that none is loaded whole.

    InputError for a corrupt file.
    """

    def __init__(self, paths: list[Path]):
        self._file = {}
        for path in paths:
            try:
                opened = safe_open(path, "pt")
            except SafetensorError as error:
                raise InputError(f"{path} is corrupt ({error}); delete it and run again.") from error
            self._file |= {name: opened for name in opened.keys()}

    def names(self) -> list[str]:
        """All tensors' names."""
        return sorted(self._file)

    def tensor(self, name: str) -> Tensor:
        """One tensor."""
        return self._file[name].get_tensor(name)

    def part(self, name: str, index: int) -> Tensor:
        """One index of a tensor's first axis."""
        return self._file[name].get_slice(name)[index : index + 1][0]


def write_json(path: Path, content: dict) -> None:
    """Saves a dictionary as indented JSON, atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(content, indent=2) + "\n"))


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Saves a table as Parquet, atomically."""
    write_atomically(path, lambda temporary: table.to_parquet(temporary, index=False))


def write_tables_shown(folder: Path, tables: dict[str, pd.DataFrame]) -> None:
    """Saves the tables that a report's pages show, as CSV and Parquet; files of tables that are gone go too."""
    wanted = {folder / f"{name}.{ending}" for name in tables for ending in ("csv", "parquet")}
    for stale in {*folder.glob("*.csv"), *folder.glob("*.parquet")} - wanted:
        stale.unlink()
    for name, table in tables.items():
        write_table(folder / f"{name}.parquet", table)
        write_if_changed(folder / f"{name}.csv", table.to_csv(index=False))


class Run:
    """One run's parameters, text, statistics and tables, as the notebooks read them."""

    def __init__(self, params: Params):
        self.params = params
        self.folder = params.folder

    @cached_property
    def text_path(self) -> Path:
        """The run's token file, made first where the text is documents."""
        from lib.text.tokenise import token_file  # not needed where no text is read

        return token_file(self.params)

    @cached_property
    def text(self) -> Text:
        """The run's text, cut to its context and token budget."""
        return read_text(self.text_path).cut(self.params.context).take(self.params.token_budget)

    @cached_property
    def tokenizer(self):
        """The tokeniser that all seeds share."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.params.seed_source(self.params.reference))

    @cached_property
    def done(self) -> dict:
        """What the pass wrote about itself: tokens, device, precision, times, hashes."""
        return json.loads((self.folder / "stats" / "done.json").read_text())

    def recorded(self, name: str) -> dict | None:
        """A small JSON file of the run's folder, or None if it is not there."""
        path = self.folder / name
        return json.loads(path.read_text()) if path.exists() else None

    def stats(self, name: str) -> dict[str, np.ndarray]:
        """All seeds' arrays of one kind of accumulator, from whichever pass wrote them (stats/<name>-<pass>.safetensors)."""
        arrays = {}
        for path in sorted((self.folder / "stats").glob(f"{name}-*.safetensors")):
            arrays |= load_arrays(path)
        return arrays

    def table(self, name: str) -> pd.DataFrame:
        """The table outputs/<run>/tables/<name>.parquet."""
        return pd.read_parquet(self.folder / "tables" / f"{name}.parquet")

    @cached_property
    def neurons(self) -> pd.DataFrame:
        """One row per neuron of the reference seed (columns: DESIGN, neurons.parquet)."""
        return self._of_reference("neurons_all_seeds")

    @cached_property
    def matches(self) -> pd.DataFrame:
        """One row per neuron of the reference seed and compared seed (columns: DESIGN, matches.parquet)."""
        return self._of_reference("matches_all_seeds")

    def _of_reference(self, name: str) -> pd.DataFrame:
        table = self.table(name)
        return table[table["seed"] == self.params.reference].drop(columns="seed").reset_index(drop=True)


def open_run(params_file: str | Path, **overrides) -> Run:
    """The run of a parameter file, with overrides that are not None; collects and tabulates what is missing.

    A change of `reference`, `threshold` or `rotations` needs no new pass over the text; a change of anything that
    the pass depends on raises InputError, since it needs a run of its own.
    """
    from lib.chapters.universality.tables import tabulate
    from lib.collect.one_pass import collect

    run = Run(read_params(params_file, **{name: value for name, value in overrides.items() if value is not None}))
    collect(run)
    tabulate(run)
    return run
