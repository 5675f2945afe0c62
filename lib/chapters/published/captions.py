"""Captions of the comparison with published tables."""

import re
from collections.abc import Callable
from typing import Any

import pandas as pd

from lib.base.errors import capital, listed
from lib.chapters.published.comparison import COLUMNS, TOLERANCE
from lib.display.captions import Caption, count, percent, signed

TOP = 20  # neurons in a table of those that disagree


def for_each(parts: dict[str, Any], sentence: Callable[[Any], str], named: bool = False) -> str:
    """A paragraph of sentences for each published table, headed by its name where there are several (Markdown)."""
    headed = named or len(parts) > 1
    return "\n\n".join(f"`{name}`: {sentence(part)}" if headed else sentence(part) for name, part in parts.items())


def figure_name(kind: str, name: str, tables: dict[str, pd.DataFrame]) -> str:
    """The name of a figure's files; with the published table's where there are several."""
    own = re.sub(r"[^A-Za-z0-9-]+", "_", name)
    return f"published_{kind}_{own}" if len(tables) > 1 else f"published_{kind}"


def judgement(rows: pd.DataFrame) -> str:
    """From `comparison.against_tolerance`: does the run reproduce the published table? One sentence (Markdown)."""
    if not len(rows):
        names = listed(COLUMNS[column] for column in TOLERANCE)
        return f"Whether the run reproduces the published table **cannot be told**: the tables share no {names}."
    over, neurons = rows[~rows["within"]], count(rows["neurons"].max(), "listed neuron")
    shown = rows if over.empty else over
    said = [f"{row.difference:.4f} for the {row.label} (tolerance {row.tolerance:.4f})" for row in shown.itertuples()]
    if over.empty:
        return f"**The run reproduces the published table**: the mean difference over {neurons} is {listed(said)}."
    return f"**The run does not reproduce the published table**: over {neurons} the mean difference is {listed(said)}."


