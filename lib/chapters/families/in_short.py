"""The findings that open chapter 04, from its tables."""

import numpy as np
import pandas as pd
from IPython.display import HTML

from lib.base.errors import listed
from lib.chapters.families.scoring import CHANCE_QUANTILE
from lib.chapters.families.summary import EXPLAINED, FAMILIES, TOP
from lib.display.captions import percent
from lib.display.findings import Finding, in_short


def families(counts: pd.DataFrame, agreement: pd.DataFrame) -> HTML:
    """From `family_counts` of the reference and `family_agreement` of all seeds."""
    named = counts.set_index("family").loc[list(EXPLAINED)]
    total, explained = counts["all"].sum(), named["all"]
    largest = [FAMILIES[name] for name, number in explained.nlargest(2).items() if number]
    text = f"A label explains **{percent(explained.sum() / total, 0)}** of the neurons beyond the chance level, which "
    text += f"{percent(1 - CHANCE_QUANTILE, 0)} of rotated neurons pass."
    text += f" The largest families are {listed(largest)}." if len(largest) > 1 else ""
    return in_short([Finding(text, "family_counts"), _shared(named), *_agreement(agreement)])


def _shared(named: pd.DataFrame) -> Finding:
    top, rest = (percent(named[f"{group} share"].sum(), 0) for group in (TOP, "rest"))
    better = named[f"{TOP} share"].sum() > named["rest share"].sum()
    text = (
        "Neurons that recur in other seeds can be named more often"
        if better
        else ("Neurons that recur in other seeds can **not** be named more often")
    )
    text += f": **{top}** of the {TOP} by excess have a label, {rest} of the others."
    return Finding(text, "families_by_excess")


def _agreement(table: pd.DataFrame) -> list[Finding]:
    """Whether matched neurons share a label; nothing where no pair can be compared."""
    pairs = table.iloc[0]
    if not pairs["pairs"] or not np.isfinite(pairs["chance_label"]):
        return []
    verb = "agree" if pairs["same_label"] > 2 * pairs["chance_label"] else "hardly agree"
    text = f"Seeds {verb} on what a neuron responds to: **{percent(pairs['same_label'], 0)}** of explained neurons "
    text += f"have a match with the same label, by chance {percent(pairs['chance_label'], 1)} would."
    return [Finding(text, "family_agreement")]
