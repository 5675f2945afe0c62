"""The findings that open chapter 05, from its tables."""

import pandas as pd
from IPython.display import HTML

from lib.chapters.circuits.roles import NULL_QUANTILE, ROLES, role_counts
from lib.display.captions import count, percent
from lib.display.findings import Finding, in_short

SHARP = ["prediction", "suppression"]  # the roles of high kurtosis


def circuits(neurons: pd.DataFrame, agreement: pd.DataFrame) -> HTML:
    """From the roles of all seeds' neurons and `match_agreement`."""
    sharp = neurons["role_learned"].isin(SHARP)
    text = f"**{percent(sharp.mean(), 1)}** of the neurons raise or lower a few tokens more sharply than "
    text += f"{percent(NULL_QUANTILE, 1)} of random directions."
    if not (neurons["role_published"].isin(SHARP)).any():
        text += " No neuron passes the paper's cut, which was set for larger models."
    return in_short([Finding(text, "figure_06ab_moments"), _switch(neurons), *_agreement(agreement)])


def _switch(neurons: pd.DataFrame) -> Finding:
    """Whether suppression takes over in the last layer, in how many seeds."""
    counts = role_counts(neurons, "role_learned")
    last = counts[counts["layer"] == counts["layer"].max()]
    led = int((last["suppression"] > last["prediction"]).sum())
    if not last[SHARP].to_numpy().any():
        return Finding("No neuron of the last layer clearly raises or lowers a few tokens.", "roles_by_layer")
    text = "The paper's switch from raising to lowering tokens in the last layer is **not** seen in any seed."
    if led:
        text = (
            f"In the last layer more neurons lower tokens than raise them in **{led} of {count(len(last), 'seed')}**."
        )
    return Finding(text, "roles_by_layer")


def _agreement(table: pd.DataFrame) -> list[Finding]:
    """Whether matched neurons have the same role; nothing if no neuron with a role has a match."""
    known = table[(table["property"] == "role") & table["group"].isin(ROLES) & (table["pairs"] > 0)]
    if known.empty:
        return []
    share, chance = ((known[name] * known["pairs"]).sum() / known["pairs"].sum() for name in ("agreement", "chance"))
    beyond = (known["agreement"] > known["chance_high"]).all()
    text = "Roles recur across seeds" if beyond else "Roles do not clearly recur across seeds"
    text += f": **{percent(share, 0)}** of the neurons with a role match a neuron of the same role, by chance "
    return [Finding(f"{text}{percent(chance, 0)} would.", "roles_of_matches")]
