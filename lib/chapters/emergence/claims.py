"""The paper's and arXiv 2508.00903's claims, and questions of our own, as rows: what is claimed, what this run's seeds show at the end, a verdict.

Every seed is asked by itself. A claim holds if it holds in all of them, does not hold if it does in none; when the seeds differ,
or have too few universal neurons to ask, it cannot be told.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import binom

from lib.chapters.circuits.roles import NULL_QUANTILE, PUBLISHED_CUTS, PUBLISHED_HIGH_KURTOSIS
from lib.chapters.emergence.statistics import HALF, layer_persistence, persistence
from lib.chapters.families.summary import FAMILIES
from lib.chapters.universality.properties import (
    OWN_LAYER,
    OWN_LAYER_PUBLISHED,
    PUBLISHED_SHARES,
    layer_shares,
    own_layer_excess,
    reference_shares,
)
from lib.display.captions import percent, signed
from lib.display.claims import FEWEST, SIGNIFICANT
from lib.run import with_universal

PAPER, FOLLOWER = "arXiv 2401.12181", "arXiv 2508.00903"
OWN = "this report"  # asks what neither paper is known to state; a score that it takes from elsewhere is named
OWN_PERSISTENCE, OWN_HEADS = f"{OWN}, on the persistence of {FOLLOWER}", f"{OWN}, with the score of arXiv 2209.11895"
NOTHING = "—"
VERDICTS = ("holds", "does not hold", "cannot tell")
PAPER_FAMILIES = ("unigram", "alphabet", "token_class", "previous_token", "position", "syntax", "context")


def verdict(answers: Sequence[bool | None]) -> str:
    """One of VERDICTS from one answer a seed; None is a seed that cannot be asked."""
    known = [answer for answer in answers if answer is not None]
    if len(known) < len(answers) or not known or len(set(known)) > 1:
        return "cannot tell"
    return "holds" if known[0] else "does not hold"


def spread(values: Sequence[float], form=lambda value: f"{value:.2f}") -> str:
    """ "mean (low to high)" over seeds; "undefined" without any number."""
    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known)]
    if not len(known):
        return "undefined"
    low, high = form(known.min()), form(known.max())
    return low if low == high else f"{form(known.mean())} ({low} to {high})"


def _row(claim: str, source: str, published: str, here: str, said: str) -> dict:
    return {
        "verdict": said,
        "claim": claim,
        "here, mean (range over seeds)": here,
        "published": published,
        "source": source,
    }


def claims(
    tables: dict[str, pd.DataFrame], points: pd.DataFrame, threshold: float, families: pd.DataFrame | None = None
) -> pd.DataFrame:
    """One row per claim. `tables` has all points of `lib.chapters.emergence.tables.TABLES`; `points` their tokens and steps in order.

    `families`: one seed's rows of chapter 4 with excess_corr, where the run has them.
    """
    last = {name: table[table["point"] == points["point"].iloc[-1]] for name, table in tables.items()}
    rows = [
        *_universality(last["neurons"], last["layers"], threshold),
        *_properties(last["properties"], last["neurons"], threshold),
        _frequency(last["seeds"]),
        *_circuits(last["layers"], last["heads"]),
        *_families(families, threshold),
        *_training(tables["neurons"], points, threshold),
        *_heads(last["heads"]),
    ]
    return pd.DataFrame(rows)


def _universality(neurons: pd.DataFrame, layers: pd.DataFrame, threshold: float) -> list[dict]:
    shares = reference_shares(with_universal(neurons, threshold))["share"]
    least = PUBLISHED_SHARES["share"].min()
    published = f"{percent(least)} to {percent(PUBLISHED_SHARES['share'].max())}"
    same = layers.groupby("seed")["same_layer"].agg(own_layer_excess)
    return [
        _row(
            f"At least {percent(least)} of the neurons are universal, the least published",
            PAPER,
            published,
            spread(shares, percent),
            verdict([bool(share >= least) for share in shares]),
        ),
        _row(
            OWN_LAYER,
            PAPER,
            OWN_LAYER_PUBLISHED,
            f"{spread(same, lambda value: signed(100 * value, 1))} percentage points more",
            verdict([bool(excess > 0) if np.isfinite(excess) else None for excess in same]),
        ),
    ]


def _properties(properties: pd.DataFrame, neurons: pd.DataFrame, threshold: float) -> list[dict]:
    number = (neurons["excess_corr"] > threshold).groupby(neurons["seed"]).sum()
    rows = []
    for (_, label), own in properties[properties["published"] != ""].groupby(["property", "label"], sort=False):
        answers = [
            {"holds": True, "does not hold": False}.get(row.verdict) if number[row.seed] else None
            for row in own.itertuples()
        ]
        rows.append(
            _row(
                f"Universal neurons: {label} is {own['published'].iloc[0]} within their layer",
                PAPER,
                "figure 3",
                f"Cliff's delta {spread(own['effect'], signed)}",
                verdict(answers),
            )
        )
    return rows


def _frequency(seeds: pd.DataFrame) -> dict:
    published = PUBLISHED_SHARES["frequency_cosine"]
    found = seeds["frequency_cosine"]
    return _row(
        "Neurons that fire often have a lower cos(w_in, w_out)",
        PAPER,
        f"correlation {published.min():.2f} to {published.max():.2f}",
        f"correlation {spread(found)}",
        verdict([bool(value < 0) if np.isfinite(value) else None for value in found]),
    )


def _circuits(layers: pd.DataFrame, heads: pd.DataFrame) -> list[dict]:
    depth = int(layers["layer"].max()) + 1
    late, end = layers["layer"] >= depth / 2, layers["layer"] == depth - 1

    def total(column: str, where: pd.Series) -> pd.Series:
        return layers[where].groupby("seed")[column].sum()

    peaked = layers.groupby("seed")[["peaked_positive", "peaked_negative"]].sum().sum(axis=1)
    prediction = pd.DataFrame({"early": total("prediction", ~late), "late": total("prediction", late)})
    final = pd.DataFrame({"suppression": total("suppression", end), "prediction": total("prediction", end)})
    low, asked = total("low_variance", layers["layer"] >= depth - 2), total("neurons", layers["layer"] >= depth - 2)
    surprising = binom.sf(low - 1, asked, 1 - NULL_QUANTILE) < SIGNIFICANT
    bos = heads.groupby("seed")["bos"].max()
    return [
        _row(
            f"Some neurons have W_U kurtosis above {PUBLISHED_CUTS.kurtosis:g} (over all tokens; chapter 5 says how many have it without tokens that were never learned)",
            PAPER,
            f"{sum(PUBLISHED_HIGH_KURTOSIS.values()):,.0f} in the last four layers of GPT2-medium",
            f"{spread(peaked, lambda v: f'{v:.1f}')} neurons",
            verdict([bool(number > 0) for number in peaked]),
        ),
        _row(
            "Prediction neurons (calibrated cut) are more frequent in the second half of the depth",
            PAPER,
            "figure 6",
            f"{spread(prediction['late'], lambda v: f'{v:.1f}')} against {spread(prediction['early'], lambda v: f'{v:.1f}')} neurons",
            verdict(
                [
                    None if depth < 2 or not row.early + row.late else bool(row.late > row.early)
                    for row in prediction.itertuples()
                ]
            ),
        ),
        _row(
            "In the last layer suppression outnumbers prediction (calibrated cut)",
            PAPER,
            "figure 6",
            f"{spread(final['suppression'], lambda v: f'{v:.1f}')} against {spread(final['prediction'], lambda v: f'{v:.1f}')} neurons",
            verdict(
                [
                    None if not row.suppression + row.prediction else bool(row.suppression > row.prediction)
                    for row in final.itertuples()
                ]
            ),
        ),
        _row(
            f"In the last two layers more neurons than chance have a logit variance below {percent(NULL_QUANTILE, 1)} of random directions: one of two marks of entropy neurons, a large norm is the other",
            PAPER,
            "figure 7",
            f"{spread(low, lambda v: f'{v:.1f}')} neurons, {float((asked * (1 - NULL_QUANTILE)).mean()):.1f} by chance",
            verdict([bool(one) for one in surprising]),
        ),
        _row(
            "Some heads rest on BOS: the best gives it more than half of its attention",
            OWN,
            NOTHING,
            spread(bos),
            verdict([bool(score > HALF) for score in bos]),
        ),
    ]


def _families(families: pd.DataFrame | None, threshold: float) -> list[dict]:
    """Whether there are universal neurons of each family of the paper; one seed, so no range."""
    if families is None:
        claim = "Universal neurons fall into families: " + ", ".join(FAMILIES[family] for family in PAPER_FAMILIES)
        return [
            _row(
                claim,
                PAPER,
                "figures 4, 15 to 21",
                "not measured: this run has no families of the last checkpoint",
                "cannot tell",
            )
        ]
    rows = []
    for family in PAPER_FAMILIES:
        claim = f"There are universal neurons of the family “{FAMILIES[family]}”"
        own = families[families["excess_corr"] > threshold]
        number = int((own["family"] == family).sum())
        rows.append(
            _row(
                claim,
                PAPER,
                "figures 4, 15 to 21",
                f"{number} of {len(own)} (reference seed)",
                verdict([bool(number) if len(own) >= FEWEST or number else None]),
            )
        )
    return rows


def middle_point(points: pd.DataFrame) -> str | None:
    """The last point at no more than half of the training, from where persistence is asked; None with a single point."""
    if len(points) < 2:
        return None
    for column in ("tokens", "step"):
        values = pd.to_numeric(points[column]).astype(float)
        if values.notna().all():
            before = points.loc[values <= values.iloc[-1] / 2, "point"]
            return before.iloc[-1] if len(before) else points["point"].iloc[0]
    return points["point"].iloc[-2]


def _training(neurons: pd.DataFrame, points: pd.DataFrame, threshold: float) -> list[dict]:
    start = middle_point(points)
    if start is None:
        return []
    kept = persistence(neurons, threshold)
    kept = kept[kept["point"] == start]
    shares = [
        layer_shares(with_universal(neurons[neurons["point"] == point], threshold)).groupby("seed")["share"].mean()
        for point in (start, points["point"].iloc[-1])
    ]
    layers = layer_persistence(neurons, threshold, start)
    last = layers["layer"].max()
    outer = layers["layer"].isin([0, last])

    def pooled(where: pd.Series) -> pd.Series:
        own = layers[where].groupby("seed")[["kept", "universal"]].sum()
        return own["kept"] / own["universal"].where(own["universal"] >= FEWEST)

    def percents(share: float) -> str:
        return percent(share, 1)

    ends, inner = pooled(outer), pooled(~outer)
    inner = inner.reindex(ends.index)
    return [
        _row(
            "Universality grows in the second half of training",
            OWN,
            NOTHING,
            f"from {spread(shares[0], percent)} to {spread(shares[1], percent)}",
            verdict([bool(after > before) for before, after in zip(*shares, strict=True)]),
        ),
        _row(
            "Most neurons that are universal halfway are so at the end, more than chance",
            OWN_PERSISTENCE,
            NOTHING,
            f"{spread(kept['persistence'], percents)}, chance {spread(kept['chance'], percents)}",
            verdict(
                [
                    None if row.universal < FEWEST else bool(row.persistence > HALF and row.persistence > row.chance)
                    for row in kept.itertuples()
                ]
            ),
        ),
        _row(
            "…and their best matches are the same neurons",
            OWN,
            NOTHING,
            spread(kept["same_partner"], percents),
            verdict(
                [
                    None if row.universal < FEWEST or not row.kept else bool(row.same_partner > HALF)
                    for row in kept.itertuples()
                ]
            ),
        ),
        _row(
            "Persistence is higher in the first and last layer than between",
            FOLLOWER,
            "highest in early and deep layers",
            f"{spread(ends, percents)} against {spread(inner, percents)}",
            verdict(
                [bool(a > b) if np.isfinite(a) and np.isfinite(b) else None for a, b in zip(ends, inner, strict=True)]
            ),
        ),
    ]


def _heads(heads: pd.DataFrame) -> list[dict]:
    best = heads.groupby("seed")[["previous", "induction"]].max()
    named = {
        "previous": "Some head attends to the previous token with more than half of its attention",
        "induction": "Some head does induction with more than half of its attention",
    }
    return [
        _row(
            claim,
            OWN_HEADS if name == "induction" else OWN,
            NOTHING,
            spread(best[name]),
            verdict([bool(score > HALF) for score in best[name]]),
        )
        for name, claim in named.items()
    ]
