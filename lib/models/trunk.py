"""Seed models: from a Hugging Face folder to a trunk that yields every layer's MLP activations.

The trunk is the plain transformers model with the attention and gelu_new of `lib.kernels.forward`. It stops before the
last MLP writes and computes no logits. The pre-activation is the input of the activation function; the activation is
the input of the projection to the residual stream (TransformerLens `hook_pre` and `hook_post`). In a gated MLP (Llama)
the activation is act(gate) · up, and the gate is the pre-activation.

transformers is imported where a model is loaded: it takes seconds, and what only reads tables comes here too.
"""

import json
import weakref
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lib.base.errors import InputError, first_line
from lib.base.hub import missing_part, weight_files
from lib.kernels.forward import causal_attention, tanh_gelu
from lib.kernels.native import keep_freed_memory
from lib.text.blocks import Text
from lib.text.tokens import tokenizer_hashes

# Names of modules in transformers
ACTIVATIONS = ("act", "act_fn")  # of an MLP
WRITERS = ("c_proj", "dense_4h_to_h", "down_proj")  # of an MLP: GPT-2, GPT-NeoX, Llama
ATTENTIONS = ("attn", "attention", "self_attn")  # of a block, in the same order
# Causal masks in old weight files, which no model reads; their large negative value is −∞ in half precision.
MASK_BUFFERS = tuple(f".{attention}.{mask}" for attention in ATTENTIONS for mask in ("bias", "masked_bias"))


def read_config(name: str, folder: Path):
    """A seed's config; InputError where there is none or it cannot be read."""
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise InputError(f"seed '{name}': {folder} has no {missing_part(())}.")
    try:
        return AutoConfig.from_pretrained(folder)
    except (ValueError, OSError, json.JSONDecodeError) as error:
        raise InputError(f"seed '{name}': {folder}/config.json cannot be read ({first_line(error)}).") from error


def check_seed(name: str, folder: Path, text: Text, context: int) -> None:
    """Refuses a seed folder that cannot be used with this text; `check_weights` reads its weights.

    Raises InputError in one sentence if the folder, config or weights are missing, if vocabulary or tokeniser differ
    from the text's, or if the context is longer than the model's.
    """
    missing = missing_part({path.name for path in folder.iterdir()} if folder.is_dir() else set())
    if missing:
        raise InputError(f"seed '{name}': {folder} has no {missing}.")
    config = read_config(name, folder)
    if config.vocab_size < text.vocab_size:  # a larger one is a padded embedding, as in Pythia
        raise InputError(
            f"seed '{name}' has a vocabulary of {config.vocab_size} tokens but the text was made with "
            f"{text.vocab_size}; all seeds and the text must share one tokeniser."
        )
    if text.tokenizer_sha256 not in tokenizer_hashes(name, folder):
        raise InputError(
            f"seed '{name}': the tokeniser in {folder} is not the tokeniser that the text was made with (their SHA-256 "
            "differ); all seeds and the text must share one tokeniser."
        )
    longest = config.max_position_embeddings
    if context > longest:
        raise InputError(f"context is {context} but seed '{name}' has at most {longest} positions.")


def check_weights(name: str, folder: Path) -> None:
    """Refuses a seed whose weights are truncated, corrupt, NaN or infinite: InputError in one sentence."""
    for path in weight_files(folder):
        try:
            broken = next(
                (key for key, tensor in _tensors(path) if not key.endswith(MASK_BUFFERS) and not _is_finite(tensor)),
                None,
            )
        except Exception as error:  # readers raise many types for broken files
            raise InputError(
                f"seed '{name}': {path} is truncated or corrupt ({first_line(error)}); copy it again."
            ) from error
        if broken:
            raise InputError(f"seed '{name}': {path} has NaN or infinite values in '{broken}'.")


def _tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a weight file; code pickled in PyTorch's own format is never run."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as weights:
            for key in weights.keys():
                yield key, weights.get_tensor(key)
    else:
        mapped = zipfile.is_zipfile(path)  # files older than torch 1.6 are not, and cannot be mapped
        yield from torch.load(path, map_location="cpu", weights_only=True, mmap=mapped).items()


def _is_finite(tensor: Tensor) -> bool:
    if tensor.dtype.itemsize == 1:  # torch cannot test eight-bit tensors for NaN
        tensor = tensor.float()
    return bool(tensor.isfinite().all())


def load_model(folder: str | Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The causal language model in a folder, in evaluation mode with SDPA attention.

    Raises InputError if the weights do not fit the model that the config describes.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # extra weights are harmless; missing ones are refused below
    try:
        model, loaded = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="sdpa", local_files_only=True, output_loading_info=True
        )
    except (ValueError, OSError, RuntimeError, SafetensorError) as error:
        raise InputError(f"the model in {folder} cannot be loaded ({first_line(error)}).") from error
    missing = sorted(loaded["missing_keys"])
    if missing:  # transformers would initialise them at random
        raise InputError(f"the weights in {folder} lack '{missing[0]}', which its config.json asks for.")
    return model.eval().requires_grad_(False)


