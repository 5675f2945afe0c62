"""The claims that chapter 06 tests: entropy, token-frequency and attention neurons, and sets of universal neurons."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from lib.chapters.interventions import heads, neuron_sets
from lib.chapters.interventions.candidates import CONTROL_OF, controls, entropy_candidates
from lib.chapters.interventions.captions import LEAST_ATTENTION, pair_name
from lib.chapters.interventions.single_neurons import FIXED_FREQUENCY, FROZEN_SCALE, at_largest_value, removed
from lib.display.captions import count, percent, signed, signed_percent
from lib.display.claims import FEWEST, Claim, Effects, Evidence, unmeasured

CHAPTER = "06_interventions"
INTERVENTIONS = {"fixed_activation", "mean_ablation", "query_paths", "ablations"}  # tables of effects on the model
NO_CANDIDATE = (
    "a seed in which no neuron of at least median norm writes into the null space beyond chance cannot be asked"
)


def _nats(value: float) -> str:
    return signed(value, 4)


def _times(value: float) -> str:
    return f"{value:.2f} times"


def _beside_controls(outcome: str, size: bool = False) -> Callable[[Evidence], Effects]:
    """Per seed the change of an outcome by the median candidate less that by the median control, or of its `size`."""

    def measure(evidence: Evidence) -> Effects:
        top = at_largest_value(evidence.tables["fixed_activation"])
        changes = top[f"{outcome}_change"].astype(float)
        medians = (changes.abs() if size else changes).groupby([top["seed"], top["group"]]).median().unstack()
        if not {"entropy", CONTROL_OF["entropy"]} <= set(medians):
            return unmeasured(NO_CANDIDATE)
        ours, others = medians["entropy"], medians[CONTROL_OF["entropy"]]
        numbers = top["group"].value_counts()
        details = (
            f"median candidate {_nats(ours.mean())}, median control {_nats(others.mean())}, held at "
            f"{top['value'].iloc[0]:g}; {count(numbers['entropy'], 'candidate')} and "
            f"{count(numbers[CONTROL_OF['entropy']], 'control')} in all seeds"
        )
        return Effects(ours - others, _nats, details, control=others, missing=NO_CANDIDATE)

    return measure


def _antipodal(evidence: Evidence) -> Effects:
    """Per seed the lowest cosine of a candidate with another neuron's w_out, beside as many controls."""
    lowest, beside = {}, {}
    for seed, own in evidence.tables["causal_weights"].groupby("seed"):
        chosen = entropy_candidates(own)
        lowest[seed] = chosen["partner_cos"].min()
        beside[seed] = controls(own, chosen, chosen, 1)["partner_cos"].min()
    details = "in each seed the lowest of its candidates"
    return Effects(
        pd.Series(lowest, dtype=float), signed, details, pd.Series(beside, dtype=float), missing=NO_CANDIDATE
    )


def _more_removed(outcome: str, variant: str, group: str, missing: str) -> Callable[[Evidence], Effects]:
    """Per seed Cliff's delta: does a variant remove more of an effect from candidates than from controls?"""

    def measure(evidence: Evidence) -> Effects:
        table, groups = evidence.tables["mean_ablation"], (group, CONTROL_OF[group])
        found = pd.DataFrame(
            {seed: removed(own, outcome, variant, groups)._asdict() for seed, own in table.groupby("seed")}
        ).T
        if found.empty or found["delta"].isna().all():
            return unmeasured(missing)
        ours, others = (signed_percent(found[name].astype(float).mean()) for name in ("candidates", "controls"))
        own, beside = (sum(numbers) for numbers in zip(*found["neurons"], strict=True))
        details = (
            f"{ours} of the median candidate's effect and {others} of the median control's; {own} candidates and "
            f"{beside} controls with an effect beyond two standard errors"
        )
        return Effects(found["delta"].astype(float), signed, details, missing=missing)

    return measure


def _path(outcome: str) -> Callable[[Evidence], Effects]:
    """Per seed the correlation of a deactivation neuron's activation with what cutting its path changes.

    The pair is that of the largest score by weights, among pairs whose head attends to BOS.
    """

    def measure(evidence: Evidence) -> Effects:
        paths = evidence.tables["query_paths"]
        found, named = {}, {}
        for seed, rows in paths[paths["role"] == "deactivation"].groupby("seed"):
            pairs = heads.ablation_summary(rows)  # in the order of their scores
            pairs = pairs[(pairs["bos"] >= LEAST_ATTENTION) & pairs[outcome].notna()]
            if len(pairs):
                found[seed], named[seed] = pairs[outcome].iloc[0], pair_name(pairs.iloc[0])
        least = percent(LEAST_ATTENTION, 0)
        missing = f"a seed whose best pairs' heads give BOS less than {least} of their attention cannot be asked"
        details = f"{evidence.reference}: {named[evidence.reference]}" if evidence.reference in named else ""
        return Effects(pd.Series(found, dtype=float), signed, details, missing=missing)

    return measure


