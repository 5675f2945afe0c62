"""Small files, without importing torch: read as JSON, hashed, and written where their content changed."""

import errno
import hashlib
import json
import os
from pathlib import Path

from lib.errors import InputError


def read_json(path: Path) -> dict:
    """A JSON file's content; nothing of one that is not there."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def file_sha256(path: Path | str) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_if_changed(path: Path, content: str) -> None:
    """Writes a text file atomically unless it has this content already, so that its time tells a change to make.

    InputError where it cannot be written.
    """
    if path.exists() and path.read_text(encoding="utf-8") == content:
        return
    temporary = path.with_name(path.name + ".writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(content, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        why = "no space left on the disk" if error.errno == errno.ENOSPC else (error.strerror or str(error))
        raise InputError(f"{path} cannot be written: {why}.") from error
