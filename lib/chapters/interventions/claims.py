"""The claims that the second half of chapter 5 tests, the paper's and those of follow-up work: entropy, token-frequency and attention neurons; sets of universal ones."""

import numpy as np
import pandas as pd
from scipy.stats import norm

from lib.chapters.interventions import heads, neuron_sets
from lib.chapters.interventions.candidates import entropy_candidates
from lib.chapters.interventions.captions import RESTING, at_top, name_of, taken
from lib.chapters.interventions.single_neurons import FIXED_FREQUENCY, FROZEN_SCALE
from lib.display.captions import count, p_words, percent, signed, signed_percent
from lib.display.claims import (
    FEWEST,
    HOLDS,
    SIGNIFICANT,
    UNKNOWN,
    Claim,
    Evidence,
    Measured,
    decided,
    median_interval,
    over_seeds,
    unmeasured,
)

CHAPTER = "06_interventions"
WEIGHTS, FIXED, ABLATED, PATHS, NORMS, SETS = (
    "causal_weights",
    "fixed_activation",
    "mean_ablation",
    "query_paths",
    "value_norms",
    "ablations",
)
INTERVENTIONS = {FIXED, ABLATED, PATHS, SETS}
FOLLOW_UP, PERSISTENCE = "arXiv 2406.16254", "arXiv 2508.00903"
ANTIPODAL, STRONG = -0.5, 0.5  # cosine and correlation from which a claim is granted
ATTENDED = 0.1  # of a head's attention to BOS, below which it has none to lose


def _groups(evidence: Evidence) -> tuple[pd.DataFrame, pd.DataFrame]:
    top = at_top(evidence.tables[FIXED])
    return top[top["group"] == "entropy"], top[top["group"] == "control"]


def _beyond_controls(outcome: str, digits: int):
    """The candidate that raises an outcome most against the control that changes it most, with two standard errors.

    Among all of them a candidate is likely enough to come first by chance, so that more candidates must go beyond every control than
    a random order would put there.
    """

    def measure(evidence: Evidence) -> Measured:
        own, controls = _groups(evidence)
        if own.empty or controls.empty:
            return unmeasured("no candidate or no control")
        best, chance = own.loc[own[f"{outcome}_change"].idxmax()], controls[f"{outcome}_change"].abs().max()
        change, half = best[f"{outcome}_change"], 2 * best[f"{outcome}_error"]
        beyond = int((own[f"{outcome}_change"] > chance).sum())
        p_value = float(np.prod([(len(own) - first) / (len(own) + len(controls) - first) for first in range(beyond)]))
        here = (
            f"{name_of(best)}, the best of {count(len(own), 'candidate')}: {signed(change, digits)} ± {half:.{digits}f} held at {best['value']:g}; "
            f"{count(len(controls), 'control')} up to {chance:.{digits}f} in size, {beyond} of the candidates beyond all of them ({p_words(p_value)} in a random order)"
        )
        told = decided(change - half, change + half, chance)
        return Measured(
            float(change),
            float(change - half),
            float(change + half),
            here,
            UNKNOWN if told == HOLDS and p_value >= SIGNIFICANT else told,
        )

    return measure


def _order(evidence: Evidence) -> Measured:
    """Change of reciprocal rank of the candidate of largest entropy change, in size, against the median control's.

    Half of all controls are below their median, so that it must also be less than nearly all controls'.
    """
    own, controls = _groups(evidence)
    if own.empty or controls.empty:
        return unmeasured("no candidate or no control")
    best, chance = own.loc[own["entropy_change"].idxmax()], controls["reciprocal_rank_change"].abs().median()
    change, half = abs(best["reciprocal_rank_change"]), 2 * best["reciprocal_rank_error"]
    less = int((controls["reciprocal_rank_change"].abs() <= change).sum())
    here = (
        f"{name_of(best)}, of {count(len(own), 'candidate')} the one that raises entropy most: {signed(best['reciprocal_rank_change'], 4)} ± {half:.4f}; "
        f"median control {chance:.4f} in size, and {less} of {len(controls)} controls move it no more than the candidate does"
    )
    told = decided(change - half, change + half, chance, above=False)
    rare = (less + 1) / (len(controls) + 1) < SIGNIFICANT
    return Measured(
        float(change), float(change - half), float(change + half), here, UNKNOWN if told == HOLDS and not rare else told
    )


