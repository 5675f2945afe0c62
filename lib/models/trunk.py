"""Seed models: from a Hugging Face folder to a trunk that yields every layer's MLP activations.

The trunk is the plain transformers model with the attention and gelu_new of `lib.kernels.forward`. It stops before the
last MLP writes and computes no logits. The pre-activation is the input of the activation function; the activation is
the input of the projection to the residual stream (TransformerLens `hook_pre` and `hook_post`). In a gated MLP (Llama)
the activation is act(gate) · up, and the gate is the pre-activation.

transformers is imported where a model is loaded: it takes seconds, and what only reads tables comes here too.
"""

import contextlib
import json
import re
import weakref
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from torch import Tensor, nn

from lib.base.errors import InputError, first_line
from lib.base.files import is_lfs_pointer
from lib.base.hub import missing_part, needed_files, seed_config, weight_files
from lib.base.params import Params
from lib.kernels.forward import causal_attention, tanh_gelu
from lib.kernels.native import keep_freed_memory
from lib.models.architectures import check_architecture, positions_of, without_interventions
from lib.text.blocks import Text
from lib.text.tokens import tokenizer_hashes

# Names of modules in transformers
ACTIVATIONS = ("act", "act_fn")  # of an MLP
WRITERS = ("c_proj", "dense_4h_to_h", "down_proj")  # of an MLP: GPT-2, GPT-NeoX, Llama
ATTENTIONS = ("attn", "attention", "self_attn", "self_attention", "linear_attn")  # of a block
# Causal masks in old weight files, which no model reads; their large negative value is −∞ in half precision.
MASK_BUFFERS = tuple(f".{attention}.{mask}" for attention in ATTENTIONS for mask in ("bias", "masked_bias"))

ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
WEIGHTS = (".weight", ".bias")


def read_config(name: str, folder: Path):
    """A seed's config; InputError where there is none, it cannot be read, or its architecture is not supported."""
    from transformers import AutoConfig

    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"seed '{name}': {folder} has no {missing_part(())}.")
    refuse_lfs_pointer(name, path)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers raises many types for a broken config
        with contextlib.suppress(ValueError, AttributeError):
            if "auto_map" in json.loads(path.read_text(encoding="utf-8")):
                raise InputError(
                    f"seed '{name}': the model in {folder} needs code of its own (auto_map in config.json), which is "
                    "never run; only architectures that transformers has are supported."
                ) from error
        raise InputError(f"seed '{name}': {path} cannot be read ({first_line(error)}).") from error
    check_architecture(name, config)
    return config


def no_interventions(params: Params) -> str | None:
    """Why a run's interventions are left out, in a sentence, or None. All seeds are asked, the reference first."""
    for name in sorted(params.seeds, key=lambda name: name != params.reference):
        if reason := without_interventions(name, read_config(name, Path(seed_config(params, name)))):
            return reason
    return None


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
    check_context(name, positions_of(config), context)


def check_context(name: str, longest: int, context: int) -> None:
    """Refuses a context that is longer than the seed's model has positions."""
    if context > longest:
        raise InputError(f"context is {context} but seed '{name}' has at most {longest} positions.")


def refuse_lfs_pointer(name: str, path: Path) -> None:
    """Refuses the few lines that git-lfs leaves in place of a large file."""
    if is_lfs_pointer(path):
        raise InputError(
            f"seed '{name}': {path} is only git-lfs's pointer to the file; fetch the file with `git lfs pull`."
        )


def check_files(name: str, folder: Path) -> None:
    """Refuses a seed whose files do not fit together; only the headers of weights are read.

    Raises InputError in one sentence if a part is missing, is a git-lfs pointer, is an adapter that would be left out,
    if weights are integers, or if their names and shapes are not those that the config asks for.
    """
    names = {path.name for path in folder.iterdir()}
    if missing := missing_part(names):
        raise InputError(f"seed '{name}': {folder} has no {missing}.")
    read_config(name, folder)
    for file in sorted(needed_files(names)):
        refuse_lfs_pointer(name, folder / file)
    if adapters := sorted(names & set(ADAPTERS)):
        raise InputError(
            f"seed '{name}': {folder} has an adapter beside its weights ({adapters[0]}), which would be left out; "
            "merge it into the weights (merge_and_unload of peft) or move it away."
        )
    for path in weight_files(folder):
        for key, kind in _read(name, path, _types):
            whole = re.match(r"[iu]\d|u?int|bool", kind.lower())
            if whole and key.endswith(WEIGHTS) and not key.endswith(MASK_BUFFERS):
                needed = "weights in fp32, fp16 or bf16 are needed"
                raise InputError(f"seed '{name}': '{key}' in {path} holds integers ({kind}); {needed}.")
    load_model(folder, "meta", f"seed '{name}': ")


