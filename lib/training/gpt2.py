"""A lean GPT-2 forward pass on the parameters of transformers' GPT2LMHeadModel, for training.

It computes what the library's model does (a test compares them) in mixed precision: matrix products in the compute
dtype, residual stream, LayerNorm and loss in fp32. Logits are computed in chunks, never all at once.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

CHUNK_ROWS = {"cpu": 512, "cuda": 8192}  # rows of logits at once; the CPU's fit its L3 cache


@dataclass(frozen=True)
class Shape:
    """The architecture's sizes; the defaults are those of the shipped seeds."""

    vocab_size: int = 8192
    context: int = 256
    n_layer: int = 6
    d_model: int = 256
    n_head: int = 4
    d_mlp: int = 1024


def new_model(shape: Shape, seed: int, bos_id: int = 0) -> GPT2LMHeadModel:
    """A freshly initialised fp32 model: GPT-2's initialisation (std 0.02, residual projections / √(2 layers))."""
    config = GPT2Config(
        vocab_size=shape.vocab_size,
        n_positions=shape.context,
        n_embd=shape.d_model,
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        n_inner=shape.d_mlp,
        activation_function="gelu_new",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=bos_id,
        eos_token_id=bos_id,
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    return GPT2LMHeadModel(config).float()


def training_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ/√d_head) v under the causal mask; all (B, n_head, T, d_head).

    A GPU runs the fused kernel. A CPU takes the queries in two halves (the first needs no later keys), which with
    `torch.compile` needs half the fused CPU kernel's time.
    """
    if q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    T, d_head = q.shape[-2:]
    parts = []
    for start, end in ((0, T // 2), (T // 2, T)):
        scores = q[:, :, start:end] @ k[:, :, :end].transpose(-1, -2)  # (B, n_head, end − start, end)
        seen = torch.ones(end - start, end, dtype=torch.bool, device=q.device).tril(start)
        scores = (scores.float() / math.sqrt(d_head)).masked_fill(~seen, -torch.inf)
        parts.append(torch.softmax(scores, dim=-1).to(v.dtype) @ v[:, :, :end])
    return torch.cat(parts, dim=2)


def final_hidden(weights: dict[str, Tensor], tokens: Tensor, n_head: int, dtype: torch.dtype) -> Tensor:
    """Hidden states after the last LayerNorm, (B, T, d_model) in `dtype`.

    weights: parameters by their name in `GPT2LMHeadModel`; tokens: (B, T) int64.
    """
    B, T = tokens.shape
    w = {name.removeprefix("transformer."): value for name, value in weights.items()}
    d_model = w["wte.weight"].shape[1]
    n_layer = sum(name.endswith(".ln_1.weight") for name in w)

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (d_model,), w[f"{name}.weight"], w[f"{name}.bias"]).to(dtype)

    def project(x: Tensor, name: str) -> Tensor:  # Conv1D keeps its weight as (in, out)
        return torch.addmm(w[f"{name}.bias"].to(dtype), x, w[f"{name}.weight"].to(dtype))

    x = F.embedding(tokens, w["wte.weight"]) + w["wpe.weight"][:T]  # (B, T, d_model), fp32
    x = x.view(B * T, d_model)
    for layer in range(n_layer):
        at = f"h.{layer}"
        qkv = project(norm(x, f"{at}.ln_1"), f"{at}.attn.c_attn")  # (B·T, 3·d_model)
        q, k, v = qkv.view(B, T, 3, n_head, d_model // n_head).permute(2, 0, 3, 1, 4)  # 3 × (B, n_head, T, d_head)
        mixed = training_attention(q, k, v).transpose(1, 2).reshape(B * T, d_model)
        x = x + project(mixed, f"{at}.attn.c_proj")
        pre = project(norm(x, f"{at}.ln_2"), f"{at}.mlp.c_fc")  # (B·T, d_mlp)
        # gelu_new by its fused kernel: the same tanh formula
        x = x + project(F.gelu(pre, approximate="tanh"), f"{at}.mlp.c_proj")
    return norm(x, "ln_f").view(B, T, d_model)


def softmax_residual(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Per row: −log p(target), fp32, and p − onehot(target), in the logits' dtype.

    logits: (rows, vocab); target: (rows, 1).
    """
    wide = logits.float()
    log_sum = wide.logsumexp(dim=1, keepdim=True)
    loss = log_sum - wide.gather(1, target)
    hit = torch.arange(wide.shape[1], device=wide.device) == target
    return loss, (torch.exp(wide - log_sum) - hit.float()).to(logits.dtype)


