"""Interventions, effects and query paths against the whole TransformerLens model with hooks, in fp64 NumPy."""

import numpy as np
import pytest
import torch
from conftest import processed_model, save_seed
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from lib.base.errors import InputError
from lib.chapters.interventions import single_neurons
from lib.chapters.interventions.engine import Fix, FreezeFinalScale, Multiply, PathAblation, run
from lib.chapters.interventions.heads import query_path_ablations, value_norms
from lib.chapters.interventions.single_neurons import FIXED_FREQUENCY, FROZEN_SCALE, OUTCOMES, TOTAL
from lib.kernels import native, predictions
from lib.models.processed import processed

LAYERS, VOCABULARY, HEADS, NEURONS, CONTEXT = 3, 97, 2, 40, 12
LAST = LAYERS - 1


@pytest.fixture(scope="module", params=["gpt2", "gpt2, attention scaled by layer", "gpt_neox"])
def folder(request, tmp_path_factory):
    torch.manual_seed(0)
    shared = dict(vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0)
    model = (
        GPT2LMHeadModel(
            GPT2Config(
                n_layer=LAYERS,
                n_embd=16,
                n_head=HEADS,
                n_positions=24,
                n_inner=NEURONS,
                scale_attn_by_inverse_layer_idx=request.param != "gpt2",
                **shared,
            )
        )
        if request.param != "gpt_neox"
        else GPTNeoXForCausalLM(
            GPTNeoXConfig(
                hidden_size=16,
                num_hidden_layers=LAYERS,
                num_attention_heads=HEADS,
                intermediate_size=NEURONS,
                max_position_embeddings=24,
                rotary_pct=0.5,
                **shared,
            )
        )
    )
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
def model(folder):
    return processed(folder)


@pytest.fixture(scope="module")
def tokens():
    tokens = torch.randint(1, VOCABULARY, (7, CONTEXT), generator=torch.Generator().manual_seed(1))
    tokens[:, 0] = 0
    return tokens


@torch.no_grad()
def by_hooks(bridge, tokens, interventions):
    """(logits, final scale, patterns and mixed values by layer) of the whole model, one hook per intervention."""
    kept = {}

    def fixing(item):
        def hook(activation, hook):
            activation = activation.clone()
            activation[..., item.neuron] = (
                item.value if isinstance(item, Fix) else item.factor * activation[..., item.neuron]
            )
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

    patterns, mixed = [None] * LAYERS, [None] * LAYERS
    scales = []

    def watching(layer, name, seen):
        def hook(value, hook):
            seen[layer] = value

        return f"blocks.{layer}.attn.{name}", hook

    def final(scale, hook):
        frozen = [item.scale for item in interventions if isinstance(item, FreezeFinalScale)]
        scales.append(frozen[-1][..., None] if frozen else scale)
        return scales[-1]

    hooks = [fixing(item) for item in interventions if isinstance(item, Fix | Multiply)]
    for item in interventions:
        if isinstance(item, PathAblation):
            hooks += [keeping(item), cutting(item)]
    hooks += [watching(layer, "hook_pattern", patterns) for layer in range(LAYERS)]
    hooks += [watching(layer, "hook_z", mixed) for layer in range(LAYERS)] + [("ln_final.hook_scale", final)]
    logits = bridge.run_with_hooks(tokens, fwd_hooks=hooks)
    return logits, scales[-1][..., 0], patterns, mixed


def logits_of(model, trace):
    centred = trace.final - trace.final.mean(-1, keepdim=True)
    return centred / trace.scale[..., None] @ model.unembedding + model.unembedding_bias


CASES = {
    "nothing": [],
    "fix": [Fix(1, 3, 2.5)],
    "fix in the last layer": [Fix(LAST, 3, 2.5)],
    "multiply": [Multiply(0, 5, -2.0)],
    "zero ablation": [Fix(1, 7, 0.0)],
    "a set in each of two layers": [Fix(layer, neuron, 0.1 * neuron) for layer in (0, 1) for neuron in (31, 7, 12, 8)],
    "two layers, and one neuron twice": [
        Fix(0, 2, 1.5),
        Multiply(2, 4, 3.0),
        Multiply(0, 2, -1.0),
        Multiply(2, 4, -1.0),
    ],
    "path into q": [PathAblation(0, 4, 1, 1, "q")],
    "path into k": [PathAblation(0, 4, 2, 0, "k")],
    "path into v": [PathAblation(1, 9, 2, 1, "v")],
    "paths of a fixed neuron into two inputs of a head": [
        Fix(0, 4, 3.0),
        PathAblation(0, 4, 2, 0, "q"),
        PathAblation(0, 4, 2, 0, "k"),
        PathAblation(1, 8, 2, 0, "q"),
    ],
}


