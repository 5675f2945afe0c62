"""A run beside published per-neuron tables: do they call the same neurons universal, and give them the same numbers?

`python -m lib.chapters.published.comparison outputs/<run>/params.yaml ["one.csv two.csv"]` keeps the published tables
as tables/published.parquet and writes tables/comparison.parquet, for each of them one row per neuron of the run with
both tables' columns. A published table may list universal neurons only; the values of the others are then unknown, not
zero.
"""

import csv
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from lib.base.errors import InputError, exit_on_input_error, listed
from lib.base.files import file_sha256, write_json
from lib.base.params import read_params
from lib.base.tensors import write_table
from lib.chapters.universality.properties import PROPERTIES
from lib.run import Run, with_universal

CORRELATIONS = {
    "max_corr": "largest best match",
    "mean_corr": "mean best match",
    "min_corr": "smallest best match",
    "max_baseline": "largest baseline",
    "mean_baseline": "mean baseline",
    "min_baseline": "smallest baseline",
    "excess_corr": "excess correlation",
}
COLUMNS = CORRELATIONS | PROPERTIES
NEEDED = ("layer", "neuron", "excess_corr")
# Mean difference between two published runs of GPT2-small, 493 neurons: the tolerance for "the same result"
# (docs/method.md §10).
TOLERANCE = {"max_corr": 0.0044, "min_corr": 0.0073, "max_baseline": 0.0153, "min_baseline": 0.0089}
ROUNDING = 1e-3  # standard deviations of the published column up to which two values count as the same


def read_published(path: Path) -> pd.DataFrame:
    """A per-neuron table from .csv (any separator) or .parquet: layer, neuron and those of COLUMNS that it has.

    Raises InputError for what cannot be such a table.
    """
    if not path.is_file():
        raise InputError(f"the published table {path} does not exist; name a file with PUBLISHED=path.csv.")
    try:
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, sep=None, engine="python")
    except (ValueError, OSError, csv.Error) as error:
        why = str(error).strip().splitlines()[0].rstrip(".").replace(". ", "; ")
        raise InputError(f"the published table {path} cannot be read ({why}).") from error
    fault = _fault(table)
    if fault:
        raise InputError(f"the published table {path} has {fault}.")
    columns = ["layer", "neuron", *(column for column in COLUMNS if column in table)]
    return table[columns].astype({"layer": int, "neuron": int}).reset_index(drop=True)


def _fault(table: pd.DataFrame) -> str | None:
    """Why a table cannot be a per-neuron table, or None."""
    missing = [column for column in NEEDED if column not in table]
    if missing:
        has = ", ".join(map(str, table.columns[:12]))
        return f"no column '{missing[0]}', only {has}; it needs {', '.join(NEEDED)}"
    if not len(table):
        return "no rows"
    for column in ("layer", "neuron", *COLUMNS):
        if column in table and not pd.api.types.is_numeric_dtype(table[column]):
            return f"something other than numbers in its column '{column}'"
    for column in ("layer", "neuron"):
        if table[column].isna().any() or (table[column] % 1 != 0).any() or (table[column] < 0).any():
            return f"values in '{column}' that are not whole numbers from 0 on"
    return "more than one row of the same neuron" if table.duplicated(["layer", "neuron"]).any() else None


