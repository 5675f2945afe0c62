"""What sets of neurons are chosen by: a run's neurons with chapter 4's families and position information.

Apart from `tables`, so that an edit of how families are scored repeats no ablation of the same sets.
"""

import pandas as pd

from lib.chapters.families.tables import open_families
from lib.chapters.interventions.inputs import KEY
from lib.collect.grouped_tables import RECORD
from lib.run import Run


def neurons_with_families(run: Run) -> pd.DataFrame:
    """neurons_all_seeds with `family` and `position_information` (bits); both NaN in a run without sums by label."""
    neurons = run.table("neurons_all_seeds")
    if not run.has("families") and run.recorded(RECORD):
        open_families(run)
    if not run.has("families"):
        return neurons.assign(family=None, position_information=float("nan"))
    families = run.table("families")[[*KEY, "family", "position_information"]]
    return neurons.merge(families, on=KEY, how="left", validate="one_to_one")