class _MeanLoss(torch.autograd.Function):
    """Mean cross entropy of hidden @ unembed.T; the gradient is taken chunk by chunk during the forward pass."""

    @staticmethod
    def forward(ctx, hidden: Tensor, unembed: Tensor, target: Tensor, residual_of) -> Tensor:
        # hidden: (rows, d_model); unembed: (vocab, d_model); target: (rows)
        rows = hidden.shape[0]
        chunk = math.ceil(rows / math.ceil(rows / CHUNK_ROWS[hidden.device.type]))
        total = torch.zeros((), device=hidden.device)
        grad_hidden = torch.empty_like(hidden)
        grad_unembed = torch.zeros_like(unembed, dtype=torch.float32)
        for start in range(0, rows, chunk):
            part = slice(start, start + chunk)
            loss, residual = residual_of(hidden[part] @ unembed.T, target[part, None])
            total += loss.sum()
            grad_hidden[part] = residual @ unembed
            grad_unembed += residual.T @ hidden[part]
        ctx.save_for_backward(grad_hidden, grad_unembed)
        ctx.rows = rows
        return total / rows

    @staticmethod
    def backward(ctx, grad: Tensor):
        grad_hidden, grad_unembed = ctx.saved_tensors
        scale = grad / ctx.rows
        return grad_hidden * scale.to(grad_hidden.dtype), (grad_unembed * scale).to(grad_hidden.dtype), None, None


@dataclass(frozen=True)
class Kernels:
    """The two functions that take the time, plain or compiled."""

    final_hidden: Callable = final_hidden
    softmax_residual: Callable = softmax_residual

    @classmethod
    def compiled(cls) -> "Kernels":
        return cls(torch.compile(final_hidden, dynamic=False), torch.compile(softmax_residual, dynamic=False))


def training_loss(
    weights: dict[str, Tensor], tokens: Tensor, n_head: int, dtype: torch.dtype, kernels: Kernels
) -> Tensor:
    """Mean nats per predicted token of the blocks (B, T): position t predicts token t + 1."""
    hidden = kernels.final_hidden(weights, tokens, n_head, dtype)[:, :-1].flatten(0, 1)  # (B·(T − 1), d_model)
    unembed = weights["transformer.wte.weight"].to(dtype)
    return _MeanLoss.apply(hidden, unembed, tokens[:, 1:].flatten(), kernels.softmax_residual)


@torch.no_grad()
def lean_token_losses(weights: dict[str, Tensor], tokens: Tensor, n_head: int, dtype: torch.dtype) -> Tensor:
    """−log p of every predicted token, fp32. tokens: (B, T); returns (B, T − 1)."""
    hidden = final_hidden(weights, tokens, n_head, dtype)[:, :-1].flatten(0, 1)
    unembed = weights["transformer.wte.weight"].to(dtype)
    target = tokens[:, 1:].flatten()
    chunk = CHUNK_ROWS[hidden.device.type]
    parts = [
        F.cross_entropy((hidden[at : at + chunk] @ unembed.T).float(), target[at : at + chunk], reduction="none")
        for at in range(0, len(target), chunk)
    ]
    return torch.cat(parts).view(tokens.shape[0], -1)
