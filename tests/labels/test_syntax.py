"""Syntax labels and topics: alignment without drift on awkward text, sentence edges, files, determinism."""

from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TEXT, TOKENIZER
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from lib.base.errors import InputError
from lib.base.files import file_sha256
from lib.labels import syntax, topics, words
from lib.labels.syntax import Grouping, Shards, passages, stored_syntax, syntax_labels, write_syntax
from lib.labels.words import SEPARATOR, aligned
from lib.text.blocks import Text, packing_order, read_text
from lib.text.tokens import token_bytes

AWKWARD = {
    "emoji": "I 👩‍👩‍👧‍👦 love 🇩🇪🎉🎉 parties 😀😀, don't you?",
    "combining accents": "Cafe\u0301 n\u0303o a\u0308\u0323\u0301bc Zu\u0308rich re\u0301sume\u0301.",
    "tabs": "one\ttwo\t\tthree\n\t\tfour  five   six",
    "CRLF": "First line.\r\nSecond line.\r\n\r\nThird \r line.",
    "German": "Größe, Straße und Äpfel: „Übermäßig“ schön, daß es heiß war.",
    "code": "def f(x):\n    return {'a': x[0] != 1, \"b\": x->y}  # naïve\n",
    "space": "  \u00a0 \u2003x\u200by\ufeff z ",
    "scripts": "Καλημέρα, мир! 日本語のテキスト عربى",
    "nothing": "",
}


@cache
def tokenizer():
    return AutoTokenizer.from_pretrained(TOKENIZER)


@cache
def splitter():
    import spacy

    return spacy.blank("en")


def cut_bytes(string: str) -> list[bytes]:
    """The string's bytes as the shipped tokeniser cuts them."""
    pieces = token_bytes(tokenizer())
    return [pieces[token] for token in tokenizer()(string, add_special_tokens=False)["input_ids"]]


def assert_no_drift(pieces: list[bytes]) -> None:
    """Against an oracle that counts bytes of prefixes: each token's span is one that shares most of its bytes."""
    string = b"".join(pieces).decode("utf-8", "surrogateescape")
    spans = [(word.idx, word.idx + len(word)) for word in splitter()(words._readable(string)) if not word.is_space]
    found = aligned(pieces, string, spans)

    def byte(character: int) -> int:
        return len(string[:character].encode("utf-8", "surrogateescape"))

    start = 0
    for piece, span in zip(pieces, found, strict=True):
        stop = start + len(piece)
        shared = [max(0, min(stop, byte(b)) - max(start, byte(a))) for a, b in spans]
        if span < 0:
            assert not any(shared)
        else:
            assert shared[span] == max(shared) > 0 and span == shared.index(max(shared))
            if len(piece.strip()) == len(piece) and piece.isascii():
                assert set(piece.decode()) & set(string[slice(*spans[span])]), "they share characters"
        start = stop


@pytest.mark.parametrize("kind", AWKWARD)
def test_alignment_does_not_drift_on_awkward_text(kind):
    pieces = cut_bytes(AWKWARD[kind])
    assert b"".join(pieces) == AWKWARD[kind].encode()
    assert_no_drift(pieces)


def test_alignment_does_not_drift_when_a_passage_starts_and_ends_inside_a_character():
    pieces = [b"\x98\x80", b" w", b"or", b"d \xf0\x9f", b"\x98", b"\x80.", b" \xc3"]
    assert_no_drift(pieces)
    string = b"".join(pieces).decode("utf-8", "surrogateescape")
    assert [string[a] for a in np.unique(words.character_of_byte(string))] == list(string)
    assert aligned(pieces, string, [(3, 7), (8, 9), (9, 10)]).tolist() == [-1, 0, 0, 1, 1, 1, -1]


@settings(max_examples=60, deadline=None)
@given(
    st.text(
        st.one_of(st.sampled_from("ab. ,'\"\n\r\té👩\u200d\u0301ß日()_"), st.characters(exclude_categories=["Cs"])),
        max_size=40,
    ),
    st.integers(0, 3),
    st.integers(0, 3),
)
def test_alignment_does_not_drift_on_any_text(string, skip_first, skip_last):
    raw = string.encode()
    pieces = cut_bytes(string)
    if pieces and len(pieces[0]) > skip_first and len(pieces[-1]) > skip_last and len(pieces) > 1:
        pieces = [pieces[0][skip_first:], *pieces[1:-1], pieces[-1][: len(pieces[-1]) - skip_last]]
    else:
        assert b"".join(pieces) == raw
    assert_no_drift(pieces)


