"""Labels of tokens: every class on tokens picked by hand, unigram variants, shifts, domains, places in words."""

import shutil

import numpy as np
import pytest
import torch
from conftest import TEXT, TOKENIZER
from transformers import AutoTokenizer

from lib import cache
from lib.base import params as parameters
from lib.base.errors import InputError
from lib.labels import labels
from lib.labels.token_classes import (
    TOKEN_CLASSES,
    TokenClass,
    first_letters,
    looks,
    names,
    prefixes,
    read_token_classes,
    signs,
    suffixes,
    words,
)
from lib.text import domains
from lib.text import tokens as text_tokens
from lib.text.blocks import Text, read_text

# label: tokens that carry it / tokens that do not
BY_HAND = {
    "starts with a space": ([" the", " 1", " "], ["the", "\n "]),
    "whitespace only": ([" ", "\n", "\t\t", "\r\n"], [" a", ""]),
    "indentation": (["    ", "\n        ", "\t"], [" ", "\n", " x"]),
    "all capitals": (["USA", " II", "ÄÖ"], ["Usa", "A", "U1"]),
    "capitalised": (["The", " Über"], ["THE", "the", "A"]),
    "camel case": (["assertEqual", " pC"], ["Assert", "assert"]),
    "not ASCII": (["é", "—", "\udce2\udc80"], ["e", "-"]),
    "part of a character": (["\udce2\udc80", " \udcc3"], ["é", "Ã", "\ufffd"]),
    "letters only": ([" zoë", "A"], ["a1", "\udcc3", "don't"]),
    "digits": (["1", " 2024", "007"], ["1a", "1.5", "one", ""]),
    "year": (["1999", " 2024", "1776"], ["1234", "2124", "19999"]),
    "Roman numeral": (["XIV", " II", "IX", "XL"], ["I", "IIX", "ii", "VIM"]),
    "number word": (["seven", " Million", "TEN"], ["tenth", "on e"]),
    "ordinal": ([" First", "third"], ["three"]),
    "month": (["March", " MAY", " Dec"], ["march", " may", "Marching"]),
    "weekday": ([" Monday", "FRIDAY"], ["friday"]),
    "US state": ([" Texas", " New York", "OHIO"], ["texas", " York"]),
    "country": ([" Spain"], [" spain"]),
    "pronoun": (["I", " Them", "yourselves"], ["in", "the"]),
    "subject pronoun": ([" he", "They"], [" him", "them"]),
    "reflexive pronoun": ([" himself"], ["self", " him"]),
    "possessive determiner": ([" my", "Their"], [" mine"]),
    "article": ([" the", "A", "an"], ["theme", "ana"]),
    "coordinating conjunction": ([" and", "But"], ["because"]),
    "subordinating conjunction": ([" because", "If"], [" and"]),
    "preposition": ([" of", "Into"], ["off-"]),
    "negation": ([" not", "n't", " never"], ["note", "knot"]),
    "modal verb": ([" would", "Must"], ["wood"]),
    "comma": ([",", " ,"], [",,a", "),"]),
    "ends with a comma": (["),", ","], [",)"]),
    "punctuation only": (["...", " (", "—"], [" ", "_", "a.", "\udce2\udc80"]),
    "end of a sentence": ([".", '."', "?”"], [",", ".a"]),
    "quotation mark": ([' "', "’", "«"], ["a'", "''t"]),
    "opening bracket": ([" (", "[", "({", "(["], [")", "a("]),
    "closing bracket": ([")", "],", "}", ");"], ["(", "a)", "]("]),
    "currency sign": ([" $", "€", "£"], ["$1", "USD"]),
    "mathematical sign": (["+", " ≤", "<="], ["x", "+1"]),
    "comparison operator": ([" ==", "<="], ["="]),
    "Python keyword": ([" def", "lambda"], ["define"]),
    "C keyword": ([" struct", "void"], ["voids", "VOID"]),
    "SQL keyword": (["SELECT", " where"], ["selected"]),
    "null or boolean": (["None", " false", "NULL"], ["nullable"]),
    "double underscore": (["__init__", " __"], ["_"]),
    "first letter q": (["q", " Queen", "q1"], [" a", "iq", "\nq"]),
    "ends with -ing": (["ing", " Going", "ING"], ["ingot", "ing.", " in g"]),
    "begins with un-": ([" undo", "Un", "under"], ["sun", " un1"]),
}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TOKENIZER)


