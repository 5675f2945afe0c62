"""The tables of chapter 06: effects of interventions, made once and kept with the run.

Every seed that serves as a reference has rows, since claims are decided over seeds. Those of the run's reference rest
on more text, and it alone is swept over all values and ablated at zero.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256

import pandas as pd
import torch
from tqdm import tqdm

from lib.base.hub import seed_source
from lib.base.machine import allowed_memory, device_of
from lib.base.tensors import write_table
from lib.cache import kept
from lib.chapters.interventions import candidates, heads, inputs, neuron_sets, single_neurons
from lib.chapters.interventions.engine import PathAblation
from lib.chapters.interventions.inputs import KEY, VARIANTS, at_mean, at_values, sample_blocks, unigram_counts
from lib.models import processed
from lib.models.trunk import no_interventions
from lib.run import Run

MAX_TOKENS = 8_192  # positions of text that effects are measured on
MAX_FRACTION = 1 / 10  # of the run's positions
REDUCED = 1 / 4  # of these, for matches in other seeds
OTHERS = 1 / 2  # of these, for seeds other than the reference
ABLATED_BLOCKS, ABLATED_CONTEXT = 48, 256  # blocks that sets are ablated on, and their first positions
REDUCED_BLOCKS = 12  # of them, for zero ablation and for seeds other than the reference
OTHER_DRAWS = 5  # random sets beside a set that is zero-ablated or of another seed
HELD, BATCHED = 1 / 4, 1 / 4  # of the memory that the run may use: models that stay, and what a batch of text takes
NEURON = ["layer", "neuron"]
_models: dict[tuple[str, str], processed.Processed] = {}


def unsupported(run: Run) -> str | None:
    """Why interventions cannot run on these models, in a sentence, or None."""
    return no_interventions(run.params)


def model_of(run: Run, seed: str) -> processed.Processed:
    """A seed's processed weights on the run's device, which stay there while those of all seeds fit into HELD."""
    key = str(run.folder), seed
    if key not in _models:
        device = device_of(run.params)
        memory = allowed_memory(run.params, device)
        size = max((one.memory for one in _models.values()), default=0)  # seeds are about as large as one another
        while _models and size * (len(_models) + 1) > HELD * memory:
            _models.pop(next(iter(_models)))
        made = processed.processed(seed_source(run.params, seed), device)
        _models[key] = made.within(BATCHED * memory, run.params.context)
    return _models[key]


def blocks_of(run: Run, positions: float = MAX_TOKENS) -> tuple[torch.Tensor, torch.Tensor]:
    """Blocks of about as many positions, at most MAX_FRACTION of the run's, and the mask of the tokens that count."""
    return sample_blocks(run.text, int(min(positions, run.text.tokens.numel() * MAX_FRACTION)))


def share_of(run: Run, seed: str) -> float:
    """The share of MAX_TOKENS that a seed's effects are measured on."""
    return 1.0 if seed == run.params.reference else OTHERS


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


def groups(run: Run, weights: pd.DataFrame) -> pd.DataFrame:
    """`candidates.groups` of each seed in `weights` (`weight_table`) that serves as a reference, with a column seed."""
    return of_seeds(
        [seed for seed in weights["seed"].unique() if seed in run.done["references"]],
        lambda seed: candidates.groups(weights[weights["seed"] == seed]),
    )


def of_seeds(seeds: Iterable[str], make: Callable[[str], pd.DataFrame]) -> pd.DataFrame:
    """The tables that `make` gives for each seed, with a column seed in front."""
    parts = {seed: make(seed) for seed in seeds}
    filled = {seed: part for seed, part in parts.items() if len(part)} or parts
    return pd.concat(filled, names=["seed"]).reset_index("seed").reset_index(drop=True)


def fixed_activations(run: Run, grouped: pd.DataFrame) -> pd.DataFrame:
    """fixed_activation.parquet: entropy candidates and controls fixed at each of FIXED_VALUES (figures 7, 25).

    Seeds other than the reference at the largest value only.
    """
    chosen = grouped[grouped["group"].isin(["entropy", candidates.CONTROL_OF["entropy"]])]

    def fixed(seed: str, own: pd.DataFrame) -> dict:
        values = candidates.FIXED_VALUES if seed == run.params.reference else candidates.FIXED_VALUES[-1:]
        return at_values(own, values)

    return _kept_effects(run, "fixed_activation", chosen, fixed, (single_neurons.TOTAL,))


def mean_ablations(run: Run, grouped: pd.DataFrame) -> pd.DataFrame:
    """mean_ablation.parquet: every chosen neuron at its mean, in each of VARIANTS."""
    neurons = run.table("neurons_all_seeds")

    def fixed(seed: str, own: pd.DataFrame) -> dict:
        return at_mean(own, neurons[neurons["seed"] == seed])

    return _kept_effects(run, "mean_ablation", grouped, fixed, VARIANTS)


