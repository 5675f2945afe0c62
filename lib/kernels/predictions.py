"""What the next-token distribution becomes when the final residual stream is moved: many cases in one fused pass.

Logits are linear in the residual stream up to the LayerNorm scale, so a moved distribution needs no product with the
whole unembedding, only a pass over the vocabulary. A loop in forward.cpp keeps nothing of size cases × vocabulary;
without a compiler, torch gives the same numbers, more slowly.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.kernels import native

STATISTICS = ("loss", "entropy", "kl_unigram", "reciprocal_rank")
PIECE = 2**24  # logits in one pass
LARGE = 1024  # tokens of a vocabulary, from which products with it are worth rounding
ROUNDING = 1e-5
FAR = 1e9  # a sum of exponentials from which the logit that they are relative to is too far below the largest


class Cases(NamedTuple):
    """Distributions: logits = (products[row] + moved · effects[effect]) · scaling + bias + along · frequency."""

    row: Int[Tensor, "cases"]
    effect: Int[Tensor, "cases"]
    moved: Float[Tensor, "cases"]
    scaling: Float[Tensor, "cases"]
    along: Float[Tensor, "cases"]


def logits_of(products, effects, cases, bias, frequency) -> Float[Tensor, "cases vocabulary"]:
    """The logits that `Cases` describes."""
    moved = products[cases.row] + cases.moved[:, None] * effects[cases.effect].to(products.dtype)
    return moved * cases.scaling[:, None] + bias + cases.along[:, None] * frequency


def weighted_sums(products, effects, cases, constants, origin, own) -> tuple[Float[Tensor, "cases"], ...]:
    """Per case, with l the logits less `origin`: Σ eˡ, Σ eˡ l, Σ eˡ log unigram, and how many l are above `own`."""
    alike = all(one.dtype == torch.float32 and one.is_contiguous() for one in (products, constants))
    if (
        alike
        and products.device.type == "cpu"
        and effects.is_contiguous()
        and effects.dtype in native.SUFFIXES
        and native.function("predicted_float") is not None
    ):
        made, places = torch.empty(4, len(cases.row)), [index.long().contiguous() for index in cases[:2]]
        numbers = [field.float().contiguous() for field in (*cases[2:], origin, own)]
        native.call(
            "predicted", effects, products, *places, *numbers, constants, len(cases.row), products.shape[1], made
        )
        return tuple(made)
    bias, frequency, log_unigram = constants
    shifted = logits_of(products, effects, cases, bias, frequency) - origin[:, None]
    weight = shifted.exp()
    above = (shifted > own[:, None]).to(shifted.dtype)
    return weight.sum(1), (weight * shifted).sum(1), (weight * log_unigram).sum(1), above.sum(1)


def prediction_statistics(
    products: Float[Tensor, "tokens vocabulary"],
    effects: Float[Tensor, "effects vocabulary"],
    cases: Cases,
    constants: Float[Tensor, "3 vocabulary"],
    target: Int[Tensor, "tokens"],
    likely: Int[Tensor, "tokens"],
) -> Float[Tensor, "cases statistics"]:
    """STATISTICS of each case: loss, entropy and KL(case ‖ unigram) in nats, and 1 / rank of the target token.

    `products` is the unchanged residual stream times W_U, before LayerNorm's division; `effects` holds changes of it;
    the rows of `constants` are the unembedding's bias, a direction in logit space (`frequency`) and the log unigram
    probabilities. `likely` is each token's likely prediction; results do not depend on it, speed does: its logits
    should be large.
    """
    bias, frequency, _ = constants
    step = max(1, PIECE // products.shape[1])
    parts = []
    for start in range(0, len(cases.row), step):
        piece = Cases(*(field[start : start + step] for field in cases))

        def logit(token, piece=piece):
            moved = products[piece.row, token] + piece.moved * effects[piece.effect, token].to(products.dtype)
            return moved * piece.scaling + bias[token] + piece.along * frequency[token]

        # exponentials are taken relative to a logit that is near the largest, which saves looking for that one;
        # the target must not count as above itself should the two ways of rounding differ
        own, origin = logit(target[piece.row]), logit(likely[piece.row])
        sums = weighted_sums(products, effects, piece, constants, origin, own - origin + ROUNDING)
        far = (~(sums[0] < FAR)).nonzero()[:, 0]
        if len(far):
            rest = Cases(*(field[far] for field in piece))
            origin[far] = logits_of(products, effects, rest, bias, frequency).amax(1)
            again = weighted_sums(products, effects, rest, constants, origin[far], (own - origin)[far] + ROUNDING)
            sums = tuple(total.index_copy(0, far, new) for total, new in zip(sums, again, strict=True))
        total, weighted, unigram, above = sums
        entropy = total.log() - weighted / total
        parts.append(
            torch.stack([total.log() - (own - origin), entropy, -entropy - unigram / total, 1 / (1 + above)], 1)
        )
    return torch.cat(parts) if parts else products.new_empty(0, len(STATISTICS))


def product_dtype(unembedding: Float[Tensor, "d_model vocabulary"]) -> torch.dtype:
    """The type in which a *change* of the residual stream meets a large unembedding.

    On a CPU with bf16 instructions that is bf16: its rounding, a few thousandths of the change, has no sign and leaves
    no trace in a mean over thousands of tokens (tests/chapters/interventions/test_engine.py).
    """
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    plain = unembedding.dtype == torch.float32 and unembedding.device.type == "cpu"
    return torch.bfloat16 if fast and plain and unembedding.shape[1] >= LARGE else unembedding.dtype
