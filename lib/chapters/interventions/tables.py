"""The tables of chapter 05's causal runs: made once for the reference seed and kept with the run."""

import sys
from hashlib import sha256

import pandas as pd
import torch
from tqdm import tqdm

from lib.base.errors import InputError, capital
from lib.base.hub import seed_source
from lib.base.tensors import write_table
from lib.cache import kept
from lib.chapters.interventions import candidates, heads, inputs, neuron_sets, single_neurons
from lib.chapters.interventions.engine import PathAblation
from lib.chapters.interventions.inputs import VARIANTS, at_mean, at_values, sample_blocks, unigram_counts
from lib.models import processed
from lib.run import Run

TOKENS = 12_288  # positions of text that effects are measured on, at most
SHARE = 8  # and at most one in so many of the run's
PART = 4  # one in so many of these for the matches in other seeds, and for the many sets that are ablated


def positions(run: Run) -> int:
    """How many positions of the run's text effects are measured on."""
    return min(TOKENS, run.text.tokens.numel() // SHARE)


def model_of(run: Run, seed: str) -> processed.Processed:
    """A seed's processed weights."""
    return processed.processed(seed_source(run.params, seed))


def left_out(run: Run) -> str | None:
    """What chapter 05 cannot do with models that interventions do not know (a gated MLP), as a sentence; None if it can."""
    try:
        model_of(run, run.params.reference)
    except InputError as error:
        return f"**Left out for these models:** entropy, token-frequency and attention neurons and all interventions. {capital(str(error))}"
    return None


def weight_table(run: Run) -> pd.DataFrame:
    """causal_weights.parquet: `causal.weight_columns` of every seed, with a column seed in front."""

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
    """`causal.random_scores` for a seed's heads."""
    return inputs.random_scores(model_of(run, seed), run.text.bos_id, run.params.random_seed)


def groups(run: Run, own: pd.DataFrame) -> pd.DataFrame:
    """The reference seed's neurons that are intervened on: columns layer, neuron, group (entropy, frequency, control).

    `own` has the reference's rows of `weight_table`. A neuron may be in both of the first two groups.
    """
    chosen = {"entropy": candidates.entropy_candidates(own), "frequency": candidates.frequency_candidates(own)}
    chosen["control"] = candidates.controls(own, pd.concat(chosen.values()), run.params.random_seed)
    named = [rows[["layer", "neuron"]].assign(group=group) for group, rows in chosen.items()]
    return pd.concat(named, ignore_index=True)


def fixed_activations(run: Run, grouped: pd.DataFrame) -> pd.DataFrame:
    """fixed_activation.parquet: entropy candidates and controls fixed at every value of the grid (figures 7, 25)."""
    chosen = grouped[grouped["group"] != "frequency"]
    return _effects(run, "fixed_activation", chosen, at_values(chosen, candidates.GRID), ("total",))


def mean_ablations(run: Run, grouped: pd.DataFrame) -> pd.DataFrame:
    """mean_ablation.parquet: every chosen neuron at its mean, in total, with the scale frozen, with the frequency fixed."""
    distinct = grouped.drop_duplicates(["layer", "neuron"])
    return _effects(run, "mean_ablation", grouped, at_mean(distinct, run.neurons), VARIANTS)


def _effects(run: Run, name: str, grouped: pd.DataFrame, fixed: dict, variants: tuple[str, ...]) -> pd.DataFrame:
    def make() -> pd.DataFrame:
        model = model_of(run, run.params.reference)
        reading = single_neurons.readout(model, unigram_counts(run.text))
        found = single_neurons.effects(
            model, reading, sample_blocks(run.text, positions(run)), fixed, variants, _progress(name.replace("_", " "))
        )
        return found.table().merge(grouped, on=["layer", "neuron"]).assign(tokens=int(found.tokens.sum()))

    return kept(run, name, __name__, _made_from(run, grouped.to_dict("list")), make)


def matched_ablations(run: Run, ablated: pd.DataFrame) -> pd.DataFrame:
    """matched_ablation.parquet: the entropy candidates' and controls' best matches in the other seeds, held at *their* means.

    One row per neuron of `mean_ablations`' table and other seed: group, layer, neuron, seed, match_layer, match_neuron, corr,
    and the change of entropy with its error, of the match and (`reference_change`, `reference_error`) of the neuron.
    Only seeds that serve as reference have the means; without any the table is empty.
    """
    own = inputs.with_matches(ablated, run.table("matches_all_seeds"), run.params.reference)
    known = run.table("neurons_all_seeds")
    own = own[own["seed"].isin(known["seed"])]

    def make() -> pd.DataFrame:
        parts = [own.head(0).assign(entropy_change=0.0, entropy_error=0.0)]
        for seed, rows in own.groupby("seed"):
            chosen = rows[["match_layer", "match_neuron"]].drop_duplicates()
            fixed = at_mean(chosen.set_axis(["layer", "neuron"], axis=1), known[known["seed"] == seed])
            model = model_of(run, seed)
            blocks = sample_blocks(run.text, positions(run) // PART)
            found = single_neurons.effects(
                model,
                single_neurons.readout(model, unigram_counts(run.text)),
                blocks,
                fixed,
                progress=_progress(f"matches in {seed}"),
            )
            found = found.table()[["layer", "neuron", "entropy_change", "entropy_error"]]
            parts.append(
                rows.merge(
                    found.rename(columns={"layer": "match_layer", "neuron": "match_neuron"}),
                    on=["match_layer", "match_neuron"],
                )
            )
        return pd.concat(parts[1:] or parts, ignore_index=True)

    chosen = own[["layer", "neuron", "seed", "match_layer", "match_neuron"]]
    return kept(run, "matched_ablation", __name__, _made_from(run, chosen.to_dict("list")), make)


def ablations(run: Run) -> pd.DataFrame:
    """ablations.parquet: every layer's universal neurons, and its most universal ones, ablated together, beside random sets.

    `ablation.ablations` of the reference seed on 3,072 positions at most: 264 runs for the shipped seeds.
    """
    neurons = run.neurons
    sets = neuron_sets.neuron_sets(neurons, run.params.threshold, run.params.random_seed)

    def make() -> pd.DataFrame:
        means = torch.from_numpy(
            neurons.pivot(index="layer", columns="neuron", values="activation_mean").to_numpy(
                dtype="float32", copy=True
            )
        )
        blocks = sample_blocks(run.text, positions(run) // PART)
        return neuron_sets.ablations(
            model_of(run, run.params.reference), blocks, sets, means, _progress("ablated sets")
        )

    chosen = {"sets": sha256(repr(sets).encode()).hexdigest()}
    return kept(run, "ablations", __name__, _made_from(run, chosen), make)


def query_paths(run: Run, own: pd.DataFrame) -> pd.DataFrame:
    """query_paths.parquet: the top pairs' path into the head's query cut, one row per pair and destination (figures 8, 26)."""
    pairs = heads.top_pairs(own)
    columns = ["layer", "neuron", "attention_head_layer", "attention_head"]

    def make() -> pd.DataFrame:
        paths = [PathAblation(*map(int, pair)) for pair in pairs[columns].to_numpy()]
        rows = heads.query_path_ablations(
            model_of(run, run.params.reference), *sample_blocks(run.text, positions(run)), paths
        )
        return rows.merge(pairs[["layer", "neuron", "attention_score", "role"]], on=["layer", "neuron"])

    return kept(run, "query_paths", __name__, _made_from(run, pairs[columns].to_dict("list")), make)


def value_norms(run: Run) -> pd.DataFrame:
    """value_norms.parquet: ‖W_O v‖ of BOS and of other tokens for every head of the reference seed."""

    def make() -> pd.DataFrame:
        tokens, _ = sample_blocks(run.text, positions(run) // 2)
        return heads.value_norms(model_of(run, run.params.reference), tokens)

    return kept(run, "value_norms", __name__, _made_from(run, {}), make)


def _progress(what: str):
    return lambda chunks: tqdm(chunks, desc=what, file=sys.stderr)


def _made_from(run: Run, neurons: dict) -> dict:
    params = run.params
    return {
        "reference": params.reference,
        "random_seed": params.random_seed,
        "tokens": run.text.tokens.numel(),
        "chosen": {name: [str(value) for value in values] for name, values in neurons.items()},
    }


def write_circuits(run: Run, table: pd.DataFrame, weights: pd.DataFrame, effects: pd.DataFrame) -> pd.DataFrame:
    """circuits.parquet: everything that the chapter says about a neuron, one row per neuron of every seed.

    `table` is `role_table`'s; `weights` has more columns for the same neurons, of which those that the table has are
    left out; `effects` has columns for those neurons of the reference seed (layer, neuron) that were intervened on,
    which are missing for all others.
    """
    keys = ["seed", "layer", "neuron"]
    new = [name for name in weights if name in keys or name not in table]
    joined = table.merge(weights[new], on=keys, how="left", validate="one_to_one")
    joined = joined.merge(effects.assign(seed=run.params.reference), on=keys, how="left", validate="one_to_one")
    write_table(run.folder / "tables" / "circuits.parquet", joined)
    return joined
