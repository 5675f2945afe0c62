"""Seed folders that cannot be used are refused in one sentence; the trunk yields the Bridge's activations."""

import shutil

import pytest
import torch
from conftest import SHIPPED, TEXT, save_seed, small_model
from safetensors.torch import load_file, save_file
from transformer_lens.model_bridge import TransformerBridge

from lib.errors import InputError
from lib.seeds import Trunk, check_seed, load_model
from lib.text import read_text


@pytest.fixture(scope="module")
def text():
    return read_text(TEXT)


@pytest.fixture
def folder(tmp_path, seed_folders):
    return shutil.copytree(seed_folders["a"], tmp_path / "seed")


def refuses(folder, text, words, context=256):
    with pytest.raises(InputError, match=words) as caught:
        check_seed("a", folder, text, context)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_a_good_seed_passes(folder, text):
    check_seed("a", folder, text, 256)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file(folder, text, file):
    (folder / file).unlink()
    refuses(folder, text, file)


def test_a_missing_folder(tmp_path, text):
    refuses(tmp_path / "nowhere", text, "nowhere")


def test_truncated_weights(folder, text):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refuses(folder, text, "truncated or corrupt")


def test_corrupt_weights(folder, text):
    (folder / "model.safetensors").write_bytes(b"not weights at all, sorry")
    refuses(folder, text, "truncated or corrupt")


def test_nan_weights(folder, text):
    weights = load_file(folder / "model.safetensors")
    weights["transformer.h.1.mlp.c_fc.bias"][3] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    refuses(folder, text, "NaN or infinite values in 'transformer.h.1.mlp.c_fc.bias'")


def test_another_vocabulary(folder, text):
    config = small_model(0).config
    config.vocab_size = 100
    config.save_pretrained(folder)
    refuses(folder, text, "vocabulary of 100 tokens")


def test_another_tokeniser(folder, text):
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"version": "1.0"', '"version":  "1.0"'))
    refuses(folder, text, "not the tokeniser that the text was made with")


def test_a_context_longer_than_the_models(folder, text):
    refuses(folder, text, "at most 256 positions", context=257)


def test_a_broken_config(folder, text):
    (folder / "config.json").write_text("{")
    refuses(folder, text, "config.json cannot be read")


@pytest.mark.parametrize("shipped", [False, True])
def test_the_trunk_yields_the_bridges_activations(tmp_path, text, shipped):
    folder = SHIPPED / "a" if shipped else save_seed(small_model(2), tmp_path / "seed")
    tokens = text.tokens[:4]
    seen = {}
    Trunk(load_model(folder)).run(tokens, lambda layer, pre, post: seen.update({layer: (pre, post)}))
    bridge = TransformerBridge.boot_transformers(str(folder), device="cpu")
    _, cache = bridge.run_with_cache(tokens)
    assert len(seen) == bridge.cfg.n_layers
    for layer, (pre, post) in seen.items():
        torch.testing.assert_close(pre, cache[f"blocks.{layer}.mlp.hook_pre"], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(post, cache[f"blocks.{layer}.mlp.hook_post"], atol=2e-5, rtol=1e-4)
