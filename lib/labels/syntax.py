"""Syntax labels: spaCy reads the English prose of the labelled text, in as many processes as there are cores.

Each token has a signature (`lib.labels.words`). Moments are grouped by signature once, and each label is a choice of
signatures. `python -m lib.labels.syntax` writes the shipped file; `run_syntax` finds a run's own, in shards of a
million tokens that are saved as they are read.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Int
from tqdm import tqdm

from lib.base.errors import InputError, exit_on_input_error, shortened
from lib.base.files import file_sha256, write_atomically
from lib.base.machine import cores
from lib.cache import content_sha256
from lib.labels.labels import Grouping, LabelSet, label_set
from lib.labels.words import KINDS, MODEL, MORPHOLOGY, SEPARATOR, Passage, Signatures, batches, reading
from lib.run import Run
from lib.text.blocks import Text, packing_order, read_text
from lib.text.domains import ENGLISH_PROSE, known_domains
from lib.text.tokens import token_bytes

GROUPING = "linguistics"  # its name in the statistics
FILE = "linguistics.parquet"
NEGATION = "negation modifier"  # a label without its kind's prefix
MAX_PASSAGE = 32  # blocks that spaCy reads at once
SHARD_TOKENS = 1_000_000  # about; a kill loses as many
MAX_PROCESSES = 16  # each takes half a gigabyte
PROCESS_TOKENS = 25_000  # at least, for each process: one takes seconds to start


# ---------------------------------------------------------------- passages


def passages(text: Text, domains: tuple[str, ...]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Passages of running text from some domains: the (block, position) of each token, without BOS.

    A passage ends with its document. Where the text's order before shuffling is known, it spans up to MAX_PASSAGE
    consecutive blocks; otherwise each block is read alone.
    """
    for consecutive in _consecutive_blocks(text):
        if text.domains[int(text.domain[consecutive[0]])] not in domains:
            continue
        for start in range(0, len(consecutive), MAX_PASSAGE):
            blocks = consecutive[start : start + MAX_PASSAGE]
            tokens = text.tokens[blocks, 1:].numpy()
            position = np.tile(np.arange(1, text.context), len(blocks))
            ends = np.flatnonzero(tokens.flatten() == text.bos_id)
            for before, end in pairwise([-1, *ends, tokens.size]):
                if end > before + 1:
                    yield np.repeat(blocks, text.context - 1)[before + 1 : end], position[before + 1 : end]


def _consecutive_blocks(text: Text) -> list[np.ndarray]:
    """Consecutive blocks of one domain in the order before shuffling, if the document numbers confirm that order."""
    order = np.argsort(packing_order(len(text.tokens)))
    domain, document = text.domain.numpy()[order], text.document.numpy()[order]
    last = document + (text.tokens[:, 1:] == text.bos_id).sum(1).numpy()[order]
    joined = domain[1:] == domain[:-1]
    if text.documents and (np.diff(domain) >= 0).all() and (last[:-1] == document[1:])[joined].all():
        return np.split(order, np.flatnonzero(~joined) + 1)
    return list(np.arange(len(text.tokens))[:, None])


# ---------------------------------------------------------------- reading


@dataclass(frozen=True)
class Shards:
    """Where the signatures of a text are kept, a file for about a million tokens, and what they were made from."""

    folder: Path
    key: str

    def path(self, number: int) -> Path:
        return self.folder / f"{GROUPING}-{number:03d}.parquet"

    def stored(self, number: int, tokens: int) -> Grouping | None:
        """A shard of so many tokens, if it is there and was made from the same."""
        found = stored_syntax(self.path(number), self.key)
        return found if found is not None and len(found.ids) == tokens else None

    def write(self, number: int, shard: Grouping) -> None:
        write_syntax(self.path(number), shard, self.key)


@dataclass(frozen=True)
class Work:
    """What spaCy has to read of a text: pieces of work, and which of them make a shard."""

    places: list[tuple[np.ndarray, np.ndarray]]  # passages
    batches: list[list[Passage]]
    shards: list[Int[np.ndarray, "batches"]]

    @classmethod
    def of(cls, text: Text, domains: tuple[str, ...]) -> "Work":
        """The prose of some domains."""
        places = list(passages(text, domains))
        work = batches([text.tokens[place].numpy() for place in places])
        ends = np.cumsum([0, *(sum(map(len, batch)) for batch in work)]) // SHARD_TOKENS
        return cls(places, work, [one for one in np.split(np.arange(len(work)), np.flatnonzero(np.diff(ends)) + 1)])

    def tokens(self, number: int) -> int:
        """Tokens of a shard."""
        return sum(len(passage) for batch in self.shards[number] for passage in self.batches[batch])

    def known(self, shards: Shards | None) -> dict[int, Grouping]:
        """The shards that are there, by number."""
        found = {number: shards.stored(number, self.tokens(number)) for number in range(len(self.shards)) if shards}
        return {number: one for number, one in found.items() if one is not None}


