"""Correlations on text that did not choose the partner, and their errors, against plain models' activations."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import PRODUCTS, activations, tables_of

from lib.chapters.universality import captions, uncertainty
from lib.chapters.universality import captions_activations as activation_captions
from lib.collect.planner import Reading
from lib.collect.statistics import load_followed
from lib.run import with_universal

pytestmark = pytest.mark.usefixtures("without_grouped_moments")

BLOCKS, BATCH = 88, 8


@pytest.fixture
def run(make_run, seed_folders):
    return make_run(seed_folders, token_budget=BLOCKS * 256)


@pytest.mark.parametrize("products", ["rows", "sketch"])
def test_parts_and_their_errors_equal_those_of_plain_activations(make_run, seed_folders, products):
    run = make_run(seed_folders, token_budget=BLOCKS * 256, **PRODUCTS[products])
    made, followed, reading = tables_of(run), load_followed(run), Reading.of(BLOCKS, BATCH)
    late = reading.batches[reading.first :]
    count = len(late)  # each batch is a part
    of_part = {name: [activations(folder, own) for own in late] for name, folder in seed_folders.items()}
    assert followed.tokens[followed.tokens > 0].tolist() == [len(own) for own in of_part["a"]]
    one = np.zeros((1, 96))  # a single rotation has no error
    found = uncertainty.sampled(followed, "a", ("b", "c"), run.params.random_seed, one)
    drawn = np.random.default_rng(run.params.random_seed).multinomial(
        count, np.full(count, 1 / count), size=uncertainty.DRAWS
    )
    ones = np.ones(count, dtype=int)
    early = np.where(np.arange(count) < uncertainty.CHOOSING, 1, 0)
    held_out, moved = 0, 0
    for name in "bc":

        def repeated(counts, name=name):
            return (
                np.concatenate([part for part, n in zip(of_part[seed], counts, strict=True) for _ in range(n)])
                for seed in ("a", name)
            )

        def correlations(counts, partner, repeated=repeated):
            own, other = repeated(counts)
            other = other[:, partner]
            own, other = own - own.mean(0), other - other.mean(0)
            return (own * other).mean(0) / np.sqrt((own**2).mean(0) * (other**2).mean(0))

        pairs = tuple(followed.pairs["a", name].numpy())

        def best(counts, repeated=repeated, pairs=pairs):
            own, other = repeated(counts)
            corr = np.full((96, 96), -np.inf)
            corr[pairs] = np.corrcoef(own.T, other.T)[:96, 96:][pairs]
            return corr.argmax(1)

        held_out = held_out + correlations(ones - early, best(early)) / 2
        whole = correlations(ones, best(ones))
        moved = moved + np.stack([correlations(counts, best(ones)) - whole for counts in drawn[:3]]) / 2
    np.testing.assert_allclose(found.held_out_corr, held_out, atol=1e-5)
    np.testing.assert_allclose(found.moved[:3], moved, atol=1e-5)
    assert found.draw_error.isnan().all() and found.error.equal(found.text_error)
    own = made["sampling"].query("seed == 'a'")
    np.testing.assert_allclose(own["held_out_corr"], held_out, atol=1e-5)
    rotations = made["baseline_draws"].query("seed == 'a'")["baseline"].to_numpy().reshape(-1, 96)
    by_draws = rotations.std(0, ddof=1) / np.sqrt(len(rotations))
    assert len(rotations) > 1 and by_draws.max() > 1e-3
    np.testing.assert_allclose(own["draw_se"], by_draws, atol=1e-7)
    np.testing.assert_allclose(own["excess_se"], np.hypot(found.moved.std(0).numpy(), by_draws), atol=1e-7)
    assert (own["held_out_corr"].mean() < run.neurons["mean_corr"].mean()) and own["excess_se"].between(1e-4, 0.1).all()


def sampled_of(moved: torch.Tensor) -> uncertainty.Sampled:
    nothing = torch.zeros(moved.shape[1])
    return uncertainty.Sampled(nothing, nothing, nothing, moved)


def interval(moved: torch.Tensor, excess, threshold: float) -> tuple[float, float]:
    """The interval of the share above one threshold."""
    return tuple(sampled_of(moved).share_intervals(excess, [threshold])[["low", "high"]].iloc[0])


def test_intervals_hold_the_share_and_widen_with_the_errors():
    moved = torch.randn(uncertainty.DRAWS, 2000, generator=torch.Generator().manual_seed(0))
    excess = np.linspace(0, 1, 2000)
    narrow, wide = (interval(scale * moved, excess, 0.5) for scale in (0.01, 0.1))
    assert 0.48 < wide[0] < narrow[0] <= 0.5 <= narrow[1] < wide[1] < 0.52
    assert interval(0 * moved, excess, 0.5) == pytest.approx((0.5, 0.5))
    for low, high in (interval(moved, excess, bound) for bound in (-9, 9)):  # all above, none above
        assert 0 <= low <= high <= 1


def test_an_interval_leaves_its_point_out_where_noise_has_lifted_the_share():
    """True shares fall as e^−x; noise of one unit multiplies those above any bound by √e, and the bootstrap again."""
    random = np.random.default_rng(0)
    true = random.exponential(size=40_000)
    seen = true + random.normal(size=40_000)
    moved = torch.from_numpy(random.normal(size=(uncertainty.DRAWS, 40_000))).float()
    low, high = interval(moved, seen, 4)
    assert 0.9 * low < (true > 4).mean() < 1.1 * high and high < (seen > 4).mean()


def test_rotations_drawn_again_move_the_mean_by_its_standard_error():
    random = np.random.default_rng(0)
    common, own = random.normal(size=(6, 1)), random.normal(size=(6, 30))
    moved = uncertainty._mean_moved(common + 0.1 * own, random)
    error = uncertainty.draw_error(common + 0.1 * own)
    np.testing.assert_allclose(error, (common + 0.1 * own).std(0, ddof=1) / np.sqrt(6))
    np.testing.assert_allclose(moved.std(0), error, rtol=0.15)
    assert np.corrcoef(moved.T)[0, 1:].min() > 0.9  # a rotation moves all neurons together
    assert not uncertainty._mean_moved(own[:1], random).any() and np.isnan(uncertainty.draw_error(own[:1])).all()


def test_the_table_of_intervals_and_its_sentence(run):
    made = tables_of(run)
    everyone = made["neurons_all_seeds"]
    rows = uncertainty.share_intervals(run, with_universal(everyone, 0.0), 0.0)
    assert rows["seed"].tolist() == ["a", "b", "c"] and (rows["low"] <= rows["high"]).all()
    assert (rows["share"] - (everyone["excess_corr"] > 0).groupby(everyone["seed"]).mean().to_numpy()).abs().max() == 0
    kept = made["share_intervals"]  # those that are computed for a threshold which is not kept
    direct = uncertainty.interval_table(run, everyone, np.array([0.0, 0.25]))
    shown = kept[kept["threshold"].isin([0.0, 0.25])].reset_index(drop=True)
    pd.testing.assert_frame_equal(shown, direct[list(shown)])
    assert len(uncertainty.share_intervals(run, with_universal(everyone, 0.12345), 0.12345)) == 3
    text = activation_captions.sampling(made["sampling"].query("seed == 'a'"), run.neurons, 0.0).text
    assert "standard error" in text and "black line" in captions.share_by_reference(made["references"], "a", rows).text


def test_a_run_with_too_little_text_says_so(make_run, seed_folders):
    run = make_run(seed_folders)
    made = tables_of(run)
    assert uncertainty.share_intervals(run, made["neurons_all_seeds"], 0.5) is None
    assert list(made["sampling"].columns) == [
        "seed",
        "layer",
        "neuron",
        "held_out_corr",
        "draw_se",
        "excess_se",
    ] and not len(made["sampling"])
    assert "no parts" in activation_captions.sampling(made["sampling"], run.neurons, 0.5).text
    assert isinstance(captions.share_by_reference(made["references"], None).text, str) and isinstance(
        made["sampling"], pd.DataFrame
    )
