"""The findings that open chapter 05, from its tables."""

import numpy as np
import pandas as pd
from IPython.display import HTML

from lib.chapters.circuits.roles import NULL_QUANTILE, ROLES, role_counts
from lib.display.captions import percent, signed_percent
from lib.display.findings import Finding, in_short
from lib.display.over_seeds import in_brackets, over_seeds

SHARP = ["prediction", "suppression"]  # the roles of high kurtosis


def circuits(neurons: pd.DataFrame, agreement: pd.DataFrame) -> HTML:
    """From the roles of all seeds' neurons and `match_agreement`."""
    sharp = neurons["role_learned"].isin(SHARP)
    text = f"**{percent(sharp.mean(), 1)}** of the neurons raise or lower a few tokens more sharply than "
    text += f"{percent(NULL_QUANTILE, 1)} of random directions, by the kurtosis of their logit effects."
    if not (neurons["role_published"].isin(SHARP)).any():
        text += " No neuron reaches the paper's cut, which was set for larger models."
    return in_short([Finding(text, "figure_06ab_moments"), _switch(neurons), *_agreement(agreement)])


def _switch(neurons: pd.DataFrame) -> Finding:
    """Whether most neurons of high kurtosis in the last layer suppress, over seeds."""
    counts = role_counts(neurons, "role_learned")
    last = counts[counts["layer"] == counts["layer"].max()].set_index("seed")[SHARP]
    if not last.to_numpy().any():
        return Finding("No neuron of the last layer clearly raises or lowers a few tokens.", "roles_by_layer")
    shares = last["suppression"] / last.sum(axis=1).replace(0, np.nan)
    found = over_seeds(shares, "suppression_switch", signed_percent)
    text = f"Of these neurons in the last layer, **{percent(found.mean, 0)}** lower tokens"
    text += f"{in_brackets(found)}. "
    switch = "the paper's switch from raising to lowering tokens"
    seen = (f"Whether this is {switch} cannot be told", f"This is {switch}", f"This is **not** {switch}")[found.side]
    text += f"{seen}."
    return Finding(text, "roles_by_layer")


def _agreement(table: pd.DataFrame) -> list[Finding]:
    """Whether matched neurons have the same role; nothing if no neuron with a role has a match."""
    known = table[(table["property"] == "role") & table["group"].isin(ROLES) & (table["pairs"] > 0)]
    if known.empty:
        return []
    share, chance = ((known[name] * known["pairs"]).sum() / known["pairs"].sum() for name in ("agreement", "chance"))
    beyond = (known["agreement"] > known["chance_high"]).all()
    text = "Roles (prediction, suppression, partition) recur across seeds" if beyond else "Roles do not clearly recur"
    text += f": **{percent(share, 0)}** of the neurons with a role match a neuron of the same role, by chance "
    return [Finding(f"{text}{percent(chance, 0)} would.", "roles_of_matches")]
