"""Several finished runs side by side: their settings, shares of universal neurons, sizes, and ledgers.

`python -m lib.chapters.published.runs "mine tiny"` checks the runs and notes their names with the first one, whose
report then has the page (notebooks/optional/runs.ipynb).
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from lib.base import params as parameters
from lib.base.errors import InputError, exit_on_input_error, listed
from lib.base.files import write_json
from lib.base.params import read_params
from lib.chapters.universality.properties import shares_above
from lib.chapters.universality.tables import parameter_path
from lib.display.claims import VERDICTS
from lib.run import Run

RECORD = "tables/runs.json"  # in the first run's folder
NEEDED = ("params.yaml", "stats/done.json", "tables/neurons_all_seeds.parquet")
THRESHOLDS = np.linspace(0, 1, 201)
DRAWS = 2000  # of the bootstrap over seeds


def finished_run(name: str) -> Run:
    """The run outputs/<name>; InputError if it is missing or unfinished."""
    folder = parameters.OUTPUTS / name
    if not folder.is_dir():
        raise InputError(f"run '{name}' is missing, there is no outputs/{name}; `make report RUN={name}` makes it.")
    missing = [file for file in NEEDED if not (folder / file).is_file()]
    if missing:
        raise InputError(
            f"run '{name}' is unfinished, outputs/{name} has no {missing[0]}; `make report RUN={name}` finishes it."
        )
    run = Run(read_params(folder / "params.yaml"))
    run.folder = folder
    return run


def finished_runs(names: list[str]) -> list[Run]:
    """The runs of two or more different names; InputError for anything else, or if one is not finished."""
    if len(names) < 2 or len(set(names)) < len(names):
        given = listed(names) if names else "nothing"
        raise InputError(f'RUNS is {given}, but must be two or more different runs, such as RUNS="mine tiny".')
    return [finished_run(name) for name in names]


def open_runs(params_file: str | Path, names: list[str] | None = None) -> list[Run]:
    """The runs of these names, or those that `make compare RUNS=…` noted with the run of a parameter file."""
    noted = Run(read_params(parameter_path(params_file))).recorded(RECORD) or {}
    return finished_runs(list(names or noted.get("runs", [])))


# ---------------------------------------------------------------- tables


def settings(runs: list[Run]) -> pd.DataFrame:
    """One row per run: what it read, how, and how many of its claims got each verdict."""
    return pd.DataFrame([_settings(run) for run in runs])


def _settings(run: Run) -> dict:
    shapes = sorted({f"{layers} × {neurons:,}" for layers, neurons in run.done["shapes"].values()})
    verdicts = run.table("ledger")["verdict"].value_counts() if run.has("ledger") else None
    return {
        "run": run.params.run,
        "seeds": len(run.params.seeds),
        "layers × neurons": listed(shapes),
        "reference": run.params.reference,
        "compare": run.params.compare,
        "text": run.params.text_title,
        "context": run.params.context,
        "tokens counted": f"{run.done['tokens_counted']:,}",
        "loss": _mean_loss(run),
        "rotations": run.params.rotations,
        "threshold": run.params.threshold,
        "products": run.done["products"],
        "precision": run.done["precision"],
        "random seed": run.params.random_seed,
    } | {name: "–" if verdicts is None else int(verdicts.get(name, 0)) for name in VERDICTS}


def _mean_loss(run: Run) -> str:
    """Nats per token, mean over seeds: do the runs' models predict equally well?"""
    if not run.has("losses"):
        return "–"
    losses = run.table("losses")
    return f"{losses.loc[losses['domain'] == 'all', 'loss'].mean():.2f}"


def shares(runs: list[Run]) -> pd.DataFrame:
    """One row per run: universal (share at the run's own threshold, mean over references), low, high (of a reference),
    threshold, references."""
    rows = []
    for run in runs:
        own = run.table("neurons_all_seeds").groupby("seed")["is_universal"].mean()
        row = {"run": run.params.run, "universal": own.mean(), "low": own.min(), "high": own.max()}
        rows.append(row | {"threshold": run.params.threshold, "references": len(own)})
    return pd.DataFrame(rows)


