"""The findings that open chapter 06, from its tables; for models without interventions, what is left out."""

import pandas as pd
from IPython.display import HTML

from lib.base.errors import capital
from lib.chapters.interventions.candidates import CONTROL_OF
from lib.chapters.interventions.captions import SINK_RATIO
from lib.chapters.interventions.neuron_sets import shares_below
from lib.chapters.interventions.single_neurons import at_largest_value
from lib.display.captions import count, percent, signed
from lib.display.findings import Finding, in_short

ENTROPY = "figure_07_25_fixed_activation"


def interventions(swept: pd.DataFrame, norms: pd.DataFrame, compared: pd.DataFrame) -> HTML:
    """From `fixed_activations`, `value_norms` and `neuron_sets.comparisons`, of all seeds."""
    return in_short([_entropy(swept), _sink(norms), _importance(compared[compared["kind"] == "mean"])])


def left_out(reason: str, alike: pd.DataFrame) -> HTML:
    """What is left where models cannot be changed while they run: the agreement of matches (`property_agreement`)."""
    known = alike[alike["correlation"].notna() & (alike["group"] == "all")]
    findings = [Finding(f"**No interventions** in this run. {capital(reason)}")]
    if len(known):
        beyond = int((known["correlation"] > known["chance_high"]).sum())
        text = f"By their weights, best matches are alike beyond chance in **{beyond} of {len(known)}** properties."
        findings.append(Finding(text, "properties_of_matches"))
    return in_short(findings)


def _entropy(swept: pd.DataFrame) -> Finding:
    top = at_largest_value(swept)
    by_group = top["entropy_change"].astype(float).groupby([top["seed"], top["group"]]).median().unstack()
    if not {"entropy", CONTROL_OF["entropy"]} <= set(by_group) or by_group.dropna().empty:
        return Finding("No neuron of the last layers can be told to be an entropy neuron by its weights.", ENTROPY)
    ours, others = (by_group.dropna()[group] for group in ("entropy", CONTROL_OF["entropy"]))
    more = int((ours > others).sum())
    text = f"Held high, entropy neurons change the entropy of the prediction by **{signed(ours.mean(), 3)}** nats, "
    text += f"controls of equal norm by {signed(others.mean(), 3)}. "
    return Finding(f"{text}They raise it more in **{more} of {count(len(ours), 'seed')}**.", ENTROPY)


def _sink(norms: pd.DataFrame) -> Finding:
    ratio = norms.groupby("seed")["ratio"].median().mean()
    verb = "writes little" if ratio > SINK_RATIO else "does **not** write little"
    text = (
        f"A head that attends to BOS {verb}: in the median head other tokens' output is **{ratio:.1f} times** as large."
    )
    return Finding(text, "bos_value_norms")


def _importance(held: pd.DataFrame) -> Finding:
    if held.empty:
        return Finding(
            "No set of universal neurons could be ablated beside random ones.", "ablation_of_universal_neurons"
        )
    shares = shares_below(held)
    text = "Universal neurons matter no more than other strong neurons"
    if len(shares) > 1 and shares.min() > 0.5:
        text = "Universal neurons matter more than other strong neurons"
    text += f": ablating them costs more loss than **{percent(shares.mean(), 0)}** of random sets of equal power."
    return Finding(text, "ablation_of_universal_neurons")
