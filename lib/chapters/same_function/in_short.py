"""The findings that open chapter 08, from its tables."""

import pandas as pd
from IPython.display import HTML

from lib.base.errors import capital
from lib.chapters.same_function import captions_map, claims, summary
from lib.display.captions import percent, signed_percent
from lib.display.claims import Evidence
from lib.display.findings import Finding, in_short
from lib.display.over_seeds import mean_and_interval


def same_function(ladder: pd.DataFrame, transplants: pd.DataFrame, mapped: pd.DataFrame, reference: str) -> HTML:
    """From `tables.neuron_table`, `tables.transplant_table` and `residual_map`."""
    return in_short([basis(ladder, reference), replaced(transplants, reference), _mapped(mapped)])


def left_out(reason: str) -> HTML:
    """For models without interventions."""
    return in_short([Finding(f"**Left out** in this run. {capital(reason)}")])


def basis(ladder: pd.DataFrame, reference: str) -> Finding:
    """How much of a neuron's variance is in one neuron of another seed, in its layer, and nowhere."""
    own = summary.own_rows(ladder, reference)
    found = summary.means(own).loc[reference]
    text = (
        f"Of a neuron's variance, another seed has **{percent(found['one'], 0)}** in one neuron and "
        f"at least **{percent(found['all'], 0)}** in all neurons of a layer. In a rotated basis these are "
        f"{percent(found['null_one'], 0)} and {percent(found['null_all'], 0)}. "
    )
    half, rotated = summary.without_twin(own[own["sampled"]])
    text += (
        f"Of the neurons without a twin, **{percent(half, 1)}** can be predicted by half or more, and "
        f"{percent(rotated, 1)} from a random basis."
    )
    return Finding(text, "ladder")


def replaced(transplants: pd.DataFrame, reference: str) -> Finding:
    """How much of the loss matches recover, beside random partners."""
    effects = claims.recovered(Evidence({"transplants": transplants}, reference, 0.0))
    if not effects.values.notna().any():
        return Finding("No universal neurons cost enough loss to be replaced by their matches.", "transplants")
    value, interval = mean_and_interval(effects, "transplant_matches")
    second, random = (signed_percent(summary.recovered_by(transplants, name).mean()) for name in ("second", "random"))
    text = (
        f"With their best matches in the place of universal neurons, **{value}** of the loss that ablation costs is "
        f"recovered{interval}. The second-best matches recover {second}, random neurons like the matches {random} "
        "(near 0 by construction)."
    )
    return Finding(text, "transplants")


def _mapped(mapped: pd.DataFrame) -> Finding:
    text = "A rotation fitted on embeddings and unembeddings, with no activations, puts the match first for "
    text += f"**{percent(captions_map.found_by_all(mapped), 0)}** of the neurons"
    universal = captions_map.found_by_universal(mapped)
    text += f" (**{percent(universal, 0)}** of the universal ones)" if universal == universal else ""
    return Finding(f"{text} by their weights.", "residual_map")