def curves(runs: list[Run]) -> pd.DataFrame:
    """Share of neurons above each of THRESHOLDS (rows), mean over references, a column per run."""
    made = {}
    for run in runs:
        neurons = run.table("neurons_all_seeds")
        by_seed = [shares_above(own, THRESHOLDS) for _, own in neurons.groupby("seed")["excess_corr"]]
        made[run.params.run] = np.mean(by_seed, axis=0)
    return pd.DataFrame(made, index=pd.Index(THRESHOLDS, name="threshold"))


def sizes(runs: list[Run]) -> pd.DataFrame:
    """One row per run and reference: run, seed, neurons (of the seed), universal (of them), share."""
    parts = []
    for run in runs:
        own = run.table("neurons_all_seeds").groupby("seed")["is_universal"].agg(neurons="size", universal="sum")
        parts.append(
            own.reset_index().assign(run=run.params.run, share=own["universal"].to_numpy() / own["neurons"].to_numpy())
        )
    return pd.concat(parts, ignore_index=True)


def exponent(table: pd.DataFrame, random_seed: int = 0) -> pd.Series | None:
    """α of universal neurons = c · neurons^α, by least squares of the logarithms of the means over seeds of each size.

    From `sizes`. Fields alpha, constant (log c), low, high (95 % percentile interval of a bootstrap that draws the
    seeds of each size again), sizes, left_out (sizes without universal neurons, which have no logarithm). None for
    fewer than two sizes. The interval does not know whether a power law fits.
    """
    by_size = [own["universal"].to_numpy(dtype=float) for _, own in table.groupby("neurons")]
    neurons = np.array(sorted(table["neurons"].unique()), dtype=float)
    kept = np.array([counts.any() for counts in by_size], dtype=bool)
    if kept.sum() < 2:
        return None
    by_size = [counts for counts, keep in zip(by_size, kept, strict=True) if keep]
    x = np.log(neurons[kept])
    generator = np.random.default_rng(random_seed)
    means = [counts[generator.integers(len(counts), size=(DRAWS, len(counts)))].mean(1) for counts in by_size]
    drawn = np.stack(means, axis=1)  # (draws, sizes); a draw of seeds without universal neurons counts half a neuron
    alphas = np.polyfit(x, np.log(np.maximum(drawn, 0.5)).T, 1)[0]
    alpha, constant = np.polyfit(x, np.log([counts.mean() for counts in by_size]), 1)
    low, high = np.quantile(alphas, [0.025, 0.975])
    found = {"alpha": alpha, "constant": constant, "low": low, "high": high, "sizes": len(x)}
    return pd.Series(found | {"left_out": int((~kept).sum())})


def ledgers(runs: list[Run]) -> pd.DataFrame:
    """One row per claim of any of the runs: claim, a column per run with verdict and value, `agree` (one verdict).

    Claims on which verdicts differ come first. A run that does not have the claim has "–". Runs without a ledger, whose
    reports are not finished, are left out.
    """
    parts, claims = {}, {}
    for run in (one for one in runs if one.has("ledger")):
        own = run.table("ledger").set_index("name")
        claims = own["claim"].to_dict() | claims
        value = own["here"].str.split(r" \(|; ", regex=True).str[0]
        parts[run.params.run] = own["verdict"].where(value == "", own["verdict"] + ": " + value)
    if not parts:
        return pd.DataFrame(columns=["claim", "agree"])
    table = pd.DataFrame(parts).reindex(list(claims)).fillna("–")
    verdicts = table.apply(lambda column: column.str.split(": ").str[0])
    table = table.assign(agree=verdicts.nunique(axis=1) == 1)
    table.insert(0, "claim", [claims[name] for name in table.index])
    return table.sort_values("agree", kind="stable", ignore_index=True)


@exit_on_input_error
def main(arguments: list[str]) -> int:
    """Command line: the names of the runs, the one whose report has the page first."""
    runs = finished_runs(" ".join(arguments).split())
    write_json(runs[0].folder / RECORD, {"runs": [run.params.run for run in runs]})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
