"""Labels of tokens: integer groupings of every token of the text, and binary labels over the groups (METHOD §5).

A neuron's moments are collected once per group; every binary label is then a choice of groups, so that a new label
costs algebra, not a pass. Topics and linguistic labels, made in modules of their own, have the same form.
"""

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
from lib.text.domains import CODE, DOMAINS, LANGUAGES
from lib.text.tokens import token_strings, token_text

WORD_RATE = 3000 / 10_000_000  # a unigram word is more frequent than this (METHOD §5)
WORD_VARIANTS = 3  # and has more variants by case and leading space than this
POSITIONS = (2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)
WORD_PLACES = ("as word", "word start", "word middle", "other")


@dataclass(frozen=True)
class Grouping:
    """An integer label per token: `ids` index `groups`; −1 leaves a token out."""

    name: str
    groups: tuple[str, ...]
    ids: Int[Tensor, "blocks context"]


@dataclass(frozen=True)
class LabelSet:
    """Binary labels over the groups of one grouping.

    `labels` has one row per label with its readable name (`label`, unique), its `family` and the `kind` it is a value
    of; `member` (labels, groups) is True where the label is 1, and False for all other tokens that have a group.
    """

    grouping: str
    labels: pd.DataFrame
    member: Bool[np.ndarray, "labels groups"]


def label_set(grouping: str, rows: list[tuple[str, str, str, np.ndarray]]) -> LabelSet:
    """A set from rows (label, family, kind, member), without the labels that no group or every group carries."""
    kept = [row for row in rows if row[3].any() and not row[3].all()]
    labels = pd.DataFrame([row[:3] for row in kept], columns=["label", "family", "kind"])
    if labels["label"].duplicated().any():
        raise InputError(
            f"the label '{labels['label'][labels['label'].duplicated()].iloc[0]}' is given twice; names of labels must differ."
        )
    groups = len(rows[0][3]) if rows else 0
    return LabelSet(grouping, labels, np.stack([row[3] for row in kept]) if kept else np.zeros((0, groups), bool))


# ---------------------------------------------------------------- the text of tokens


def occurring(text: Text) -> Int[np.ndarray, "groups"]:
    """The token ids that stand in the text at all, sorted: the groups of the current, the previous and the next token.

    The others would take memory and disk for nothing: of GPT-2's 50,257 tokens a text of 20 thousand has some thousands.
    """
    return text.tokens.unique().numpy()


def token_counts(text: Text) -> Int[np.ndarray, "vocabulary"]:
    """How often each token id stands in the text, counted tokens only."""
    return torch.bincount(text.tokens[text.counted()], minlength=text.vocab_size).numpy()


# ---------------------------------------------------------------- labels of the current token


def unigram_classes(texts: list[str], counts: Int[np.ndarray, "vocabulary"]) -> dict[str, list[int]]:
    """Ids of a word's variants by case and leading space, for each frequent word with enough of them (METHOD §5).

    A word counts if its variants together are more than 3,000 in 10 million tokens and if there are more than 3.
    """
    variants = defaultdict(list)
    for token, text in enumerate(texts):
        word = text.removeprefix(" ")
        if word.isalpha():
            variants[word.lower()].append(token)
    least = WORD_RATE * counts.sum()
    return {
        word: ids for word, ids in sorted(variants.items()) if len(ids) > WORD_VARIANTS and counts[ids].sum() > least
    }


def token_labels(
    tokenizer,
    counts: Int[np.ndarray, "vocabulary"] | None = None,
    vocab_size: int = 0,
    classes: tuple[TokenClass, ...] = TOKEN_CLASSES,
) -> LabelSet:
    """Labels of the current token: the classes of lib/labels/token_classes.py, and unigram words if `counts` of the tokens are given.

    `vocab_size` above the tokeniser's own adds groups that carry no label, for models whose vocabulary is padded.
    """
    texts = token_strings(tokenizer)
    size = max(len(texts), vocab_size)
    rows = []
    if counts is not None:
        for word, ids in unigram_classes(texts, counts).items():
            rows.append((f"word “{word}”", "unigram", "word", np.isin(np.arange(size), ids)))
    for one in classes:
        member = np.zeros(size, bool)
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
    return label_set(
        "position",
        [(f"position < {edge}", "position", "position", position < edge) for edge in POSITIONS if edge < context],
    )