def _sink(evidence: Evidence) -> Effects:
    medians = evidence.tables["value_norms"].groupby("seed")[["ratio", "ratio_without_bias"]].median()
    details = f"in the median head; {_times(medians['ratio_without_bias'].mean())} without the value bias b_V"
    return Effects(medians["ratio"], _times, details)


def _compared(evidence: Evidence) -> pd.DataFrame:
    """`neuron_sets.comparisons` of mean ablations, of seeds with at least FEWEST universal neurons to ablate."""
    compared = neuron_sets.comparisons(evidence.tables["ablations"]).query("kind == 'mean'")
    return compared[compared.groupby("seed")["neurons"].transform("sum") >= FEWEST]


_TOO_FEW = f"a seed with fewer than {FEWEST} universal neurons beside random sets cannot be asked"


def _more_than_random(evidence: Evidence) -> Effects:
    compared = evidence.once(_compared)
    if compared.empty:
        return unmeasured(_TOO_FEW)
    below, number = compared["loss_change_below"].sum(), compared["draws"].sum()
    low, high = compared["power_low"].min(), compared["power_high"].max()
    details = (
        f"of the random sets cost less loss: {below:,} of {number:,}, whose power is {low:.2f} to {high:.2f} times "
        f"their set's"
    )
    return Effects(neuron_sets.shares_below(compared), signed_percent, details, missing=_TOO_FEW)


def _first_layer_most(evidence: Evidence) -> Effects:
    compared = evidence.once(_compared)
    lead = neuron_sets.first_layer_lead(compared) if len(compared) else pd.Series(dtype=float)
    missing = f"{_TOO_FEW}, nor one without any in the first layer and another"
    if lead.empty:
        return unmeasured(missing)
    first = compared[compared["layer"] == 0].set_index("seed")["loss_change_excess"].reindex(lead.index)
    details = f"nats more than the layer that comes next; beyond its random sets layer 0 costs {_nats(first.mean())}"
    parts = neuron_sets.family_parts(evidence.tables["ablations"])
    position = parts[(parts["family"] == "position") & np.isfinite(parts["share"].astype(float))]
    if len(position):
        share = percent(position["share"].mean(), 0)
        details += f", of which position neurons alone make {share} ({count(len(position), 'seed')})"
    return Effects(lead, _nats, details, missing=missing)


_NO_EFFECT = "a seed without a candidate and a control whose effect is beyond two standard errors cannot be asked"
_FIXED, _ABLATED, _PATHS, _SETS = (("fixed_activation",), ("mean_ablation",), ("query_paths",), ("ablations",))
_THROUGH_SCALE = _more_removed("entropy", FROZEN_SCALE, "entropy", _NO_EFFECT)
_ALONG_FREQUENCY = _more_removed("kl_unigram", FIXED_FREQUENCY, "frequency", _NO_EFFECT)

CLAIMS = (
    Claim("entropy_scale", CHAPTER, _FIXED, _beside_controls("scale")),
    Claim("entropy_entropy", CHAPTER, _FIXED, _beside_controls("entropy")),
    Claim("entropy_order", CHAPTER, _FIXED, _beside_controls("reciprocal_rank", size=True)),
    Claim("antipodal", CHAPTER, ("causal_weights",), _antipodal),
    Claim("entropy_through_scale", CHAPTER, _ABLATED, _THROUGH_SCALE),
    Claim("frequency_direction", CHAPTER, _ABLATED, _ALONG_FREQUENCY),
    Claim("deactivation_bos", CHAPTER, _PATHS, _path("bos_change_corr")),
    Claim("deactivation_norm", CHAPTER, _PATHS, _path("norm_change_corr")),
    Claim("bos_resting", CHAPTER, ("value_norms",), _sink),
    Claim("ablation_universal", CHAPTER, _SETS, _more_than_random),
    Claim("ablation_first_layer", CHAPTER, _SETS, _first_layer_most),
)
