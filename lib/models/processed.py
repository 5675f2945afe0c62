"""A lean forward pass on processed weights: the model that interventions run on.

With processed weights (docs/method.md §1) LayerNorm is a plain division by the residual's standard deviation, and a
neuron's effect is its own w_out. This module folds and centres what `lib.models.folded` does not: the attention. It
supports GPT-2 (learned positions, attention before the MLP) and GPT-NeoX (rotary positions). Scales and rotations are
the model's own, and the logits are compared with its own before anything is changed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lib.base.errors import InputError
from lib.kernels.forward import affine, causal_attention, tanh_gelu
from lib.kernels.native import keep_freed_memory
from lib.models.architectures import positions_of, without_interventions
from lib.models.folded import bias_of, folded, full_precision, matrix, measured, refuse_other_logits
from lib.models.trunk import load_model, mlps

TANH_GELUS = ("NewGELUActivation", "GELUTanh")
CHECKED = 32  # tokens on which the logits are compared with the model's own
BATCH, GPU_BATCH = 4, 64  # blocks in one forward pass, at most; on a CPU few, whose activations its caches hold


@dataclass(frozen=True)
class Block:
    """One layer's processed weights; `qkv` holds the query, key and value weights of all heads side by side."""

    qkv: Float[Tensor, "d_model 3 heads d_head"]
    qkv_bias: Float[Tensor, "3 heads d_head"]
    out: Float[Tensor, "heads d_head d_model"]
    out_bias: Float[Tensor, "d_model"]
    w_in: Float[Tensor, "d_model neurons"]
    b_in: Float[Tensor, "neurons"]
    w_out: Float[Tensor, "neurons d_model"]
    b_out: Float[Tensor, "d_model"]
    attention_scale: float
    value_bias: Float[Tensor, "heads d_head"]  # what it writes is in `out_bias`


