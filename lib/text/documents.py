"""Documents as they stream from a source: a dataset on the Hub, or local files (lib/text/local_files.py).

A document has a number, its place in the source from 0 on; a text file is one document. Long documents come in parts,
so that none has to fit in memory. Folders of local files take turns, one document each, so that a prefix of the text
holds some of all. Every fault of a source is one InputError sentence.
"""

import io
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
import pyarrow.parquet

from lib.base.errors import InputError, first_line
from lib.base.hub import download_failure
from lib.base.params import TextSource
from lib.text.blocks import characters
from lib.text.local_files import Found, find, kind_of, opened

PART_CHARACTERS = 2**18  # a longer document is handed on in parts
PARQUET_ROWS = 64  # read at a time
UNKNOWN_DOMAIN = "unknown"  # of a document whose domain field is empty


class Part(NamedTuple):
    """Text of one document; `number` is the document's, `index` the part's within it."""

    number: int
    index: int
    domain: str
    text: str


Document = tuple[str, Iterable[str]]  # domain, and the text in pieces of any size


def parts(source: TextSource, commit: str | None = None, start: tuple[int, int] = (0, 0)) -> Iterator[Part]:
    """All parts from `start` (document, part) on; `commit` is the dataset's on the Hub (`dataset_commit`)."""
    first, done = start
    documents = _local(source) if source.dataset is None else _of_dataset(source, commit, first)
    documents = itertools.islice(documents, first, None) if source.dataset is None else documents
    for number, (domain, lines) in enumerate(documents, first):
        for index, text in enumerate(_parts_of(lines)):
            if number > first or index >= done:
                yield Part(number, index, characters(domain), text)


def _parts_of(pieces: Iterable[str]) -> Iterator[str]:
    """Pieces of a text of any size, as parts of at most about PART_CHARACTERS, however long its lines are.

    A part ends before a blank between two words if it has one. Pre-tokenisers of byte-level BPE cut there anyway, so
    the parts have the tokens of the whole.
    """
    waiting, size = [], 0
    for piece in pieces:
        for start in range(0, len(piece), PART_CHARACTERS):
            waiting.append(piece[start : start + PART_CHARACTERS])
            size += len(waiting[-1])
            if size >= PART_CHARACTERS:
                whole = "".join(waiting)
                stop = _end_of_part(whole)
                yield whole[:stop]
                waiting, size = [whole[stop:]], len(whole) - stop
    if size:
        yield "".join(waiting)


def _end_of_part(text: str) -> int:
    """Where a part of a text ends: before its last blank between words, else its last other blanks, else anywhere."""
    turned = text[::-1]  # so that the last blank is the first
    blank = re.search(r"(?<=\S) (?=\S)", turned) or re.search(r"\s(?=\S)", turned)
    return len(text) - 1 - blank.start() if blank else len(text)


def _document(row: dict[str, Any], source: TextSource, domain: str, where: Callable[[], str]) -> Document:
    """Domain and lines of one record; a text that is null is an empty document."""
    text = _value(row, source.field, where)
    if not isinstance(text, str | None):
        raise InputError(f"{where()}: field '{source.field}' is {type(text).__name__}, where text is needed.")
    if source.domain is not None:
        value = _value(row, source.domain, where)
        domain = UNKNOWN_DOMAIN if value in (None, "") else str(value)
    return domain, [characters(text or "")]


def _value(row: dict[str, Any], field: str, where: Callable[[], str]) -> Any:
    """A field of a record; dots separate nested fields, and below null all is null."""
    if field in row:
        return row[field]
    value: Any = row
    for step in field.split("."):
        if value is None:
            return None
        if not isinstance(value, dict) or step not in value:
            raise _no_field(where(), field, row)
        value = value[step]
    return value


def _no_field(where: str, field: str, known: Iterable[str]) -> InputError:
    names = ", ".join(f"'{name}'" for name in known) or "none"
    return InputError(f"{where} has no field '{field}'; its fields are {names}.")


# ---------------------------------------------------------------- local files


def files_of(source: TextSource) -> Found:
    """The files of a path, folder or glob, and what is not read there; InputError if there is nothing to read."""
    return find(source.path)


def check_files(source: TextSource) -> Found:
    """`files_of`, after a look at the first document of each; InputError for the first that cannot be used."""
    found = files_of(source)
    for file in found.files:
        kind = kind_of(file)
        if kind == "parquet":
            with _parquet(file, source):
                pass
        else:
            next(_text_of(file) if kind == "txt" else _of_lines(file, source), None)
    return found


def _local(source: TextSource) -> Iterator[Document]:
    """Documents of all files; folders take turns."""
    folders: dict[Path, list[Path]] = {}
    for file in files_of(source).files:
        folders.setdefault(file.parent, []).append(file)
    turns = [itertools.chain.from_iterable(_of_file(file, source) for file in files) for files in folders.values()]
    while turns:
        waiting = []
        for documents in turns:
            document = next(documents, None)
            if document is not None:
                waiting.append(documents)
                yield document
        turns = waiting


def _of_file(file: Path, source: TextSource) -> Iterator[Document]:
    match kind_of(file):
        case "txt":
            yield file.parent.name, _text_of(file)
        case "parquet":
            yield from _of_parquet(file, source)
        case _:
            yield from _of_lines(file, source)


