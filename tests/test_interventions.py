"""Interventions against the whole TransformerLens model run again with hooks, and effects against plain NumPy."""

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from lib import effects as effects_of
from lib.circuits import processed_model
from lib.errors import InputError
from lib.interventions import Fix, FreezeFinalScale, PathAblation, Scale, mean_ablation, run, zero_ablation
from lib.processed import processed

LAYERS, VOCABULARY, HEADS, NEURONS, CONTEXT = 3, 97, 2, 40, 12
LAST = LAYERS - 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=LAYERS, n_embd=16, n_head=HEADS, vocab_size=VOCABULARY, n_positions=24, bos_token_id=0, eos_token_id=0, n_inner=NEURONS,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    for parameter in model.parameters():  # no weight stays at its neutral start value
        parameter.data += 0.3 * torch.randn_like(parameter)
    path = tmp_path_factory.mktemp("seed")
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def bridge(folder):
    model = processed_model(folder)
    model.set_use_split_qkv_input(True)
    return model


@pytest.fixture(scope="module")
def model(bridge):
    return processed(bridge)


@pytest.fixture(scope="module")
def tokens():
    tokens = torch.randint(1, VOCABULARY, (7, CONTEXT), generator=torch.Generator().manual_seed(1))
    tokens[:, 0] = 0
    return tokens


@torch.no_grad()
def by_hooks(bridge, tokens, interventions):
    """(logits, final scale, attention by layer) of the whole model with one hook for every intervention."""
    kept = {}

    def fixing(item):
        def hook(activation, hook):
            activation = activation.clone()
            activation[..., item.neuron] = item.value if isinstance(item, Fix) else item.factor * activation[..., item.neuron]
            return activation

        return f"blocks.{item.layer}.mlp.hook_post", hook

    def keeping(item):
        def hook(activation, hook):
            kept[item] = activation[..., item.neuron, None] * bridge.blocks[item.layer].mlp.W_out[item.neuron]

        return f"blocks.{item.layer}.mlp.hook_post", hook

    def cutting(item):
        def hook(read, hook):  # (blocks, context, heads, d_model)
            read = read.clone()
            read[:, :, item.head] -= kept[item]
            return read

        return f"blocks.{item.head_layer}.attn.hook_{item.into}_input", hook

    patterns = [None] * LAYERS
    scales = []

    def watching(layer):
        def hook(pattern, hook):
            patterns[layer] = pattern

        return f"blocks.{layer}.attn.hook_pattern", hook

    def final(scale, hook):
        frozen = [item.scale for item in interventions if isinstance(item, FreezeFinalScale)]
        scales.append(frozen[-1][..., None] if frozen else scale)
        return scales[-1]

    hooks = [fixing(item) for item in interventions if isinstance(item, Fix | Scale)]
    for item in interventions:
        if isinstance(item, PathAblation):
            hooks += [keeping(item), cutting(item)]
    hooks += [watching(layer) for layer in range(LAYERS)] + [("ln_final.hook_scale", final)]
    logits = bridge.run_with_hooks(tokens, fwd_hooks=hooks)
    return logits, scales[-1][..., 0], patterns


def logits_of(model, trace):
    centred = trace.final - trace.final.mean(-1, keepdim=True)
    return centred / trace.scale[..., None] @ model.unembedding + model.unembedding_bias


CASES = {
    "nothing": [],
    "fix": [Fix(1, 3, 2.5)],
    "fix in the last layer": [Fix(LAST, 3, 2.5)],
    "scale": [Scale(0, 5, -2.0)],
    "zero ablation": [zero_ablation(1, 7)],
    "mean ablation": [mean_ablation(0, 7, 0.31)],
    "two layers, and one neuron twice": [Fix(0, 2, 1.5), Scale(2, 4, 3.0), Scale(0, 2, -1.0), Scale(2, 4, -1.0)],
    "path into q": [PathAblation(0, 4, 1, 1, "q")],
    "path into k": [PathAblation(0, 4, 2, 0, "k")],
    "path into v": [PathAblation(1, 9, 2, 1, "v")],
    "paths of a fixed neuron into two inputs of a head": [
        Fix(0, 4, 3.0), PathAblation(0, 4, 2, 0, "q"), PathAblation(0, 4, 2, 0, "k"), PathAblation(1, 8, 2, 0, "q"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("interventions", CASES.values(), ids=CASES.keys())
def test_a_run_equals_the_whole_model_with_hooks(bridge, model, tokens, interventions):
    unchanged = run(model, tokens)
    frozen = [*interventions, FreezeFinalScale(unchanged.scale)]
    if interventions:
        assert (run(model, tokens, interventions).final - unchanged.final).abs().max() > 1e-2
    for some in (interventions, frozen):
        logits, scale, _ = by_hooks(bridge, tokens, some)
        for trace in (run(model, tokens, some), run(model, tokens, some, unchanged)):
            torch.testing.assert_close(trace.scale, scale, rtol=0, atol=1e-4)
            torch.testing.assert_close(logits_of(model, trace).log_softmax(-1), logits.log_softmax(-1), rtol=0, atol=1e-4)
