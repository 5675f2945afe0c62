"""Seeds of different shapes: a neuron finds its copy in a narrower, deeper model; another architecture takes part.

b computes what a computes in its first layers: it lacks neurons that write nothing, holds the others in another order,
and two more layers follow. c is a GPT-NeoX of another width. All three share the tokeniser.
"""

import json
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TEXT, permuted_tokenizer, save_seed, small_model, tables_of
from explored import made_run
from safetensors.numpy import load
from small_models import SHAPE, _moved
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

from lib.base.errors import InputError
from lib.base.params import ROOT
from lib.chapters.emergence.tables import _measured
from lib.chapters.universality import captions, properties
from lib.collect.passes import collect
from lib.report import explorer_files, front
from lib.text.blocks import read_text

BLOCKS, LAYERS, NEURONS, KEPT = 168, 2, 48, 32
SHAPES = {"a": (LAYERS, NEURONS), "b": (LAYERS + 2, KEPT), "c": (3, 40)}
LENGTH = 64  # of a block


def narrower_and_deeper(model: GPT2LMHeadModel) -> tuple[GPT2LMHeadModel, list[np.ndarray]]:
    """A copy with KEPT of each layer's neurons in another order and two more layers; kept[l][new] = old.

    The other neurons of `model` are made to write nothing, so that the kept ones see the same in both.
    """
    generator = torch.Generator().manual_seed(5)
    changed = dict(n_layer=SHAPES["b"][0], n_inner=KEPT, n_positions=512, vocab_size=8256, tie_word_embeddings=False)
    torch.manual_seed(6)
    copy, kept = GPT2LMHeadModel(GPT2Config(**model.config.to_dict() | changed)).eval(), []
    mine, theirs = copy.transformer, model.transformer
    with torch.no_grad():
        mine.wte.weight[: theirs.wte.num_embeddings] = theirs.wte.weight
        mine.wpe.weight[: theirs.wpe.num_embeddings] = theirs.wpe.weight
        for block, other in zip(mine.h, theirs.h, strict=False):
            order = torch.randperm(NEURONS, generator=generator)
            own, left_out = order[:KEPT], order[KEPT:]
            other.mlp.c_proj.weight[left_out] = 0
            state = other.state_dict()
            state["mlp.c_fc.weight"], state["mlp.c_fc.bias"] = other.mlp.c_fc.weight[:, own], other.mlp.c_fc.bias[own]
            state["mlp.c_proj.weight"] = other.mlp.c_proj.weight[own]
            block.load_state_dict(state)
            kept.append(own.numpy())
    return copy, kept


def other_architecture() -> GPTNeoXForCausalLM:
    """A GPT-NeoX of SHAPES["c"], wider in its residual stream, with untied and padded embeddings."""
    torch.manual_seed(7)
    layers, neurons = SHAPES["c"]
    shape = SHAPE | dict(vocab_size=8320, hidden_size=48, num_hidden_layers=layers)
    return _moved(GPTNeoXForCausalLM(GPTNeoXConfig(**shape, num_attention_heads=3, intermediate_size=neurons)))


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> tuple[dict[str, Path], list[np.ndarray]]:
    """The three seeds, and which neuron of a each neuron of b's first layers is."""
    root, model = tmp_path_factory.mktemp("shapes"), small_model(3)
    copy, kept = narrower_and_deeper(model)
    models = {"a": model, "b": copy, "c": other_architecture()}
    return {name: save_seed(one, root / name) for name, one in models.items()}, kept


@pytest.fixture(scope="module")
def plain(planted) -> dict[str, np.ndarray]:
    """Activations of the plain models in fp64, (tokens, layers · neurons)."""
    text, found = read_text(TEXT).cut(LENGTH).take(BLOCKS * LENGTH), {}
    for name, folder in planted[0].items():
        model, seen = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval(), []
        blocks = model.base_model.h if hasattr(model.base_model, "h") else model.base_model.layers
        for block in blocks:
            block.mlp.act.register_forward_hook(lambda _m, _i, output, seen=seen: seen.append(output))
        with torch.no_grad():
            model.base_model(text.tokens)
        found[name] = torch.cat([one[text.counted()] for one in seen], 1).numpy()
    return found


def flat(rows: pd.DataFrame, seed: str, what: str = "") -> np.ndarray:
    """Flat indices of neurons, in the shape of their seed."""
    return (SHAPES[seed][1] * rows[f"{what}layer"] + rows[f"{what}neuron"]).to_numpy()


def run_of(make_run, seeds, **changes):
    return make_run(seeds, **dict(context=LENGTH, token_budget=BLOCKS * LENGTH) | changes)


MODES = {
    "own rows": dict(products="exact"),
    "sums": dict(products="exact", sketch_rows=64),
    "sketch": dict(products="sketch", sketch_rows=2048),
}


