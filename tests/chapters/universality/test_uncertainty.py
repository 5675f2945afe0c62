"""Correlations on text that did not choose the partner, and their errors, against plain models' activations."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import activations, tables_of

from lib.chapters.universality import captions, uncertainty
from lib.collect.planner import FIRST
from lib.collect.statistics import load_followed
from lib.run import with_universal

pytestmark = pytest.mark.usefixtures("without_grouped_moments")

BLOCKS, PARTS, BATCH = 128, 16, 8  # blocks of the text and of a batch


@pytest.fixture
def run(make_run, seed_folders):
    return make_run(seed_folders, token_budget=BLOCKS * 256)


def test_parts_and_their_errors_equal_those_of_plain_activations(run, seed_folders):
    made = tables_of(run)
    followed = load_followed(run)
    of_block = np.repeat(np.arange(BLOCKS), run.text.counted().sum(1))
    late = np.array([block for block in range(BLOCKS) if block % FIRST]).reshape(-1, BATCH)
    part_of = np.arange(len(late)) * PARTS // len(late)  # of whole batches, as even as they can be
    blocks = [late[part_of == part] for part in range(PARTS)]
    flat = {name: activations(folder, BLOCKS) for name, folder in seed_folders.items()}
    of_part = {name: [values[np.isin(of_block, own)] for own in blocks] for name, values in flat.items()}
    assert followed.tokens.tolist() == [len(part) for part in of_part["a"]]
    used = [part for part in range(PARTS) if len(of_part["a"][part])]
    count = len(used)
    found = uncertainty.sampled(followed, "a", ["b", "c"], run.params.random_seed)
    drawn = np.random.default_rng(run.params.random_seed).multinomial(
        count, np.full(count, 1 / count), size=uncertainty.DRAWS
    )
    held_out, moved, early = 0, 0, 0
    for name in "bc":
        allowed = np.full([flat["a"].shape[1], flat[name].shape[1]], -np.inf)
        allowed[tuple(followed.pairs["a", name].numpy())] = 0

        def correlations(counts, name=name):
            own, other = (
                np.concatenate([of_part[seed][part] for part, n in zip(used, counts, strict=True) for _ in range(n)])
                for seed in ("a", name)
            )
            return np.corrcoef(own.T, other.T)[: own.shape[1], own.shape[1] :]

        choosing = np.arange(count) < uncertainty.CHOOSING
        first = correlations(choosing.astype(int)) + allowed
        everyone = np.arange(len(first))
        held_out = held_out + correlations((~choosing).astype(int))[everyone, first.argmax(1)] / 2
        whole = correlations(np.ones(count, dtype=int)) + allowed
        chosen = everyone, whole.argmax(1)
        moved = moved + np.stack([correlations(counts)[chosen] - whole[chosen] for counts in drawn[:3]]) / 2
        quarter = correlations(np.isin(used, range(PARTS // 4)).astype(int)) + allowed
        early = early + quarter.max(1) / 2
    np.testing.assert_allclose(found.held_out_corr, held_out, atol=1e-5)
    np.testing.assert_allclose(found.moved[:3], moved, atol=1e-5)
    own = made["sampling"].query("seed == 'a'")
    np.testing.assert_allclose(own["held_out_corr"], held_out, atol=1e-5)
    np.testing.assert_allclose(own["excess_se"], found.moved.std(0), atol=1e-7)
    assert (own["held_out_corr"].mean() < run.neurons["mean_corr"].mean()) and own["excess_se"].between(1e-4, 0.1).all()
    tokens = sorted(made["convergence"]["tokens"].unique())
    assert len(tokens) == 5 and tokens[-1] == run.done["tokens_counted"]
    at_quarter = made["convergence"].query("seed == 'a' and tokens == @tokens[2]")
    np.testing.assert_allclose(at_quarter["mean_corr"], early, atol=1e-5)
    np.testing.assert_allclose(at_quarter["baseline"], run.neurons["mean_baseline"], atol=1e-12)


def test_intervals_hold_the_share_and_widen_with_the_errors():
    moved = torch.randn(uncertainty.DRAWS, 2000, generator=torch.Generator().manual_seed(0))
    excess = np.linspace(0, 1, 2000)
    narrow, wide = (
        uncertainty.Sampled(torch.zeros(2000), scale * moved).share_interval(excess, 0.5) for scale in (0.01, 0.1)
    )
    assert 0.48 < wide[0] < narrow[0] <= 0.5 <= narrow[1] < wide[1] < 0.52
    assert uncertainty.Sampled(torch.zeros(2000), 0 * moved).share_interval(excess, 0.5) == (0.5, 0.5)
    # few are above and many just below: noise on top of noise lifts too many over the threshold, which is taken off
    thin = -np.log(np.linspace(1, 1 / 2000, 2000))
    share = float((thin > 3).mean())
    low, high = uncertainty.Sampled(torch.zeros(2000), 0.5 * moved).share_interval(thin, 3)
    assert 0 < low < share and share <= high < share + (share - low) / 2


def test_the_table_of_intervals_and_its_sentence(run):
    made = tables_of(run)
    everyone = made["neurons_all_seeds"]
    rows = uncertainty.share_intervals(run, with_universal(everyone, 0.0), 0.0)
    assert rows["seed"].tolist() == ["a", "b", "c"] and (rows["low"] <= rows["high"]).all()
    assert (rows["share"] - (everyone["excess_corr"] > 0).groupby(everyone["seed"]).mean().to_numpy()).abs().max() == 0
    text = captions.sampling(made["sampling"].query("seed == 'a'"), run.neurons, 0.0).text
    assert "standard error" in text and "95 % interval" in captions.share_by_reference(made["references"], rows).text


def test_a_run_with_too_little_text_says_so(make_run, seed_folders):
    run = make_run(seed_folders)
    made = tables_of(run)
    assert uncertainty.share_intervals(run, made["neurons_all_seeds"], 0.5) is None
    assert list(made["sampling"].columns) == ["seed", "layer", "neuron", "held_out_corr", "excess_se"] and not len(
        made["sampling"]
    )
    assert "no parts" in captions.sampling(made["sampling"], run.neurons, 0.5).text
    assert isinstance(captions.share_by_reference(made["references"], None).text, str) and isinstance(
        made["sampling"], pd.DataFrame
    )
