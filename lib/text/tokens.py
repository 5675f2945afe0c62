"""Tokens as bytes and as strings, and the hashes that tell one tokeniser from another."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer

from lib.base.errors import InputError, first_line
from lib.base.files import file_sha256
from lib.base.hub import seed_source
from lib.base.params import Params

VISIBLE = str.maketrans(
    {chr(code): f"⟨{code:02X}⟩" for code in (*range(32), 127)}
    | {"\n": "⏎", "\r": "␍", "\t": "⇥", "\ufeff": "⟨U+FEFF⟩", "\u200b": "⟨U+200B⟩"}
)


def _byte_of_letter() -> dict[str, int]:
    """Byte-level BPE writes every byte as one letter; this is the way back (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {chr(byte): byte for byte in printable}
    table |= {chr(256 + index): byte for index, byte in enumerate(sorted(set(range(256)) - set(printable)))}
    return table


BYTE_OF_LETTER = _byte_of_letter()


def token_text(tokenizer, token: int) -> str:
    """One token as a reader can see it: line ends and tabs as signs, bytes that are no whole character, and control characters, as ⟨E2 80⟩."""
    text = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    if "\ufffd" in text:
        letters = tokenizer.convert_ids_to_tokens(token)
        if all(letter in BYTE_OF_LETTER for letter in letters):
            return "⟨" + " ".join(f"{BYTE_OF_LETTER[letter]:02X}" for letter in letters) + "⟩"
    return text.translate(VISIBLE)


def token_bytes(tokenizer) -> list[bytes]:
    """The bytes that each id of a byte-level BPE stands for, empty for special tokens.

    InputError if a token is written in letters that byte-level BPE does not have.
    """
    added = tokenizer.added_tokens_decoder
    pieces = []
    for token, letters in enumerate(tokenizer.convert_ids_to_tokens(range(len(tokenizer)))):
        if token in added:
            pieces.append(b"" if added[token].special else added[token].content.encode())
        elif letters is None:
            pieces.append(b"")
        elif all(letter in BYTE_OF_LETTER for letter in letters):
            pieces.append(bytes(BYTE_OF_LETTER[letter] for letter in letters))
        else:
            raise InputError(
                f"the tokeniser is not a byte-level BPE (its token {token} is {letters!r}), which the text's labels need."
            )
    return pieces


def token_strings(tokenizer) -> list[str]:
    """Each token's text; bytes that are no whole character become lone surrogates, one each, never U+FFFD."""
    return [piece.decode("utf-8", "surrogateescape") for piece in token_bytes(tokenizer)]


# What of a tokeniser decides which ids a text gets; padding, truncation and decoding do not.
TOKENIZER_PARTS = ("model", "normalizer", "pre_tokenizer", "added_tokens")


def tokenizer_sha256(folder: Path) -> str:
    """SHA-256 of what decides the ids that a model folder's tokeniser gives, however its file is written."""
    path = folder / "tokenizer.json"
    tokenizer = (
        Tokenizer.from_file(str(path)) if path.is_file() else AutoTokenizer.from_pretrained(folder).backend_tokenizer
    )
    parts = json.loads(tokenizer.to_str())
    parts["model"] = {name: value or None for name, value in parts["model"].items()}  # an empty prefix is none
    return hashlib.sha256(json.dumps([parts[part] for part in TOKENIZER_PARTS], sort_keys=True).encode()).hexdigest()


def tokenizer_hashes(name: str, folder: Path) -> Iterator[str]:
    """The hash of the tokeniser's file, if there is one, as it is and as the library writes it, and that of what it does."""
    path = folder / "tokenizer.json"
    if path.is_file():
        yield file_sha256(path)
    try:
        if path.is_file():
            yield hashlib.sha256(Tokenizer.from_file(str(path)).to_str(pretty=True).encode()).hexdigest()
        yield tokenizer_sha256(folder)
    except Exception as error:  # tokenizers raises plain Exception
        raise InputError(f"seed '{name}': the tokeniser in {folder} cannot be read ({first_line(error)}).") from error


SAMPLE = "The  cat's 1,234 naïve\n\n\tif x==y: # DON'T\r\n  Größe 東京 🙂 \u00a0www.a-b.org/~c?d=%20 <|endoftext|>"


def shared_tokenizer(params: Params):
    """The tokeniser of all seeds, as transformers load it; InputError with the reason if two seeds' differ."""
    from transformers import AutoTokenizer

    loaded = {}
    for name in sorted(params.seeds, key=lambda name: name != params.reference):
        try:
            loaded[name] = AutoTokenizer.from_pretrained(seed_source(params, name))
        except (ValueError, OSError, KeyError) as error:
            raise InputError(
                f"seed '{name}': its tokeniser cannot be read ({str(error).splitlines()[0].rstrip('.')})."
            ) from error
        why = None if name == params.reference else difference(loaded[params.reference], loaded[name])
        if why:
            raise InputError(
                f"the tokenisers of the seeds '{params.reference}' and '{name}' differ: {why}; neurons can only be compared "
                "on the same tokens."
            )
    return loaded[params.reference]


def difference(ours, other) -> str | None:
    """The first thing in which two tokenisers of transformers differ, or None if they give every text the same ids."""
    vocabularies = [tokenizer.get_vocab() for tokenizer in (ours, other)]
    if vocabularies[0] != vocabularies[1]:
        sizes = [len(tokens) for tokens in vocabularies]
        if sizes[0] != sizes[1]:
            return f"they have vocabularies of {sizes[0]:,} and {sizes[1]:,} tokens"
        token = min(token for token, place in vocabularies[0].items() if vocabularies[1].get(token) != place)
        return f"the token {token!r} has the id {vocabularies[0][token]} in one and {vocabularies[1].get(token)} in the other"
    models = [json.loads(tokenizer.backend_tokenizer.to_str()) for tokenizer in (ours, other)]
    merges = [model["model"].get("merges", []) for model in models]
    if merges[0] != merges[1]:
        place = next(
            (at for at, pair in enumerate(zip(*merges, strict=False)) if pair[0] != pair[1]), min(map(len, merges))
        )
        return f"their merges differ from number {place + 1} on"
    if ours.bos_token_id != other.bos_token_id or ours.eos_token_id != other.eos_token_id:
        return "their BOS or EOS tokens are not the same"
    ids = [tokenizer.encode(SAMPLE, add_special_tokens=False) for tokenizer in (ours, other)]
    if ids[0] != ids[1]:
        return f"they encode {SAMPLE[:24]!r}… differently"
    part = next(
        (part for part in ("normalizer", "pre_tokenizer", "added_tokens") if models[0][part] != models[1][part]), None
    )
    return part and f"their settings of '{part}' differ"
