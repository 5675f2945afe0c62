"""Where does universality come from? Matches of small seeds that share initial weights, text or its order.

`python -m lib.chapters.universality.designed` reads the eight models that lib.training.designed left in
outputs/designed, matches every pair as a run of its own does, and writes data/designed/pairs.parquet, which chapter 3
shows. docs/method.md §3.
"""

import argparse
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import t

from lib.base import params as parameters
from lib.base.errors import InputError, exit_on_input_error
from lib.base.params import Params
from lib.base.tensors import write_table
from lib.chapters.universality.tables import tabulate
from lib.collect.passes import collect
from lib.run import Run

SHIPPED = Path("data") / "designed" / "pairs.parquet"
STAGES = ("constant", "decayed")  # before and after the decay of the learning rate
TOKENS = 262_144  # positions of text on which the models are compared
THRESHOLD = 0.5
RELATIONS = (
    "same initialisation, same text in another order",
    "same initialisation, another text",
    "other initialisation, same text in the same order",
    "other initialisation, same text in another order",
    "other initialisation, another text",
)
INTERVAL = 0.05  # 1 − confidence


def relation(a: str, b: str) -> str:
    """What two models share, one of RELATIONS, by their names `init<i>-text<t>-order<o>`."""
    (init, text, order), (other_init, other_text, other_order) = (
        map(int, re.fullmatch(r"init(\d+)-text(\d+)-order(\d+)", name).groups()) for name in (a, b)
    )
    shared = "same text in the same order" if order == other_order else "same text in another order"
    weights = "same" if init == other_init else "other"
    return f"{weights} initialisation, {shared if text == other_text else 'another text'}"


def pair_table(matches: pd.DataFrame) -> pd.DataFrame:
    """One row per model and compared model, from best matches (`match_table` of every seed).

    Columns seed, model, relation, neurons; share (of neurons whose correlation is THRESHOLD above the baseline),
    adjusted_share (whose adjusted excess, against this model alone, is above it), mean_excess, mean_adjusted;
    same_index (share whose best match is the neuron of the same layer and index) and same_index_universal (the same of
    the neurons above the threshold, NaN without any).
    """
    excess = matches["corr"] - matches["baseline"]
    same = (matches["layer"] == matches["match_layer"]) & (matches["neuron"] == matches["match_neuron"])
    adjusted = excess / (1 - matches["baseline"])
    found = matches[["seed", "model"]].assign(
        share=excess > THRESHOLD,
        adjusted_share=adjusted > THRESHOLD,
        mean_excess=excess,
        mean_adjusted=adjusted,
        same_index=same,
        same_index_universal=same.where(excess > THRESHOLD).astype(float),
    )
    grouped = found.groupby(["seed", "model"], sort=True)
    table = grouped.mean().reset_index()
    table.insert(2, "neurons", grouped.size().to_numpy())
    table.insert(2, "relation", [relation(*pair) for pair in table[["seed", "model"]].to_numpy()])
    return table


def by_pair(pairs: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Columns stage, relation, pair and those given: one row per stage and pair of models, both directions averaged."""
    names = [" ".join(sorted(pair)) for pair in pairs[["seed", "model"]].to_numpy()]
    keys = ["stage", "relation", pd.Series(names, pairs.index, name="pair")]
    return pairs.groupby(keys)[columns].mean().reset_index()


def over_pairs(pairs: pd.DataFrame, column: str) -> pd.DataFrame:
    """Mean of a column by stage and relation over pairs of models, both directions of a pair averaged first.

    Columns stage, relation, pairs, mean, low, high (95 % t interval over pairs; NaN for a single pair).
    """
    grouped = by_pair(pairs, [column]).groupby(["stage", "relation"])[column]
    table = grouped.agg(["count", "mean", "std"]).reset_index().rename(columns={"count": "pairs"})
    half = t.isf(INTERVAL / 2, (table["pairs"] - 1).clip(lower=1)) * table["std"] / np.sqrt(table["pairs"])
    return table.assign(low=table["mean"] - half, high=table["mean"] + half).drop(columns="std")


def measured(folder: Path, stage: str, tokens: int) -> pd.DataFrame:
    """`pair_table` of the models of one stage in a folder of lib.training.designed; InputError without them."""
    models = {path.name: str(path.resolve()) for path in sorted((folder / stage).glob("init*"))}
    if len(models) < 2:
        raise InputError(f"{folder / stage} has no models; `python -m lib.training.designed` makes them.")
    values = {"run": f"designed-{stage}", "seeds": models, "reference": next(iter(models)), "compare": "all"}
    text = {"text": str((folder / "held_out.safetensors").resolve()), "context": 256, "token_budget": tokens}
    run = Run(Params(**values, **text, random_seed=0))
    collect(run, grouped=False)
    tabulate(run)
    return pair_table(run.table("matches_all_seeds")).assign(stage=stage)


def shipped() -> pd.DataFrame:
    """The table that ships with the report."""
    return pd.read_parquet(parameters.ROOT / SHIPPED)


@exit_on_input_error
def main(arguments: list[str]) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m lib.chapters.universality.designed", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--models", type=Path, default=Path("outputs/designed"))
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--out", type=Path, default=SHIPPED)
    given = parser.parse_args(arguments)
    table = pd.concat([measured(given.models, stage, given.tokens) for stage in STAGES], ignore_index=True)
    write_table(given.out, table)
    print(f"{given.out}: {len(table)} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
