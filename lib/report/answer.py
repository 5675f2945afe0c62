"""The report's answer in seven statements, computed from a run's tables and its ledger (Markdown's ** for numbers).

How many neurons are universal, how far beyond chance level, how they differ, what they respond to, what they do. A
share stands beside the share that chance gives; no sentence has more than two numbers.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from lib.base.errors import listed
from lib.chapters.circuits.roles import NULL_QUANTILE
from lib.chapters.families import summary
from lib.chapters.families.scoring import CHANCE_QUANTILE, UNEXPLAINED
from lib.chapters.same_function import summary as function
from lib.chapters.universality import nulls, properties
from lib.display.captions import count, percent, signed_percent
from lib.display.claims import HOLDS, UNKNOWN, Evidence
from lib.display.findings import Finding
from lib.report import ledger

NEEDED = ("neurons_all_seeds", "matches_all_seeds", "families", "roles", "nulls", "ladder", "transplants")
PUBLISHED_LAYERS, PUBLISHED_WIDTH, PUBLISHED_TOKENS = 12, 3072, 100_000_000  # the least of the paper's models


def answer(evidence: Evidence, table: pd.DataFrame) -> list[Finding]:
    """Seven statements of one to three sentences; `table` is the run's ledger. One without its tables says so."""
    statements = (
        ("How many neurons are universal", ("neurons_all_seeds",), _how_many, "figure_02a_11_distributions"),
        ("How well neurons match", ("neurons_all_seeds", "matches_all_seeds"), _beyond_chance, "correlation_by_layer"),
        ("How universal neurons differ", (), _how_different, "figure_03_percentiles"),
        ("What neurons respond to", ("families", "neurons_all_seeds"), _what_they_respond_to, "family_counts"),
        ("What neurons do by their weights", ("roles",), _what_they_do, "figure_06ab_moments"),
        ("What changing them does", (), _what_interventions_say, "ablation_of_universal_neurons"),
        ("What another seed has of a neuron", ("ladder", "transplants"), _what_another_seed_has, "ladder"),
    )
    return [
        Finding(make(evidence, table), figure)
        if all(name in evidence.tables for name in needs)
        else Finding(f"{what} was not measured in this run.")
        for what, needs, make, figure in statements
    ]


def _what_another_seed_has(evidence: Evidence, _table: pd.DataFrame) -> str:
    ladder, transplants = (evidence.tables[name] for name in ("ladder", "transplants"))
    own = function.own_rows(ladder, evidence.reference)
    shares = function.class_shares(own[own["sampled"]], own["seed"]).loc[evidence.reference]
    found = function.means(own).loc[evidence.reference]
    text = (
        f"**{percent(shares['twin'], 1)}** of seed {evidence.reference}'s neurons have a twin in another seed, and of "
        f"{percent(shares['own'], 0)} no linear map finds a tenth of the variance on the text used. All neurons of a "
        f"layer predict at least {percent(found['all'], 0)} of a neuron's variance, in a rotated basis "
        f"{percent(found['null_all'], 0)}."
    )
    kept = function.recovered_by(transplants, "match").mean()
    if not np.isfinite(kept):
        return text
    second = function.recovered_by(transplants, "second").mean()
    text += f" With their best matches in the place of universal neurons, **{signed_percent(kept)}** of the loss that "
    return text + f"ablating them costs is recovered, and with the second-best {signed_percent(second)}."


def why_fewer(evidence: Evidence, shapes: Mapping[str, tuple[int, int]], tokens: int | None) -> str:
    """Why a share below the published ones is no surprise, in a sentence; empty where it is not below or nothing
    known explains it. `shapes` has layers and neurons a layer of each seed."""
    if "neurons_all_seeds" not in evidence.tables or not shapes:
        return ""
    share = evidence.own("neurons_all_seeds")["is_universal"].mean()
    if not share < properties.PUBLISHED_SHARES["share"].min():
        return ""
    layers, width = (max(values) for values in zip(*shapes.values(), strict=True))
    words = {"fewer": layers < PUBLISHED_LAYERS, "narrower": width < PUBLISHED_WIDTH}
    smaller = " and ".join(word for word, holds in words.items() if holds)
    reasons = [f"have {smaller} layers"] if smaller else []
    reasons += ["are compared on less text"] if tokens is not None and tokens < PUBLISHED_TOKENS else []
    return f"A share below the paper's is to be expected: these models {listed(reasons)}." if reasons else ""


