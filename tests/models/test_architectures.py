"""Every architecture of the table, with the flags of real repositories, is what plain transformers makes of it.

Activations, logits of folded weights, reading weights and processed models are each compared with the plain model. The
table in docs/models-and-text.md is made from what is compared here.
"""

import copy
from types import SimpleNamespace

import pytest
import torch
from conftest import save_seed
from small_models import FLAGS, model_of_type
from torch.nn.functional import layer_norm, rms_norm

from lib.base.errors import InputError
from lib.base.params import ROOT
from lib.collect.planner import shape_of
from lib.collect.prices import forward_rate
from lib.models.architectures import ARCHITECTURES
from lib.models.folded import folded, folding_error
from lib.models.processed import processed
from lib.models.trunk import Trunk, load_model, mlps
from lib.models.weights import READING_COLUMNS, weight_properties

CASES = {kind: (kind, {}) for kind in ARCHITECTURES}
CASES |= {name: (kind, flags) for kind, own in FLAGS.items() for name, flags in own.items()}
# The norm that the MLP reads, and its first projection, where a neuron has one vector w_in
READERS = {
    "apertus": ("feedforward_layernorm", "up_proj"),
    "arcee": ("post_attention_layernorm", "up_proj"),
    "falcon": ("input_layernorm", "dense_h_to_4h"),
    "falcon-40b": ("ln_mlp", "dense_h_to_4h"),
    "falcon-rw": ("post_attention_layernorm", "dense_h_to_4h"),
    "gpt2": ("ln_2", "c_fc"),
    "gpt_bigcode": ("ln_2", "c_fc"),
    "gpt_neox": ("post_attention_layernorm", "dense_h_to_4h"),
    "jais2": ("post_attention_layernorm", "up_proj"),
    "nemotron": ("post_attention_layernorm", "up_proj"),
    "persimmon": ("post_attention_layernorm", "dense_h_to_4h"),
    "starcoder2": ("post_attention_layernorm", "c_fc"),
}
FINAL = ("norm", "ln_f", "final_layer_norm", "final_layernorm")
AFTER = ("olmo2", "olmo3", "exaone4", "gemma3_text")  # a norm between the MLP and the residual stream


@pytest.fixture(scope="module", params=CASES)
def case(request):
    kind, flags = CASES[request.param]
    return request.param, kind, model_of_type(kind, **flags)


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(97, (3, 24), generator=torch.Generator().manual_seed(1))


def normed(x, centred: bool, eps: float = 0.0):
    return layer_norm(x, x.shape[-1:], eps=eps) if centred else rms_norm(x, x.shape[-1:], eps=eps)


def centred_norm(module) -> bool:
    """Whether it forgets a constant added to its input."""
    x = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(2))
    return torch.allclose(module(x), module(x + 3), atol=1e-4)


def final_norm(model):
    return next(getattr(model.base_model, name) for name in FINAL if hasattr(model.base_model, name))


@torch.no_grad()
def test_activations_are_the_plain_models(case, tokens):
    _, _, model = case
    seen, expected = {}, {}
    plain = copy.deepcopy(model)
    for layer, (_, _, act, writer) in enumerate(mlps(plain)):
        act.register_forward_pre_hook(lambda _m, inputs, layer=layer: expected.update({(layer, 0): inputs[0].clone()}))
        writer.register_forward_pre_hook(
            lambda _m, inputs, layer=layer: expected.update({(layer, 1): inputs[0].clone()})
        )
    plain(tokens)
    Trunk(copy.deepcopy(model)).run(
        tokens, lambda layer, pre, post: seen.update({(layer, 0): pre.clone(), (layer, 1): post.clone()})
    )
    assert len(seen) == len(expected) == 4
    for place, values in expected.items():
        torch.testing.assert_close(seen[place], values, rtol=1e-4, atol=1e-4 * float(values.abs().max()))


@torch.no_grad()
def test_logits_of_the_folded_weights_are_the_plain_models(case, tokens):
    """On a text, and from random vectors in place of the residual stream, which leave no weight unseen."""
    _, _, model = case
    weights = folded(model)
    spread = model(tokens).logits.std()
    assert folding_error(model, weights, tokens) < 1e-4 * spread
    norm, head = final_norm(model), model.get_output_embeddings()
    x = torch.randn(1, 400, 32, generator=torch.Generator().manual_seed(3)) * 50
    raw = head(norm(x))[0].double()
    own = normed(x[0].double(), centred_norm(norm)) @ weights.unembedding.double() + weights.unembedding_bias
    raw, own = (one - one.mean(-1, keepdim=True) for one in (raw, own))
    ratio = (raw * own).sum() / raw.square().sum()  # constant factors, as Granite's and Cohere's
    torch.testing.assert_close(own, ratio * raw, rtol=1e-4, atol=1e-4 * float(own.abs().max()))


