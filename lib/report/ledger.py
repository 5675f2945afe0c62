"""The ledger: one row for each claim of chapters 3 to 6, decided over a run's seeds (lib/display/claims.py).

Most claims are the paper's, some of follow-up work, some of this report. Each chapter measures its claims
(lib/chapters/<chapter>/claims.py); their statements are in lib/display/claims.yaml.
"""

import pandas as pd

from lib.chapters.circuits import claims as circuit_claims
from lib.chapters.families import claims as family_claims
from lib.chapters.interventions import claims as intervention_claims
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

CHAPTERS = (universality_claims, family_claims, circuit_claims, intervention_claims)
CLAIMS: tuple[Claim, ...] = tuple(claim for chapter in CHAPTERS for claim in chapter.CLAIMS)
INTERVENTIONS = tuple(claim for claim in CLAIMS if set(claim.needs) & intervention_claims.INTERVENTIONS)
NEEDED = tuple(dict.fromkeys(name for claim in CLAIMS for name in claim.needs))
OWN = "this report"


def ledger(evidence: Evidence, untrained: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row per claim, with the columns of `claim_rows`; `untrained` has such rows of untrained models, by name."""
    return claim_rows(evidence, CLAIMS, untrained)


def verdicts(table: pd.DataFrame) -> str:
    """How many of a ledger's claims hold, do not hold and cannot be decided, in words (Markdown)."""
    holds, fails, unknown = (int((table["verdict"] == verdict).sum()) for verdict in VERDICTS)
    return (
        f"**{holds}** {'holds' if holds == 1 else 'hold'}, {fails} {'does' if fails == 1 else 'do'} not hold, "
        f"and {unknown} cannot be decided"
    )


def summary(table: pd.DataFrame) -> str:
    """Whose claims these are, their verdicts, and how many verdicts are no evidence or expected to be wrong."""
    later = table.loc[~table["source"].isin([PAPER, OWN]), "source"]
    own = int((table["source"] == OWN).sum())
    parts = [f"{len(table) - len(later) - own} of the paper"]
    parts += [f"{len(later)} of follow-up work ({', '.join(later.unique())})"] if len(later) else []
    parts += [f"{own} of this report"] if own else []
    whose = f": {', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else " of the paper"
    text = f"The report tests {count(len(table), 'claim')}{whose}. Here {verdicts(table)}."
    marked = {"hold by construction": CONSTRUCTED, "hold for untrained models too": BY_CHANCE}
    found = {words: int(table["mark"].str.contains(why, regex=False).sum()) for words, why in marked.items()}
    if any(found.values()):
        named = " and ".join(f"{number} {words}" for words, number in found.items() if number)
        text += f" Of those that hold, {named}: these are no evidence about training."
    decided = int((table["verdict"] != UNKNOWN).sum())
    return f"{text} Of the {decided} decided, at most {SIGNIFICANT * decided:.1f} are expected to be wrong."
