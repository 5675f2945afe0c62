"""The findings that open chapter 06, from its tables; for models without interventions, what is left out."""

import pandas as pd
from IPython.display import HTML

from lib.base.errors import capital
from lib.chapters.interventions.candidates import CONTROL_OF
from lib.chapters.interventions.neuron_sets import shares_below
from lib.chapters.interventions.single_neurons import at_largest_value
from lib.display.captions import count, percent, signed, signed_percent
from lib.display.findings import Finding, in_short
from lib.display.over_seeds import in_brackets, over_seeds

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
    found = over_seeds(ours - others, "entropy_entropy", lambda value: signed(value, 3))
    text = f"Clamped high, entropy neurons change the entropy of the prediction by **{signed(ours.mean(), 3)}** nats, "
    text += f"control neurons of equal output norm by {signed(others.mean(), 3)}"
    differ = ("the difference is **undecided**", "they raise it more", "they raise it less")[found.side]
    text += f". Over {count(len(ours), 'seed')} {differ}."
    return Finding(text, ENTROPY)


def _sink(norms: pd.DataFrame) -> Finding:
    ratio = norms.groupby("seed")["ratio"].median().mean()
    verb = "writes less" if ratio > 1 else "does **not** write less"
    text = f"A head that attends to BOS, the first token, {verb} than elsewhere: in the median head other tokens' "
    text += f"output is **{ratio:.1f} times** as large."
    return Finding(text, "bos_value_norms")


def _importance(held: pd.DataFrame) -> Finding:
    if held.empty:
        return Finding(
            "No set of universal neurons could be ablated beside random ones.", "ablation_of_universal_neurons"
        )
    shares = shares_below(held)
    found = over_seeds(shares, "ablation_universal", signed_percent)
    matter = ("do not clearly matter more", "matter more", "matter less")[found.side]
    text = f"Universal neurons {matter} than other strong neurons: ablating them raises the loss more than "
    text += f"**{percent(found.mean, 0)}** of random sets of equal power do{in_brackets(found)}; 50 % is chance."
    return Finding(text, "ablation_of_universal_neurons")
