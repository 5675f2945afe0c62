"""The claims that chapter 06 tests: entropy, token-frequency and attention neurons, and sets of universal neurons."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.stats import norm

from lib.chapters.interventions import heads, neuron_sets
from lib.chapters.interventions.candidates import entropy_candidates
from lib.chapters.interventions.captions import SINK_RATIO, name_of, pair_name
from lib.chapters.interventions.single_neurons import FIXED_FREQUENCY, FROZEN_SCALE, at_largest_value, removed
from lib.display.captions import count, p_words, percent, signed, signed_percent
from lib.display.claims import (
    FEWEST,
    HOLDS,
    PAPER,
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
INTERVENTIONS = {"fixed_activation", "mean_ablation", "query_paths", "ablations"}  # tables of effects on the model
FOLLOW_UP, PERSISTENCE = "arXiv 2406.16254", "arXiv 2508.00903"
ANTIPODAL_COSINE = -0.5
STRONG = 0.5  # correlation
LEAST_ATTENTION = 0.1  # of a head to BOS; a head with less has none to lose


def _groups(evidence: Evidence) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """Candidates and controls at the largest fixed value; None without either."""
    top = at_largest_value(evidence.tables["fixed_activation"])
    own, controls = top[top["group"] == "entropy"], top[top["group"] == "control"]
    return None if own.empty or controls.empty else (own, controls)


def _beside_controls(change: float, half: float, bound: float, above: bool, p_value: float, here: str) -> Measured:
    """An interval beside controls; a claim holds only if its p-value is significant too."""
    verdict = decided(change - half, change + half, bound, above)
    verdict = UNKNOWN if verdict == HOLDS and p_value >= SIGNIFICANT else verdict
    return Measured(float(change), float(change - half), float(change + half), here, verdict)


def _beyond_controls(outcome: str) -> Callable[[Evidence], Measured]:
    """The candidate that raises an outcome most against the control that changes it most, ± two standard errors.

    The best of several candidates may come first by chance. So more candidates must exceed every control than a random
    order would put there.
    """

    def measure(evidence: Evidence) -> Measured:
        if not (groups := _groups(evidence)):
            return unmeasured("no candidate or no control")
        own, controls = groups
        best, bound = own.loc[own[f"{outcome}_change"].idxmax()], controls[f"{outcome}_change"].abs().max()
        change, half = best[f"{outcome}_change"], 2 * best[f"{outcome}_error"]
        beyond = int((own[f"{outcome}_change"] > bound).sum())
        p_value = float(np.prod([(len(own) - first) / (len(own) + len(controls) - first) for first in range(beyond)]))
        here = (
            f"{name_of(best)}, the best of {count(len(own), 'candidate')}: {signed(change, 4)} ± {half:.4f} held at "
            f"{best['value']:g}; {count(len(controls), 'control')} up to {bound:.4f} in size, {beyond} of the "
            f"candidates beyond all of them ({p_words(p_value)} in a random order)"
        )
        return _beside_controls(change, half, bound, True, p_value, here)

    return measure


def _order(evidence: Evidence) -> Measured:
    """The change of reciprocal rank, in size, by the candidate of largest entropy change against the median control's.

    Half of all controls are below their median, so it must also be less than nearly all controls'.
    """
    if not (groups := _groups(evidence)):
        return unmeasured("no candidate or no control")
    own, controls = groups
    best, sizes = own.loc[own["entropy_change"].idxmax()], controls["reciprocal_rank_change"].abs()
    change, half, bound = abs(best["reciprocal_rank_change"]), 2 * best["reciprocal_rank_error"], sizes.median()
    less = int((sizes <= change).sum())
    here = (
        f"{name_of(best)}, which raises entropy most of {count(len(own), 'candidate')}: "
        f"{signed(best['reciprocal_rank_change'], 4)} ± {half:.4f}; median control {bound:.4f} in size, and {less} of "
        f"{len(controls)} controls change it no more than the candidate"
    )
    return _beside_controls(change, half, bound, False, (less + 1) / (len(controls) + 1), here)


def _antipodal(evidence: Evidence) -> Measured:
    by_seed = evidence.tables["causal_weights"].groupby("seed", sort=False)
    cosines = {seed: entropy_candidates(own)["partner_cos"] for seed, own in by_seed}
    lowest = pd.Series({seed: own.min() for seed, own in cosines.items()}, dtype=float)
    found = over_seeds(lowest, ANTIPODAL_COSINE, False, signed)
    number = count(max(map(len, cosines.values())), "candidate")
    return found._replace(here=f"{found.here}; in each seed the lowest of {number}")


def _tested(value: float, chance: float, p_value: float, here: str) -> Measured:
    verdict = decided(value, value, chance) if p_value < SIGNIFICANT else UNKNOWN
    return Measured(float(value), np.nan, np.nan, here, verdict)


def _more_removed(outcome: str, variant: str, group: str) -> Callable[[Evidence], Measured]:
    """Does a variant remove more of an effect from candidates than from controls? Mann–Whitney over neurons."""

    def measure(evidence: Evidence) -> Measured:
        found = removed(evidence.tables["mean_ablation"], outcome, variant, group)
        if np.isnan(found.p_value):
            return unmeasured("no candidate or no control with an effect")
        ours, others = signed_percent(found.candidates), signed_percent(found.controls)
        here = f"{ours} of the median candidate's effect, {others} of the median control's ({p_words(found.p_value)})"
        return _tested(found.delta, 0.0, found.p_value, here)

    return measure


def _path(outcome: str, sign: int) -> Callable[[Evidence], Measured]:
    """Strongest correlation of a deactivation pair's activation with what cutting its path changes."""

    def measure(evidence: Evidence) -> Measured:
        paths = evidence.tables["query_paths"]
        pairs = heads.ablation_summary(paths[paths["role"] == "deactivation"]) if len(paths) else paths
        pairs = pairs[pairs[outcome].notna()] if len(pairs) else pairs
        if pairs.empty:
            return unmeasured("no pair of neuron and head with an effect")
        pairs = pairs[pairs["bos"] >= LEAST_ATTENTION]
        if pairs.empty:
            least = percent(LEAST_ATTENTION, 0)
            return unmeasured(f"none of the pairs' heads gives BOS {least} of its attention, which could be lowered")
        best = pairs.loc[(sign * pairs[outcome]).idxmax()]
        centre, half = np.arctanh(best[outcome]), norm.isf(SIGNIFICANT / 2) * best[f"{outcome}_error"]
        low, high = np.tanh(centre - half), np.tanh(centre + half)
        interval = f"{signed(best[outcome])} ({signed(low)} to {signed(high)})"
        here = f"{pair_name(best)}: {interval}, the best of {count(len(pairs), 'pair')}"
        verdict = decided(low, high, sign * STRONG, above=sign > 0)
        return Measured(float(best[outcome]), low, high, here, verdict)

    return measure


