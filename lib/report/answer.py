"""The report's answer in five statements, computed from a run's tables and its ledger (Markdown's ** for numbers).

How many neurons are universal, how far beyond chance level, how they differ, what they respond to, what they do.
"""

import pandas as pd

from lib.chapters.families import summary
from lib.chapters.families.scoring import UNEXPLAINED
from lib.chapters.universality import properties
from lib.display.captions import percent
from lib.display.claims import HOLDS, UNKNOWN, Evidence
from lib.report import ledger


def answer(evidence: Evidence, table: pd.DataFrame) -> list[str]:
    """Five statements of one or two sentences; `table` is the run's ledger. A statement without its tables says so."""
    statements = (
        ("How many neurons are universal", ("neurons_all_seeds",), _how_many),
        ("How well neurons match across seeds", ("neurons_all_seeds", "matches_all_seeds"), _beyond_chance),
        ("How universal neurons differ", (), _how_different),
        ("What neurons respond to", ("families", "neurons_all_seeds"), _what_they_respond_to),
        ("What neurons do", ("roles",), _what_they_do),
    )
    return [
        make(evidence, table)
        if all(name in evidence.tables for name in needs)
        else f"{what} was not measured in this run."
        for what, needs, make in statements
    ]


def _how_many(evidence: Evidence, _table: pd.DataFrame) -> str:
    shares = properties.reference_shares(evidence.tables["neurons_all_seeds"]).set_index("seed")
    own, low, high = shares.loc[evidence.reference], percent(shares["share"].min()), percent(shares["share"].max())
    published = properties.PUBLISHED_SHARES["share"]
    verb, their = ("is", "its") if own["universal"] == 1 else ("are", "their")
    every_seed = f"With each of the {len(shares)} seeds as reference the share is " if len(shares) > 1 else ""
    every_seed += (low if low == high else f"{low} to {high}") + "; " if every_seed else ""
    return (
        f"**{percent(own['share'])}** of the neurons of seed {evidence.reference} "
        f"({own['universal']:,.0f} of {own['neurons']:,.0f}) {verb} universal: {their} excess correlation is above "
        f"{evidence.threshold:g}. {every_seed}{'in' if every_seed else 'In'} the paper's models (at 0.5) it is "
        f"{percent(published.min(), 1)} to {percent(published.max(), 1)}."
    )


def _beyond_chance(evidence: Evidence, _table: pd.DataFrame) -> str:
    own, matches = evidence.own("neurons_all_seeds"), evidence.own("matches_all_seeds")
    found = matches[matches["corr"] > 0]
    own_place, match_place = properties.depth_columns(found)
    near = ((found[own_place] - found[match_place]).abs() <= 1).mean()
    place, _ = properties.place_words(own_place == "depth")
    return (
        f"On average, a neuron's best match in another seed correlates at **{own['mean_corr'].mean():.2f}**, against "
        f"{own['mean_baseline'].mean():.2f} in a randomly rotated basis. "
        f"{percent(near, 0)} of the matches lie in the same or an adjacent {place}."
    )


def _how_different(_evidence: Evidence, table: pd.DataFrame) -> str:
    own = table[table["name"].str.startswith("property_")]
    return (
        f"The paper finds {len(own)} differences between universal neurons and the rest of their layer. "
        f"Here {ledger.verdicts(own)}."
    )


def _what_they_respond_to(evidence: Evidence, _table: pd.DataFrame) -> str:
    rows = summary.with_excess(evidence.own("families"), evidence.tables["neurons_all_seeds"])
    explained = summary.family_counts(rows).set_index("family").drop(UNEXPLAINED)
    largest = explained[explained["all"] > 0].nlargest(2, "all")
    most = " and ".join(f"{row['label']} ({row['all']:,})" for _, row in largest.iterrows())
    named = f", most often {most}" if most else ""
    return (
        f"**{percent(explained['all'].sum() / len(rows), 0)}** of seed {evidence.reference}'s neurons respond to one "
        f"of the report's labels above the chance level{named}. Of the {summary.TOP} by excess correlation, "
        f"{percent(explained[f'{summary.TOP} share'].sum(), 0)} do."
    )


def _what_they_do(evidence: Evidence, table: pd.DataFrame) -> str:
    share = evidence.tables["roles"]["role_learned"].isin(["prediction", "suppression"]).mean()
    found = f"About **one neuron in {round(1 / share):,}**" if share else "**No** neuron"
    text = f"{found} clearly raises or lowers the probability of a few tokens."
    causal = table[table["name"].isin([claim.name for claim in ledger.INTERVENTIONS])]
    if (causal["verdict"] == UNKNOWN).all():
        return text
    holds = int((causal["verdict"] == HOLDS).sum())
    return f"{text} Of {len(causal)} tested effects on the running model, {holds} {'holds' if holds == 1 else 'hold'}."
