"""Files: read as JSON, hashed, written completely or not at all, and locked for one process. Imports no torch."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from lib.base.errors import InputError

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # errors of file systems that cannot lock


def read_json(path: Path) -> dict:
    """A JSON object from a file; {} for a file that does not exist, InputError for one that holds something else."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged: it does not hold a JSON object.")
    return content


def write_json(path: Path, content: dict) -> None:
    """Saves a dictionary as indented JSON, atomically."""
    write_atomically(
        path, lambda temporary: temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    )


def file_sha256(path: Path | str) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_lfs_pointer(path: Path) -> bool:
    """Whether a file is the few lines that git-lfs puts in the place of a large file that was not fetched."""
    with open(path, "rb") as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls write(temporary path) and renames: the file at `path` is the old or the new one, never half of it.

    InputError for a full disk or a path that cannot be written; the old file stays.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.writing")  # two processes may write the same file
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.replace(temporary, path)
    except Exception as error:
        if temporary.exists():
            temporary.unlink()
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            raise InputError(
                f"no space left on the disk while writing {path}; free some and run the same command again, "
                "it resumes from the last saved state."
            ) from error
        if isinstance(error, OSError):
            raise InputError(f"{path} cannot be written: {error.strerror or error}.") from error
        raise


def write_if_changed(path: Path, content: str) -> None:
    """Writes a text file atomically unless it has this content, so that `make` sees a new time only after a change."""
    if not path.exists() or path.read_text(encoding="utf-8") != content:
        write_atomically(path, lambda temporary: temporary.write_text(content, encoding="utf-8"))


@contextlib.contextmanager
def locked(folder: Path, busy: str | None = None, name: str = "lock") -> Iterator[TextIO]:
    """Holds the lock of a folder, its file `name`, which a process that dies releases; yields the open file.

    Waits while another process holds it or, with `busy`, raises InputError with that sentence, in which `{pid}` is the
    other process's id. With `busy`, a file system that cannot lock is accepted.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / name, "a+", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror or error}.") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError as error:
            file.seek(0)
            raise InputError(busy.replace("{pid}", file.read().strip())) from error
        except OSError as error:
            if not busy or error.errno not in NO_LOCKS:
                raise
        file.truncate(0)
        print(os.getpid(), file=file, flush=True)
        yield file
