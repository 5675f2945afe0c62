"""From a run's statistics to its tables: one row per neuron, per match, per rotation draw, per snapshot.

`python -m lib.chapters.universality.tables outputs/<run>/params.yaml` writes outputs/<run>/tables/*.parquet, in the
published columns (docs/method.md §4). `neurons.parquet` and `matches.parquet` have the rows of the run's reference.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from lib.base.errors import exit_on_input_error
from lib.base.files import write_json
from lib.base.hub import seed_source
from lib.base.machine import device_of
from lib.base.params import read_params
from lib.base.tensors import read_tensors, write_table
from lib.cache import code_of, fresh
from lib.chapters.universality.matching import MAX_ASSIGNED, assignment, cliques
from lib.chapters.universality.properties import reference_shares
from lib.chapters.universality.uncertainty import parts_of, sampled
from lib.collect.statistics import load_accumulators
from lib.kernels.correlation import Comparison, Covariance, Scale, compare
from lib.kernels.moments import Moments
from lib.models.weights import weight_properties
from lib.run import Run, with_universal

MODULE = "lib.chapters.universality.tables"
ASSIGNED = ["layer", "neuron", "model", "match_layer", "match_neuron", "corr"]
ASSIGNED_AT_ONCE = 2  # seeds; each takes some 20 bytes a correlation
CORRELATION_COLUMNS = ("max_corr", "mean_corr", "min_corr", "max_baseline", "mean_baseline", "min_baseline")


def neuron_index(layers: int, neurons: int) -> pd.DataFrame:
    """Columns layer and neuron, in the order of flat indices."""
    flat = np.arange(layers * neurons)
    return pd.DataFrame({"layer": flat // neurons, "neuron": flat % neurons})


def correlation_columns(comparison: Comparison, reference: int) -> dict[str, np.ndarray]:
    """Largest, mean and smallest best match and baseline over compared seeds, and the excess (docs/method.md §2)."""
    corr = np.delete(comparison.corr[reference].numpy(), reference, axis=0)  # (compared, total)
    chance = np.delete(comparison.baseline.mean(0)[reference].numpy(), reference, axis=0)
    by_statistic = [getattr(values, how)(0) for values in (corr, chance) for how in ("max", "mean", "min")]
    columns = dict(zip(CORRELATION_COLUMNS, by_statistic, strict=True))
    return columns | {"excess_corr": (corr - chance).mean(0)}


def match_table(comparison: Comparison, seeds: list[str], reference: int, layers: int, neurons: int) -> pd.DataFrame:
    """Per neuron of the reference and compared seed: its best match, their correlation, baseline, whether mutual."""
    parts = []
    for other, model in enumerate(seeds):
        if other == reference:
            continue
        partner = comparison.partner[reference, other].numpy()
        part = neuron_index(layers, neurons).assign(model=model)
        part["match_layer"], part["match_neuron"] = partner // neurons, partner % neurons
        part["corr"] = comparison.corr[reference, other].numpy()
        part["baseline"] = comparison.baseline[:, reference, other].mean(0).numpy()
        part["mutual"] = comparison.mutual[reference, other].numpy()
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def assignment_table(covariance: Covariance, moments: dict[str, Moments], reference: str) -> pd.DataFrame:
    """Per neuron of the reference and compared seed: its partner if every neuron is used once, and their correlation.

    Models of more than MAX_ASSIGNED neurons have no row.
    """
    others = [seed for seed in covariance.seeds if seed != reference]
    layers, neurons = covariance.layers, covariance.neurons
    if layers * neurons > MAX_ASSIGNED:
        return pd.DataFrame(columns=ASSIGNED)
    scales, parts = {seed: Scale.of(moments[seed]) for seed in covariance.seeds}, []
    with ThreadPoolExecutor(ASSIGNED_AT_ONCE) as threads:  # each keeps one core busy
        made = threads.map(lambda model: assignment(covariance, reference, model, scales), others)
        bar = tqdm(made, desc="one-to-one assignment", total=len(others), unit="seed", file=sys.stderr)
        for model, (partner, corr) in zip(others, bar, strict=True):
            part = neuron_index(layers, neurons).assign(model=model)
            part["match_layer"], part["match_neuron"] = (partner // neurons).numpy(), (partner % neurons).numpy()
            parts.append(part.assign(corr=corr.numpy()))
    return pd.concat(parts, ignore_index=True)


def sampling_table(run: Run, seeds: list[str]) -> pd.DataFrame:
    """Per neuron of each reference: `held_out_corr` and `excess_se` (see uncertainty.py); empty without parts."""
    parts, made = parts_of(run), []
    for seed in run.done["references"] if parts is not None else ():
        found = sampled(parts, seeds.index(seed), run.params.random_seed)
        index = neuron_index(run.done["layers"], run.done["neurons"])
        index.insert(0, "seed", seed)
        made.append(index.assign(held_out_corr=found.held_out_corr.numpy(), excess_se=found.error.numpy()))
    columns = ["seed", "layer", "neuron", "held_out_corr", "excess_se"]
    return pd.concat(made, ignore_index=True) if made else pd.DataFrame(columns=columns)


def draw_table(comparison: Comparison, reference: int, layers: int, neurons: int) -> pd.DataFrame:
    """Per rotation draw and neuron: the baseline averaged over compared seeds."""
    parts = []
    for draw, chance in enumerate(comparison.baseline[:, reference].numpy()):
        part = neuron_index(layers, neurons)
        part.insert(0, "draw", draw)
        part["baseline"] = np.delete(chance, reference, axis=0).mean(0)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def snapshot_table(run: Run, seeds: list[str]) -> pd.DataFrame:
    """Per snapshot of the pass, seed and neuron: mean best match, baseline (one rotation) and excess so far."""
    parts = []
    for path in sorted((run.folder / "stats").glob("snapshot-*.safetensors")):
        saved = read_tensors(path)
        for seed in run.done["references"]:
            index = seeds.index(seed)
            part = neuron_index(run.done["layers"], run.done["neurons"])
            part.insert(0, "seed", seed)
            part.insert(1, "tokens", int(saved["tokens"]))
            parts.append(part.assign(mean_corr=saved["corr"][index].numpy(), baseline=saved["baseline"][index].numpy()))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def text_table(run: Run) -> pd.DataFrame:
    """Per domain of the text: blocks, tokens read, tokens counted."""
    text = run.text
    domains = [text.domains[index] for index in text.domain.tolist()]
    frame = pd.DataFrame({"domain": domains, "counted": text.counted().sum(1).numpy()})
    table = frame.groupby("domain", as_index=False).agg(blocks=("counted", "size"), counted=("counted", "sum"))
    table.insert(2, "tokens", table["blocks"] * text.context)
    return table


def neuron_table(run: Run, seed: str, moments: Moments, columns: dict[str, np.ndarray]) -> pd.DataFrame:
    """One row per neuron of one seed, in the published columns (docs/method.md §4)."""
    table = neuron_index(run.done["layers"], run.done["neurons"]).assign(**columns)
    weights = weight_properties(seed_source(run.params, seed))
    table = table.merge(weights, on=["layer", "neuron"], validate="one_to_one")
    mean, deviation = moments.activation_mean_and_deviation()
    found = moments.pre_moments() | {"sparsity": moments.frequency(), "activation_mean": mean}
    found |= {"activation_std": deviation, "dead": deviation == 0}
    return table.assign(**{name: values.flatten().cpu().numpy() for name, values in found.items()})


def convergence_table(run: Run, neurons: pd.DataFrame, drawn: pd.DataFrame, snapshots: pd.DataFrame) -> pd.DataFrame:
    """Snapshots of the pass followed by its end, with the excess of each, all against the first rotation."""
    keys = ["seed", "layer", "neuron"]
    first = drawn.query("draw == 0")[[*keys, "baseline"]]
    last = neurons[[*keys, "mean_corr"]].merge(first, on=keys).assign(tokens=run.done["tokens_counted"])
    table = pd.concat([snapshots, last], ignore_index=True)
    table["excess_corr"] = table["mean_corr"] - table["baseline"]
    return table[["seed", "tokens", "layer", "neuron", "mean_corr", "baseline", "excess_corr"]]


def tabulate(run: Run) -> None:
    """Writes all tables of a run whose pass is complete, unless they are fresh."""
    tables, params = run.folder / "tables", run.params
    made_from = {"reference": params.reference, "threshold": params.threshold, "rotations": params.rotations}
    made_from |= {"statistics": run.done, "code": code_of(MODULE)}
    record = tables / "done.json"
    if fresh(record, made_from):
        return
    record.unlink(missing_ok=True)  # an interruption must not leave it beside a mixture of old and new tables
    covariance, moments = load_accumulators(run, device_of(params))
    seeds, size = covariance.seeds, (covariance.layers, covariance.neurons)

    def progress(steps):
        return tqdm(steps, desc="rotations", file=sys.stderr)

    comparison = compare(covariance, moments, params.random_seed, params.rotations, progress)
    parts = {"neurons": [], "matches": [], "baseline_draws": []}
    for seed in covariance.references:
        index = seeds.index(seed)
        of_seed = {
            "neurons": neuron_table(run, seed, moments[seed], correlation_columns(comparison, index)),
            "matches": match_table(comparison, seeds, index, *size),
            "baseline_draws": draw_table(comparison, index, *size),
        }
        for name, table in of_seed.items():
            table.insert(0, "seed", seed)
            parts[name].append(table)
    neurons, matches, drawn = (pd.concat(parts[name], ignore_index=True) for name in parts)
    made = {
        "neurons_all_seeds": neurons,
        "neurons": neurons[neurons["seed"] == params.reference].drop(columns="seed"),
        "matches_all_seeds": matches,
        "matches": matches[matches["seed"] == params.reference].drop(columns="seed"),
        "baseline_draws": drawn,
        "references": reference_shares(with_universal(neurons, params.threshold)),
        "convergence": convergence_table(run, neurons, drawn, snapshot_table(run, seeds)),
        "cliques": cliques(matches),
        "assignments": assignment_table(covariance, moments, params.reference),
        "sampling": sampling_table(run, list(seeds)),
        "text": text_table(run),
    }
    for name, table in made.items():
        write_table(tables / f"{name}.parquet", table)
    write_json(record, made_from)


def open_run(params_file: str | Path, **overrides) -> Run:
    """The run of a parameter file, with those overrides that are not None; collects and tabulates what is missing.

    Another `reference`, `threshold` or `rotations` needs no new pass over the text. A change of anything that the pass
    depends on needs another run and raises InputError.
    """
    from lib.collect.passes import collect

    run = Run(read_params(params_file, **{name: value for name, value in overrides.items() if value is not None}))
    collect(run)
    tabulate(run)
    return run


@exit_on_input_error
def main() -> int:
    """Command line: one parameter file, as resolved by `lib.report.steps resolve`."""
    if len(sys.argv) != 2:
        print("usage: python -m lib.chapters.universality.tables outputs/<run>/params.yaml", file=sys.stderr)
        return 2
    tabulate(Run(read_params(sys.argv[1])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