@pytest.mark.parametrize("interventions", CASES.values(), ids=CASES.keys())
def test_a_run_equals_the_whole_model_with_hooks(bridge, model, tokens, interventions):
    unchanged = run(model, tokens)
    frozen = [*interventions, FreezeFinalScale(unchanged.scale)]
    if interventions:
        assert (run(model, tokens, interventions).final - unchanged.final).abs().max() > 1e-2
    for some in (interventions, frozen):
        logits, scale, *_ = by_hooks(bridge, tokens, some)
        for trace in (run(model, tokens, some), run(model, tokens, some, unchanged)):
            torch.testing.assert_close(trace.scale, scale, rtol=0, atol=1e-4)
            torch.testing.assert_close(
                logits_of(model, trace).log_softmax(-1), logits.log_softmax(-1), rtol=0, atol=1e-4
            )


@pytest.mark.parametrize(
    "broken, said",
    [
        (Fix(LAYERS, 0, 1.0), "There is no neuron 0 in layer 3"),
        (Multiply(0, NEURONS, 1.0), "There is no neuron 40 in layer 0"),
        (PathAblation(1, 0, 1, 0), "No path leads from layer 1 into head 0 of layer 1"),
        (PathAblation(0, 0, 1, HEADS), "No path leads from layer 0 into head 2"),
        (PathAblation(0, 0, 1, 0, "z"), "into q, k or v of a head, not into 'z'"),
    ],
)
def test_neuron_head_or_path_that_the_model_lacks_is_refused(model, tokens, broken, said):
    with pytest.raises(InputError, match=said):
        run(model, tokens, [broken])


