"""What one layer of a compared seed gives under each null: best correlations with its neurons and with rotated ones.

Rotating raw activations mixes in a few loud neurons and undoes the nonlinearity. So z-scored activations are rotated,
too, and pre-activations that pass the activation function again (docs/method.md §3). Nothing here knows a run.
"""

from collections.abc import Callable, Iterator, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.kernels.sketch import product

PIECE = 1_024  # tokens in one product, whose activations stay in a CPU's cache
NEGLIGIBLE = 1e-6  # variance, in units of the mean square, of a neuron that does not vary


def standardised(values: Float[Tensor, "tokens n"]) -> Float[Tensor, "tokens n"]:
    """Columns of mean 0 and length 1, whose products are correlations; 0 for a column that does not vary."""
    centred = values - values.mean(0)
    square = centred.square().sum(0)
    return centred * torch.where(square > NEGLIGIBLE * values.square().sum(0), square.rsqrt(), 0)


class Correlated:
    """Correlations of k neurons with n others, from pieces of tokens.

    `x` are the k neurons' activations as `standardised` gives them, in the type of the products' operands.
    """

    def __init__(self, x: Float[Tensor, "tokens k"], like: Float[Tensor, "n n"]):
        self.x, self.like, self.products = x, like, like.new_zeros(x.shape[1], len(like))
        self.first, self.second = torch.zeros(2, len(like), dtype=torch.float64, device=like.device)

    def add(self, at: slice, values: Float[Tensor, "piece n"]) -> Float[Tensor, "piece n"]:
        """Takes in the n neurons on some tokens; returns them in the type of operands."""
        operand = values.to(self.x.dtype)
        self.products += product(self.x[at], operand)
        self.first += values.sum(0)
        self.second += values.square().sum(0)
        return operand

    def mean_and_deviation(self) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
        """Of the n neurons; the deviation is 0 for one that does not vary."""
        return mean_and_deviation(self.first, self.second, len(self.x), self.like)

    def corr(self) -> Float[Tensor, "k n"]:
        """All correlations."""
        mean, deviation = self.mean_and_deviation()
        total = sum(some.to(mean).sum(0) for some in self.x.split(PIECE))  # rounding leaves it near 0
        return (self.products - torch.outer(total, mean)) * inverse(deviation) / len(self.x) ** 0.5


