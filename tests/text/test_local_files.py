"""Which files a folder or a glob means, and that any of them can be read, whatever it is called and however large."""

import gzip
import json
import os
import resource
import sys
import tracemalloc

import pytest
from conftest import SHIPPED

from lib.base.errors import InputError
from lib.base.params import TextSource
from lib.text import documents
from lib.text.documents import check_files, files_of, parts
from lib.text.tokenise import check_text

LINE = json.dumps({"text": "a text"}) + "\n"


def written(folder, *names, content=LINE):
    """Files with this content; compressed if they are called so."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content.encode()
        if name.lower().endswith(".gz"):
            data = gzip.compress(data[:4]) + gzip.compress(data[4:])  # as some programs write it
        elif name.lower().endswith(".zst"):
            data = zstd(data[:4]) + zstd(data[4:])
        path.write_bytes(data)
    return folder


def zstd(content: bytes) -> bytes:
    import pyarrow

    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def names_of(root, path="") -> list[str]:
    """Names below the root of the files that a path or glob below it means."""
    return [str(file.relative_to(root)) for file in files_of(TextSource(files=str(root / path))).files]


def refused(path, function=files_of, **keys) -> str:
    with pytest.raises(InputError) as caught:
        list(function(TextSource(files=str(path), **keys)))
    text = str(caught.value)
    assert text.endswith(".") and "\n" not in text and ". " not in text, text
    return text


# ---------------------------------------------------------------- which files


EVERYWHERE = ("", "*", "**", "**/*")  # a folder and the globs that mean all that is in it


@pytest.mark.parametrize("path", EVERYWHERE)
def test_a_folder_is_read_whole_under_whatever_names_its_files_go(tmp_path, path):
    names = ["a.jsonl", "b.jsonl.gz", "c.JSONL", "d.json", "e.txt.zst", "f.json.GZ", "g.ndjson", "sub/deep/h.txt.gz"]
    written(tmp_path, *names)
    assert names_of(tmp_path, path) == names
    found = list(parts(TextSource(files=str(tmp_path / path))))
    assert len(found) == 8 and all("a text" in part.text for part in found)
    assert {part.domain for part in found} == {tmp_path.name, "deep"}


@pytest.mark.parametrize("path", EVERYWHERE)
def test_nothing_hidden_is_read_and_what_is_not_read_is_named(tmp_path, path):
    written(tmp_path, "a.jsonl", ".ipynb_checkpoints/a.jsonl", "._a.jsonl", "sub/.b.txt", "README.md", "sub/b.txt")
    found = files_of(TextSource(files=str(tmp_path / path)))
    assert [file.name for file in found.files] == ["a.jsonl", "b.txt"]
    assert [file.name for file in found.skipped] == ["._a.jsonl", ".ipynb_checkpoints", "README.md", ".b.txt"]


def test_a_hidden_file_that_is_named_is_read(tmp_path):
    written(tmp_path, ".hidden/.x.txt")
    assert names_of(tmp_path, ".hidden/.x.txt") == [".hidden/.x.txt"]
    written(tmp_path, ".hidden/y.txt")
    assert names_of(tmp_path, ".hidden") == [".hidden/y.txt"]


@pytest.mark.parametrize("path", EVERYWHERE)
def test_links_are_followed_and_each_real_file_is_read_once(tmp_path, path):
    corpus = written(tmp_path / "corpus", "law/x.jsonl", "news/y.jsonl")
    written(tmp_path / "elsewhere", "z.jsonl", "more/w.jsonl")
    (corpus / "linked").symlink_to(tmp_path / "elsewhere")
    (corpus / "again").symlink_to(tmp_path / "elsewhere")
    (corpus / "law" / "up").symlink_to(corpus)
    (corpus / "news" / "up").symlink_to("..")
    (corpus / "a.jsonl").symlink_to("law/x.jsonl")
    (corpus / "itself").symlink_to("itself")
    expected = ["again/more/w.jsonl", "again/z.jsonl", "law/x.jsonl", "news/y.jsonl"]
    assert names_of(corpus, path) == expected


def test_a_glob_means_what_it_matches_and_folders_with_all_that_is_in_them(tmp_path):
    written(tmp_path, "law/x.jsonl", "law/old/y.jsonl", "late/z.txt", "news/x.jsonl", "x.jsonl")
    (tmp_path / "link").symlink_to("news")
    assert names_of(tmp_path, "*.jsonl") == ["x.jsonl"]
    assert names_of(tmp_path, "la*") == ["late/z.txt", "law/old/y.jsonl", "law/x.jsonl"]
    assert names_of(tmp_path, "la*/*.jsonl") == ["law/x.jsonl"]
    assert names_of(tmp_path, "**/x.jsonl") == ["law/x.jsonl", "news/x.jsonl", "x.jsonl"]
    assert names_of(tmp_path, "l[a]w/**/*.jsonl") == ["law/old/y.jsonl", "law/x.jsonl"]
    assert names_of(tmp_path, "lin*/*.jsonl") == ["link/x.jsonl"]
    assert names_of(tmp_path, "?ews") == ["news/x.jsonl"]


@pytest.mark.parametrize("folder", ["c[1]", "c:d", "c$HOME", "c*", "c ?", "[!a]"])
def test_letters_of_globs_and_shells_in_a_path_are_letters(tmp_path, folder):
    corpus = written(tmp_path / folder, "law/x.txt", "law/y[2]:$.jsonl", "z.txt.gz")
    assert names_of(corpus) == ["law/x.txt", "law/y[2]:$.jsonl", "z.txt.gz"]
    assert names_of(corpus, "law/*.txt") == ["law/x.txt"]
    assert names_of(corpus, "law/y[2]:$.jsonl") == ["law/y[2]:$.jsonl"]
    assert {part.domain for part in parts(TextSource(files=str(corpus)))} == {"law", folder}


@pytest.mark.parametrize("name", ["b.csv", "b.csv.gz", "b.tar.gz", "b.ZIP", "b.jsonl.bz2", "b.arrow", "b.md.zst"])
@pytest.mark.parametrize("path", EVERYWHERE)
def test_a_file_that_may_hold_text_and_cannot_be_read_is_refused_by_name(tmp_path, name, path):
    written(tmp_path, "a.jsonl", name)
    said = refused(tmp_path / path)
    assert f"{name} cannot be read as text: a file must end in .txt" in said and "glob that leaves it out" in said
    assert names_of(tmp_path, "*.jsonl") == ["a.jsonl"]


def test_what_is_no_file_is_refused_by_name(tmp_path):
    (tmp_path / "x.jsonl").symlink_to("gone.jsonl")
    assert "x.jsonl is a link to a file that does not exist" in refused(tmp_path)
    assert "x.jsonl is a link to a file that does not exist" in refused(tmp_path / "x.jsonl")
    os.mkfifo(tmp_path / "pipe.txt")
    assert "pipe.txt is not a file" in refused(tmp_path / "pipe.txt")
    assert "there is no file or folder" in refused(tmp_path / "none" / "*.txt")


@pytest.mark.parametrize("name", ["x.txt", "x.jsonl", "x.parquet", "x.json.gz"])
def test_a_pointer_of_git_lfs_is_not_a_text(tmp_path, name):
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n"
    (tmp_path / name).write_text(pointer)
    for function in (check_files, parts):
        assert f"{name} is a pointer of git-lfs" in refused(tmp_path, function)


# ---------------------------------------------------------------- looked at before anything is read


def test_the_first_document_of_each_file_is_looked_at_before_any_is_tokenised(tmp_path, make_run):
    corpus = written(tmp_path / "corpus", "a.jsonl", "b.txt", "notes.md")
    run = make_run({"a": SHIPPED / "a", "b": SHIPPED / "b"}, text=str(corpus))
    assert check_text(run.params) == f"not read as text: {corpus / 'notes.md'}."
    for name, content, why in (
        ("z.json", "[1]", "z.json, line 1 is not a JSON object"),
        ("z.json", "{\n", "each line must hold one object"),
        ("z.jsonl", '{"body": ""}', "has no field 'text'"),
        ("z.parquet", "x", "is damaged"),
        ("z.txt", "\udcff", "is not UTF-8"),
    ):
        (corpus / name).write_bytes(content.encode("utf-8", "surrogateescape"))
        with pytest.raises(InputError, match=why):
            check_text(run.params)
        (corpus / name).unlink()


# ---------------------------------------------------------------- what documents hold


def test_a_null_above_a_nested_field_is_a_null(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [
        {"text": "one", "meta": None},
        {"text": "two", "meta": {"s": "law"}},
        {"text": "three", "meta": {"s": None}},
    ]
    written(tmp_path, "x.jsonl", content="".join(json.dumps(row) + "\n" for row in rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet")
    for name in ("x.jsonl", "x.parquet"):
        found = list(parts(TextSource(files=str(tmp_path / name), domain="meta.s")))
        assert [part.domain for part in found] == ["unknown", "law", "unknown"]
        assert [part.text for part in parts(TextSource(files=str(tmp_path / name), field="meta.s"))] == ["law"]


def test_half_a_surrogate_in_a_domain_is_replaced(tmp_path):
    written(tmp_path, "x.jsonl", content='{"text": "a", "kind": "cut \\ud83d"}\n')
    assert [part.domain for part in parts(TextSource(files=str(tmp_path), domain="kind"))] == ["cut \ufffd"]
    if sys.platform == "linux":  # elsewhere names are UTF-8
        folder = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")  # a name in ISO-8859-1
        os.mkdir(folder)
        with open(f"{folder}/x.txt", "w", encoding="utf-8") as file:
            file.write("a")
        assert {part.domain for part in parts(TextSource(files=str(tmp_path)))} == {tmp_path.name, "caf\ufffd"}


def test_more_folders_than_files_may_be_open_take_turns(tmp_path):
    for number in range(400):
        written(tmp_path, f"{number:03d}/x.jsonl{'.gz' if number % 2 else ''}", content=LINE * 3)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        found = [part.domain for part in parts(TextSource(files=str(tmp_path)))]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert found == [f"{number:03d}" for number in range(400)] * 3


def test_a_file_that_changes_while_it_is_read_is_one_sentence(tmp_path):
    path = written(tmp_path, "x.jsonl", content=LINE * 20_000) / "x.jsonl"
    reading = parts(TextSource(files=str(path)))
    next(reading)
    path.write_text("{}\n")
    with pytest.raises(InputError, match="it changed while it was read"):
        list(reading)


# ---------------------------------------------------------------- one long line


@pytest.mark.parametrize("name", ["x.txt", "x.txt.gz"])
@pytest.mark.parametrize("between", [" ", "", "\t"])
def test_a_long_line_takes_no_memory_in_proportion(tmp_path, name, between):
    text = (between.join(["word"] * 50) + between) * 100_000  # 20 to 25 MB
    written(tmp_path, name, content=text)
    tracemalloc.start()
    read, longest = 0, 0
    for part in parts(TextSource(files=str(tmp_path / name))):
        assert part.text == text[read : read + len(part.text)]
        read, longest = read + len(part.text), max(longest, len(part.text))
        if between and read < len(text):
            assert text[read] == between
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert read == len(text) and longest <= 2 * documents.PART_CHARACTERS
    assert peak < 6e6
