"""Function without text against scipy and plain NumPy, and on a model in another basis, where it finds everything."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import permuted, save_seed, tables_of
from rotated import rotated
from scipy.linalg import orthogonal_procrustes
from small_models import crfm_model, save_small_model

from lib.chapters.same_function import captions_map, figures_map
from lib.chapters.same_function import residual_map as function_without_text
from lib.chapters.same_function.residual_map import (
    Space,
    asked_of,
    by_layer,
    exchanged,
    hits,
    nearest_in_norm,
    ranks,
    residual_map,
    side_by_side,
    space,
    token_map,
)
from lib.display.claims import Evidence
from lib.run import with_universal

NEURONS, LAYERS = 48, 2


def spaces() -> tuple[Space, Space]:
    random = torch.Generator().manual_seed(0)

    def drawn(*size):
        return torch.randn(*size, generator=random, dtype=torch.float64)

    return tuple(
        Space(3 + drawn(60, 8), 5 * drawn(60, 8), drawn(60) > -1, drawn(LAYERS * NEURONS, 2, 8)) for _ in range(2)
    )


def test_the_map_is_that_of_scipy():
    a, b = spaces()
    both = (a.learned & b.learned).numpy()
    assert 0 < both.sum() < 60

    def stacked(own: Space) -> np.ndarray:
        parts = [rows.numpy()[both] - rows.numpy()[both].mean(0) for rows in (own.embedding, own.unembedding)]
        return np.concatenate([rows / np.linalg.norm(rows) for rows in parts])

    expected, _ = orthogonal_procrustes(stacked(a), stacked(b))
    np.testing.assert_allclose(token_map(a, b), expected, atol=1e-6)


def test_ranks_count_by_the_sum_of_both_cosines():
    a, b = spaces()
    turn, random = token_map(a, b), np.random.default_rng(1)
    targets = random.integers(0, len(b.neurons), (len(a.neurons), 3))
    found = ranks(side_by_side(a.neurons @ turn), side_by_side(b.neurons), torch.from_numpy(targets)).numpy()
    for row in range(0, len(a.neurons), 7):
        total = np.zeros(len(b.neurons))
        for part in range(2):
            x, y = a.neurons[row, part].numpy() @ turn.numpy(), b.neurons[:, part].numpy()
            total += y @ x / np.linalg.norm(y, axis=1) / np.linalg.norm(x)
        order = np.argsort(-total)
        assert found[row].tolist() == [int(np.flatnonzero(order == one)[0]) + 1 for one in targets[row]]
    constant = torch.ones(4, 3)
    assert ranks(constant, constant, torch.zeros(4, 1, dtype=torch.long)).unique().tolist() == [4]


def test_controls_keep_the_layer():
    _, b = spaces()
    layer, partner = np.repeat([0, 1, 2], [30, 30, 1]), np.arange(61) * 3
    made = exchanged(layer, partner, np.random.default_rng(0))
    for one in range(3):
        assert sorted(made[layer == one]) == sorted(partner[layer == one])
    assert (made == partner).sum() == 1  # of the neuron that is alone in its layer
    near, norms = nearest_in_norm(b.neurons, LAYERS), b.neurons.norm(dim=-1).numpy()
    for row in (0, 5, 47, 48, 95):
        own = np.arange(NEURONS) + row // NEURONS * NEURONS
        distance = (((norms[own] - norms[row]) / norms[own].std(0)) ** 2).sum(1)
        distance[own == row] = np.inf
        assert near[row] == own[distance.argmin()]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Seed b is a in another residual basis, with its neurons in another order; c is another untrained model."""
    root, model = tmp_path_factory.mktemp("rotated"), crfm_model(0)  # its gains and biases are not 1 and 0
    copy, turn = rotated(model, 7)
    copy, _ = permuted(copy, 3)
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        torch.testing.assert_close(copy(tokens).logits, model(tokens).logits, atol=1e-3, rtol=1e-3)
    made = {"a": model, "b": copy, "c": crfm_model(9)}
    return {name: save_seed(one, root / name) for name, one in made.items()}, turn, (model, copy)


