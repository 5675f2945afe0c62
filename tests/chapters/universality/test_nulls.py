"""Nulls: the table against plain NumPy on the models' own activations, and planted cases in which the nulls differ."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import save_seed, small_model, tables_of
from small_models import save_small_model
from transformers import AutoModelForCausalLM

from lib.chapters.universality import null_tables, nulls, nulls_figures
from lib.chapters.universality.null_bases import layer_nulls, partner_correlations, standardised
from lib.chapters.universality.null_tables import KEY, sampled_neurons
from lib.display.claims import Evidence
from lib.kernels.correlation import haar_rotation
from lib.run import with_universal

COLUMNS = ["corr", "raw", "zscored", "activation", "partner", "domain", "position"]
TOKENS = 4_000


def gelu(x: np.ndarray) -> np.ndarray:
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def z_scored(values: np.ndarray) -> np.ndarray:
    return (values - values.mean(0)) / values.std(0)


def largest(x: np.ndarray, y: np.ndarray) -> float:
    """The largest correlation of one column with the columns of another array."""
    return float((z_scored(y).T @ z_scored(x)).max() / len(x))


def plain_activations(folder, tokens: torch.Tensor, counted: torch.Tensor) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each layer's pre-activations and activations of the plain model in fp64, (counted tokens, neurons)."""
    model, seen = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval(), []
    for block in model.transformer.h:
        block.mlp.act.register_forward_hook(
            lambda _m, inputs, output: seen.append((inputs[0][counted].numpy(), output[counted].numpy()))
        )
    with torch.no_grad():
        model(tokens)
    return seen


def expected(x: np.ndarray, layers: list, partner: np.ndarray, groups: dict[str, np.ndarray]) -> dict[str, float]:
    """One neuron's row by the definitions, token by token."""
    found = {"corr": max(largest(x, post) for _, post in layers)}
    turn = haar_rotation(layers[0][0].shape[1], 0, null_tables.ROTATION_DRAW).numpy()
    found["raw"] = max(largest(x, post @ turn.T) for _, post in layers)
    found["zscored"] = max(largest(x, z_scored(post) @ turn.T) for _, post in layers)
    found["activation"] = max(largest(x, gelu(z_scored(pre @ turn.T) * pre.std(0) + pre.mean(0))) for pre, _ in layers)
    found["partner"] = np.corrcoef(x, partner)[0, 1]
    for name, group in groups.items():
        rest = [values - pd.Series(values).groupby(group).transform("mean").to_numpy() for values in (x, partner)]
        found[name] = np.corrcoef(*rest)[0, 1]
    return found


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three small seeds, of which c has another shape."""
    root = tmp_path_factory.mktemp("nulls")
    shapes = {"a": {}, "b": {}, "c": {"layers": 3, "neurons": 40}}
    return {name: save_seed(small_model(i, **shape), root / name) for i, (name, shape) in enumerate(shapes.items())}


@pytest.mark.parametrize("precision, tolerance", [("fp64", 1e-4), ("bf16", 0.02)])
def test_the_table_equals_plain_numpy_on_every_token(
    make_run, folders, without_grouped_moments, monkeypatch, precision, tolerance
):
    monkeypatch.setattr(null_tables, "DRAWN", {True: 9, False: 3})
    monkeypatch.setattr(null_tables, "MAX_TOKENS", 7 * 256 + 1)  # of 20 blocks
    monkeypatch.setattr(null_tables, "HELD_BYTES", 1)  # each layer in a run of its own
    monkeypatch.setattr(null_tables, "BATCH_TOKENS", 3 * 256)
    run = make_run(folders, precision=precision)
    tables_of(run)
    table = null_tables.null_table(run)
    blocks = np.linspace(0, 19, 7).round().astype(int)
    tokens, counted = run.text.tokens[blocks], run.text.counted(blocks)
    assert (table["tokens"] == counted.sum().item()).all() and not table.isna().any(axis=None)
    groups = {
        "domain": run.text.domain[blocks][:, None].expand_as(tokens)[counted].numpy(),
        "position": torch.arange(256).expand_as(tokens)[counted].numpy(),
    }
    seen = {name: plain_activations(folder, tokens, counted) for name, folder in folders.items()}
    for row in table.sample(24, random_state=0).itertuples():
        x, partner = (
            seen[seed][layer][1][:, neuron]
            for seed, layer, neuron in (
                (row.seed, row.layer, row.neuron),
                (row.model, row.match_layer, row.match_neuron),
            )
        )
        wanted = expected(x, seen[row.model], partner, groups)
        assert {name: getattr(row, name) for name in wanted} == pytest.approx(wanted, abs=tolerance), row
    before = (run.folder / "tables" / "nulls.parquet").stat().st_mtime_ns
    monkeypatch.setattr(null_tables, "load_model", None)  # kept: no model from here on
    assert null_tables.null_table(run).equals(table)
    assert (run.folder / "tables" / "nulls.parquet").stat().st_mtime_ns == before


# ---------------------------------------------------------------- planted cases


def planted(values: np.ndarray, x: np.ndarray, act) -> dict[str, np.ndarray]:
    """`layer_nulls` of columns x and one layer's pre-activations, in fp64."""
    turn = haar_rotation(values.shape[1], 0, 0)
    found = layer_nulls(standardised(torch.tensor(x)), torch.tensor(values), act, turn)
    return {name: corr.numpy() for name, corr in found.items()}


