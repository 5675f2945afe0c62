"""The token file: blocks of token ids with a domain label each, and the mask of the tokens that count.

A token file is safetensors with `tokens` (blocks, context) uint16, or uint32 for a vocabulary above 65,536, `domain`
(blocks) uint8 and `document` (blocks) int32, and strings in its metadata. The first id of every block is BOS.
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

SHUFFLE_SEED = 20240122  # of the order in which the shipped text's blocks are packed
METADATA = ("domains", "tokenizer_sha256", "vocab_size", "bos_id", "newline_ids", "context")


def counted_mask(
    tokens: Int[Tensor, "blocks context"], bos_id: int, newline_ids: tuple[int, ...]
) -> Bool[Tensor, "blocks context"]:
    """True where a position counts: neither BOS nor a token that is nothing but line ends."""
    left_out = torch.tensor([bos_id, *newline_ids], dtype=tokens.dtype, device=tokens.device)
    return ~torch.isin(tokens, left_out)


@dataclass(frozen=True)
class Text:
    """Token blocks as read from a token file; `domain` indexes `domains`, `document` indexes `documents`."""

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
        """The first `token_budget // context` blocks; InputError when that is none or more than there are."""
        most = self.tokens.numel()
        if not self.context <= token_budget <= most:
            raise InputError(
                f"A token budget of {token_budget} cannot be used with this text: "
                f"it must be from {self.context} (one block) to {most} (the whole text)."
            )
        return self._blocks(slice(token_budget // self.context))

    def cut(self, context: int) -> "Text":
        """The same blocks shortened to `context` tokens; InputError when they are shorter than that or it is below 2."""
        if not 2 <= context <= self.context:
            raise InputError(
                f"A context of {context} cannot be used with this text: it must be from 2 to {self.context}."
            )
        return replace(self, tokens=self.tokens[:, :context])

    def _blocks(self, blocks: slice) -> "Text":
        return replace(self, tokens=self.tokens[blocks], domain=self.domain[blocks], document=self.document[blocks])


def write_text(path: Path | str, text: Text) -> None:
    """Writes a token file; the same text always gives the same bytes.

    The header is written here because the safetensors writer keeps metadata in no fixed order.
    """
    if text.vocab_size > 2**32 or len(text.domains) > 2**8:
        raise InputError(
            f"A token file holds ids below {2**32} and at most 256 domains, not {text.vocab_size} ids "
            f"and {len(text.domains)} domains."
        )
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


def _field(path: Path, metadata: dict[str, str], name: str, kind: type) -> int | str:
    """Metadata value as an int, or as the string it is."""
    try:
        return kind(metadata[name])
    except ValueError:
        raise InputError(
            f"The token file {path} has metadata '{name}' = {metadata[name]!r}, where a whole number is needed."
        ) from None


def _fields(path: Path, metadata: dict[str, str], name: str, kind: type) -> tuple:
    """Metadata value that is a JSON list of ints or of strings."""
    try:
        values = json.loads(metadata[name])
    except json.JSONDecodeError:
        values = None
    if not isinstance(values, list) or not all(type(value) is kind for value in values):
        raise InputError(
            f"The token file {path} has metadata '{name}' = {metadata[name][:60]!r}, "
            f"where a JSON list of type {kind.__name__} is needed."
        )
    return tuple(values)


def read_text(path: Path | str) -> Text:
    """Reads and checks a token file; InputError, in one sentence, for everything that keeps it from being used."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"The token file {path} does not exist.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = set(file.keys())
            tensors = {name: file.get_tensor(name) for name in ("tokens", "domain", "document") if name in names}
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"The token file {path} is not a readable safetensors file ({error}).") from None
    for name in ("tokens", "domain"):
        if name not in tensors:
            raise InputError(f"The token file {path} has no tensor '{name}'.")
    for name in METADATA:
        if name not in metadata:
            raise InputError(f"The token file {path} has no metadata '{name}'.")
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            raise InputError(
                f"The token file {path} has '{name}' of type {tensor.dtype}, where whole numbers are needed."
            )
        tensors[name] = tensor.long()  # 8 bytes a token: 0.8 GB for 100 million
    tokens, domain = tensors["tokens"], tensors["domain"]
    text = Text(
        tokens=tokens,
        domain=domain,
        document=tensors.get("document", torch.zeros_like(domain)),
        domains=_fields(path, metadata, "domains", str),
        tokenizer_sha256=_field(path, metadata, "tokenizer_sha256", str),
        vocab_size=_field(path, metadata, "vocab_size", int),
        bos_id=_field(path, metadata, "bos_id", int),
        newline_ids=_fields(path, metadata, "newline_ids", int),
        documents=_fields(path, {"documents": "[]", **metadata}, "documents", str),
    )
    _check(path, text, _field(path, metadata, "context", int))
    return text


def _check(path: Path, text: Text, context: int) -> None:
    """InputError unless shapes, ids, labels and block starts agree."""
    shape = tuple(text.tokens.shape)
    if len(shape) != 2 or 0 in shape or shape[1] != context:
        raise InputError(
            f"The token file {path} has tokens of shape {shape}, where (blocks, {context}) with "
            "at least one block is needed."
        )
    if text.domain.shape != shape[:1] or text.document.shape != shape[:1]:
        raise InputError(
            f"The token file {path} has {shape[0]} blocks but domain labels of shape "
            f"{tuple(text.domain.shape)} and document numbers of shape {tuple(text.document.shape)}."
        )
    low, high = int(text.tokens.min()), int(text.tokens.max())
    if low < 0 or high >= text.vocab_size:
        raise InputError(
            f"The token file {path} has token ids from {low} to {high}, "
            f"where 0 to {text.vocab_size - 1} is the vocabulary."
        )
    low, high = int(text.domain.min()), int(text.domain.max())
    if low < 0 or high >= len(text.domains):
        raise InputError(
            f"The token file {path} has domain labels from {low} to {high}, but {len(text.domains)} domain names."
        )
    wrong = (text.tokens[:, 0] != text.bos_id).nonzero()
    if len(wrong):
        raise InputError(
            f"The token file {path} has {len(wrong)} blocks that do not start with BOS (id {text.bos_id}), "
            f"the first being block {int(wrong[0])}."
        )


def packing_order(blocks: int, seed: int = SHUFFLE_SEED) -> np.ndarray:
    """How `packed` shuffles that many blocks: entry i is the place, before the shuffle, of block i of the file."""
    return np.random.Generator(np.random.PCG64(seed)).permutation(blocks)
