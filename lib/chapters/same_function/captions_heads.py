"""What the table heads.parquet says: the ledger's two rows on attention heads, and the captions."""

import pandas as pd

from lib.chapters.same_function.captions_map import over_references, over_seeds
from lib.chapters.same_function.heads import (
    HEAD,
    HEAD_BAR,
    NULLS,
    by_head,
    first_agreement,
    score_agreement,
    type_agreement,
    used_room,
)
from lib.display.captions import Caption, count, percent, signed
from lib.display.claims import Effects, Evidence, unmeasured

TABLE = "heads"
ONE_HEAD = "the layers have one head, and two are needed"


def mean_excess(table: pd.DataFrame, null: str = NULLS[0]) -> float:
    """Best match less the best rotated one, in the mean over heads and compared seeds."""
    return (table["corr"] - table[null]).mean()


def excess(evidence: Evidence) -> Effects:
    """The measure of `head_excess`."""
    table = evidence.tables[TABLE]
    details = f"{percent(used_room(by_head(table)), 0)} of the room above the baseline; with heads of equal power "
    details += signed(mean_excess(table, NULLS[1]), 3)
    return over_references(table, mean_excess, lambda value: signed(value, 3), details=details)


def _alike(table: pd.DataFrame) -> float:
    return score_agreement(table).mean(axis=None)


def scores(evidence: Evidence) -> Effects:
    """The measure of `head_scores`: the correlation of ranks, in the mean over the three scores."""
    table = evidence.tables[TABLE]
    if table["head"].max() == 0:
        return unmeasured(ONE_HEAD)
    means = score_agreement(table).mean()
    details = f"BOS {signed(means['bos'])}, previous token {signed(means['previous'])}, induction "
    details += signed(means["induction"])
    return over_references(table, _alike, signed, details=details, missing="a seed whose heads all score the same")


def matches_caption(table: pd.DataFrame, neurons: pd.DataFrame, reference: str) -> Caption:
    """How well heads match, beside rotated heads and beside neurons; `neurons` are those of all references."""
    effects = over_references(table, mean_excess, lambda value: signed(value, 3))
    mean, interval = over_seeds(effects, "head_excess")
    room, others = used_room(by_head(table)), used_room(neurons)
    title = f"Heads use {percent(room, 0)} of the room above rotated heads, neurons {percent(others, 0)}"
    means = {name: table[name].mean() for name in ("corr", *NULLS)}
    by_layer = (table["corr"] - table[NULLS[0]]).groupby(table["layer"]).mean()
    strongest, own_layer = by_layer.idxmax(), (table["layer"] == table["match_layer"]).mean()
    text = (
        f"Best match of each head of seed {reference}, in the mean over the other seeds, and what it is after a "
        f"layer's outputs are rotated and cut into heads again; √RV on {table['tokens'].iloc[0]:,} tokens. Over all "
        f"references the mean best match is {means['corr']:.3f}, that of rotated heads {means['baseline']:.3f}: an "
        f"excess of **{mean}**{interval}. It is largest in layer {strongest} ({signed(by_layer[strongest], 3)}). If "
        f"all heads are scaled to equal power before the rotation, it is "
        f"{signed(means['corr'] - means['equal_baseline'], 3)}. {percent(own_layer, 0)} of the matches lie in the "
        "head's own layer. Of neurons the title has the same ratio for their correlations (chapter 2)."
    )
    alt = "Dots for each head in order of depth: its mean best match and two baselines."
    return Caption(title, text, f"{alt} {title}.")


def scores_caption(table: pd.DataFrame) -> Caption:
    """Whether a head and its match attend to the same, and what the named types add."""
    if table["head"].max() == 0:
        title = "One head in a layer has no rank within it"
        return Caption(title, f"{ONE_HEAD[0].upper()}{ONE_HEAD[1:]}.", f"Three scatter plots. {title}.")
    mean, interval = over_seeds(over_references(table, _alike, signed), "head_scores")
    title = f"Ranked within its layer, a head attends like its match: correlation {mean}"
    text = (
        "Three scores of each head of every reference against those of its best match: attention to BOS, to the "
        "previous token, and in induction on repeated random tokens. Ranked within their layers they correlate by "
        f"**{mean}**{interval} in the mean of the three; matches exchanged within their layers "
        f"give 0. {_types(table)}"
    )
    alt = "Three scatter plots: a head's score against its match's, for BOS, previous token and induction."
    return Caption(title, text, f"{alt} {title}.")


def _types(table: pd.DataFrame) -> str:
    """How often the strongest heads match each other, and how many heads have a type."""
    heads, types = table.drop_duplicates(["seed", *HEAD]), type_agreement(table)
    first, chance = first_agreement(table), 1 / (len(heads) / heads["seed"].nunique())
    text = (
        f"The match of a seed's strongest head is the other seed's strongest in {percent(first['bos'], 0)} of the "
        f"pairs for BOS, {percent(first['previous'], 0)} for the previous token and {percent(first['induction'], 0)} "
        f"for induction; by chance in {percent(chance, 0)}. "
    )
    named = "; ".join(
        f"{count(row.heads, row.type)}, {percent(row.agreement, 0)} of whose matches have the type (by chance "
        f"{percent(row.type_share, 0)})"
        for row in types.itertuples()
    )
    total = f"{int(types['heads'].sum())} of {len(heads)} heads"
    return f"{text}A score above {HEAD_BAR:g} gives {total} a type{f': {named}' if named else ''}."