@torch.no_grad()
def test_reading_weights_give_the_plain_models_pre_activations(case):
    name, kind, model = case
    weights = folded(model)
    assert (weights.w_in is not None) == ARCHITECTURES[kind].one_reader
    if weights.w_in is None:
        return
    norm_name, reader = READERS.get(name) or READERS[kind]
    x = torch.randn(1, 200, 32, generator=torch.Generator().manual_seed(4)) * 50
    for layer, (block, mlp, _, _) in enumerate(mlps(model)):
        norm = getattr(block, norm_name)
        own = normed(x, centred_norm(norm)) @ weights.w_in[layer].T + weights.b_in[layer]
        raw = getattr(mlp, reader)(norm(x))
        torch.testing.assert_close(own, raw, rtol=1e-4, atol=1e-4 * float(raw.abs().max()))


@torch.no_grad()
def test_a_neuron_moves_the_logits_along_its_column(case):
    """The vocabulary moments are those of the direct effect on the plain model's logits before the final norm."""
    name, kind, model = case
    weights = folded(model)
    for layer, (block, _, _, writer) in enumerate(mlps(model)):
        raw = writer.weight if type(writer).__name__ == "Conv1D" else writer.weight.T
        if kind in AFTER:  # behind the norm a neuron writes gain times its weights, over a length
            alone = block.post_feedforward_layernorm(100 * raw)
            alone = alone * (weights.w_out[layer].norm(dim=1) / alone.norm(dim=1))[:, None]
            raw = alone
        direction = raw - raw.mean(-1, keepdim=True) if weights.centred else raw
        torch.testing.assert_close(weights.w_out[layer], direction, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_processed_models_are_the_plain_models(case, tokens):
    name, kind, model = case
    if not ARCHITECTURES[kind].interventions:
        with pytest.raises(InputError, match=f"interventions need .*but .*{kind}"):
            processed(model)
        return
    found = processed(model).logits(tokens).log_softmax(-1)
    torch.testing.assert_close(found, model(tokens).logits.log_softmax(-1), rtol=1e-4, atol=1e-3)


def test_weight_properties_have_every_column_or_leave_it_empty(case):
    _, kind, model = case
    table = weight_properties(model)
    empty = [name for name in table if table[name].isna().all()]
    assert empty == ([] if ARCHITECTURES[kind].one_reader else [name for name in table if name in READING_COLUMNS])
    assert table.drop(columns=empty).notna().all(axis=None)


def test_a_saved_model_is_read_as_it_was(case, tmp_path, tokens):
    _, _, model = case
    read = load_model(save_seed(model, tmp_path / "seed"))
    with torch.no_grad():
        torch.testing.assert_close(read(tokens).logits, model(tokens).logits)


def test_its_shape_is_planned_and_its_speed_measured(case, tmp_path):
    _, _, model = case
    folder = save_seed(model, tmp_path / "seed")
    shape = shape_of(str(folder))
    assert (shape.layers, shape.neurons, shape.width, shape.vocabulary, shape.positions) == (2, 48, 32, 97, 64)
    assert shape.parameters == sum(one.numel() for one in model.parameters())
    small = SimpleNamespace(precision="bf16", batch=2, context=32)
    assert forward_rate(small, shape, str(folder), torch.device("cpu")) > 0


def test_a_gain_before_the_logits_is_in_the_variance_over_the_vocabulary():
    """OLMo2, whose norm TransformerLens leaves unfolded."""
    model = model_of_type("olmo2").double()
    head, gain = model.lm_head.weight.T, model.model.norm.weight
    unembedding = gain[:, None] * head
    unembedding = unembedding - unembedding.mean(1, keepdim=True)
    found = weight_properties(model_of_type("olmo2"))
    for layer, block in enumerate(model.model.layers):  # noqa: B007 - pandas reads it
        writes = block.post_feedforward_layernorm.weight * block.mlp.down_proj.weight.T
        cosine = torch.nn.functional.normalize(writes, dim=1) @ torch.nn.functional.normalize(unembedding, dim=0)
        own = torch.tensor(found.query("layer == @layer")["vocab_var"].to_numpy())
        torch.testing.assert_close(own, cosine.var(1, correction=0).float(), rtol=1e-4, atol=1e-6)


def documented() -> str:
    """The table of docs/models-and-text.md."""
    rows = ["| `model_type` | also tried | w_in | interventions |", "|---|---|---|---|"]
    for kind, gets in sorted(ARCHITECTURES.items()):
        tried = "; ".join(FLAGS.get(kind, {})) or "–"
        reads = "yes" if gets.one_reader else "–, gated"
        rows.append(f"| {kind} | {tried} | {reads} | {'yes' if gets.interventions else '–'} |")
    return "\n".join(rows) + "\n"


def test_the_documented_table_is_the_one_in_the_code():
    text = (ROOT / "docs" / "models-and-text.md").read_text(encoding="utf-8")
    assert documented() in text, f"docs/models-and-text.md needs this table:\n{documented()}"