def _how_many(evidence: Evidence, table: pd.DataFrame) -> str:
    shares = properties.reference_shares(evidence.tables["neurons_all_seeds"]).set_index("seed")
    own, row = shares.loc[evidence.reference], table.set_index("name").loc["universal_share"]
    verb = "is" if own["universal"] == 1 else "are"
    text = (
        f"**{percent(own['share'])}** of seed {evidence.reference}'s neurons, {own['universal']:,.0f} in all, {verb} "
        "universal."
    )
    if row["seeds"] > 1:
        text += f" With every seed as reference it is {percent(row['value'])} on average."
    published = properties.PUBLISHED_SHARES["share"]
    return f"{text} In the paper's models it is {percent(published.min(), 1)} to {percent(published.max(), 1)}."


def _beyond_chance(evidence: Evidence, table: pd.DataFrame) -> str:
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
    marked = table.set_index("name")["mark"].reindex(["excess", "depth"])
    text += " Untrained models exceed chance in both, too." if marked.fillna("").ne("").all() else ""
    return f"{text} {nulls.survival_sentence(evidence.tables['nulls'])}" if "nulls" in evidence.tables else text


def near_by_chance(places: pd.Series, number: int) -> float:
    """The share of matches in the same or an adjacent place if each lay in one of `number` places at random."""
    within = np.minimum(places + 1, number - 1) - np.maximum(places - 1, 0) + 1
    return float((within / number).mean())


def _how_different(_evidence: Evidence, table: pd.DataFrame) -> str:
    own = table[table["name"].str.startswith("property_")]
    held, unknown = (int((own["verdict"] == verdict).sum()) for verdict in (HOLDS, UNKNOWN))
    text = f"Of {len(own)} differences that the paper finds between universal neurons and the rest of their layer, "
    text += f"**{held}** {'holds' if held == 1 else 'hold'} here."
    return text + _undecided(unknown)


def _undecided(number: int) -> str:
    return f" {number} {'is' if number == 1 else 'are'} undecided." if number else ""


def _what_they_respond_to(evidence: Evidence, _table: pd.DataFrame) -> str:
    rows = summary.with_excess(evidence.own("families"), evidence.tables["neurons_all_seeds"])
    explained = summary.family_counts(rows).set_index("family").drop(UNEXPLAINED)
    largest = explained[explained["all"] > 0].nlargest(2, "all")
    named = f" The largest kinds of label are {listed(largest['label'])}." if len(largest) > 1 else ""
    top = percent(explained[f"{summary.TOP} share"].sum(), 0)
    return (
        f"A label explains **{percent(explained['all'].sum() / len(rows), 0)}** of seed {evidence.reference}'s neurons "
        f"beyond the chance level, which {percent(1 - CHANCE_QUANTILE, 0)} of rotated neurons pass. "
        f"It explains {top} of the {summary.TOP} by excess correlation.{named}"
    )


def _what_they_do(evidence: Evidence, _table: pd.DataFrame) -> str:
    peaked = evidence.tables["roles"]["role_learned"].isin(["prediction", "suppression"]).mean()
    return (
        f"By their weights **{percent(peaked, 1)}** of the neurons raise or lower a few tokens more sharply than "
        f"{percent(NULL_QUANTILE, 1)} of random directions."
    )


def _what_interventions_say(_evidence: Evidence, table: pd.DataFrame) -> str:
    """How many claims on the changed model are decided; that none was tested where all are unknown."""
    causal = table[table["name"].isin([claim.name for claim in ledger.INTERVENTIONS])]
    if (causal["verdict"] == UNKNOWN).all():
        return "No effect of changing neurons in the running model is decided."
    held, unknown = causal[causal["verdict"] == HOLDS], int((causal["verdict"] == UNKNOWN).sum())
    text = f"Of {count(len(causal), 'effect')} tested by changing neurons in the running model, **{len(held)}** "
    text += f"{'holds' if len(held) == 1 else 'hold'}."
    text += _undecided(unknown)
    marked = int((held["mark"] != "").sum())
    return f"{text} {marked} of them by construction or for untrained models too." if marked else text