def text_of(*documents: str, domain: str = "speeches", context: int = 32) -> Text:
    """Blocks packed as lib.training.corpus packs them, shuffled in its order."""
    ids = [token for document in documents for token in (*tokenizer()(document)["input_ids"], 0)][:-1]
    ids += [0] * (-len(ids) % (context - 1))
    stream = torch.tensor(ids).view(-1, context - 1)
    owner = torch.cat([torch.tensor([0]), (stream.flatten() == 0).cumsum(0)])[:-1].view(stream.shape)[:, 0]
    order = torch.from_numpy(packing_order(len(stream)))
    tokens = torch.cat([torch.zeros(len(stream), 1, dtype=torch.long), stream], 1)
    names = tuple(f"document {index}" for index in range(int((stream == 0).sum()) + 1))
    return Text(
        tokens[order],
        torch.zeros(len(stream), dtype=torch.long),
        owner[order],
        (domain,),
        "",
        len(tokenizer()),
        0,
        (),
        names,
    )


SPEECH = (
    "The old captain had not seen three white whales in London. She wrote many letters to Mary, "
    "and he answers them slowly! Grandmothers slept. "
    "They were sailing to the islands when the storms came; we saw nothing. "
) * 3


@pytest.fixture(scope="module")
def spoken() -> tuple[Text, syntax.Grouping]:
    text = text_of(SPEECH, "Where is Anna?\n\nHere.")
    return text, syntax.read_syntax(text, tokenizer())


def test_passages_join_blocks_in_the_order_before_shuffling():
    text = text_of(SPEECH, "Where is Anna?", domain="fiction")
    pieces = token_bytes(tokenizer())
    joined = [
        b"".join(pieces[token] for token in text.tokens[at].tolist()).decode() for at in passages(text, ("fiction",))
    ]
    assert joined == [SPEECH, "Where is Anna?"]
    assert list(passages(text, ("speeches",))) == []
    unknown = replace(text, documents=())
    assert max(len(block) for block, _ in passages(unknown, ("fiction",))) == text.context - 1, "each block alone"


def test_syntax_labels_of_a_sentence(spoken):
    text, grouping = spoken
    labels = syntax_labels(grouping.groups)
    rows = dict(zip(labels.labels["label"], labels.member, strict=True))
    assert (labels.labels["family"] == "syntax").all() and labels.member.shape[1] == len(grouping.groups)
    inverse = torch.from_numpy(np.argsort(packing_order(len(text.tokens))))
    ids, tokens = grouping.ids[inverse].flatten(), text.tokens[inverse].flatten().tolist()

    def carried(label: str) -> set[str]:
        return {
            tokenizer().decode([token]).strip()
            for token, group in zip(tokens, ids.tolist(), strict=True)
            if group >= 0 and rows[label][group]
        }

    assert "not" in carried("negation") and len(carried("negation")) == 1
    assert {"The", "She", "They", "Where"} <= carried("sentence start") and "captain" not in carried("sentence start")
    assert {".", "!"} <= carried("sentence end") <= {".", "!", "?", ";"}
    assert {"She", "they", "her"} & carried("part of speech: pronoun") and "the" in carried(
        "part of speech: determiner"
    )
    assert {"islands", "letters"} <= carried("plural noun") and not carried("plural noun") & carried("singular noun")
    assert carried("aspect: Prog") == {"sa", "iling"}, "all pieces of a word carry its labels"
    assert {"saw", "came", "were"} <= carried("tense: Past") and "is" in carried("tense: Pres")
    assert carried("entity: CARDINAL") == {"three"} and carried("pronoun type: Art") == {"The", "the"}
    assert "The" in carried("stop word") and "islands" not in carried("stop word")
    for token, group in zip(tokens, ids.tolist(), strict=True):
        assert (group < 0) == (token == text.bos_id or tokenizer().decode([token]).isspace())


def test_sentence_edges_are_one_token_each(spoken):
    _, grouping = spoken
    counts = np.bincount(grouping.ids[grouping.ids >= 0], minlength=len(grouping.groups))
    edges = np.array([group.split(SEPARATOR)[-1] for group in grouping.groups])
    starts, ends = (sum(counts[[edge in value for value in edges]]) for edge in ("start", "end"))
    assert starts == ends and 12 <= starts <= 16