@dataclass(frozen=True)
class Processed:
    """One seed model as processed weights, fp32, all on one device."""

    embedding: Float[Tensor, "vocabulary d_model"]
    positions: Float[Tensor, "context d_model"]
    blocks: tuple[Block, ...]
    unembedding: Float[Tensor, "d_model vocabulary"]
    unembedding_bias: Float[Tensor, "vocabulary"]
    eps: float
    activation: Callable[[Tensor], Tensor]
    rotary: Callable[[int], tuple[Tensor, Tensor]] | None = None  # cosines and sines by context, as the model's own
    parallel: bool = False  # attention and MLP of a layer read the same residual stream
    batch: int = BATCH  # blocks in one forward pass

    @property
    def device(self) -> torch.device:
        """Where the weights are, and all that is computed from them."""
        return self.embedding.device

    @property
    def memory(self) -> int:
        """Bytes of all weights."""
        own = [one for block in self.blocks for one in vars(block).values() if isinstance(one, Tensor)]
        own += [one for one in vars(self).values() if isinstance(one, Tensor)]
        return sum(one.numel() * one.element_size() for one in own)

    def block_memory(self, context: int) -> int:
        """Bytes of all that a forward pass and a changed one hold of one block of text, with two sets of logits."""
        width, layers, heads = self.embedding.shape[1], len(self.blocks), len(self.blocks[0].out)
        of_token = 2 * (2 * layers + 2) * width + 4 * len(self.blocks[0].w_out) + 3 * heads * context
        return 4 * context * (of_token + 2 * self.unembedding.shape[1])

    def within(self, memory: float, context: int) -> "Processed":
        """The same model with the batch that takes at most so many bytes; one block at least."""
        most = BATCH if self.device.type == "cpu" else GPU_BATCH
        return replace(self, batch=max(1, min(most, int(memory // self.block_memory(context)))))

    @property
    def w_out(self) -> Float[Tensor, "neurons d_model"]:
        """Writing weights of all neurons, layer after layer."""
        return torch.cat([block.w_out for block in self.blocks])

    def embed(self, tokens: Int[Tensor, "blocks context"]) -> Float[Tensor, "blocks context d_model"]:
        """The residual stream before the first layer."""
        return self.embedding[tokens] + self.positions[: tokens.shape[1]]

    def normalise(self, residual: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        """LayerNorm with processed weights: centred and divided by `scale`."""
        return F.layer_norm(residual, residual.shape[-1:], eps=self.eps)

    def scale(self, residual: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows"]:
        """The LayerNorm scale √(variance + ε) of a residual stream."""
        centred = residual - residual.mean(-1, keepdim=True)  # several times faster than torch.var
        return (centred.square().mean(-1) + self.eps).sqrt()

    def neuron_activations(
        self, residual: Float[Tensor, "*rows d_model"], layer: int, neurons: Sequence[int]
    ) -> Float[Tensor, "*rows neurons"]:
        """Activations of some of a layer's neurons, from the residual stream that its MLP reads."""
        block = self.blocks[layer]
        return self.activation(self.normalise(residual) @ block.w_in[:, neurons] + block.b_in[neurons])

    def mlp(self, residual: Float[Tensor, "*rows d_model"], layer: int) -> Float[Tensor, "*rows d_model"]:
        """What a layer's MLP writes."""
        block = self.blocks[layer]
        post = self.activation(affine(self.normalise(residual), block.w_in, block.b_in))
        return affine(post, block.w_out, block.b_out)

    def heads(
        self, residual: Float[Tensor, "blocks context d_model"], layer: int
    ) -> Float[Tensor, "3 blocks heads context d_head"]:
        """Queries, keys and values of a layer's heads, from the residual stream before the layer."""
        block = self.blocks[layer]
        maps, biases = block.qkv.flatten(1), block.qkv_bias.flatten()
        flat = affine(self.normalise(residual), maps, biases)  # (blocks, context, 3·heads·d_head)
        query, key, value = flat.unflatten(-1, block.qkv.shape[1:]).permute(2, 0, 3, 1, 4)
        return torch.stack([self.rotate(query), self.rotate(key), value])

    def one_head(
        self, residual: Float[Tensor, "blocks context d_model"], layer: int, kind: int, head: int
    ) -> Float[Tensor, "blocks context d_head"]:
        """One head's queries (kind 0), keys (1) or values (2)."""
        block = self.blocks[layer]
        vectors = affine(self.normalise(residual), block.qkv[:, kind, head], block.qkv_bias[kind, head])
        return vectors if kind == 2 else self.rotate(vectors)

    def rotate(self, vectors: Float[Tensor, "*heads context d_head"]) -> Float[Tensor, "*heads context d_head"]:
        """Queries or keys rotated by their position, if the model has rotary positions."""
        if self.rotary is None:
            return vectors
        cosine, sine = self.rotary(vectors.shape[-2])  # (context, half of what is rotated)
        half = cosine.shape[-1]
        first, second, rest = vectors.split([half, half, vectors.shape[-1] - 2 * half], dim=-1)
        return torch.cat([first * cosine - second * sine, second * cosine + first * sine, rest], dim=-1)

    @full_precision()
    def logits(self, tokens: Int[Tensor, "blocks context"]) -> Float[Tensor, "blocks context vocabulary"]:
        """Logits of the unchanged model, less one constant for each position."""
        residual = self.embed(tokens)
        for layer in range(len(self.blocks)):
            _, residual = self.layer(residual, layer, self.heads(residual, layer))
        return self.normalise(residual) @ self.unembedding + self.unembedding_bias

    def layer(
        self,
        residual: Float[Tensor, "blocks context d_model"],
        layer: int,
        qkv: Float[Tensor, "3 blocks heads context d_head"],
    ) -> tuple[Float[Tensor, "blocks context d_model"], Float[Tensor, "blocks context d_model"]]:
        """What a layer's MLP reads, and the residual stream after the layer."""
        attended = residual + self.attend(qkv, layer)
        read = residual if self.parallel else attended
        return read, attended + self.mlp(read, layer)

    def attend(
        self, qkv: Float[Tensor, "3 blocks heads context d_head"], layer: int
    ) -> Float[Tensor, "blocks context d_model"]:
        """What a layer's attention writes, from queries, keys and values."""
        block = self.blocks[layer]
        z = causal_attention(*qkv, scale=block.attention_scale)
        return affine(z.flatten(2), block.out.flatten(0, 1), block.out_bias)


@full_precision()
def processed(model: str | Path | nn.Module, device: torch.device | str = "cpu") -> Processed:
    """The processed weights of a model folder, on a device, or of a plain model, on its own.

    Raises InputError for an architecture without interventions, and where the logits are not the model's own.
    """
    keep_freed_memory()
    plain = model if isinstance(model, nn.Module) else load_model(model).to(device)
    if reason := without_interventions(Path(str(model)).name if plain is not model else "", plain.config):
        raise InputError(reason)
    weights, base = folded(plain), plain.base_model
    find = _gpt2_attention if plain.config.model_type == "gpt2" else _neox_attention
    blocks = []
    for layer, (block, _, _, writer) in enumerate(mlps(plain)):
        norm, attention, qkv, qkv_bias, out = find(block)
        norm = measured(norm, plain.config.hidden_size, plain.device)
        flat = qkv.flatten(1)
        qkv_bias = qkv_bias + (norm.shift @ flat).view_as(qkv_bias)
        heads = matrix(out).view(*qkv.shape[2:], -1)  # (heads, d_head, d_model)
        value_bias = qkv_bias[2].clone()
        # what the values' bias writes is the same at every position, since attention sums to 1
        out_bias = bias_of(out, heads.shape[-1]) + qkv_bias[2].flatten() @ heads.flatten(0, 1)
        qkv_bias[2] = 0
        blocks.append(
            Block(
                qkv=norm.reader(flat).view_as(qkv).contiguous(),
                qkv_bias=qkv_bias.contiguous(),
                out=_centred(heads),
                out_bias=_centred(out_bias),
                w_in=weights.w_in[layer].T.contiguous(),
                b_in=weights.b_in[layer],
                w_out=weights.w_out[layer].contiguous(),
                b_out=_centred(bias_of(writer, heads.shape[-1])),
                attention_scale=float(attention.scaling),
                value_bias=value_bias,
            )
        )
    embedding, width = _centred(plain.get_input_embeddings().weight.float()), plain.config.hidden_size
    own = getattr(base, "wpe", None)
    activation = mlps(plain)[0][2]
    made = Processed(
        embedding=embedding,
        positions=_centred(own.weight.float()) if own else embedding.new_zeros(positions_of(plain.config), width),
        blocks=tuple(blocks),
        unembedding=weights.unembedding.contiguous(),
        unembedding_bias=weights.unembedding_bias,
        eps=weights.final.eps,
        activation=tanh_gelu if type(activation).__name__ in TANH_GELUS else activation,
        rotary=_rotary(base.rotary_emb) if hasattr(base, "rotary_emb") else None,
        parallel=bool(getattr(plain.config, "use_parallel_residual", False)),
    )
    tokens = torch.arange(min(CHECKED, positions_of(plain.config)), device=plain.device)[None] % plain.config.vocab_size
    refuse_other_logits(type(plain).__name__, made.logits(tokens), plain(tokens, use_cache=False).logits)
    return made


def _gpt2_attention(block: nn.Module) -> tuple:
    """A block's norm before attention, its attention, query, key and value weights and biases, and its output."""
    attention = block.attn
    heads = attention.num_heads
    qkv = matrix(attention.c_attn).unflatten(1, (3, heads, -1))
    return block.ln_1, attention, qkv, bias_of(attention.c_attn, qkv[0].numel()).view(qkv.shape[1:]), attention.c_proj


def _neox_attention(block: nn.Module) -> tuple:
    """The same of a GPT-NeoX, whose projection holds query, key and value head by head."""
    attention = block.attention
    qkv = matrix(attention.query_key_value).unflatten(1, (-1, 3, attention.head_size))
    bias = bias_of(attention.query_key_value, qkv[0].numel()).view(qkv.shape[1:])
    return block.input_layernorm, attention, qkv.transpose(1, 2), bias.transpose(0, 1).clone(), attention.dense


def _rotary(module: nn.Module) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Cosines and sines by context from the model's own module, whatever its scaling, each made once."""

    like = next(module.buffers()).new_zeros(1)

    @cache
    def angles(context: int) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            cosine, sine = module(like, torch.arange(context, device=like.device)[None])
        half = cosine.shape[-1] // 2  # the other half is the same
        return cosine[0, :, :half], sine[0, :, :half]

    return angles


def _centred(weight: Tensor) -> Tensor:
    """What writes to the residual stream, without its mean, to which every reader is blind."""
    return (weight - weight.mean(-1, keepdim=True)).contiguous()
