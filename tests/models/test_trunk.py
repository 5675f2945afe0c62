"""Unusable seed folders are refused in one sentence; the trunk yields the Bridge's activations."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from conftest import SHIPPED, TEXT, save_seed, small_model
from safetensors.torch import load_file, save_file
from small_models import ARCHITECTURES, llama_model, neox_model, save_as_pickle
from torch.nn.functional import gelu, silu
from transformer_lens.model_bridge import TransformerBridge
from transformers import BloomConfig, BloomForCausalLM

from lib.base.errors import InputError
from lib.collect import forecast
from lib.collect.first_look import losses
from lib.collect.passes import collect
from lib.models import trunk
from lib.models.trunk import Trunk, check_weights, load_model, mlps
from lib.models.weights import READING_COLUMNS, weight_properties
from lib.text.blocks import read_text
from lib.text.tokens import tokenizer_sha256

pytestmark = pytest.mark.usefixtures("without_grouped_moments")


@pytest.fixture(scope="module")
def text():
    return read_text(TEXT)


@pytest.fixture
def folder(tmp_path, seed_folders):
    return shutil.copytree(seed_folders["a"], tmp_path / "seed")


def check_seed(name, folder, text, context):
    """All checks of a seed before a pass."""
    trunk.check_seed(name, folder, text, context)
    check_weights(name, folder)


def refuses(folder, text, words, context=256):
    with pytest.raises(InputError, match=words) as caught:
        check_seed("a", folder, text, context)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_good_seed_passes(folder, text):
    check_seed("a", folder, text, 256)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_missing_file_is_refused(folder, text, file):
    (folder / file).unlink()
    refuses(folder, text, file)


def test_missing_folder_is_refused(tmp_path, text):
    refuses(tmp_path / "nowhere", text, "nowhere")


def test_truncated_weights_are_refused(folder, text):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refuses(folder, text, "truncated or corrupt")


def test_corrupt_weights_are_refused(folder, text):
    (folder / "model.safetensors").write_bytes(b"not weights at all, sorry")
    refuses(folder, text, "truncated or corrupt")


def test_nan_weights_are_refused(folder, text):
    weights = load_file(folder / "model.safetensors")
    weights["transformer.h.1.mlp.c_fc.bias"][3] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    refuses(folder, text, "NaN or infinite values in 'transformer.h.1.mlp.c_fc.bias'")


def test_other_vocabulary_is_refused(folder, text):
    config = small_model(0).config
    config.vocab_size = 100
    config.save_pretrained(folder)
    refuses(folder, text, "vocabulary of 100 tokens")


def test_padded_embedding_is_accepted(tmp_path, text):
    model = small_model(0)
    model.resize_token_embeddings(8200)
    check_seed("a", save_seed(model, tmp_path / "padded"), text, 256)


def test_other_tokeniser_is_refused(folder, text):
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()), separators=(",", ":")))
    check_seed("a", folder, text, 256)  # the same tokeniser without blanks
    path.write_text(path.read_text().replace('"add_prefix_space":false', '"add_prefix_space":true'))
    refuses(folder, text, "not the tokeniser that the text was made with")


def test_tokenisers_are_compared_by_what_they_do_not_by_settings_of_length(folder, text):
    path = folder / "tokenizer.json"
    by_meaning = replace(text, tokenizer_sha256=tokenizer_sha256(folder))
    content = json.loads(path.read_text())
    content["truncation"] = {"direction": "Right", "max_length": 256, "strategy": "LongestFirst", "stride": 0}
    path.write_text(json.dumps(content, indent=1))
    check_seed("a", folder, by_meaning, 256)
    content["model"]["merges"] = content["model"]["merges"][:-1]
    path.write_text(json.dumps(content))
    refuses(folder, by_meaning, "not the tokeniser that the text was made with")


def test_vocabulary_and_merges_without_tokenizer_json_are_accepted(folder, text):
    path = folder / "tokenizer.json"
    model = json.loads(path.read_text())["model"]
    by_meaning = replace(text, tokenizer_sha256=tokenizer_sha256(folder))
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = (merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"])
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    path.unlink()
    check_seed("a", folder, by_meaning, 256)


def test_context_longer_than_the_model_is_refused(folder, text):
    refuses(folder, text, "at most 256 positions", context=257)


def test_broken_config_is_refused(folder, text):
    (folder / "config.json").write_text("{")
    refuses(folder, text, "config.json cannot be read")


def test_weights_in_pytorch_format_are_read_and_checked(tmp_path, text):
    (tmp_path / "seed").mkdir()
    folder = save_as_pickle(small_model(0), tmp_path / "seed")
    check_seed("a", folder, text, 256)
    torch.testing.assert_close(load_model(folder).state_dict(), small_model(0).state_dict())
    path = folder / "pytorch_model.bin"
    torch.save(torch.load(path), path, _use_new_zipfile_serialization=False)  # as before torch 1.6
    check_seed("a", folder, text, 256)
    torch.save(torch.load(path), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    refuses(folder, text, "pytorch_model.bin is truncated or corrupt")
    weights = small_model(0).state_dict()
    weights["transformer.h.0.mlp.c_fc.bias"][0] = torch.inf
    torch.save(weights, path)
    refuses(folder, text, "NaN or infinite values in 'transformer.h.0.mlp.c_fc.bias'")


def test_infinite_mask_buffers_are_ignored(tmp_path, text):
    """Pythia's files hold each layer's mask value −1e9 in fp16, which is −∞; no model reads it."""
    folder = save_seed(neox_model(0).half(), tmp_path / "seed")
    masks = {
        f"gpt_neox.layers.{layer}.attention.{name}": torch.tensor(-torch.inf).half()
        for layer in range(2)
        for name in ("bias", "masked_bias")
    }
    weights = load_file(folder / "model.safetensors")
    save_file(weights | masks, folder / "model.safetensors", {"format": "pt"})
    check_seed("a", folder, text, 256)
    load_model(folder)
    weights["gpt_neox.layers.1.attention.dense.bias"][0] = torch.inf
    save_file(weights | masks, folder / "model.safetensors", {"format": "pt"})
    refuses(folder, text, "NaN or infinite values in 'gpt_neox.layers.1.attention.dense.bias'")


def test_missing_weight_is_refused_instead_of_initialised(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["transformer.h.1.mlp.c_fc.bias"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="lack 'transformer.h.1.mlp.c_fc.bias'"):
        load_model(folder)


def test_unknown_architecture_is_refused():
    with pytest.raises(InputError, match="BloomForCausalLM is not supported; .* GPT-2, GPT-NeoX and Llama are"):
        Trunk(BloomForCausalLM(BloomConfig(vocab_size=10, hidden_size=8, n_layer=1, n_head=1)))


def by_hand(model, tokens) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """Pre-activation and activation of each layer from the MLP's input and the weights, with eager attention."""
    seen = {}

    def layer(index: int):
        def hook(mlp, inputs):
            x = inputs[0]
            if hasattr(mlp, "gate_proj"):
                pre, post = mlp.gate_proj(x), silu(mlp.gate_proj(x)) * mlp.up_proj(x)
            elif hasattr(mlp, "dense_h_to_4h"):
                pre, post = mlp.dense_h_to_4h(x), gelu(mlp.dense_h_to_4h(x))
            else:
                pre, post = mlp.c_fc(x), gelu(mlp.c_fc(x), approximate="tanh")
            seen[index] = pre, post

        return hook

    model.set_attn_implementation("eager")
    base = model.base_model
    for index, block in enumerate(base.h if hasattr(base, "h") else base.layers):
        block.mlp.register_forward_pre_hook(layer(index))
    with torch.no_grad():
        model.eval()(tokens)
    return seen


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_trunk_yields_the_plain_models_activations(tmp_path, text, architecture):
    model = ARCHITECTURES[architecture](2)
    folder = save_seed(model, tmp_path / "seed")
    check_seed("a", folder, text, 256)
    # CRFM's eager attention computes in fp32 whatever the weights are
    dtype = torch.float32 if architecture == "crfm" else torch.float64
    expected, seen = by_hand(model.to(dtype), text.tokens[:2]), {}
    Trunk(load_model(folder, dtype)).run(text.tokens[:2], lambda layer, pre, post: seen.update({layer: (pre, post)}))
    assert seen.keys() == expected.keys() == {0, 1}
    for layer in seen:
        torch.testing.assert_close(seen[layer], expected[layer], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("way", "least", "most"), [("fp32", 0, 4e-4), ("TF32", 0, 4e-4), ("split bf16", 1e-3, 0.05)])
