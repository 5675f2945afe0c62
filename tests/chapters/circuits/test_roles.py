"""Roles and token classes against fp64 NumPy and planted neurons."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import processed_model, save_seed, small_model
from scipy import stats
from transformers import GPT2LMHeadModel

from lib.base.files import write_json
from lib.base.hub import seed_source
from lib.base.tensors import write_tensors
from lib.chapters.circuits import roles, tables
from lib.chapters.circuits.next_token import GROUPING
from lib.chapters.interventions.tables import write_circuits
from lib.collect.grouped_tables import grouped_tables, record_labels
from lib.kernels.grouped import GroupedMoments, Places
from lib.labels import labels
from lib.labels.labels import LabelSet
from lib.models.trunk import Trunk, load_model

pytestmark = pytest.mark.usefixtures("without_grouped_moments")

TOKENS, WIDTH = 600, 48


@pytest.fixture(scope="module")
def weights():
    """Random writing weights of 2 × 40 neurons and a random unembedding with columns of length 1, both centred."""
    generator = torch.Generator().manual_seed(0)
    unembedding = torch.randn(WIDTH, TOKENS, generator=generator)
    unembedding = unembedding - unembedding.mean(0)
    w_out = [torch.randn(40, WIDTH, generator=generator) for _ in range(2)]
    return [layer - layer.mean(1, keepdim=True) for layer in w_out], torch.nn.functional.normalize(unembedding, dim=0)


@pytest.fixture(scope="module")
def classes():
    generator = np.random.default_rng(0)
    member = generator.random((5, TOKENS)) < np.array([0.5, 0.2, 0.05, 0.01, 0.3])[:, None]
    labels = pd.DataFrame({"label": list("vwxyz"), "family": "made up", "kind": "made up"})
    return LabelSet("token", labels, member)


def test_class_scores_equal_variance_reduction_by_hand(weights, classes):
    w_out, unembedding = weights[0][0], weights[1]
    unit = w_out.double().numpy() / np.linalg.norm(w_out.double().numpy(), axis=1, keepdims=True)
    cosine = unit @ unembedding.double().numpy()  # (neurons, vocabulary)
    contrasts = roles.class_contrasts(unembedding, classes.member)
    found = roles.class_scores(w_out, contrasts, torch.from_numpy(cosine.var(1)).float())
    for label, member in enumerate(classes.member):
        inside, outside = cosine[:, member], cosine[:, ~member]
        within = member.mean() * inside.var(1) + (1 - member.mean()) * outside.var(1)
        np.testing.assert_allclose(found.score[:, label], 1 - within / cosine.var(1), atol=1e-5)
        np.testing.assert_allclose(found.effect[:, label], inside.mean(1) - outside.mean(1), atol=1e-5)


def test_empty_class_full_class_and_zero_neuron_score_zero(weights):
    member = np.stack([np.zeros(TOKENS, bool), np.ones(TOKENS, bool), np.arange(TOKENS) < 9])
    w_out = torch.cat([weights[0][0][:1], torch.zeros(1, WIDTH)])
    found = roles.class_scores(w_out, roles.class_contrasts(weights[1], member), torch.tensor([0.1, 0.0]))
    assert found.score[0, :2].tolist() == [0, 0] and found.score[0, 2] > 0
    assert found.score[1].tolist() == found.effect[1].tolist() == [0, 0, 0]


def planted(weights, classes, sign: int) -> pd.DataFrame:
    """The table with neuron 7 of layer 1 writing ±an unembedding direction and neuron 3 of layer 0 ±a class's mean."""
    w_out, unembedding = [layer.clone() for layer in weights[0]], weights[1]
    w_out[1][7] = sign * 5 * unembedding[:, 123]
    shared = unembedding[:, classes.member[2]].mean(1)
    w_out[0][3] = sign * shared
    return tables.seed_roles(w_out, unembedding, classes, 0)


def test_planted_neurons_are_found_with_the_role_of_their_sign(weights, classes):
    for sign, role in ((1, "prediction"), (-1, "suppression")):
        table = planted(weights, classes, sign)
        first = roles.neurons_of_role(table, role).nlargest(1, "vocab_kurt").iloc[0]
        assert (first["layer"], first["neuron"]) == (1, 7) and first["role_learned"] == role
        assert (table["role_learned"] == role).sum() <= 3
        mean = table[(table["layer"] == 0) & (table["neuron"] == 3)].iloc[0]
        assert mean["label"] == "x" and mean["label_score"] == table["label_score"].max()
        assert mean["raised" if sign > 0 else "lowered"] == "x"