def _antipodal(evidence: Evidence) -> Measured:
    cosines = {
        seed: entropy_candidates(own)["partner_cos"]
        for seed, own in evidence.tables[WEIGHTS].groupby("seed", sort=False)
    }
    found = over_seeds(
        pd.Series({seed: own.min() for seed, own in cosines.items()}, dtype=float), ANTIPODAL, False, signed
    )
    return found._replace(
        here=f"{found.here}; in each seed the lowest of {count(max(map(len, cosines.values())), 'candidate')}"
    )


def _more_taken(outcome: str, variant: str, group: str):
    """Does a variant take away more of an effect from candidates than from controls? Mann–Whitney over neurons."""

    def measure(evidence: Evidence) -> Measured:
        found = taken(evidence.tables[ABLATED], outcome, variant, group)
        if np.isnan(found.p_value):
            return unmeasured("no candidate or no control with an effect")
        here = f"{signed_percent(found.ours)} of the median candidate's effect, {signed_percent(found.others)} of the median control's ({p_words(found.p_value)})"
        return Measured(
            float(found.delta),
            np.nan,
            np.nan,
            here,
            decided(found.delta, found.delta, 0.0) if found.p_value < SIGNIFICANT else "cannot tell",
        )

    return measure


def _path(outcome: str, sign: int):
    """Strongest correlation of a deactivation pair's activation with what cutting its path changes, of the claimed sign."""

    def measure(evidence: Evidence) -> Measured:
        paths = evidence.tables[PATHS]
        pairs = heads.ablation_summary(paths[paths["role"] == "deactivation"]) if len(paths) else paths
        pairs = pairs[pairs[outcome].notna()] if len(pairs) else pairs
        if pairs.empty:
            return unmeasured("no pair of neuron and head with an effect")
        pairs = pairs[pairs["bos"] >= ATTENDED]
        if pairs.empty:
            return unmeasured(
                f"none of the pairs' heads gives BOS {percent(ATTENDED, 0)} of its attention, which could be lowered"
            )
        best = pairs.loc[(sign * pairs[outcome]).idxmax()]
        half = norm.isf(SIGNIFICANT / 2) * best[f"{outcome}_error"]
        low, high = np.tanh(np.arctanh(best[outcome]) - half), np.tanh(np.arctanh(best[outcome]) + half)
        here = f"{name_of(best)} → L{int(best['head_layer'])}H{int(best['head'])}: {signed(best[outcome])} ({signed(low)} to {signed(high)}), the best of {count(len(pairs), 'pair')}"
        return Measured(float(best[outcome]), low, high, here, decided(low, high, sign * STRONG, above=sign > 0))

    return measure


def _resting(evidence: Evidence) -> Measured:
    ratio = evidence.tables[NORMS]["ratio"]
    low, high = median_interval(ratio)
    here = f"{ratio.median():.2f} times in the median of {count(len(ratio), 'head')} ({low:.2f} to {high:.2f})"
    return Measured(float(ratio.median()), low, high, here, decided(low, high, RESTING))


def _mean_ablated(evidence: Evidence) -> tuple[pd.DataFrame, pd.DataFrame, Measured | None]:
    """The layers' universal neurons and their most universal ones beside random sets, and why nothing is claimed, if nothing is."""
    compared = neuron_sets.comparisons(evidence.tables[SETS]).query("kind == 'mean'")
    own, most = (compared[compared["group"] == group] for group in neuron_sets.CHOSEN)
    number = int(own["neurons"].sum())
    return (
        own,
        most,
        None
        if number >= FEWEST
        else unmeasured(f"{count(number, 'universal neuron')} with random ones to compare, too few"),
    )


def _more_than_random(evidence: Evidence) -> Measured:
    own, _, too_few = _mean_ablated(evidence)
    if too_few:
        return too_few
    found = neuron_sets.ranking(own, "loss_change")
    here = f"more than {found.below:g} of {found.draws} random sets, in {count(len(own), 'layer')} ({p_words(found.p_value)})"
    return Measured(
        found.share,
        np.nan,
        np.nan,
        here,
        decided(found.share, found.share, 0.5) if found.p_value < SIGNIFICANT else "cannot tell",
    )