def test_a_model_in_another_basis_is_found_and_an_untrained_one_is_not(folders, make_run, without_grouped_moments):
    paths, turn, models = folders
    own, other = (space(one, [b"x"] * 8192) for one in models)
    there = own.neurons.double() @ turn  # folded and centred, so that the all-ones direction is in none
    torch.testing.assert_close(own.neurons.double() @ token_map(own, other), there, atol=1e-3, rtol=1e-3)
    run = make_run(paths, token_budget=12 * 256)
    tables_of(run)
    table = residual_map(run)
    planted = table["seed"].isin(["a", "b"]) & table["model"].isin(["a", "b"])
    copies, rest = hits(table[planted]), hits(table[~planted])
    live = copies["corr"] > 0.999  # all that fire
    assert live.mean() > 0.9 and copies.loc[live, "top1"].mean() >= 0.99
    assert max(copies["exchanged_top1"].mean(), copies["matched_top1"].mean()) < 0.05
    total = LAYERS * NEURONS
    chance = 1 / np.arange(1, total + 1)
    assert (table["candidates"] == total).all()
    for name in ("reciprocal", "exchanged_reciprocal", "matched_reciprocal"):
        error = chance.std() / np.sqrt(len(rest))
        assert abs(rest[name].mean() - chance.mean()) < 5 * error
    layers = by_layer(table)
    assert layers["neurons"].sum() == table["sampled"].sum() == len(table)
    first = table.query("seed == 'a' and model == 'b' and layer == 0")
    assert layers.query("seed == 'a' and model == 'b' and layer == 0")["top1"].item() == (first["rank"] == 1).mean()
    assert residual_map(run).equals(table)


def test_gated_neurons_are_ranked_by_w_out_alone(make_run, tmp_path, without_grouped_moments):
    paths = {name: save_small_model("llama", number, tmp_path / name) for number, name in enumerate("ab")}
    run = make_run(paths, token_budget=4 * 256)
    tables_of(run)
    table = residual_map(run)
    assert table["rank"].between(1, table["candidates"]).all() and not table.isna().any(axis=None)


def made_up(universal: int = 20) -> pd.DataFrame:
    """Ranks of the 40 neurons of three seeds in the two others."""
    random, rows = np.random.default_rng(3), []
    for seed in "abc":
        for neuron in range(40):
            for model in sorted({*"abc"} - {seed}):
                own = {"seed": seed, "layer": neuron % 4, "neuron": neuron, "model": model, "candidates": 160}
                own |= {"rank": random.integers(1, 3), "exchanged": 9, "matched": random.integers(1, 40)}
                own |= {"sampled": True, "excess_corr": 0.9 if neuron < universal else 0.0, "corr": random.uniform()}
                rows.append(own)
    return with_universal(pd.DataFrame(rows), 0.5)


def test_measures_are_means_by_seed_and_without_each_seed():
    table = made_up()
    effects = captions_map.finds_partner(Evidence({"residual_map": table}, "a", 0.5))
    own = table[table["is_universal"]]
    for seed, rows in own.groupby("seed"):
        assert effects.values[seed] == (rows["rank"] == 1).mean()
        rest = own.query("seed != @seed and model != @seed")
        wanted = np.mean([(part["rank"] == 1).mean() for _, part in rest.groupby("seed")])
        assert effects.left_out[seed] == pytest.approx(wanted)
    other = captions_map.beats_matched(Evidence({"residual_map": table}, "a", 0.5)).values
    rows = table[table["seed"] == "a"]
    assert other["a"] == pytest.approx((1 / rows["rank"]).mean() - (1 / rows["matched"]).mean())
    assert captions_map.finds_partner(Evidence({"residual_map": made_up(9)}, "a", 0.5)).values.isna().all()


@pytest.mark.parametrize("universal", [0, 9, 20])
def test_the_figure_draws_and_its_sentences_are_computed(universal):
    table = made_up(universal)
    figures_map.residual_map(table, "a").draw_without_rendering()
    caption = captions_map.caption(table, "a")
    share = f"{100 * (table['rank'] == 1).mean():.1f} %"
    assert share in caption.text and "nan" not in caption.text and "undefined" not in "".join(caption)
    assert ("Of the universal neurons" in caption.text) == (universal == 20) and caption.text.endswith(".")
    assert len(caption.title) <= 130


def test_universal_neurons_of_all_references_are_asked(monkeypatch):
    monkeypatch.setattr(function_without_text, "DRAWN", {True: 80, False: 8})
    index = pd.MultiIndex.from_product([list("ab"), range(4), range(20)], names=["seed", "layer", "neuron"])
    neurons = with_universal(index.to_frame(index=False).assign(excess_corr=lambda own: own["neuron"] / 30), 0.6)
    matches = neurons.assign(model="c", match_layer=0, match_neuron=0, corr=np.where(neurons["neuron"] == 3, 0, 0.5))
    asked = asked_of(neurons, matches, "a", 0)
    assert asked.groupby("seed")["sampled"].sum().loc["a"] == 76  # all that have a match
    assert (asked.query("seed == 'b' and sampled").groupby("layer").size() <= 2).all()
    assert (asked.query("seed == 'b'")["excess_corr"] > 0.6).sum() == 4 and not asked.duplicated(index.names).any()
