"""The report's answer in five sentences, computed from a run's tables and its ledger (Markdown's ** for numbers).

What are universal neurons here, how much is that beyond chance, how do they differ, what do they respond to, what do they
do? A sentence whose tables the run does not have says so.
"""

import pandas as pd

from lib.chapters.circuits.roles import ROLES, role_counts
from lib.chapters.families import summary
from lib.chapters.families.scoring import UNEXPLAINED
from lib.chapters.universality import properties
from lib.display.captions import count, percent
from lib.display.claims import FAILS, HOLDS, UNKNOWN, Evidence
from lib.report import ledger


def answer(evidence: Evidence, table: pd.DataFrame) -> list[str]:
    """Five sentences; `table` is the run's ledger."""
    return [
        _how_many(evidence),
        _beyond_chance(evidence),
        _how_different(table),
        _what(evidence),
        _what_for(evidence, table),
    ]


def _how_many(evidence: Evidence) -> str:
    if "neurons_all_seeds" not in evidence.tables:
        return "How many neurons are universal was not measured in this run."
    shares = properties.reference_shares(evidence.tables["neurons_all_seeds"], evidence.threshold).set_index("seed")
    own, low, high = shares.loc[evidence.reference], shares["share"].min(), shares["share"].max()
    found = f"**{percent(own['share'])}** of the neurons of seed {evidence.reference} ({own['universal']:,.0f} of {own['neurons']:,.0f})"
    text = f"{found} {'is' if own['universal'] == 1 else 'are'} universal: seeds share them with an excess correlation above {evidence.threshold:g}"
    if len(shares) > 1:
        text += f"; with each of the {len(shares)} seeds as reference it is " + (
            percent(low) if low == high else f"{percent(low)} to {percent(high)}"
        )
    published = properties.PUBLISHED_SHARES["share"]
    return f"{text}, and in the paper's models {percent(published.min(), 1)} to {percent(published.max(), 1)}."


def _beyond_chance(evidence: Evidence) -> str:
    if not {"neurons_all_seeds", "matches_all_seeds"} <= set(evidence.tables):
        return "How well neurons match across seeds was not measured in this run."
    own = evidence.own("neurons_all_seeds")
    matches = evidence.own("matches_all_seeds")
    found = matches[matches["corr"] > 0]
    near = ((found["layer"] - found["match_layer"]).abs() <= 1).mean()
    return (
        f"A neuron's best match in another seed correlates **{own['mean_corr'].mean():.2f}** on average, where a randomly rotated basis gives "
        f"{own['mean_baseline'].mean():.2f}, and {percent(near, 0)} of the matches lie in the same layer or one beside it."
    )


def _how_different(table: pd.DataFrame) -> str:
    own = table[table["name"].str.startswith("property_")]
    holds, fails, unknown = (int((own["verdict"] == verdict).sum()) for verdict in (HOLDS, FAILS, UNKNOWN))
    return (
        f"Of the {len(own)} ways in which the paper finds universal neurons to differ from the rest of their layer, **{holds}** {'holds' if holds == 1 else 'hold'} here, {fails} "
        f"{'does' if fails == 1 else 'do'} not, and on {unknown} this run cannot tell."
    )


def _what(evidence: Evidence) -> str:
    if not {"families", "neurons_all_seeds"} <= set(evidence.tables):
        return "What neurons respond to was not measured in this run."
    rows = summary.with_excess(evidence.own("families"), evidence.tables["neurons_all_seeds"])
    counts = summary.family_counts(rows, evidence.threshold).set_index("family")
    explained = counts.drop(UNEXPLAINED)
    largest = explained[explained["all"] > 0].nlargest(2, "all")
    text = f"**{percent(explained['all'].sum() / len(rows), 0)}** of seed {evidence.reference}'s neurons respond to something that we can name better than random directions do"
    if len(largest):
        text += ", most often to " + " and to ".join(
            f"{row['label']} ({row['all']:,})" for _, row in largest.iterrows()
        )
    return f"{text}; of the {summary.TOP.removeprefix('top ')} with the largest excess {percent(explained[f'{summary.TOP} share'].sum(), 0)} do."


def _what_for(evidence: Evidence, table: pd.DataFrame) -> str:
    if "roles" in evidence.tables:
        roles = evidence.tables["roles"]
        ours, published, learned = (
            role_counts(roles, f"role_{cut}").groupby("seed")[list(ROLES)].sum().mean()
            for cut in ("calibrated", "published", "learned")
        )
        text = (
            f"By their weights **{ours['prediction']:,.0f}** neurons of a seed raise some tokens (prediction) and {ours['suppression']:,.0f} lower some (suppression) more "
            f"sharply than 99.9 % of random directions would, by the paper's cut {published['prediction']:,.0f} and {published['suppression']:,.0f}"
            + (
                f", and {learned['prediction']:,.0f} and {learned['suppression']:,.0f} if tokens that were never learned are left out"
                if roles["unlearned"].any()
                else ""
            )
        )
    else:
        text = "What neurons do was not measured in this run"
    causal = table[table["name"].isin([claim.name for claim in ledger.INTERVENTIONS])]
    holds = causal[causal["verdict"] == HOLDS]
    told = causal[causal["verdict"] != UNKNOWN]
    if "roles" in evidence.tables and len(told):
        text += f"; of {count(len(causal), 'claim')} on what neurons change when the model runs, {len(holds)} {'holds' if len(holds) == 1 else 'hold'}"
    return f"{text}."
