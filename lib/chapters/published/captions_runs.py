"""Captions and sentences of several runs side by side."""

import pandas as pd

from lib.base.errors import listed
from lib.display.captions import Caption, count, percent


def curves(shares: pd.DataFrame) -> Caption:
    """From `runs.shares`: which run has most universal neurons?"""
    alt = "Lines: share of neurons whose excess is above each threshold, one line a run, on a log axis."
    ordered = shares.sort_values("universal", ascending=False, kind="stable")
    most, least = ordered.iloc[0], ordered.iloc[-1]
    one = shares["threshold"].nunique() == 1
    at = f"threshold {most['threshold']:g}" if one else "each run's own threshold"
    if percent(most["universal"]) == percent(least["universal"]):
        title = f"At {at} the runs have equally many universal neurons: {percent(most['universal'])}"
    else:
        high, low = percent(most["universal"]), percent(least["universal"])
        title = f"At {at}, universal are {high} in {most['run']} and {low} in {least['run']}"
    said = [f"**{percent(row.universal)}** in {row.run}" for row in shares.itertuples()]
    text = (
        f"A line is the mean over a run's references; the dot stands at {at}, its bar reaches from the lowest to the "
        f"highest reference. Universal are {listed(said)}."
    )
    return Caption(title, text, f"{alt} {title}.")


def settings(table: pd.DataFrame) -> str:
    """From `runs.settings`: in which settings the runs differ (Markdown)."""
    outcomes = ("run", "holds", "does not hold", "cannot tell", "tokens counted")
    differ = [name for name in table if name not in outcomes and table[name].astype(str).nunique() > 1]
    if not differ:
        return "The runs have the same settings in this table."
    return f"The runs differ in **{listed(differ)}**."


def ledgers(table: pd.DataFrame) -> str:
    """From `runs.ledgers`: on how many claims do the runs agree? (Markdown)"""
    alike, total = int(table["agree"].sum()), len(table)
    more = "" if alike == total else " Claims on which they differ come first."
    return f"The verdicts are the same on **{alike}** of {count(total, 'claim')}.{more}"
