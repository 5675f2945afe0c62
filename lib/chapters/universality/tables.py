"""From a run's statistics to its tables: one row per neuron, match, rotation draw and share of the text.

`python -m lib.chapters.universality.tables outputs/<run>/params.yaml` writes outputs/<run>/tables/*.parquet, in the
published columns (docs/method.md §4). `neurons.parquet` and `matches.parquet` have the rows of the run's reference.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from lib.base.errors import InputError, exit_on_input_error
from lib.base.files import write_json
from lib.base.hub import seed_source
from lib.base.machine import device_of
from lib.base.params import ROOT, read_params
from lib.base.progress import Progress
from lib.base.tensors import write_table
from lib.cache import code_of, fresh, is_live, kept, live_folder
from lib.chapters.universality.matching import assignment, cliques
from lib.chapters.universality.measures import neuron_measures
from lib.chapters.universality.properties import depth_of, reference_shares
from lib.chapters.universality.uncertainty import THRESHOLDS, enough, sampled
from lib.collect.statistics import Statistics, load_statistics
from lib.kernels.correlation import Comparison, compare
from lib.kernels.followed import Followed
from lib.kernels.moments import Moments
from lib.models.weights import weight_properties
from lib.run import Run, with_universal

MODULE = "lib.chapters.universality.tables"
SNAPSHOTS = (1 / 16, 1 / 8, 1 / 4, 1 / 2)  # shares of the text after which best matches are looked at


def neuron_index(layers: int, neurons: int) -> pd.DataFrame:
    """Columns layer and neuron, in the order of flat indices."""
    flat = np.arange(layers * neurons)
    return pd.DataFrame({"layer": flat // neurons, "neuron": flat % neurons})


def _of_compared(found: dict, reference: str) -> np.ndarray:
    """One reference's arrays, those of compared seeds stacked along the first axis."""
    return np.stack([own.numpy() for (seed, _), own in sorted(found.items()) if seed == reference])


def correlation_columns(comparison: Comparison, reference: str) -> dict[str, np.ndarray]:
    """`neuron_measures` of one reference, with the baseline averaged over rotation draws."""
    chance = _of_compared(comparison.baseline, reference).mean(1, dtype=np.float64)
    return neuron_measures(_of_compared(comparison.corr, reference), chance)


