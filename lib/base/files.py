"""Files, without importing torch: read as JSON, hashed, written whole or not at all, and only where their content changed."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
from pathlib import Path

from lib.base.errors import InputError


def read_json(path: Path) -> dict:
    """A JSON file's content; nothing of one that is not there."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def file_sha256(path: Path | str) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, write) -> None:
    """Calls write(temporary path) and renames: the file at `path` is the old or the new one, never half of it.

    A full disk, or a place where nothing can be written, raises InputError; what was there before stays.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.writing")  # two processes may write the same file
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.replace(temporary, path)
    except Exception as error:
        if temporary.exists():
            temporary.unlink()
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        if full:
            raise InputError(
                f"no space left on the disk while writing {path}; free some and run the same command again, "
                "it goes on from the last saved state."
            ) from error
        if isinstance(error, OSError):
            raise InputError(f"{path} cannot be written: {error.strerror or error}.") from error
        raise


def write_if_changed(path: Path, content: str) -> None:
    """Writes a text file atomically unless it has this content already, so that its time tells a change to make."""
    if not path.exists() or path.read_text(encoding="utf-8") != content:
        write_atomically(path, lambda temporary: temporary.write_text(content, encoding="utf-8"))


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


def write_json(path: Path, content: dict) -> None:
    """Saves a dictionary as indented JSON, atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(content, indent=2) + "\n"))
