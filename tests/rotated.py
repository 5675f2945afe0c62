"""The same model in another residual basis, which no reader of tokens or neurons of the model can notice."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel


def turn_that_keeps_ones(size: int, seed: int) -> torch.Tensor:
    """A random orthogonal matrix, fp64, that maps the all-ones direction to itself: LayerNorm commutes with it."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(size, size, generator=generator, dtype=torch.float64)
    drawn[:, 0] = 1
    basis = torch.linalg.qr(drawn)[0]  # its first column is along the all-ones direction
    inner = torch.eye(size, dtype=torch.float64)
    inner[1:, 1:] = torch.linalg.qr(torch.randn(size - 1, size - 1, generator=generator, dtype=torch.float64))[0]
    return basis @ inner @ basis.T


@torch.no_grad()
def rotated(model: GPT2LMHeadModel, seed: int) -> tuple[GPT2LMHeadModel, torch.Tensor]:
    """A GPT-2 with the same logits whose residual stream is x · turn, its LayerNorms' gains folded; and the turn."""
    turn, own = turn_that_keeps_ones(model.config.n_embd, seed), {n: p.double() for n, p in model.state_dict().items()}
    copy = GPT2LMHeadModel(GPT2Config(**model.config.to_dict() | {"tie_word_embeddings": False})).eval()
    made = {name: parameter.clone() for name, parameter in own.items()}

    def fold(norm: str) -> tuple[torch.Tensor, torch.Tensor]:
        gain, shift = own[f"{norm}.weight"], own[f"{norm}.bias"]
        made[f"{norm}.weight"], made[f"{norm}.bias"] = torch.ones_like(gain), torch.zeros_like(shift)
        return gain, shift

    for embedding in ("transformer.wte.weight", "transformer.wpe.weight"):
        made[embedding] = own[embedding] @ turn
    for layer in range(model.config.n_layer):
        block = f"transformer.h.{layer}"
        for norm, reader, writer in (("ln_1", "attn.c_attn", "attn.c_proj"), ("ln_2", "mlp.c_fc", "mlp.c_proj")):
            (gain, shift), weight = fold(f"{block}.{norm}"), own[f"{block}.{reader}.weight"]
            made[f"{block}.{reader}.weight"] = turn.T @ (gain[:, None] * weight)
            made[f"{block}.{reader}.bias"] = own[f"{block}.{reader}.bias"] + shift @ weight
            for part in ("weight", "bias"):
                made[f"{block}.{writer}.{part}"] = own[f"{block}.{writer}.{part}"] @ turn
    gain, shift = fold("transformer.ln_f")
    made["lm_head.weight"] = (own["lm_head.weight"] * gain) @ turn
    made["transformer.ln_f.bias"] = (shift / gain) @ turn
    copy.load_state_dict(made)
    return copy, turn


@torch.no_grad()
def heads_exchanged(model: GPT2LMHeadModel) -> GPT2LMHeadModel:
    """The same function with the heads of each layer in the opposite order."""
    copy, heads = GPT2LMHeadModel(model.config).eval(), model.config.n_head
    copy.load_state_dict(model.state_dict())
    for block in copy.transformer.h:
        read, write = block.attn.c_attn, block.attn.c_proj
        read.weight.copy_(read.weight.unflatten(1, (3, heads, -1)).flip(2).flatten(1))
        read.bias.copy_(read.bias.unflatten(0, (3, heads, -1)).flip(1).flatten())
        write.weight.copy_(write.weight.unflatten(0, (heads, -1)).flip(0).flatten(0, 1))
    return copy
