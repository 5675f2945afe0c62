"""Heads against plain NumPy on the model's own outputs, and on a model in another basis with its heads exchanged."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import save_seed
from rotated import heads_exchanged, rotated
from small_models import crfm_model, neox_model
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from lib.chapters.same_function import captions_heads, figures_heads
from lib.chapters.same_function.heads import (
    NULLS,
    TYPES,
    Outputs,
    by_head,
    compared,
    first_agreement,
    head_outputs,
    head_types,
    heads,
    mutual,
    score_agreement,
    used_room,
)
from lib.chapters.universality.null_tables import Sample
from lib.display.claims import Evidence
from lib.kernels.correlation import haar_rotation
from lib.models.processed import processed
from lib.text.blocks import read_text

TOKENS = 300


def root_rv(x: np.ndarray, y: np.ndarray) -> float:
    """By the definition: the correlation of the two matrices of inner products between tokens, and its root."""
    x, y = x - x.mean(0), y - y.mean(0)
    one, two = x @ x.T, y @ y.T
    return np.sqrt((one * two).sum() / np.sqrt((one**2).sum() * (two**2).sum()))


def drawn(layers: int, count: int, size: int, seed: int) -> torch.Tensor:
    """Outputs of heads that share something, of unlike power, with mean 0."""
    random = torch.Generator().manual_seed(seed)
    shared = torch.randn(TOKENS, 6, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    mixing = torch.randn(6, layers * count * size, generator=random, dtype=torch.float64)
    noise = torch.randn(TOKENS, layers * count * size, generator=random, dtype=torch.float64)
    found = (shared @ mixing + noise).view(TOKENS, layers, count, size)
    found = found * torch.arange(1, count + 1)[:, None]
    return found - found.mean(0)


def test_correlations_and_baselines_equal_plain_numpy():
    (a, b), draws = (drawn(2, 3, 4, 1), drawn(3, 2, 5, 2)), range(2)
    turns = [[haar_rotation(width, 0, draw) for draw in draws] for width in (12, 10)]
    one, two = (Outputs.of(found, own, torch.float64) for found, own in zip((a, b), turns, strict=True))
    corr, *baselines = compared(one, two, *turns)
    left, right = ([own.numpy() for own in found.flatten(1, 2).unbind(1)] for found in (a, b))
    expected = [[root_rv(x, y) for y in right] for x in left]
    np.testing.assert_allclose(corr, expected, atol=1e-6)
    for theirs, others, own, baseline in ((left, b, turns[1], baselines[0]), (right, a, turns[0], baselines[1])):
        for null in range(len(NULLS)):
            for draw in draws:
                pseudo = []
                for layer in others.unbind(1):
                    parts = [head.numpy() for head in layer.unbind(1)]
                    if null == 1:
                        parts = [part / np.sqrt(np.linalg.norm(part.T @ part)) for part in parts]
                    whole = np.concatenate(parts, 1) @ own[draw].numpy().T
                    pseudo += np.split(whole, len(parts), 1)
                wanted = [max(root_rv(x, y) for y in pseudo) for x in theirs]
                np.testing.assert_allclose(baseline[null, draw], wanted, atol=1e-6)


def test_heads_of_one_direction_correlate_as_neurons_do_and_constant_ones_not_at_all():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2, TOKENS, 1))
    y = -0.6 * x + 0.8 * y
    found = torch.zeros(TOKENS, 1, 2, 3, dtype=torch.float64)
    found[:, 0, 0] = torch.from_numpy((x - x.mean()) * random.normal(size=3))
    other = torch.from_numpy((y - y.mean()) * random.normal(size=3))[:, None, None]
    turns = [haar_rotation(6, 0, 0)], [haar_rotation(3, 0, 0)]
    one, two = (Outputs.of(own, turn, torch.float64) for own, turn in zip((found, other), turns, strict=True))
    corr, *baselines = compared(one, two, *turns)
    assert corr[0, 0].item() == pytest.approx(abs(np.corrcoef(x[:, 0], y[:, 0])[0, 1]), abs=1e-6)
    assert corr[1, 0] == 0 and all(baseline.isfinite().all() for baseline in baselines)


@pytest.mark.parametrize("kind", ["gpt2", "neox"])
def test_outputs_are_what_the_plain_model_writes(kind, tmp_path):
    model = crfm_model(1) if kind == "gpt2" else neox_model(1)
    folder, text = save_seed(model, tmp_path / kind), read_text("data/tokens.safetensors").cut(24).take(24 * 20)
    sample, seen = Sample.of(text, 24 * 20), []
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    for block in plain.base_model.h if kind == "gpt2" else plain.base_model.layers:
        writer = block.attn.c_proj if kind == "gpt2" else block.attention.dense
        weight = writer.weight.data if kind == "gpt2" else writer.weight.data.T
        writer.register_forward_pre_hook(lambda _m, inputs, weight=weight: seen.append((inputs[0], weight)))
    with torch.no_grad():
        plain(sample.tokens)
    found = head_outputs(processed(folder), sample.tokens, sample.counted).double().numpy()
    written = []
    for z, weight in seen:
        z, weight = z[sample.counted].unflatten(1, (2, -1)).numpy(), weight.unflatten(0, (2, -1)).numpy()
        written += [z[:, head] @ weight[head] for head in range(2)]
    written = [out - out.mean(1, keepdims=True) for out in written]  # every reader is blind to the mean of the stream
    for own, out in zip(found.reshape(len(found), 4, -1).transpose(1, 0, 2), written, strict=True):
        assert root_rv(own, out) == pytest.approx(1, abs=1e-6)
        out = out - out.mean(0)
        np.testing.assert_allclose(np.linalg.norm(own), np.linalg.norm(out), rtol=1e-4)
    assert abs(found.mean(0)).max() < 1e-4


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Seed b is a in another residual basis, with the heads of each layer in the opposite order; c is another."""
    root = tmp_path_factory.mktemp("heads")
    copy, _ = rotated(crfm_model(0), 5)
    made = {"a": crfm_model(0), "b": heads_exchanged(copy), "c": crfm_model(8)}
    return {name: save_seed(one, root / name) for name, one in made.items()}


