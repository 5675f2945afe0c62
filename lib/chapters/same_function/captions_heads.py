"""What the table heads.parquet says: the ledger's two rows on attention heads, and the captions."""

import pandas as pd

from lib.base.errors import listed
from lib.chapters.same_function.captions_map import over_references
from lib.chapters.same_function.heads import (
    HEAD,
    HEAD_BAR,
    NO_TYPE,
    NULLS,
    by_head,
    first_agreement,
    mutual,
    rank_correlation,
    score_agreement,
    used_room,
)
from lib.display.captions import Caption, percent, signed
from lib.display.claims import Effects, Evidence, unmeasured
from lib.display.over_seeds import mean_and_interval

TABLE = "heads"
FEW_TYPED = 20  # heads above HEAD_BAR, below which types are not compared
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


def matches_caption(table: pd.DataFrame, reference: str) -> Caption:
    """How well heads match, beside rotated heads."""
    effects = over_references(table, mean_excess, lambda value: signed(value, 3))
    mean, interval = mean_and_interval(effects, "head_excess")
    means = {name: table[name].mean() for name in ("corr", *NULLS)}
    by_layer = (table["corr"] - table[NULLS[0]]).groupby(table["layer"]).mean().nlargest(2).sort_index()
    title = (
        f"A head's best match exceeds rotated heads by {means['corr'] - means['baseline']:.2f} in the mean, most in "
    )
    title += f"layer{'s' * (len(by_layer) > 1)} {listed(map(str, by_layer.index))}"
    own_layer, below = (table["layer"] == table["match_layer"]).mean(), by_head(table)["excess_corr"] <= 0
    strongest = listed(f"{signed(value, 3)} in layer {layer}" for layer, value in by_layer.items())
    text = (
        f"Best match of each head of seed {reference}, in the mean over the other seeds, and the best match among "
        f"rotated heads; √RV on {table['tokens'].iloc[0]:,} tokens. Over all "
        f"references the mean best match is {means['corr']:.3f}, that of rotated heads {means['baseline']:.3f}: an "
        f"excess of **{mean}**{interval}. It is {strongest}, and {percent(below.mean(), 0)} of the heads do not exceed "
        "the rotated ones. If all heads are scaled to equal power before the rotation, the excess is "
        f"{signed(means['corr'] - means['equal_baseline'], 3)}. {percent(own_layer, 0)} of the matches lie in the "
        "head's own layer."
    )
    alt = "Dots for each head in order of depth: its mean best match and two baselines."
    return Caption(title, text, f"{alt} {title}.")


def scores_caption(table: pd.DataFrame) -> Caption:
    """Whether a head and its match attend to the same, if each is the other's best match and if not."""
    if table["head"].max() == 0:
        title = "One head in a layer has no rank within it"
        return Caption(title, f"{ONE_HEAD[0].upper()}{ONE_HEAD[1:]}.", f"Three scatter plots. {title}.")
    mean, interval = mean_and_interval(over_references(table, _alike, signed), "head_scores")
    both = mutual(table)
    known, both = table[both.notna()], both.dropna().astype(bool)
    found = {name: rank_correlation(known[of]) for name, of in (("mutual", both), ("other", ~both))}
    title = f"Ranked within their layers, a head and its match attend alike: correlation {mean}"
    if all(of.notna().all() for of in found.values()):
        title = f"Heads that are each other's best match attend alike by {signed(found['mutual'].mean())}, others by "
        title += signed(found["other"].mean())
    pairs = table.groupby(["seed", "model"])
    distinct = pairs[["match_layer", "match_head"]].apply(lambda own: len(own.drop_duplicates())).mean()
    text = (
        "Each point is a head and its best match in another seed: attention to BOS, to the "
        "previous token, and in induction on repeated random tokens, as ranks within their layers. They correlate by "
        f"**{mean}**{interval} in the mean of the three; matches exchanged within their layers give 0. Of "
        f"{len(known):,} matches {percent(both.mean(), 0)} are mutual, with {_three(found['mutual'])}; the others have "
        f"{_three(found['other'])}. The {pairs.size().iloc[0]} heads of a seed are matched to {distinct:.0f} different "
        f"ones in the mean. {_first(table)}"
    )
    alt = "Three scatter plots: a head's rank against its match's, for BOS, previous token and induction."
    return Caption(title, text, f"{alt} {title}.")


def _three(values: pd.Series) -> str:
    return listed(signed(values[name]) for name in ("bos", "previous", "induction"))


def _first(table: pd.DataFrame) -> str:
    """How often the strongest heads match each other, and how many heads have a type."""
    heads, first = table.drop_duplicates(["seed", *HEAD]), first_agreement(table)
    shares = [f"{percent(row['share'], 0)} (by chance {percent(row['chance'], 0)})" for _, row in first.iterrows()]
    words = dict(zip(first.index, shares, strict=True))
    typed = int((heads["type"] != NO_TYPE).sum())
    text = (
        f"The match of a seed's strongest head is the other seed's strongest in {words['bos']} of the pairs for BOS, "
        f"{words['previous']} for the previous token and {words['induction']} for induction; chance is a match "
        f"exchanged within its layer. {typed} of {len(heads)} heads score above {HEAD_BAR:g} in one of the three"
    )
    return f"{text}{', too few to compare types' if typed < FEW_TYPED else ''}."
