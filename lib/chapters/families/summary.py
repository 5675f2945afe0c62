"""What the families add up to: counts by group of neurons, layer and seed, agreement of seeds, and profiles of neurons.

Everything is computed from the tables and the grouped moments of a run; nothing here runs a model.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from torch import Tensor

from lib.chapters.families.scoring import PUBLISHED_HIGH, PUBLISHED_LOW, TOP_SHARE, UNEXPLAINED
from lib.labels.labels import WORD_PLACES, LabelSet

FAMILIES = {  # in the order of figures and tables, with the words that stand for them
    "unigram": "one word",
    "alphabet": "first letter",
    "token_class": "token class",
    "previous_token": "previous token",
    "next_token": "next token",
    "position": "position",
    "syntax": "syntax",
    "context": "domain or language",
    "topic": "topic",
    UNEXPLAINED: "unexplained",
}
TOP = f"top {100 * TOP_SHARE:g} %"
KEY = ["seed", "layer", "neuron"]


def with_excess(families: pd.DataFrame, neurons: pd.DataFrame) -> pd.DataFrame:
    """The families of the seeds whose excess correlation is known (`neurons_all_seeds`), with `excess_corr`."""
    return families.merge(neurons[[*KEY, "excess_corr"]], on=KEY, validate="one_to_one")


def groups_of(rows: pd.DataFrame, threshold: float) -> dict[str, pd.Series]:
    """Masks over one seed's neurons: universal, the TOP_SHARE of largest excess (whatever the threshold), and the rest.

    Universal neurons and the top overlap; the rest are in neither.
    """
    universal = rows["excess_corr"] > threshold
    number = round(TOP_SHARE * len(rows))
    top = rows["excess_corr"].rank(method="first", ascending=False) <= number
    return {"universal": universal, TOP: top, "rest": ~universal & ~top}


def family_counts(rows: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """One row per family: label, neurons of one seed, and number and share in each group of `groups_of`."""
    counts = pd.DataFrame({"family": list(FAMILIES), "label": list(FAMILIES.values())})
    masks = {"all": pd.Series(True, rows.index)} | groups_of(rows, threshold)
    for name, mask in masks.items():
        number = rows.loc[mask, "family"].value_counts().reindex(counts["family"], fill_value=0).to_numpy()
        counts[name] = number
        counts[f"{name} share"] = number / mask.sum() if mask.any() else np.nan
    return counts


def layer_counts(rows: pd.DataFrame) -> pd.DataFrame:
    """Neurons by layer (rows) and family (columns, all of FAMILIES)."""
    return pd.crosstab(rows["layer"], rows["family"]).reindex(columns=list(FAMILIES), fill_value=0)


def seed_shares(families: pd.DataFrame) -> pd.DataFrame:
    """Share of neurons in each family (columns) of each seed (rows)."""
    return pd.crosstab(families["seed"], families["family"], normalize="index").reindex(
        columns=list(FAMILIES), fill_value=0.0
    )


def held_out(families: pd.DataFrame) -> pd.DataFrame:
    """One row per family: neurons whose best score on the half that chooses is of the family and passes chance (`chosen`), how
    many of them pass it on the other half too (`held_out`), and the median gap of the chosen between the two scores. Label and family are
    chosen on the one half alone, or a family that does not hold would lose its neurons to another before it is counted."""
    rows = []
    for name in list(FAMILIES)[:-1]:
        own = families[(families["first_family"] == name) & (families["first_score"] > families["chance"])]
        rows.append(
            {
                "family": name,
                "label": FAMILIES[name],
                "chosen": len(own),
                "held_out": int((own["first_held_out"] > own["chance"]).sum()),
                "median_gap": (own["first_score"] - own["first_held_out"]).median() if len(own) else np.nan,
            }
        )
    return pd.DataFrame(rows)


def published_comparison(rows: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """One row per group: neurons, how many have a best score below 0.05, at least 0.5, and are unexplained here."""
    masks = groups_of(rows, threshold)
    return pd.DataFrame(
        [
            {
                "group": name,
                "neurons": int(mask.sum()),
                "low": int((rows.loc[mask, "score"] < PUBLISHED_LOW).sum()),
                "high": int((rows.loc[mask, "score"] >= PUBLISHED_HIGH).sum()),
                "unexplained": int((rows.loc[mask, "family"] == UNEXPLAINED).sum()),
            }
            for name, mask in masks.items()
        ]
    )


def matched_pairs(families: pd.DataFrame, matches: pd.DataFrame) -> pd.DataFrame:
    """Each best match across seeds (`matches_all_seeds`, correlation above 0) with family and label of both neurons."""
    columns = [*KEY, "family", "label"]
    own = families[columns]
    other = own.rename(
        columns={
            "seed": "model",
            "layer": "match_layer",
            "neuron": "match_neuron",
            "family": "match_family",
            "label": "match_label",
        }
    )
    found = matches[matches["corr"] > 0]
    return found.merge(own, on=KEY).merge(other, on=["model", "match_layer", "match_neuron"])


def agreement(pairs: pd.DataFrame) -> pd.DataFrame:
    """How often matched neurons share family and label, against pairs drawn by chance; pairs with an explained neuron.

    One row for all such pairs, one for the TOP_SHARE of largest correlation, and one per family of the first neuron.
    Chance pairs the same first neurons with the same partners in random order.
    """
    explained = pairs[pairs["family"] != UNEXPLAINED]
    strongest = explained.nlargest(max(1, round(TOP_SHARE * len(explained))), "corr") if len(explained) else explained
    parts = {"all explained": explained, f"strongest {100 * TOP_SHARE:g} %": strongest}
    parts |= {name: explained[explained["family"] == name] for name in list(FAMILIES)[:-1]}
    rows = []
    for name, part in parts.items():
        pool = explained if name in FAMILIES else part  # a family's partners by chance come from all pairs
        rows.append(
            {
                "pairs_of": name,
                "pairs": len(part),
                "same_family": (part["family"] == part["match_family"]).mean() if len(part) else np.nan,
                "same_label": _same(part).mean() if len(part) else np.nan,
                "chance_family": _chance(part["family"], pool["match_family"]),
                "chance_label": _chance(
                    part["label"], pool.loc[pool["match_family"] != UNEXPLAINED, "match_label"], len(pool)
                ),
            }
        )
    return pd.DataFrame(rows)


def _same(pairs: pd.DataFrame) -> pd.Series:
    return (pairs["label"] == pairs["match_label"]) & (pairs["match_family"] != UNEXPLAINED)


def _chance(first: pd.Series, partners: pd.Series, total: int | None = None) -> float:
    """Chance that a neuron of `first` meets its own value among `partners`, out of `total` of them."""
    if not len(first) or not len(partners):
        return np.nan
    share = partners.value_counts() / (total or len(partners))
    return float(first.map(share).fillna(0).mean())


# ---------------------------------------------------------------- neurons to show


def shown(rows: pd.DataFrame, family: str, number: int, per_label: int = 2) -> pd.DataFrame:
    """The neurons of one seed that a family explains best, at most `per_label` of the same label.

    Columns layer, neuron, score, label (those of this family) and `assigned`: whether it is the neuron's family.
    """
    if f"score_{family}" not in rows:
        return pd.DataFrame(columns=["layer", "neuron", "score", "label", "assigned"])
    table = pd.DataFrame(
        {
            "layer": rows["layer"],
            "neuron": rows["neuron"],
            "score": rows[f"score_{family}"],
            "label": rows[f"label_{family}"],
            "assigned": rows["family"] == family,
        }
    )
    table = table[table["score"] > 0]
    ordered = table.sort_values(["assigned", "score"], ascending=False, kind="stable")
    return ordered[ordered.groupby("label").cumcount() < per_label].head(number).reset_index(drop=True)


def label_member(sets: list[LabelSet], label: str) -> tuple[str, np.ndarray]:
    """(grouping, groups that carry the label) of a label by its name."""
    for one in sets:
        found = np.flatnonzero(one.labels["label"] == label)
        if len(found):
            return one.grouping, one.member[found[0]]
    raise KeyError(label)


def mean_and_spread(own: Mapping[str, Tensor], grouping: str, member: np.ndarray, neuron: int) -> tuple[float, float]:
    """Mean and standard deviation, in units of the activation, of a neuron on the tokens whose group is in `member`.

    `own` is the neuron's layer as `GroupedMoments.compact` gives it; both halves of the text count. NaN without a token.
    """
    count = own[f"{grouping}.count"].double().numpy() * member  # (halves, groups)
    if not count.sum():
        return np.nan, np.nan
    z = own[f"{grouping}.mean"][..., neuron].double().numpy()
    spread = own[f"{grouping}.spread"][:, neuron].double().numpy()
    both = count.sum(0)
    by_group = (count * z).sum(0) / np.maximum(both, 1)
    mean = (both * by_group).sum() / both.sum()
    square = (both * (spread**2 + by_group**2)).sum() / both.sum()
    scale = float(own["deviation"][neuron])
    return float(own["mean"][neuron]) + scale * mean, scale * np.sqrt(max(0.0, square - mean**2))


def on_and_off(chosen: pd.DataFrame, statistics, sets: list[LabelSet]) -> pd.DataFrame:
    """`shown` neurons with mean and deviation of their activation with the label (`on`) and without it (`off`)."""
    rows = []
    for row in chosen.itertuples():
        grouping, member = label_member(sets, row.label)
        own = statistics[int(row.layer)]
        on = mean_and_spread(own, grouping, member, int(row.neuron))
        off = mean_and_spread(own, grouping, ~member, int(row.neuron))
        rows.append({"on": on[0], "on_spread": on[1], "off": off[0], "off_spread": off[1]})
    return chosen.join(pd.DataFrame(rows, columns=["on", "on_spread", "off", "off_spread"]))


def by_word_place(chosen: pd.DataFrame, statistics, groups: tuple[str, ...]) -> pd.DataFrame:
    """Unigram neurons' mean activation on their word by where its tokens stand: rows layer, neuron, label, place, mean,
    spread, tokens. `groups` are those of the grouping word_place."""
    rows = []
    for row in chosen.itertuples():
        word = row.label.removeprefix("word “").removesuffix("”")
        own = statistics[int(row.layer)]
        for place in WORD_PLACES:
            member = np.array([group == f"{word}|{place}" for group in groups])
            mean, spread = mean_and_spread(own, "word_place", member, int(row.neuron))
            tokens = int(own["word_place.count"].sum(0).numpy()[member].sum())
            rows.append(
                {
                    "layer": row.layer,
                    "neuron": row.neuron,
                    "label": row.label,
                    "place": place,
                    "mean": mean,
                    "spread": spread,
                    "tokens": tokens,
                }
            )
    return pd.DataFrame(rows, columns=["layer", "neuron", "label", "place", "mean", "spread", "tokens"])


def near_duplicates(rows: pd.DataFrame) -> pd.DataFrame:
    """Words that explain two or more neurons of one seed: label, neurons, best score; most neurons first."""
    unigram = rows[rows["family"] == "unigram"]
    table = unigram.groupby("label").agg(neurons=("score", "size"), best=("score", "max")).reset_index()
    return table[table["neurons"] > 1].sort_values(["neurons", "best"], ascending=False).reset_index(drop=True)


def by_group(chosen: pd.DataFrame, statistics, grouping: str) -> np.ndarray:
    """Mean activation of each chosen neuron on each group of a grouping, (neurons, groups); NaN for an empty group."""
    rows = []
    for row in chosen.itertuples():
        own = statistics[int(row.layer)]
        count = own[f"{grouping}.count"].double().numpy()
        z = (count * own[f"{grouping}.mean"][..., int(row.neuron)].double().numpy()).sum(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            rows.append(
                float(own["mean"][int(row.neuron)]) + float(own["deviation"][int(row.neuron)]) * z / count.sum(0)
            )
    return np.array(rows)


def by_letter(chosen: pd.DataFrame, statistics, sets: list[LabelSet]) -> pd.DataFrame:
    """Alphabet neurons (rows, with their letter and its score) by first letter (columns): mean activation minus the neuron's own mean, in deviations."""
    token = next(one for one in sets if one.grouping == "token")
    alphabet = token.labels["family"] == "alphabet"
    letters = token.labels.loc[alphabet, "label"].str[-1]
    rows = {}
    for row in chosen.itertuples():
        own = statistics[int(row.layer)]
        means = [
            mean_and_spread(own, "token", member, int(row.neuron))[0] for member in token.member[alphabet.to_numpy()]
        ]
        rows[f"L{row.layer}.{row.neuron} “{row.label[-1]}” {row.score:.2f}"] = (
            np.array(means) - float(own["mean"][int(row.neuron)])
        ) / float(own["deviation"][int(row.neuron)])
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(letters))


def by_domain(chosen: pd.DataFrame, statistics, domains: tuple[str, ...]) -> pd.DataFrame:
    """Context neurons (rows) by domain (columns): mean activation minus the neuron's own mean, in deviations."""
    if chosen.empty:
        return pd.DataFrame(columns=list(domains))
    table = pd.DataFrame(by_group(chosen, statistics, "domain"), columns=list(domains)).dropna(axis=1)
    for index, row in enumerate(chosen.itertuples()):
        own = statistics[int(row.layer)]
        table.iloc[index] = (table.iloc[index] - float(own["mean"][int(row.neuron)])) / float(
            own["deviation"][int(row.neuron)]
        )
    table.index = [f"L{row.layer}.{row.neuron} {row.label}" for row in chosen.itertuples()]
    return table
