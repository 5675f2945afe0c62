"""What interventions share: the text they read, the values neurons are held at, and what weights say about neurons."""

from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lib.chapters.circuits.roles import random_directions
from lib.chapters.interventions import candidates, heads
from lib.chapters.interventions.single_neurons import FIXED_FREQUENCY, FROZEN_SCALE, TOTAL, Readout
from lib.models.processed import Processed
from lib.text.blocks import Text, evenly_spaced

VARIANTS = (TOTAL, FROZEN_SCALE, FIXED_FREQUENCY)
KEY = ["seed", "layer", "neuron"]


def unigram_counts(text: Text) -> Int[Tensor, "vocabulary"]:
    """How often each token occurs after the first position of a block, BOS and line ends included."""
    return torch.bincount(text.tokens[:, 1:].flatten(), minlength=text.vocab_size)


def sample_blocks(text: Text, tokens: int) -> tuple[Int[Tensor, "blocks context"], Bool[Tensor, "blocks context"]]:
    """Blocks spread evenly over the text, about `tokens` positions in all, and the mask of those that count."""
    chosen = evenly_spaced(len(text.tokens), max(2, tokens // text.context))  # two, for a standard error
    return text.tokens[chosen], text.counted(chosen)


def at_values(chosen: pd.DataFrame, values: Sequence[float]) -> dict[tuple[int, int], Sequence[float]]:
    """The same values for every neuron of a table, as `effects` takes them."""
    return {(int(layer), int(neuron)): values for layer, neuron in chosen[["layer", "neuron"]].to_numpy()}


def at_mean(chosen: pd.DataFrame, neurons: pd.DataFrame) -> dict[tuple[int, int], list[float]]:
    """Each chosen neuron's mean activation (`activation_mean` of the run's `neurons`): mean ablation."""
    means = neurons.set_index(["layer", "neuron"])["activation_mean"]
    return {neuron: [float(means.loc[neuron])] for neuron in at_values(chosen, ())}


def weight_columns(model: Processed, reading: Readout, bos_id: int) -> pd.DataFrame:
    """One row per neuron: what the weights of one seed say about entropy, token frequency and attention."""
    directions = heads.score_directions(model, bos_id)
    scores = heads.score_columns(model.w_out, directions)
    return candidates.weight_columns(model, reading).merge(scores, on=["layer", "neuron"], validate="one_to_one")


def random_scores(model: Processed, bos_id: int, random_seed: int) -> pd.DataFrame:
    """`heads.score_columns` of as many random unit vectors as the model has neurons, in the same layers."""
    vectors = random_directions(len(model.w_out), model.w_out.shape[1], random_seed).to(model.device)
    return heads.score_columns(vectors, heads.score_directions(model, bos_id))


def effect_columns(ablated: pd.DataFrame) -> pd.DataFrame:
    """One row per seed and mean-ablated neuron: each outcome's change in each variant, and `ablation_group` (joined by
    +)."""
    changes = [name for name in ablated if name.endswith("_change")]
    distinct = ablated.drop_duplicates([*KEY, "variant"])
    wide = distinct.pivot(index=KEY, columns="variant", values=changes)
    wide.columns = [
        f"mean_ablation_{name.removesuffix('_change')}" + ("" if variant == TOTAL else "_" + variant.replace(" ", "_"))
        for name, variant in wide.columns
    ]
    group = ablated.groupby(KEY)["group"].agg(lambda names: "+".join(sorted(set(names))))
    return wide.join(group.rename("ablation_group")).reset_index()


def with_matches(ablated: pd.DataFrame, matches: pd.DataFrame, reference: str) -> pd.DataFrame:
    """The reference's mean-ablated entropy candidates and controls: one row per positively correlated best match.

    `matches` as in matches_all_seeds.parquet. Columns group, layer, neuron, reference_change, reference_error (of
    entropy, in total), seed, match_layer, match_neuron, corr.
    """
    own = ablated[(ablated["seed"] == reference) & (ablated["variant"] == TOTAL)]
    own = own[own["group"].isin(["entropy", candidates.CONTROL_OF["entropy"]])]
    own = own[["group", "layer", "neuron", "entropy_change", "entropy_error"]]
    own = own.rename(columns={"entropy_change": "reference_change", "entropy_error": "reference_error"})
    other = matches[(matches["seed"] == reference) & (matches["corr"] > 0)]
    other = other[["layer", "neuron", "model", "match_layer", "match_neuron", "corr"]].rename(columns={"model": "seed"})
    return own.merge(other, on=["layer", "neuron"])
