"""What the figure of ablated sets shows, in words: whether universal neurons matter more than others of equal power."""

import numpy as np
import pandas as pd

from lib.base.errors import listed
from lib.chapters.families.summary import FAMILIES
from lib.chapters.interventions.neuron_sets import UNIVERSAL, family_parts, shares_below
from lib.display.captions import Caption, count, percent, signed, signed_percent
from lib.display.over_seeds import in_brackets, over_seeds


def _nats(value: float) -> str:
    return signed(value, 4)


def importance(compared: pd.DataFrame, table: pd.DataFrame, reference: str) -> Caption:
    """From `neuron_sets.comparisons` and `ablations`: do universal neurons matter more than others of equal power?"""
    alt = "Dot plots by layer of the change of loss and of KL when universal neurons are ablated, over random sets."
    held = compared[compared["kind"] == "mean"]
    own = held[held["seed"] == reference]
    if held.empty:
        text = "**Not compared:** there are no universal neurons, or too few others in their layer."
        return Caption("No set of universal neurons to ablate beside random ones", text, alt)
    shares = shares_below(held)
    found = over_seeds(shares, "ablation_universal", signed_percent)
    more = ("do not clearly cost more loss", "cost more loss", "cost less loss")[found.side]
    title = f"Universal neurons {more} than random sets of equal power: {percent(found.mean, 0)} of these cost less"
    title += in_brackets(found)
    text = (
        f"Over {count(len(shares), 'seed')}, **{percent(found.mean, 0)}** of the random sets cost less loss than the "
    )
    text += f"universal neurons{in_brackets(found)}; a half is chance."
    others = held[held["seed"] != reference]["blocks"]
    if len(own):
        below = own["loss_change_below"].sum() + own["loss_change_level"].sum() / 2
        text += (
            f" In seed {reference}, on {own['tokens'].iloc[0]:,} tokens of {count(own['blocks'].iloc[0], 'block')}, "
            f"**{below:g} of {own['draws'].sum()}** do"
            f"{f' (other seeds: {others.min()} blocks)' if len(others) else ''}. "
            f"Their power is {own['power_low'].min():.2f} to {own['power_high'].max():.2f} times that of the universal "
            f"neurons.{_unmatched(own, table, reference)}"
        )
    return Caption(title, f"{text}{_first_layer(held, table, reference)}", f"{alt} {title}.")


def _unmatched(own: pd.DataFrame, table: pd.DataFrame, reference: str) -> str:
    """Which layers of the reference have universal neurons that no other neurons match in power."""
    sets = table[(table["seed"] == reference) & (table["kind"] == "mean") & (table["group"] == UNIVERSAL)]
    left = sorted(set(sets["layer"]) - set(own["layer"]))
    if not left:
        return ""
    return f" Left out, since no other neurons match their power: {listed([f'layer {layer}' for layer in left])}."


def _first_layer(held: pd.DataFrame, table: pd.DataFrame, reference: str) -> str:
    """What the first layer's sets cost over seeds and in the reference, and how much its largest family makes alone."""
    first = held[held["layer"] == 0].set_index("seed")
    if reference not in first.index:
        return ""
    row = first.loc[reference]
    half = f" ± {2 * row['loss_change_excess_error']:.4f}" if np.isfinite(row["loss_change_excess_error"]) else ""
    text = f"\n\nIn seed {reference} the first layer's set costs **{signed(row['loss_change'], 4)}** nats, beyond its "
    text += f"random sets {signed(row['loss_change_excess'], 4)}{half}."
    parts = family_parts(table)
    parts = parts[parts["seed"] == reference]
    if len(parts):
        part = parts.iloc[0]
        family = f"of family “{FAMILIES.get(part['family'], part['family'])}”"
        text += (
            f" Its {count(part['neurons'], 'neuron')} {family} alone cost "
            f"**{signed(part['loss_change'], 4)}**, more than those of any other family."
        )
    if len(first) > 1:
        found = over_seeds(first["loss_change_excess"], "ablation_first_layer", _nats)
        undecided = "" if found.side else "undecided"
        text += f" Over {count(len(first), 'seed')} the first layer's sets cost **{_nats(found.mean)}** nats"
        text += f" beyond random ones{in_brackets(found, undecided)}."
    return text
