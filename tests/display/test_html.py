"""Example views: the right tokens, marked and shaded, readable and escaped."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from bs4 import BeautifulSoup
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lib.display.html import Examples, gallery_html, neuron_table_html
from lib.text.tokens import BYTE_OF_LETTER, token_text

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())


@pytest.fixture(scope="module")
def tokenizer():
    """Every byte is one token, so a non-ASCII character takes several."""
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(LETTERS)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture
def examples(tokenizer):
    """Two neurons over the text "ab <x>\\nyz": neuron 0 fires on "<", neuron 1 has no example."""
    tokens = torch.tensor([tokenizer("ab <x>\nyz")["input_ids"]])
    text = SimpleNamespace(tokens=tokens, domain=torch.tensor([0]), domains=("C & C++",))
    window = np.full((1, 2, 2, 5), np.nan, np.float16)
    window[0, 0, 0] = [-0.1, 0.0, 2.0, 1.0, np.nan]  # around position 3: "b", " ", "<", "x", ">"
    window[0, 0, 1] = [np.nan, np.nan, 0.5, 0.0, 0.0]  # around position 0
    arrays = {
        "a.value": np.array([[[2.0, 0.5], [-np.inf, -np.inf]]], np.float32),
        "a.block": np.array([[[0, 0], [-1, -1]]], np.int32),
        "a.position": np.array([[[3, 0], [-1, -1]]], np.int16),
        "a.window": window,
    }
    return Examples(arrays, "a", text, tokenizer)


def test_the_byte_table_is_the_tokenisers(tokenizer):
    assert sorted(BYTE_OF_LETTER) == LETTERS and sorted(BYTE_OF_LETTER.values()) == list(range(256))


def test_tokens_are_readable(tokenizer):
    def shown(text):
        return [token_text(tokenizer, token) for token in tokenizer(text)["input_ids"]]

    assert shown("a\n\t b") == ["a", "⏎", "⇥", " ", "b"]
    assert shown("é") == ["⟨C3⟩", "⟨A9⟩"]
    assert shown("\x00\x17") == ["⟨00⟩", "⟨17⟩"]


def test_the_example_shows_its_window_with_the_token_underlined_and_shaded(examples):
    soup = BeautifulSoup(examples.html(0, 0), "html.parser")
    first, second = soup.select(".neuron-text")
    assert first.small.text == "2.00 · C & C++"
    assert first.text.removeprefix(first.small.text).strip() == "b <x>"
    strong, weak = first.select("[class^=s]")  # underlined where there is no style sheet, and not
    assert (strong.name, strong["class"], strong.text) == ("u", ["s9"], "<")
    assert (weak.name, weak["class"], weak.text) == ("span", ["s4"], "x")
    assert first.b.text == "<"
    assert second.text.removeprefix(second.small.text).strip() == "ab"  # the window ends at the block's start
    assert second.span["class"] == ["s2"] and second.b.text == "a"


def test_text_from_the_corpus_is_escaped(examples):
    assert "<x>" not in examples.html(0, 0).replace("<u", "").replace("<b", "") and "C &amp; C++" in examples.html(0, 0)


def test_the_limit_and_a_neuron_without_example(examples):
    assert examples.html(0, 0, limit=1).count("<div") == 1
    assert "no example" in examples.html(0, 1)


def test_the_table_sorts_by_ranks_and_opens_to_examples(examples):
    chosen = pd.DataFrame(
        {"layer": [0, 0, 0], "neuron": [1, 0, 1], "skew": [0.25, 0.125, np.nan], "kurt": [3.0, 4.0, 5.0]}
    )
    html = neuron_table_html(examples, chosen, ["skew", "kurt"])
    soup = BeautifulSoup(html, "html.parser")
    assert "<script" not in html and "onclick" not in html  # exported pages forbid scripts
    heads = soup.select("table > thead > tr > th")
    assert [head.text.strip() for head in heads] == ["layer", "neuron", "skew", "kurt"]
    assert [head.input.has_attr("checked") for head in heads] == [False, False, True, False]
    assert len({head.input["name"] for head in heads}) == 1
    for index, head in enumerate(heads):
        assert f":has(#{head.input['id']}:checked) .neuron{{order:var(--r{index})}}" in html
    rows = soup.select("table > tbody.neuron")
    assert [row["style"] for row in rows] == [
        "--r0:1;--r1:2;--r2:1;--r3:3",
        "--r0:2;--r1:1;--r2:2;--r3:2",
        "--r0:3;--r1:3;--r2:4;--r3:1",
    ]
    assert [cell.text for cell in rows[0].tr.select("td")] == ["0", "1", "0.250", "3.000"]
    assert rows[1].summary.text.startswith("2.00 · C & C++") and len(rows[1].select("details > .neuron-text")) == 1
    other = BeautifulSoup(neuron_table_html(examples, chosen.head(2), ["skew"]), "html.parser")
    assert other.input.find_next("input")["name"] != heads[0].input["name"]


def test_no_neuron_to_show_and_a_gallery(examples):
    chosen = pd.DataFrame({"layer": [0, 0], "neuron": [1, 0], "skew": [0.25, 0.125]})
    assert "No neuron to show" in neuron_table_html(examples, chosen.head(0), ["skew"])
    assert gallery_html(examples, chosen).count("<h4>") == 2
