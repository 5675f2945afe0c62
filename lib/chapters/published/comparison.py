"""A run beside a published per-neuron table: do they call the same neurons universal, and give them the same numbers?

`python -m lib.chapters.published.comparison outputs/<run>/params.yaml [published.csv]` keeps the published table as tables/published.parquet
and writes tables/comparison.parquet, one row per neuron of the run with the published columns beside its own. A
published table may list universal neurons only; what it says of the others is then unknown, not zero.
"""

import csv
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from lib.base.errors import InputError, exit_on_input_error
from lib.base.files import file_sha256, write_json
from lib.base.params import read_params
from lib.base.tensors import write_table
from lib.chapters.universality.properties import PROPERTIES
from lib.run import Run

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
SAME = 1e-3  # values that are closer than this share of the column's standard deviation are the same but for rounding


def read_published(path: Path) -> pd.DataFrame:
    """A per-neuron table from .csv (any separator) or .parquet: layer, neuron and the columns of COLUMNS that it has.

    Raises InputError, in one sentence, for what cannot be such a table.
    """
    if not path.is_file():
        raise InputError(f"the published table {path} does not exist; name a file with PUBLISHED=path.csv.")
    try:
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, sep=None, engine="python")
    except (ValueError, OSError, csv.Error) as error:
        why = str(error).strip().splitlines()[0].rstrip(".").replace(". ", "; ")
        raise InputError(f"the published table {path} cannot be read ({why}).") from error
    missing = [column for column in NEEDED if column not in table]
    if missing:
        has = ", ".join(map(str, table.columns[:12]))
        raise InputError(
            f"the published table {path} has no column '{missing[0]}', only {has}; it needs {', '.join(NEEDED)}."
        )
    if not len(table):
        raise InputError(f"the published table {path} has no rows.")
    table = table[["layer", "neuron", *(column for column in COLUMNS if column in table)]]
    wrong = next((column for column in table if not pd.api.types.is_numeric_dtype(table[column])), None)
    if wrong:
        raise InputError(f"the published table {path} has something other than numbers in its column '{wrong}'.")
    for column in ("layer", "neuron"):
        if table[column].isna().any() or (table[column] % 1 != 0).any() or (table[column] < 0).any():
            raise InputError(
                f"the published table {path} has values in '{column}' that are not whole numbers from 0 on."
            )
    table = table.astype({"layer": int, "neuron": int})
    if table.duplicated(["layer", "neuron"]).any():
        raise InputError(f"the published table {path} has more than one row of the same neuron.")
    return table.reset_index(drop=True)


