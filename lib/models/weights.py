"""Weight properties of neurons: from one model's folded weights to one row per neuron.

"Folded" (docs/method.md §1): norms folded into the weights that read them, writing weights centred over the residual
stream, unembedding centred (`lib.models.folded`). The next-token distribution stays the same: logits move by one
constant per position.
"""

from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize

from lib.models.folded import folded, full_precision
from lib.models.trunk import load_model

# Defined by a single vector w_in; NaN for a gated neuron, which reads through two (gate and up).
READING_COLUMNS = ["w_in_norm", "input_bias", "in_out_sim", "l2_penalty", "max_cos_in"]
VOCABULARY_MOMENTS = ("vocab_mean", "vocab_var", "vocab_skew", "vocab_kurt")
COSINES_AT_ONCE = 2**20  # elements of one temporary matrix: 4 MB in fp32, which fits into caches
ROWS_AT_ONCE = 512  # of them neurons; with fewer, fetching the tokens' columns takes longer than multiplying them


@full_precision()
def weight_properties(model: str | Path | nn.Module, device: torch.device | str = "cpu") -> pd.DataFrame:
    """One row per neuron of a model, or of a model folder on a device: what its folded weights say about it
    (docs/method.md §4).

    Columns: `layer, neuron`; `w_in_norm`, `input_bias`, `w_out_norm`; `in_out_sim` = cos(w_in, w_out);
    `l2_penalty` = ‖w_in‖² + ‖w_out‖²; `vocab_mean, vocab_var, vocab_skew, vocab_kurt`, population moments over the
    vocabulary of cos(w_out, W_U[:, v]) (a Gaussian has kurtosis 3); `max_cos_in`, `max_cos_out`, the largest cosine
    of w_in (w_out) with that of any other neuron of the model. With gated MLPs READING_COLUMNS are NaN.
    """
    weights = folded(model if isinstance(model, nn.Module) else load_model(model).to(device))
    unembedding = normalize(weights.unembedding, dim=0)  # (d_model, vocabulary)
    frames = []
    for layer, writes in enumerate(weights.w_out):
        out_norm = writes.norm(dim=1)
        columns = dict.fromkeys(("w_in_norm", "input_bias"), torch.full_like(out_norm, torch.nan))
        columns |= {"w_out_norm": out_norm} | dict.fromkeys(("in_out_sim", "l2_penalty"), columns["w_in_norm"])
        if weights.w_in is not None:
            reads = weights.w_in[layer]
            columns["w_in_norm"], columns["input_bias"] = reads.norm(dim=1), weights.b_in[layer]
            columns["in_out_sim"] = (normalize(reads, dim=1) * normalize(writes, dim=1)).sum(dim=1)
            columns["l2_penalty"] = columns["w_in_norm"].square() + out_norm.square()
        frame = pd.DataFrame({name: values.cpu().numpy() for name, values in columns.items()})
        frame.insert(0, "layer", layer)
        frame.insert(1, "neuron", range(len(frame)))
        frames.append(frame)

    table = pd.concat(frames, ignore_index=True)
    w_out = torch.cat(weights.w_out)
    columns = vocabulary_moments(w_out, unembedding)
    columns["max_cos_in"] = None if weights.w_in is None else largest_cosine(torch.cat(weights.w_in))
    columns["max_cos_out"] = largest_cosine(w_out)
    return table.assign(**{name: torch.nan if own is None else own.cpu().numpy() for name, own in columns.items()})


def vocabulary_moments(
    w_out: Float[Tensor, "neurons d_model"], unit_unembedding: Float[Tensor, "d_model vocabulary"]
) -> dict[str, Float[Tensor, "neurons"]]:
    """Mean, variance, skew and kurtosis over the vocabulary of cos(w_out, W_U[:, v]).

    `unit_unembedding` has columns of length 1. Skew and kurtosis of a neuron that writes nothing are NaN.
    """
    nothing = torch.zeros_like(unit_unembedding[0], dtype=torch.bool)
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
    unit = normalize(w_out, dim=1)
    # of the cosine, less its mean over all tokens, to the powers 1 to 4: over those kept, and over the others
    sums = torch.zeros(2, 4, len(unit), dtype=torch.float64, device=unit.device)
    for total, columns in zip(sums, (centred[:, :kept], centred[:, kept:]), strict=True):
        for some in columns.split(max(1, COSINES_AT_ONCE // ROWS_AT_ONCE), 1) if columns.shape[1] else ():
            some = some.contiguous()
            for own, rows in zip(total.split(ROWS_AT_ONCE, 1), unit.split(ROWS_AT_ONCE), strict=True):
                cosine = rows @ some  # (neurons, tokens)
                square = cosine.square()
                own += torch.stack([power.sum(1) for power in (cosine, square, square * cosine, square.square())])
    first, rest = sums
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
    return nearest(vectors)[1]


def nearest(
    vectors: Float[Tensor, "neurons d_model"], sign: int = 1
) -> tuple[Int[Tensor, "neurons"], Float[Tensor, "neurons"]]:
    """For each vector the *other* one of the largest sign · cosine, and that cosine; the first of equal ones.

    A square of the cosines serves its rows and its columns, so that half of them are computed.
    """
    unit = normalize(vectors, dim=1)
    best = torch.full_like(unit[:, 0], -torch.inf)
    index = torch.zeros_like(best, dtype=torch.long)
    step = max(1, int(COSINES_AT_ONCE**0.5))
    for row in range(0, len(unit), step):
        for column in range(0, row + 1, step):
            cosine = sign * unit[row : row + step] @ unit[column : column + step].T
            if row == column:
                cosine.fill_diagonal_(-torch.inf)
            _keep_larger(best[row : row + step], index[row : row + step], cosine, column)
            if row != column:
                _keep_larger(best[column : column + step], index[column : column + step], cosine.T, row)
    return index, sign * best


def _keep_larger(
    best: Float[Tensor, "rows"], index: Int[Tensor, "rows"], found: Float[Tensor, "rows some"], first: int
) -> None:
    """Puts the largest of each row into `best`, and its place, from `first` on, into `index`, where it is larger."""
    value, place = found.max(dim=1)
    larger = value > best
    best.copy_(torch.where(larger, value, best))
    index.copy_(torch.where(larger, place + first, index))