def check_weights(name: str, folder: Path) -> None:
    """Refuses a seed whose weights are truncated, corrupt, NaN or infinite: InputError in one sentence."""
    for path in weight_files(folder):
        refuse_lfs_pointer(name, path)
        for key, finite in _read(name, path, _finite):
            if not finite:
                raise InputError(f"seed '{name}': {path} has NaN or infinite values in '{key}'.")


def _read(name: str, path: Path, reader: Callable[[Path], Iterator[tuple]]) -> Iterator[tuple]:
    """What a reader finds in a weight file; InputError if the file is broken."""
    try:
        yield from reader(path)
    except Exception as error:  # readers raise many types for broken files
        why = f"is truncated or corrupt ({first_line(error)}); copy it again"
        raise InputError(f"seed '{name}': {path} {why}.") from error


def _types(path: Path) -> Iterator[tuple[str, str]]:
    """Names and types in a weight file; of safetensors only the header is read."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as weights:
            for key in weights.keys():
                yield key, weights.get_slice(key).get_dtype()
    else:
        for key, tensor in _tensors(path):
            yield key, str(tensor.dtype).removeprefix("torch.")


def _finite(path: Path) -> Iterator[tuple[str, bool]]:
    """Names in a weight file, and whether all values of the tensor are finite; masks are left out."""
    for key, tensor in _tensors(path):
        if not key.endswith(MASK_BUFFERS):
            yield key, _is_finite(tensor)


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


def load_model(folder: str | Path, dtype: torch.dtype | str = torch.float32, whose: str = "") -> nn.Module:
    """The causal language model in a folder, in evaluation mode with SDPA attention.

    For the `dtype` "meta" no weight is read. Raises InputError, which begins with `whose`, if the weights do not fit
    the model that the config describes.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # extra weights are harmless; others that do not fit are refused below
    place = {"device_map": "meta"} if dtype == "meta" else {"dtype": dtype}
    try:
        model, loaded = AutoModelForCausalLM.from_pretrained(
            folder,
            attn_implementation="sdpa",
            local_files_only=True,
            output_loading_info=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # they are refused below, in a sentence
            **place,
        )
    except Exception as error:  # transformers raises many types
        raise InputError(f"{whose}the model in {folder} cannot be loaded ({first_line(error)}).") from error
    if fault := _misfit(model.config.num_hidden_layers, **{what: loaded[what] for what in LOADED}):
        raise InputError(f"{whose}the weights in {folder} {fault}.")
    return model.eval().requires_grad_(False)


LOADED = ("missing_keys", "unexpected_keys", "mismatched_keys")


def _misfit(layers: int, missing_keys, unexpected_keys, mismatched_keys) -> str | None:
    """The first difference between the weights in a file and the model's, as part of a sentence, or None."""
    missing, extra = sorted(missing_keys), sorted(unexpected_keys)
    for key in extra:
        prefix = next((key.removesuffix(one) for one in missing if key.endswith(f".{one}")), "")
        if prefix:
            return f"have names that begin with '{prefix}'; save the model itself, not what it is wrapped in"
    if missing:  # transformers would initialise them at random
        return f"lack '{missing[0]}', which its config.json asks for"
    for key, own, asked in sorted(mismatched_keys):
        return f"have {tuple(own)} as the shape of '{key}', but its config.json asks for {tuple(asked)}"
    numbers = [int(found[1]) for found in (re.search(r"(?:^|\.)(?:h|layers)\.(\d+)\.", key) for key in extra) if found]
    if numbers and max(numbers) >= layers:
        return f"hold {max(numbers) + 1} layers, but its config.json asks for {layers}"
    return None


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


def mlps(model: nn.Module) -> list[tuple[nn.Module, nn.Module, nn.Module, nn.Module]]:
    """Each layer's block, its MLP, and the MLP's activation function and projection to the residual stream.

    Raises InputError for a model whose layers do not all have them.
    """
    base, found = model.base_model, []
    for block in getattr(base, "h", None) or getattr(base, "layers", ()):
        mlp = getattr(block, "mlp", None)
        act, writer = (next((n for n in names if hasattr(mlp, n)), None) for names in (ACTIVATIONS, WRITERS))
        if act and writer:
            found.append((block, mlp, getattr(mlp, act), getattr(mlp, writer)))
    if not found or len(found) < model.config.num_hidden_layers:
        raise InputError(
            f"{type(model).__name__} is not supported; models in the style of GPT-2, GPT-NeoX and Llama are."
        )
    return found


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
        for block, mlp, act, writer in mlps(model):
            if type(act).__name__ == "NewGELUActivation":
                act = _TanhGELU()
                setattr(mlp, next(name for name in ACTIVATIONS if hasattr(mlp, name)), act)
            if mixed:
                _without_autocast(next(getattr(block, name) for name in ATTENTIONS if hasattr(block, name)))
            self.activations.append(act)
            self.writers.append(writer)

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