def _first_layer_most(evidence: Evidence) -> Measured:
    own, most, too_few = _mean_ablated(evidence)
    found = None if too_few else neuron_sets.first_layer(own)
    if found is None:
        return too_few or unmeasured("universal neurons in the first layer and another are needed")
    if not np.isfinite(found.half):
        return unmeasured("one block of text gives no standard error")
    low, high = found.difference - found.half, found.difference + found.half
    here = (
        f"beyond random sets {signed(found.excess, 4)} nats in layer 0, at most {signed(found.other_excess, 4)} in another (layer {found.other}): "
        f"difference {signed(found.difference, 4)} ± {found.half:.4f}"
    )
    beside = neuron_sets.first_layer(most)
    if beside:
        here += f"; of each layer's {neuron_sets.MOST} {signed(beside.difference, 4)} ± {beside.half:.4f}"
    return Measured(found.difference, low, high, here, decided(low, high, 0.0))


CLAIMS = (
    Claim(
        "entropy_scale",
        "An entropy neuron held high raises the final LayerNorm scale more than any control moves it",
        "0.68 → 0.83 (GPT2-medium L23.945 at 6)",
        CHAPTER,
        "figure_07_25_fixed_activation",
        (FIXED,),
        _beyond_controls("scale", 4),
    ),
    Claim(
        "entropy_entropy",
        "An entropy neuron held high raises the entropy of the prediction more than any control moves it",
        "2.48 → 3.61 nats (the same neuron)",
        CHAPTER,
        "figure_07_25_fixed_activation",
        (FIXED,),
        _beyond_controls("entropy", 4),
    ),
    Claim(
        "entropy_order",
        "An entropy neuron held high hardly changes the rank of the true token: less than the median control, and than nearly all",
        "reciprocal rank 0.5811 → 0.5806",
        CHAPTER,
        "figure_07_25_fixed_activation",
        (FIXED,),
        _order,
    ),
    Claim(
        "antipodal",
        f"An entropy neuron has an antipodal partner: a w_out with a cosine below {signed(ANTIPODAL, 1)}",
        "−0.89 (GPT2-medium L22.2882)",
        CHAPTER,
        "figure_07_entropy_candidates",
        (WEIGHTS,),
        _antipodal,
    ),
    Claim(
        "entropy_through_scale",
        "Entropy neurons act through the final scale: freezing it takes away more than from controls",
        f"through the scale ({FOLLOW_UP})",
        CHAPTER,
        "total_and_direct_effects",
        (ABLATED,),
        _more_taken("entropy", FROZEN_SCALE, "entropy"),
        FOLLOW_UP,
    ),
    Claim(
        "frequency_direction",
        "Token-frequency neurons act along the unigram direction: fixing it takes away more than from controls",
        f"along the direction of token frequency ({FOLLOW_UP})",
        CHAPTER,
        "total_and_direct_effects",
        (ABLATED,),
        _more_taken("kl_unigram", FIXED_FREQUENCY, "frequency"),
        FOLLOW_UP,
    ),
    Claim(
        "deactivation_bos",
        f"Cutting a deactivation neuron's path lowers attention to BOS the more it fires: ρ below {signed(-STRONG, 1)}",
        "−0.93 (GPT2-medium L4.3594 → L5H0)",
        CHAPTER,
        "figure_08bc_26_query_paths",
        (PATHS,),
        _path("bos_change_corr", -1),
    ),
    Claim(
        "deactivation_norm",
        f"Cutting it makes the head write more, the more the neuron fires: ρ with its output's norm above {signed(STRONG, 1)}",
        "+0.89 (GPT2-medium L4.3594 → L5H0)",
        CHAPTER,
        "figure_08bc_26_query_paths",
        (PATHS,),
        _path("norm_change_corr", 1),
    ),
    Claim(
        "bos_resting",
        f"BOS is a resting place: other tokens' ‖W_O v‖ is more than {RESTING:g} times that of BOS in the median head",
        "19.4 times (GPT2-medium)",
        CHAPTER,
        "bos_value_norms",
        (NORMS,),
        _resting,
    ),
    Claim(
        "ablation_universal",
        "Ablating a layer's universal neurons raises the loss more than ablating as many random neurons of the layer",
        f"changes predictions ({PERSISTENCE})",
        CHAPTER,
        "ablation_of_universal_neurons",
        (SETS,),
        _more_than_random,
        PERSISTENCE,
    ),
    Claim(
        "ablation_first_layer",
        "Ablating the first layer's universal neurons raises the loss most, beyond what random neurons of a layer do",
        f"hurts most ({PERSISTENCE})",
        CHAPTER,
        "ablation_of_universal_neurons",
        (SETS,),
        _first_layer_most,
        PERSISTENCE,
    ),
)
