"""Tensors and tables on disk: safetensors and Parquet, written completely or not at all, read in parts."""

import json
from pathlib import Path

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from lib.base.errors import InputError
from lib.base.files import write_atomically, write_if_changed

NAMES = {  # of types in safetensors, in the order in which it writes them
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Saves tensors as safetensors, atomically; one at a time, so that a GPU's never lie in memory together."""
    write_atomically(path, lambda temporary: _stream(temporary, tensors, metadata))


def _stream(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None) -> None:
    """What `safetensors.torch.save_file` writes: the header's length, the header, and the tensors by type and name."""
    kinds = list(NAMES)
    order = sorted(tensors, key=lambda name: (kinds.index(tensors[name].dtype), name))
    header, start = {"__metadata__": metadata} if metadata else {}, 0
    for name in order:
        one = tensors[name]
        stop = start + one.nbytes
        header[name] = {"dtype": NAMES[one.dtype], "shape": list(one.shape), "data_offsets": [start, stop]}
        start = stop
    packed = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    packed += b" " * (-len(packed) % 8)  # so that the tensors are aligned
    with open(path, "wb") as file:
        file.write(len(packed).to_bytes(8, "little") + packed)
        for name in order:
            file.write(tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy())


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Reads what `write_tensors` wrote; InputError for a corrupt file."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise _corrupt(path, error) from error


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of what `write_tensors` wrote, {} where there is no such file."""
    if not path.exists():
        return {}
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise _corrupt(path, error) from error


class TensorFiles:
    """Tensors of several safetensors files, memory-mapped and read in parts; InputError for a corrupt file."""

    mapped = True  # a tensor is the file until it is copied

    def __init__(self, paths: list[Path]):
        self._file = {}
        for path in paths:
            try:
                opened = safe_open(path, "pt")
            except SafetensorError as error:
                raise _corrupt(path, error) from error
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


def _corrupt(path: Path, error: SafetensorError) -> InputError:
    return InputError(f"{path} is corrupt ({error}); delete it and run again.")


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Saves a table as Parquet, atomically."""
    write_atomically(path, lambda temporary: table.to_parquet(temporary, index=False))


def write_tables_shown(folder: Path, tables: dict[str, pd.DataFrame]) -> None:
    """Saves the tables that a report's pages show as CSV and Parquet, and deletes files of tables no longer shown."""
    wanted = {folder / f"{name}.{ending}" for name in tables for ending in ("csv", "parquet")}
    for stale in {*folder.glob("*.csv"), *folder.glob("*.parquet")} - wanted:
        stale.unlink()
    for name, table in tables.items():
        write_table(folder / f"{name}.parquet", table)
        write_if_changed(folder / f"{name}.csv", table.to_csv(index=False))