def test_stored_signatures_are_read_back_for_the_same_text_only(spoken, tmp_path):
    _, grouping = spoken
    write_syntax(tmp_path / "x.parquet", grouping, "abc")
    back = stored_syntax(tmp_path / "x.parquet", "abc")
    assert back.groups == grouping.groups and torch.equal(back.ids, grouping.ids)
    assert stored_syntax(tmp_path / "x.parquet", "abd") is None and stored_syntax(tmp_path / "y.parquet", "abc") is None


def test_signatures_of_a_text_without_labels_are_read_back(tmp_path):
    nothing = Grouping("linguistics", (), torch.full((2, 3), -1, dtype=torch.int32))
    write_syntax(tmp_path / "x.parquet", nothing, "abc")
    back = stored_syntax(tmp_path / "x.parquet", "abc")
    assert back.groups == () and torch.equal(back.ids, nothing.ids)


def test_shipped_signatures_belong_to_the_shipped_text():
    grouping = stored_syntax(TEXT.with_name(syntax.FILE), file_sha256(TEXT))
    text = read_text(TEXT)
    assert grouping is not None and grouping.ids.shape == text.tokens.shape
    english = torch.tensor([domain in syntax.ENGLISH_PROSE for domain in text.domains])[text.domain]
    assert (grouping.ids[~english] == -1).all() and (grouping.ids[:, 0] == -1).all()
    assert (grouping.ids[english][text.counted()[english]] >= 0).float().mean() > 0.97
    pieces = token_bytes(tokenizer())
    blank = torch.tensor([not piece.decode("utf-8", "ignore").strip() and piece.isascii() for piece in pieces])[
        text.tokens
    ]
    assert (grouping.ids[blank] == -1).all()
    made = syntax_labels(grouping.groups)
    rows = dict(zip(made.labels["label"], made.member, strict=True))
    for label, word in (
        ("part of speech: determiner", " the"),
        ("negation", " not"),
        ("plural noun", " people"),
        ("part of speech: pronoun", " he"),
        ("tense: Past", " was"),
        ("entity: GPE", " Jerusalem"),
    ):
        here = grouping.ids[text.tokens == tokenizer()(word)["input_ids"][0]]
        assert rows[label][here[here >= 0].numpy()].mean() > 0.8, label


def run_of(text: Text, path, domains: dict | None = None) -> SimpleNamespace:
    """A run that reads labels on all of a text, whose token file is at `path`."""
    blocks = torch.arange(len(text.tokens))
    params, folder = SimpleNamespace(domains=domains), path.parent / "run"
    return SimpleNamespace(
        text_path=path,
        text=text,
        labelled=text,
        label_blocks=blocks,
        tokenizer=tokenizer(),
        folder=folder,
        params=params,
    )


def test_run_with_its_own_text_reads_it_once_and_keeps_the_signatures(spoken, tmp_path, capsys, monkeypatch):
    text, grouping = spoken
    monkeypatch.setattr("lib.base.params.OUTPUTS", tmp_path)
    path = tmp_path / "text.safetensors"
    path.write_bytes(b"another text")
    run = run_of(text, path)
    assert syntax.unread_tokens(run) == int((text.tokens != 0).sum())
    made = syntax.run_syntax(run)
    assert made.groups == grouping.groups and torch.equal(made.ids, grouping.ids), "the same again"
    load = words.load_spacy
    monkeypatch.setattr(words, "load_spacy", None)
    assert torch.equal(syntax.run_syntax(run).ids, made.ids), "read, not made again"
    assert syntax.unread_tokens(run) == 0
    capsys.readouterr()
    assert syntax.run_syntax(run_of(replace(text, domains=("python code",)), path)) is None
    assert capsys.readouterr().err.startswith("no syntax labels: none of the text's domains")
    forum = run_of(replace(text, domains=("forum",)), path, {"forum": "prose"})
    assert syntax.unread_tokens(forum) > 0, "shards of other domains do not serve"
    monkeypatch.setattr(words, "load_spacy", load)
    assert torch.equal(syntax.run_syntax(forum).ids, made.ids) and syntax.unread_tokens(forum) == 0


def test_shipped_signatures_serve_only_domains_that_they_were_made_of(spoken, tmp_path, monkeypatch):
    text, grouping = spoken
    monkeypatch.setattr("lib.base.params.OUTPUTS", tmp_path)
    path = tmp_path / "text.safetensors"
    path.write_bytes(b"a text")
    write_syntax(path.with_name(syntax.FILE), grouping, file_sha256(path))
    assert syntax.unread_tokens(run_of(text, path)) == 0
    few = run_of(text, path)
    few.label_blocks = torch.tensor([0, 2])
    assert torch.equal(syntax.run_syntax(few).ids, grouping.ids[[0, 2]]), "those of the labelled blocks"
    assert syntax.unread_tokens(run_of(replace(text, domains=("forum",)), path, {"forum": "prose"})) > 0


