"""Folded weights: from a plain transformers model to what its neurons read and write, and to its unembedding.

A norm's gain and shift are folded into the weights that read it, and what the norms then subtract is taken out of the
weights (docs/method.md §1). Nothing here knows an architecture: a small trace of the model says which norm an MLP
reads, which one its output passes, and which one the unembedding reads, and a norm is measured by what it does to
random vectors. So a gain that is stored as gain − 1, or one behind the MLP, is what the model makes of it. The
logits of the folded weights are compared with the model's own whenever a model is folded.
"""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lib.base.errors import InputError
from lib.kernels.native import keep_freed_memory
from lib.models.trunk import mlps

PROBES = 16  # random vectors that a norm is measured with
TRACED = 8  # tokens of the trace
TOLERANCE = 1e-2  # of logits, in their standard deviations


class full_precision(torch.no_grad):
    """No gradients, and fp32 products in fp32 also on a GPU, where a mixed trunk lets them be rounded to TF32."""

    def __enter__(self) -> None:
        super().__enter__()
        self.allowed, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, False

    def __exit__(self, *error) -> None:
        torch.backends.cuda.matmul.allow_tf32 = self.allowed
        super().__exit__(*error)


@dataclass(frozen=True)
class Norm:
    """A norm as x ↦ gain · x̂ + shift, with x̂ the vector divided by its length, centred before if `centred`."""

    gain: Float[Tensor, "d_model"]
    shift: Float[Tensor, "d_model"]
    centred: bool
    eps: float

    def normalise(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        """x̂."""
        shape = x.shape[-1:]
        return F.layer_norm(x, shape, eps=self.eps) if self.centred else F.rms_norm(x, shape, eps=self.eps)

    def reader(self, weight: Float[Tensor, "d_model many"]) -> Float[Tensor, "d_model many"]:
        """Weights that read this norm's output, as weights that read x̂."""
        folded = self.gain[:, None] * weight
        return folded - folded.mean(0) if self.centred else folded

    def writer(self, weight: Float[Tensor, "many d_model"]) -> Float[Tensor, "many d_model"]:
        """Weights that write into this norm, as directions behind it; it divides them by a number for each token."""
        return self.gain * (weight - weight.mean(-1, keepdim=True) if self.centred else weight)


@dataclass(frozen=True)
class Folded:
    """One model's folded weights in fp32, by layer, and its unembedding, which is centred over the vocabulary."""

    w_in: list[Float[Tensor, "neurons d_model"]] | None  # None for gated neurons, which read through two vectors
    b_in: list[Float[Tensor, "neurons"]] | None
    w_out: list[Float[Tensor, "neurons d_model"]]
    unembedding: Float[Tensor, "d_model vocabulary"]
    unembedding_bias: Float[Tensor, "vocabulary"]
    final: Norm
    centred: bool  # whether every norm subtracts the residual stream's mean

    def logits(self, residual: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows vocabulary"]:
        """Logits, less one constant for each position, from the residual stream that the final norm reads."""
        return self.final.normalise(residual) @ self.unembedding + self.unembedding_bias


def measured(norm: nn.Module | None, width: int, device: torch.device) -> Norm:
    """What a norm module does, with its vectors on a device; None changes nothing but the length, as where an MLP reads
    the residual stream."""
    if norm is None:
        return Norm(torch.ones(width, device=device), torch.zeros(width, device=device), False, 0.0)
    x = 100 * torch.randn(PROBES, 1, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = copy.deepcopy(norm).cpu().double()(x).double()[:, 0]  # a large x, beside which eps is nothing
    tried = []
    for centred in (False, True):
        normed = F.layer_norm(x[:, 0], (width,), eps=0) if centred else F.rms_norm(x[:, 0], (width,), eps=0)
        spread = normed - normed.mean(0)
        gain = ((y - y.mean(0)) * spread).sum(0) / spread.square().sum(0)
        shift = y.mean(0) - gain * normed.mean(0)
        tried.append(((gain * normed + shift - y).abs().max(), centred, gain, shift))
    error, centred, gain, shift = min(tried, key=lambda one: one[0])
    if error > 1e-4 * y.abs().max():
        raise InputError(f"the norm {type(norm).__name__} is not LayerNorm or RMSNorm, so no weight can be folded.")
    shift[shift.abs() < 1e-5 * y.abs().max()] = 0  # rounding; some norms compute in fp32
    eps = next((getattr(norm, own) for own in ("eps", "variance_epsilon") if hasattr(norm, own)), 0.0)
    return Norm(gain.float().to(device), shift.float().to(device), centred, float(eps or 0.0))


@dataclass
class Call:
    """One module's input and output in the trace."""

    module: nn.Module
    read: Tensor
    made: Tensor


def called(model: nn.Module, modules: list[nn.Module], tokens: Int[Tensor, "blocks context"]) -> tuple[list, Tensor]:
    """The calls of some modules in a forward pass, in order, and the logits."""
    calls = []

    def keep(module, inputs, made):
        first = made[0] if isinstance(made, tuple) else made
        calls.append(Call(module, inputs[0].detach().clone(), first.detach().clone()))

    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        logits = model(tokens, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    return calls, logits


def matrix(module: nn.Module) -> Float[Tensor, "inputs outputs"]:
    """A projection's weight, which GPT-2's Conv1D stores the other way round than a Linear does."""
    weight = module.weight.detach().float()
    return weight.T if isinstance(module, nn.Linear) else weight


def bias_of(module: nn.Module, size: int) -> Float[Tensor, "size"]:
    """A projection's bias; zeros if it has none."""
    bias = getattr(module, "bias", None)
    return module.weight.new_zeros(size, dtype=torch.float32) if bias is None else bias.detach().float()


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def is_projection(module: nn.Module) -> bool:
    """Whether a module multiplies by a weight matrix."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


@full_precision()
def folded(model: nn.Module) -> Folded:
    """The folded weights of a plain model, on its device; InputError if its logits cannot be had from them."""
    keep_freed_memory()
    base, head, width, device = model.base_model, model.get_output_embeddings(), model.config.hidden_size, model.device
    layers = mlps(model)
    watched = [module for module in base.children() if _is_norm(module)] + [head]
    for block, mlp, act, _ in layers:
        inner = [module for module in mlp.modules() if is_projection(module)]
        watched += [*(module for module in block.children() if _is_norm(module)), mlp, act, *inner]
    tokens = torch.arange(TRACED, device=device)[None] % model.config.vocab_size
    calls, logits = called(model, list(dict.fromkeys(watched)), tokens)
    of = {call.module: call for call in calls}

    def norm_that(made: Tensor | None, read: Tensor | None, among) -> nn.Module | None:
        for module in among:
            call = of.get(module)
            if call is None or not _is_norm(module):
                continue
            if (made is None or _same(call.made, made)) and (read is None or _same(call.read, read)):
                return module
        return None

    w_in, b_in, w_out, centred = [], [], [], True
    for block, mlp, act, writer in layers:
        read = norm_that(of[mlp].read, None, block.children())
        before = measured(read, width, device)
        after = norm_that(None, of[mlp].made, block.children())
        writes = matrix(writer)
        w_out.append(writes if after is None else measured(after, width, device).writer(writes))
        centred &= before.centred
        readers = [one for one in mlp.modules() if is_projection(one) and one is not writer]
        if read is not None and len(readers) == 1 and _same(of[readers[0]].made, of[act].read):
            weight = matrix(readers[0])
            b_in.append(bias_of(readers[0], weight.shape[1]) + before.shift @ weight)
            w_in.append(before.reader(weight).T)
    norms = set(base.children())
    last = next((call for call in reversed(calls) if call.module in norms), None)
    if last is None:
        raise InputError(f"{type(model).__name__} has no norm before its logits, so its unembedding cannot be folded.")
    final = measured(last.module, width, device)
    # the unembedding may read a multiple of the norm's output, and the logits may be one of what it makes
    scale = _multiple(of[head].read, last.made) * _multiple(logits, of[head].made)
    weight = matrix(head)
    unembedding = scale * final.reader(weight)
    bias = scale * (final.shift @ weight) + _multiple(logits, of[head].made) * bias_of(head, weight.shape[1])
    centred &= final.centred
    if centred:  # every reader is blind to the mean of the residual stream
        w_out = [one - one.mean(1, keepdim=True) for one in w_out]
    found = Folded(
        w_in if len(w_in) == len(layers) else None,
        b_in if len(w_in) == len(layers) else None,
        w_out,
        unembedding - unembedding.mean(1, keepdim=True),
        bias - bias.mean(),
        final,
        centred,
    )
    refuse_other_logits(type(model).__name__, found.logits(last.read.float()), logits)
    return found


def refuse_other_logits(what: str, found: Tensor, logits: Tensor) -> None:
    """InputError if logits differ from the model's own by more than rounding and one constant for each position."""
    error, spread = logit_error(found, logits), logits.float().std()
    if not error <= TOLERANCE * spread:
        raise InputError(
            f"the weights of {what} cannot be folded: logits made from them differ from the model's own by up to "
            f"{error:.2g}."
        )


def logit_error(found: Float[Tensor, "*rows vocabulary"], logits: Float[Tensor, "*rows vocabulary"]) -> float:
    """The largest difference of two models' logits, without each position's mean."""
    moved = found - logits.float()
    return float((moved - moved.mean(dim=-1, keepdim=True)).abs().max())


@full_precision()
def folding_error(model: nn.Module, weights: Folded, tokens: Int[Tensor, "blocks context"]) -> float:
    """`logit_error` of folded weights on a text."""
    norms = [module for module in model.base_model.children() if _is_norm(module)]
    calls, logits = called(model, norms, tokens.to(model.device))
    return logit_error(weights.logits(calls[-1].read.float()), logits)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def _multiple(one: Tensor, of: Tensor) -> float:
    """The constant that one tensor is of another; 1 if it is none, as where logits are capped."""
    ratio = float((one * of).sum() / of.square().sum())
    close = torch.allclose(one, ratio * of, rtol=1e-4, atol=1e-4 * float(one.abs().max()))
    return ratio if close and not torch.equal(one, of) else 1.0