def done(run) -> None:
    """What `heads` reads of a pass."""
    run.__dict__["done"] = {"precision": "fp64", "references": sorted(run.params.seeds), "seed_hashes": {}}


def test_heads_of_a_model_in_another_basis_are_found(folders, make_run):
    run = make_run(folders, token_budget=8 * 256)
    done(run)
    table, types = heads(run), head_types(run)
    copies = table.query("seed in ['a', 'b'] and model in ['a', 'b']")
    assert (copies["corr"] > 0.9999).all() and (copies["match_layer"] == copies["layer"]).all()
    assert (copies["match_head"] == 1 - copies["head"]).all()
    assert (copies["corr"] >= copies[list(NULLS)].max(axis=1) - 1e-6).all()
    for name in TYPES:
        np.testing.assert_allclose(copies[name], copies[f"match_{name}"], atol=1e-4)
    assert (copies["type"] == copies["match_type"]).all()
    assert np.allclose(score_agreement(copies), 1) and np.allclose(first_agreement(copies)["share"], 1)
    assert (table["type_share"] <= 1).all() and len(types) == 12 and len(table) == 24
    assert heads(run).equals(table)


def test_untrained_seeds_are_at_the_null(tmp_path, make_run):
    """Of an untrained model a layer's heads are no better than other parts of their outputs."""
    paths = {}
    for number, name in enumerate("abc"):
        torch.manual_seed(number)
        shape = dict(n_layer=2, n_embd=64, n_head=4, n_positions=256, vocab_size=8192)
        paths[name] = save_seed(GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=0)), tmp_path / name)
    run = make_run(paths, token_budget=8 * 256)
    done(run)
    table = heads(run)
    for null in NULLS:
        assert abs(used_room(by_head(table, null))) < 0.05
        assert abs(captions_heads.mean_excess(table, null)) < 0.02


def made_up(count: int = 3) -> pd.DataFrame:
    """Heads of three seeds of two layers."""
    random, rows = np.random.default_rng(2), []
    for seed in "abc":
        for layer in range(2):
            for head in range(count):
                for model in sorted({*"abc"} - {seed}):
                    own = {"seed": seed, "layer": layer, "head": head, "model": model, "match_layer": layer}
                    own |= {"match_head": 0, "corr": 0.9, "baseline": random.uniform(0.3, 0.6), "tokens": 777}
                    own |= {"equal_baseline": random.uniform(0.3, 0.6), "type_share": 0.2}
                    own |= {"type": "BOS sink" if head == 1 else "none", "match_type": "BOS sink"}
                    for side in ("", "match_"):
                        for name in TYPES:
                            own |= {f"{side}{name}": random.uniform(), f"{side}{name}_first": head + layer == 0}
                            own |= {f"{side}{name}_rank": random.uniform(-0.5, 0.5) if count > 1 else 0.0}
                    rows.append(own)
    return pd.DataFrame(rows)


def test_measures_and_summaries_equal_plain_numpy():
    table = made_up()
    evidence = Evidence({"heads": table}, "a", 0.5)
    excess, scores = captions_heads.excess(evidence), captions_heads.scores(evidence)
    for seed, own in table.groupby("seed"):
        assert excess.values[seed] == pytest.approx((own["corr"] - own["baseline"]).mean())
        cosines = []
        for name in TYPES:
            x, y = own[f"{name}_rank"].to_numpy(), own[f"match_{name}_rank"].to_numpy()
            cosines.append(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
        assert scores.values[seed] == pytest.approx(np.mean(cosines))
        rest = table.query("seed != @seed and model != @seed")
        assert excess.left_out[seed] == pytest.approx((rest["corr"] - rest["baseline"]).mean())
    measures = by_head(table)
    assert len(measures) == 18
    own = table.query("seed == 'b' and layer == 1 and head == 2")
    row = measures.query("seed == 'b' and layer == 1 and head == 2").iloc[0]
    room = own["baseline"].mean()
    assert row["excess_corr"] == pytest.approx(0.9 - room)
    assert row["adjusted_excess"] == pytest.approx((0.9 - room) / (1 - room))


def test_mutual_matches_are_counted_and_chance_is_a_match_exchanged_within_its_layer():
    table = made_up()  # every head is matched to head 0 of its layer
    both = mutual(table)
    assert both.notna().all() and (both == (table["head"] == 0)).all()
    assert mutual(table[table["seed"] == "a"]).isna().all()  # no other is a reference
    first = first_agreement(table)  # head 0 of layer 0, in which its match lies too
    assert np.allclose(first["share"], 1) and np.allclose(first["chance"], 1 / 3)


@pytest.mark.parametrize("count", [1, 3])
def test_figures_draw_and_sentences_are_computed(count):
    table = made_up(count)
    figures_heads.head_matches(table, "a").draw_without_rendering()
    figures_heads.head_scores(table).draw_without_rendering()
    matches, scores = captions_heads.matches_caption(table, "a"), captions_heads.scores_caption(table)
    assert f"{(0.9 - table['baseline']).mean():.2f}" in matches.title
    assert f"{table['baseline'].mean():.3f}" in matches.text
    for caption in (matches, scores):
        assert "nan" not in caption.text and "undefined" not in caption.text and len(caption.title) <= 130
    assert ("6 of 18 heads score above 0.5 in one of the three, too few" in scores.text) == (count == 3)
