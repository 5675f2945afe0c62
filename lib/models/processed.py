"""A lean forward pass on processed weights: the model that interventions run on.

With processed weights (docs/method.md §1) LayerNorm is a plain division by the residual's standard deviation, and a
neuron's effect is its own w_out. TransformerLens folds and centres; this module computes the same function from the
resulting tensors in a fraction of the bridge's time. It supports models like GPT-2 (learned positions, attention
before the MLP) and GPT-NeoX (rotary positions, attention and MLP in parallel).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from lib.base.errors import InputError
from lib.kernels.forward import affine, causal_attention, tanh_gelu
from lib.kernels.native import keep_freed_memory
from lib.models.weights import processed_model

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

ACTIVATIONS = {"gelu_new": tanh_gelu, "gelu_pytorch_tanh": tanh_gelu, "gelu": F.gelu, "relu": F.relu}


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


@dataclass(frozen=True)
class Processed:
    """One seed model as processed weights, fp32."""

    embedding: Float[Tensor, "vocabulary d_model"]
    positions: Float[Tensor, "context d_model"]
    blocks: tuple[Block, ...]
    unembedding: Float[Tensor, "d_model vocabulary"]
    unembedding_bias: Float[Tensor, "vocabulary"]
    eps: float
    activation: Callable[[Tensor], Tensor]
    rotary: tuple[int, float] | None = None  # rotated dimensions of a head, and the base
    parallel: bool = False  # attention and MLP of a layer read the same residual stream

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
        size, base = self.rotary
        speed = base ** (-torch.arange(0, size, 2, dtype=torch.float32) / size)
        angle = torch.arange(vectors.shape[-2], dtype=torch.float32)[:, None] * speed  # (context, size / 2)
        first, second, rest = vectors.split([size // 2, size // 2, vectors.shape[-1] - size], dim=-1)
        sine, cosine = angle.sin(), angle.cos()
        return torch.cat([first * cosine - second * sine, second * cosine + first * sine, rest], dim=-1)

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


@torch.no_grad()
def processed(model: "str | Path | TransformerBridge") -> Processed:
    """The processed weights of a model folder, Hub id or processed bridge.

    Raises InputError for an architecture unlike GPT-2's and GPT-NeoX's.
    """
    keep_freed_memory()
    bridge = processed_model(model)
    config, original = bridge.cfg, bridge.original_model.config
    kind = config.positional_embedding_type
    gated = getattr(bridge.blocks[0].mlp, "gate", None) is not None
    if gated or kind not in ("standard", "rotary") or config.act_fn not in ACTIVATIONS:
        raise InputError(
            "interventions need a model of GPT-2's or GPT-NeoX's kind (learned or rotary positions, one of the "
            f"activations {', '.join(ACTIVATIONS)}), but this one is {original.model_type} with {kind} positions and "
            f"{'a gated ' if gated else ''}{config.act_fn}."
        )
    rotary = None
    if kind == "rotary":
        rope = original.rope_parameters
        rotary = int(config.d_head * rope.get("partial_rotary_factor", 1.0)), float(rope["rope_theta"])
    positions = bridge.W_pos if rotary is None else torch.zeros(original.max_position_embeddings, config.d_model)
    # stanford-crfm's GPT-2 models also divide attention scores by the layer's number
    by_layer = getattr(original, "scale_attn_by_inverse_layer_idx", False)
    blocks = []
    for layer, block in enumerate(bridge.blocks):
        weights, biases = (bridge.W_Q, bridge.W_K, bridge.W_V), (bridge.b_Q, bridge.b_K, bridge.b_V)
        qkv = torch.stack([weight[layer] for weight in weights])  # (3, heads, d_model, d_head)
        qkv_bias = torch.stack([bias[layer] for bias in biases])
        blocks.append(
            Block(
                qkv=_plain(qkv.permute(2, 0, 1, 3)),
                qkv_bias=_plain(qkv_bias),
                out=_plain(bridge.W_O[layer]),
                out_bias=_plain(bridge.b_O[layer]),
                w_in=_plain(block.mlp.W_in),
                b_in=_plain(block.mlp.b_in),
                w_out=_plain(block.mlp.W_out),
                b_out=_plain(block.mlp.b_out),
                attention_scale=config.d_head**-0.5 / (layer + 1 if by_layer else 1),
            )
        )
    return Processed(
        embedding=_plain(bridge.W_E),
        positions=_plain(positions),
        blocks=tuple(blocks),
        unembedding=_plain(bridge.W_U),
        unembedding_bias=_plain(bridge.b_U),
        eps=config.eps,
        activation=ACTIVATIONS[config.act_fn],
        rotary=rotary,
        parallel=bool(getattr(config, "parallel_attn_mlp", False)),
    )


def _plain(weight: Tensor) -> Tensor:
    """In fp32 on the CPU, where interventions run."""
    return weight.detach().float().cpu().contiguous()