def joined(neurons: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """One row per neuron of the run: the shared columns, those of the published table with the suffix `_published`.

    Both tables have `is_universal`; here it is `universal` and `universal_published`. Also `listed` (in the published
    table); `distance`, the root mean square over columns of the standardised difference (NaN if not listed); `differs`,
    whether any column differs by more than rounding. Raises InputError if the published table is of a larger model.
    """
    largest = neurons[["layer", "neuron"]].max()
    over = published[(published["layer"] > largest["layer"]) | (published["neuron"] > largest["neuron"])]
    if len(over):
        first = over.iloc[0]
        raise InputError(
            f"the published table has layer {first['layer']:.0f} neuron {first['neuron']:.0f}, but the run's layers "
            f"go to {largest['layer']} and its neurons to {largest['neuron']}; it must be of the same model."
        )
    key, columns = ["layer", "neuron"], [column for column in COLUMNS if column in published and column in neurons]
    ours, theirs = (table[[*key, *columns]].assign(universal=table["is_universal"]) for table in (neurons, published))
    theirs = theirs.rename(columns={name: f"{name}_published" for name in (*columns, "universal")})
    table = ours.merge(theirs, "left", key, indicator="listed")
    table["listed"] = table["listed"] == "both"
    table["universal_published"] = table["universal_published"].eq(True)  # not listed: not universal
    differences = pd.DataFrame({name: standardised_difference(table, name) for name in columns})
    table["distance"] = np.sqrt((differences**2).mean(axis=1))
    table["differs"] = (differences.abs() > ROUNDING).any(axis=1)
    return table


def standardised_difference(table: pd.DataFrame, column: str) -> pd.Series:
    """This run minus published, in standard deviations of the published column (in plain numbers if it is constant)."""
    theirs = table[f"{column}_published"]
    deviation = theirs.std(ddof=0)
    return (table[column] - theirs) / (deviation if deviation > 0 else 1.0)


def shared_columns(table: pd.DataFrame) -> list[str]:
    """The columns that both the run and the published table have."""
    return [column for column in COLUMNS if f"{column}_published" in table]


def overlap(table: pd.DataFrame) -> pd.Series:
    """How far two sets of universal neurons agree: counts, Jaccard, precision, recall, and both by chance.

    `jaccard` is both / either, `precision` the share of the run's universal neurons that are published as universal,
    `recall` the share of the published ones that the run finds; NaN where the denominator is 0. `chance_precision` and
    `chance_recall` are those of random sets of the same sizes.
    """
    ours, theirs = table["universal"], table["universal_published"]
    here, there, both, neurons = int(ours.sum()), int(theirs.sum()), int((ours & theirs).sum()), len(table)
    found = {
        "neurons": neurons,
        "listed": int(table["listed"].sum()),
        "universal": here,
        "published": there,
        "both": both,
        "jaccard": _ratio(both, here + there - both),
        "precision": _ratio(both, here),
        "recall": _ratio(both, there),
        "chance_precision": _ratio(there, neurons),
        "chance_recall": _ratio(here, neurons),
        "differs": int(table["differs"].sum()),
    }
    return pd.Series(found, dtype=object)


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else np.nan


def overlap_by_layer(table: pd.DataFrame) -> pd.DataFrame:
    """`overlap` of each layer: one row a layer."""
    rows = {layer: overlap(own) for layer, own in table.groupby("layer")}
    return pd.DataFrame(rows).T.rename_axis("layer").reset_index().infer_objects()


def against_tolerance(table: pd.DataFrame) -> pd.DataFrame:
    """One row per shared column of TOLERANCE: column, label, neurons, difference, tolerance, within.

    `difference` is the mean absolute difference over the listed neurons.
    """
    known, rows = table[table["listed"]], []
    for column in (one for one in TOLERANCE if f"{one}_published" in table):
        differences = (known[column] - known[f"{column}_published"]).abs().dropna()
        row = (column, COLUMNS[column], len(differences), differences.mean(), TOLERANCE[column])
        rows += [(*row, row[-2] <= row[-1])] if len(differences) else []
    return pd.DataFrame(rows, columns=["column", "label", "neurons", "difference", "tolerance", "within"])


def column_correlations(table: pd.DataFrame) -> pd.DataFrame:
    """One row per shared column, over the listed neurons: column, label, neurons, pearson, differs (beyond rounding).

    `pearson` is NaN for fewer than three neurons or a constant column.
    """
    known = table[table["listed"]]
    rows = []
    for column in shared_columns(table):
        pair = known[[column, f"{column}_published"]].dropna()
        defined = len(pair) > 2 and (pair.std() > 0).all()
        pearson = pair.corr().iloc[0, 1] if defined else np.nan
        differs = int((standardised_difference(known, column).abs() > ROUNDING).sum())
        rows.append((column, COLUMNS[column], len(pair), pearson, differs))
    return pd.DataFrame(rows, columns=["column", "label", "neurons", "pearson", "differs"])


def correlations_by_layer(table: pd.DataFrame) -> pd.DataFrame:
    """Pearson correlation of each shared column (rows) in each layer (columns); NaN as in `column_correlations`."""
    layers = {layer: column_correlations(own).set_index("column")["pearson"] for layer, own in table.groupby("layer")}
    return pd.DataFrame(layers).reindex(shared_columns(table))


def most_different(table: pd.DataFrame, number: int) -> pd.DataFrame:
    """The listed neurons with the largest distance, `worst`, the column that differs most, and `worst_difference`."""
    top = table[table["differs"]].nlargest(number, "distance")
    if top.empty:
        return top.assign(worst=None, worst_difference=np.nan)
    columns = {column: standardised_difference(table, column) for column in shared_columns(table)}
    differences = pd.DataFrame(columns).loc[top.index]
    worst = differences.abs().idxmax(axis=1)
    most = [differences.at[index, column] for index, column in worst.items()]
    return top.assign(worst=worst, worst_difference=most).reset_index(drop=True)


def one_sided(table: pd.DataFrame, number: int) -> dict[str, pd.DataFrame]:
    """Neurons that only one side calls universal, largest excess first: `here` by ours, `there` by the published."""
    here = table[table["universal"] & ~table["universal_published"]].nlargest(number, "excess_corr")
    there = table[table["universal_published"] & ~table["universal"]].nlargest(number, "excess_corr_published")
    return {"here": here.reset_index(drop=True), "there": there.reset_index(drop=True)}


def compare(run: Run, paths: list[Path] | None = None) -> dict[str, pd.DataFrame]:
    """Writes tables/comparison.parquet of a run whose tables are there; new published tables replace the kept ones.

    Returns `joined` by the published table's name. Raises InputError before anything is written.
    """
    tables = run.folder / "tables"
    if paths:
        published = {path.stem: read_published(path) for path in paths}
        if len(published) < len(paths):
            raise InputError(f"PUBLISHED names {listed(path.name for path in paths)}; give each file another name.")
        _joined(run, published)  # refused before anything is written
        parts = [own.assign(table=name) for name, own in published.items()]
        write_table(tables / "published.parquet", pd.concat(parts, ignore_index=True))
        files = [{"table": path.stem, "file": path.name, "sha256": file_sha256(path)} for path in paths]
        write_json(tables / "published.json", {"tables": files})
    elif "tables" not in (record := run.recorded("tables/published.json")):  # kept before there could be several
        write_json(tables / "published.json", {"tables": [{"table": "published"} | record]})
    found = kept(run)
    parts = [own.assign(table=name) for name, own in found.items()]
    write_table(tables / "comparison.parquet", pd.concat(parts, ignore_index=True))
    return found


def kept(run: Run) -> dict[str, pd.DataFrame]:
    """The run joined with each published table that it keeps, by the table's name."""
    table = pd.read_parquet(run.folder / "tables" / "published.parquet")
    if "table" not in table:  # one, kept before there could be several
        table["table"] = "published"
    # a column that only another of the tables has is empty here
    own = {name: part.drop(columns="table") for name, part in table.groupby("table", sort=False)}
    return _joined(run, {name: part.dropna(axis="columns", how="all") for name, part in own.items()})


def _joined(run: Run, published: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    threshold, found = run.params.threshold, {}
    for name, table in published.items():
        try:
            found[name] = joined(run.neurons, with_universal(table, threshold))
        except InputError as error:
            raise InputError(f"{name}: {error}" if len(published) > 1 else str(error)) from error
    return found


@exit_on_input_error
def main(arguments: list[str]) -> int:
    """Command line: a parameter file as resolved, and published tables unless the run keeps some."""
    given = " ".join(arguments[1:])
    paths = [Path(given)] if Path(given).is_file() else [Path(one) for one in given.split()]
    if not arguments or (arguments[1:] and not paths):
        raise InputError("PUBLISHED is missing; name published per-neuron tables with PUBLISHED=path.csv.")
    compare(Run(read_params(arguments[0])), paths)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