def mean_and_deviation(
    first: Float[Tensor, "n"], second: Float[Tensor, "n"], tokens: int, like: Tensor
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
    """From Σ and Σ of squares in fp64, in the type of `like`; the deviation of what does not vary is 0."""
    mean, square = first / tokens, second / tokens
    variance = square - mean**2
    return mean.to(like), torch.where(variance > NEGLIGIBLE * square, variance, 0).sqrt().to(like)


def inverse(deviation: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """1 / deviation, 0 for what does not vary."""
    return torch.where(deviation > 0, 1 / deviation, 0)


def rotated_best(
    corr: Float[Tensor, "k n"], within: Float[Tensor, "n n"], deviation: Float[Tensor, "n"], turn: Float[Tensor, "n n"]
) -> Float[Tensor, "k"]:
    """Each neuron's largest correlation with a layer's n rotated activations, R·(deviation ∘ z) (docs/method.md §2).

    `corr` are its correlations with the layer's neurons, `within` those of the layer's neurons with one another.
    """
    scaled = turn * deviation  # R with columns scaled
    variance = ((scaled @ within) * scaled).sum(1)
    return (corr @ scaled.T * torch.where(variance > 0, variance.rsqrt(), 0)).amax(1)


def layer_nulls(
    x: Float[Tensor, "tokens k"], values: Float[Tensor, "tokens n"], act: Callable | None, turn: Float[Tensor, "n n"]
) -> dict[str, Float[Tensor, "k"]]:
    """Best correlation of each of k neurons with one layer's neurons (`corr`), and with what each null makes of them.

    `x` as in `Correlated`. `values` are the layer's pre-activations; without `act`, for a gated MLP, its activations,
    and there is no null `activation`. `turn` is the rotation R; all but operands has its type.
    """
    plain, within = Correlated(x, turn), torch.zeros_like(turn)
    for at in _pieces(x):
        own = values[at].to(turn)
        operand = plain.add(at, own if act is None else act(own))
        within += product(operand, operand)
    corr, (mean, deviation) = plain.corr(), plain.mean_and_deviation()
    within = (within / len(x) - torch.outer(mean, mean)) * torch.outer(inverse(deviation), inverse(deviation))
    within.fill_diagonal_(1)
    found = {
        "corr": corr.amax(1),
        "raw": rotated_best(corr, within, deviation, turn),
        "zscored": rotated_best(corr, within, (deviation > 0).to(turn), turn),
    }
    if act is not None:
        again = Correlated(x, turn)
        for at, activation in passed_again(values, act, turn, x.dtype):
            again.add(at, activation)
        found["activation"] = again.corr().amax(1)
    return found


def passed_again(
    pre: Float[Tensor, "tokens n"], act: Callable[[Tensor], Tensor], turn: Float[Tensor, "n n"], dtype: torch.dtype
) -> Iterator[tuple[slice, Float[Tensor, "piece n"]]]:
    """Pieces of tokens with φ(μ_j + σ_j (q_j − m_j) / s_j), where q = R·pre.

    m_j and s_j are the mean and standard deviation of q_j over all tokens, μ_j and σ_j those of neuron j's
    pre-activation, which the rotated one of the same index keeps. The rotation is multiplied in `dtype`.
    """
    rotated, narrow = torch.empty_like(pre, dtype=dtype), turn.T.to(dtype)
    sums = torch.zeros(2, 2, len(turn), dtype=torch.float64, device=pre.device)  # (pre or rotated, Σ and Σ², n)
    for at in _pieces(pre):
        torch.mm(pre[at].to(dtype), narrow, out=rotated[at])
        for own, values in zip(sums, (pre[at].to(turn), rotated[at].to(turn)), strict=True):
            own += torch.stack([values.sum(0), values.square().sum(0)])
    (mean, deviation), (middle, spread) = (mean_and_deviation(*own, len(pre), turn) for own in sums)
    scale = deviation * inverse(spread)
    for at in _pieces(pre):
        yield at, act(mean + (rotated[at].to(turn) - middle) * scale)


def _pieces(tokens: Tensor) -> Iterator[slice]:
    return (slice(start, start + PIECE) for start in range(0, len(tokens), PIECE))


def partner_correlations(
    x: Float[Tensor, "tokens k"], y: Float[Tensor, "tokens k"], groups: Mapping[str, Int[Tensor, "tokens"]]
) -> dict[str, Float[Tensor, "k"]]:
    """Correlation of each column of x with that of y (`partner`), and within each grouping: after each group's mean is
    subtracted from both. 0 where nothing is left to vary.

    Both are `standardised`. Within groups Σxy becomes Σxy − Σ_g (Σ_g x)(Σ_g y) / n_g, and likewise Σx² and Σy².
    """
    wide = y.dtype
    plain = sum((a.to(wide) * b).sum(0) for a, b in zip(x.split(PIECE), y.split(PIECE), strict=True))
    found = {"partner": plain}
    for name, group in groups.items():
        number = torch.bincount(group)
        sums = [torch.zeros(len(number), x.shape[1], dtype=wide, device=y.device) for _ in range(2)]
        for own, values in zip(sums, (x, y), strict=True):
            for some, at in zip(values.split(PIECE), group.split(PIECE), strict=True):
                own.index_add_(0, at, some.to(wide))
        scaled = [own / number.clamp(min=1).to(wide)[:, None] for own in sums]
        left = [(1 - (own * mean).sum(0)).clamp(min=0) for own, mean in zip(sums, scaled, strict=True)]
        rest, product_left = left[0] * left[1], plain - (sums[0] * scaled[1]).sum(0)
        found[name] = torch.where(rest > NEGLIGIBLE, product_left * rest.rsqrt(), 0).clamp(-1, 1)
    return found