def test_query_paths_equal_the_whole_model_with_hooks(bridge, model, tokens):
    counted = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(5)) < 0.7
    pairs = [PathAblation(0, 4, 1, 1), PathAblation(1, 11, 2, 0), PathAblation(0, 6, 2, 1)]
    found = query_path_ablations(model, tokens, counted, pairs)
    counted[:, : CONTEXT // 2] = False

    @torch.no_grad()
    def head_of(pair, interventions):
        _, _, patterns, mixed = by_hooks(bridge, tokens, interventions)
        output = mixed[pair.head_layer][:, :, pair.head] @ bridge.W_O[pair.head_layer, pair.head]
        return patterns[pair.head_layer][:, pair.head, :, 0][counted], output.norm(dim=-1)[counted]

    for pair in pairs:
        own = found.query("layer == @pair.layer and neuron == @pair.neuron")
        (bos, norm), (bos_after, norm_after) = head_of(pair, []), head_of(pair, [pair])
        expected = {"bos": bos, "norm": norm, "bos_change": bos_after - bos, "norm_change": norm_after - norm}
        assert expected["bos_change"].abs().max() > 2e-3
        for name, values in expected.items():
            np.testing.assert_allclose(own[name], values.numpy(), atol=1e-4, err_msg=name)


def test_value_norms_equal_the_bridge_values(bridge, model, tokens):
    with torch.no_grad():
        _, cache = bridge.run_with_cache(tokens)
    table = value_norms(model, tokens).set_index(["layer", "head"])
    for layer in range(LAYERS):
        value = cache[f"blocks.{layer}.attn.hook_v"].view(*tokens.shape, HEADS, -1)
        for head in range(HEADS):
            norm = (value[:, :, head] @ bridge.W_O[layer, head].detach()).norm(dim=-1)  # b_V is in b_O
            expected = float(norm[:, 1:].mean() / norm[:, 0].mean())
            assert table.loc[(layer, head), "ratio_without_bias"] == pytest.approx(expected, rel=1e-3)


@torch.no_grad()
def test_value_norms_include_the_value_bias(folder, model, tokens):
    """From the values of the plain model, which have their bias."""
    plain, seen = AutoModelForCausalLM.from_pretrained(folder).double().eval(), []
    gpt2 = plain.config.model_type == "gpt2"
    attentions = [
        block.attn if gpt2 else block.attention for block in (plain.transformer.h if gpt2 else plain.gpt_neox.layers)
    ]
    for one in attentions:
        (one.c_attn if gpt2 else one.query_key_value).register_forward_hook(lambda _m, _i, output: seen.append(output))
    plain(tokens)
    table = value_norms(model, tokens).set_index(["layer", "head"])
    for layer, (one, output) in enumerate(zip(attentions, seen, strict=True)):
        value = (
            output.unflatten(-1, (3, HEADS, -1))[..., 2, :, :]
            if gpt2
            else output.unflatten(-1, (HEADS, 3, -1))[..., 2, :]
        )
        write = one.c_proj.weight if gpt2 else one.dense.weight.T  # (heads · d_head, d_model)
        write = (write - write.mean(1, keepdim=True)).unflatten(0, (HEADS, -1))
        for head in range(HEADS):
            norm = (value[:, :, head] @ write[head]).norm(dim=-1)
            row = table.loc[(layer, head)]
            assert row["bos"] == pytest.approx(float(norm[:, 0].mean()), rel=1e-4)
            assert row["others"] == pytest.approx(float(norm[:, 1:].mean()), rel=1e-4)
            assert row["ratio"] == pytest.approx(row["others"] / row["bos"])
    assert (table["ratio"] / table["ratio_without_bias"] - 1).abs().max() > 0.05


# ---------------------------------------------------------------- effects

COUNTS = torch.randint(0, 50, (VOCABULARY,), generator=torch.Generator().manual_seed(2))
FIXED = {(LAST, 3): [-0.17, 2.0], (1, 5): [0.5, 4.0], (LAST, 8): [0.0, 6.0]}


def by_numpy(logits, scale, target, frequency=None, reference=None):
    """OUTCOMES of one distribution in fp64, with the logits' projection on `frequency` put back to `reference`'s."""
    logits = logits.double().numpy()
    if frequency is not None:
        logits = logits + ((reference.double().numpy() - logits) @ frequency)[..., None] * frequency
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    unigram = (COUNTS.numpy() + 1) / (COUNTS.numpy() + 1).sum()
    own = np.take_along_axis(p, target[..., None].numpy(), -1)
    return np.stack(
        [
            -np.log(own[..., 0]),
            -(p * np.log(p)).sum(-1),
            (p * np.log(p / unigram)).sum(-1),
            1 / (1 + (p > own).sum(-1)),
            scale.double().numpy(),
        ],
        -1,
    )


@pytest.mark.parametrize("loops", [True, False])
def test_every_effect_equals_the_whole_model_with_hooks(bridge, model, tokens, monkeypatch, loops):
    if not loops:
        monkeypatch.setattr(native, "function", lambda name: None)
    counted = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(3)) < 0.6
    reading = single_neurons.readout(model, COUNTS)
    frequency = np.log(COUNTS.double().numpy() + 1)
    frequency = (frequency - frequency.mean()) / np.linalg.norm(frequency - frequency.mean())
    found = single_neurons.effects(model, reading, (tokens, counted), FIXED, (TOTAL, FROZEN_SCALE, FIXED_FREQUENCY))

    measured, target = counted[:, :-1], tokens[:, 1:]
    before_logits, before_scale, *_ = by_hooks(bridge, tokens, [])
    before = by_numpy(before_logits[:, :-1], before_scale[:, :-1], target)
    table = found.table().set_index(["layer", "neuron", "value", "variant"])
    for neuron, values in FIXED.items():
        for value in values:
            total = by_hooks(bridge, tokens, [Fix(*neuron, value)])
            frozen = by_hooks(bridge, tokens, [Fix(*neuron, value), FreezeFinalScale(before_scale)])
            for variant, (logits, scale, *_), extra in (
                (TOTAL, total, {}),
                (FROZEN_SCALE, frozen, {}),
                (FIXED_FREQUENCY, total, {"frequency": frequency, "reference": before_logits[:, :-1]}),
            ):
                change = by_numpy(logits[:, :-1], scale[:, :-1], target, **extra) - before
                row = table.loc[(*neuron, torch.tensor(value).item(), variant)]
                for index, outcome in enumerate(OUTCOMES):
                    assert row[f"{outcome}_change"] == pytest.approx(change[measured][:, index].mean(), abs=1e-4), (
                        neuron,
                        value,
                        variant,
                        outcome,
                    )
                    assert row[outcome] == pytest.approx((before + change)[measured][:, index].mean(), abs=1e-4)


def test_a_change_in_the_last_layer_runs_no_layer_again(model, tokens, monkeypatch):
    unchanged = run(model, tokens)
    calls = []
    monkeypatch.setattr(type(model), "mlp", lambda *a: calls.append(1))
    run(model, tokens, [Fix(LAST, 3, 1.0)], unchanged)
    assert not calls
    with pytest.raises(TypeError):
        run(model, tokens, [Fix(LAST - 1, 3, 1.0)], unchanged)
    assert len(calls) == 1


