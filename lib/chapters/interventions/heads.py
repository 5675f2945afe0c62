"""Neurons that switch attention heads on or off: from weights to scores, and to the effects of cutting one path.

A head that attends to the first token (BOS), whose value is small, writes little. A neuron that moves a later head's
query along that head's BOS key raises or lowers this attention. docs/method.md §6, figures 8 and 26.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from lib.chapters.interventions.engine import PathAblation, Trace, contribution, run
from lib.models.folded import full_precision
from lib.models.processed import Processed

PAIRS = 2  # of each sign
PAIR = ["layer", "neuron", "head_layer", "head"]
MEASURED = ["activation", "bos", "norm", "bos_change", "norm_change"]


def score_directions(model: Processed, bos_id: int) -> Float[Tensor, "layers heads d_model"]:
    """W_Qᵀ k_BOS / √d_head for every head, k_BOS from the model run on BOS alone: h = w_out · direction.

    A model's own attention scale replaces 1 / √d_head; with rotary positions the query is that at BOS.
    """
    alone = run(model, torch.tensor([[bos_id]], device=model.device))
    directions = []
    for layer, block in enumerate(model.blocks):
        key = model.heads(alone.before[layer], layer)[1, 0, :, 0]  # (heads, d_head)
        directions.append(torch.einsum("dhe,he->hd", block.qkv[:, 0], key) * block.attention_scale)
    return torch.stack(directions)


@full_precision()
def attention_scores(
    w_out: Float[Tensor, "neurons d_model"], directions: Float[Tensor, "layers heads d_model"]
) -> Float[Tensor, "neurons layers heads"]:
    """h of every neuron (unit w_out) for every head of a later layer; NaN for heads that it cannot reach.

    `w_out` holds equally many neurons per layer, layer after layer.
    """
    layers, device = len(directions), directions.device
    scores = torch.einsum("nd,lhd->nlh", normalize(w_out, dim=1), directions)
    of_neuron = torch.arange(layers, device=device).repeat_interleave(len(w_out) // layers)
    reachable = torch.arange(layers, device=device)[None] > of_neuron[:, None]  # (neurons, layers)
    return scores.masked_fill(~reachable[..., None], torch.nan)


def score_columns(
    w_out: Float[Tensor, "neurons d_model"], directions: Float[Tensor, "layers heads d_model"]
) -> pd.DataFrame:
    """One row per neuron: its strongest head (`attention_head_layer`, `attention_head`) and h for it.

    Heads' BOS keys differ in length, so heads are compared by `attention_deviations`: `attention_score`, h, in standard
    deviations of a random unit vector's. The last layer's neurons, which no head reads, have NaN and head −1.
    """
    scores = attention_scores(w_out, directions)
    neurons, layers, heads = scores.shape
    flat = scores.nan_to_num(0.0).flatten(1)
    spreads = (directions.norm(dim=-1) / (directions.shape[-1] - 1) ** 0.5).flatten().clamp(min=1e-30)
    best = (flat / spreads).abs().argmax(1)
    reached = (~scores.isnan()).flatten(1).any(1).cpu().numpy()
    value = flat.gather(1, best[:, None])[:, 0].double().cpu().numpy()
    spread, best = spreads[best].double().cpu().numpy(), best.cpu().numpy()
    per_layer = neurons // layers
    return pd.DataFrame(
        {
            "layer": np.arange(neurons) // per_layer,
            "neuron": np.arange(neurons) % per_layer,
            "attention_score": np.where(reached, value, np.nan),
            "attention_head_layer": np.where(reached, best // heads, -1),
            "attention_head": np.where(reached, best % heads, -1),
            "attention_deviations": np.where(reached, value / spread, np.nan),
        }
    )


def top_pairs(columns: pd.DataFrame, number: int = PAIRS) -> pd.DataFrame:
    """The pairs of neuron and head with the largest deviations (deactivation) and the lowest (activation)."""
    reached = columns[columns["attention_deviations"].notna()]
    most = reached.nlargest(number, "attention_deviations")
    least = reached.drop(index=most.index).nsmallest(number, "attention_deviations")
    return pd.concat([most.assign(role="deactivation"), least.assign(role="activation")])


@full_precision()
def value_norms(model: Processed, tokens: Int[Tensor, "blocks context"]) -> pd.DataFrame:
    """Per head ‖W_O (v + b_V)‖ of BOS (`bos`), its mean over all other tokens (`others`), and `ratio`, others / bos.

    `ratio_without_bias` is that of ‖W_O v‖, from values without their bias b_V.
    """
    layers, heads = len(model.blocks), len(model.blocks[0].out)
    # sums over blocks, (layers, heads, with the bias or without, BOS or others)
    norms = torch.zeros(layers, heads, 2, 2, dtype=torch.float64, device=model.device)
    for some in tokens.to(model.device).split(model.batch):
        trace = run(model, some)
        for layer, block in enumerate(model.blocks):
            value = model.heads(trace.before[layer], layer)[2]  # (blocks, heads, context, d_head)
            for kind, one in enumerate((value + block.value_bias[:, None], value)):
                norm = torch.einsum("bhte,hed->bhtd", one, block.out).norm(dim=-1)  # (blocks, heads, context)
                norms[layer, :, kind] += torch.stack([norm[..., 0].sum(0), norm[..., 1:].mean(2).sum(0)], 1)
    (bos, others), bare = (norms / len(tokens)).permute(2, 3, 0, 1).flatten(2).cpu().numpy()  # (layers · heads) each
    place = np.arange(layers * heads)
    ratios = {"ratio": others / bos.clip(1e-30), "ratio_without_bias": bare[1] / bare[0].clip(1e-30)}
    return pd.DataFrame({"layer": place // heads, "head": place % heads, "bos": bos, "others": others, **ratios})


def head_output(
    model: Processed, read_by_query: Tensor, read: Tensor, layer: int, head: int
) -> tuple[Float[Tensor, "blocks context"], Float[Tensor, "blocks context"]]:
    """A head's attention to BOS and ‖W_O z‖ at each position, with a residual stream for its query alone."""
    block = model.blocks[layer]
    query, key, value = (model.one_head(of, layer, kind, head) for kind, of in enumerate((read_by_query, read, read)))
    score = query @ key.transpose(1, 2) * block.attention_scale
    seen = torch.ones_like(score[0], dtype=torch.bool).tril()
    pattern = score.masked_fill(~seen, -torch.inf).softmax(-1)  # (blocks, destination, source)
    return pattern[..., 0], (pattern @ value @ block.out[head]).norm(dim=-1)