def test_attention_in_tf32_adds_no_noise_to_that_of_the_mlps(text, way, least, most):
    """What a GPU's matrix units do to a shipped seed, rounded by hand; weights split into two bf16 parts do not help
    while the activations are in one. The largest noise of a neuron as a share of its variance (docs/scaling.md)."""

    def rounded(x):
        if way == "TF32":  # 10 bits after the first
            return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)
        return x.bfloat16().float() if way == "split bf16" else x

    def instead(module):
        weight, bias = module.weight, module.bias
        parts = [rounded(weight)] + [rounded(weight - rounded(weight))] * (way == "split bf16")
        return lambda x: sum(rounded(x) @ part for part in parts) + bias

    def activations(dtype, mixed):
        model, seen = load_model(SHIPPED / "a", dtype), []
        trunk = Trunk(model, mixed)
        for block, *_ in mlps(model) if mixed else ():
            block.attn.c_attn.forward, block.attn.c_proj.forward = map(instead, (block.attn.c_attn, block.attn.c_proj))
        trunk.run(text.tokens[:6], lambda layer, pre, post: seen.append(post[counted].double()))
        return torch.cat(seen, 1)

    counted = text.counted(torch.arange(6))
    exact = activations(torch.float64, False)
    noise = (activations(torch.float32, True) - exact).square().mean(0) / exact.var(0)
    assert least < noise.max() < most