def test_a_loud_neuron_decides_the_raw_null_and_not_the_others():
    """Its activation is in every rotated one unless all have the same variance; scaling moves only the raw null."""
    random = np.random.default_rng(0)
    values = random.normal(size=(TOKENS, 60))
    x = values[:, :2] + 0.1 * random.normal(size=(TOKENS, 2))
    quiet = planted(values, x, None)
    loud = planted(values * np.where(np.arange(60) == 0, 100, 1), x, None)
    assert loud["corr"] == pytest.approx(quiet["corr"]) and loud["zscored"] == pytest.approx(quiet["zscored"])
    assert (loud["zscored"] < 0.6).all() and loud["raw"][0] > 0.97 and quiet["raw"][0] < 0.6
    assert loud["raw"][1] < 0.6  # a match with a neuron that is not loud


def test_a_seed_rotated_before_the_nonlinearity_is_found_by_the_activation_null_only():
    """Its neurons are rotated pre-activations of a's: no neuron matches, and the null that rotates back does."""
    random, turn = np.random.default_rng(1), haar_rotation(60, 0, 0).numpy()
    pre = 2 * random.normal(size=(TOKENS, 60)) - 1
    found = planted((pre + 1) @ turn - 1, gelu(pre)[:, :8], torch.nn.GELU(approximate="tanh"))
    assert (found["activation"] > 0.99).all()  # the rotation back, with the mean and variance that all neurons have
    assert (found["corr"] < 0.8).all() and (found["raw"] < 0.95).all()
    same = planted(pre, gelu(pre)[:, :8], torch.nn.GELU(approximate="tanh"))  # the neuron basis itself
    assert (same["corr"] > 0.999).all() and (same["activation"] < 0.7).all()


def test_a_neuron_that_does_not_vary_matches_nothing():
    values = np.random.default_rng(2).normal(size=(TOKENS, 20))
    values[:, 3] = 0.7
    found = planted(values, np.full((TOKENS, 1), 0.3), torch.nn.GELU(approximate="tanh"))
    assert all(np.abs(corr).max() == 0 for corr in found.values())
    assert all(np.isfinite(corr).all() for corr in planted(values, values[:, :4], torch.nn.GELU()).values())


