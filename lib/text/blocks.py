"""The token file: blocks of token ids, each with a domain label, and the mask of the tokens that count.

A token file is safetensors with `tokens` (blocks, context) uint16, or uint32 for a vocabulary above 65,536, `domain`
(blocks) uint8, `document` (blocks) int32 and metadata. The first id of every block is BOS.
"""

import json
import struct
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lib.base.errors import InputError
from lib.base.files import is_lfs_pointer

SHUFFLE_SEED = 20240122  # of the order of the shipped text's blocks
STRETCH = 64  # most consecutive blocks with labels: whole documents, and few batches that are labelled in part
PLACES = 16  # at least, from which the blocks with labels come
REQUIRED_METADATA = ("domains", "tokenizer_sha256", "vocab_size", "bos_id", "newline_ids", "context")


def counted_mask(
    tokens: Int[Tensor, "blocks context"], bos_id: int, newline_ids: tuple[int, ...]
) -> Bool[Tensor, "blocks context"]:
    """True where a position counts: neither BOS nor a token that consists of line ends only."""
    left_out = torch.tensor([bos_id, *newline_ids], dtype=tokens.dtype, device=tokens.device)
    return ~torch.isin(tokens, left_out)


@dataclass(frozen=True)
class Text:
    """Blocks of a token file; `domain` indexes `domains`, `document` indexes `documents`."""

    tokens: Int[Tensor, "blocks context"]
    domain: Int[Tensor, "blocks"]
    document: Int[Tensor, "blocks"]
    domains: tuple[str, ...]
    tokenizer_sha256: str
    vocab_size: int
    bos_id: int
    newline_ids: tuple[int, ...]
    documents: tuple[str, ...] = ()

    @property
    def context(self) -> int:
        """Tokens per block, BOS included."""
        return self.tokens.shape[1]

    def counted(self, blocks: slice = slice(None)) -> Bool[Tensor, "blocks context"]:
        """`counted_mask` of the chosen blocks."""
        return counted_mask(self.tokens[blocks], self.bos_id, self.newline_ids)

    def take(self, token_budget: int) -> "Text":
        """The first `token_budget // context` blocks; InputError when that is none, more than there are, or if none of
        their tokens counts."""
        available = self.tokens.numel()
        if not self.context <= token_budget <= available:
            several = f"from {self.context} (one block) to {available} (the whole text)"
            allowed, s = (several, "s") if available > self.context else (available, "")
            raise InputError(
                f"token_budget is {token_budget}, but the text has {len(self.tokens):,} block{s} of {self.context} "
                f"tokens; it must be {allowed}."
            )
        blocks = slice(token_budget // self.context)
        if not self.counted(blocks).any():
            raise InputError(f"none of the text's first {token_budget:,} tokens counts: all are BOS or line ends.")
        return self.chosen(blocks)

    def chosen(self, blocks: slice | Int[Tensor, "some"]) -> "Text":
        """The text of these blocks alone."""
        return replace(self, tokens=self.tokens[blocks], domain=self.domain[blocks], document=self.document[blocks])

    def cut(self, context: int) -> "Text":
        """The same blocks shortened to `context` tokens; InputError below 2 or above their length."""
        if not 2 <= context <= self.context:
            allowed = f"it must be from 2 to {self.context}"
            raise InputError(f"A context of {context} cannot be used with this text: {allowed}.")
        return replace(self, tokens=self.tokens[:, :context])


def write_text(path: Path | str, text: Text) -> None:
    """Writes a token file; the same text always gives the same bytes.

    The header is written here because the safetensors writer has no fixed order of metadata.
    """
    if text.vocab_size > 2**32 or len(text.domains) > 2**8:
        found = f"{text.vocab_size} ids and {len(text.domains)} domains"
        raise InputError(f"A token file holds ids below {2**32} and at most 256 domains, not {found}.")
    kind, dtype = ("U16", "<u2") if text.vocab_size <= 2**16 else ("U32", "<u4")
    metadata = {
        "domains": json.dumps(text.domains),
        "documents": json.dumps(text.documents),
        "tokenizer_sha256": text.tokenizer_sha256,
        "vocab_size": str(text.vocab_size),
        "bos_id": str(text.bos_id),
        "newline_ids": json.dumps(text.newline_ids),
        "context": str(text.context),
    }
    arrays = (
        ("document", "I32", text.document.numpy().astype("<i4")),
        ("tokens", kind, text.tokens.numpy().astype(dtype)),
        ("domain", "U8", text.domain.numpy().astype("<u1")),
    )
    header: dict[str, object] = {"__metadata__": metadata}
    start = 0
    for name, kind, array in arrays:
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [start, start + array.nbytes]}
        start += array.nbytes
    encoded = json.dumps(header, sort_keys=True).encode()
    encoded += b" " * (-len(encoded) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for _, _, array in arrays:
            file.write(np.ascontiguousarray(array).tobytes())


def read_text(path: Path | str) -> Text:
    """Reads and checks a token file; InputError for everything that keeps it from being used."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"The token file {path} does not exist.")
    if is_lfs_pointer(path):
        raise InputError(f"The token file {path} is a pointer of git-lfs, not the file itself; run `git lfs pull`.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = set(file.keys())
            tensors = {name: file.get_tensor(name) for name in ("tokens", "domain", "document") if name in names}
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"The token file {path} is not a readable safetensors file ({error}).") from None
    try:
        return _checked(tensors, metadata)
    except InputError as problem:
        raise InputError(f"The token file {path} has {problem}.") from None


def _checked(tensors: dict[str, Tensor], metadata: dict[str, str]) -> Text:
    """The text of a token file's content; InputError for what is wrong, as the object of "The token file has"."""
    lacking = [f"tensor '{name}'" for name in ("tokens", "domain") if name not in tensors]
    lacking += [f"metadata '{name}'" for name in REQUIRED_METADATA if name not in metadata]
    if lacking:
        raise InputError(f"no {lacking[0]}")
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            raise InputError(f"'{name}' of type {tensor.dtype}, where whole numbers are needed")
        tensors[name] = tensor.long()  # 8 bytes a token: 0.8 GB for 100 million
    text = Text(
        tokens=tensors["tokens"],
        domain=tensors["domain"],
        document=tensors.get("document", torch.zeros_like(tensors["domain"])),
        domains=_list_of(str, metadata, "domains"),
        tokenizer_sha256=metadata["tokenizer_sha256"],
        vocab_size=_whole_number(metadata, "vocab_size"),
        bos_id=_whole_number(metadata, "bos_id"),
        newline_ids=_list_of(int, metadata, "newline_ids"),
        documents=_list_of(str, {"documents": "[]", **metadata}, "documents"),
    )
    shape, context = tuple(text.tokens.shape), _whole_number(metadata, "context")
    if len(shape) != 2 or 0 in shape or shape[1] != context:
        raise InputError(f"tokens of shape {shape}, where (blocks, {context}) with at least one block is needed")
    labels, numbers = tuple(text.domain.shape), tuple(text.document.shape)
    if labels != shape[:1] or numbers != shape[:1]:
        raise InputError(
            f"{shape[0]} blocks but domain labels of shape {labels} and document numbers of shape {numbers}"
        )
    low, high = map(int, text.tokens.aminmax())
    if low < 0 or high >= text.vocab_size:
        raise InputError(f"token ids from {low} to {high}, where 0 to {text.vocab_size - 1} is the vocabulary")
    low, high = map(int, text.domain.aminmax())
    if low < 0 or high >= len(text.domains):
        raise InputError(f"domain labels from {low} to {high}, but {len(text.domains)} domain names")
    wrong = (text.tokens[:, 0] != text.bos_id).nonzero()
    if len(wrong):
        start = f"that do not start with BOS (id {text.bos_id})"
        raise InputError(f"{len(wrong)} blocks {start}, the first being block {int(wrong[0])}")
    return text


def _whole_number(metadata: dict[str, str], name: str) -> int:
    try:
        return int(metadata[name])
    except ValueError:
        raise InputError(f"metadata '{name}' = {metadata[name]!r}, where a whole number is needed") from None


def _list_of(kind: type, metadata: dict[str, str], name: str) -> tuple:
    try:
        values = json.loads(metadata[name])
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, list) or not all(type(value) is kind for value in values):
        needed = f"a JSON list of type {kind.__name__} is needed"
        raise InputError(f"metadata '{name}' = {metadata[name][:60]!r}, where {needed}")
    return tuple(map(characters, values) if kind is str else values)


