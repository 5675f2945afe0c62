"""The tables of a run agree with one another, with their documented columns, and with a plain computation."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import activations, followed_blocks
from scipy import stats
from transformers import GPT2LMHeadModel

from lib.base.errors import InputError
from lib.base.files import file_sha256
from lib.base.params import write_params
from lib.cache import REPORTS, refuse_other_statistics
from lib.chapters.universality.tables import assignments, open_run, parameter_path, tabulate
from lib.collect.passes import collect
from lib.collect.statistics import load_followed
from tests.base.test_params import is_sentence

pytestmark = pytest.mark.usefixtures("without_grouped_moments")

NEURON_COLUMNS = (
    "layer neuron max_corr mean_corr min_corr max_baseline min_baseline mean_baseline excess_corr w_in_norm input_bias "
    "w_out_norm in_out_sim l2_penalty mean var skew kurt vocab_mean vocab_var vocab_skew vocab_kurt sparsity"
).split()
MATCH_COLUMNS = ["layer", "neuron", "model", "match_layer", "match_neuron", "corr", "baseline", "mutual"]


@pytest.fixture
def run(make_run, seed_folders):
    run = make_run(seed_folders, reference="b")
    collect(run)
    tabulate(run)
    return run


def test_columns_are_the_published_ones(run):
    neurons = pd.read_parquet(run.folder / "tables" / "neurons.parquet")
    assert set(NEURON_COLUMNS) <= set(neurons.columns) and len(neurons) == 2 * 48
    matches = pd.read_parquet(run.folder / "tables" / "matches.parquet")
    assert list(matches.columns) == MATCH_COLUMNS and set(matches["model"]) == {"a", "c"}
    pd.testing.assert_frame_equal(neurons, run.neurons.drop(columns="is_universal"))
    pd.testing.assert_frame_equal(matches, run.matches)


def test_neurons_summarise_matches(run):
    by_neuron = run.matches.groupby(["layer", "neuron"])
    neurons = run.neurons.set_index(["layer", "neuron"])
    for column, kind in (("corr", "corr"), ("baseline", "baseline")):
        for how in ("max", "mean", "min"):
            want = by_neuron[column].agg(how)
            np.testing.assert_allclose(neurons[f"{how}_{kind}"], want.loc[neurons.index], atol=1e-12)
    apart = neurons["mean_corr"] - neurons["mean_baseline"]
    np.testing.assert_allclose(neurons["excess_corr"], apart, atol=1e-12)
    np.testing.assert_allclose(neurons["adjusted_excess"], apart / (1 - neurons["mean_baseline"]), atol=1e-12)
    np.testing.assert_allclose(neurons["worst_excess"], neurons["min_corr"] - neurons["max_baseline"], atol=1e-12)


def test_compared_seeds_passed_are_counted_at_the_threshold_of_the_reader(run):
    stored = pd.read_parquet(run.folder / "tables" / "neurons_all_seeds.parquet")
    for threshold in (run.params.threshold, 0.0):
        run.params = run.params.model_copy(update={"threshold": threshold})
        matches = run.table("matches_all_seeds")
        matches["passes"] = matches["corr"] - matches["baseline"] > threshold
        want = matches.groupby(["seed", "layer", "neuron"])["passes"].sum()
        read = run.table("neurons_all_seeds").set_index(["seed", "layer", "neuron"])["k_of_m"]
        assert read.equals(want.loc[read.index].rename("k_of_m"))
    assert {*read} == {0, 1, 2} and not stored["k_of_m"].equals(read.reset_index(drop=True))


def test_properties_equal_scipy_on_the_plain_model(run, seed_folders):
    model = GPT2LMHeadModel.from_pretrained(seed_folders["b"], dtype=torch.float32).eval()
    for layer, block in enumerate(model.transformer.h):
        seen = []
        handle = block.mlp.act.register_forward_hook(lambda _m, inputs, _o, seen=seen: seen.append(inputs[0]))
        with torch.no_grad():
            model(run.text.tokens)
        handle.remove()
        pre = seen[0][run.text.counted()].double().numpy()
        own = run.neurons[run.neurons["layer"] == layer]
        np.testing.assert_allclose(own["mean"], pre.mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(own["var"], pre.var(0), rtol=1e-4)
        np.testing.assert_allclose(own["skew"], stats.skew(pre), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(own["kurt"], stats.kurtosis(pre, fisher=False), rtol=1e-3)
        np.testing.assert_allclose(own["sparsity"], (pre > 0).mean(0), atol=1e-3)


def test_other_tables_agree(run):
    text = run.table("text")
    assert text["counted"].sum() == run.done["tokens_counted"] == int(run.text.counted().sum())
    draws = run.table("baseline_draws").query("seed == 'b'").groupby(["layer", "neuron"])["baseline"].mean()
    np.testing.assert_allclose(draws, run.neurons.set_index(["layer", "neuron"])["mean_baseline"], atol=1e-12)
    convergence = run.table("convergence")
    last = convergence[(convergence["tokens"] == convergence["tokens"].max()) & (convergence["seed"] == "b")]
    np.testing.assert_allclose(last["excess_corr"], run.neurons["excess_corr"], atol=1e-12)
    assert convergence["tokens"].nunique() >= 2 and convergence["tokens"].max() == run.done["tokens_counted"]
    outsiders = run.table("outsiders")
    assert len(outsiders) == 6 and (outsiders["neurons"] == 2 * 48).all() and not outsiders["outsiders"].any()
    references = run.table("references").set_index("seed")
    assert references.loc["b", "universal"] == (run.neurons["excess_corr"] > run.params.threshold).sum()
    losses = run.table("losses")
    assert set(losses["seed"]) == {"a", "b", "c"} and losses["loss"].between(0, 100).all()


def test_convergence_on_half_of_the_text_is_that_of_half_of_the_followed_tokens(run, seed_folders):
    """15 blocks after the first part are two batches; half of them is the first, of 8 blocks."""
    half = run.table("convergence").query("seed == 'b' and tokens < tokens.max()").drop_duplicates(["layer", "neuron"])
    flat = {name: activations(folder, followed_blocks(20)[:8]) for name, folder in seed_folders.items()}
    best = []
    for (a, b), (left, right) in load_followed(run).pairs.items():
        if "b" in (a, b):
            corr = np.full((96, 96), -np.inf)
            corr[left, right] = np.corrcoef(flat[a].T, flat[b].T)[:96, 96:][left, right]
            best.append(corr.max(1 if a == "b" else 0))
    np.testing.assert_allclose(half["mean_corr"], np.mean(best, 0), atol=1e-6)
    assert set(half["tokens"]) == {len(flat["a"])}
    np.testing.assert_allclose(half["excess_corr"], half["mean_corr"] - half["baseline"], atol=1e-12)


def refused(*_):
    raise AssertionError("measured again")


def test_another_threshold_changes_the_references_only(make_run, seed_folders, run, monkeypatch):
    monkeypatch.setattr("lib.chapters.universality.tables.compare", refused)
    strict = run.table("references")
    again = make_run(seed_folders, reference="b", threshold=0.0)
    tabulate(again)
    assert again.table("references")["universal"].sum() > strict["universal"].sum()
    of_threshold = ["is_universal", "k_of_m"]
    pd.testing.assert_frame_equal(*(one.neurons.drop(columns=of_threshold) for one in (again, run)))
    assert again.neurons["is_universal"].sum() > run.neurons["is_universal"].sum()
    other = make_run(seed_folders, reference="c")
    tabulate(other)
    neurons = pd.read_parquet(run.folder / "tables" / "neurons.parquet")
    pd.testing.assert_frame_equal(neurons, other.neurons.drop(columns="is_universal"))
    assert set(assignments(other)["model"]) == {"a", "b"}


def files(run) -> dict[Path, str]:
    return {path: file_sha256(path) for path in run.folder.rglob("*") if path.is_file()}


def test_a_live_session_writes_nothing_into_a_run_that_is_there(run, monkeypatch, tmp_path):
    monkeypatch.setattr("lib.chapters.universality.tables.compare", refused)
    write_params(run.params, run.folder / "params.yaml")
    (run.folder / "figures").mkdir()
    (run.folder / "figures" / "one.png").touch()
    before = files(run)
    live = open_run(run.folder / "params.yaml", reference="c", threshold=0.25)
    assignments(live)
    (live.folder / "figures").mkdir()  # not the run's
    assert files(run) == before and live.folder != run.folder
    assert set(live.matches["model"]) == {"a", "b"} and live.table("references")["seed"].tolist() == ["a", "b", "c"]
    again = open_run(run.folder / "params.yaml", reference="c", threshold=0.25)
    monkeypatch.setattr("lib.chapters.universality.tables.assignment_table", refused)  # kept for the session
    assert len(assignments(again)) and again.folder == live.folder
    monkeypatch.setenv(REPORTS, "1")
    assert open_run(run.folder / "params.yaml", reference="c").folder == run.folder and files(run) != before


def test_a_parameter_file_is_found_from_any_folder_of_the_repository(tmp_path, monkeypatch):
    monkeypatch.setattr("lib.chapters.universality.tables.ROOT", tmp_path)
    made = tmp_path / "outputs" / "mine" / "params.yaml"
    made.parent.mkdir(parents=True)
    (tmp_path / "notebooks").mkdir()
    made.touch()
    monkeypatch.chdir(made.parent)
    for given in ("params.yaml", "outputs/mine/params.yaml", "../outputs/mine/params.yaml", made):
        assert parameter_path(given).samefile(made)
    with pytest.raises(InputError) as error:
        parameter_path("outputs/none/params.yaml")
    assert "make report RUN=none" in str(error.value) and is_sentence(str(error.value))


def test_another_reference_of_a_run_with_matches_of_one_names_the_command(make_run, seed_folders):
    one = make_run(seed_folders, compare="reference")
    collect(one)
    with pytest.raises(InputError) as error:
        refuse_other_statistics(make_run(seed_folders, compare="reference", reference="b").params, None)
    assert "make report RUN=test-b SEED=b PARAMS=outputs/test/params.yaml" in str(error.value)
    assert is_sentence(str(error.value))
