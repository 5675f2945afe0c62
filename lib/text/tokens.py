"""Tokens as bytes and as readable strings, and whether two tokenisers are the same."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

from lib.base.errors import InputError, first_line
from lib.base.files import file_sha256
from lib.base.hub import seed_source
from lib.base.params import Params

VISIBLE = str.maketrans(
    {chr(code): f"⟨{code:02X}⟩" for code in (*range(32), 127)}
    | {"\n": "⏎", "\r": "␍", "\t": "⇥", "\ufeff": "⟨U+FEFF⟩", "\u200b": "⟨U+200B⟩"}
)
# What decides the ids that a text gets; padding, truncation and decoding do not.
TOKENIZER_PARTS = ("model", "normalizer", "pre_tokenizer", "added_tokens")
SAMPLE = "The  cat's 1,234 naïve\n\n\tif x==y: # DON'T\r\n  Größe 東京 🙂 \u00a0www.a-b.org/~c?d=%20 <|endoftext|>"


# ---------------------------------------------------------------- bytes and strings


def _byte_of_letter() -> dict[str, int]:
    """The byte that each letter of byte-level BPE stands for (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {chr(byte): byte for byte in printable}
    table |= {chr(256 + index): byte for index, byte in enumerate(sorted(set(range(256)) - set(printable)))}
    return table


BYTE_OF_LETTER = _byte_of_letter()


def token_text(tokenizer, token: int) -> str:
    """One token as a reader can see it: line ends and tabs as signs, control characters and partial ones as ⟨E2 80⟩."""
    text = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    if "\ufffd" in text:
        letters = tokenizer.convert_ids_to_tokens(token)
        if all(letter in BYTE_OF_LETTER for letter in letters):
            return "⟨" + " ".join(f"{BYTE_OF_LETTER[letter]:02X}" for letter in letters) + "⟩"
    return text.translate(VISIBLE)


def token_bytes(tokenizer) -> list[bytes]:
    """The bytes of each id of a byte-level BPE, empty for special tokens; InputError for another kind of tokeniser."""
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
                f"the tokeniser is not a byte-level BPE (its token {token} is {letters!r}), which the text's labels "
                "need."
            )
    return pieces


def token_strings(tokenizer) -> list[str]:
    """Each token's text; each byte of a partial character becomes a lone surrogate, never U+FFFD."""
    return [piece.decode("utf-8", "surrogateescape") for piece in token_bytes(tokenizer)]


# ---------------------------------------------------------------- one tokeniser or two


def tokenizer_sha256(folder: Path) -> str:
    """SHA-256 of the parts of a model folder's tokeniser that decide ids, independent of how its file is formatted."""
    path = folder / "tokenizer.json"
    own = Tokenizer.from_file(str(path)) if path.is_file() else _loaded(folder).backend_tokenizer
    parts = json.loads(own.to_str())
    parts["model"] = {name: value or None for name, value in parts["model"].items()}  # an empty prefix is none
    return hashlib.sha256(json.dumps([parts[part] for part in TOKENIZER_PARTS], sort_keys=True).encode()).hexdigest()


def _loaded(source):
    from transformers import AutoTokenizer  # takes seconds, and not everyone who comes here reads text

    return AutoTokenizer.from_pretrained(source, trust_remote_code=False)


def tokenizer_hashes(name: str, folder: Path) -> Iterator[str]:
    """All hashes by which a text may name this tokeniser: of its file, of the file as rewritten, `tokenizer_sha256`."""
    path = folder / "tokenizer.json"
    if path.is_file():
        yield file_sha256(path)
    try:
        if path.is_file():
            yield hashlib.sha256(Tokenizer.from_file(str(path)).to_str(pretty=True).encode()).hexdigest()
        yield tokenizer_sha256(folder)
    except Exception as error:  # tokenizers raises plain Exception
        raise InputError(f"seed '{name}': the tokeniser in {folder} cannot be read ({first_line(error)}).") from error


def shared_tokenizer(params: Params):
    """The tokeniser of all seeds, as transformers loads it; InputError with the reason if two seeds' differ."""
    loaded = {}
    for name in sorted(params.seeds, key=lambda name: name != params.reference):
        try:
            loaded[name] = _loaded(seed_source(params, name))
        except (ValueError, OSError, KeyError) as error:
            raise InputError(f"seed '{name}': its tokeniser cannot be read ({first_line(error)}).") from error
        reason = name != params.reference and tokenizer_difference(loaded[params.reference], loaded[name])
        if reason:
            raise InputError(
                f"the tokenisers of the seeds '{params.reference}' and '{name}' differ: {reason}; neurons can only be "
                "compared on the same tokens."
            )
    return loaded[params.reference]


def tokenizer_difference(ours, other) -> str | None:
    """The first difference of two tokenisers of transformers, or None if they give every text the same ids."""
    one, two = (tokenizer.get_vocab() for tokenizer in (ours, other))
    if len(one) != len(two):
        return f"they have vocabularies of {len(one):,} and {len(two):,} tokens"
    if one != two:
        token = min(token for token, id_ in one.items() if two.get(token) != id_)
        return f"the token {token!r} has the id {one[token]} in one and {two.get(token)} in the other"
    parts, others = (json.loads(tokenizer.backend_tokenizer.to_str()) for tokenizer in (ours, other))
    merges = [part["model"].get("merges", []) for part in (parts, others)]
    if merges[0] != merges[1]:
        differing = (place for place, pair in enumerate(zip(*merges, strict=False)) if pair[0] != pair[1])
        return f"their merges differ from number {next(differing, min(map(len, merges))) + 1} on"
    if ours.bos_token_id != other.bos_token_id or ours.eos_token_id != other.eos_token_id:
        return "their BOS or EOS tokens are not the same"
    if ours.encode(SAMPLE, add_special_tokens=False) != other.encode(SAMPLE, add_special_tokens=False):
        return f"they encode {SAMPLE[:24]!r}… differently"
    part = next((part for part in TOKENIZER_PARTS if part != "model" and parts[part] != others[part]), None)
    return part and f"their settings of '{part}' differ"
