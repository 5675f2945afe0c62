"""What the comparison with a published table shows, in words computed from it; see lib.display.captions for the pattern."""

import pandas as pd

from lib.base.errors import capital
from lib.chapters.published.comparison import COLUMNS
from lib.display.captions import Caption, count, percent, signed

TOP = 20  # neurons in a table of those that disagree


def overlap(totals: pd.Series, threshold: float) -> Caption:
    """From `compare.overlap`: do both call the same neurons universal?"""
    alt = "Stacked bars by layer: neurons universal in both, in this run only, in the published table only."
    if not totals["universal"] or not totals["published"]:
        side = (
            "Neither side has"
            if not totals["universal"] and not totals["published"]
            else ("This run has no" if not totals["universal"] else "The published table has no")
        )
        text = (
            f"{side} {'a ' if side.startswith('Neither') else ''}universal neuron at {threshold:g}: this run has "
            f"{totals['universal']:,}, the published table {totals['published']:,}."
        )
        return Caption(
            f"{totals['universal']:,} universal here, {totals['published']:,} published: nothing overlaps", text, alt
        )
    title = f"{capital(count(totals['both'], 'neuron'))} universal in both: Jaccard {totals['jaccard']:.3f}"
    text = (
        f"At threshold {threshold:g} this run calls **{totals['universal']:,}** of {totals['neurons']:,} neurons universal and the "
        f"published table **{totals['published']:,}**; **{totals['both']:,}** are the same (Jaccard **{totals['jaccard']:.3f}**): "
        f"{percent(totals['precision'], 1)} of this run's are published (precision; by chance {percent(totals['chance_precision'])}), "
        f"and {percent(totals['recall'], 1)} of the published are found here (recall; by chance {percent(totals['chance_recall'])})."
    )
    return Caption(title, text, f"{alt} {title}.")


def values(table: pd.DataFrame, rows: pd.DataFrame, kind: str) -> Caption:
    """From rows of `compare.agreement`: do the listed neurons have the same numbers? `kind` names the columns in plural."""
    known = rows.dropna(subset="pearson").sort_values("pearson")
    alt = f"Scatter plots of this run's {kind} against the published ones, one dot a neuron, with the line of equal values."
    listed, differ = int(table["listed"].sum()), int(table["differs"].sum())
    rounding = (
        f"Of the {count(listed, 'listed neuron')} {differ:,} ({percent(differ / listed, 1)}) differ from the published table by more "
        "than rounding in at least one column."
    )
    if not len(rows):
        return Caption(
            f"The tables share no column of {kind}", f"The published table has no {kind} to compare with.", alt
        )
    if not len(known):
        text = f"{rounding} Too few neurons are listed, or the {kind} are constant, so that no correlation is defined."
        return Caption(f"No correlation of the {kind} is defined", text, alt)
    low, high = known.iloc[0], known.iloc[-1]
    if len(known) == 1 or f"{low['pearson']:.3f}" == f"{high['pearson']:.3f}":
        title = f"The {kind} correlate {high['pearson']:.3f} with the published ones"
    else:
        title = f"The {kind} correlate {low['pearson']:.3f} to {high['pearson']:.3f} with the published ones"
    text = (
        f"{rounding} Over them the Pearson correlation with the published value is lowest for the {low['label']} "
        f"(**{low['pearson']:.3f}**) and highest for the {high['label']} (**{high['pearson']:.3f}**)."
    )
    excess = known[known["column"] == "excess_corr"]
    if len(excess):
        text += f" The excess correlation differs from the published one by {signed(excess['median_difference'].iloc[0], 4)} in the median."
    return Caption(title, text, f"{alt} {title}.")


def layers(matrix: pd.DataFrame) -> Caption:
    """From `compare.agreement_by_layer`: is the agreement the same at every depth?"""
    alt = "Heat map of the correlation with the published values, one row a column of the tables, one column a layer."
    known = matrix.median().dropna()
    if not len(known):
        return Caption(
            "No layer has enough listed neurons", "No layer has three listed neurons whose values vary.", alt
        )
    title = f"The median correlation in a layer goes from {known.min():.3f} to {known.max():.3f}"
    if f"{known.min():.3f}" == f"{known.max():.3f}":
        title = f"The median correlation is {known.max():.3f} in every layer"
    text = (
        f"The median over columns of the correlation within a layer is lowest in layer {known.idxmin()} (**{known.min():.3f}**) and "
        f"highest in layer {known.idxmax()} (**{known.max():.3f}**)."
    )
    unknown = len(matrix.columns) - len(known)
    if unknown:
        text += (
            f" {capital(count(unknown, 'layer'))} {'has' if unknown == 1 else 'have'} fewer than three listed neurons."
        )
    return Caption(title, text, f"{alt} {title}.")


def differing(table: pd.DataFrame) -> str:
    """How many listed neurons differ, before the table of those that do most."""
    listed, differ = int(table["listed"].sum()), int(table["differs"].sum())
    if not differ:
        return f"None of the {count(listed, 'listed neuron')} differs from the published table by more than rounding."
    median = table.loc[table["differs"], "distance"].median()
    return (
        f"**{differ:,}** of the {count(listed, 'listed neuron')} ({percent(differ / listed, 1)}) {'differs' if differ == 1 else 'differ'} "
        f"by more than rounding, with a median distance of {median:.2f} standard deviations. The largest {min(differ, TOP)}:"
    )


def difference_table(top: pd.DataFrame) -> pd.DataFrame:
    """`compare.most_different` as a reader's table."""
    return pd.DataFrame(
        {
            "layer": top["layer"],
            "neuron": top["neuron"],
            "distance": top["distance"].map("{:.2f}".format),
            "excess": top["excess_corr"].map("{:.3f}".format),
            "published": top["excess_corr_published"].map("{:.3f}".format),
            "differs most in": [COLUMNS.get(column, "–") for column in top["worst"]],
            "by [standard deviations]": top["worst_gap"].map(lambda gap: signed(gap, 1)),
        }
    )


def one_sided(parts: dict[str, pd.DataFrame], totals: pd.Series) -> str:
    """How many neurons only one side calls universal, and the clearest of each."""
    sentences = []
    for side, column, whole in (("here", "excess_corr", "universal"), ("there", "excess_corr_published", "published")):
        number = int(totals[whole] - totals["both"])
        name = "this run only" if side == "here" else "the published table only"
        if not number:
            sentences.append(f"No neuron is universal in {name}.")
            continue
        top = parts[side].head(5)
        named = ", ".join(f"L{row.layer}.{row.neuron} ({getattr(row, column):.3f})" for row in top.itertuples())
        verb = "is" if number == 1 else "are"
        sentences.append(
            f"**{capital(count(number, 'neuron'))}** {verb} universal in {name}; the clearest, with that excess: {named}."
        )
    return " ".join(sentences)


def is_partial(table: pd.DataFrame, threshold: float) -> str:
    """What a table that leaves neurons out can and cannot tell."""
    listed = table[table["listed"]]
    if len(listed) == len(table):
        return "The published table lists every neuron of the model."
    least = listed["excess_corr_published"].min()
    above = least - threshold > 0.005
    return (
        f"The published table lists {len(listed):,} of {len(table):,} neurons, the smallest published excess being {least:.3f}. Values "
        f"can be compared for these only; every other neuron counts as published not to be universal"
        + (f", although some with an excess between {threshold:g} and {least:.3f} may be missing." if above else ".")
    )