def match_table(comparison: Comparison, shapes: dict, reference: str) -> pd.DataFrame:
    """Per neuron of the reference and compared seed: its best match, their correlation, baseline, whether mutual.

    `shapes` gives each seed's layers and neurons a layer. Where the seeds differ in layers, also the depth of both: in
    which of as many equal parts as the shallowest seed has layers.
    """
    parts, depths = [], {layers for layers, _ in shapes.values()}
    for pair in sorted(pair for pair in comparison.corr if pair[0] == reference):
        partner, neurons = comparison.partner[pair].numpy(), shapes[pair[1]][1]
        part = neuron_index(*shapes[reference]).assign(model=pair[1])
        part["match_layer"], part["match_neuron"] = partner // neurons, partner % neurons
        part["corr"] = comparison.corr[pair].numpy()
        part["baseline"] = comparison.baseline[pair].mean(0, dtype=torch.float64).numpy()
        part["mutual"] = comparison.mutual[pair].numpy()
        for name, seed in zip(("depth", "match_depth"), pair, strict=True) if len(depths) > 1 else ():
            layer = part["match_layer" if name == "match_depth" else "layer"]
            part[name] = depth_of(layer, shapes[seed][0], min(depths))
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def assignment_table(statistics: Statistics, reference: str) -> pd.DataFrame:
    """Per neuron of the reference and compared seed: its partner if every neuron is used once, and their correlation.

    A neuron that is left over, of a seed with more of them, has partner −1 and no correlation.
    """
    covariance, parts = statistics.covariance, []
    others = [seed for seed in covariance.seeds if seed != reference]
    for model in tqdm(others, desc="one-to-one assignment", unit="seed", file=sys.stderr):
        partner, corr = (one.numpy() for one in assignment(statistics, (reference, model)))
        neurons, left = covariance.shapes[model][1], partner < 0
        part = neuron_index(*covariance.shapes[reference]).assign(model=model)
        part["match_layer"], part["match_neuron"] = (
            np.where(left, -1, one) for one in (partner // neurons, partner % neurons)
        )
        parts.append(part.assign(corr=np.where(left, np.nan, corr)))
    return pd.concat(parts, ignore_index=True)


def sampling_tables(
    run: Run, followed: Followed, comparison: Comparison, neurons: pd.DataFrame
) -> dict[str, pd.DataFrame]:
    """What the choice of text and rotations does (see uncertainty.py); empty in a short text.

    sampling: `held_out_corr`, `draw_se` and `excess_se` per neuron of each reference. share_intervals: `low` and
    `high`, the interval of the share of universal neurons, per reference and threshold.
    """
    columns = {
        "sampling": ["seed", "layer", "neuron", "held_out_corr", "draw_se", "excess_se"],
        "share_intervals": ["seed", "threshold", "low", "high"],
    }
    made: dict[str, list[pd.DataFrame]] = {name: [] for name in columns}
    for seed in run.done["references"] if enough(followed) else ():
        others = [other for other in run.done["seeds"] if other != seed]
        drawn = _of_compared(comparison.baseline, seed).mean(0, dtype=np.float64)
        found = sampled(followed, seed, others, run.params.random_seed, drawn)
        own = {"held_out_corr": found.held_out_corr, "draw_se": found.draw_error, "excess_se": found.error}
        index = neuron_index(*run.done["shapes"][seed]).assign(seed=seed)
        made["sampling"].append(index.assign(**{name: values.cpu().numpy() for name, values in own.items()}))
        excess = neurons.loc[neurons["seed"] == seed, "excess_corr"]
        made["share_intervals"].append(found.share_intervals(excess, THRESHOLDS).assign(seed=seed))
    return {
        name: pd.concat(made[name], ignore_index=True)[own] if made[name] else pd.DataFrame(columns=own)
        for name, own in columns.items()
    }


def draw_table(comparison: Comparison, shapes: dict, reference: str) -> pd.DataFrame:
    """Per rotation draw and neuron: the baseline averaged over compared seeds."""
    parts = []
    for draw, chance in enumerate(_of_compared(comparison.baseline, reference).mean(0, dtype=np.float64)):
        part = neuron_index(*shapes[reference])
        part.insert(0, "draw", draw)
        parts.append(part.assign(baseline=chance))
    return pd.concat(parts, ignore_index=True)


def convergence_table(run: Run, neurons: pd.DataFrame, followed: Followed) -> pd.DataFrame:
    """The mean best match on shares of the text, SNAPSHOTS and the whole, with the excess over the run's baseline.

    On a share, the best followed pairs of as many tokens; `tokens` counts those that the correlations are of, which
    leaves out those that named the pairs.
    """
    sketched, parts = run.done["products"] == "sketch", len(followed.tokens)
    rows = [neurons.assign(tokens=int(followed.tokens.sum()) if sketched else run.done["tokens_counted"])]
    first = {int(followed.tokens[: round(share * parts)].sum()): round(share * parts) for share in SNAPSHOTS}
    for seen, number in first.items():  # a short text has parts without tokens, and fewer shares
        weights = (torch.arange(parts) < number).double()
        for seed, own in neurons.groupby("seed", sort=False) if seen else ():
            others = [other for other in run.done["seeds"] if other != seed]
            corr = torch.stack([followed.best((seed, other), weights)[0] for other in others]).mean(0).cpu().numpy()
            rows.append(own.assign(tokens=seen, mean_corr=corr, excess_corr=corr - own["mean_baseline"]))
    table = pd.concat(rows, ignore_index=True).rename(columns={"mean_baseline": "baseline"})
    table = table.sort_values("tokens", kind="stable", ignore_index=True)
    return table[["seed", "tokens", "layer", "neuron", "mean_corr", "baseline", "excess_corr"]]


def outsider_table(comparison: Comparison) -> pd.DataFrame:
    """Per reference and compared seed: neurons, and how many have a better match outside the followed pairs than the
    sketch's error explains (`Comparison.outsiders`)."""
    rows = [(*pair, len(comparison.corr[pair]), number) for pair, number in sorted(comparison.outsiders.items())]
    return pd.DataFrame(rows, columns=["seed", "model", "neurons", "outsiders"])


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
    table = neuron_index(*run.done["shapes"][seed]).assign(**columns)
    weights = weight_properties(seed_source(run.params, seed), device_of(run.params))
    table = table.merge(weights, on=["layer", "neuron"], validate="one_to_one")
    mean, deviation = moments.activation_mean_and_deviation()
    found = moments.pre_moments() | {"sparsity": moments.frequency(), "activation_mean": mean}
    found |= {"activation_std": deviation, "dead": deviation == 0}
    return table.assign(**{name: values.flatten().cpu().numpy() for name, values in found.items()})


def tabulate(run: Run) -> None:
    """Writes all tables of a run whose pass is complete, unless they are fresh.

    Another reference or threshold selects from the tables of all seeds and measures nothing again.
    """
    tables, params = run.folder / "tables", run.params
    measured_from = {"rotations": params.rotations, "statistics": run.done, "code": code_of(MODULE)}
    made_from = {"reference": params.reference, "threshold": params.threshold, **measured_from}
    record, measured = tables / "done.json", tables / "all_seeds.json"
    if fresh(record, made_from):
        return
    record.unlink(missing_ok=True)  # an interruption must not leave it beside a mixture of old and new tables
    if not fresh(measured, measured_from):
        measured.unlink(missing_ok=True)
        _write(run, measured_tables(run))
        write_json(measured, measured_from)
    _write(run, selected_tables(run))
    write_json(record, made_from)


def _write(run: Run, made: dict[str, pd.DataFrame]) -> None:
    for name, table in made.items():
        write_table(run.folder / "tables" / f"{name}.parquet", table)


def measured_tables(run: Run) -> dict[str, pd.DataFrame]:
    """The tables of all seeds that serve as reference: matches, baselines, and what follows from them."""
    params, statistics = run.params, load_statistics(run, device_of(run.params))
    covariance, followed = statistics.covariance, statistics.followed

    whole = Progress(run.folder, "tables")

    def progress(steps):
        with tqdm(steps, desc="matches and baseline", unit="layer", file=sys.stderr) as bar:
            for step in bar:
                yield step
                bar.set_postfix_str(whole.text(bar.n / bar.total), refresh=False)

    comparison = compare(covariance, statistics.scales, followed, params.random_seed, params.rotations, progress)
    parts = {"neurons": [], "matches": [], "baseline_draws": []}
    for seed in covariance.references:
        of_seed = {
            "neurons": neuron_table(run, seed, statistics.moments[seed], correlation_columns(comparison, seed)),
            "matches": match_table(comparison, covariance.shapes, seed),
            "baseline_draws": draw_table(comparison, covariance.shapes, seed),
        }
        for name, table in of_seed.items():
            table.insert(0, "seed", seed)
            parts[name].append(table)
    neurons, matches, drawn = (pd.concat(parts[name], ignore_index=True) for name in parts)
    neurons = with_universal(neurons, params.threshold).drop(columns="is_universal")  # added again when they are read
    return {
        "neurons_all_seeds": neurons,
        "matches_all_seeds": matches,
        "baseline_draws": drawn,
        "convergence": convergence_table(run, neurons, followed),
        "cliques": cliques(matches),
        **sampling_tables(run, followed, comparison, neurons),
        "outsiders": outsider_table(comparison),
        "text": text_table(run),
    }


def selected_tables(run: Run) -> dict[str, pd.DataFrame]:
    """The tables that depend on the run's reference or threshold, from those of all seeds."""
    return {
        "neurons": run.neurons.drop(columns="is_universal"),
        "matches": run.matches,
        "references": reference_shares(run.table("neurons_all_seeds")),
    }


def assignments(run: Run) -> pd.DataFrame:
    """assignments.parquet: `assignment_table` of the run's reference, made when first asked for."""
    made_from = {"reference": run.params.reference, "statistics": run.done}

    def make() -> pd.DataFrame:
        return assignment_table(load_statistics(run, device_of(run.params)), run.params.reference)

    return kept(run, "assignments", MODULE, made_from, make)


def parameter_path(given: str | Path) -> Path:
    """A notebook's parameter file: from the notebook's folder on, or else from the repository's root or notebooks/.

    So an executed notebook finds it wherever in the repository a copy lies. InputError if there is none.
    """
    for place in (Path(), ROOT, ROOT / "notebooks"):
        if (place / given).is_file():
            return place / given
    name, run = Path(given).name, Path(given).parent.name
    writes = f"; `make report RUN={run}` writes it" if name == "params.yaml" else ""
    raise InputError(f"the parameter file {given} does not exist{writes}.")


def open_run(params_file: str | Path, **overrides) -> Run:
    """The run of a parameter file, with those overrides that are not None; collects and tabulates what is missing.

    Another `reference`, `threshold` or `rotations` needs no new pass over the text. A change of anything that the pass
    depends on needs another run and raises InputError. A live session writes nothing into a run whose pass is complete
    (`lib.cache.live_folder`).
    """
    from lib.collect.passes import collect

    given = {name: value for name, value in overrides.items() if value is not None}
    run = Run(read_params(parameter_path(params_file), **given))
    collect(run)
    if is_live():
        run.folder = live_folder(run.folder)
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