def test_negated_weights_swap_prediction_and_suppression_only(weights, classes):
    table = tables.seed_roles(*weights, classes, 0)
    turned = tables.seed_roles([-layer for layer in weights[0]], weights[1], classes, 0)
    swap = {"prediction": "suppression", "suppression": "prediction"}
    for column in ("role_published", "role_learned", "role_calibrated"):
        assert turned[column].tolist() == table[column].replace(swap).tolist()
    assert turned["raised"].tolist() == table["lowered"].tolist() and turned["label"].equals(table["label"])
    np.testing.assert_allclose(turned["raised_score"], table["lowered_score"], atol=1e-6)
    np.testing.assert_allclose(turned["vocab_skew"], -table["vocab_skew"], atol=1e-5)


def test_few_random_directions_have_a_role_or_a_class(weights, classes):
    generator = torch.Generator().manual_seed(9)
    w_out = torch.randn(4000, WIDTH, generator=generator)
    table = tables.seed_roles([w_out - w_out.mean(1, keepdim=True)], weights[1], classes, 0)
    assert (table["learned_kurt"] > table["null_kurt"]).mean() < 0.004
    assert (table["learned_var"] > table["null_var"]).mean() < 0.004
    assert table["label"].notna().mean() < 0.004
    assert table["role_published"].nunique() < 3  # a published cut that random directions pass is possible, both is not


def test_cuts_are_strict_and_kurtosis_precedes_variance():
    table = pd.DataFrame(
        {
            "vocab_kurt": [10.1, 10.1, 10.0, 3.0, 3.0, 10.1, np.nan],
            "vocab_skew": [0.5, -0.5, 0.5, 0.0, 0.0, 0.5, np.nan],
            "vocab_var": [0.001, 0.001, 0.001, 0.006, 0.005, 0.9, 0.0],
        }
    )
    want = ["prediction", "suppression", "none", "partition", "none", "prediction", "none"]
    assert roles.roles(table, roles.PUBLISHED_CUTS).tolist() == want


def test_layer_quantiles_and_counts_by_hand():
    table = pd.DataFrame(
        {
            "seed": ["a"] * 3 + ["b"] * 3,
            "layer": 0,
            "vocab_kurt": [1.0, 2, 3, 5, 6, 7],
            "role_calibrated": ["prediction", "none", "none", "prediction", "prediction", "partition"],
        }
    )
    row = roles.layer_quantiles(table, "vocab_kurt", [0.5]).iloc[0]
    assert (row["mean"], row["low"], row["high"]) == (4, 2, 6)
    counts = roles.role_counts(table, "role_calibrated")
    assert counts.to_dict("list") == {
        "seed": ["a", "b"],
        "layer": [0, 0],
        "prediction": [1, 2],
        "suppression": [0, 0],
        "partition": [0, 1],
    }


@pytest.fixture
def run(make_run, tmp_path):
    """Two seeds whose digits share a direction, which neuron 5 of the last layer writes in a and takes away in b."""
    folders = {}
    for index, (name, sign) in enumerate((("a", 1), ("b", -1))):
        model = small_model(index)
        folder = save_seed(model, tmp_path / name)
        run = make_run({"a": folder, "b": tmp_path}, run=name)
        digits = tables.label_set(run)
        member = torch.from_numpy(digits.member[digits.labels["label"].tolist().index("digits")])
        with torch.no_grad():
            shared = torch.randn(32, generator=torch.Generator().manual_seed(5))
            model.transformer.wte.weight[member] += shared
            direction = shared - shared.mean()
            model.transformer.h[1].mlp.c_proj.weight[5] = sign * 4 * direction
        shutil.rmtree(folder)
        folders[name] = save_seed(model, folder)
    run = make_run(folders)
    done = {"seed_hashes": {"a": "0", "b": "1"}, "references": ["a", "b"], "layers": 2}
    write_json(run.folder / "stats" / "done.json", done)
    for name, folder in folders.items():
        write_next_token_moments(run, name, folder)
    return run


def write_next_token_moments(run, seed, folder):
    """A seed's activations by labels of the next token alone, as its pass leaves them."""
    text, following = run.text, labels.groupings(run.text, run.tokenizer)[GROUPING]
    sets = [one for one in labels.label_sets(text, run.tokenizer) if one.grouping == GROUPING]
    record_labels(run, sets, {GROUPING: following}, begun=False)
    places = Places({GROUPING: following.ids}, grouped_tables({GROUPING: following}, sets, text))
    counted, scaling = text.counted(), torch.stack([torch.zeros(48), torch.ones(48)])
    moments = [GroupedMoments(places.layout, scaling) for _ in range(2)]
    for blocks in torch.arange(len(text.tokens)).split(8):
        flat = counted[blocks].flatten()

        def visit(layer, _pre, post, blocks=blocks, flat=flat):
            moments[layer].update(post.flatten(0, 1), places.at(blocks, flat))

        Trunk(load_model(folder)).run(text.tokens[blocks], visit)
    for layer, own in enumerate(moments):
        write_tensors(run.folder / "stats" / f"grouped-{seed}.{layer}.safetensors", own.compact())


