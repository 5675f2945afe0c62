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


def sizes(table: pd.DataFrame, fit: pd.Series | None) -> Caption:
    """From `runs.sizes` and `runs.exponent`: how do universal neurons grow with the size of the model?"""
    alt = "Share and number of universal neurons against the neurons of the model, a dot a reference, on log axes."
    ordered = table.sort_values("neurons", kind="stable").groupby("neurons")["share"].mean()
    said = listed(f"{percent(share)} of {neurons:,}" for neurons, share in ordered.items())
    text = f"Universal are, in the mean over references, {said} neurons."
    if fit is None:
        title = "No exponent: fewer than two sizes have universal neurons"
        return Caption(title, text, f"{alt} {title}.")
    interval = f"{fit['low']:.2f} to {fit['high']:.2f}"
    title = f"The number of universal neurons grows as the neurons to the power {fit['alpha']:.2f} ({interval})"
    share = "falls" if fit["high"] < 1 else "rises" if fit["low"] > 1 else "neither clearly falls nor rises"
    text += (
        f" Over {fit['sizes']:.0f} sizes the exponent is **{fit['alpha']:.2f}** (95 % over seeds: {interval}), so the "
        f"share {share} with size; the interval assumes a power law."
    )
    if fit["left_out"]:
        text += f" Not in the fit: {count(int(fit['left_out']), 'size')} without universal neurons."
    return Caption(title, text, f"{alt} {title}.")


def settings(table: pd.DataFrame) -> str:
    """From `runs.settings`: in which settings the runs differ (Markdown)."""
    outcomes = ("run", "holds", "does not hold", "cannot tell", "tokens counted", "loss")
    differ = [name for name in table if name not in outcomes and table[name].astype(str).nunique() > 1]
    if not differ:
        return "The runs have the same settings in this table."
    return f"The runs differ in **{listed(differ)}**."


def ledgers(table: pd.DataFrame) -> str:
    """From `runs.ledgers`: on how many claims do the runs agree? (Markdown)"""
    compared = len(table.columns) - 2  # beside the claim and whether the runs agree
    if compared < 2:
        return f"Fewer than two of the runs have a ledger, which `make report` writes ({compared})."
    alike, total = int(table["agree"].sum()), len(table)
    more = "" if alike == total else " Claims on which they differ come first."
    return f"The verdicts are the same on **{alike}** of {count(total, 'claim')}.{more}"
