"""The pass as a whole on the shipped seeds: a planted truth, a planted null and an independent oracle."""

import numpy as np
import pytest
import torch
from conftest import SHIPPED, followed_blocks, permuted, save_seed, tables_of
from transformers import GPT2LMHeadModel

pytestmark = pytest.mark.usefixtures("without_grouped_moments")


def test_the_shipped_seed_permuted_matches_itself(make_run, tmp_path):
    model = GPT2LMHeadModel.from_pretrained(SHIPPED / "a", dtype=torch.float32).eval()
    copy, orders = permuted(model, seed=1)
    run = make_run({"a": SHIPPED / "a", "b": save_seed(copy, tmp_path / "b")}, precision="auto", token_budget=24 * 256)
    found = tables_of(run)["matches"][~run.neurons["dead"].to_numpy()]
    partner = [
        orders[layer][match].item() for layer, match in zip(found["match_layer"], found["match_neuron"], strict=True)
    ]
    assert (found["match_layer"] == found["layer"]).all() and partner == found["neuron"].tolist()
    assert (found["corr"] - 1).abs().max() < 2**-8  # two operands in bf16, each rounded by 2⁻⁹ at most


def test_untrained_seeds_are_not_universal(make_run, tmp_path):
    config = GPT2LMHeadModel.from_pretrained(SHIPPED / "a").config
    folders = {"a": SHIPPED / "a"}
    for i, name in enumerate("bc"):
        torch.manual_seed(i)
        folders[name] = save_seed(GPT2LMHeadModel(config), tmp_path / name)
    references = tables_of(make_run(folders, precision="auto", token_budget=24 * 256))["references"]
    assert (references["universal"] == 0).all()


@pytest.mark.parametrize(("precision", "blocks", "tolerance"), [("fp64", 32, 1e-5), ("auto", 400, 1e-3)])
def test_max_corr_equals_numpy_on_the_plain_model(make_run, precision, blocks, tolerance):
    """200 neurons of seed a against all of b: transformers' model as it comes, numpy.corrcoef in fp64.

    A sketch's matches are measured on the text after its first part.
    """
    seeds = {name: SHIPPED / name for name in "ab"}
    run = make_run(seeds, precision=precision, token_budget=blocks * 256)
    neurons = tables_of(run)["neurons"]
    chosen = np.random.default_rng(0).choice(len(neurons), 200, replace=False)
    used = torch.arange(blocks) if run.done["products"] == "exact" else followed_blocks(blocks)
    x = plain_activations(SHIPPED / "a", run.text, used)[:, chosen]
    y = plain_activations(SHIPPED / "b", run.text, used)
    with np.errstate(invalid="ignore", divide="ignore"):
        best = [np.nan_to_num(np.corrcoef(x.T, part.T)[:200, 200:]).max(1) for part in np.array_split(y, 24, axis=1)]
    error = np.abs(neurons["max_corr"].to_numpy()[chosen] - np.max(best, 0))
    # of so short a text's first quarter the sketch's candidates lack the best match of a few neurons
    assert (error.max() if run.done["products"] == "exact" else np.quantile(error, 0.9)) < tolerance


def plain_activations(folder, text, blocks) -> np.ndarray:
    """(counted tokens of these blocks, all neurons), hooked from an unmodified transformers model in fp32."""
    model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()
    seen = []
    for block in model.transformer.h:
        block.mlp.act.register_forward_hook(lambda _m, _i, output: seen.append(output))
    rows = []
    with torch.no_grad():
        for tokens, counted in zip(text.tokens[blocks].split(16), text.counted(blocks).split(16), strict=True):
            seen.clear()
            model.transformer(tokens)
            rows.append(torch.cat(seen, -1)[counted].numpy())
    return np.concatenate(rows)  # np.corrcoef widens each part to fp64
