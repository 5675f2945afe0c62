"""Tiny random models of the real architecture classes, as the real repositories hold them."""

import shutil
from pathlib import Path

import torch
from conftest import TOKENIZER, save_seed, small_model
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

SHAPE = dict(
    vocab_size=8192, hidden_size=32, num_hidden_layers=2, max_position_embeddings=256, initializer_range=0.3,
    bos_token_id=0, eos_token_id=0, tie_word_embeddings=False,
)  # fmt: skip


def neox_model(seed: int) -> GPTNeoXForCausalLM:
    """Pythia's architecture: parallel attention and MLP, rotary positions, exact GELU, untied embeddings."""
    torch.manual_seed(seed)
    config = GPTNeoXConfig(**SHAPE, num_attention_heads=2, intermediate_size=48, rotary_pct=0.25)
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


ARCHITECTURES = {"gpt2": small_model, "neox": neox_model, "llama": llama_model}


def save_as_pickle(model: PreTrainedModel, folder: Path) -> Path:
    """A seed folder with pytorch_model.bin, the only weights that the CRFM repositories have."""
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, folder)
    return folder


def save_stand_in(architecture: str, seed: int, folder: Path) -> Path:
    """One seed of an architecture in the format in which its studies' repositories hold it."""
    save = save_as_pickle if architecture == "gpt2" else save_seed
    return save(ARCHITECTURES[architecture](seed), folder)