@pytest.fixture(scope="module")
def text() -> Text:
    return read_text(TEXT).take(200 * 256)


def test_token_classes_on_tokens_picked_by_hand():
    table = {one.label: one for one in TOKEN_CLASSES}
    assert len(table) == len(TOKEN_CLASSES) > 300, "several hundred, names unique"
    for label, (inside, outside) in BY_HAND.items():
        carried = table[label].members(inside + outside)
        assert carried == [True] * len(inside) + [False] * len(outside), (label, inside + outside, carried)


@pytest.mark.parametrize(
    "one, inside, outside",
    [
        (looks("x", r" ?a+"), [" aa"], ["ab"]),
        (words("x", "it's c++"), ["IT'S", " C++"], ["its", "ccc"]),  # signs in words are signs
        (names("x", "New_York"), [" New York", "NEW YORK"], ["new york", "New_York"]),
        (suffixes("able")[0], ["Table", " able"], ["tables", "a able"]),
        (prefixes("re")[0], [" redo"], [" are"]),
    ],
)
def test_each_kind_of_entry(one, inside, outside):
    assert all(one.members(inside)) and not any(one.members(outside))


def test_table_of_token_classes_gives_one_class_per_entry_or_item(tmp_path):
    (tmp_path / "table.yaml").write_text(
        """
        # a comment
        - {label: no, looks: ' ?\\d+'}
        - label: "yes, yes"
          words: >-
            yes on
            true
        - {label: town, names: New_York}
        - {label: comma, signs: ','}
        - suffixes: ing ed
        - prefixes: un
        - first_letters: ab
        """
    )
    expected = [looks("no", r" ?\d+"), words("yes, yes", "yes on true"), names("town", "New_York"), signs("comma", ",")]
    expected += [*suffixes("ing ed"), *prefixes("un"), *first_letters("ab")]
    assert read_token_classes(tmp_path / "table.yaml") == tuple(expected)


@pytest.mark.parametrize(
    "entries, message",
    [
        ("- {label: x, looks: '('}", r"token class 'x' has the pattern '\(', which is not a regular expression"),
        ("- {label: x, looks: a}\n- {label: x, words: b}", "table.yaml gives the label 'x' twice"),
        ("- suffixes: ed ed", "table.yaml gives the label 'ends with -ed' twice"),
        (
            "- {label: x, sounds: a}",
            r"table.yaml has the entry \{'label': 'x', 'sounds': 'a'\}; an entry is a label with",
        ),
        ("- {words: a}", "table.yaml has the entry"),
        ("- {label: x, words: [a, b]}", "table.yaml has the entry"),
        ("x: a", "table.yaml has the entry"),
        ("\n- {label: x", "table.yaml, line 2: not valid YAML"),
    ],
)
def test_bad_table_of_token_classes_is_refused_in_one_sentence(tmp_path, entries, message):
    (tmp_path / "table.yaml").write_text(entries)
    with pytest.raises(InputError, match=message) as refused:
        read_token_classes(tmp_path / "table.yaml")
    assert str(refused.value).endswith(".") and "\n" not in str(refused.value)


