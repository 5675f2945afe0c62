"""Tiny random models of the real architecture classes, as the real repositories hold them."""

import shutil
from functools import partial
from pathlib import Path

import torch
from conftest import TOKENIZER, save_seed, small_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

POSITIONS = 512  # the studies' context
SHAPE = dict(
    vocab_size=8192,
    hidden_size=32,
    num_hidden_layers=2,
    max_position_embeddings=POSITIONS,
    initializer_range=0.3,
    bos_token_id=0,
    eos_token_id=0,
    tie_word_embeddings=False,
)


def crfm_model(seed: int, **shape: int) -> GPT2LMHeadModel:
    """GPT-2 as CRFM trained it: attention scaled by 1/layer and, in the eager implementation, upcast."""
    own = {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True, "n_positions": POSITIONS}
    config = GPT2Config(**small_model(seed, **shape).config.to_dict() | own)
    torch.manual_seed(seed)
    return _moved(GPT2LMHeadModel(config))


def neox_model(seed: int, neurons: int = 48) -> GPTNeoXForCausalLM:
    """Pythia: parallel attention and MLP, rotary positions, exact GELU, untied and padded embeddings."""
    torch.manual_seed(seed)
    shape = SHAPE | {"vocab_size": 8320, "intermediate_size": neurons}
    config = GPTNeoXConfig(**shape, num_attention_heads=2, rotary_pct=0.25)
    return _moved(GPTNeoXForCausalLM(config))


def llama_model(seed: int) -> LlamaForCausalLM:
    """A gated MLP and grouped-query attention."""
    torch.manual_seed(seed)
    config = LlamaConfig(**SHAPE, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48)
    return _moved(LlamaForCausalLM(config))


def _moved(model: PreTrainedModel) -> PreTrainedModel:
    """No weight stays at its neutral start value (LayerNorm 1 and 0, bias 0)."""
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


ARCHITECTURES = {"gpt2": small_model, "crfm": crfm_model, "neox": neox_model, "llama": llama_model}
# The same in other sizes, for studies whose models differ in size
SIZES = {"14m": 24, "31m": 32, "70m": 40, "160m": 48, "410m": 64}  # neurons of a layer in stand-ins of Pythia
SIZED = {f"neox-{size}": partial(neox_model, neurons=number) for size, number in SIZES.items()}
SIZED["crfm-medium"] = partial(crfm_model, layers=3, neurons=64)


# Flags of real repositories, by the `model_type` that they belong to; every architecture is also tried without.
FLAGS = {
    "cohere": {"cohere, QK norm": dict(use_qk_norm=True)},
    "falcon": {
        "falcon-7b": dict(multi_query=True, parallel_attn=True, num_kv_heads=1),
        "falcon-40b": dict(new_decoder_architecture=True, num_kv_heads=2),
        "falcon-rw": dict(multi_query=False, parallel_attn=False, alibi=True, bias=True),
    },
    "gemma": {"gemma, tied": dict(tie_word_embeddings=True)},
    "gemma3_text": {"gemma-3, sliding": dict(sliding_window=8)},
    "gpt2": {
        "gpt2, CRFM": dict(scale_attn_by_inverse_layer_idx=True, reorder_and_upcast_attn=True),
        "gpt2, scores not scaled": dict(scale_attn_weights=False),
        "gpt2, ReLU": dict(activation_function="relu"),
    },
    "gpt_bigcode": {"santacoder": dict(multi_query=True), "bigcode, many heads": dict(multi_query=False)},
    "gpt_neox": {
        "pythia": dict(rotary_pct=0.25, hidden_act="gelu"),
        **{
            f"neox, {scaling} RoPE": dict(
                rope_parameters={
                    "rope_type": scaling,
                    "factor": 4.0,
                    "rope_theta": 10000.0,
                    "partial_rotary_factor": 0.5,
                    "original_max_position_embeddings": 16,
                }
            )
            for scaling in ("linear", "yarn", "dynamic")
        },
        "neox, no attention bias": dict(attention_bias=False),
        "neox, sequential": dict(use_parallel_residual=False, hidden_act="gelu_fast"),
    },
    "granite": {
        "granite-3": dict(
            logits_scaling=8.0, residual_multiplier=0.22, embedding_multiplier=12.0, attention_multiplier=0.0156
        )
    },
    "llama": {
        "llama-3.1": dict(
            rope_parameters={
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
                "rope_theta": 500000.0,
            }
        ),
        "llama, biases": dict(attention_bias=True, mlp_bias=True),
    },
    "mistral": {"mistral, sliding": dict(sliding_window=8)},
    "olmo": {"olmo, clipped": dict(clip_qkv=1.0)},
    "persimmon": {"persimmon, QK norm": dict(qk_layernorm=True, partial_rotary_factor=0.5)},
    "qwen2": {"qwen-2, sliding": dict(use_sliding_window=True, sliding_window=8, max_window_layers=1)},
    "stablelm": {"stablelm-2-12b": dict(use_parallel_residual=True, qk_layernorm=True, use_qkv_bias=True)},
    "starcoder2": {"starcoder2, tied": dict(tie_word_embeddings=True)},
}
NEEDED = {  # by two layers, and by an attention whose keys are compressed
    "minicpm3": dict(num_key_value_heads=4),
    "qwen3_5_text": dict(layer_types=["linear_attention", "full_attention"]),
}
SMALL = dict(
    vocab_size=97,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    intermediate_size=48,
    n_inner=48,
    ffn_hidden_size=48,
    max_position_embeddings=64,
    initializer_range=0.3,
    bos_token_id=0,
    eos_token_id=0,
    pad_token_id=None,
    tie_word_embeddings=False,
    attn_implementation="sdpa",
)


def model_of_type(kind: str, seed: int = 0, **flags) -> PreTrainedModel:
    """A small random model of a `model_type`; of flags and sizes that are not given, those the type has."""
    known = AutoConfig.for_model(kind)
    attributes = {**known.attribute_map, **{name: name for name in vars(known)}}
    skipped = ("head_dim",) if kind == "falcon" else ()
    own = {name: value for name, value in SMALL.items() if name in attributes and name not in skipped}
    config = AutoConfig.for_model(kind, **own | {"pad_token_id": None} | NEEDED.get(kind, {}) | flags)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    for parameter in model.parameters():  # gains far from 1, as e^N(0, 1)
        if parameter.ndim == 1:
            parameter.data += torch.randn_like(parameter).exp() - 1
        else:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def save_as_pickle(model: GPT2LMHeadModel, folder: Path) -> Path:
    """A seed folder with pytorch_model.bin, as the CRFM repositories have, old mask buffers included."""
    model.config.save_pretrained(folder)
    masks = {}
    for layer in range(model.config.n_layer):
        masks[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, POSITIONS, POSITIONS, dtype=torch.bool).tril()
        masks[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    torch.save(model.state_dict() | masks, folder / "pytorch_model.bin")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, folder)
    return folder


def save_small_model(architecture: str, seed: int, folder: Path, own: float = 1.0) -> Path:
    """One seed of an architecture in the format in which its studies' repositories hold it.

    Of each weight a share `own` is the seed's and the rest the same in all seeds, which have neurons in common below 1.
    """
    save = save_as_pickle if architecture.startswith("crfm") else save_seed
    make = (ARCHITECTURES | SIZED)[architecture]
    model = make(seed)
    if own < 1:
        with torch.no_grad():
            shared = dict(make(10_000).named_parameters())
            for name, parameter in model.named_parameters():
                parameter.lerp_(shared[name], 1 - own)
    return save(model, folder)
