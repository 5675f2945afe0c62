"""The report's answer in five statements, computed from a run's tables and its ledger (Markdown's ** for numbers).

How many neurons are universal, how far beyond chance level, how they differ, what they respond to, what they do. A
share stands beside the share that chance gives.
"""

import numpy as np
import pandas as pd

from lib.chapters.circuits.roles import NULL_QUANTILE, PUBLISHED_CUTS
from lib.chapters.families import summary
from lib.chapters.families.scoring import CHANCE_QUANTILE, UNEXPLAINED
from lib.chapters.universality import nulls, properties
from lib.display.captions import percent
from lib.display.claims import HOLDS, UNKNOWN, Evidence
from lib.report import ledger

NEEDED = ("neurons_all_seeds", "matches_all_seeds", "families", "roles", "nulls")


def answer(evidence: Evidence, table: pd.DataFrame) -> list[str]:
    """Five statements of one to three sentences; `table` is the run's ledger. One without its tables says so."""
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


def _how_many(evidence: Evidence, table: pd.DataFrame) -> str:
    shares = properties.reference_shares(evidence.tables["neurons_all_seeds"]).set_index("seed")
    own, row = shares.loc[evidence.reference], table.set_index("name").loc["universal_share"]
    every = f"With every seed as reference it is {row['here'].split(';')[0]}; in" if row["seeds"] else "In"
    published = properties.PUBLISHED_SHARES["share"]
    verb, their = ("is", "its") if own["universal"] == 1 else ("are", "their")
    return (
        f"**{percent(own['share'])}** of the neurons of seed {evidence.reference} "
        f"({own['universal']:,.0f} of {own['neurons']:,.0f}) {verb} universal: {their} excess correlation is above "
        f"{evidence.threshold:g}. {every} the paper's models (at 0.5) "
        f"{percent(published.min(), 1)} to {percent(published.max(), 1)}."
    )


def _beyond_chance(evidence: Evidence, _table: pd.DataFrame) -> str:
    own, matches = evidence.own("neurons_all_seeds"), evidence.own("matches_all_seeds")
    found = matches[matches["corr"] > 0]
    own_place, match_place = properties.depth_columns(found)
    near = ((found[own_place] - found[match_place]).abs() <= 1).mean()
    chance = near_by_chance(found[own_place], int(found[[own_place, match_place]].max().max()) + 1)
    place, _ = properties.place_words(own_place == "depth")
    text = (
        f"On average, a neuron's best match in another seed correlates at **{own['mean_corr'].mean():.2f}**, against "
        f"{own['mean_baseline'].mean():.2f} in a randomly rotated basis. "
        f"{percent(near, 0)} of the matches lie in the same or an adjacent {place}, against {percent(chance, 0)} by "
        "chance."
    )
    return f"{text} {nulls.survival_sentence(evidence.tables['nulls'])}" if "nulls" in evidence.tables else text


def near_by_chance(places: pd.Series, number: int) -> float:
    """The share of matches in the same or an adjacent place if each lay in one of `number` places at random."""
    within = np.minimum(places + 1, number - 1) - np.maximum(places - 1, 0) + 1
    return float((within / number).mean())


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
        f"of the report's labels above the chance level, which {percent(1 - CHANCE_QUANTILE, 0)} of random directions "
        f"pass{named}. Of the {summary.TOP} by excess correlation, "
        f"{percent(explained[f'{summary.TOP} share'].sum(), 0)} do."
    )


def _what_they_do(evidence: Evidence, table: pd.DataFrame) -> str:
    roles = evidence.tables["roles"]
    peaked, published = (
        roles[column].isin(["prediction", "suppression"]).mean() for column in ("role_learned", "role_published")
    )
    text = (
        f"**{percent(peaked, 1)}** of the neurons write a more peaked pattern over the learned tokens than "
        f"{percent(NULL_QUANTILE, 1)} of random directions; {percent(published)} have the paper's kurtosis of "
        f"{PUBLISHED_CUTS.kurtosis:g}."
    )
    causal = table[table["name"].isin([claim.name for claim in ledger.INTERVENTIONS])]
    if (causal["verdict"] == UNKNOWN).all():
        return text
    held = causal[causal["verdict"] == HOLDS]
    text += (
        f" Of {len(causal)} tested effects on the running model, {len(held)} {'holds' if len(held) == 1 else 'hold'}"
    )
    marked = int((held["mark"] != "").sum())
    return f"{text}, {marked} of them by construction or for untrained models too." if marked else f"{text}."