def joined(neurons: pd.DataFrame, published: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """One row per neuron of the run: the shared columns, those of the published table with the suffix `_published`.

    Also `listed` (in the published table), `universal` and `universal_published` at the threshold, `distance`: the
    root mean square over columns of the difference in standard deviations of the published column, and `differs`: whether
    any column differs by more than rounding. The last two are NaN and False for neurons that are not listed.
    """
    largest = neurons[["layer", "neuron"]].max()
    over = published[(published["layer"] > largest["layer"]) | (published["neuron"] > largest["neuron"])]
    if len(over):
        first = over.iloc[0]
        raise InputError(
            f"the published table has layer {first['layer']:.0f} neuron {first['neuron']:.0f}, but the run's layers go to "
            f"{largest['layer']} and its neurons to {largest['neuron']}; it must be of the same model."
        )
    columns = [column for column in COLUMNS if column in published and column in neurons]
    suffixed = published[["layer", "neuron", *columns]].rename(columns={name: f"{name}_published" for name in columns})
    table = neurons[["layer", "neuron", *columns]].merge(suffixed, "left", ["layer", "neuron"], indicator="listed")
    table["listed"] = table["listed"] == "both"
    table["universal"] = table["excess_corr"] > threshold
    table["universal_published"] = table["excess_corr_published"] > threshold
    gaps = pd.DataFrame({name: _gap(table, name) for name in columns})
    table["distance"] = np.sqrt((gaps**2).mean(axis=1))
    table["differs"] = (gaps.abs() > SAME).any(axis=1)
    return table


def _gap(table: pd.DataFrame, column: str) -> pd.Series:
    """Difference of a column in standard deviations of the published one; in plain numbers where that has none."""
    theirs = table[f"{column}_published"]
    deviation = theirs.std(ddof=0)
    return (table[column] - theirs) / (deviation if deviation > 0 else 1.0)


def shared_columns(table: pd.DataFrame) -> list[str]:
    """The columns that both the run and the published table have."""
    return [column for column in COLUMNS if f"{column}_published" in table]


def overlap(table: pd.DataFrame) -> pd.Series:
    """How far two sets of universal neurons agree: counts, Jaccard, precision, recall, and both by chance.

    `precision` is the share of the run's universal neurons that are published as universal, `recall` the share of the
    published that the run finds, `jaccard` both / either; NaN where there is nothing to divide by. By chance, for sets of
    these sizes, the first two are `chance_precision` and `chance_recall`.
    """
    ours, theirs = table["universal"], table["universal_published"]
    both, either = int((ours & theirs).sum()), int((ours | theirs).sum())
    return pd.Series(
        {
            "neurons": len(table),
            "listed": int(table["listed"].sum()),
            "universal": int(ours.sum()),
            "published": int(theirs.sum()),
            "both": both,
            "jaccard": _ratio(both, either),
            "precision": _ratio(both, ours.sum()),
            "recall": _ratio(both, theirs.sum()),
            "chance_precision": _ratio(theirs.sum(), len(table)),
            "chance_recall": _ratio(ours.sum(), len(table)),
            "differs": int(table["differs"].sum()),
        },
        dtype=object,
    )


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else np.nan


def overlap_by_layer(table: pd.DataFrame) -> pd.DataFrame:
    """`overlap` of each layer: one row a layer."""
    rows = {layer: overlap(own) for layer, own in table.groupby("layer")}
    return pd.DataFrame(rows).T.rename_axis("layer").reset_index().infer_objects()


def agreement(table: pd.DataFrame) -> pd.DataFrame:
    """One row per shared column over the listed neurons: neurons, pearson, spearman, median_difference, differs.

    Correlations are NaN for fewer than three neurons or a constant column; `differs` counts neurons beyond rounding.
    """
    listed = table[table["listed"]]
    rows = []
    for column in shared_columns(table):
        pair = listed[[column, f"{column}_published"]].dropna()
        defined = len(pair) > 2 and (pair.std() > 0).all()
        rows.append(
            {
                "column": column,
                "label": COLUMNS[column],
                "neurons": len(pair),
                "pearson": pair.corr().iloc[0, 1] if defined else np.nan,
                "spearman": pair.corr("spearman").iloc[0, 1] if defined else np.nan,
                "median_difference": (pair.iloc[:, 0] - pair.iloc[:, 1]).median(),
                "differs": int((_gap(listed, column).abs() > SAME).sum()),
            }
        )
    return pd.DataFrame(rows)


def agreement_by_layer(table: pd.DataFrame) -> pd.DataFrame:
    """Pearson correlation of each shared column (rows) within each layer (columns); NaN as in `agreement`."""
    layers = {layer: agreement(own).set_index("column")["pearson"] for layer, own in table.groupby("layer")}
    return pd.DataFrame(layers).reindex(shared_columns(table))


def most_different(table: pd.DataFrame, number: int) -> pd.DataFrame:
    """The listed neurons with the largest distance, and the column in which each differs most, in standard deviations."""
    top = table[table["differs"]].nlargest(number, "distance")
    gaps = pd.DataFrame({column: _gap(table, column) for column in shared_columns(table)}).loc[top.index]
    if len(top):
        worst = gaps.abs().idxmax(axis=1)
        most = pd.Series([gaps.at[index, column] for index, column in worst.items()], top.index)
    else:
        worst = most = pd.Series(dtype=float)
    return top.assign(worst=worst, worst_gap=most).reset_index(drop=True)


def one_sided(table: pd.DataFrame, number: int) -> dict[str, pd.DataFrame]:
    """Neurons that only one side calls universal, the clearest first: `here` by our excess, `there` by the published."""
    here = table[table["universal"] & ~table["universal_published"]].nlargest(number, "excess_corr")
    there = table[table["universal_published"] & ~table["universal"]].nlargest(number, "excess_corr_published")
    return {"here": here.reset_index(drop=True), "there": there.reset_index(drop=True)}


def compare(run: Run, path: Path | None = None) -> pd.DataFrame:
    """Writes tables/comparison.parquet of a run whose tables are there; a new published table replaces the kept one."""
    tables = run.folder / "tables"
    if path is not None:
        published = read_published(path)
        joined(run.neurons, published, run.params.threshold)  # refused before anything is written
        write_table(tables / "published.parquet", published)
        write_json(tables / "published.json", {"file": path.name, "sha256": file_sha256(path)})
    table = joined(run.neurons, run.table("published"), run.params.threshold)
    write_table(tables / "comparison.parquet", table)
    return table


@exit_on_input_error
def main(arguments: list[str]) -> int:
    """Command line: a parameter file as resolved, and a published table unless the run keeps one."""
    if not arguments or len(arguments) > 2 or arguments[1:] == [""]:
        raise InputError("PUBLISHED is missing; name a published per-neuron table with PUBLISHED=path.csv.")
    compare(Run(read_params(arguments[0])), *map(Path, arguments[1:]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
