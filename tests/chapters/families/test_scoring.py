"""Families: planted neurons land in theirs, a random one in none; scores and information against plain formulas."""

import numpy as np
import pytest
import torch
from conftest import TEXT, TOKENIZER
from transformers import AutoTokenizer

from lib.base.files import file_sha256
from lib.base.params import ROOT
from lib.chapters.families import scoring
from lib.collect.grouped_tables import grouped_tables
from lib.kernels.correlation import haar_rotation
from lib.kernels.grouped import GroupedMoments, Places
from lib.labels.labels import Grouping, groupings, label_sets
from lib.labels.syntax import stored_syntax, syntax_labels
from lib.text.blocks import read_text

BLOCKS, NEURONS = 400, 48
PLANTED = {  # label that the neuron answers to: family it must land in
    "word “the”": "unigram",
    "first letter q": "alphabet",
    "previous: comma": "previous_token",
    "position < 10": "position",
    "language: German": "context",
    "plural noun": "syntax",
}


@pytest.fixture(scope="module")
def world():
    """(groupings, label sets, counted mask, tables) of the first blocks of the shipped text."""
    whole = read_text(TEXT)
    text = whole.take(BLOCKS * whole.context)
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    signatures = stored_syntax(ROOT / "data" / "linguistics.parquet", file_sha256(TEXT))
    made = groupings(text, tokenizer)
    made["linguistics"] = Grouping("linguistics", signatures.groups, signatures.ids[:BLOCKS])
    sets = [*label_sets(text, tokenizer), syntax_labels(signatures.groups)]
    return made, sets, text.counted(), grouped_tables(made, sets, text)


def planted_activations(world, noise: float) -> torch.Tensor:
    """(blocks, context, neurons): one neuron per planted label, the rest noise; the last neuron never changes."""
    made, sets, counted, _ = world
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(*counted.shape, NEURONS, generator=generator) * noise
    v[..., -1] = 0.5
    for neuron, label in enumerate(PLANTED):
        one = next(one for one in sets if label in set(one.labels["label"]))
        member = torch.tensor(np.append(one.member[one.labels["label"].tolist().index(label)], False))  # −1 is the last
        v[..., neuron] += member[made[one.grouping].ids.long()]
    return v


def statistics_of(world, v: torch.Tensor) -> list:
    made, _, counted, tables = world
    places = Places({name: one.ids for name, one in made.items()}, tables)
    work = GroupedMoments(places.layout, torch.tensor([[0.0], [1.0]]).expand(2, NEURONS))
    for start in range(0, BLOCKS, 16):
        blocks = torch.arange(start, start + 16)
        work.update(v[blocks].flatten(0, 1), places.at(blocks, counted[blocks].flatten()))
    return [work.compact()]


@pytest.fixture(scope="module")
def scored(world):
    v = planted_activations(world, 0.005)
    statistics, rotated = statistics_of(world, v), statistics_of(world, v @ haar_rotation(NEURONS, 0, 0).float().T)
    return (
        statistics,
        scoring.score_labels(statistics, world[1]),
        scoring.seed_families(statistics, rotated, world[1]),
    )


def test_planted_neurons_land_in_their_families_and_a_random_one_in_none(scored):
    table, _ = scored[2]
    for neuron, (label, family) in enumerate(PLANTED.items()):
        row = table.iloc[neuron]
        assert (row["family"], row["label"]) == (family, label) and row["score"] > 0.95, row
        assert row["difference"] > 0 and abs(row["gap"]) < 0.02
    rest = table.iloc[len(PLANTED) :]
    assert (rest["family"] == scoring.UNEXPLAINED).all() and (rest["score"] < 0.01).all()
    assert rest.iloc[-1]["score"] == 0  # the neuron that never changes
    assert table.loc[3, "position_information"] == table["position_information"].max() > 0.01
    assert (table["runner_up_family"] != table["best_family"]).all()


def test_scores_agree_with_the_formula_on_every_token(world, scored):
    """Against the score on tokens in fp64, for labels of every grouping and both halves."""
    made, sets, counted, _ = world
    statistics, own, _ = scored
    v = planted_activations(world, 0.005).double()
    half = (torch.arange(BLOCKS) % 2)[:, None].expand(counted.shape)
    start = 0
    for one in sets:
        ids = made[one.grouping].ids.long()
        tokens = statistics[0][f"{one.table}.count"].min(0).values
        for index in torch.argsort(tokens, descending=True)[[0, len(tokens) // 3]].tolist():
            for which in (0, 1):
                keep = counted & (half == which)
                y = torch.tensor(np.append(one.member[index], False))[ids[keep]]  # −1 is the last: not known is 0
                x = v[keep][:, :8]
                expected = 1 - (
                    y.float().mean() * x[y].var(0, correction=0) + (~y).float().mean() * x[~y].var(0, correction=0)
                ) / x.var(0, correction=0)
                measured = own.value[which, start + index, :8]
                if y.sum() < scoring.FEWEST_TOKENS or (~y).sum() < scoring.FEWEST_TOKENS:
                    assert (measured == 0).all()
                else:
                    assert (measured - expected).abs().max() < 1e-5, (one.labels["label"][index], which)
        start += len(one.labels)


def test_chance_is_what_most_rotated_neurons_of_the_layer_score(scored):
    table, levels = scored[2]
    assert 0.05 < levels.loc[0, "chance"] < 0.9 and (table["chance"] == levels.loc[0, "chance"]).all()
    assert levels.loc[0, "median"] < levels.loc[0, "chance"] < levels.loc[0, "largest"]


def test_position_information_equals_the_plain_sum():
    generator = np.random.default_rng(0)
    count = generator.integers(50, 100, (2, 6))
    share = generator.uniform(0.05, 0.95, (2, 6))
    active = np.round(count * share)
    statistics = {"position.count": torch.tensor(count), "position.active": torch.tensor(active / count)[:, :, None]}
    joint = np.stack([active.sum(0), (count - active).sum(0)]) / count.sum()  # (fires or not, position)
    independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    expected = (joint * np.log2(joint / independent)).sum() - 5 / (2 * np.log(2) * count.sum())
    assert scoring.position_information(statistics) == pytest.approx([expected])