def _kept_effects(run: Run, name: str, grouped: pd.DataFrame, fixed: Callable, variants) -> pd.DataFrame:
    def of_seed(seed: str) -> pd.DataFrame:
        own, blocks = grouped[grouped["seed"] == seed], blocks_of(run, MAX_TOKENS * share_of(run, seed))
        found = _effects(run, seed, blocks, fixed(seed, own), variants, f"{name.replace('_', ' ')} in {seed}")
        table = found.table().merge(own.drop(columns="seed"), on=NEURON)
        return table.assign(tokens=int(found.tokens.sum()))

    def make() -> pd.DataFrame:
        nothing = [*NEURON, "value", "variant", *single_neurons.COLUMNS, "group", "tokens"]
        seeds = grouped["seed"].unique()
        return of_seeds(seeds, of_seed) if len(seeds) else pd.DataFrame(columns=["seed", *nothing])

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
    own = own[own["seed"].isin(known["seed"].unique())]
    match = ["match_layer", "match_neuron"]

    def make() -> pd.DataFrame:
        parts = [own.head(0).assign(entropy_change=0.0, entropy_error=0.0)]
        for seed, rows in own.groupby("seed"):
            fixed = at_mean(rows[match].set_axis(NEURON, axis=1), known[known["seed"] == seed])
            variants = (single_neurons.TOTAL,)
            found = _effects(run, seed, blocks_of(run, MAX_TOKENS * REDUCED), fixed, variants, f"matches in {seed}")
            found = found.table()
            found = found.rename(columns=dict(zip(NEURON, match, strict=True)))
            parts.append(rows.merge(found[[*match, "entropy_change", "entropy_error"]], on=match))
        return pd.concat(parts[1:] or parts, ignore_index=True)

    return kept(run, "matched_ablation", __name__, _made_from(run, own[[*NEURON, "seed", *match]]), make)


def ablations(run: Run, neurons: pd.DataFrame) -> pd.DataFrame:
    """ablations.parquet: each layer's universal neurons ablated beside random sets of equal power, a row a set.

    `neuron_sets.ablations` of every seed in `neurons` (`neurons_with_families`) with a column `kind`: held at their
    means, and in the reference also at zero.
    """
    reference = run.params.reference
    read = [*KEY, "is_universal", "dead", "activation_mean", "position_information", "family"]
    chosen = pd.DataFrame({"neurons": [sha256(neurons[read].to_csv(index=False).encode()).hexdigest()]})

    def of_seed(seed: str) -> pd.DataFrame:
        own, model = neurons[neurons["seed"] == seed].sort_values(NEURON), model_of(run, seed)
        means = own.pivot(index="layer", columns="neuron", values="activation_mean").to_numpy(
            dtype="float32", copy=True
        )
        parts, draws = {"mean": ABLATED_BLOCKS, "zero": REDUCED_BLOCKS}, neuron_sets.DRAWS
        if seed != reference:
            parts, draws = {"mean": REDUCED_BLOCKS}, OTHER_DRAWS
        sets, found = [], []
        for kind, number in parts.items():
            blocks = tuple(part[:, :ABLATED_CONTEXT] for part in blocks_of(run, number * run.text.context))
            held = torch.from_numpy(means)
            if not sets:  # the same for both kinds
                power = neuron_sets.single_powers(model, blocks, held).flatten().numpy()
                sets = neuron_sets.neuron_sets(own.assign(power=power), run.params.random_seed, draws)
            if kind == "zero":
                held, sets = torch.zeros_like(held), [one for one in sets if one.draw < OTHER_DRAWS]
            progress = _progress(f"sets of {seed}, {kind}")
            found.append(neuron_sets.ablations(model, blocks, sets, held, progress).assign(kind=kind))
        return pd.concat(found)

    def make() -> pd.DataFrame:
        return of_seeds(neurons["seed"].unique(), of_seed)

    return kept(run, "ablations", __name__, _made_from(run, chosen), make)


def query_paths(run: Run, weights: pd.DataFrame) -> pd.DataFrame:
    """query_paths.parquet: the top pairs' path into the head's query cut, a row per destination (figures 8, 26).

    `weights` has `weight_table`'s rows of the seeds to cut paths in.
    """
    pairs = {seed: heads.top_pairs(own) for seed, own in weights.groupby("seed")}
    columns = [*NEURON, "attention_head_layer", "attention_head"]

    def of_seed(seed: str) -> pd.DataFrame:
        paths = [PathAblation(*map(int, pair)) for pair in pairs[seed][columns].to_numpy()]
        blocks = blocks_of(run, MAX_TOKENS * share_of(run, seed))
        rows = heads.query_path_ablations(model_of(run, seed), *blocks, paths)
        return rows.merge(pairs[seed][[*NEURON, "attention_score", "role"]], on=NEURON)

    chosen = pd.concat(pairs.values())[["seed", *columns]]
    return kept(run, "query_paths", __name__, _made_from(run, chosen), lambda: of_seeds(pairs, of_seed))


def value_norms(run: Run) -> pd.DataFrame:
    """value_norms.parquet: ‖W_O (v + b_V)‖ of BOS and of other tokens for every head of every reference."""
    tokens, _ = blocks_of(run, MAX_TOKENS * OTHERS)
    seeds = sorted(run.done["references"])

    def make() -> pd.DataFrame:
        return of_seeds(seeds, lambda seed: heads.value_norms(model_of(run, seed), tokens))

    return kept(run, "value_norms", __name__, _made_from(run, pd.DataFrame({"seed": seeds})), make)


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
    out; `effects` has columns for the neurons that were ablated, missing for all others.
    """
    new = [name for name in weights if name in KEY or name not in roles]
    joined = roles.merge(weights[new], on=KEY, how="left", validate="one_to_one")
    joined = joined.merge(effects, on=KEY, how="left", validate="one_to_one")
    write_table(run.folder / "tables" / "circuits.parquet", joined)
    return joined
