"""The ledger: one row for each claim of chapters 3 to 6 and 8, decided over a run's seeds (lib/display/claims.py).

Most claims are the paper's, some of follow-up work, some of this report. Each chapter measures its claims
(lib/chapters/<chapter>/claims.py); their statements are in lib/display/claims.yaml.
"""

import pandas as pd

from lib.base.errors import listed
from lib.chapters.circuits import claims as circuit_claims
from lib.chapters.families import claims as family_claims
from lib.chapters.interventions import claims as intervention_claims
from lib.chapters.same_function import claims as function_claims
from lib.chapters.universality import claims as universality_claims
from lib.display.captions import count
from lib.display.claims import (
    BY_CHANCE,
    CONSTRUCTED,
    PAPER,
    SIGNIFICANT,
    UNKNOWN,
    VERDICTS,
    Claim,
    Evidence,
    claim_rows,
)

CHAPTERS = (universality_claims, family_claims, circuit_claims, intervention_claims, function_claims)
CLAIMS: tuple[Claim, ...] = tuple(claim for chapter in CHAPTERS for claim in chapter.CLAIMS)
INTERVENTIONS = tuple(claim for claim in CLAIMS if set(claim.needs) & intervention_claims.INTERVENTIONS)
NEEDED = tuple(dict.fromkeys(name for claim in CLAIMS for name in claim.needs))
OWN = "this report"


def ledger(evidence: Evidence, untrained: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row per claim, with the columns of `claim_rows`; `untrained` has such rows of untrained models, by name."""
    return claim_rows(evidence, CLAIMS, untrained)


def summary(table: pd.DataFrame) -> str:
    """The verdicts of a ledger in words (Markdown), and how many that hold are no evidence about training."""
    holds, fails, unknown = (int((table["verdict"] == verdict).sum()) for verdict in VERDICTS)
    text = (
        f"**{holds}** of {count(len(table), 'claim')} {'holds' if holds == 1 else 'hold'} in this run. "
        f"{fails} {'does' if fails == 1 else 'do'} not hold, and on {unknown} this run cannot tell."
    )
    marked = {"hold by construction": CONSTRUCTED, "hold for untrained models too": BY_CHANCE}
    found = {words: int(table["mark"].str.contains(why, regex=False).sum()) for words, why in marked.items()}
    if any(found.values()):
        named = " and ".join(f"{number} {words}" for words, number in found.items() if number)
        text += f" Of those that hold, {named}: these are no evidence about training."
    return text


def sources(table: pd.DataFrame) -> str:
    """Whose claims these are, and how many of the decided ones are expected to be wrong."""
    later = table.loc[~table["source"].isin([PAPER, OWN]), "source"]
    own = int((table["source"] == OWN).sum())
    parts = [f"{len(table) - len(later) - own} of the paper"]
    parts += [f"{len(later)} of follow-up work ({', '.join(later.unique())})"] if len(later) else []
    parts += [f"{own} of this report"] if own else []
    decided = int((table["verdict"] != UNKNOWN).sum())
    return (
        f"The claims are {listed(parts)}. Of the {decided} decided, at most {SIGNIFICANT * decided:.1f} are expected "
        "to be wrong."
    )
