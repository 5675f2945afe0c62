"""The table nulls.parquet: best matches and what other nulls reach, on a sample of the neurons and of the text.

Sampled neurons of every reference are compared with all neurons of the other seeds, with rotated ones under each null
(`null_bases`), and with their partner within domains and within positions (docs/method.md §3).
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from lib.base.hub import seed_source
from lib.base.machine import device_of
from lib.base.params import read_params
from lib.cache import kept
from lib.chapters.universality.null_bases import layer_nulls, partner_correlations, standardised
from lib.chapters.universality.properties import most_universal
from lib.kernels.correlation import haar_rotation
from lib.kernels.fused import OPERAND_DTYPES
from lib.models.architectures import ARCHITECTURES
from lib.models.trunk import Trunk, load_model
from lib.run import Run, with_universal
from lib.text.blocks import Text, evenly_spaced

MAX_TOKENS = 24_576  # positions of text that nulls are measured on
DRAWN = {True: 300, False: 120}  # neurons drawn at random: of the run's reference, of each other reference
ROTATION_DRAW = 2_000  # none of chapter 2's draws, nor of chapter 4's
HELD_BYTES = 2**29  # of one seed's activations in memory at once
BATCH_TOKENS = 2_048  # positions in a forward pass
KEY = ["seed", "layer", "neuron"]


# ---------------------------------------------------------------- the sample


@dataclass(frozen=True)
class Sample:
    """Blocks spread evenly over a text; for each counted token its domain and its position in the block."""

    tokens: Int[Tensor, "blocks context"]
    counted: Bool[Tensor, "blocks context"]
    domain: Int[Tensor, "tokens"]
    position: Int[Tensor, "tokens"]

    @classmethod
    def of(cls, text: Text, positions: int) -> "Sample":
        """About `positions` positions of the text, one block at least."""
        chosen = evenly_spaced(len(text.tokens), max(1, positions // text.context))
        tokens, counted = text.tokens[chosen], text.counted(chosen)
        domain, position = text.domain[chosen, None].expand_as(tokens), torch.arange(text.context).expand_as(tokens)
        return cls(tokens, counted, domain[counted], position[counted])


def sampled_neurons(neurons_all_seeds: pd.DataFrame, reference: str, random_seed: int) -> pd.DataFrame:
    """Columns seed, layer, neuron, sampled, weight: which neurons of every reference seed are measured.

    All universal neurons and the top 5 % by excess of the run's `reference` are, with weight 1. Of the other neurons of
    every seed about as many as DRAWN says are drawn at random, the same number in each layer (`sampled`); each stands
    for `weight` neurons of its layer.
    """
    table, parts = neurons_all_seeds, []
    added = (table["is_universal"] | most_universal(table)) & (table["seed"] == reference)
    parts.append(table.loc[added, KEY].assign(sampled=False, weight=1.0))
    for seed, own in table[~added].groupby("seed", sort=False):
        number = max(1, round(DRAWN[seed == reference] / own["layer"].nunique()))
        for layer, pool in own.groupby("layer"):
            drawn = pool.sample(min(number, len(pool)), random_state=np.random.default_rng([random_seed, layer]))
            parts.append(drawn[KEY].assign(sampled=True, weight=len(pool) / len(drawn)))
    return pd.concat(parts).sort_values(KEY, ignore_index=True)


# ---------------------------------------------------------------- activations


def read(
    trunk: Trunk, sample: Sample, wanted: Mapping[int, Tensor | slice], pre: bool
) -> dict[int, Float[Tensor, "tokens chosen"]]:
    """Pre-activations or activations of the wanted neurons of each wanted layer on the sample's counted tokens."""
    found, total, start = {}, len(sample.position), 0
    device, blocks = next(trunk.base.parameters()).device, max(1, BATCH_TOKENS // sample.tokens.shape[1])

    for tokens, counted in zip(sample.tokens.split(blocks), sample.counted.split(blocks), strict=True):
        keep, rows = counted.flatten().to(device), slice(start, start + int(counted.sum()))
        start = rows.stop

        def visit(layer: int, before: Tensor, after: Tensor, keep=keep, rows=rows) -> None:
            if layer in wanted:
                chosen = (before if pre else after).flatten(0, 1)[keep][:, wanted[layer]]
                if layer not in found:
                    found[layer] = chosen.new_empty(total, chosen.shape[1])
                found[layer][rows] = chosen

        trunk.run(tokens.to(device), visit, max(wanted) + 1)
    return found


def trunk_of(run: Run, seed: str) -> Trunk:
    """A seed as the run's pass reads it."""
    model = load_model(seed_source(run.params, seed)).to(device_of(run.params))
    return Trunk(model, OPERAND_DTYPES[run.done["precision"]] == torch.bfloat16)


def wide(run: Run) -> torch.dtype:
    """The type of all that is no product's operand."""
    return torch.float64 if run.done["precision"] == "fp64" else torch.float32


def operands(run: Run, sample: Sample, chosen: pd.DataFrame) -> Float[Tensor, "tokens chosen"]:
    """Standardised activations of neurons of all seeds, in the order of the table, in the type of the products."""
    made = None
    for seed, own in chosen.groupby("seed"):
        trunk = trunk_of(run, seed)
        device = next(trunk.base.parameters()).device
        columns = {int(layer): torch.tensor(of["neuron"].tolist()).to(device) for layer, of in own.groupby("layer")}
        found = read(trunk, sample, columns, pre=False)
        for layer, of in own.groupby("layer"):
            z = standardised(found.pop(layer).to(wide(run)))
            if made is None:
                made = z.new_empty(len(z), len(chosen), dtype=OPERAND_DTYPES[run.done["precision"]])
            made[:, torch.tensor(of.index.tolist()).to(device)] = z.to(made.dtype)
    return made


def compared_with(
    run: Run, model: str, sample: Sample, x: Float[Tensor, "tokens k"], partners: pd.DataFrame
) -> dict[str, np.ndarray]:
    """The columns of the table for k neurons of other seeds and one compared seed, whose neurons `partners` names."""
    trunk, (layers, neurons) = trunk_of(run, model), run.done["shapes"][model]
    plain = ARCHITECTURES[trunk.base.config.model_type].one_reader  # else the gate alone does not make the activation
    turn = haar_rotation(neurons, run.params.random_seed, ROTATION_DRAW, x.device).to(x.device, wide(run))
    y, places = turn.new_zeros(len(x), len(partners)), partners[["match_layer", "match_neuron"]].to_numpy(copy=True)
    at_layer, at_neuron = torch.from_numpy(places).to(x.device).T
    best: dict[str, Tensor] = {}
    held = max(1, HELD_BYTES // (len(x) * neurons * x.element_size()))  # layers
    for first in range(0, layers, held):
        part = range(first, min(first + held, layers))
        values = read(trunk, sample, dict.fromkeys(part, slice(None)), pre=plain)
        for layer in part:
            act = trunk.activations[layer] if plain else None
            own = values.pop(layer)
            for name, found in layer_nulls(x, own, act, turn).items():
                best[name] = torch.maximum(best.get(name, found), found)
            rows = (at_layer == layer).nonzero()[:, 0]
            chosen = own[:, at_neuron[rows]].to(turn)
            y[:, rows] = standardised(chosen if act is None else act(chosen))
    groups = {name: getattr(sample, name).to(x.device) for name in ("domain", "position")}
    best |= partner_correlations(x, y, groups)
    return {name: found.cpu().numpy() for name, found in best.items()}


@torch.inference_mode()
def measured(run: Run, asked: pd.DataFrame) -> pd.DataFrame:
    """The rows that are asked for with `corr`, `raw`, `zscored`, `activation`, `partner`, `domain`, `position`."""
    sample, chosen = Sample.of(run.text, MAX_TOKENS), asked[KEY].drop_duplicates(ignore_index=True)
    x, column = operands(run, sample, chosen), pd.Series(chosen.index, pd.MultiIndex.from_frame(chosen))
    parts = []
    for model, own in tqdm(asked.groupby("model"), desc="nulls", unit="seed", file=sys.stderr):
        of = column.reindex(pd.MultiIndex.from_frame(own[KEY])).tolist()
        parts.append(own.assign(**compared_with(run, model, sample, x[:, torch.tensor(of).to(x.device)], own)))
    table = pd.concat(parts, ignore_index=True).assign(tokens=len(sample.position))
    gated = "activation" in table and table["activation"].isna().any()
    return table.drop(columns="activation") if gated else table


def null_table(run: Run) -> pd.DataFrame:
    """nulls.parquet, made once and kept with the run: one row per sampled neuron (`sampled_neurons`) and compared seed.

    `corr` is the best match on the sample's tokens. `raw`, `zscored` and `activation` are what it is under each null;
    without `activation` where a compared seed's MLP is gated. `match_layer` and `match_neuron` name the run's partner,
    `partner` is the correlation with it, `domain` and `position` are that within domains and within positions.
    """
    neurons, matches = run.table("neurons_all_seeds"), run.table("matches_all_seeds")
    own = run.folder / "params.yaml"  # a session may look at another reference or threshold; this sample serves it too
    asking = read_params(own) if own.exists() else run.params
    chosen = sampled_neurons(with_universal(neurons, asking.threshold), asking.reference, run.params.random_seed)
    asked = chosen.merge(matches[[*KEY, "model", "match_layer", "match_neuron"]], on=KEY)
    made_from = {"asked": sha256(asked.to_csv().encode()).hexdigest(), "random_seed": run.params.random_seed}
    made_from |= {"tokens": run.text.tokens.numel(), "precision": run.done["precision"]}
    return kept(run, "nulls", __name__, made_from, lambda: measured(run, asked))