def test_neurons_of_domains_or_positions_only_keep_no_match_within_them():
    random = np.random.default_rng(3)
    domain, position = random.integers(0, 5, TOKENS), np.arange(TOKENS) % 50
    shared = random.normal(size=TOKENS)
    signals = np.stack([random.normal(size=5)[domain], np.sin(position / 8), shared], axis=1)
    signals = z_scored(signals)
    x, y = (signals + 0.3 * random.normal(size=signals.shape) for _ in range(2))
    pair = [standardised(torch.tensor(values)) for values in (x, y)]
    groups = {"domain": domain, "position": position}
    found = partner_correlations(*pair, {name: torch.tensor(group) for name, group in groups.items()})
    assert (found["partner"] > 0.9).all()
    assert abs(found["domain"][0]) < 0.1 and found["domain"][1] > 0.9 and found["domain"][2] > 0.9
    assert abs(found["position"][1]) < 0.1 and found["position"][0] > 0.9 and found["position"][2] > 0.9
    for name, group in groups.items():
        rest = [values - pd.DataFrame(values).groupby(group).transform("mean").to_numpy() for values in (x, y)]
        wanted = [np.corrcoef(*(values[:, column] for values in rest))[0, 1] for column in range(3)]
        assert found[name].tolist() == pytest.approx(wanted)


# ---------------------------------------------------------------- the sample, and what the table says


def made_up(seeds: str = "abc", gated: bool = False) -> pd.DataFrame:
    """A table of random numbers: 4 added neurons of the first seed, 12 drawn ones of every seed."""
    random, rows = np.random.default_rng(4), []
    for seed in seeds:
        for number in range(16 if seed == seeds[0] else 12):
            drawn = number < 12
            for model in "abc".replace(seed, ""):
                raw = random.uniform(0.1, 0.3)
                corr = raw + (random.uniform(0, 0.4) if drawn else 0.6)
                rows.append((seed, number % 3, number, drawn, 5.0 + number % 3 if drawn else 1.0, model, corr, raw))
    table = pd.DataFrame(rows, columns=[*KEY, "sampled", "weight", "model", "corr", "raw"])
    table = table.assign(zscored=table["raw"] - 0.02, activation=table["raw"] + 0.1, partner=table["corr"], tokens=999)
    table["domain"], table["position"] = table["corr"] - 0.5 * (table["neuron"] == 12), table["corr"] - 0.01
    return table.drop(columns="activation") if gated else table


def test_the_sample_has_all_of_largest_excess_and_weights_that_add_up():
    random = np.random.default_rng(5)
    index = pd.MultiIndex.from_product([list("ab"), range(3), range(400)], names=KEY).to_frame(index=False)
    neurons = with_universal(index.assign(excess_corr=random.uniform(-0.1, 0.52, len(index))), 0.5)
    chosen = sampled_neurons(neurons, "b", 0)
    assert chosen.groupby("seed")["weight"].sum().to_dict() == pytest.approx({"a": 1200, "b": 1200})
    own = neurons[neurons["seed"] == "b"]
    top = own.nlargest(60, "excess_corr") if own["is_universal"].sum() < 60 else own[own["is_universal"]]
    added = chosen[~chosen["sampled"]]
    assert {*map(tuple, added[KEY].to_numpy())} == {*map(tuple, top[KEY].to_numpy())}
    assert (added["seed"] == "b").all() and (added["weight"] == 1).all() and not chosen.duplicated(KEY).any()
    assert chosen[chosen["sampled"]].groupby(["seed", "layer"]).size().tolist() == [40] * 3 + [100] * 3
    assert sampled_neurons(neurons, "b", 0).equals(chosen) and not sampled_neurons(neurons, "b", 1).equals(chosen)


def test_shares_and_means_count_each_neuron_by_its_weight():
    table = made_up()
    rows = nulls.by_neuron(table[table["seed"] == "a"])
    repeated = rows.loc[rows.index.repeat(rows["weight"].astype(int)), "excess_zscored"].to_numpy()
    thresholds = [-1, 0.1, float(rows["excess_zscored"].iloc[3]), 0.5, 2]
    wanted = [(repeated > at).mean() for at in thresholds]
    assert nulls.shares_above(rows["excess_zscored"], rows["weight"], thresholds) == pytest.approx(wanted)
    for null in nulls.NULLS:
        found = nulls.mean_excess(table, null)
        for seed, own in table.groupby("seed"):
            assert found[seed] == pytest.approx(np.average(own["corr"] - own[null], weights=own["weight"]))