def read_syntax(
    text: Text,
    tokenizer,
    domains: tuple[str, ...] = ENGLISH_PROSE,
    shards: Shards | None = None,
    processes: int | None = None,
) -> Grouping:
    """Each token's signature as spaCy reads it, −1 outside the domains and for space. Minutes per million tokens.

    Shards that are there are not read again. The result does not depend on the number of `processes`, by default one
    for each core.
    """
    work = Work.of(text, domains)
    found, tokens = work.known(shards), {number: work.tokens(number) for number in range(len(work.shards))}
    left = {number: size for number, size in tokens.items() if size and number not in found}
    total, unread = sum(tokens.values()), sum(left.values())
    count = processes or max(1, min(cores(), MAX_PROCESSES, unread // PROCESS_TOKENS))
    pieces = token_bytes(tokenizer) + [b""] * (text.vocab_size - len(tokenizer))
    bar = {"total": total, "initial": total - unread, "unit": "tok", "unit_scale": True, "desc": "spaCy"}
    with reading(pieces, count) as signatures, tqdm(**bar, file=sys.stderr, disable=not left) as progress:
        for number in left:
            read = []
            for batch in signatures([work.batches[index] for index in work.shards[number]]):
                read.append(batch)
                progress.update(len(batch[1]))
            found[number] = _joined(read)
            if shards:
                shards.write(number, found[number])
    made = _joined([(found[number].groups, found[number].ids.numpy()) for number in sorted(found)])
    ids = torch.full(text.tokens.shape, -1, dtype=torch.int32)
    if work.places:
        ids[tuple(np.concatenate(axis) for axis in zip(*work.places, strict=True))] = made.ids
    return Grouping(GROUPING, made.groups, ids)


def _joined(parts: list[Signatures]) -> Grouping:
    """Signatures of several parts one after the other, with their names sorted."""
    names = tuple(sorted({name for own, _ in parts for name in own}))
    number = {name: index for index, name in enumerate(names)}
    ids = [np.array([*(number[name] for name in own), -1], np.int32)[ids] for own, ids in parts]
    return Grouping(GROUPING, names, torch.from_numpy(np.concatenate(ids or [np.zeros(0, np.int32)])))


# ---------------------------------------------------------------- labels over signatures


def syntax_labels(groups: tuple[str, ...]) -> LabelSet:
    """Labels over signatures: each value of each kind, sentence edges, negation, plural and singular noun."""
    values = pd.DataFrame([group.split(SEPARATOR) for group in groups], columns=KINDS)
    rows = []
    for kind in KINDS[:-2]:
        codes, found = pd.factorize(values[kind])
        several = [value.split(",") if kind in MORPHOLOGY else [value] for value in found]
        for value in sorted({one for some in several for one in some} - {"", NEGATION}):
            rows.append((f"{kind}: {value}", kind, np.array([value in some for some in several])[codes]))
    noun = values["part of speech"].isin(["noun", "proper noun"])
    rows += [
        ("stop word", "stop word", values["stop word"] == "yes"),
        ("negation", "negation", values["dependency"] == NEGATION),
        ("any named entity", "entity", values["entity"] != ""),
        ("plural noun", "number", noun & (values["number"] == "Plur")),
        ("singular noun", "number", noun & (values["number"] == "Sing")),
        ("sentence start", "sentence", values["sentence"].str.contains("start")),
        ("sentence end", "sentence", values["sentence"].str.contains("end")),
    ]
    return label_set(GROUPING, [(label, "syntax", kind, np.asarray(member, bool)) for label, kind, member in rows])


# ---------------------------------------------------------------- files


def write_syntax(path: Path, grouping: Grouping, text_sha256: str) -> None:
    """Writes a grouping as one dictionary column of Parquet, a row per token of the text, null for −1."""
    ids = grouping.ids.flatten().numpy()
    column = pa.DictionaryArray.from_arrays(pa.array(ids, mask=ids < 0), pa.array(grouping.groups, pa.string()))
    metadata = {"text_sha256": text_sha256, "shape": json.dumps(list(grouping.ids.shape)), "kinds": json.dumps(KINDS)}
    table = pa.table({"signature": column}).replace_schema_metadata(metadata)
    options = {"compression": "zstd", "compression_level": 19, "dictionary_pagesize_limit": 2**26}
    write_atomically(path, lambda file: pq.write_table(table, file, row_group_size=len(ids), **options))


def stored_syntax(path: Path, text_sha256: str) -> Grouping | None:
    """What `write_syntax` wrote, or None if there is no file at `path` or if it was made for another text."""
    if not path.is_file():
        return None
    table = pq.read_table(path, read_dictionary=["signature"])
    metadata = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    if metadata.get("text_sha256") != text_sha256 or metadata.get("kinds") != json.dumps(KINDS):
        return None
    column = table["signature"].combine_chunks()
    ids = torch.from_numpy(column.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32))
    return Grouping(GROUPING, tuple(column.dictionary.to_pylist()), ids.view(*json.loads(metadata["shape"])))


def run_syntax(run: Run) -> Grouping | None:
    """The signatures of a run's labelled text: those shipped with its text, else its own, read now unless they were
    before.

    None, after one sentence on stderr, if the text has no domain of English prose.
    """
    shipped, prose = _shipped(run), _prose_domains(run)
    if shipped is not None:
        return shipped
    if not prose:
        print(
            f"no syntax labels: none of the text's domains ({shortened(run.text.domains)}) is known as English prose; "
            "if one is, say so in the parameters, as in `domains: {forum: prose}`.",
            file=sys.stderr,
        )
        return None
    return read_syntax(run.labelled, run.tokenizer, prose, Shards(run.folder / "stats", _own_key(run, prose)))


def unread_tokens(run: Run) -> int:
    """How many tokens `run_syntax` would read with spaCy."""
    prose = _prose_domains(run)
    if not prose or _shipped(run) is not None:
        return 0
    work = Work.of(run.labelled, prose)
    known = work.known(Shards(run.folder / "stats", _own_key(run, prose)))
    return sum(work.tokens(number) for number in range(len(work.shards)) if number not in known)


def _prose_domains(run: Run) -> tuple[str, ...]:
    """The domains of English prose that the labelled blocks hold."""
    present = {run.text.domains[index] for index in run.labelled.domain.unique().tolist()}
    return tuple(
        sorted(name for name, kind in known_domains(run.params.domains).items() if kind.prose and name in present)
    )


def _own_key(run: Run, prose: tuple[str, ...]) -> str:
    """What a run's shards depend on, but for the code that makes them: hours are not thrown away for an edit of it."""
    blocks = [len(run.text.tokens), len(run.label_blocks), run.text.context]
    return json.dumps([content_sha256(run.text_path), *blocks, *prose, MODEL, version("spacy")])


def _shipped(run: Run) -> Grouping | None:
    """The signatures shipped with the text, if they are of all of its prose."""
    found = stored_syntax(run.text_path.with_name(FILE), content_sha256(run.text_path))
    if found is None or not set(_prose_domains(run)) <= set(ENGLISH_PROSE):
        return None
    return Grouping(found.name, found.groups, found.ids[run.label_blocks, : run.text.context])


@exit_on_input_error
def main() -> int:
    """Command line; returns 0, or 2 after one sentence about what the user can mend."""
    parser = argparse.ArgumentParser(
        description="Read the English prose of a token file with spaCy and write its syntactic signatures beside it."
    )
    parser.add_argument("--text", type=Path, default=Path("data/tokens.safetensors"), help="token file")
    parser.add_argument("--tokenizer", type=Path, default=Path("data/tokenizer"), help="folder of its tokeniser")
    parser.add_argument("--processes", type=int, help="how many read; default: one for each core")
    parser.add_argument(
        "--tokens", type=int, help="measure the speed on so many tokens of the text; nothing is written"
    )
    options = parser.parse_args()
    from transformers import AutoTokenizer

    try:
        text, started = read_text(options.text), time.monotonic()
        if text.tokenizer_sha256 != file_sha256(options.tokenizer / "tokenizer.json"):
            raise InputError(f"the tokeniser in {options.tokenizer} is not the one that {options.text} was made with.")
        tokenizer = AutoTokenizer.from_pretrained(options.tokenizer, trust_remote_code=False)
        text = text.take(options.tokens) if options.tokens else text
        grouping = read_syntax(text, tokenizer, processes=options.processes)
        if not options.tokens:
            write_syntax(options.text.with_name(FILE), grouping, file_sha256(options.text))
            print(file_sha256(options.text.with_name(FILE)), FILE)
    except OSError as error:
        raise InputError(str(error)) from None
    labels, tokens = len(syntax_labels(grouping.groups).labels), int((grouping.ids >= 0).sum())
    speed = tokens / (time.monotonic() - started)
    print(f"{tokens:,} tokens, {len(grouping.groups):,} signatures, {labels} labels; {speed:,.0f} tokens a second")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
