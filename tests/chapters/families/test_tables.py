"""From a run to its tables of families: all neurons of all seeds, and a new token class without a model."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import gelu

from lib.base.errors import InputError
from lib.base.hub import seed_source
from lib.chapters.families import captions, rotated, statistics
from lib.chapters.families.rotated import ROTATION_DRAW, Rotated
from lib.chapters.families.statistics import known_labels, seed_statistics
from lib.chapters.families.tables import open_families
from lib.chapters.universality.tables import tabulate
from lib.collect import first_look, one_pass, passes
from lib.kernels.correlation import haar_rotation
from lib.labels import labels as labels_module
from lib.labels.groupings import run_groupings, run_label_sets
from lib.labels.labels import occurring
from lib.labels.token_classes import looks
from lib.models.trunk import Trunk, load_model
from lib.report import contexts
from lib.text.tokens import token_strings


def direct_activations(run, seed: str, layer: int) -> torch.Tensor:
    """Activations of one layer of the plain model on the run's text, (blocks, context, neurons), fp64."""
    found = []
    trunk = Trunk(load_model(seed_source(run.params, seed)))
    trunk.run(run.text.tokens, lambda at, pre, post: found.append(post.double()) if at == layer else None)
    return found[0]


def test_families_of_a_seed_do_not_depend_on_the_other_references(make_run, seed_folders, monkeypatch):
    found = []
    for compare in ("all", "reference"):
        run = make_run(seed_folders, run=compare, compare=compare, reference="b", token_budget=8 * 256)
        passes.collect(run)
        tabulate(run)
        found.append(open_families(run).reference.set_index(["layer", "neuron"])[["family", "label", "score"]])
    pd.testing.assert_frame_equal(*found)


def test_rotated_neurons_by_label_agree_with_a_plain_computation(make_run, seed_folders, monkeypatch):
    """In fp64: rotated pre-activations with each neuron's mean and deviation, through the model's own GELU."""
    run = make_run(seed_folders, token_budget=16 * 256)
    passes.collect(run)
    groupings = run_groupings(run)
    labels = known_labels(run, run_label_sets(run, groupings))
    monkeypatch.setattr(rotated, "MAX_TOKENS", 6 * 256)
    found = Rotated(run, labels, groupings)
    assert found.blocks.tolist() == [0, 1, 8, 9, 14, 15]
    own = found.statistics("b", seed_statistics(run, "b", labels))[1]

    blocks, counted, layer = run.text.tokens[found.blocks], run.text.counted(found.blocks), []
    trunk = Trunk(load_model(seed_source(run.params, "b")))
    trunk.run(blocks, lambda at, pre, post: layer.append(pre.double()) if at == 1 else None)
    pre = layer[0][counted].numpy()
    turned = pre @ haar_rotation(48, run.params.random_seed, ROTATION_DRAW).numpy().T
    again = pre.mean(0) + pre.std(0) * (turned - turned.mean(0)) / turned.std(0)
    x = gelu(torch.tensor(again), approximate="tanh").numpy()
    z = (x - x.mean(0)) / x.std(0)
    one = labels.sets[0]
    row = int(own[f"{one.table}.count"].sum(0).argmax())
    carried = torch.tensor(np.append(one.member[row], False))[groupings[one.grouping].ids[found.blocks].long()]
    even = (found.blocks % 2 == 0)[:, None].expand(counted.shape)
    for half, keep in enumerate((even[counted], ~even[counted])):
        expected = z[(keep & carried[counted]).numpy()].mean(0)
        np.testing.assert_allclose(own[f"{one.table}.mean"][half, row], expected, atol=2e-2)


def test_labels_on_a_part_of_the_text_are_summed_and_scored_there(make_run, seed_folders, monkeypatch):
    """Half of the text has labels, in pairs of blocks, so that batches of eight blocks have them in part."""
    run = make_run(seed_folders, token_budget=32 * 256, label_tokens=16 * 256)
    assert run.label_blocks.tolist() == [0, 1, 4, 5, 8, 9, 12, 13, 18, 19, 22, 23, 26, 27, 30, 31]
    passes.collect(run)
    tabulate(run)
    monkeypatch.setattr(rotated, "MAX_TOKENS", 6 * 256)
    data = open_families(run)
    post, text = direct_activations(run, "b", 1)[run.label_blocks], run.text.chosen(run.label_blocks)
    counted, own = text.counted(), seed_statistics(run, "b", known_labels(run, data.sets))[1]
    tokens = (int(counted[half::2].sum()) for half in (0, 1))
    assert own["token_labels.tokens"].tolist() == list(tokens)
    np.testing.assert_allclose(own["mean"], post[counted].mean(0), atol=1e-6)
    one = data.sets[0]
    row = int(own[f"{one.table}.count"].sum(0).argmax())
    carried = (
        torch.from_numpy(one.member[row])[torch.bucketize(text.tokens, torch.from_numpy(occurring(text)))] & counted
    )
    for half in (0, 1):
        values = post[half::2][carried[half::2]].mean(0)
        mean = own["mean"] + own["deviation"] * own[f"{one.table}.mean"][half, row].double()
        np.testing.assert_allclose(mean, values, atol=2e-3 * float(own["deviation"].max()))
    assert data.labels["tokens_chosen"].max() <= own["token_labels.tokens"][0]
    assert "**a sample of 3," in captions.labels(data.labels, data.left_out, "test", data.sampled)

    monkeypatch.setattr(contexts, "SAMPLE_TOKENS", 8 * 256)
    sample = contexts.Sample.of(run)
    assert len(sample.number) == 8 and set(sample.number.tolist()) <= set(run.label_blocks.tolist())
    label, carries = contexts._labels(run, sample, np.arange(96))
    name = next(name for name in label if name in set(one.labels["label"]) and not name.startswith("word"))
    member = np.isin(sample.text.tokens, occurring(text)[one.member[one.labels["label"].tolist().index(name)]])
    assert carries[name].tolist() == member.flatten().astype(int).tolist()


