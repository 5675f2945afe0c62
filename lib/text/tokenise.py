"""A token file from documents: tokenised once with the seeds' tokeniser, cached, and resumed after a kill.

The documents of a domain are joined by BOS and cut into blocks of `context` tokens, BOS first. A block ends where a
word begins among its last WORD_SEARCH_TOKENS tokens, or between two characters where there are no blanks (as in
Chinese). The rest of the block is filled with BOS, which never counts.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from tqdm import tqdm

from lib.base import params as parameters
from lib.base.errors import InputError, shortened
from lib.base.files import file_sha256, locked, read_json, write_atomically, write_if_changed, write_json
from lib.base.hub import CONFIG_AND_TOKENIZER, seed_folder, seed_source
from lib.base.params import CACHE, Params, TextSource
from lib.text import documents
from lib.text.blocks import Text, read_text, write_text
from lib.text.documents import Part
from lib.text.tokens import TOKENIZER_PARTS, shared_tokenizer, token_bytes, tokenizer_sha256

PACKING_VERSION = 2  # raise it with every change to how documents become blocks: it is part of a cached text's name
WORD_SEARCH_TOKENS = 16  # at the end of a block
BATCH_CHARACTERS = 2**21  # tokenised at a time, on all cores
SHARD_TOKENS = 2**22  # saved at a time: the most that a kill can lose
MAX_DOMAINS = 256


# ---------------------------------------------------------------- the tokeniser


@dataclass(frozen=True, repr=False)
class Vocabulary:
    """A tokeniser and what packing needs to know of each token id."""

    tokenizer: Tokenizer
    bos_id: int
    pieces: tuple[bytes, ...]  # each token's bytes, empty for special tokens

    @property
    def dtype(self) -> type[np.unsignedinteger]:
        """The smallest type that holds every id."""
        return np.uint16 if len(self.pieces) <= 2**16 else np.uint32

    @property
    def newline_ids(self) -> tuple[int, ...]:
        """Ids of the tokens that consist of line ends only."""
        return tuple(token for token, piece in enumerate(self.pieces) if piece and not piece.strip(b"\r\n"))

    @property
    def sha256(self) -> str:
        """SHA-256 of all that decides a text's tokens: what the tokeniser does, BOS, and the bytes of each token."""
        parts = json.loads(self.tokenizer.to_str())
        decides = [parts[part] for part in TOKENIZER_PARTS], self.bos_id, [piece.hex() for piece in self.pieces]
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()

    def boundaries(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Three booleans a token: begins with a blank, ends with a blank, begins inside a character."""
        texts = [piece.decode(errors="ignore") for piece in self.pieces]
        begins, ends = (np.array([text[place].isspace() for text in texts]) for place in (slice(1), slice(-1, None)))
        begins[self.bos_id] = ends[self.bos_id] = True
        return begins, ends, np.array([piece[:1] != b"" and 0x80 <= piece[0] < 0xC0 for piece in self.pieces])


def vocabulary(tokenizer) -> Vocabulary:
    """From a fast tokeniser of transformers; InputError if it has neither BOS nor EOS, or is not a byte-level BPE."""
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if bos is None:
        raise InputError("the seeds' tokeniser has neither a BOS nor an EOS token, and each block must begin with one.")
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = True  # a document that spells a special token out does not contain one
    pieces = token_bytes(tokenizer)
    return Vocabulary(backend, bos, (*pieces, *[b""] * (max(tokenizer.get_vocab().values()) + 1 - len(pieces))))


# ---------------------------------------------------------------- packing


class Packer:
    """Turns tokens of documents into blocks, with one open block a domain; its state can be saved and loaded."""

    def __init__(self, known: Vocabulary, context: int):
        self.context, self.bos, self.dtype = context, known.bos_id, known.dtype
        self.begins, self.ends, self.inside = known.boundaries()
        self.domains: list[str] = []
        self.open: list[tuple[np.ndarray, np.ndarray]] = []  # per domain: ids, and the document of each
        self.blocks: list[tuple[np.ndarray, int, int]] = []  # (ids, domain, document of the first token)

    def add(self, domain: str, document: int, ids: np.ndarray) -> None:
        """Adds tokens of a document, or of its next part; full blocks go to `blocks`."""
        if not len(ids):
            return
        if domain not in self.domains:
            if len(self.domains) == MAX_DOMAINS:
                raise InputError(
                    f"the text has more than {MAX_DOMAINS} domains, the last being {domain[:60]!r}; text.domain must "
                    "name a field with a few kinds of text."
                )
            self.domains.append(domain)
            self.open.append((np.empty(0, self.dtype), np.empty(0, np.int32)))
        label = self.domains.index(domain)
        tokens, owners = self.open[label]
        separator = [self.bos] if len(owners) and owners[-1] != document else []
        tokens = np.concatenate([tokens, np.array(separator, self.dtype), ids])
        owners = np.concatenate([owners, np.full(len(separator) + len(ids), document, np.int32)])
        while len(tokens) >= self.context:  # a block's body and the token after it, which decides the block's end
            stop = self._end(tokens)
            self._emit(label, tokens[:stop], owners)
            stop += int(tokens[stop] == self.bos)  # the next block's own BOS separates documents too
            tokens, owners = tokens[stop:], owners[stop:]
        self.open[label] = tokens, owners

    def finish(self) -> None:
        """Emits the open blocks, filled up with BOS."""
        for label, (tokens, owners) in enumerate(self.open):
            if len(tokens):
                self._emit(label, tokens, owners)
            self.open[label] = tokens[:0], owners[:0]

    def _end(self, tokens: np.ndarray) -> int:
        body = self.context - 1
        stops = np.arange(max(1, body - WORD_SEARCH_TOKENS), body + 1)
        word = self.begins[tokens[stops]] | self.ends[tokens[stops - 1]]
        for possible in (word, ~self.inside[tokens[stops]]):
            if possible.any():
                return int(stops[possible.nonzero()[0][-1]])
        return body

    def _emit(self, label: int, tokens: np.ndarray, owners: np.ndarray) -> None:
        block = np.full(self.context, self.bos, self.dtype)
        block[1 : 1 + len(tokens)] = tokens
        self.blocks.append((block, label, int(owners[0])))

    def state(self) -> tuple[dict[str, np.ndarray], list[str]]:
        """The open blocks, and the domains so far."""
        sizes = np.array([len(tokens) for tokens, _ in self.open], np.int64)
        joined = [np.concatenate([pair[i] for pair in self.open] or [np.empty(0, np.int32)]) for i in (0, 1)]
        return {"open_sizes": sizes, "open_tokens": joined[0], "open_owners": joined[1]}, list(self.domains)

    def load(self, state: dict[str, np.ndarray], domains: list[str]) -> None:
        """Restores what `state` returned."""
        self.domains = list(domains)
        cuts = np.cumsum(state["open_sizes"])[:-1]
        pairs = (np.split(state[name], cuts) for name in ("open_tokens", "open_owners"))
        blocks = [(tokens.astype(self.dtype), owners) for tokens, owners in zip(*pairs, strict=True)]
        self.open = blocks if domains else []


# ---------------------------------------------------------------- building the token file


def tokenised(parts: Iterable[Part], known: Vocabulary) -> Iterator[tuple[Part, np.ndarray]]:
    """Each part with its ids; all cores tokenise one batch while the next is read."""

    def ids_of(batch: list[Part]) -> list[np.ndarray]:
        encoded = known.tokenizer.encode_batch_fast([part.text for part in batch], add_special_tokens=False)
        return [np.array(encoding.ids, known.dtype) for encoding in encoded]

    with ThreadPoolExecutor(1) as ahead:
        started = ((batch, ahead.submit(ids_of, batch)) for batch in _batches(parts))
        for (batch, ids), _ in pairwise(chain(started, [None])):  # the next batch starts before this one is awaited
            yield from zip(batch, ids.result(), strict=True)


def _batches(parts: Iterable[Part]) -> Iterator[list[Part]]:
    batch, size = [], 0
    for part in parts:
        batch.append(part)
        size += len(part.text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Shards:
    """The parts of an unfinished text in a folder, each written completely or not at all."""

    def __init__(self, folder: Path):
        self.folder = folder

    def paths(self) -> list[Path]:
        return sorted(self.folder.glob("shard-*.safetensors"))

    def write(self, packer: Packer, position: tuple[int, int]) -> None:
        """Saves the packer's blocks, and the next (document, part) to read."""
        tokens = [block for block, _, _ in packer.blocks]
        state, domains = packer.state()
        arrays = state | {
            "tokens": np.stack(tokens) if tokens else np.empty((0, packer.context), packer.dtype),
            "domain": np.array([label for _, label, _ in packer.blocks], np.uint8),
            "document": np.array([document for _, _, document in packer.blocks], np.int32),
            "position": np.array(position, np.int64),
        }
        path = self.folder / f"shard-{len(self.paths()):05d}.safetensors"
        metadata = {"domains": json.dumps(domains)}
        write_atomically(path, lambda temporary: save_file(arrays, temporary, metadata))
        packer.blocks.clear()

    def resume(self, packer: Packer) -> tuple[tuple[int, int], int]:
        """The position to continue from, and the number of blocks that are done."""
        position, blocks = (0, 0), 0
        for path in self.paths():
            with safe_open(path, "np") as shard:
                blocks += shard.get_slice("tokens").get_shape()[0]
                last = shard.get_tensor("position"), json.loads(shard.metadata()["domains"])
            position = tuple(map(int, last[0]))
        if self.paths():
            packer.load(load_file(self.paths()[-1]), last[1])
        return position, blocks

    def joined(self, known: Vocabulary, blocks: int, tokenizer_sha256: str) -> Text:
        """The first `blocks` blocks of all shards as a text."""
        columns: dict[str, list[np.ndarray]] = {"tokens": [], "domain": [], "document": []}
        for path in self.paths():
            with safe_open(path, "np") as shard:
                for name, column in columns.items():
                    column.append(shard.get_tensor(name))
                domains = json.loads(shard.metadata()["domains"])
        tensors = {name: torch.from_numpy(np.concatenate(column)[:blocks]) for name, column in columns.items()}
        of_tokenizer = {"vocab_size": len(known.pieces), "bos_id": known.bos_id, "newline_ids": known.newline_ids}
        return Text(**tensors, **of_tokenizer, domains=tuple(domains), tokenizer_sha256=tokenizer_sha256)


def build(folder: Path, parts: Callable, known: Vocabulary, size: tuple[int, int], tokenizer_sha256: str) -> Path:
    """Writes folder/tokens.safetensors, of at most size = (blocks, context), and continues what is in the folder.

    `parts(start)` gives the documents' parts from a position on. InputError if they hold no text.
    """
    blocks, context = size
    packer, shards = Packer(known, context), _Shards(folder)
    position, there = shards.resume(packer)
    with tqdm(total=blocks * context, initial=there * context, unit="tok", unit_scale=True, desc="tokenising") as bar:
        for part, ids in tokenised(parts(position) if there < blocks else (), known):
            before = len(packer.blocks)
            packer.add(part.domain, part.number, ids)
            position = part.number, part.index + 1
            bar.update((len(packer.blocks) - before) * context)
            if len(packer.blocks) * context >= SHARD_TOKENS:
                there += len(packer.blocks)
                shards.write(packer, position)
            if there + len(packer.blocks) >= blocks:
                break
        else:
            packer.finish()
        there += len(packer.blocks)
        shards.write(packer, position)
    if not there:
        raise InputError("the text's documents are all empty.")
    text = shards.joined(known, min(blocks, there), tokenizer_sha256)
    write_atomically(folder / "tokens.safetensors", lambda temporary: write_text(temporary, text))
    for path in folder.glob("shard-*"):  # also what a kill left half-written
        path.unlink()
    return folder / "tokens.safetensors"


# ---------------------------------------------------------------- a run's token file


def token_file(params: Params) -> Path:
    """The token file of a run: the one its parameters name, or one made from its documents and kept in outputs/cache.

    outputs/<run>/text.json records which commit of a dataset the run reads and which file it made: the run keeps
    reading the same documents, and needs neither tokeniser nor network once it has the file.
    """
    if params.text_source is None:
        return params.text_path
    with locked(_cache_folder()):  # several processes or runs may want the same text
        return made_token_file(params) or _made(params, params.text_source)


def _made(params: Params, source: TextSource) -> Path:
    asked, known = _asked(params, source), _record(params)
    if known.get("asked", {}).get("text") != asked["text"]:
        known["commit"] = None if source.dataset is None else documents.dataset_commit(source)
    known["asked"], own = asked, vocabulary(shared_tokenizer(params))
    made_from = {"packing": PACKING_VERSION, "vocabulary": own.sha256, "commit": known["commit"]}
    made_from |= {name: asked[name] for name in ("text", "files", "context", "blocks")}
    known["cache"] = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]
    cache = _cache_folder() / known["cache"]
    write_json(cache / "made_from.json", made_from)
    write_if_changed(params.folder / "text.json", json.dumps(known, indent=2) + "\n")
    if not (cache / "tokens.safetensors").is_file():
        size, sha256 = (asked["blocks"], params.context), tokenizer_sha256(seed_source(params, params.reference))
        build(cache, partial(documents.parts, source, known["commit"]), own, size, sha256)
    return cache / "tokens.safetensors"