@pytest.mark.usefixtures("without_grouped_moments")
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_every_neuron_left_finds_its_copy_in_a_model_of_another_shape(make_run, planted, plain, mode):
    seeds, kept = planted
    run = run_of(make_run, seeds, **mode)
    made = tables_of(run)
    assert {name: tuple(shape) for name, shape in run.done["shapes"].items()} == SHAPES
    assert bool(run.done["rows"]) == (mode != MODES["sums"])
    matches = made["matches_all_seeds"].set_index(["seed", "model"])
    copies = {(layer, old): (layer, new) for layer, own in enumerate(kept) for new, old in enumerate(own)}
    for pair, there in (("a", "b"), copies), (("b", "a"), {copy: own for own, copy in copies.items()}):
        own = matches.loc[[pair]].set_index(["layer", "neuron"]).loc[list(there)]
        assert own["corr"].min() > 0.999 and own["mutual"].all()
        assert list(zip(own["match_layer"], own["match_neuron"], strict=True)) == list(there.values())
    # every other pair against NumPy on the plain models
    for (seed, model), own in matches.groupby(level=[0, 1]):
        total = plain[seed].shape[1]
        corr = np.corrcoef(plain[seed].T, plain[model].T)[:total, total:]
        assert len(own) == total and np.array_equal(flat(own, seed), np.arange(total))
        chosen = corr[np.arange(total), flat(own, model, "match_")]
        if run.done["products"] == "exact":
            np.testing.assert_allclose(own["corr"], corr.max(1), atol=1e-6)
            np.testing.assert_allclose(chosen, corr.max(1), atol=1e-6)
        else:
            assert (corr.max(1) - chosen).mean() < 0.01  # the best of the followed ones, on three quarters of the text
            np.testing.assert_allclose(own["corr"], chosen, atol=0.05)
    assigned = made["assignments"].query("model == 'b'").set_index(["layer", "neuron"]).loc[list(copies)]
    assert list(zip(assigned["match_layer"], assigned["match_neuron"], strict=True)) == list(copies.values())
    assert made["neurons_all_seeds"].groupby("seed").size().to_dict() == {
        name: layers * neurons for name, (layers, neurons) in SHAPES.items()
    }


@pytest.fixture(scope="module")
def made(planted, tmp_path_factory):
    """A run in which tokens share the rows of a sketch, with its first tables and parts of its text."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lib.collect.planner.BATCH_TOKENS", 8 * LENGTH)
        text = dict(context=LENGTH, token_budget=BLOCKS * LENGTH)
        yield made_run(tmp_path_factory.mktemp("outputs"), planted[0], patch, **text, **MODES["sketch"])


def test_the_first_chapters_are_made_of_seeds_of_different_shapes(made, monkeypatch):
    shown = []
    monkeypatch.setattr("lib.display.plots.display", shown.append)
    for path in sorted((ROOT / "notebooks").glob("0[123]_*.ipynb")):
        namespace, before = {}, len(shown)
        for cell in nbformat.read(path, 4).cells:
            if cell.cell_type == "code":
                exec(cell.source, namespace)
                if "parameters" in cell.metadata.get("tags", []):
                    namespace["params_file"] = made.folder / "params.yaml"
        assert len(shown) > before
    drawn = {path.stem for path in (made.folder / "figures").glob("*.png")}
    assert {"sampling", "convergence", "figure_02c_layers", "partners", "universal_share_by_layer"} <= drawn


def test_the_page_of_neurons_knows_the_shape_of_every_seed(made):
    files = dict(explorer_files._files(made))
    assert json.loads(files["run"])["shapes"] == {name: list(shape) for name, shape in SHAPES.items()}
    for name, (layers, neurons) in SHAPES.items():
        arrays = load(files[f"seed.{name}"])
        assert (arrays["layer"] * neurons + arrays["neuron"]).tolist() == list(range(layers * neurons))
    first = load(files["seed.a.0"])["partner"][:, 0]
    own = made.table("matches_all_seeds").query("seed == 'a' and model == 'b'")
    assert first.tolist() == flat(own, "b", "match_").tolist()
    models = front.front_page(made, None, {})["models"]
    assert models == (
        "This report compares 3 models: a of 2 layers of 48 neurons, b of 4 layers of 32 neurons and c of 3 layers of "
        "40 neurons."
    )


def test_depths_are_compared_in_parts_of_the_depth(made):
    matches = made.table("matches_all_seeds")
    for row in matches.sample(50, random_state=0).itertuples():
        middle = (row.layer + 0.5) / SHAPES[row.seed][0], (row.match_layer + 0.5) / SHAPES[row.model][0]
        assert (row.depth, row.match_depth) == tuple(int(LAYERS * one) for one in middle)
    found = made.table("cliques")
    for name, (layers, _) in SHAPES.items():
        assert (found[f"depth_{name}"] == (LAYERS * (found[f"layer_{name}"] + 0.5) / layers).astype(int)).all()
    matrix = properties.match_layer_percent(matches.query("seed == 'b'"))
    assert matrix.shape == (LAYERS, LAYERS) and "same part of the depth" in captions.layer_agreement(matrix).title


def test_another_tokeniser_and_too_few_positions_are_refused(make_run, planted, tmp_path):
    other = planted[0] | {"b": permuted_tokenizer(planted[0]["b"], tmp_path / "other")}
    with pytest.raises(InputError, match="seed 'b': the tokeniser in .* is not the tokeniser"):
        collect(run_of(make_run, other))
    short = GPT2LMHeadModel(GPT2Config(**small_model(0).config.to_dict() | {"n_positions": 128}))
    with pytest.raises(InputError, match="context is 256 but seed 'd' has at most 128 positions"):
        collect(make_run(planted[0] | {"d": save_seed(short, tmp_path / "d")}))


def test_checkpoints_of_seeds_of_different_shapes_are_refused(make_run, planted, tmp_path):
    with pytest.raises(InputError, match="chapter 07 needs seeds of one shape"):
        _measured(make_run(planted[0]), None, {}, tmp_path)