def test_tables_of_a_run_find_planted_neurons_and_are_made_once(run, monkeypatch):
    monkeypatch.setattr(roles, "NULL_DIRECTIONS", 1000)
    table = tables.role_table(run)
    assert list(table["seed"].unique()) == ["a", "b"] and len(table) == 2 * 2 * 48
    for seed, role, side in (("a", "prediction", "raised"), ("b", "suppression", "lowered")):
        first = roles.neurons_of_role(table[table["seed"] == seed], role).nlargest(1, "vocab_kurt").iloc[0]
        assert (first["layer"], first["neuron"], first[side]) == (1, 5, "digits")
    split = tables.next_token_effects(run, table)
    row = split[(split["seed"] == "b") & (split["role"] == "suppression") & (split["neuron"] == 5)].iloc[0]
    assert row["label"] == "digits" and {"effect", "p_corrected", "percentile"} <= set(split)
    assert (split["p_corrected"] >= split["p_value"])[split["p_value"].notna()].all() and split["p_value"].notna().any()
    assert row["count_in"] + row["count_out"] == int(run.text.counted()[:, :-1].sum())
    written = (run.folder / "tables" / "roles.parquet").stat().st_mtime_ns
    monkeypatch.setattr(tables, "seed_roles", None)  # would fail if it were made again
    pd.testing.assert_frame_equal(tables.role_table(run), table)
    assert (run.folder / "tables" / "roles.parquet").stat().st_mtime_ns == written
    write_json(run.folder / "stats" / "done.json", run.done | {"seed_hashes": {"a": "another", "b": "1"}})
    del run.done
    weights = table[["seed", "layer", "neuron"]].assign(norm=1.0)
    effects = pd.DataFrame({"seed": ["a", "b"], "layer": [1, 0], "neuron": [5, 3], "loss": [0.25, 0.5]})
    circuits = write_circuits(run, table, weights, effects)
    assert len(circuits) == len(table) and circuits["loss"].notna().sum() == 2 and (circuits["norm"] == 1).all()
    assert circuits.loc[circuits["loss"].notna(), ["seed", "loss"]].to_numpy().tolist() == [["a", 0.25], ["b", 0.5]]
    pd.testing.assert_frame_equal(pd.read_parquet(run.folder / "tables" / "circuits.parquet"), circuits)
    with pytest.raises(TypeError):
        tables.role_table(run)


def test_logit_effects_equal_raw_weights_processed_by_hand(run):
    chosen = pd.DataFrame({"layer": [0, 1], "neuron": [2, 5]})
    raw = GPT2LMHeadModel.from_pretrained(seed_source(run.params, "a")).double()
    rows = np.stack([raw.transformer.h[i].mlp.c_proj.weight[j].detach().numpy() for i, j in ((0, 2), (1, 5))])
    rows = rows - rows.mean(1, keepdims=True)
    unembedding = (raw.transformer.ln_f.weight[:, None] * raw.lm_head.weight.T).detach().numpy()
    unembedding = unembedding - unembedding.mean(0) - (unembedding - unembedding.mean(0)).mean(1, keepdims=True)
    want = rows @ unembedding / np.linalg.norm(rows, axis=1)[:, None] / np.linalg.norm(unembedding, axis=0)
    found = tables.logit_effects(run, "a", chosen)
    np.testing.assert_allclose(found, want, atol=1e-5)
    w_out, unit = tables.weights_of(run, "a")
    moments = tables.weights.vocabulary_moments(torch.stack([w_out[0][2], w_out[1][5]]), unit)
    np.testing.assert_allclose(moments["vocab_kurt"], stats.kurtosis(want, axis=1, fisher=False), rtol=1e-5)
    assert roles.extreme_tokens(np.array([0.1, np.nan, -0.3, 0.5]), 2) == ([3, 0], [2, 0])
    promoted, suppressed = roles.extreme_tokens(found[0], 3)
    assert promoted == np.argsort(-want[0])[:3].tolist() and suppressed == np.argsort(want[0])[:3].tolist()
    assert tables.logit_effects(run, "a", chosen.head(0)).shape == (0, 8192)
    logits = raw.float()(run.text.tokens[:2]).logits
    assert tables.processing_error(run, "a") < 1e-5 * logits.abs().max()