def judgement_table(parts: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """`comparison.against_tolerance` of each published table, by its name, as a reader's table."""
    rows = pd.concat([rows.assign(table=name) for name, rows in parts.items()], ignore_index=True)
    columns = {
        "published table": rows["table"],
        "value": rows["label"],
        "listed neurons": rows["neurons"].map("{:,}".format),
        "mean difference": rows["difference"].map("{:.4f}".format),
        "tolerance": rows["tolerance"].map("{:.4f}".format),
        "within": rows["within"].map({True: "yes", False: "no"}),
    }
    return pd.DataFrame(columns)


def overlap(totals: pd.Series, threshold: float) -> Caption:
    """From `comparison.overlap`: do both call the same neurons universal?"""
    alt = "Stacked bars by layer: neurons universal in both, in this run only, in the published table only."
    here, there = totals["universal"], totals["published"]
    sizes = (
        f"At threshold {threshold:g} this run has **{here:,}** universal neurons and the published table **{there:,}**"
    )
    if not here or not there:
        title = f"{here:,} universal here, {there:,} published: nothing overlaps"
        return Caption(title, f"{sizes}.", alt)
    title = f"{capital(count(totals['both'], 'neuron'))} universal in both: Jaccard {totals['jaccard']:.3f}"
    text = (
        f"{sizes}; **{totals['both']:,}** are the same. {percent(totals['precision'], 1)} of this run's are published "
        f"(precision; by chance {percent(totals['chance_precision'])}), and {percent(totals['recall'], 1)} of the "
        f"published are found here (recall; by chance {percent(totals['chance_recall'])})."
    )
    return Caption(title, text, f"{alt} {title}.")


def values(rows: pd.DataFrame, kind: str) -> Caption:
    """From rows of `comparison.column_correlations`; `kind` names the columns in plural."""
    alt = f"Scatter plots of this run's {kind} against the published ones, with the line of equal values."
    known = rows.dropna(subset="pearson").sort_values("pearson") if len(rows) else rows
    if not len(rows):
        return Caption(f"The tables share no column of {kind}", f"The published table has no {kind}.", alt)
    if not len(known):
        text = f"Too few neurons are listed, or the {kind} are constant."
        return Caption(f"No correlation of the {kind} is defined", text, alt)
    low, high = known.iloc[0], known.iloc[-1]
    title = f"The {kind} correlate {_range(low['pearson'], high['pearson'])} with the published ones"
    text = (
        f"One dot a listed neuron. The correlation is lowest for the {low['label']} (**{low['pearson']:.3f}**) and "
        f"highest for the {high['label']} (**{high['pearson']:.3f}**)."
    )
    return Caption(title, text, f"{alt} {title}.")


def _range(low: float, high: float) -> str:
    return f"{high:.3f}" if f"{low:.3f}" == f"{high:.3f}" else f"{low:.3f} to {high:.3f}"


def layers(matrix: pd.DataFrame) -> Caption:
    """From `comparison.correlations_by_layer`: do the values agree equally well at every depth?"""
    alt = "Heat map of the correlation with the published values, one row a column of the tables, one column a layer."
    known = matrix.median().dropna()
    if not len(known):
        text = "No layer has three listed neurons whose values vary."
        return Caption("No layer has enough listed neurons", text, alt)
    title = f"The median correlation in a layer is {_range(known.min(), known.max())}"
    text = (
        f"The median over columns is lowest in layer {known.idxmin()} (**{known.min():.3f}**) and highest in layer "
        f"{known.idxmax()} (**{known.max():.3f}**)."
    )
    unknown = len(matrix.columns) - len(known)
    if unknown:
        has = "has" if unknown == 1 else "have"
        text += f" {capital(count(unknown, 'layer'))} {has} fewer than three listed neurons."
    return Caption(title, text, f"{alt} {title}.")


def differing(table: pd.DataFrame) -> str:
    """How many listed neurons differ, before the table of those that differ most."""
    known, differ = int(table["listed"].sum()), int(table["differs"].sum())
    if not differ:
        return f"None of the {count(known, 'listed neuron')} differs from the published table by more than rounding."
    verb = "differs" if differ == 1 else "differ"
    return (
        f"**{differ:,}** of the {count(known, 'listed neuron')} ({percent(differ / known, 1)}) {verb} by more than "
        f"rounding. The largest {min(differ, TOP)}:"
    )


def difference_table(top: pd.DataFrame) -> pd.DataFrame:
    """`comparison.most_different` as a reader's table."""
    columns = {
        "layer": top["layer"],
        "neuron": top["neuron"],
        "distance": top["distance"].map("{:.2f}".format),
        "excess": top["excess_corr"].map("{:.3f}".format),
        "published": top["excess_corr_published"].map("{:.3f}".format),
        "differs most in": top["worst"].map(COLUMNS),
        "by [standard deviations]": top["worst_difference"].map(lambda difference: signed(difference, 1)),
    }
    return pd.DataFrame(columns)


def one_sided(parts: dict[str, pd.DataFrame], totals: pd.Series) -> str:
    """How many neurons only one side calls universal, and those with the largest excess."""
    sentences = []
    sides = (("here", "this run", "excess_corr", "universal"),)
    sides += (("there", "the published table", "excess_corr_published", "published"),)
    for side, name, column, whole in sides:
        number = int(totals[whole] - totals["both"])
        if not number:
            sentences.append(f"No neuron is universal in {name} only.")
            continue
        top = parts[side].head(5)
        named = ", ".join(f"L{row.layer}.{row.neuron} ({getattr(row, column):.3f})" for row in top.itertuples())
        verb = "is" if number == 1 else "are"
        neurons = capital(count(number, "neuron"))
        sentences.append(f"**{neurons}** {verb} universal in {name} only; largest excess: {named}.")
    return " ".join(sentences)


def is_partial(table: pd.DataFrame, threshold: float) -> str:
    """What a table that leaves neurons out can and cannot say."""
    known = table[table["listed"]]
    if len(known) == len(table):
        return "The published table lists every neuron of the model."
    least = known["excess_corr_published"].min()
    text = (
        f"The published table lists {len(known):,} of {len(table):,} neurons, with an excess of at least {least:.3f}. "
        "Values are compared for these only; all others count as not universal in the published table"
    )
    above = f", although some between {threshold:g} and {least:.3f} may be missing"
    return f"{text}{above if least - threshold > 0.005 else ''}."
