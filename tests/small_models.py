"""Tiny random models of the real architecture classes, as the real repositories hold them."""

import shutil
from pathlib import Path

import torch
from conftest import TOKENIZER, save_seed, small_model
from transformers import (
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


def crfm_model(seed: int) -> GPT2LMHeadModel:
    """GPT-2 as CRFM trained it: attention scaled by 1/layer and, in the eager implementation, upcast."""
    own = {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True, "n_positions": POSITIONS}
    config = GPT2Config(**small_model(seed).config.to_dict() | own)
    torch.manual_seed(seed)
    return _moved(GPT2LMHeadModel(config))


def neox_model(seed: int) -> GPTNeoXForCausalLM:
    """Pythia: parallel attention and MLP, rotary positions, exact GELU, untied and padded embeddings."""
    torch.manual_seed(seed)
    config = GPTNeoXConfig(**SHAPE | {"vocab_size": 8320}, num_attention_heads=2, intermediate_size=48, rotary_pct=0.25)
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
    save = save_as_pickle if architecture == "crfm" else save_seed
    model = ARCHITECTURES[architecture](seed)
    if own < 1:
        with torch.no_grad():
            shared = dict(ARCHITECTURES[architecture](10_000).named_parameters())
            for name, parameter in model.named_parameters():
                parameter.lerp_(shared[name], 1 - own)
    return save(model, folder)
