"""Neurons that switch attention heads on or off: scores from weights, proved by cutting one path.

A head that attends to the first token (BOS), whose value is small, does little. A neuron that moves a later head's
query along that head's BOS key raises or lowers this attention. METHOD §6, figures 8 and 26.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from lib.chapters.interventions.engine import PathAblation, Trace, contribution, run
from lib.models.processed import Processed

PAIRS = 2  # of either sign
BLOCKS = 8  # blocks in one forward pass


def score_directions(model: Processed, bos_id: int) -> Float[Tensor, "layers heads d_model"]:
    """W_Qᵀ k_BOS / √d_head for every head, k_BOS from the model run on BOS alone: h = w_out · direction.

    Where a model divides its attention scores by another number than √d_head, that number stands in its place; with rotary
    positions the query is taken as it stands at BOS.
    """
    alone = run(model, torch.tensor([[bos_id]]))
    directions = []
    for layer, block in enumerate(model.blocks):
        key = model.heads(alone.before[layer], layer)[1, 0, :, 0]  # (heads, d_head)
        directions.append(torch.einsum("dhe,he->hd", block.qkv[:, 0], key) * block.attention_scale)
    return torch.stack(directions)


@torch.no_grad()
def attention_scores(
    w_out: Float[Tensor, "neurons d_model"], directions: Float[Tensor, "layers heads d_model"]
) -> Float[Tensor, "neurons layers heads"]:
    """h of every neuron (unit w_out) for every head of a later layer; NaN for heads that it cannot reach.

    `w_out` holds as many neurons of each layer, layer after layer.
    """
    layers = len(directions)
    scores = torch.einsum("nd,lhd->nlh", normalize(w_out, dim=1), directions)
    of_neuron = torch.arange(layers).repeat_interleave(len(w_out) // layers)
    reachable = torch.arange(layers)[None] > of_neuron[:, None]  # (neurons, layers)
    return scores.masked_fill(~reachable[..., None], torch.nan)


def score_columns(
    w_out: Float[Tensor, "neurons d_model"], directions: Float[Tensor, "layers heads d_model"]
) -> pd.DataFrame:
    """One row per neuron: `attention_score`, its h for the head `attention_head_layer`, `attention_head` for which it is largest in
    size in standard deviations of a random unit vector's, and `attention_deviations`, h in these. Heads' BOS keys differ in length, so that
    only deviations compare from head to head.

    The last layer's neurons, which no head reads, have NaN and head −1.
    """
    scores = attention_scores(w_out, directions)
    neurons, layers, heads = scores.shape
    flat = scores.nan_to_num(0.0).flatten(1)
    spreads = (directions.norm(dim=-1) / (directions.shape[-1] - 1) ** 0.5).flatten().clamp(min=1e-30)
    best = (flat / spreads).abs().argmax(1)
    reached = (~scores.isnan()).flatten(1).any(1).numpy()
    value = flat.gather(1, best[:, None])[:, 0].double().numpy()
    spread = spreads[best].double().numpy()
    per_layer = neurons // layers
    return pd.DataFrame(
        {
            "layer": np.arange(neurons) // per_layer,
            "neuron": np.arange(neurons) % per_layer,
            "attention_score": np.where(reached, value, np.nan),
            "attention_head_layer": np.where(reached, best.numpy() // heads, -1),
            "attention_head": np.where(reached, best.numpy() % heads, -1),
            "attention_deviations": np.where(reached, value / spread, np.nan),
        }
    )


def top_pairs(columns: pd.DataFrame, number: int = PAIRS) -> pd.DataFrame:
    """The pairs of neuron and head with the largest h in deviations (they deactivate the head) and the lowest (they activate it)."""
    reached = columns[columns["attention_deviations"].notna()]
    most = reached.nlargest(number, "attention_deviations")
    least = reached.drop(index=most.index).nsmallest(number, "attention_deviations")
    return pd.concat([most.assign(role="deactivation"), least.assign(role="activation")])


@torch.no_grad()
def value_norms(model: Processed, tokens: Int[Tensor, "blocks context"]) -> pd.DataFrame:
    """Per head ‖W_O v‖ of BOS, its mean over all other tokens, and `ratio`, how many times smaller BOS's is."""
    trace = run(model, tokens)
    rows = []
    for layer, block in enumerate(model.blocks):
        value = model.heads(trace.before[layer], layer)[2]  # (blocks, heads, context, d_head)
        norm = torch.einsum("bhte,hed->bhtd", value, block.out).norm(dim=-1)
        for head in range(norm.shape[1]):
            bos, others = float(norm[:, head, 0].mean()), float(norm[:, head, 1:].mean())
            rows.append({"layer": layer, "head": head, "bos": bos, "others": others, "ratio": others / max(bos, 1e-30)})
    return pd.DataFrame(rows)


