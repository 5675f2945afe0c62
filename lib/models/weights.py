"""Weight properties of neurons: from one model's processed weights to one row per neuron.

"Processed" (docs/method.md §1): LayerNorm folded into the reading weights, writing weights centred over the residual
stream, unembedding centred, by TransformerLens's `enable_compatibility_mode()`. The next-token distribution stays the
same: logits move by one constant per position.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

# Defined by a single vector w_in; NaN for a gated neuron, which reads through two (gate and up).
READING_COLUMNS = ["w_in_norm", "input_bias", "in_out_sim", "l2_penalty", "max_cos_in"]
VOCABULARY_MOMENTS = ("vocab_mean", "vocab_var", "vocab_skew", "vocab_kurt")
COSINES_AT_ONCE = 2**20  # elements of one temporary matrix: 4 MB in fp32, which fits into caches


def processed_model(model: "str | Path | TransformerBridge") -> "TransformerBridge":
    """A model folder or Hub id, loaded with processed weights; a processed bridge is returned as it is.

    It stays on the CPU even if there is a GPU, because tables are made from it. Raises ValueError for a bridge with
    raw weights: processing it here would change the caller's model.
    """
    # imported here because it takes seconds, and many chapters only read tables
    from transformer_lens.model_bridge import TransformerBridge
    from transformers.utils import logging

    if isinstance(model, TransformerBridge):
        if not model.compatibility_mode:
            raise ValueError("The model has raw weights: call enable_compatibility_mode() on it first.")
        return model
    logging.disable_progress_bar()
    bridge = TransformerBridge.boot_transformers(str(model), device="cpu")
    bridge.enable_compatibility_mode(disable_warnings=True)
    return bridge


@torch.no_grad()
def weight_properties(model: "str | Path | TransformerBridge") -> pd.DataFrame:
    """One row per neuron: what its processed weights say about it (docs/method.md §4).

    Columns: `layer, neuron`; `w_in_norm`, `input_bias`, `w_out_norm`; `in_out_sim` = cos(w_in, w_out);
    `l2_penalty` = ‖w_in‖² + ‖w_out‖²; `vocab_mean, vocab_var, vocab_skew, vocab_kurt`, population moments over the
    vocabulary of cos(w_out, W_U[:, v]) (a Gaussian has kurtosis 3); `max_cos_in`, `max_cos_out`, the largest cosine
    of w_in (w_out) with that of any other neuron of the model. With gated MLPs READING_COLUMNS are NaN.
    """
    bridge = processed_model(model)
    w_in = [block.mlp.W_in.T.float() for block in bridge.blocks]  # (d_mlp, d_model) each
    w_out = [block.mlp.W_out.float() for block in bridge.blocks]  # (d_mlp, d_model) each
    biases = [block.mlp.b_in for block in bridge.blocks]
    unembedding = normalize(bridge.W_U.float(), dim=0)  # (d_model, vocabulary)

    frames = []
    for layer, (reads, writes, bias) in enumerate(zip(w_in, w_out, biases, strict=True)):
        in_norm, out_norm = reads.norm(dim=1), writes.norm(dim=1)
        columns = {
            "w_in_norm": in_norm,
            "input_bias": torch.zeros_like(in_norm) if bias is None else bias.float(),
            "w_out_norm": out_norm,
            "in_out_sim": (normalize(reads, dim=1) * normalize(writes, dim=1)).sum(dim=1),
            "l2_penalty": in_norm.square() + out_norm.square(),
            **vocabulary_moments(writes, unembedding),
        }
        frame = pd.DataFrame({name: values.cpu().numpy() for name, values in columns.items()})
        frame.insert(0, "layer", layer)
        frame.insert(1, "neuron", range(len(frame)))
        frames.append(frame)

    table = pd.concat(frames, ignore_index=True)
    table["max_cos_in"] = largest_cosine(torch.cat(w_in)).cpu().numpy()
    table["max_cos_out"] = largest_cosine(torch.cat(w_out)).cpu().numpy()
    if getattr(bridge.blocks[0].mlp, "W_gate", None) is not None:
        table[READING_COLUMNS] = float("nan")
    return table


def vocabulary_moments(
    w_out: Float[Tensor, "neurons d_model"], unit_unembedding: Float[Tensor, "d_model vocabulary"]
) -> dict[str, Float[Tensor, "neurons"]]:
    """Mean, variance, skew and kurtosis over the vocabulary of cos(w_out, W_U[:, v]).

    `unit_unembedding` has columns of length 1. Skew and kurtosis of a neuron that writes nothing are NaN.
    """
    nothing = torch.zeros(unit_unembedding.shape[1], dtype=torch.bool)
    return moments_with_and_without(w_out, unit_unembedding, nothing)[0]


def moments_with_and_without(
    w_out: Float[Tensor, "neurons d_model"],
    unit_unembedding: Float[Tensor, "d_model vocabulary"],
    left_out: Bool[Tensor, "vocabulary"],
) -> tuple[dict[str, Float[Tensor, "neurons"]], dict[str, Float[Tensor, "neurons"]]]:
    """`vocabulary_moments` over all tokens, and over all but those `left_out`, from one product."""
    tokens, kept = len(left_out), int((~left_out).sum())
    mean = unit_unembedding.mean(dim=1)
    centred = (unit_unembedding - mean[:, None])[:, left_out.int().argsort(stable=True)]  # those left out are last
    sums = []  # of the cosine, less its mean over all tokens, to the powers 1 to 4: over those kept, and the others
    unit = normalize(w_out, dim=1)
    for some in unit.split(max(1, COSINES_AT_ONCE // tokens)):
        cosine = some @ centred  # (neurons, vocabulary)
        square = cosine.square()
        powers = (cosine, square, square * cosine, square.square())
        sums.append(torch.stack([torch.stack([p[:, :kept].sum(1), p[:, kept:].sum(1)]) for p in powers], 1).double())
    first, rest = torch.cat(sums, 2)  # (powers, neurons)
    return tuple(_moments(unit @ mean, some / number) for some, number in ((first + rest, tokens), (first, kept)))


def _moments(
    origin: Float[Tensor, "neurons"], means: Float[Tensor, "4 neurons"]
) -> dict[str, Float[Tensor, "neurons"]]:
    """Mean, variance, skew and kurtosis from the means of the first four powers of the distance to `origin`."""
    shift, *_ = means
    variance = means[1] - shift**2
    third = means[2] - 3 * shift * means[1] + 2 * shift**3
    fourth = means[3] - 4 * shift * means[2] + 6 * shift**2 * means[1] - 3 * shift**4
    found = origin + shift, variance, third / variance**1.5, fourth / variance**2
    return dict(zip(VOCABULARY_MOMENTS, (values.float() for values in found), strict=True))


def largest_cosine(vectors: Float[Tensor, "neurons d_model"]) -> Float[Tensor, "neurons"]:
    """Each vector's largest cosine with any *other* vector (figure 10); the cosine with a zero vector is 0."""
    unit = normalize(vectors, dim=1)
    rows = max(1, COSINES_AT_ONCE // len(unit))
    largest = []
    for start in range(0, len(unit), rows):
        cosine = unit[start : start + rows] @ unit.T  # (rows, neurons)
        own = torch.arange(start, start + len(cosine), device=cosine.device)
        cosine.scatter_(1, own[:, None], -torch.inf)
        largest.append(cosine.max(dim=1).values)
    return torch.cat(largest)