def _text_of(file: Path) -> Iterator[str]:
    """The text of a file in pieces, with its line ends as they are."""
    with _readable(file), io.TextIOWrapper(opened(file), encoding="utf-8-sig", newline="") as text:
        while piece := text.read(PART_CHARACTERS):
            yield piece


def _of_lines(file: Path, source: TextSource) -> Iterator[Document]:
    """Documents of a file with a JSON object a line."""
    with _readable(file), io.TextIOWrapper(opened(file), encoding="utf-8-sig", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                where = partial("{}, line {}".format, file, number)
                yield _document(_record(line, where), source, file.parent.name, where)


def _record(line: str, where: Callable[[], str]) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where()} is not JSON ({error.msg}); each line must hold one object.") from None
    except (ValueError, RecursionError):
        raise InputError(f"{where()} has a number of thousands of digits, or is nested thousands deep.") from None
    if not isinstance(record, dict):
        raise InputError(f"{where()} is not a JSON object with fields.")
    return record


def _of_parquet(file: Path, source: TextSource) -> Iterator[Document]:
    with _parquet(file, source) as (table, columns):
        batches = table.iter_batches(PARQUET_ROWS, columns=columns)
        for number, row in enumerate(itertools.chain.from_iterable(batch.to_pylist() for batch in batches), 1):
            yield _document(row, source, file.parent.name, partial("{}, row {}".format, file, number))


@contextmanager
def _parquet(file: Path, source: TextSource) -> Iterator[tuple[pyarrow.parquet.ParquetFile, list[str]]]:
    """A Parquet file and the columns that hold the source's fields; InputError if it lacks one."""
    with _readable(file), opened(file) as raw, pyarrow.parquet.ParquetFile(raw) as table:
        known = table.schema_arrow.names
        wanted = [name for name in (source.field, source.domain) if name is not None]
        columns = [name if name in known else name.split(".")[0] for name in wanted]
        missing = [name for name, column in zip(wanted, columns, strict=True) if column not in known]
        if missing:
            raise _no_field(str(file), missing[0], known)
        yield table, list(dict.fromkeys(columns))


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Turns errors of reading a file into InputError."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text (near byte {error.start:,} of the part last read).") from None
    except (OSError, pyarrow.ArrowException) as error:
        why = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"{file} is damaged or cannot be read ({why}).") from None


# ---------------------------------------------------------------- datasets on the Hub


def dataset_commit(source: TextSource) -> str:
    """The commit that a dataset's revision now stands for, from the Hub."""
    from huggingface_hub import HfApi, constants

    if source.revision is not None and re.fullmatch(r"[0-9a-f]{40}", source.revision):
        return source.revision
    try:
        return HfApi(endpoint=constants.ENDPOINT).dataset_info(source.dataset, revision=source.revision).sha
    except Exception as error:  # of huggingface_hub or its HTTP client
        raise InputError(f"text: {_dataset_failure(error, source)}") from error


def _of_dataset(source: TextSource, commit: str | None, first: int) -> Iterator[Document]:
    """Documents of a dataset's split from number `first` on, streamed."""
    import datasets
    from datasets.exceptions import DatasetGenerationError

    _register_zstd()
    name = source.dataset.split("/")[-1]
    try:
        files = {source.split: source.data_files} if source.data_files else None
        rows = datasets.load_dataset(
            source.dataset, source.subset, data_files=files, split=source.split, revision=commit, streaming=True
        )
        for number, row in enumerate(rows.skip(first), first):
            where = partial("the dataset '{}', document {}".format, source.dataset, number)
            yield _document(row, source, name, where)
    except (InputError, GeneratorExit):
        raise
    except Exception as error:
        if isinstance(error, ValueError) and not isinstance(error, DatasetGenerationError | pyarrow.ArrowException):
            raise InputError(f"text: the dataset '{source.dataset}' cannot be used ({first_line(error)}).") from error
        raise InputError(f"text: {_dataset_failure(error, source)}") from error


def _dataset_failure(error: Exception, source: TextSource) -> str:
    from huggingface_hub import constants

    shown = f"the dataset '{source.dataset}'"
    if constants.is_offline_mode():
        return f"{shown} cannot be read in offline mode; unset HF_HUB_OFFLINE, or give its files as text.files."
    if "gated dataset" in str(error):
        page = f"{constants.ENDPOINT}/datasets/{source.dataset}"
        return f"{shown} is gated; accept its terms at {page}, then log in with `hf auth login` or set HF_TOKEN."
    cause = error
    while cause is not None and not type(cause).__module__.startswith(("huggingface_hub", "httpx")):
        cause = cause.__cause__ or cause.__context__
    if cause is not None:
        return download_failure(cause, "dataset", source.dataset, source.revision)
    return (
        f"{shown} cannot be read ({type(error).__name__}: {first_line(error)}); run the same command again, the tokens "
        "so far are kept."
    )


def _register_zstd() -> None:
    """Lets `datasets` open .zst files with pyarrow instead of another package."""
    import fsspec.compression

    if "zstd" not in fsspec.compression.compr:

        def opened(file, mode="rb", **_):
            return pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd")

        fsspec.compression.register_compression("zstd", opened, "zst")
