"""What the table nulls.parquet says: excess under each null, matches within domains and positions, their sentences."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from lib.display.captions import Caption, count, percent, signed
from lib.display.claims import Effects, Evidence, decision, statements, unmeasured

NULLS = {  # in the order of figures, with what is rotated
    "raw": "activations",
    "zscored": "z-scored activations",
    "activation": "pre-activations, then the nonlinearity",
}
WITHIN = {"domain": "domains", "position": "positions"}
KEY = ["seed", "layer", "neuron"]
GATED = "a gated MLP's activation is no function of its pre-activation alone, so that null is left out"


def known(table: pd.DataFrame) -> list[str]:
    """The nulls that the table has."""
    return [name for name in NULLS if name in table]


def by_neuron(table: pd.DataFrame) -> pd.DataFrame:
    """One row per sampled neuron: means over the compared seeds of all correlations, and of the excess under each null
    (columns `excess_<null>`), beside seed, layer, neuron, sampled, weight."""
    nulls = known(table)
    excess = {f"excess_{name}": table["corr"] - table[name] for name in nulls}
    means = [*excess, "corr", *nulls, "partner", *WITHIN]
    return table.assign(**excess).groupby([*KEY, "sampled", "weight"], as_index=False)[means].mean()


def shares_above(values: pd.Series, weight: pd.Series, thresholds: Sequence[float]) -> np.ndarray:
    """Share of all neurons of a seed above each threshold, estimated from sampled ones by their weights."""
    order = np.argsort(values.to_numpy())
    above = np.append(np.cumsum(weight.to_numpy()[order][::-1])[::-1], 0.0)
    return above[np.searchsorted(values.to_numpy()[order], thresholds, side="right")] / weight.sum()


def mean_excess(table: pd.DataFrame, null: str) -> pd.Series:
    """Mean excess over all neurons of each reference under a null, by seed, estimated from sampled ones by weight."""
    rows = by_neuron(table)
    weighted = (rows[f"excess_{null}"] * rows["weight"]).groupby(rows["seed"]).sum()
    return weighted / rows.groupby("seed")["weight"].sum()


def activation_null(evidence: Evidence) -> Effects:
    """The measure of `excess_activation_null`: each seed's mean excess over rotated pre-activations."""
    table = evidence.tables["nulls"]
    if "activation" not in table:
        return unmeasured("needs MLPs without a gate, whose activation is a function of the pre-activation alone")
    values, seeds = mean_excess(table, "activation"), sorted({*table["seed"], *table["model"]})
    left_out = {}
    for seed in seeds:
        rest = table[(table["seed"] != seed) & (table["model"] != seed)]
        left_out[seed] = mean_excess(rest, "activation").mean() if len(rest) else np.nan
    number = table.drop_duplicates(KEY).groupby("seed").size().min()
    details = f"of {count(number, 'sampled neuron')} or more a seed, {table['tokens'].iloc[0]:,} tokens; over rotated "
    details += f"activations {signed(mean_excess(table, 'raw').mean(), 3)}"
    missing = "needs `compare: all`, so that every seed is a reference"
    return Effects(values, lambda value: signed(value, 3), details, left_out=pd.Series(left_out), missing=missing)


# ---------------------------------------------------------------- sentences


def survival(table: pd.DataFrame) -> dict[str, float]:
    """Mean excess under each null over that under rotated activations, both averaged over the references."""
    means = {name: mean_excess(table, name).mean() for name in known(table)}
    return {name: mean / means["raw"] for name, mean in means.items()}


def survival_sentence(table: pd.DataFrame) -> str:
    """How much of the mean excess survives which null, for the front page."""
    left = survival(table)
    kept = percent(left["activation" if "activation" in left else "zscored"], 0)
    how = (
        "neurons are rotated before their nonlinearity" if "activation" in left else "no neuron is louder than another"
    )
    return f"Of the mean excess {kept} is left if {how}."


def caption(table: pd.DataFrame, neurons: pd.DataFrame, reference: str, threshold: float) -> Caption:
    """How much of the excess is left under each null, and of matches within domains and positions; `neurons` are the
    reference's."""
    own, means = by_neuron(table[table["seed"] == reference]), {n: mean_excess(table, n).mean() for n in known(table)}
    universal = own.merge(neurons.loc[neurons["is_universal"], KEY[1:]], on=KEY[1:])
    sampled, added = count(len(own), "neuron"), count((~own["sampled"]).sum(), "neuron")
    title = f"Mean excess {means['raw']:.3f}"
    text = (
        f"Left: share of seed {reference}'s neurons above each threshold under each null, estimated from {sampled} on "
        f"{table['tokens'].iloc[0]:,} tokens. Right: matches of the {added} of largest excess within domains and "
        f"within positions. Averaged over references, the mean excess is {means['raw']:.3f} over rotated activations "
        f"and {means['zscored']:.3f} over z-scored ones"
    )
    if "activation" in means:
        interval = _interval_over_seeds(table, reference, threshold)
        kept = f" ({interval})" if interval else ""
        title = (
            f"Mean excess {means['activation']:.3f}{kept}, not {means['raw']:.3f}, if the null keeps the nonlinearity"
        )
        kept = f" ({interval}, 95 % over seeds)" if interval else ""
        text += f". If the null keeps the nonlinearity, it is **{means['activation']:.3f}**{kept}."
        if len(universal):
            left = {name: int((universal[f"excess_{name}"] > threshold).sum()) for name in ("activation", "raw")}
            title += f"; {left['activation']:,} of {len(universal):,} universal neurons pass"
            text += f" Of {count(len(universal), 'universal neuron')}, **{left['activation']:,}** then stay above "
            text += f"{threshold:g}; over rotated activations, on the same tokens, {left['raw']:,} do."
    else:
        text += f"; {GATED}."
    if len(universal):
        match = universal[["partner", *WITHIN]].mean()
        text += f" Within domains their mean match is **{match['domain']:.2f}** instead of {match['partner']:.2f}, "
        text += f"within positions {match['position']:.2f}."
    alt = "Lines: share of neurons above each threshold under each null; scatter of matches within domains, positions."
    return Caption(title, text, f"{alt} {title}.")


def _interval_over_seeds(table: pd.DataFrame, reference: str, threshold: float) -> str:
    """The ledger's interval of the mean excess under the activation null; empty where there is none."""
    effects = activation_null(Evidence({"nulls": table}, reference, threshold))
    found = decision(effects, statements()["excess_activation_null"])
    return f"{found.low:.3f} to {found.high:.3f}".replace("-", "−") if np.isfinite(found.low) else ""