@full_precision()
def query_path_ablations(
    model: Processed,
    tokens: Int[Tensor, "blocks context"],
    counted: Bool[Tensor, "blocks context"],
    pairs: Sequence[PathAblation],
) -> pd.DataFrame:
    """One row per pair and counted destination in the second half of the context: what cutting the path changes.

    `activation` is the neuron's, `bos` the head's attention to BOS and `norm` its ‖W_O z‖ in the unchanged run,
    `bos_change` and `norm_change` are ablated minus unchanged, `block` is the row of `tokens`. A query serves one
    destination alone, so cutting all queries at once equals cutting one at a time.
    """
    context = tokens.shape[1]
    chosen = counted & (torch.arange(context) >= context // 2)
    if not pairs:  # a model of one layer has no later head
        empty = dict.fromkeys(MEASURED, "float64") | dict.fromkeys(["block", *PAIR], "int64")
        return pd.DataFrame({name: pd.Series(dtype=dtype) for name, dtype in empty.items()})
    found = []  # by batch, (measured, pairs, destinations)
    for part, some in zip(tokens.split(model.batch), chosen.split(model.batch), strict=True):
        trace, some = run(model, part.to(model.device)), some.to(model.device)
        found.append(torch.stack([torch.stack([one[some] for one in _cut(model, trace, pair)]) for pair in pairs], 1))
    table = pd.DataFrame(dict(zip(MEASURED, torch.cat(found, 2).flatten(1).cpu().numpy(), strict=True)))
    table["block"] = np.tile(chosen.nonzero()[:, 0].numpy(), len(pairs))
    number = int(chosen.sum())
    return table.assign(**{name: np.repeat([getattr(pair, name) for pair in pairs], number) for name in PAIR})


def _cut(model: Processed, trace: Trace, pair: PathAblation) -> tuple[Tensor, ...]:
    read = trace.before[pair.head_layer]
    bos, norm = head_output(model, read, read, pair.head_layer, pair.head)
    cut = read - contribution(model, trace.middle, pair)
    bos_after, norm_after = head_output(model, cut, read, pair.head_layer, pair.head)
    activation = model.neuron_activations(trace.middle[pair.layer], pair.layer, [pair.neuron])[..., 0]
    return activation, bos, norm, bos_after - bos, norm_after - norm


def ablation_summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Per pair: role, destinations, means of attention to BOS, ‖W_O z‖ and their changes, and the changes' correlations
    with the activation.

    `<change>_corr_error` is the standard error of artanh of the correlation, a block of text left out at a time, since
    tokens of one block are not independent. A correlation with a quantity that does not vary is NaN.
    """
    summary = []
    for pair, own in rows.groupby(PAIR, sort=False):
        row = {"role": own["role"].iloc[0], **dict(zip(PAIR, pair, strict=True)), "destinations": len(own)}
        row |= {name: own[name].mean() for name in MEASURED[1:]}
        activation = own["activation"]
        for name in ("bos_change", "norm_change"):
            row[f"{name}_corr"] = row[f"{name}_corr_error"] = np.nan
            if len(own) > 2 and activation.std() > 0 and own[name].std() > 0:
                row[f"{name}_corr"] = np.corrcoef(activation, own[name])[0, 1]
                row[f"{name}_corr_error"] = _correlation_error(activation, own[name], own["block"])
        summary.append(row)
    return pd.DataFrame(summary)


def _correlation_error(x: pd.Series, y: pd.Series, block: pd.Series) -> float:
    """The jackknife's standard error of artanh of the correlation, a block left out at a time; NaN for one block."""
    x, y = x - x.mean(), y - y.mean()
    terms = pd.DataFrame({"n": 1.0, "x": x, "y": y, "xx": x * x, "yy": y * y, "xy": x * y}).astype(float)
    by_block = terms.groupby(block.to_numpy()).sum()
    left = by_block.sum() - by_block  # sums of all blocks but one
    pairs = ("xy", "xx", "yy")
    covariance, *variances = (left[a + b] / left["n"] - left[a] * left[b] / left["n"] ** 2 for a, b in pairs)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.arctanh((covariance / np.sqrt(variances[0] * variances[1])).to_numpy())
    return float(np.sqrt((len(z) - 1) * z.var())) if len(z) > 1 else np.nan