def test_the_standard_error_is_that_of_independent_blocks():
    generator = np.random.default_rng(0)
    sizes = generator.integers(1, 9, 400)
    by_block = generator.normal(0.3, 1.0, 400)  # one change for all tokens of a block
    sums = torch.zeros(400, 1, 1, 1, len(OUTCOMES))
    sums[:, 0, 0, 0, 0] = torch.from_numpy(by_block * sizes)
    found = (
        single_neurons.Effects(
            [(0, 0)],
            torch.zeros(1, 1),
            (TOTAL,),
            torch.from_numpy(sizes).double(),
            torch.zeros(400, len(OUTCOMES)),
            sums.double(),
        )
        .table()
        .iloc[0]
    )
    draws = generator.integers(0, 400, (4000, 400))
    bootstrap = (by_block * sizes)[draws].sum(1) / sizes[draws].sum(1)
    assert found["loss_change"] == pytest.approx((by_block * sizes).sum() / sizes.sum())
    assert found["loss_error"] == pytest.approx(bootstrap.std(), rel=0.05)


@pytest.mark.parametrize("vocabulary", [7, 200, 2000, 2003])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loops", [True, False])
def test_prediction_statistics_equal_a_plain_softmax_in_fp64(vocabulary, dtype, loops, monkeypatch):
    if not loops:
        monkeypatch.setattr(native, "function", lambda name: None)
    generator = torch.Generator().manual_seed(0)
    products, effects, constants = (torch.randn(rows, vocabulary, generator=generator) for rows in (7, 3, 3))
    constants[2], effects = constants[2].log_softmax(0), effects.to(dtype)
    target = torch.randint(0, vocabulary, (7,), generator=generator)
    row, effect = torch.arange(42) % 7, torch.arange(42) % 3
    moved = torch.tensor([0.0, 1.0, -5.0, 30.0, -300.0, 3e4]).repeat_interleave(7)
    scaling, along = torch.rand(42, generator=generator) + 0.5, torch.randn(42, generator=generator)
    cases = predictions.Cases(row, effect, moved, scaling, along)
    found = predictions.prediction_statistics(products, effects, cases, constants, target, products.argmax(1))
    logits = (products.double()[row] + moved.double()[:, None] * effects.double()[effect]) * scaling.double()[:, None]
    logits = logits + constants[0].double() + along.double()[:, None] * constants[1].double()
    log_p, own = logits.log_softmax(1), logits.gather(1, target[row][:, None])
    expected = torch.stack(
        [
            -log_p.gather(1, target[row][:, None])[:, 0],
            -(log_p.exp() * log_p).sum(1),
            (log_p.exp() * (log_p - constants[2].double())).sum(1),
            1 / (1 + (logits > own).sum(1)),
        ],
        1,
    )
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=2e-5)


def test_rounding_changes_to_bf16_does_not_bias_the_means():
    generator = torch.Generator().manual_seed(0)
    d_model, vocabulary, rows = 32, 1000, 1500
    products = (
        torch.randn(rows, d_model, generator=generator)
        @ (weight := torch.randn(d_model, vocabulary, generator=generator))
        / 3
    )
    change = torch.randn(rows, d_model, generator=generator) / 5
    one = torch.ones(rows)
    cases = predictions.Cases(torch.arange(rows), torch.arange(rows), one, one, 0 * one)
    constants, target = torch.zeros(3, vocabulary), torch.randint(0, vocabulary, (rows,), generator=generator)
    exact, rounded = (
        predictions.prediction_statistics(
            products, change.to(dtype) @ weight.to(dtype), cases, constants, target, target
        )
        for dtype in (torch.float32, torch.bfloat16)
    )
    before = predictions.prediction_statistics(
        products, change @ weight, cases._replace(moved=0 * one), constants, target, target
    )
    assert (exact - before).mean(0)[:2].abs().min() > 1e-2
    error = (rounded - exact)[:, :2]  # loss and entropy
    assert (error.std(0) < 2**-6 * (exact - before)[:, :2].std(0)).all()  # small on one token
    assert (error.mean(0).abs() < 4 * error.std(0) / rows**0.5).all()  # and without a sign


def test_gated_mlp_is_refused_in_one_sentence(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        hidden_act="gelu",
        bos_token_id=0,
        eos_token_id=0,
    )
    with pytest.raises(InputError, match="but seed 'gated' is llama, with a gated MLP"):
        processed(save_seed(LlamaForCausalLM(config), tmp_path / "gated"))