def head_output(
    model: Processed, read_by_query: Tensor, read: Tensor, layer: int, head: int
) -> tuple[Float[Tensor, "blocks context"], Float[Tensor, "blocks context"]]:
    """A head's attention to BOS and ‖W_O z‖ at each position, its query reading another residual stream than k and v."""
    block = model.blocks[layer]

    query, key, value = (model.one_head(of, layer, kind, head) for kind, of in enumerate((read_by_query, read, read)))
    score = query @ key.transpose(1, 2) * block.attention_scale
    seen = torch.ones(score.shape[1:], dtype=torch.bool).tril()
    pattern = score.masked_fill(~seen, -torch.inf).softmax(-1)  # (blocks, destination, source)
    return pattern[..., 0], (pattern @ value @ block.out[head]).norm(dim=-1)


@torch.no_grad()
def query_path_ablations(
    model: Processed,
    tokens: Int[Tensor, "blocks context"],
    counted: Bool[Tensor, "blocks context"],
    pairs: Sequence[PathAblation],
) -> pd.DataFrame:
    """One row per pair and counted destination in the second half of the context: what cutting the path changes.

    `block` is the destination's, its number among `tokens`; `activation` is the neuron's, `bos` the head's attention to BOS and `norm` its ‖W_O z‖ in the unchanged run, `bos_change`
    and `norm_change` ablated minus unchanged. Only the query at the destination loses the neuron's contribution; since a query
    serves one destination alone, cutting it everywhere and reading each destination is the same as one cut at a time.
    """
    context = tokens.shape[1]
    chosen = counted & (torch.arange(context) >= context // 2)
    parts = []
    for start in range(0, len(tokens), BLOCKS):
        some, trace = chosen[start : start + BLOCKS], run(model, tokens[start : start + BLOCKS])
        for pair in pairs:
            found = _cut(model, trace, pair)
            part = pd.DataFrame({name: values[some].numpy() for name, values in found.items()})
            part["block"] = start + some.nonzero()[:, 0].numpy()
            parts.append(part.assign(layer=pair.layer, neuron=pair.neuron, head_layer=pair.head_layer, head=pair.head))
    if not parts:  # no pair: a model of one layer has no later head
        names = [
            "activation",
            "bos",
            "norm",
            "bos_change",
            "norm_change",
            "block",
            "layer",
            "neuron",
            "head_layer",
            "head",
        ]
        return pd.DataFrame(
            {name: pd.Series(dtype="float64" if place < 5 else "int64") for place, name in enumerate(names)}
        )
    return pd.concat(parts, ignore_index=True)


def _cut(model: Processed, trace: Trace, pair: PathAblation) -> dict[str, Tensor]:
    read = trace.before[pair.head_layer]
    bos, norm = head_output(model, read, read, pair.head_layer, pair.head)
    cut = read - contribution(model, trace.middle, pair)
    bos_after, norm_after = head_output(model, cut, read, pair.head_layer, pair.head)
    activation = model.neuron_activations(trace.middle[pair.layer], pair.layer, [pair.neuron])[..., 0]
    return {
        "activation": activation,
        "bos": bos,
        "norm": norm,
        "bos_change": bos_after - bos,
        "norm_change": norm_after - norm,
    }


def ablation_summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Per pair: role, destinations, mean attention to BOS and ‖W_O z‖, mean changes, and their correlations with the activation.

    `<change>_corr_error` is the standard error of artanh of the correlation, from leaving out one block of text at a time, since
    tokens of one block are not independent. A correlation with a quantity that does not vary is NaN.
    """
    summary = []
    for (layer, neuron, head_layer, head), own in rows.groupby(["layer", "neuron", "head_layer", "head"], sort=False):
        row = {
            "role": own["role"].iloc[0],
            "layer": layer,
            "neuron": neuron,
            "head_layer": head_layer,
            "head": head,
            "destinations": len(own),
        }
        row |= {name: own[name].mean() for name in ("bos", "norm", "bos_change", "norm_change")}
        for name in ("bos_change", "norm_change"):
            varies = len(own) > 2 and own["activation"].std() > 0 and own[name].std() > 0
            row[f"{name}_corr"] = np.corrcoef(own["activation"], own[name])[0, 1] if varies else np.nan
            row[f"{name}_corr_error"] = (
                _correlation_error(own["activation"], own[name], own["block"]) if varies else np.nan
            )
        summary.append(row)
    return pd.DataFrame(summary)


def _correlation_error(x: pd.Series, y: pd.Series, block: pd.Series) -> float:
    """The jackknife's standard error of artanh of the correlation of x and y, a block left out at a time; NaN for one block."""
    x, y = x - x.mean(), y - y.mean()
    by_block = (
        pd.DataFrame({"n": 1.0, "x": x, "y": y, "xx": x * x, "yy": y * y, "xy": x * y})
        .astype(float)
        .groupby(block.to_numpy())
        .sum()
    )
    left = by_block.sum() - by_block  # sums of all blocks but one
    covariance, *variances = (
        left[a + b] / left["n"] - left[a] * left[b] / left["n"] ** 2 for a, b in ("xy", "xx", "yy")
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.arctanh((covariance / np.sqrt(variances[0] * variances[1])).to_numpy())
    return float(np.sqrt((len(z) - 1) * z.var())) if len(z) > 1 else np.nan