def _sink(evidence: Evidence) -> Measured:
    ratio = evidence.tables["value_norms"]["ratio"]
    low, high = median_interval(ratio)
    here = f"{ratio.median():.2f} times in the median of {count(len(ratio), 'head')} ({low:.2f} to {high:.2f})"
    return Measured(float(ratio.median()), low, high, here, decided(low, high, SINK_RATIO))


def _mean_ablated(evidence: Evidence) -> tuple[pd.DataFrame, pd.DataFrame, Measured | None]:
    """The layers' universal neurons and their top 5 % beside random sets, and why there is too little to claim."""
    compared = neuron_sets.comparisons(evidence.tables["ablations"]).query("kind == 'mean'")
    own, most = (compared[compared["group"] == group] for group in neuron_sets.CHOSEN)
    number = int(own["neurons"].sum())
    why = f"{count(number, 'universal neuron')} with random ones to compare, too few"
    return own, most, unmeasured(why) if number < FEWEST else None


def _more_than_random(evidence: Evidence) -> Measured:
    own, _, too_few = _mean_ablated(evidence)
    if too_few:
        return too_few
    found, layers = neuron_sets.ranking(own, "loss_change"), count(len(own), "layer")
    here = f"more than {found.below:g} of {found.draws} random sets, in {layers} ({p_words(found.p_value)})"
    return _tested(found.share, 0.5, found.p_value, here)


