"""Labels of tokens: integer groupings of all tokens of the text, and binary labels over the groups (docs/method.md §5).

The pass sums every neuron's activations with each label, and by single token, position and domain. A new label of the
token itself then costs algebra, not a pass over the text. Topics and syntax have modules of their own.
"""

import hashlib
import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lib.base.errors import InputError
from lib.labels.token_classes import TOKEN_CLASSES, TokenClass
from lib.text.blocks import Text
from lib.text.domains import CODE, DOMAINS, LANGUAGES, Domain
from lib.text.tokens import token_strings, token_text

TOKENS_KEPT = 8192  # most token ids that are summed one by one: all of the shipped seeds'; for GPT2-medium 6 GB, not 40
MIN_WORD_RATE = 3000 / 10_000_000  # of tokens; a unigram word is more frequent (docs/method.md §5)
MAX_RARE_VARIANTS = 3  # a unigram word has more variants by case and leading space
POSITIONS = (2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)
WORD_PLACES = ("as word", "word start", "word middle", "other")


@dataclass(frozen=True)
class Grouping:
    """An integer label per token: `ids` index `groups`; −1 leaves a token out."""

    name: str
    groups: tuple[str, ...]
    ids: Int[Tensor, "blocks context"]

    @property
    def key(self) -> str:
        """What tells its groups from others, and from the same in another order: the beginning of a SHA-256."""
        return hashlib.sha256(json.dumps(self.groups).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class LabelSet:
    """Binary labels over the groups of one grouping.

    `labels` has one row per label: its readable name (`label`, unique), its `family`, and the `kind` it is a value of.
    `member` (labels, groups) is True where the label is 1.
    """

    grouping: str
    labels: pd.DataFrame
    member: Bool[np.ndarray, "labels groups"]

    @property
    def table(self) -> str:
        """What its sums are called in the statistics."""
        return f"{self.grouping}_labels"

    @property
    def keys(self) -> list[str]:
        """For each label what tells its groups from other groups: the beginning of a SHA-256."""
        return [hashlib.sha256(row.tobytes()).hexdigest()[:16] for row in self.member]


def label_set(grouping: str, rows: list[tuple[str, str, str, np.ndarray]]) -> LabelSet:
    """A set from rows (label, family, kind, member), without labels that no group or every group carries.

    Raises InputError if two labels have the same name.
    """
    kept = [row for row in rows if row[3].any() and not row[3].all()]
    labels = pd.DataFrame([row[:3] for row in kept], columns=["label", "family", "kind"])
    twice = labels["label"][labels["label"].duplicated()]
    if len(twice):
        raise InputError(f"the label '{twice.iloc[0]}' is given twice; names of labels must differ.")
    groups = len(rows[0][3]) if rows else 0
    return LabelSet(grouping, labels, np.stack([row[3] for row in kept]) if kept else np.zeros((0, groups), bool))


# ---------------------------------------------------------------- labels of the current token


def occurring(text: Text) -> Int[np.ndarray, "groups"]:
    """The token ids that occur in the text, sorted: the groups of the current, the previous and the next token.

    Groups for the rest of the vocabulary would only take memory and disk.
    """
    return text.tokens.unique().numpy()


def token_counts(text: Text) -> Int[np.ndarray, "vocabulary"]:
    """How often each token id occurs in the text, counted tokens only."""
    return torch.bincount(text.tokens[text.counted()], minlength=text.vocab_size).numpy()


def token_rows(text: Text) -> Int[np.ndarray, "groups"]:
    """For each occurring token its row among the sums of single tokens: the TOKENS_KEPT most frequent have one each, in
    the order of their ids, and all others share the next one, *other*."""
    counts = token_counts(text)[occurring(text)]
    kept = np.sort(np.argsort(-counts, kind="stable")[:TOKENS_KEPT])
    rows = np.full(len(counts), TOKENS_KEPT)
    rows[kept] = np.arange(len(kept))
    return rows


def unigram_classes(texts: list[str], counts: Int[np.ndarray, "vocabulary"]) -> dict[str, list[int]]:
    """For each frequent word with enough variants by case and leading space, their token ids (docs/method.md §5).

    The variants together must exceed MIN_WORD_RATE, and there must be more than MAX_RARE_VARIANTS.
    """
    variants = defaultdict(list)
    for token, text in enumerate(texts):
        word = text.removeprefix(" ")
        if word.isalpha():
            variants[word.lower()].append(token)
    least = MIN_WORD_RATE * counts.sum()
    frequent = {word: ids for word, ids in sorted(variants.items()) if counts[ids].sum() > least}
    return {word: ids for word, ids in frequent.items() if len(ids) > MAX_RARE_VARIANTS}


def token_labels(
    tokenizer,
    counts: Int[np.ndarray, "vocabulary"] | None = None,
    vocab_size: int = 0,
    classes: tuple[TokenClass, ...] = TOKEN_CLASSES,
) -> LabelSet:
    """Labels of the current token: the token classes, and unigram words if the tokens' `counts` are given.

    A `vocab_size` above the tokeniser's adds groups without labels, for models whose vocabulary is padded.
    """
    texts = token_strings(tokenizer)
    everyone = np.arange(max(len(texts), vocab_size))
    words = {} if counts is None else unigram_classes(texts, counts)
    rows = [(f"word “{word}”", "unigram", "word", np.isin(everyone, ids)) for word, ids in words.items()]
    for one in classes:
        member = np.zeros(len(everyone), bool)
        member[: len(texts)] = one.members(texts)
        rows.append((one.label, one.family, one.family.replace("_", " "), member))
    return label_set("token", rows)


def shifted(labels: LabelSet, grouping: str) -> LabelSet:
    """The same labels of the token before (`previous_token`) or after (`next_token`), as a family of that name."""
    word = grouping.removesuffix("_token")
    table = labels.labels.assign(label=f"{word}: " + labels.labels["label"], family=grouping)
    return LabelSet(grouping, table, labels.member)


# ---------------------------------------------------------------- labels of position and domain


def position_labels(context: int) -> LabelSet:
    """Coarse labels of the position in the block (0 is BOS): below 2, 3, 5, 10 …"""
    position = np.arange(context)
    edges = [edge for edge in POSITIONS if edge < context]
    return label_set("position", [(f"position < {edge}", "position", "position", position < edge) for edge in edges])


def domain_labels(domains: tuple[str, ...], kinds: dict[str, Domain] = DOMAINS) -> LabelSet:
    """Labels for languages, English, languages other than English, source code, genres and single domains.

    A label with the same or the opposite members as an earlier one is left out. A domain that `kinds` does not name
    carries no label of a language.
    """
    names = np.array(domains)
    language = np.array([kinds[domain].language if domain in kinds else "" for domain in domains])
    genre = np.array([re.sub(r" \(\w\w\)$", "", domain) for domain in domains])
    foreign = sorted(set(language) - {"en", CODE, ""})
    genres = sorted(one for one, count in Counter(genre).items() if count > 1)
    rows = [
        ("source code", "language", language == CODE),
        ("language other than English", "language", ~np.isin(language, ["en", CODE, ""])),
        ("natural language: English", "language", language == "en"),
        *((f"language: {LANGUAGES.get(one, one)}", "language", language == one) for one in foreign),
        *((f"genre: {one}", "genre", genre == one) for one in genres),
        *((f"domain: {one}", "domain", names == one) for one in domains),
    ]
    seen, kept = set(), []
    for label, kind, member in rows:
        if not {member.tobytes(), (~member).tobytes()} & seen:
            kept.append((label, "context", kind, member))
        seen.add(member.tobytes())
    return label_set("domain", kept)


# ---------------------------------------------------------------- all of the text's tokens


def groupings(text: Text, tokenizer) -> dict[str, Grouping]:
    """The groupings that need no language model: token, previous_token, next_token, position and domain.

    Ids are int32. The first token of a block has no previous token, the last no next one.
    """
    present = occurring(text)
    known = len(tokenizer)
    words = tuple(token_text(tokenizer, one) if one < known else f"id {one}" for one in present.tolist())
    tokens = torch.bucketize(text.tokens, torch.from_numpy(present), out_int32=True)
    none = torch.full_like(tokens[:, :1], -1)
    positions = torch.arange(text.context, dtype=torch.int32).expand(tokens.shape)
    made = (
        Grouping("token", words, tokens),
        Grouping("previous_token", words, torch.cat([none, tokens[:, :-1]], 1)),
        Grouping("next_token", words, torch.cat([tokens[:, 1:], none], 1)),
        Grouping("position", tuple(map(str, range(text.context))), positions),
        Grouping("domain", text.domains, text.domain.int()[:, None].expand(tokens.shape)),
    )
    return {grouping.name: grouping for grouping in made}


def label_sets(
    text: Text, tokenizer, classes: tuple[TokenClass, ...] = TOKEN_CLASSES, kinds: dict[str, Domain] = DOMAINS
) -> list[LabelSet]:
    """The labels over `groupings`: classes of the current, the previous and the next token, position and domain."""
    vocabulary = token_labels(tokenizer, token_counts(text), text.vocab_size, classes)
    members = vocabulary.member[:, occurring(text)]
    current = label_set("token", list(zip(*vocabulary.labels.to_numpy().T, members, strict=True)))
    neighbours = [shifted(current, "previous_token"), shifted(current, "next_token")]
    return [current, *neighbours, position_labels(text.context), domain_labels(text.domains, kinds)]


def word_places(text: Text, tokenizer) -> Int[Tensor, "blocks context"]:
    """Where in a word each token stands, an index into WORD_PLACES (figures 4a, 15, 16).

    *As word*: the token has a letter or digit, and none touches it before or after. *Word start*: one touches it only
    after. *Word middle*: one touches it before (so also the end of a word). *Other*: it has no letter or digit.
    """
    texts = token_strings(tokenizer) + [""] * (text.vocab_size - len(tokenizer))
    starts_with_letter = torch.tensor([one[:1].isalnum() for one in texts])[text.tokens]
    ends_with_letter = torch.tensor([one[-1:].isalnum() for one in texts])[text.tokens]
    has_letter = torch.tensor([any(map(str.isalnum, one)) for one in texts])[text.tokens]
    outside = torch.zeros_like(text.tokens[:, :1], dtype=torch.bool)
    touched_before = torch.cat([outside, ends_with_letter[:, :-1]], 1) & starts_with_letter
    touched_after = torch.cat([starts_with_letter[:, 1:], outside], 1) & ends_with_letter
    place = torch.where(touched_before, 2, torch.where(touched_after, 1, 0))
    return torch.where(has_letter, place, 3).int()
