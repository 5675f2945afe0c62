"""From a run's statistics to its tables: one row per neuron, per match, per rotation draw, per snapshot.

`python -m lib.chapters.universality.tables outputs/<run>/params.yaml` writes outputs/<run>/tables/*.parquet; columns as in the published
per-neuron tables. Every seed serves as reference; `neurons.parquet` and `matches.parquet` are the reference's.
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
from lib.chapters.universality.matching import MOST, assignment, cliques
from lib.chapters.universality.properties import reference_shares
from lib.chapters.universality.uncertainty import parts_of, sampled
from lib.collect.statistics import load_accumulators
from lib.kernels.correlation import Comparison, Covariance, Scale, compare
from lib.kernels.moments import Moments
from lib.models.weights import weight_properties
from lib.run import Run, with_universal

MODULE = "lib.chapters.universality.tables"
CORRELATION_COLUMNS = ("max_corr", "mean_corr", "min_corr", "max_baseline", "mean_baseline", "min_baseline")


def neuron_index(layers: int, neurons: int) -> pd.DataFrame:
    """Columns layer and neuron, in the order of flat indices."""
    flat = np.arange(layers * neurons)
    return pd.DataFrame({"layer": flat // neurons, "neuron": flat % neurons})


def correlation_columns(comparison: Comparison, reference: int) -> dict[str, np.ndarray]:
    """Largest, mean and smallest over compared seeds of best match and baseline, and the excess (METHOD §2)."""
    corr = np.delete(comparison.corr[reference].numpy(), reference, axis=0)  # (compared, total)
    chance = np.delete(comparison.baseline.mean(0)[reference].numpy(), reference, axis=0)
    by_statistic = [getattr(values, how)(0) for values in (corr, chance) for how in ("max", "mean", "min")]
    columns = dict(zip(CORRELATION_COLUMNS, by_statistic, strict=True))
    return columns | {"excess_corr": (corr - chance).mean(0)}


def match_table(comparison: Comparison, seeds: list[str], reference: int, layers: int, neurons: int) -> pd.DataFrame:
    """Per neuron of the reference and compared seed: its best match, their correlation, the baseline, and whether the match is mutual."""
    parts = []
    for other, model in enumerate(seeds):
        if other == reference:
            continue
        partner = comparison.partner[reference, other].numpy()
        part = neuron_index(layers, neurons)
        part["model"] = model
        part["match_layer"], part["match_neuron"] = partner // neurons, partner % neurons
        part["corr"] = comparison.corr[reference, other].numpy()
        part["baseline"] = comparison.baseline[:, reference, other].mean(0).numpy()
        part["mutual"] = comparison.mutual[reference, other].numpy()
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


ASSIGNED_AT_ONCE = 2  # seeds; each takes some 20 bytes a correlation
ASSIGNED = ["layer", "neuron", "model", "match_layer", "match_neuron", "corr"]


def assignment_table(covariance: Covariance, moments: dict[str, Moments], reference: str) -> pd.DataFrame:
    """Per neuron of the reference and compared seed: its partner when every neuron is used once; no row for models of more than
    `lib.chapters.universality.matching.MOST` neurons."""
    others = [seed for seed in covariance.seeds if seed != reference]
    layers, neurons = covariance.layers, covariance.neurons
    if layers * neurons > MOST:
        return pd.DataFrame(columns=ASSIGNED)
    scales, parts = {seed: Scale.of(moments[seed]) for seed in covariance.seeds}, []
    with ThreadPoolExecutor(ASSIGNED_AT_ONCE) as threads:  # each keeps one core busy
        made = threads.map(lambda model: assignment(covariance, reference, model, scales), others)
        for model, found in zip(
            others,
            tqdm(made, desc="one-to-one assignment", total=len(others), unit="seed", file=sys.stderr),
            strict=True,
        ):
            partner, corr = (one.numpy() for one in found)
            part = neuron_index(layers, neurons).assign(
                model=model, match_layer=partner // neurons, match_neuron=partner % neurons, corr=corr
            )
            parts.append(part)
    return pd.concat(parts, ignore_index=True)[ASSIGNED]


def sampling_table(run: Run, seeds: list[str]) -> pd.DataFrame:
    """Per neuron of each reference: `held_out_corr` and the standard error `excess_se` of `lib.chapters.universality.uncertainty`; no row without parts."""
    parts = parts_of(run)
    made = []
    for seed in run.done["references"] if parts is not None else ():
        found = sampled(parts, seeds.index(seed), run.params.random_seed)
        part = neuron_index(run.done["layers"], run.done["neurons"])
        part.insert(0, "seed", seed)
        made.append(part.assign(held_out_corr=found.held_out_corr.numpy(), excess_se=found.error.numpy()))
    return (
        pd.concat(made, ignore_index=True)
        if made
        else pd.DataFrame(columns=["seed", "layer", "neuron", "held_out_corr", "excess_se"])
    )


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
            part["mean_corr"], part["baseline"] = saved["corr"][index].numpy(), saved["baseline"][index].numpy()
            parts.append(part)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def text_table(run: Run) -> pd.DataFrame:
    """Per domain of the text: blocks, tokens read, tokens counted."""
    text = run.text
    counted = text.counted().sum(1).numpy()
    frame = pd.DataFrame({"domain": [text.domains[i] for i in text.domain.tolist()], "counted": counted})
    table = frame.groupby("domain", as_index=False).agg(blocks=("counted", "size"), counted=("counted", "sum"))
    table.insert(2, "tokens", table["blocks"] * text.context)
    return table


def neuron_table(run: Run, seed: str, moments, columns: dict[str, np.ndarray]) -> pd.DataFrame:
    """One row per neuron of one seed, in the published columns (METHOD §4)."""
    table = neuron_index(run.done["layers"], run.done["neurons"])
    for name, values in columns.items():
        table[name] = values
    weights = weight_properties(seed_source(run.params, seed))
    table = table.merge(weights, on=["layer", "neuron"], validate="one_to_one")
    for name, values in moments.pre_moments().items():
        table[name] = values.flatten().cpu().numpy()
    table["sparsity"] = moments.frequency().flatten().cpu().numpy()
    mean, deviation = moments.activation_mean_and_deviation()
    table["activation_mean"], table["activation_std"] = mean.flatten().cpu().numpy(), deviation.flatten().cpu().numpy()
    table["dead"] = (deviation == 0).flatten().cpu().numpy()
    return table


def tabulate(run: Run) -> None:
    """Writes all tables of a run whose pass is complete; returns at once if they are there for these parameters."""
    tables, params = run.folder / "tables", run.params
    made_from = {"reference": params.reference, "threshold": params.threshold, "rotations": params.rotations}
    made_from |= {"statistics": run.done, "code": code_of(MODULE)}
    if fresh(tables / "done.json", made_from):
        return
    (tables / "done.json").unlink(
        missing_ok=True
    )  # an interrupted change must not leave it beside half of the new tables
    covariance, moments = load_accumulators(run, device_of(params))
    seeds, layers, neurons = covariance.seeds, covariance.layers, covariance.neurons

    def progress(steps):
        return tqdm(steps, desc="rotations", file=sys.stderr)

    comparison = compare(covariance, moments, params.random_seed, params.rotations, progress)
    parts = {"neurons": [], "matches": [], "baseline_draws": []}
    for seed in covariance.references:
        index = seeds.index(seed)
        columns = correlation_columns(comparison, index)
        for name, table in (
            ("neurons", neuron_table(run, seed, moments[seed], columns)),
            ("matches", match_table(comparison, seeds, index, layers, neurons)),
            ("baseline_draws", draw_table(comparison, index, layers, neurons)),
        ):
            table.insert(0, "seed", seed)
            parts[name].append(table)
    made = {name: pd.concat(tables, ignore_index=True) for name, tables in parts.items()}
    for name in ("neurons", "matches"):
        write_table(tables / f"{name}_all_seeds.parquet", made[name])
        own = made[name]["seed"] == params.reference
        write_table(tables / f"{name}.parquet", made[name][own].drop(columns="seed"))
    write_table(tables / "baseline_draws.parquet", made["baseline_draws"])
    write_table(tables / "references.parquet", reference_shares(with_universal(made["neurons"], params.threshold)))
    write_table(tables / "convergence.parquet", convergence_table(run, made, snapshot_table(run, seeds)))
    write_table(tables / "cliques.parquet", cliques(made["matches"]))
    write_table(tables / "assignments.parquet", assignment_table(covariance, moments, params.reference))
    write_table(tables / "sampling.parquet", sampling_table(run, list(seeds)))
    write_table(tables / "text.parquet", text_table(run))
    write_json(tables / "done.json", made_from)


def convergence_table(run: Run, made: dict[str, pd.DataFrame], snapshots: pd.DataFrame) -> pd.DataFrame:
    """Snapshots of the pass followed by its end, with the excess of each, all against the first rotation."""
    keys = ["seed", "layer", "neuron"]
    first = made["baseline_draws"].query("draw == 0")[[*keys, "baseline"]]
    last = made["neurons"][[*keys, "mean_corr"]].merge(first, on=keys).assign(tokens=run.done["tokens_counted"])
    table = pd.concat([snapshots, last], ignore_index=True)
    table["excess_corr"] = table["mean_corr"] - table["baseline"]
    return table[["seed", "tokens", "layer", "neuron", "mean_corr", "baseline", "excess_corr"]]


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


def open_run(params_file: str | Path, **overrides) -> Run:
    """The run of a parameter file, with overrides that are not None; collects and tabulates what is missing.

    A change of `reference`, `threshold` or `rotations` needs no new pass over the text; a change of anything that
    the pass depends on raises InputError, since it needs a run of its own.
    """
    from lib.collect.passes import collect

    run = Run(read_params(params_file, **{name: value for name, value in overrides.items() if value is not None}))
    collect(run)
    tabulate(run)
    return run
