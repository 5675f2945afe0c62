"""Seed models: from a Hugging Face folder or Hub id to a trunk that yields every layer's MLP activations.

The trunk is the plain transformers model with SDPA attention, stopped after the last MLP's activation function; no
logits are computed. That function's input is the pre-activation and its output the activation (TransformerLens
`hook_pre` and `hook_post`).
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from lib.errors import InputError
from lib.text import Text, file_sha256

WEIGHTS = "model.safetensors"


def check_seed(name: str, folder: Path, text: Text, context: int) -> None:
    """Refuses a local seed folder that cannot be used with this text, before any work is done.

    Raises InputError with one sentence for: no folder, no config, no weights, truncated or corrupt weights, NaN or
    infinite weights, another vocabulary or tokeniser than the text's, a context longer than the model's.
    """
    for file, what in (("config.json", "config"), (WEIGHTS, "weights"), ("tokenizer.json", "tokeniser")):
        if not (folder / file).is_file():
            raise InputError(f"seed '{name}': {folder} has no {what} (a file {file} in Hugging Face format is needed).")
    try:
        config = AutoConfig.from_pretrained(folder)
    except (ValueError, OSError, json.JSONDecodeError) as error:
        raise InputError(f"seed '{name}': {folder}/config.json cannot be read ({_first_line(error)}).") from error
    try:
        with safe_open(folder / WEIGHTS, "pt") as weights:
            broken = next((key for key in weights.keys() if not weights.get_tensor(key).isfinite().all()), None)
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"seed '{name}': {folder / WEIGHTS} is truncated or corrupt ({_first_line(error)}); copy it again."
        ) from error
    if broken:
        raise InputError(f"seed '{name}': {folder / WEIGHTS} has NaN or infinite values in '{broken}'.")
    if config.vocab_size != text.vocab_size:
        raise InputError(
            f"seed '{name}' has a vocabulary of {config.vocab_size} tokens but the text was made with {text.vocab_size}; "
            "all seeds and the text must share one tokeniser."
        )
    if file_sha256(folder / "tokenizer.json") != text.tokenizer_sha256:
        raise InputError(
            f"seed '{name}': {folder}/tokenizer.json is not the tokeniser that the text was made with (their SHA-256 "
            "differ); all seeds and the text must share one tokeniser."
        )
    longest = config.max_position_embeddings
    if context > longest:
        raise InputError(f"context is {context} but seed '{name}' was made for at most {longest} positions.")


def load_model(source: str | Path, revision: str | None = None, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The causal language model in a local folder or on the Hub, in evaluation mode with SDPA attention."""
    transformers_logging.disable_progress_bar()
    options = {} if revision is None else {"revision": revision}
    model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, attn_implementation="sdpa", **options)
    return model.eval().requires_grad_(False)


class _AllSeen(Exception):
    """Raised by the last layer's hook, since nothing after it is needed."""


class Trunk:
    """One seed model, run no further than its last MLP activation."""

    def __init__(self, model: nn.Module):
        self.base = model.base_model
        self.layers: list[nn.Module] = []
        for block in self._blocks():
            name = "act" if hasattr(block.mlp, "act") else "act_fn"
            if type(getattr(block.mlp, name)).__name__ == "NewGELUActivation":
                setattr(block.mlp, name, nn.GELU(approximate="tanh"))  # the same function in one operation, METHOD §1
            self.layers.append(getattr(block.mlp, name))

    def _blocks(self) -> nn.ModuleList:
        for name in ("h", "layers"):
            if hasattr(self.base, name):
                return getattr(self.base, name)
        raise InputError(f"{type(self.base).__name__} is not supported; GPT-2 and GPT-NeoX style models are.")

    @torch.inference_mode()
    def run(
        self, tokens: Int[Tensor, "blocks context"], visit: Callable[[int, Tensor, Tensor], None], layers: int | None = None
    ) -> None:
        """Calls visit(layer, pre, post) for the first `layers` layers in order, or for all, and goes no further.

        Both activations have shape (blocks, context, neurons).
        """
        read = self.layers[:layers]
        last = len(read) - 1

        def hook(layer: int):
            def seen(_module, inputs, output):
                visit(layer, inputs[0], output)
                if layer == last:
                    raise _AllSeen

            return seen

        handles = [module.register_forward_hook(hook(i)) for i, module in enumerate(read)]
        try:
            self.base(tokens, use_cache=False)
        except _AllSeen:
            pass
        finally:
            for handle in handles:
                handle.remove()


@torch.inference_mode()
def token_losses(model: nn.Module, tokens: Int[Tensor, "blocks context"]) -> Float[Tensor, "blocks context-1"]:
    """Cross-entropy in nats of each token given the ones before it in its block."""
    logits = model(tokens, use_cache=False).logits[:, :-1].float()  # (blocks, context − 1, vocabulary)
    return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(
        len(tokens), -1
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
