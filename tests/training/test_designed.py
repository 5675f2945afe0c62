"""The designed seeds: what each pair shares, the text in fewer tokens, and a small training run from end to end."""

import json
from collections import Counter
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer
from transformers import GPT2LMHeadModel

from lib.base.params import ROOT
from lib.chapters.universality import designed as measured
from lib.text.blocks import read_text
from lib.training import designed
from lib.training.gpt2 import Shape
from lib.training.trainer import Machine, Recipe, block_order


def test_every_pair_of_models_is_one_of_five_relations():
    pairs = combinations([design.name for design in designed.DESIGNS], 2)
    found = Counter(measured.relation(*pair) for pair in pairs)
    assert [found[name] for name in measured.RELATIONS] == [3, 4, 7, 6, 8]


def test_a_text_in_fewer_tokens_is_what_the_smaller_tokeniser_makes_of_it():
    own = json.loads((ROOT / "data" / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))
    whole = Tokenizer.from_str(json.dumps(own))
    small = Tokenizer.from_str(json.dumps(designed.smaller_tokenizer(own, 1024)))
    assert small.get_vocab_size() == 1024
    text = read_text(ROOT / "data" / "tokens.safetensors").take(40 * 256)
    made = designed.in_fewer_tokens(text, own, 1024, "")
    assert made.vocab_size == 1024 and made.tokens.max() < 1024 and set(made.newline_ids) <= set(text.newline_ids)
    for before, after in zip(text.tokens.tolist(), made.tokens.tolist(), strict=True):
        words = whole.decode(before[1:], skip_special_tokens=False)
        if "<|endoftext|>" in words or "\ufffd" in words:
            continue
        expected = small.encode(words, add_special_tokens=False).ids
        assert after[0] == text.bos_id and after[1:-8] == expected[: len(after) - 9]  # its last word may be cut


def test_parts_have_no_block_in_common_and_each_is_read_once():
    blocks = torch.arange(4 * designed.RECIPE.batch)[:, None]
    first, second = (designed.part_of(blocks, part, 2) for part in (0, 1))
    assert len(first) == len(second) == 2 * designed.RECIPE.batch
    assert not set(first.flatten().tolist()) & set(second.flatten().tolist())
    assert sorted(block_order(len(first), 1, 0)) == list(range(len(first)))


def test_models_of_one_initialisation_start_alike_and_end_apart(tmp_path, monkeypatch):
    shape = Shape(vocab_size=4096, context=256, n_layer=1, d_model=16, n_head=2, d_mlp=8)
    monkeypatch.setattr(designed, "RECIPE", Recipe(batch=2, warmup_steps=2, shape=shape))
    paths = {"train": ROOT / "data" / "tokens.safetensors", "held_out": ROOT / "data" / "tokens.safetensors"}
    monkeypatch.setattr(designed, "read_text", lambda path: read_text(path).take(16 * 256))
    texts = designed.prepare(paths | {"tokenizer": ROOT / "data" / "tokenizer"}, tmp_path)
    machine, models = Machine("cpu", torch.float32, compiled=False, threads=1), {}
    for design in (designed.Design(0, 0, 0), designed.Design(0, 0, 1), designed.Design(1, 0, 0)):
        designed.train_one(design, texts["train"], tmp_path, 5, machine)
        for stage in measured.STAGES:
            model = GPT2LMHeadModel.from_pretrained(tmp_path / stage / design.name, dtype=torch.float32)
            models[design, stage] = model.transformer.wte.weight.detach().flatten()
            assert (tmp_path / stage / design.name / "tokenizer.json").exists()
    same, other, apart = (
        np.corrcoef(models[one, "constant"], models[two, "constant"])[0, 1]
        for one, two in combinations(dict.fromkeys(design for design, _ in models), 2)
    )
    assert 0.5 < same < 0.9999 and abs(other) < 0.5 and abs(apart) < 0.5
    assert not torch.equal(models[designed.Design(0, 0, 0), "constant"], models[designed.Design(0, 0, 0), "decayed"])


def test_shares_by_pair_against_a_plain_loop():
    random, rows = np.random.default_rng(0), []
    names = [design.name for design in designed.DESIGNS[:3]]
    for seed, model in [(a, b) for a in names for b in names if a != b]:
        for neuron in range(40):
            corr, baseline = random.uniform(0, 1), random.uniform(0, 0.4)
            rows.append((seed, model, 0, neuron, 0, random.choice([neuron, 7]), corr, baseline))
    columns = ["seed", "model", "layer", "neuron", "match_layer", "match_neuron", "corr", "baseline"]
    matches = pd.DataFrame(rows, columns=columns)
    table = measured.pair_table(matches).set_index(["seed", "model"])
    for (seed, model), own in matches.groupby(["seed", "model"]):
        excess = [row.corr - row.baseline for row in own.itertuples()]
        adjusted = [(row.corr - row.baseline) / (1 - row.baseline) for row in own.itertuples()]
        above = [row for row, one in zip(own.itertuples(), excess, strict=True) if one > 0.5]
        expected = {
            "share": len(above) / 40,
            "adjusted_share": sum(one > 0.5 for one in adjusted) / 40,
            "mean_excess": sum(excess) / 40,
            "mean_adjusted": sum(adjusted) / 40,
            "same_index": sum(row.neuron == row.match_neuron for row in own.itertuples()) / 40,
            "same_index_universal": sum(row.neuron == row.match_neuron for row in above) / len(above),
        }
        assert table.loc[(seed, model), list(expected)].astype(float).to_dict() == pytest.approx(expected)
        assert table.loc[(seed, model), "relation"] == measured.relation(seed, model)
    by_relation = measured.over_pairs(table.reset_index().assign(stage="constant"), "share")
    assert by_relation["pairs"].tolist() == [2, 1] or by_relation["pairs"].sum() == 3