def test_processes_and_a_stop_change_nothing(tmp_path, monkeypatch):
    """Two processes read a text in shards and are stopped while the second is saved; one process reads the rest."""
    monkeypatch.setattr(words, "BATCH_TOKENS", 60)
    monkeypatch.setattr(words, "BATCH_PASSAGES", 1)
    text = text_of(*(f"{SPEECH} Chapter {number} ends here." for number in range(6)), "Where is Anna?")
    whole = syntax.read_syntax(text, tokenizer(), processes=1)
    monkeypatch.setattr(syntax, "SHARD_TOKENS", 400)
    assert len(syntax.Work.of(text, syntax.ENGLISH_PROSE).shards) >= 3
    shards, write = Shards(tmp_path, "of this text"), Shards.write

    def stopped(self, number, shard):
        if number == 1:
            raise KeyboardInterrupt
        write(self, number, shard)

    with monkeypatch.context() as first:
        first.setattr(Shards, "write", stopped)
        with pytest.raises(KeyboardInterrupt):
            syntax.read_syntax(text, tokenizer(), shards=shards, processes=2)
    assert [path.name for path in tmp_path.iterdir()] == ["linguistics-000.parquet"]
    read, signatures = [], words.Reader.signatures
    monkeypatch.setattr(words.Reader, "signatures", lambda *of: read.append(sum(map(len, of[1]))) or signatures(*of))
    resumed = syntax.read_syntax(text, tokenizer(), shards=shards, processes=1)
    assert resumed.groups == whole.groups and torch.equal(resumed.ids, whole.ids)
    kept = len(stored_syntax(shards.path(0), shards.key).ids)
    assert kept > 300 and sum(read) == int((text.tokens != 0).sum()) - kept, "the first shard is not read again"
    assert shards.stored(0, kept) and not shards.stored(0, kept + 1) and not Shards(tmp_path, "other").stored(0, kept)


def test_a_killed_process_is_one_sentence(monkeypatch):
    with pytest.raises(InputError, match="was killed, perhaps for want of memory"), words.reading([b""], 2):
        raise words.BrokenProcessPool


def test_topics_are_constant_over_documents_and_deterministic():
    text = read_text(TEXT).take(600 * 256)
    first, second = topics.topics(text, tokenizer()), topics.topics(text, tokenizer())
    assert first.groups == second.groups and torch.equal(first.ids, second.ids)
    assert 30 <= len(first.groups) <= 63 and len(set(first.groups)) == len(first.groups)
    documents = topics.token_documents(text)
    for document in documents.unique():
        assert len(first.ids[documents == document].unique()) == 1
    labels = topics.topic_labels(first.groups)
    assert (labels.member == np.eye(len(first.groups), dtype=bool)).all()


def test_documents_on_one_subject_share_a_topic(monkeypatch):
    subjects = (
        "whale ship ocean captain harpoon sailor",
        "matrix vector polynomial integral theorem proof",
        "senate congress treaty president vote nation",
        "butter flour sugar oven recipe kitchen",
    )
    draw = np.random.default_rng(0)
    stories = [" ".join(draw.choice(subject.split(), 30)) for _ in range(12) for subject in subjects]
    monkeypatch.setattr(topics, "MAX_TERM_SHARE", 0.5)
    text = text_of(*stories)
    documents, made = topics.token_documents(text), topics.topics(text, tokenizer())
    of_document = [int(made.ids[documents == document][0]) for document in range(len(stories))]
    assert len({of_document[index] for index in range(4)}) == 4
    assert all(of_document[index] == of_document[index % 4] for index in range(len(stories)))


def test_text_of_too_few_documents_has_no_topics():
    made = topics.topics(text_of(SPEECH, "Where?"), tokenizer())
    assert made.groups == () and (made.ids == -1).all() and len(topics.topic_labels(made.groups).labels) == 0


def test_stretches_between_bos_are_documents_where_names_are_missing():
    text = replace(text_of("a b", "c", context=16), documents=())
    assert len(topics.token_documents(text).unique()) == int((text.tokens == 0).sum())
