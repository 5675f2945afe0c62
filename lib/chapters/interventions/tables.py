"""The tables of chapter 06: effects of interventions on the reference seed, made once and kept with the run."""

import sys
from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256

import pandas as pd
import torch
from tqdm import tqdm

from lib.base.hub import seed_source
from lib.base.tensors import write_table
from lib.cache import kept
from lib.chapters.interventions import candidates, heads, inputs, neuron_sets, single_neurons
from lib.chapters.interventions.engine import PathAblation
from lib.chapters.interventions.inputs import VARIANTS, at_mean, at_values, sample_blocks, unigram_counts
from lib.models import processed
from lib.models.trunk import no_interventions
from lib.run import Run

MAX_TOKENS = 8_192  # positions of text that effects are measured on
MAX_FRACTION = 1 / 10  # of the run's positions
REDUCED = 1 / 4  # of these, for matches in other seeds and for ablated sets
NEURON = ["layer", "neuron"]


def unsupported(run: Run) -> str | None:
    """Why interventions cannot run on these models, in a sentence, or None."""
    return no_interventions(run.params)


@lru_cache(maxsize=1)
def model_of(run: Run, seed: str) -> processed.Processed:
    """A seed's processed weights; those asked for last are kept, since most tables ask for the reference's."""
    return processed.processed(seed_source(run.params, seed))


