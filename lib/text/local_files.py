"""Local files of a text: which ones a path, a folder or a glob means, and how each is opened.

One rule for all three: each real file once, whatever links lead to it; nothing hidden; a file of another kind is passed
over and named, and one that may hold text in a form that cannot be read is refused.
"""

import io
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import pyarrow

from lib.base.errors import InputError, shortened
from lib.base.files import is_lfs_pointer

READ = ".txt, .jsonl or .json (an object a line), each also .gz or .zst, or .parquet"
_KIND = re.compile(r".*\.(?:(txt|jsonl|ndjson|json)(?:\.(gz|zst))?|(parquet))", re.IGNORECASE | re.DOTALL)
_UNREAD = re.compile(r".*\.(csv|tsv|arrow|zip|tar|tgz|gz|zst|bz2|xz|lz4|7z|rar)", re.IGNORECASE | re.DOTALL)
_COMPRESSION = {"gz": "gzip", "zst": "zstd"}
BUFFER = 2**16  # bytes that are read at a time


class Found(NamedTuple):
    """Files of a text, sorted, and what lies among them and is not read."""

    files: list[Path]
    skipped: list[Path]


def kind_of(file: Path) -> str | None:
    """How a file is read: as txt, jsonl or parquet; None for another kind."""
    match = _KIND.fullmatch(file.name)
    if match is None:
        return None
    kind = (match[1] or match[3]).lower()
    return "jsonl" if kind in ("json", "ndjson") else kind


def find(path: Path) -> Found:
    """The files that a path, a folder or a glob means; InputError if there is none, or one that cannot be read."""
    root, pattern = _literal_part(path)
    if not pattern and not root.is_dir():
        _is_read(root, named=True)
        return Found([root], [])
    files, skipped = [], []
    for file in _listed(root, pattern):
        if file.name.startswith(".") or not _is_read(file):
            skipped.append(file)
        else:
            files.append(file)
    if not files:
        seen = f"; what is there is not read: {shortened(skipped)}" if skipped else ""
        raise InputError(f"text: {path} has no file that ends in {READ}{seen}.")
    return Found(sorted(files), sorted(skipped))


def _literal_part(path: Path) -> tuple[Path, tuple[str, ...]]:
    """The longest beginning of a path that exists, and the patterns after it; InputError if they are none."""
    root, pattern = path, []
    while not os.path.lexists(root):
        pattern.insert(0, root.name)
        root = root.parent
    if pattern and (not root.is_dir() or not re.search(r"[*?[]", pattern[0])):
        raise InputError(
            f"text: there is no file or folder {path}; a dataset on the Hub is a mapping with the keys dataset and "
            "split (docs/models-and-text.md)."
        )
    while pattern and pattern[-1] == "**":  # a folder stands for all that is in it
        pattern.pop()
    return root, tuple(pattern)


def _listed(root: Path, pattern: tuple[str, ...]) -> Iterator[Path]:
    """Each real file below a folder that the pattern matches, and each hidden file or folder, in no order.

    A folder is listed once for what may come after it, so that no circle of links is followed twice. Names that are no
    links come first, so that a file goes by its own name.
    """
    real, linked, done, files = deque([(root, _closed({pattern}))]), deque(), set(), set()
    links: list[Path] = []
    while real or linked:
        folder, ahead = (real or linked).popleft()
        own = os.path.realpath(folder)
        if (own, ahead) in done:
            continue
        done.add((own, ahead))
        for entry in _entries(folder):
            rest = _after(entry.name, ahead)
            path = folder / entry.name
            if not rest:
                continue
            if entry.name.startswith("."):
                yield path
            elif os.path.isdir(path):
                (linked if entry.is_symlink() else real).append((path, rest))
            elif () in rest and entry.is_symlink():
                links.append(path)
            elif () in rest and (name := f"{own}/{entry.name}") not in files:
                files.add(name)
                yield path
    for path in sorted(links):
        if (name := os.path.realpath(path)) not in files:
            files.add(name)
            yield path


def _entries(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"text: the folder {folder} cannot be read ({error.strerror}).") from None


def _closed(patterns: Iterable[tuple[str, ...]]) -> frozenset[tuple[str, ...]]:
    """The patterns, and what is left of them where `**` stands for no folder."""
    found = set(patterns)
    for pattern in patterns:
        while pattern and pattern[0] == "**":
            pattern = pattern[1:]
            found.add(pattern)
    return frozenset(found)


def _after(name: str, ahead: frozenset[tuple[str, ...]]) -> frozenset[tuple[str, ...]]:
    """What must match below an entry of this name; with () all that is below it is meant."""
    rest = set()
    for pattern in ahead:
        if not pattern or pattern[0] == "**":
            rest.add(pattern)
        elif fnmatchcase(name, pattern[0]):
            rest.add(pattern[1:])
    return _closed(rest)


def _is_read(file: Path, named: bool = False) -> bool:
    """Whether a file is read; InputError for one that the user names, or that may hold text, and that cannot be."""
    known = kind_of(file) is not None
    if (known or named) and not file.is_file():
        what = "a link to a file that does not exist" if file.is_symlink() else "not a file"
        raise InputError(f"text: {file} is {what}.")
    if not known and (named or _UNREAD.fullmatch(file.name)):
        ways_out = "" if named else "; convert it, move it elsewhere, or let text be a glob that leaves it out"
        raise InputError(f"text: {file} cannot be read as text: a file must end in {READ}{ways_out}.")
    return known


# ---------------------------------------------------------------- opening


class Unheld(io.RawIOBase):
    """A file that is open only while it is read from, so that more folders can take turns than files may be open."""

    def __init__(self, path: Path):
        self.path, self.place, self.known = path, 0, None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.place, os.SEEK_END: os.stat(self.path).st_size}
        self.place = start[whence] + offset
        return self.place

    def readinto(self, buffer) -> int:
        with open(self.path, "rb", buffering=0) as file:
            state = os.fstat(file.fileno())
            now = state.st_size, state.st_mtime_ns, state.st_ino
            if self.known not in (None, now):
                raise OSError("it changed while it was read")
            self.known = now
            file.seek(self.place)
            read = file.readinto(buffer)
        self.place += read
        return read


def opened(file: Path) -> io.BufferedReader:
    """The bytes of a text file, decompressed."""
    if is_lfs_pointer(file):
        raise InputError(f"text: {file} is a pointer of git-lfs, not the text itself; fetch it with `git lfs pull`.")
    compression = _COMPRESSION.get((_KIND.fullmatch(file.name)[2] or "").lower())
    raw = Unheld(file)
    if compression:
        raw = pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, mode="r"), compression)
    return io.BufferedReader(raw, BUFFER)