@pytest.mark.parametrize("model", ["shipped", *ARCHITECTURES])
def test_mixed_precision_adds_little_noise(tmp_path, text, model):
    """Noise as a share of each neuron's variance; attention in bf16 gives the shipped seeds up to 8e-3."""
    folder = SHIPPED / "a" if model == "shipped" else save_seed(ARCHITECTURES[model](2), tmp_path / "seed")
    posts = []
    for mixed in (False, True):
        seen = {}
        Trunk(load_model(folder), mixed).run(
            text.tokens[:16], lambda layer, _pre, post, seen=seen: seen.update({layer: post.flatten(0, 1).double()})
        )
        posts.append(torch.stack(list(seen.values())))
    exact, rounded = posts
    noise = (rounded - exact).var(1) / exact.var(1).clamp(min=1e-12)
    assert 0 < noise.median() < 1e-4 and noise.max() < 1e-3


@pytest.mark.parametrize("model", ["shipped", *ARCHITECTURES])
def test_trunk_yields_the_bridges_activations(tmp_path, text, model):
    folder = SHIPPED / "a" if model == "shipped" else save_seed(ARCHITECTURES[model](2), tmp_path / "seed")
    tokens = text.tokens[:4]
    seen = {dtype: {} for dtype in (torch.float64, torch.float32)}
    for dtype, own in seen.items():
        Trunk(load_model(folder, dtype)).run(
            tokens, lambda layer, pre, post, own=own: own.update({layer: (pre.double(), post.double())})
        )
    bridge = TransformerBridge.boot_transformers(str(folder), device="cpu", dtype=torch.float64)
    _, cache = bridge.run_with_cache(tokens)
    assert all(len(own) == bridge.cfg.n_layers for own in seen.values())
    for layer in range(bridge.cfg.n_layers):
        for place, name in enumerate(("hook_pre", "hook_post")):
            wanted = cache[f"blocks.{layer}.mlp.{name}"]
            assert wanted.dtype == torch.float64
            torch.testing.assert_close(seen[torch.float64][layer][place], wanted, atol=2e-5, rtol=1e-4)
            torch.testing.assert_close(
                seen[torch.float32][layer][place], wanted, atol=1e-4, rtol=1e-4
            )  # fp32's own rounding


def test_weight_properties_of_pythias_architecture_are_folded_by_hand(tmp_path):
    model = neox_model(1)
    table = weight_properties(save_seed(model, tmp_path / "seed"))
    for layer, block in enumerate(model.double().base_model.layers):
        gain, shift = block.post_attention_layernorm.weight, block.post_attention_layernorm.bias
        reads = block.mlp.dense_h_to_4h.weight * gain  # (neurons, d_model)
        bias = block.mlp.dense_h_to_4h.bias + block.mlp.dense_h_to_4h.weight @ shift
        reads = reads - reads.mean(dim=1, keepdim=True)
        writes = (block.mlp.dense_4h_to_h.weight - block.mlp.dense_4h_to_h.weight.mean(dim=0)).T  # (neurons, d_model)
        own = table[table["layer"] == layer]
        expected = {
            "w_in_norm": reads.norm(dim=1),
            "w_out_norm": writes.norm(dim=1),
            "input_bias": bias,
            "in_out_sim": torch.cosine_similarity(reads, writes),
        }
        for name, values in expected.items():
            torch.testing.assert_close(
                torch.tensor(own[name].to_numpy()), values.detach().float(), atol=1e-5, rtol=1e-5
            )


def test_gated_neuron_has_no_reading_columns(tmp_path):
    table = weight_properties(save_seed(llama_model(1), tmp_path / "seed"))
    assert table[READING_COLUMNS].isna().all(axis=None) and table.drop(columns=READING_COLUMNS).notna().all(axis=None)


@pytest.mark.parametrize(
    "content, reason", [(None, "there is no folder"), ("{", "cannot be read"), ("{}", "cannot be read")]
)
def test_missing_or_broken_config_is_refused_before_the_text_is_read(tmp_path, make_run, seed_folders, content, reason):
    folder = tmp_path / "broken"
    if content is not None:
        folder.mkdir()
        (folder / "config.json").write_text(content)
    run = make_run({"a": seed_folders["a"], "b": folder})
    for call in (lambda: collect(run), lambda: forecast.lines(run.params)):
        with pytest.raises(InputError, match=f"^seed 'b': .*{reason}") as error:
            call()
        assert "\n" not in str(error.value)


def test_loss_leaves_out_padding(seed_folders):
    model, text = load_model(seed_folders["a"]), read_text(TEXT).take(3 * 256)
    tokens = text.tokens.clone()
    tokens[1:, 100:] = text.bos_id
    rows = losses("a", model, replace(text, tokens=tokens))
    with torch.no_grad():
        logits = model(tokens).logits[:, :-1].double().log_softmax(-1)
    target = tokens[:, 1:]
    own = -logits.gather(-1, target[..., None])[..., 0][target != text.bos_id]
    assert rows[0]["domain"] == "all" and rows[0]["tokens"] == len(own)
    assert rows[0]["loss"] == pytest.approx(own.mean().item(), rel=1e-5)