@pytest.mark.parametrize("tables", ["families", "circuits"])
def test_families_and_roles_are_made_again_after_an_edit_of_the_token_classes(tmp_path, monkeypatch, tables):
    shutil.copytree(parameters.ROOT / "lib", tmp_path / "lib", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(parameters, "ROOT", tmp_path)
    before = cache.code_of(f"lib.chapters.{tables}.tables")
    with (tmp_path / "lib" / "labels" / "token_classes.yaml").open("a") as table:
        table.write("- {label: x, words: y}\n")
    assert cache.code_of(f"lib.chapters.{tables}.tables") != before


def test_token_strings_are_exact_bytes(tokenizer):
    pieces = text_tokens.token_bytes(tokenizer)
    sample = "Grüße 👩‍🚀 e\u0301 \t\r\n“ok”"
    ids = tokenizer(sample, add_special_tokens=False)["input_ids"]
    assert b"".join(pieces[token] for token in ids).decode() == sample
    assert pieces[tokenizer.bos_token_id] == b""
    strings = text_tokens.token_strings(tokenizer)
    assert not any("\ufffd" in string for string in strings)
    assert len(set(strings)) == len(strings), "no two tokens look the same"
    assert [string.encode("utf-8", "surrogateescape") for string in strings] == pieces


def test_unigram_words_need_frequency_and_variants():
    texts = ["the", " the", "The", " The", "cat", " cat", "Cat", " CAT", "a1", "A1", " a1", " A1", "of", " of", "Of"]
    counts = np.array([700, 0, 50, 0, 1, 1, 1, 0, 500, 0, 500, 0, 400, 400, 400])
    least = int(counts.sum() * 3000 / 1e7)
    assert labels.unigram_classes(texts, counts) == {"the": [0, 1, 2, 3], "cat": [4, 5, 6, 7]} and least == 0
    counts[0] = 10_000_000
    assert labels.unigram_classes(texts, counts) == {"the": [0, 1, 2, 3]}


def test_token_labels_of_the_shipped_tokeniser(text, tokenizer):
    counts = labels.token_counts(text)
    assert counts.sum() == text.counted().sum() and counts[text.bos_id] == 0
    made = labels.token_labels(tokenizer, counts, vocab_size=text.vocab_size + 7)
    assert made.grouping == "token" and made.member.shape == (len(made.labels), text.vocab_size + 7)
    assert not made.member[:, text.vocab_size :].any() and not made.member[:, text.bos_id].any()
    assert made.labels["label"].is_unique and len(made.labels) > 400
    assert made.member.any(1).all(), "labels that no token carries are left out"
    row = made.member[made.labels["label"].tolist().index("word “the”")]
    assert {tokenizer.decode([token]) for token in row.nonzero()[0]} == {"the", " the", "The", " The"}
    again = labels.token_labels(tokenizer, counts, vocab_size=text.vocab_size + 7)
    assert again.labels.equals(made.labels) and (again.member == made.member).all()


def test_added_token_class_labels_current_previous_and_next_token(text, tokenizer):
    table = (*TOKEN_CLASSES, words("mine", "whale sea ship"))
    sets = {one.grouping: one for one in labels.label_sets(text, tokenizer, table)}
    for grouping, name in (("token", "mine"), ("previous_token", "previous: mine"), ("next_token", "next: mine")):
        assert name in set(sets[grouping].labels["label"])
        assert sets[grouping].member.shape[1] == len(labels.occurring(text))
    with pytest.raises(InputError, match="'bad' has the pattern"):
        labels.token_labels(tokenizer, classes=(TokenClass("bad", "("),))
    with pytest.raises(InputError, match="'comma' is given twice"):
        labels.token_labels(tokenizer, classes=(*TOKEN_CLASSES, looks("comma", ",+")))


def test_groupings_agree_with_the_text(text, tokenizer):
    made = labels.groupings(text, tokenizer)
    present, tokens = labels.occurring(text), text.tokens.numpy()
    for grouping in made.values():
        assert grouping.ids.shape == text.tokens.shape and grouping.ids.max() < len(grouping.groups)
    assert (present[made["token"].ids] == tokens).all()
    assert (present[made["previous_token"].ids[:, 1:]] == tokens[:, :-1]).all() and (
        made["previous_token"].ids[:, 0] == -1
    ).all()
    assert (present[made["next_token"].ids[:, :-1]] == tokens[:, 1:]).all() and (
        made["next_token"].ids[:, -1] == -1
    ).all()
    assert (made["position"].ids[5] == torch.arange(256)).all()
    assert (made["domain"].ids[:, 7] == text.domain).all()
    for one in labels.label_sets(text, tokenizer):
        assert one.member.shape == (len(one.labels), len(made[one.grouping].groups))


def test_tokens_outside_the_text_get_no_group_and_no_label(text, tokenizer):
    short = text.take(2 * text.context)
    present, made = labels.occurring(short), labels.groupings(short, tokenizer)
    assert len(present) < 2 * text.context and all(
        len(made[name].groups) == len(present) for name in ("token", "previous_token", "next_token")
    )
    whole = labels.token_labels(tokenizer, labels.token_counts(short), short.vocab_size)
    own = {one.grouping: one for one in labels.label_sets(short, tokenizer)}["token"]
    assert 0 < len(own.labels) < len(whole.labels) and own.member.any(1).all()
    rows = dict(zip(whole.labels["label"], whole.member, strict=True))
    for label, member in zip(own.labels["label"], own.member, strict=True):
        assert (member == rows[label][present]).all()


def test_position_labels_only_below_the_context():
    made = labels.position_labels(16)
    assert made.labels["label"].tolist() == ["position < 2", "position < 3", "position < 5", "position < 10"]
    assert made.member[3].tolist() == [True] * 10 + [False] * 6


def test_domain_labels_name_language_genre_and_domain():
    made = labels.domain_labels(("c code", "law (fr)", "scripture (de)", "scripture (fr)", "speeches"))
    carried = {label: member.tolist() for label, member in zip(made.labels["label"], made.member, strict=True)}
    assert carried["source code"] == [True, False, False, False, False]
    assert carried["language: German"] == [False, False, True, False, False]
    assert carried["language: French"] == [False, True, False, True, False]
    assert carried["language other than English"] == [False, True, True, True, False]
    assert carried["genre: scripture"] == [False, False, True, True, False]
    assert "domain: scripture (de)" not in carried, "it is the same label as the language"
    assert len(labels.domain_labels(("web",)).labels) == 0


def test_domain_labels_of_the_pile_and_of_unknown_domains():
    made = labels.domain_labels(("Github", "EuroParl", "Wikipedia (en)", "DM Mathematics", "our code (fr)"))
    carried = {label: member.tolist() for label, member in zip(made.labels["label"], made.member, strict=True)}
    assert carried["source code"] == [True, False, False, False, False]
    assert carried["language other than English"] == [False, True, False, False, False]
    assert carried["natural language: English"] == [False, False, True, True, False]
    assert carried["domain: our code (fr)"] == [False, False, False, False, True], (
        "a language is not guessed from a name"
    )
    assert set(carried) == {
        "source code",
        "language other than English",
        "natural language: English",
        "domain: our code (fr)",
        "domain: Wikipedia (en)",
        "domain: DM Mathematics",
    }


def test_domain_that_a_run_names_gets_its_labels():
    made = labels.domain_labels(("forum", "web"), domains.known_domains({"forum": "nl"}))
    assert made.labels["label"].tolist() == ["language other than English"], (
        "the others say the same of these two domains"
    )
    assert made.member.tolist() == [[True, False]]


def test_every_domain_of_the_shipped_text_and_every_set_of_the_pile_is_known():
    shipped, pile = set(read_text(TEXT).domains), set(domains.DOMAINS) - set(read_text(TEXT).domains)
    assert shipped <= set(domains.DOMAINS) and len(pile) == 22
    # data/linguistics.parquet was made of these
    assert shipped & set(domains.ENGLISH_PROSE) == {
        "drama and verse",
        "encyclopedia",
        "fiction",
        "scripture (en)",
        "speeches",
        "technical docs",
    }
    assert {domain.language for domain in domains.DOMAINS.values() if domain.prose} == {"en"}


def test_word_places_tell_start_middle_and_whole_word(tokenizer):
    sample = " universal (the) foo_bar x1\n"
    ids = tokenizer(sample, add_special_tokens=False)["input_ids"]
    tokens = torch.tensor([[0, *ids]])
    made = labels.word_places(
        Text(tokens, torch.zeros(1), torch.zeros(1), ("d",), "", len(tokenizer), 0, ()), tokenizer
    )
    found = [
        (tokenizer.decode([token]), labels.WORD_PLACES[place])
        for token, place in zip(ids, made[0, 1:].tolist(), strict=True)
    ]
    assert made[0, 0] == labels.WORD_PLACES.index("other")
    rest = found.index((" (", "other"))
    assert found[0] == (" un", "word start") and {place for _, place in found[1:rest]} == {"word middle"}
    assert ("the", "as word") in found and (" (", "other") in found and ("_", "other") in found
    assert found[-3:-1] == [(" x", "word start"), ("1", "word middle")] and found[-1][1] == "other"
