"""The ledger: one row for each claim of chapters 3 to 6, decided on a run's tables.

Most claims are the paper's, some of follow-up work. Each chapter owns its claims (lib/chapters/<chapter>/claims.py).
"""

import pandas as pd

from lib.chapters.circuits import claims as circuit_claims
from lib.chapters.families import claims as family_claims
from lib.chapters.interventions import claims as intervention_claims
from lib.chapters.universality import claims as universality_claims
from lib.display.captions import count
from lib.display.claims import PAPER, VERDICTS, Claim, Evidence, claim_rows

CHAPTERS = (universality_claims, family_claims, circuit_claims, intervention_claims)
CLAIMS: tuple[Claim, ...] = tuple(claim for chapter in CHAPTERS for claim in chapter.CLAIMS)
INTERVENTIONS = tuple(claim for claim in CLAIMS if set(claim.needs) & intervention_claims.INTERVENTIONS)
NEEDED = tuple(dict.fromkeys(name for claim in CLAIMS for name in claim.needs))


def ledger(evidence: Evidence, claims: tuple[Claim, ...] = CLAIMS) -> pd.DataFrame:
    """One row per claim, with the columns of `claim_rows`."""
    return claim_rows(evidence, claims)


def verdicts(table: pd.DataFrame) -> str:
    """How many of a ledger's claims hold, do not hold and cannot be decided, in words (Markdown)."""
    holds, fails, unknown = (int((table["verdict"] == verdict).sum()) for verdict in VERDICTS)
    return (
        f"**{holds}** {'holds' if holds == 1 else 'hold'}, {fails} {'does' if fails == 1 else 'do'} not hold, "
        f"and {unknown} cannot be decided"
    )


def summary(table: pd.DataFrame) -> str:
    """Whose claims these are, and their verdicts."""
    later = table.loc[table["source"] != PAPER, "source"]
    number = f"The report tests {count(len(table), 'claim')}"
    whose = f": {len(table) - len(later)} of the paper and {len(later)} of follow-up work ({', '.join(later.unique())})"
    return f"{number}{whose if len(later) else ' of the paper'}. Here {verdicts(table)}."