def made_token_file(params: Params) -> Path | None:
    """The run's token file if it exists; makes nothing and asks for nothing."""
    if params.text_source is None:
        return params.text_path if params.text_path.is_file() else None
    known = _record(params)
    path = _cache_folder() / str(known.get("cache")) / "tokens.safetensors"
    return path if path.is_file() and known["asked"] == _asked(params, params.text_source) else None


def local_files_changed(params: Params) -> bool:
    """Whether a run's local documents changed since its token file was made; InputError if they are gone."""
    known, files = _record(params), _asked(params, params.text_source)["files"]
    return bool(known) and known["asked"]["files"] != files


def check_text(params: Params) -> str | None:
    """Looks at the text that a run will read; returns a sentence on the files beside its documents that it will not.

    InputError for a token file that cannot be used, and for the first document that cannot. Nothing of a dataset on the
    Hub is known, and nothing is looked at that was tokenised already.
    """
    source = params.text_source
    if source is None:
        read_text(params.text_path).cut(params.context).take(params.token_budget)
    elif source.dataset is None and not made_token_file(params):
        if skipped := documents.check_files(source).skipped:
            return f"not read as text: {shortened(skipped)}."
    return None


def _cache_folder() -> Path:
    return parameters.OUTPUTS / CACHE / "text"


def _record(params: Params) -> dict:
    return read_json(params.folder / "text.json")


def _asked(params: Params, source: TextSource) -> dict:
    """The parameters and local files that decide a run's token file, as read back from JSON: those of the seeds'
    tokenisers too, as far as they are on this machine."""
    files = None
    if source.dataset is None:
        found = documents.files_of(source).files
        files = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in found]
    return {
        "text": source.model_dump(),
        "files": files,
        "tokenizers": {name: _tokenizer_files(seed_folder(params, name)) for name in sorted(params.seeds)},
        "seeds": params.seeds,
        "revision": params.revision,
        "context": params.context,
        "blocks": -(-params.token_budget // params.context),
    }


def _tokenizer_files(folder: Path | None) -> dict[str, str]:
    """SHA-256 of each file of a seed that decides how it is tokenised, by name."""
    paths = [] if folder is None else [folder / name for name in CONFIG_AND_TOKENIZER]
    return {path.name: file_sha256(path) for path in paths if path.is_file()}