def characters(text: str) -> str:
    """The text without halves of surrogate pairs, which JSON and names of files may hold and which no encoding has."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def evenly_spaced(blocks: int, count: int, stretch: int = 1) -> Int[Tensor, "some"]:
    """Indices of about `count` blocks spread over all, in stretches of so many; all of them if there are fewer.

    A stretch starts at a multiple of its length, so that an even one has as many even blocks as odd ones.
    """
    if count >= blocks:
        return torch.arange(blocks)
    first = stretch * torch.linspace(0, blocks // stretch - 1, max(1, count // stretch)).round().long()
    return (first[:, None] + torch.arange(stretch)).flatten()


def label_blocks(blocks: int, count: int) -> Int[Tensor, "some"]:
    """About `count` of a text's blocks, those on which labels are known; all of a short text.

    The i-th of them is even where i is: labels are chosen on even blocks and scored on odd ones.
    """
    stretch = max(2, min(STRETCH, 1 << (count // PLACES).bit_length() >> 1))
    return evenly_spaced(blocks, count, stretch)


def packing_order(blocks: int, seed: int = SHUFFLE_SEED) -> np.ndarray:
    """The order of the shipped text's blocks: entry i is the place, before shuffling, of block i of the file."""
    return np.random.Generator(np.random.PCG64(seed)).permutation(blocks)