def test_effects_on_tokens_that_were_never_learned_are_missing(run, monkeypatch):
    never = torch.arange(8192) % 1000 == 7
    monkeypatch.setattr(roles, "unlearned_tokens", lambda unembedding, pieces: never)
    found = tables.logit_effects(run, "a", pd.DataFrame({"layer": [0, 1], "neuron": [2, 5]}))
    assert (np.isnan(found) == never.numpy()).all()


def test_each_seed_has_its_sharpest_neurons_split_by_the_next_token():
    rows = [("a", 5.0, 0.3), ("a", 9.0, 0.3), ("a", 7.0, 0.3), ("a", 8.0, 0.1), ("b", 4.0, 0.3), ("b", 3.0, 0.3)]
    table = pd.DataFrame(rows, columns=["seed", "learned_kurt", "lowered_score"]).assign(
        layer=0, neuron=range(6), role_learned="suppression", raised="x", lowered="y", raised_score=0.4, null_score=0.2
    )
    chosen = tables.chosen_for_next_token(table, number=2)
    assert chosen[["seed", "neuron"]].to_numpy().tolist() == [["a", 1], ["a", 2], ["b", 4], ["b", 5]]
    assert (chosen["label"] == "y").all() and (chosen["role"] == "suppression").all()


def test_processing_keeps_the_activations_that_are_split_by_the_next_token(run):
    """The split is of the plain model's activations, which processing does not change."""
    tokens = run.text.tokens[:1]
    trunk, seen = Trunk(load_model(seed_source(run.params, "a"))), {}
    trunk.run(tokens, lambda layer, _pre, post: seen.__setitem__(layer, post))
    with torch.no_grad():
        _, cache = processed_model(seed_source(run.params, "a")).run_with_cache(tokens)
    torch.testing.assert_close(seen[1], cache["blocks.1.mlp.hook_post"], rtol=0, atol=1e-4)


def test_unlearned_tokens_share_a_direction_and_are_left_out():
    """Bytes that UTF-8 does not use and two tokens as rare share a direction; only they make a neuron sharp."""
    generator = torch.Generator().manual_seed(0)
    pieces = [bytes([byte]) for byte in range(256)] + [b"word"] * 744
    unembedding = torch.randn(32, 1000, generator=generator)
    way = torch.randn(32, generator=generator)
    rare = [*roles.BYTES_NOT_IN_UTF8, 300, 301]
    unembedding[:, rare] = way[:, None] + 0.1 * torch.randn(32, len(rare), generator=generator)
    unit = unembedding / unembedding.norm(dim=0)
    assert roles.unlearned_tokens(unit, pieces).nonzero()[:, 0].tolist() == sorted(rare)
    assert not roles.unlearned_tokens(unit, [b"word"] * 1000).any() and not roles.unlearned_tokens(unit, []).any()
    untrained = torch.nn.functional.normalize(torch.randn(32, 1000, generator=generator), dim=0)
    assert not roles.unlearned_tokens(untrained, pieces).any()
    is_rare = np.isin(np.arange(1000), rare)
    labels = pd.DataFrame({"label": ["x", "rare"], "family": "token_class", "kind": "k"})
    classes = LabelSet("token", labels, np.stack([np.arange(1000) < 500, is_rare]))
    inside, outside = (unit[:, part & ~is_rare].mean(1) for part in (np.arange(1000) < 500, np.arange(1000) >= 500))
    raised = torch.nn.functional.normalize(inside - outside, dim=0)
    w_out = [torch.stack([way, torch.randn(32, generator=generator), raised - 0.5 * way / way.norm()])]
    table = tables.seed_roles(w_out, unit, classes, 0, pieces)
    assert table["role_calibrated"].tolist()[:2] == ["prediction", "none"]
    assert table["role_learned"].tolist()[:2] == ["none", "none"]
    assert tables.seed_roles(w_out, unit, classes, 0)["label"].iloc[0] == "rare"  # without knowing which are unlearned
    assert "rare" not in set(table["label"]) and table["label"].iloc[2] == "x"
    inside = (w_out[0][2] / w_out[0][2].norm() @ unit).double().numpy()[~is_rare]
    split = classes.member[0, ~is_rare]
    between = split.mean() * (1 - split.mean()) * (inside[split].mean() - inside[~split].mean()) ** 2
    assert table["raised_score"].iloc[2] == pytest.approx(between / inside.var(), rel=1e-3)
    assert (table["unlearned"] == len(rare)).all() and table.loc[0, "learned_kurt"] < 3.5 < table.loc[0, "vocab_kurt"]
    cosine = (torch.nn.functional.normalize(way, dim=0) @ unit)[~roles.unlearned_tokens(unit, pieces)].double().numpy()
    assert table.loc[0, "learned_kurt"] == pytest.approx(
        ((cosine - cosine.mean()) ** 4).mean() / cosine.var() ** 2, rel=1e-4
    )
