"""The ledger: each testable claim of the paper's that chapters 3 to 5 measure, and some of follow-up work, as one row, decided on a run's tables.

The claims stand beside the chapters that own them (lib/*_claims.py); a claim whose tables a run does not have stays in
the ledger, as one that this run cannot tell.
"""

import pandas as pd

from lib.chapters.circuits import claims as circuit_claims
from lib.chapters.families import claims as family_claims
from lib.chapters.interventions import claims as causal_claims
from lib.chapters.universality import claims as universality_claims
from lib.display.captions import count
from lib.display.claims import PAPER, VERDICTS, Claim, Evidence, unmeasured

CLAIMS: tuple[Claim, ...] = (
    *universality_claims.CLAIMS,
    *family_claims.CLAIMS,
    *circuit_claims.CLAIMS,
    *causal_claims.CLAIMS,
)
INTERVENTIONS = tuple(
    claim for claim in CLAIMS if set(claim.needs) & causal_claims.INTERVENTIONS
)  # what neurons change when the model runs
NEEDED = tuple(dict.fromkeys(name for claim in CLAIMS for name in claim.needs))


def ledger(evidence: Evidence, claims: tuple[Claim, ...] = CLAIMS) -> pd.DataFrame:
    """One row per claim: name, claim, published, value, low, high (NaN where there is none), here (the value with its
    uncertainty in words), verdict (one of VERDICTS), chapter, figure and source (whose claim it is)."""
    rows = []
    for claim in claims:
        if all(name in evidence.tables for name in claim.needs):
            measured = claim.measure(evidence)
        else:
            measured = unmeasured("not measured in this run")
        rows.append(
            {
                "name": claim.name,
                "claim": claim.claim,
                "published": claim.published,
                **measured._asdict(),
                "chapter": claim.chapter,
                "figure": claim.figure,
                "source": claim.source,
            }
        )
    return pd.DataFrame(rows)


def summary(table: pd.DataFrame) -> str:
    """Whose claims these are, and how many hold, do not hold and cannot be told, as a sentence."""
    holds, fails, unknown = (int((table["verdict"] == verdict).sum()) for verdict in VERDICTS)
    own, others = table["source"] == PAPER, table.loc[table["source"] != PAPER, "source"]
    whose = (
        f", {own.sum()} of the paper and {len(others)} of follow-up work ({', '.join(others.unique())}),"
        if len(others)
        else " of the paper"
    )
    return f"Of {count(len(table), 'testable claim')}{whose} {holds} {'holds' if holds == 1 else 'hold'} here, {fails} {'does' if fails == 1 else 'do'} not, and on {unknown} this run cannot tell."