def test_families_follow_the_token_classes_without_a_pass(make_run, seed_folders, monkeypatch):
    run = make_run(seed_folders, token_budget=16 * 256)
    passes.collect(run)
    tabulate(run)
    for module in (first_look, one_pass):
        monkeypatch.setattr(module, "load_model", None)  # no pass from here on
    data = open_families(run)
    assert len(data.all_seeds) == 3 * 2 * 48 and data.all_seeds["score"].between(0, 1).all()
    assert set(data.all_seeds["seed"]) == {"a", "b", "c"} and len(data.reference) == 96
    assert len(run.table("labels")) == sum(len(one.labels) for one in data.sets) > 500
    assert len(data.pairs) == (run.table("matches_all_seeds")["corr"] > 0).sum()

    post, counted = direct_activations(run, "b", 1), run.text.counted()
    own = seed_statistics(run, "b", known_labels(run, data.sets))[1]
    token = int(run.text.tokens[counted].mode().values)
    group = int(np.searchsorted(occurring(run.text), token))
    half = (torch.arange(len(post)) % 2)[:, None].expand(counted.shape)
    for which in (0, 1):
        values = post[counted & (run.text.tokens == token) & (half == which)].mean(0)
        mean = own["mean"] + own["deviation"] * own["token.mean"][which, group].double()
        np.testing.assert_allclose(mean, values, atol=2e-3 * float(own["deviation"].max()))

    before = {path: path.stat().st_mtime_ns for path in (run.folder / "stats").iterdir()}
    label = "the letter e somewhere"
    again = open_families(run, (looks(label, ".*e.*"),))
    assert label in set(again.labels["label"]) and again.left_out == [f"previous: {label}", f"next: {label}"]
    assert not data.left_out and len(again.labels) == len(data.labels) + 1
    said = captions.labels(again.labels, again.left_out, "test")
    assert "Left out: 2 labels" in said and "`make clean RUN=test`" in said
    row = again.labels.set_index("label").loc[label]
    e = torch.tensor([False] + ["e" in run.tokenizer.decode([token]) for token in range(1, run.text.vocab_size)])
    carried = e[run.text.tokens] & counted
    assert row["tokens_chosen"] + row["tokens_scored"] == carried.sum()
    own = seed_statistics(run, "b", known_labels(run, again.sets))[1]
    at = again.sets[0].labels["label"].tolist().index(label)
    mean = own["mean"] + own["deviation"] * own["token_labels.mean"][0, at].double()
    np.testing.assert_allclose(mean, post[carried & (half == 0)].mean(0), atol=2e-3 * float(own["deviation"].max()))
    assert own["token_labels.spread"][at].isnan().all()
    assert {path: path.stat().st_mtime_ns for path in (run.folder / "stats").iterdir()} == before

    for path in (run.folder / "stats").glob("grouped-a.*"):
        path.unlink()
    with pytest.raises(InputError, match="without grouped moments"):
        open_families(run)
    (run.folder / "stats" / "labels.json").unlink()
    with pytest.raises(InputError, match="without sums by label"):
        open_families(run)


def test_rare_tokens_are_pooled_but_the_labels_of_the_pass_stay_exact(make_run, seed_folders, monkeypatch):
    found = []
    for kept in (10_000, 50):
        for module in (labels_module, statistics):
            monkeypatch.setattr(module, "TOKENS_KEPT", kept)
        run = make_run(seed_folders, run=f"kept{kept}", token_budget=8 * 256)
        passes.collect(run)
        tabulate(run)
        found.append(open_families(run).all_seeds)
    pd.testing.assert_frame_equal(*found)
    rows, counts = labels_module.token_rows(run.text), labels_module.token_counts(run.text)[occurring(run.text)]
    assert (rows == 50).sum() == len(rows) - 50 and counts[rows < 50].min() >= counts[rows == 50].max()
    own = seed_statistics(run, "a", known_labels(run, []))[0]
    assert own["token.count"].shape == (2, 51) and own["token.count"][:, 50].sum() == counts[rows == 50].sum()

    common, rare = (occurring(run.text)[np.flatnonzero(which)[:3]] for which in (rows < 50, rows == 50))
    texts = token_strings(run.tokenizer)
    patterns = ["|".join(re.escape(texts[token]) for token in some) for some in (common, [*common, *rare])]
    again = open_families(run, (looks("of common tokens", patterns[0]), looks("of rare tokens", patterns[1])))
    left_out = [
        f"{shift}{name}" for shift in ("previous: ", "next: ") for name in ("of common tokens", "of rare tokens")
    ]
    assert again.left_out == ["of rare tokens", *left_out]
    assert "of common tokens" in set(again.labels["label"]) and "of rare tokens" not in set(again.labels["label"])
