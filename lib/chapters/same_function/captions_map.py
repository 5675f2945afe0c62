"""What the table residual_map.parquet says: the ledger's two rows on function without text, and the caption."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from lib.chapters.same_function.residual_map import hits, selected
from lib.display.captions import Caption, percent, signed
from lib.display.claims import FEWEST, Effects, Evidence
from lib.display.over_seeds import mean_and_interval

TABLE = "residual_map"
KEY = ["seed", "layer", "neuron"]


def over_references(
    table: pd.DataFrame, value: Callable[[pd.DataFrame], float], words: Callable[[float], str], **fields: str
) -> Effects:
    """The `value` of each reference's rows, and its mean without each seed: neither a reference nor compared with."""

    def by_seed(rows: pd.DataFrame) -> pd.Series:
        return pd.Series({seed: value(own) for seed, own in rows.groupby("seed")}, dtype=float)

    seeds = sorted({*table["seed"], *table["model"]})
    left_out = {seed: by_seed(table[(table["seed"] != seed) & (table["model"] != seed)]).mean() for seed in seeds}
    return Effects(by_seed(table), words, left_out=pd.Series(left_out, dtype=float), **fields)


def _first(rows: pd.DataFrame) -> float:
    """Share of the universal neurons whose match comes first; NaN where there are too few to say."""
    own = selected(rows, universal=True)
    return (own["rank"] == 1).mean() if len(own.drop_duplicates(KEY)) >= FEWEST else np.nan


def _first_of_all(rows: pd.DataFrame) -> float:
    return (selected(rows, universal=False)["rank"] == 1).mean()


def _beyond_matched(rows: pd.DataFrame) -> float:
    own = hits(selected(rows, universal=False))
    return own["reciprocal"].mean() - own["matched_reciprocal"].mean()


def finds_partner(evidence: Evidence) -> Effects:
    """The measure of `map_finds_partner`: of each seed's universal neurons, the share whose match comes first."""
    table = evidence.tables[TABLE]
    everyone = over_references(table, _first_of_all, percent).values.mean()
    details = f"of all neurons {percent(everyone, 0)}, of other neurons' matches {percent(_control(table), 1)}"
    missing = f"a seed with fewer than {FEWEST} universal neurons cannot be asked"
    return over_references(table, _first, lambda share: percent(share, 0), details=details, missing=missing)


def _control(table: pd.DataFrame, name: str = "exchanged") -> float:
    return (selected(table, universal=False)[name] == 1).mean()


def beats_matched(evidence: Evidence) -> Effects:
    """The measure of `map_beats_matched`: mean reciprocal rank of the match less that of its neighbour in norm."""
    table = evidence.tables[TABLE]
    rows = hits(selected(table, universal=False))
    means = {name: rows[f"{name}reciprocal"].mean() for name in ("", "matched_", "exchanged_")}
    details = f"{means['']:.3f} against {means['matched_']:.3f}; matches exchanged within the layer "
    details += f"{means['exchanged_']:.3f}"
    return over_references(table, _beyond_matched, lambda value: signed(value, 3), details=details)


def caption(table: pd.DataFrame, reference: str) -> Caption:
    """How many neurons tokens alone lead to their match, beside both controls."""
    rows = hits(selected(table, universal=False))
    effects = over_references(table, _first, lambda share: percent(share, 0))
    everyone = found_by_all(table)
    title = f"A rotation fitted on tokens alone puts the match first for {percent(everyone, 0)} of the neurons"
    text = (
        f"Left: share of seed {reference}'s neurons whose match in another seed comes first among its "
        f"{int(rows['candidates'].max()):,} neurons, by the cosines of mapped w_in and w_out. Right: the same by the "
        "correlation of the match. The map is a rotation, fitted on token embeddings and unembeddings, without "
        "activations. "
    )
    if effects.values.notna().any():
        share, interval = mean_and_interval(effects, "map_finds_partner")
        title += f", {share} of the universal ones"
        text += f"Of the universal neurons of all references **{share}** come first{interval}, of all neurons "
        text += f"**{percent(everyone, 1)}**. "
    else:
        text += f"Of all neurons **{percent(everyone, 1)}** come first; too few are universal to say more of them. "
    means = [rows[f"{name}reciprocal"].mean() for name in ("", "exchanged_", "matched_")]
    text += (
        f"Many matches are weak: the median correlation is {rows['corr'].median():.2f}. In its place, another neuron's "
        f"match comes first in {percent(_control(table), 1)}, a neuron with nearly the same norms in "
        f"{percent(_control(table, 'matched'), 1)}. The mean reciprocal ranks of the three are "
        "{:.3f}, {:.3f} and {:.3f}.".format(*means)
    )
    alt = "Two panels of lines: share of neurons whose match comes first, by layer and by correlation, above controls."
    return Caption(title, text, f"{alt} {title}.")


def found_by_all(table: pd.DataFrame) -> float:
    """Share of all neurons whose match comes first, averaged over the references."""
    return over_references(table, _first_of_all, percent).values.mean()


def found_by_universal(table: pd.DataFrame) -> float:
    """The same of the universal neurons; NaN where there are too few."""
    return over_references(table, _first, percent).values.mean()