def blocks_of(run: Run, fraction: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """The blocks that effects are measured on, and the mask of the tokens that count; `fraction` for fewer blocks."""
    positions = min(MAX_TOKENS, int(run.text.tokens.numel() * MAX_FRACTION))
    return sample_blocks(run.text, int(positions * fraction))


def weight_table(run: Run) -> pd.DataFrame:
    """causal_weights.parquet: `inputs.weight_columns` of every seed, with a column seed in front."""

    def make() -> pd.DataFrame:
        counts, parts = unigram_counts(run.text), []
        for seed in sorted(run.params.seeds):
            model = model_of(run, seed)
            part = inputs.weight_columns(model, single_neurons.readout(model, counts), run.text.bos_id)
            part.insert(0, "seed", seed)
            parts.append(part)
        return pd.concat(parts, ignore_index=True)

    return kept(run, "causal_weights", __name__, {"tokens": run.text.tokens.numel()}, make)


def null_space_of(run: Run, seed: str) -> candidates.NullSpace:
    """The directions that a seed's unembedding reads least."""
    return candidates.null_space(model_of(run, seed).unembedding)


def random_scores(run: Run, seed: str) -> pd.DataFrame:
    """`inputs.random_scores` for a seed's heads."""
    return inputs.random_scores(model_of(run, seed), run.text.bos_id, run.params.random_seed)


def groups(run: Run, own: pd.DataFrame) -> pd.DataFrame:
    """The reference seed's neurons that are intervened on: columns layer, neuron, group (entropy, frequency, control).

    `own` has the reference's rows of `weight_table`. A neuron may be in both of the first two groups.
    """
    chosen = {"entropy": candidates.entropy_candidates(own), "frequency": candidates.frequency_candidates(own)}
    chosen["control"] = candidates.controls(own, pd.concat(chosen.values()), run.params.random_seed)
    return pd.concat([rows[NEURON].assign(group=group) for group, rows in chosen.items()], ignore_index=True)


def fixed_activations(run: Run, grouped: pd.DataFrame) -> pd.DataFrame:
    """fixed_activation.parquet: entropy candidates and controls fixed at each of FIXED_VALUES (figures 7, 25)."""
    chosen = grouped[grouped["group"] != "frequency"]
    fixed = at_values(chosen, candidates.FIXED_VALUES)
    return _kept_effects(run, "fixed_activation", chosen, fixed, (single_neurons.TOTAL,))


def mean_ablations(run: Run, grouped: pd.DataFrame) -> pd.DataFrame:
    """mean_ablation.parquet: every chosen neuron at its mean, in each of VARIANTS."""
    return _kept_effects(run, "mean_ablation", grouped, at_mean(grouped, run.neurons), VARIANTS)


def _kept_effects(run: Run, name: str, grouped: pd.DataFrame, fixed: dict, variants: Sequence[str]) -> pd.DataFrame:
    def make() -> pd.DataFrame:
        found = _effects(run, run.params.reference, blocks_of(run), fixed, variants, name.replace("_", " "))
        return found.table().merge(grouped, on=NEURON).assign(tokens=int(found.tokens.sum()))

    return kept(run, name, __name__, _made_from(run, grouped), make)


def _effects(run: Run, seed: str, blocks, fixed: dict, variants: Sequence[str], what: str) -> single_neurons.Effects:
    model = model_of(run, seed)
    reading = single_neurons.readout(model, unigram_counts(run.text))
    return single_neurons.effects(model, reading, blocks, fixed, variants, _progress(what))


def matched_ablations(run: Run, ablated: pd.DataFrame) -> pd.DataFrame:
    """matched_ablation.parquet: the candidates' and controls' best matches in other seeds, held at *their* means.

    One row per neuron of `mean_ablations`' table and other seed: group, layer, neuron, seed, match_layer, match_neuron,
    corr, and the change of entropy with its error, of the match and (`reference_change`, `reference_error`) of the
    neuron. Only seeds that serve as reference have the means; without any the table is empty.
    """
    own = inputs.with_matches(ablated, run.table("matches_all_seeds"), run.params.reference)
    known = run.table("neurons_all_seeds")
    own = own[own["seed"].isin(known["seed"])]
    match = ["match_layer", "match_neuron"]

    def make() -> pd.DataFrame:
        parts = [own.head(0).assign(entropy_change=0.0, entropy_error=0.0)]
        for seed, rows in own.groupby("seed"):
            fixed = at_mean(rows[match].set_axis(NEURON, axis=1), known[known["seed"] == seed])
            variants = (single_neurons.TOTAL,)
            found = _effects(run, seed, blocks_of(run, REDUCED), fixed, variants, f"matches in {seed}").table()
            found = found.rename(columns=dict(zip(NEURON, match, strict=True)))
            parts.append(rows.merge(found[[*match, "entropy_change", "entropy_error"]], on=match))
        return pd.concat(parts[1:] or parts, ignore_index=True)

    return kept(run, "matched_ablation", __name__, _made_from(run, own[[*NEURON, "seed", *match]]), make)


def ablations(run: Run) -> pd.DataFrame:
    """ablations.parquet: each layer's universal neurons, and its top 5 % by excess, ablated beside random sets.

    `neuron_sets.ablations` of the reference seed on at most 3,072 positions: 264 runs for the shipped seeds.
    """
    neurons = run.neurons
    sets = neuron_sets.neuron_sets(neurons, run.params.random_seed)

    def make() -> pd.DataFrame:
        means = neurons.pivot(index="layer", columns="neuron", values="activation_mean")
        means = torch.from_numpy(means.to_numpy(dtype="float32", copy=True))
        model = model_of(run, run.params.reference)
        return neuron_sets.ablations(model, blocks_of(run, REDUCED), sets, means, _progress("ablated sets"))

    chosen = pd.DataFrame({"sets": [sha256(repr(sets).encode()).hexdigest()]})
    return kept(run, "ablations", __name__, _made_from(run, chosen), make)


def query_paths(run: Run, own: pd.DataFrame) -> pd.DataFrame:
    """query_paths.parquet: the top pairs' path into the head's query cut, a row per destination (figures 8, 26)."""
    pairs = heads.top_pairs(own)
    chosen = pairs[[*NEURON, "attention_head_layer", "attention_head"]]

    def make() -> pd.DataFrame:
        paths = [PathAblation(*map(int, pair)) for pair in chosen.to_numpy()]
        rows = heads.query_path_ablations(model_of(run, run.params.reference), *blocks_of(run), paths)
        return rows.merge(pairs[[*NEURON, "attention_score", "role"]], on=NEURON)

    return kept(run, "query_paths", __name__, _made_from(run, chosen), make)


def value_norms(run: Run) -> pd.DataFrame:
    """value_norms.parquet: ‖W_O v‖ of BOS and of other tokens for every head of the reference seed."""

    def make() -> pd.DataFrame:
        tokens, _ = blocks_of(run, 1 / 2)
        return heads.value_norms(model_of(run, run.params.reference), tokens)

    return kept(run, "value_norms", __name__, _made_from(run, pd.DataFrame()), make)


def _progress(what: str):
    return lambda chunks: tqdm(chunks, desc=what, file=sys.stderr)


def _made_from(run: Run, chosen: pd.DataFrame) -> dict:
    return {
        "reference": run.params.reference,
        "random_seed": run.params.random_seed,
        "tokens": run.text.tokens.numel(),
        "chosen": chosen.astype(str).to_dict("list"),
    }


def write_circuits(run: Run, roles: pd.DataFrame, weights: pd.DataFrame, effects: pd.DataFrame) -> pd.DataFrame:
    """circuits.parquet: everything that chapters 05 and 06 say about a neuron, one row per neuron of every seed.

    `roles` is `role_table`'s; `weights` has more columns for the same neurons, of which those that `roles` has are left
    out; `effects` has columns for the neurons of the reference seed that were ablated, missing for all others.
    """
    keys = ["seed", *NEURON]
    new = [name for name in weights if name in keys or name not in roles]
    joined = roles.merge(weights[new], on=keys, how="left", validate="one_to_one")
    joined = joined.merge(effects.assign(seed=run.params.reference), on=keys, how="left", validate="one_to_one")
    write_table(run.folder / "tables" / "circuits.parquet", joined)
    return joined
