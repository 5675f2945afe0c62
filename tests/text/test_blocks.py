"""The token file: round trip, the mask of counted tokens, and one sentence for each way a file can be wrong."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from lib.base.errors import InputError
from lib.base.files import file_sha256
from lib.base.params import ROOT
from lib.text.blocks import STRETCH, Text, counted_mask, evenly_spaced, label_blocks, read_text, write_text

DATA = ROOT / "data"


def small_text() -> Text:
    tokens = torch.tensor([[0, 5, 3, 7], [0, 3, 0, 9], [0, 8, 8, 8]])
    return Text(
        tokens=tokens,
        domain=torch.tensor([0, 1, 1]),
        document=torch.tensor([0, 4, 70000]),
        domains=("prose", "code é"),
        tokenizer_sha256="ab",
        vocab_size=10,
        bos_id=0,
        newline_ids=(3,),
        documents=("a", "b"),
    )


def raw_file(path: Path, drop_tensor: str = "", drop_key: str = "", **changes: object) -> Path:
    """A token file written by the safetensors library, with one thing left out or changed."""
    text = small_text()
    tensors = {
        "tokens": text.tokens.to(torch.uint16),
        "domain": text.domain.to(torch.uint8),
        "document": text.document.to(torch.int32),
    }
    metadata = {
        "domains": json.dumps(text.domains),
        "tokenizer_sha256": "ab",
        "vocab_size": "10",
        "bos_id": "0",
        "newline_ids": "[3]",
        "context": "4",
    }
    for key, value in changes.items():
        (tensors if key in tensors else metadata)[key] = value
    tensors.pop(drop_tensor, None)
    metadata.pop(drop_key, None)
    save_file(tensors, path, metadata=metadata)
    return path


def test_round_trip_and_same_bytes(tmp_path):
    text = small_text()
    write_text(tmp_path / "a.safetensors", text)
    write_text(tmp_path / "b.safetensors", text)
    back = read_text(tmp_path / "a.safetensors")
    for name in ("tokens", "domain", "document"):
        assert torch.equal(getattr(back, name), getattr(text, name)) and getattr(back, name).dtype == torch.int64
    for name in ("domains", "tokenizer_sha256", "vocab_size", "bos_id", "newline_ids", "documents", "context"):
        assert getattr(back, name) == getattr(text, name)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_reads_what_the_safetensors_library_writes(tmp_path):
    assert torch.equal(read_text(raw_file(tmp_path / "t.safetensors")).tokens, small_text().tokens)
    without = read_text(raw_file(tmp_path / "u.safetensors", drop_tensor="document"))
    assert without.document.tolist() == [0, 0, 0]


def test_a_large_vocabulary_takes_wider_ids(tmp_path):
    wide = replace(small_text(), tokens=small_text().tokens * 10_000, vocab_size=100_000)
    write_text(tmp_path / "t.safetensors", wide)
    assert torch.equal(read_text(tmp_path / "t.safetensors").tokens, wide.tokens)
    with pytest.raises(InputError, match="256 domains"):
        write_text(tmp_path / "u.safetensors", replace(small_text(), domains=("x",) * 257))


def test_neither_bos_nor_bare_newlines_count():
    expected = [[False, True, False, True], [False, False, False, True], [False, True, True, True]]
    text = small_text()
    assert counted_mask(text.tokens, 0, (3,)).tolist() == expected
    assert text.counted().tolist() == expected
    assert text.counted(slice(1, 2)).tolist() == expected[1:2]


def test_take_counts_whole_blocks():
    text = small_text()
    assert text.take(11).tokens.tolist() == text.tokens[:2].tolist()
    assert text.take(12).domain.tolist() == [0, 1, 1]
    for budget in (3, 0, -4, 13):
        with pytest.raises(
            InputError, match=f"token_budget is {budget}, but the text has 3 blocks .* from 4 .* to 12 "
        ):
            text.take(budget)
    with pytest.raises(InputError, match="token_budget is 12, but the text has 1 block of 4 tokens; it must be 4\\."):
        text.take(4).take(12)
    with pytest.raises(InputError, match="none of the text's first 8 tokens counts: all are BOS or line ends."):
        replace(text, tokens=torch.where(text.tokens == 0, 0, 3)).take(8)


def test_cut_shortens_blocks():
    text = small_text()
    assert text.cut(2).tokens.tolist() == [[0, 5], [0, 3], [0, 8]] and text.cut(2).context == 2
    for context in (5, 1, 0, -1):
        with pytest.raises(InputError, match=rf"context of {context} .* from 2 to 4"):
            text.cut(context)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"drop_tensor": "tokens"}, "no tensor 'tokens'"),
        ({"drop_tensor": "domain"}, "no tensor 'domain'"),
        *(
            ({"drop_key": key}, f"no metadata '{key}'")
            for key in ("domains", "tokenizer_sha256", "vocab_size", "bos_id", "newline_ids", "context")
        ),
        ({"vocab_size": "many"}, "metadata 'vocab_size'"),
        ({"newline_ids": "3"}, "metadata 'newline_ids'"),
        ({"newline_ids": '["a"]'}, "metadata 'newline_ids'"),
        ({"documents": "[1"}, "metadata 'documents'"),
        ({"documents": "[" * 100_000}, "metadata 'documents'"),
        ({"newline_ids": f"[{'7' * 5000}]"}, "metadata 'newline_ids'"),
        ({"vocab_size": "9"}, "ids from 0 to 9, where 0 to 8"),
        ({"bos_id": "1"}, "3 blocks that do not start with BOS"),
        ({"context": "5"}, "shape \\(3, 4\\), where \\(blocks, 5\\)"),
        ({"domain": torch.tensor([0, 2, 1], dtype=torch.uint8)}, "labels from 0 to 2, but 2 domain names"),
        ({"domain": torch.tensor([0, 1], dtype=torch.uint8)}, "3 blocks but domain labels"),
        ({"tokens": torch.zeros(0, 4, dtype=torch.uint16)}, "at least one block"),
        ({"tokens": torch.zeros(3, 4)}, "whole numbers"),
    ],
)
def test_wrong_content_gives_one_sentence(tmp_path, changes, sentence):
    path = raw_file(tmp_path / "t.safetensors", **changes)
    with pytest.raises(InputError, match=sentence) as caught:
        read_text(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_missing_or_damaged_file_gives_one_sentence(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_text(tmp_path / "none.safetensors")
    whole = (DATA / "tokens.safetensors").read_bytes()
    for name, content in (
        ("empty", b""),
        ("short", whole[:5000]),
        ("cut", whole[:-1]),
        ("noise", bytes(range(256)) * 40),
    ):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        with pytest.raises(InputError, match="not a readable safetensors file"):
            read_text(path)


def test_a_pointer_of_git_lfs_is_said_to_be_one(tmp_path):
    path = tmp_path / "t.safetensors"
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n")
    with pytest.raises(InputError, match="is a pointer of git-lfs"):
        read_text(path)


def test_half_a_surrogate_in_a_name_is_replaced(tmp_path):
    path = raw_file(tmp_path / "t.safetensors", domains='["cut \\ud83d", "b"]')
    assert read_text(path).domains == ("cut \ufffd", "b")


def test_shipped_text():
    text = read_text(DATA / "tokens.safetensors")
    assert text.context == 256 and text.tokens.numel() >= 3_000_000
    assert len(text.domains) >= 11 and {"scripture (de)", "scripture (fr)", "scripture (es)"} <= set(text.domains)
    assert text.tokenizer_sha256 == file_sha256(DATA / "tokenizer" / "tokenizer.json")
    assert text.vocab_size == 8192 and bool((text.tokens[:, 0] == text.bos_id).all())
    # any prefix is a sample of all domains
    whole = text.domain.bincount() / len(text.domain)
    start = text.take(500_000).domain.bincount(minlength=len(whole)) / len(text.take(500_000).domain)
    assert float((whole - start).abs().max()) < 0.02


@given(st.integers(1, 3000), st.integers(2, 3000))
def test_blocks_with_labels_are_spread_in_pairs_of_an_even_and_an_odd_one(blocks, count):
    chosen = label_blocks(blocks, count)
    if count >= blocks:
        assert chosen.tolist() == [*range(blocks)]
        return
    assert (chosen.diff() > 0).all() and 0 <= chosen[0] and chosen[-1] < blocks
    assert count - STRETCH < len(chosen) <= count and len(chosen) % 2 == 0
    assert (chosen % 2 == torch.arange(len(chosen)) % 2).all()
    if count >= 32:
        assert len(torch.unique(chosen * 16 // blocks)) > 8, "from more than half of the text's sixteenths"


def test_evenly_spaced_blocks_come_in_stretches():
    assert evenly_spaced(7, 9, 2).tolist() == [*range(7)]
    assert evenly_spaced(16, 6, 2).tolist() == [0, 1, 8, 9, 14, 15]
    chosen = evenly_spaced(1000, 100, 2)
    assert len(chosen) == 100 == len(set(chosen.tolist())) and (chosen % 2).sum() == 50 and chosen.max() > 980
    assert evenly_spaced(10, 4).tolist() == [0, 3, 6, 9]
