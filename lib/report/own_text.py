"""The reference seed in 8 bits, for one's own text on the page of single neurons.

Only a model of GPT-2's kind whose file is small enough is written. The page's script own_text_model.js tokenises a text
and runs the seed up to its last MLP, as `lib.models.trunk` does. Rounding costs little: on 20 texts, activations of
shipped seed a correlate with those of fp32 weights at 0.9995 (median neuron) and at 0.991 or more (all). Half of the
neurons have no error above 2 % of their largest activation in the run; the worst error is 12 %.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int8
from safetensors.torch import load_file

from lib.base.hub import seed_folder
from lib.run import Run
from lib.text.tokens import BYTE_OF_LETTER

FILE = "weights"
MAX_BYTES = 10_000_000  # of the file
STEPS = 127  # of 8 bits, on either side of zero
GELU = ("gelu_new", "gelu_pytorch_tanh")
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
MATRICES = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")  # of a layer, each with a bias
NORMS = ("ln_1", "ln_2")


@dataclass(frozen=True)
class OwnText:
    """What the page needs to run one's own text: `settings` as JSON, and arrays for a file of safetensors."""

    settings: dict
    arrays: dict[str, np.ndarray]


def eight_bits(
    matrix: Float[np.ndarray, "rows columns"],
) -> tuple[Int8[np.ndarray, "rows columns"], Float[np.ndarray, "rows"]]:
    """Whole numbers from −STEPS to STEPS, and what one step of each row is worth."""
    scale = np.abs(matrix).max(1) / STEPS
    scale[scale == 0] = 1
    return np.rint(matrix / scale[:, None]).astype(np.int8), scale.astype(np.float32)


def largest_file(config, context: int) -> int:
    """Bytes of the weights before compression. `config` is that of a GPT-2."""
    width, inner = config.n_embd, config.n_inner or 4 * config.n_embd
    layer = 4 * width * width + 2 * width * inner
    return (config.vocab_size + context) * width + config.n_layer * layer


def can_run(config, tokenizer: dict, context: int) -> bool:
    """Whether the page can run a model with this config and tokenizer.json, and its file is at most MAX_BYTES."""
    if config.model_type != "gpt2" or config.activation_function not in GELU:
        return False
    plain = config.scale_attn_weights and not config.scale_attn_by_inverse_layer_idx and not config.add_cross_attention
    model, before = tokenizer["model"], tokenizer["pre_tokenizer"] or {}
    bytewise = (
        model["type"] == "BPE"
        and tokenizer["normalizer"] is None
        and BYTE_LEVEL.items() <= before.items()
        and not any(model.get(name) for name in ("continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"))
        and BYTE_OF_LETTER.keys() <= model["vocab"].keys()
    )
    return bool(plain and bytewise and largest_file(config, context) <= MAX_BYTES)


def own_text(run: Run) -> OwnText | None:
    """The reference seed and its tokeniser; None where the page cannot run it."""
    from transformers import AutoConfig

    folder = seed_folder(run.params, run.params.reference)
    if folder is None or not (folder / "model.safetensors").is_file():
        return None
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    tokenizer = json.loads(run.tokenizer.backend_tokenizer.to_str())
    if not can_run(config, tokenizer, run.text.tokens.shape[1]):
        return None
    settings = {
        "layers": config.n_layer,
        "heads": config.n_head,
        "epsilon": config.layer_norm_epsilon,
        "context": run.text.tokens.shape[1],
        "bos": run.text.bos_id,
        "uncounted": [run.text.bos_id, *run.text.newline_ids],
    }
    arrays = weight_arrays(folder / "model.safetensors", config.n_layer, settings["context"])
    largest = run.stats("examples")[f"{run.params.reference}.value"][..., 0]
    arrays["largest"] = np.where(np.isfinite(largest), largest, 0).astype(np.float32)
    return OwnText(settings, arrays | merge_arrays(tokenizer["model"]))


def weight_arrays(path: Path, layers: int, context: int) -> dict[str, np.ndarray]:
    """The weights of a GPT-2: matrices (outputs, inputs) in 8 bits, with `<name>.scale` of each output; biases and
    norms as they are. The last layer's projection to the residual stream is left out: no neuron comes after it."""
    weights = {name.removeprefix("transformer."): one.float().numpy() for name, one in load_file(path).items()}
    matrices = {"wte": weights["wte.weight"], "wpe": weights["wpe.weight"][:context]}
    arrays: dict[str, np.ndarray] = {}
    for layer in range(layers):
        for name in MATRICES[: len(MATRICES) - (layer == layers - 1)]:
            matrices[f"h.{layer}.{name}"] = weights[f"h.{layer}.{name}.weight"].T
            arrays[f"h.{layer}.{name}.bias"] = weights[f"h.{layer}.{name}.bias"]
        for name in NORMS:
            arrays |= {f"h.{layer}.{name}.{part}": weights[f"h.{layer}.{name}.{part}"] for part in ("weight", "bias")}
    for name, matrix in matrices.items():
        arrays[name], arrays[f"{name}.scale"] = eight_bits(matrix)
    return arrays


def merge_arrays(model: dict) -> dict[str, np.ndarray]:
    """Of a byte-level BPE: `bytes` (256), the id of each byte; `merges` (merges, 3), two ids and that of the two
    together, in the order in which they are made."""
    vocabulary, letters = model["vocab"], {byte: letter for letter, byte in BYTE_OF_LETTER.items()}
    pairs = [pair if isinstance(pair, list) else pair.split(" ") for pair in model["merges"]]
    merges = [[vocabulary[left], vocabulary[right], vocabulary[left + right]] for left, right in pairs]
    return {
        "bytes": np.array([vocabulary[letters[byte]] for byte in range(256)], np.int32),
        "merges": np.array(merges, np.int32).reshape(-1, 3),
    }