def _first_layer_most(evidence: Evidence) -> Measured:
    own, most, too_few = _mean_ablated(evidence)
    found = None if too_few else neuron_sets.first_layer(own)
    if found is None:
        return too_few or unmeasured("universal neurons in the first layer and another are needed")
    if not np.isfinite(found.half):
        return unmeasured("one block of text gives no standard error")
    here = (
        f"{signed(found.excess, 4)} nats beyond random sets in layer 0, at most {signed(found.other_excess, 4)} in "
        f"another (layer {found.other}): difference {signed(found.difference, 4)} ± {found.half:.4f}"
    )
    if beside := neuron_sets.first_layer(most):
        here += f"; of each layer's {neuron_sets.MOST} {signed(beside.difference, 4)} ± {beside.half:.4f}"
    low, high = found.difference - found.half, found.difference + found.half
    return Measured(found.difference, low, high, here, decided(low, high, 0.0))


SHOWN_BY = {  # table that decides → figure that shows it, and whose claims these are
    "fixed_activation": ("figure_07_25_fixed_activation", PAPER),
    "causal_weights": ("figure_07_entropy_candidates", PAPER),
    "mean_ablation": ("total_and_direct_effects", FOLLOW_UP),
    "query_paths": ("figure_08bc_26_query_paths", PAPER),
    "value_norms": ("bos_value_norms", PAPER),
    "ablations": ("ablation_of_universal_neurons", PERSISTENCE),
}


def _claim(name: str, claim: str, published: str, table: str, measure: Callable[[Evidence], Measured]) -> Claim:
    figure, source = SHOWN_BY[table]
    return Claim(name, claim, published, CHAPTER, figure, (table,), measure, source)


CLAIMS = (
    _claim(
        "entropy_scale",
        "An entropy neuron held high raises the final LayerNorm scale more than any control moves it",
        "0.68 → 0.83 (GPT2-medium L23.945 at 6)",
        "fixed_activation",
        _beyond_controls("scale"),
    ),
    _claim(
        "entropy_entropy",
        "An entropy neuron held high raises the entropy of the prediction more than any control moves it",
        "2.48 → 3.61 nats (the same neuron)",
        "fixed_activation",
        _beyond_controls("entropy"),
    ),
    _claim(
        "entropy_order",
        "An entropy neuron held high hardly changes the true token's rank: less than the median and most controls",
        "reciprocal rank 0.5811 → 0.5806",
        "fixed_activation",
        _order,
    ),
    _claim(
        "antipodal",
        f"An entropy neuron has an antipodal partner: a w_out with a cosine below {signed(ANTIPODAL_COSINE, 1)}",
        "−0.89 (GPT2-medium L22.2882)",
        "causal_weights",
        _antipodal,
    ),
    _claim(
        "entropy_through_scale",
        "Entropy neurons act through the final scale: freezing it removes more of their effect than controls'",
        f"through the scale ({FOLLOW_UP})",
        "mean_ablation",
        _more_removed("entropy", FROZEN_SCALE, "entropy"),
    ),
    _claim(
        "frequency_direction",
        "Token-frequency neurons act along token frequency: fixing it removes more of their effect than controls'",
        f"along the direction of token frequency ({FOLLOW_UP})",
        "mean_ablation",
        _more_removed("kl_unigram", FIXED_FREQUENCY, "frequency"),
    ),
    _claim(
        "deactivation_bos",
        f"Cutting a deactivation neuron's path lowers attention to BOS the more it fires: ρ below {signed(-STRONG, 1)}",
        "−0.93 (GPT2-medium L4.3594 → L5H0)",
        "query_paths",
        _path("bos_change_corr", -1),
    ),
    _claim(
        "deactivation_norm",
        f"Cutting it makes the head write more, the more the neuron fires: ρ with ‖W_O z‖ above {signed(STRONG, 1)}",
        "+0.89 (GPT2-medium L4.3594 → L5H0)",
        "query_paths",
        _path("norm_change_corr", 1),
    ),
    _claim(
        "bos_resting",
        f"BOS is an attention sink: in the median head other tokens' ‖W_O v‖ is over {SINK_RATIO:g} times that of BOS",
        "19.4 times (GPT2-medium)",
        "value_norms",
        _sink,
    ),
    _claim(
        "ablation_universal",
        "Ablating a layer's universal neurons raises the loss more than ablating as many random neurons of it",
        f"changes predictions ({PERSISTENCE})",
        "ablations",
        _more_than_random,
    ),
    _claim(
        "ablation_first_layer",
        "Ablating the first layer's universal neurons raises the loss most, beyond random neurons of a layer",
        f"hurts most ({PERSISTENCE})",
        "ablations",
        _first_layer_most,
    ),
)