def test_the_measure_leaves_a_seed_out_as_reference_and_as_compared():
    table = made_up()
    effects = nulls.activation_null(Evidence({"nulls": table}, "a", 0.5))
    assert effects.values.to_dict() == pytest.approx(nulls.mean_excess(table, "activation").to_dict())
    for seed in "abc":
        rest = table.query("seed != @seed and model != @seed")
        means = [np.average(own["corr"] - own["activation"], weights=own["weight"]) for _, own in rest.groupby("seed")]
        assert effects.left_out[seed] == pytest.approx(np.mean(means))
    assert "tokens" in effects.details
    assert nulls.activation_null(Evidence({"nulls": made_up(gated=True)}, "a", 0.5)).values.empty


@pytest.mark.parametrize("universal", [12, 99], ids=["universal", "no universal"])
@pytest.mark.parametrize("table", [made_up(), made_up(gated=True), made_up("a")])
def test_the_figure_draws_and_its_sentences_are_computed(table, universal):
    nulls_figures.nulls_figure(table, "a", 0.5).draw_without_rendering()
    own, left = table[table["seed"] == "a"], nulls.survival(table)
    neurons = own.drop_duplicates(KEY)[KEY[1:]].assign(is_universal=lambda rows: rows["neuron"] >= universal)
    caption, sentence = nulls.caption(table, neurons, "a", 0.55), nulls.survival_sentence(table)
    means = {null: nulls.mean_excess(table, null).mean() for null in nulls.known(table)}
    assert f"{means['raw']:.3f}" in caption.title and f"{means.get('activation', means['raw']):.3f}" in caption.title
    assert "nan" not in caption.text and caption.text.endswith(".")
    assert len(caption.title) <= 130 and sentence.endswith(".")
    assert f"{100 * left.get('activation', left['zscored']):.0f} %" in sentence
    assert ("nonlinearity" in sentence) == ("activation" in table) == ("gated" not in caption.text)
    chosen = nulls.by_neuron(own).query("neuron >= 12")
    match = chosen[["partner", *nulls.WITHIN]].mean()
    words = f"mean match is **{match['domain']:.2f}** instead of {match['partner']:.2f}, within positions "
    assert (words + f"{match['position']:.2f}." in caption.text) == (universal == 12)
    passed = (chosen["excess_activation"] > 0.55).sum() if "activation" in table else None
    passing = f"Of 4 universal neurons, **{passed}** then stay above 0.55"
    assert (passing in caption.text) == (universal == 12 and "activation" in table)


def test_the_nulls_title_has_the_interval_over_seeds_only_where_there_are_several():
    def title(table: pd.DataFrame) -> str:
        neurons = table[table["seed"] == "a"].drop_duplicates(KEY)[KEY[1:]].assign(is_universal=False)
        return nulls.caption(table, neurons, "a", 0.5).title

    assert " to " in title(made_up()) and " to " not in title(made_up("a"))


def test_gated_models_have_no_activation_null(make_run, tmp_path, without_grouped_moments):
    folders = {name: save_small_model("llama", number, tmp_path / name) for number, name in enumerate("ab")}
    run = make_run(folders, token_budget=8 * 256)
    tables_of(run)
    table = null_tables.null_table(run)
    assert "activation" not in table and not table.isna().any(axis=None)
    matches = run.table("matches_all_seeds").set_index([*KEY, "model"])
    found = table.set_index([*KEY, "model"])
    both = matches.loc[found.index]
    np.testing.assert_allclose(found["corr"], both["corr"], atol=1e-4)  # all tokens, so those of the run
    np.testing.assert_allclose(found["partner"], both["corr"], atol=1e-4)