ATTENTION = "trunk"  # the name of `_attention` in transformers


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **others,
):
    if attention_mask is not None or query.shape != key.shape:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **others)
    return causal_attention(query, key, value, query.shape[-1] ** -0.5 if scaling is None else scaling), None


@cache
def _register_attention() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ATTENTION, _attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)  # no mask where attention is plainly causal


class _TanhGELU(nn.Module):
    """gelu_new in one operation."""

    def forward(self, x: Tensor) -> Tensor:
        return tanh_gelu(x)


class _LastLayerSeen(Exception):
    """Raised by the last layer's hook, because nothing after it is needed."""


def _without_autocast(module: nn.Module) -> None:
    """Makes a module compute in the type of its weights, even inside autocast."""
    forward = type(module).forward
    reference = weakref.ref(module)  # a strong reference to itself would keep the model in memory after its pass

    def exact(*arguments, **named):
        own = reference()
        with torch.autocast(next(own.parameters()).device.type, enabled=False):
            return forward(own, *arguments, **named)

    module.forward = exact


class Trunk:
    """One seed model in fp32, run up to its last MLP activation.

    `mixed` multiplies in bf16 in the MLPs only. In a bf16 attention, a sharp head's large logits cancel: most neurons
    after it would get noise of 0.1 % of their variance or more, which moves correlations by up to 2e-3. With `mixed`
    the noise stays below 4e-4 of the variance on the shipped seed a.
    """

    def __init__(self, model: nn.Module, mixed: bool = False):
        keep_freed_memory()
        if mixed:  # of a GPU's attention: rounding to TF32's 11 bits leaves a sixteenth of the noise of bf16's 8
            torch.backends.cuda.matmul.allow_tf32 = True
        _register_attention()
        model.set_attn_implementation(ATTENTION)
        self.base, self.mixed = model.base_model, mixed
        self.activations: list[nn.Module] = []  # a layer's activation function
        self.writers: list[nn.Module] = []  # its projection to the residual stream
        for block in getattr(self.base, "h", None) or getattr(self.base, "layers", ()):
            mlp = getattr(block, "mlp", None)
            act, writer = (next((n for n in names if hasattr(mlp, n)), None) for names in (ACTIVATIONS, WRITERS))
            if not act or not writer:
                break
            if type(getattr(mlp, act)).__name__ == "NewGELUActivation":
                setattr(mlp, act, _TanhGELU())
            if mixed:
                _without_autocast(next(getattr(block, name) for name in ATTENTIONS if hasattr(block, name)))
            self.activations.append(getattr(mlp, act))
            self.writers.append(getattr(mlp, writer))
        if not self.writers or len(self.writers) < model.config.num_hidden_layers:
            raise InputError(
                f"{type(model).__name__} is not supported; models in the style of GPT-2, GPT-NeoX and Llama are."
            )

    @torch.inference_mode()
    def run(
        self,
        tokens: Int[Tensor, "blocks context"],
        visit: Callable[[int, Tensor, Tensor], None],
        layers: int | None = None,
    ) -> None:
        """Calls visit(layer, pre, post) for the first `layers` layers (default: all) in order, then stops.

        Both activations have shape (blocks, context, neurons).
        """
        activations, writers = self.activations[:layers], self.writers[:layers]
        last = len(writers) - 1
        pre: dict[int, Tensor] = {}

        def activating(layer: int):
            return lambda _module, inputs: pre.update({layer: inputs[0]})

        def writing(layer: int):
            def seen(_module, inputs):
                with torch.autocast(tokens.device.type, enabled=False):
                    visit(layer, pre.pop(layer), inputs[0])
                if layer == last:
                    raise _LastLayerSeen

            return seen

        handles = [module.register_forward_pre_hook(activating(i)) for i, module in enumerate(activations)]
        handles += [module.register_forward_pre_hook(writing(i)) for i, module in enumerate(writers)]
        try:
            with torch.autocast(tokens.device.type, torch.bfloat16, enabled=self.mixed):
                self.base(tokens, use_cache=False)
        except _LastLayerSeen:
            pass
        finally:
            for handle in handles:
                handle.remove()


@torch.inference_mode()
def token_losses(model: nn.Module, tokens: Int[Tensor, "blocks context"]) -> Float[Tensor, "blocks context-1"]:
    """Cross-entropy in nats of each token given the preceding ones of its block."""
    logits = model(tokens, use_cache=False).logits[:, :-1].float()  # (blocks, context − 1, vocabulary)
    losses = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    return losses.view(len(tokens), -1)