def domain_labels(domains: tuple[str, ...]) -> LabelSet:
    """Each language, what is English, foreign language or code, and each domain that is not all of a language.

    Languages are those of `lib.text.domains`; of a domain that it does not name none is known, and it carries no label of one.
    """
    language = np.array([DOMAINS[domain].language if domain in DOMAINS else "" for domain in domains])
    genre = np.array([re.sub(r" \(\w\w\)$", "", domain) for domain in domains])
    rows = [
        ("source code", "context", "language", language == CODE),
        ("language other than English", "context", "language", ~np.isin(language, ["en", CODE, ""])),
        ("natural language: English", "context", "language", language == "en"),
    ]
    rows += [
        (f"language: {LANGUAGES.get(one, one)}", "context", "language", language == one)
        for one in sorted(set(language) - {"en", CODE, ""})
    ]
    rows += [
        (f"genre: {one}", "context", "genre", genre == one)
        for one, count in sorted(Counter(genre).items())
        if count > 1
    ]
    rows += [(f"domain: {one}", "context", "domain", np.array(domains) == one) for one in domains]
    seen, kept = set(), []
    for row in rows:
        key = row[3].tobytes()
        if key not in seen and (~row[3]).tobytes() not in seen:
            kept.append(row)
        seen.add(key)
    return label_set("domain", kept)


# ---------------------------------------------------------------- all of the text's tokens


def groupings(text: Text, tokenizer) -> dict[str, Grouping]:
    """The groupings that need no model of language: token, previous_token, next_token, position and domain.

    Ids are int32; the first token of a block has no previous and the last no next one.
    """
    present = occurring(text)
    words = tuple(
        token_text(tokenizer, token) if token < len(tokenizer) else f"id {token}" for token in present.tolist()
    )
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


def label_sets(text: Text, tokenizer, classes: tuple[TokenClass, ...] = TOKEN_CLASSES) -> list[LabelSet]:
    """The labels over the groups of `groupings`: token classes of the current, the previous and the next token, position and domain."""
    whole, present = token_labels(tokenizer, token_counts(text), text.vocab_size, classes), occurring(text)
    current = label_set("token", list(zip(*whole.labels.to_numpy().T, whole.member[:, present], strict=True)))
    return [
        current,
        shifted(current, "previous_token"),
        shifted(current, "next_token"),
        position_labels(text.context),
        domain_labels(text.domains),
    ]


def word_places(text: Text, tokenizer) -> Int[Tensor, "blocks context"]:
    """Where in a word each token stands, an index into WORD_PLACES (figures 4a, 15, 16), whatever its label.

    *As word*: it holds a letter or digit, none touches it before and none after; *word start*: one touches it after
    only; *word middle*: one touches it before (the end of a word too); *other*: the token has no letter or digit.
    """
    texts = token_strings(tokenizer) + [""] * (text.vocab_size - len(tokenizer))
    opens, ends, holds = (
        torch.tensor(column)
        for column in zip(
            *((one[:1].isalnum(), one[-1:].isalnum(), any(map(str.isalnum, one))) for one in texts), strict=True
        )
    )
    outside = torch.zeros_like(text.tokens[:, :1], dtype=torch.bool)
    before = torch.cat([outside, ends[text.tokens[:, :-1]]], 1) & opens[text.tokens]
    after = torch.cat([opens[text.tokens[:, 1:]], outside], 1) & ends[text.tokens]
    place = torch.where(before, 2, torch.where(after, 1, 0))
    return torch.where(holds[text.tokens], place, 3).int()
