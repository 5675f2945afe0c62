"""Chapter 6's claims by seed, written anew with plain loops."""

import pandas as pd


def interventions(tables: dict[str, pd.DataFrame]) -> dict[str, dict[str, float]]:
    return {}
