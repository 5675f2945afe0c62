"""What families add up to: counts by group, layer and seed, agreement across seeds, and activations of single neurons.

Everything is computed from a run's tables and grouped moments; no model runs.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from torch import Tensor

from lib.chapters.families.scoring import PUBLISHED_HIGH, PUBLISHED_LOW, UNEXPLAINED, Statistics
from lib.chapters.universality.properties import TOP_SHARE
from lib.labels.labels import WORD_PLACES, LabelSet

FAMILIES = {  # in the order of figures and tables, with their names in words
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
EXPLAINED = tuple(name for name in FAMILIES if name != UNEXPLAINED)
TOP = f"top {100 * TOP_SHARE:g} %"
KEY = ["seed", "layer", "neuron"]
LOWER_HALF = "lower half by score"


def with_excess(families: pd.DataFrame, neurons: pd.DataFrame) -> pd.DataFrame:
    """The families of the seeds in `neurons` (`neurons_all_seeds`), with `excess_corr` and `is_universal`."""
    return families.merge(neurons[[*KEY, "excess_corr", "is_universal"]], on=KEY, validate="one_to_one")


def groups_of(rows: pd.DataFrame) -> dict[str, pd.Series]:
    """Masks over one seed's neurons: universal, the top 5 % by excess (these two overlap), and the rest."""
    rank = rows["excess_corr"].rank(method="first", ascending=False)
    universal, top = rows["is_universal"], rank <= round(TOP_SHARE * len(rows))
    return {"universal": universal, TOP: top, "rest": ~universal & ~top}


def family_counts(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per family: label, and number and share of one seed's neurons in it, of all and of each group."""
    counts = pd.DataFrame({"family": list(FAMILIES), "label": list(FAMILIES.values())})
    for name, mask in ({"all": pd.Series(True, rows.index)} | groups_of(rows)).items():
        number = rows.loc[mask, "family"].value_counts().reindex(counts["family"], fill_value=0).to_numpy()
        counts[name] = number
        counts[f"{name} share"] = number / mask.sum() if mask.any() else np.nan
    return counts


def layer_counts(rows: pd.DataFrame) -> pd.DataFrame:
    """Neurons by layer (rows) and family (columns, all of FAMILIES)."""
    return pd.crosstab(rows["layer"], rows["family"]).reindex(columns=list(FAMILIES), fill_value=0)


def seed_shares(families: pd.DataFrame) -> pd.DataFrame:
    """Share of neurons in each family (columns) of each seed (rows)."""
    shares = pd.crosstab(families["seed"], families["family"], normalize="index")
    return shares.reindex(columns=list(FAMILIES), fill_value=0.0)


def held_out_counts(families: pd.DataFrame) -> pd.DataFrame:
    """One row per family: neurons above chance on the half that chooses (`chosen`), how many of them also pass on the
    other half (`held_out`), and their median gap between the two scores.

    Label and family are chosen on the one half alone; otherwise a family that does not hold would lose its neurons to
    another before they are counted.
    """
    rows = []
    for name in EXPLAINED:
        own = families[(families["first_family"] == name) & (families["first_score"] > families["chance"])]
        held_out, gap = own["first_held_out"] > own["chance"], own["first_score"] - own["first_held_out"]
        rows.append((name, FAMILIES[name], len(own), int(held_out.sum()), gap.median() if len(own) else np.nan))
    return pd.DataFrame(rows, columns=["family", "label", "chosen", "held_out", "median_gap"])


def published_comparison(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per group: neurons, how many have a best score below 0.05, at least 0.5, and are unexplained here."""
    found = []
    for name, mask in groups_of(rows).items():
        own = rows[mask]
        low, high = own["score"] < PUBLISHED_LOW, own["score"] >= PUBLISHED_HIGH
        found.append((name, len(own), low.sum(), high.sum(), (own["family"] == UNEXPLAINED).sum()))
    return pd.DataFrame(found, columns=["group", "neurons", "low", "high", "unexplained"])


def matched_pairs(families: pd.DataFrame, matches: pd.DataFrame) -> pd.DataFrame:
    """Each best match across seeds (`matches_all_seeds`, correlation above 0) with family, label and score of both."""
    own = families[[*KEY, "family", "label", "score"]]
    other = own.add_prefix("match_").rename(columns={"match_seed": "model"})
    return matches[matches["corr"] > 0].merge(own, on=KEY).merge(other, on=["model", "match_layer", "match_neuron"])


def family_agreement(pairs: pd.DataFrame) -> pd.DataFrame:
    """How often matched neurons share family and label, and how often they would by chance; pairs with an explained
    neuron.

    One row for all such pairs, one for the top 5 % by correlation, one for those whose first neuron scores below the
    median, and one per family of the first neuron. The chance level gives the same first neurons the same matches in
    random order; a family's matches come from all pairs.
    """
    explained = pairs[pairs["family"] != UNEXPLAINED]
    strongest = explained.nlargest(max(1, round(TOP_SHARE * len(explained))), "corr") if len(explained) else explained
    parts = {"all explained": explained, f"strongest {100 * TOP_SHARE:g} %": strongest}
    parts[LOWER_HALF] = explained[explained["score"] < explained["score"].median()]
    parts |= {name: explained[explained["family"] == name] for name in EXPLAINED}
    rows = []
    for name, part in parts.items():
        pool = explained if name in FAMILIES else part
        labelled = pool["match_label"].where(pool["match_family"] != UNEXPLAINED)
        same_family, same_label = part["family"] == part["match_family"], part["label"] == part["match_label"]
        rows.append(
            {
                "pairs_of": name,
                "pairs": len(part),
                "same_family": same_family.mean(),
                "same_label": (same_label & (part["match_family"] != UNEXPLAINED)).mean(),
                "chance_family": _chance(part["family"], pool["match_family"]),
                "chance_label": _chance(part["label"], labelled),
            }
        )
    return pd.DataFrame(rows)


def _chance(values: pd.Series, partners: pd.Series) -> float:
    """Probability that a random partner has the same value; a missing value agrees with nothing."""
    if not len(values) or not partners.notna().any():
        return np.nan
    return float(values.map(partners.value_counts() / len(partners)).fillna(0).mean())


def shared_words(rows: pd.DataFrame) -> pd.DataFrame:
    """Words that explain two or more neurons of one seed: label, neurons, best score; most neurons first."""
    unigram = rows[rows["family"] == "unigram"]
    table = unigram.groupby("label").agg(neurons=("score", "size"), best=("score", "max")).reset_index()
    return table[table["neurons"] > 1].sort_values(["neurons", "best"], ascending=False).reset_index(drop=True)


# ---------------------------------------------------------------- activations of single neurons


def best_neurons(rows: pd.DataFrame, family: str, number: int, per_label: int = 2) -> pd.DataFrame:
    """The neurons of one seed that a family explains best, its own first, at most `per_label` of the same label.

    Columns layer, neuron, score and label (those of this family), `assigned`: whether it is the neuron's family,
    `best_label`: of all families, and `explained`. Where the statistics know domains, also the best label of domain or
    language (context_label) and its score (context_score).
    """
    columns = {"layer": "layer", "neuron": "neuron", f"score_{family}": "score", f"label_{family}": "label"}
    if f"score_{family}" not in rows:
        return pd.DataFrame(columns=[*columns.values(), "assigned", "best_label", "explained"])
    table = rows[list(columns)].rename(columns=columns).assign(assigned=rows["family"] == family)
    table["best_label"], table["explained"] = rows["label"], rows["family"] != UNEXPLAINED
    if "score_context" in rows:
        table["context_label"], table["context_score"] = rows["label_context"], rows["score_context"]
    ordered = table[table["score"] > 0].sort_values(["assigned", "score"], ascending=False, kind="stable")
    return ordered[ordered.groupby("label").cumcount() < per_label].head(number).reset_index(drop=True)


def whose(row: pd.Series, mark: str = "") -> str:
    """What a neuron of `best_neurons` is if it is not of that family; `mark` stands around its best label."""
    return f"a neuron of {mark}{row['best_label']}{mark}" if row["explained"] else "an unexplained neuron"


def label_row(sets: list[LabelSet], label: str) -> tuple[str, int]:
    """(table, row) of a label in the statistics."""
    for one in sets:
        found = np.flatnonzero(one.labels["label"] == label)
        if len(found):
            return one.table, int(found[0])
    raise KeyError(label)


def row_means(own: Mapping[str, Tensor], table: str, neuron: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, mean z) of one neuron in each row of a table, both halves of the text; z is in deviations from its mean.

    `own` is the neuron's layer as `GroupedMoments.compact` gives it. The mean is 0 for a row without a token.
    """
    count = own[f"{table}.count"].double().numpy()  # (halves, rows)
    tokens = count.sum(0)
    return tokens, (count * own[f"{table}.mean"][..., neuron].double().numpy()).sum(0) / np.maximum(tokens, 1)


def row_sums(own: Mapping[str, Tensor], table: str, neuron: int) -> np.ndarray:
    """(rows + 1, 3): tokens, Σz and Σz² of one neuron in each row of a table, and last of all tokens with a group."""
    tokens, z = row_means(own, table, neuron)
    square = own[f"{table}.spread"][:, neuron].double().numpy() ** 2 + z**2
    each, center, variance = (own[f"{table}.{key}"].double() for key in ("tokens", "center", "variance"))
    center, variance = center[:, neuron], variance[:, neuron]
    whole = (each.sum(), each @ center, each @ (variance + center**2))
    return np.vstack([np.stack([tokens, tokens * z, tokens * square], axis=1), np.array(whole)])


def mean_and_spread(own: Mapping[str, Tensor], sums: np.ndarray, neuron: int) -> tuple[float, float]:
    """Mean and standard deviation of a neuron's activation from tokens, Σz and Σz²; NaN without a token."""
    tokens, first, second = sums
    if tokens < 0.5:
        return np.nan, np.nan
    mean, scale = first / tokens, float(own["deviation"][neuron])
    return float(own["mean"][neuron]) + scale * mean, scale * np.sqrt(np.maximum(0.0, second / tokens - mean**2))


def activation_by_label(chosen: pd.DataFrame, statistics: Statistics, sets: list[LabelSet]) -> pd.DataFrame:
    """`best_neurons` with mean and deviation of their activation with the label (`on`) and without it (`off`)."""
    rows = []
    for row in chosen.itertuples():
        own, (table, label) = statistics[row.layer], label_row(sets, row.label)
        sums = row_sums(own, table, row.neuron)
        on, off = (mean_and_spread(own, part, row.neuron) for part in (sums[label], sums[-1] - sums[label]))
        rows.append((*on, *off))
    return chosen.join(pd.DataFrame(rows, columns=["on", "on_spread", "off", "off_spread"]))


def activation_by_word_place(chosen: pd.DataFrame, statistics: Statistics, groups: tuple[str, ...]) -> pd.DataFrame:
    """Unigram neurons' activation on their word by where its tokens stand: a row a neuron and place with mean, spread
    and tokens. `groups` are those of the grouping word_place."""
    rows = []
    for row in chosen.itertuples():
        word, own = row.label.removeprefix("word “").removesuffix("”"), statistics[row.layer]
        sums = row_sums(own, "word_place", row.neuron)
        for place in WORD_PLACES:
            found = sums[groups.index(f"{word}|{place}")] if f"{word}|{place}" in groups else np.zeros(3)
            activation = mean_and_spread(own, found, row.neuron)
            rows.append((row.layer, row.neuron, row.label, place, *activation, int(found[0])))
    return pd.DataFrame(rows, columns=["layer", "neuron", "label", "place", "mean", "spread", "tokens"])


def activation_by_position(chosen: pd.DataFrame, statistics: Statistics) -> np.ndarray:
    """Mean activation at each position in the block, (neurons, positions); NaN without a token."""
    curves = []
    for row in chosen.itertuples():
        own = statistics[row.layer]
        tokens, z = row_means(own, "position", row.neuron)
        curve = float(own["mean"][row.neuron]) + float(own["deviation"][row.neuron]) * z
        curves.append(np.where(tokens > 0, curve, np.nan))
    return np.array(curves)


def activation_by_letter(chosen: pd.DataFrame, statistics: Statistics, sets: list[LabelSet]) -> pd.DataFrame:
    """Alphabet neurons (rows) by first letter (columns): mean activation in deviations from the neuron's mean."""
    token = next(one for one in sets if one.grouping == "token")
    letters = token.labels[token.labels["family"] == "alphabet"]
    rows = {}
    for row in chosen.itertuples():
        tokens, z = (one[letters.index] for one in row_means(statistics[row.layer], token.table, row.neuron))
        name = f"L{row.layer}.{row.neuron} “{row.label[-1]}” {row.score:.2f}"
        rows[name] = np.where(tokens > 0, z, np.nan)
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(letters["label"].str[-1]))


def activation_by_domain(chosen: pd.DataFrame, statistics: Statistics, domains: tuple[str, ...]) -> pd.DataFrame:
    """Context neurons (rows) by domain (columns): mean activation in deviations from the neuron's mean."""
    rows = {}
    for row in chosen.itertuples():
        tokens, z = row_means(statistics[row.layer], "domain", row.neuron)
        rows[f"L{row.layer}.{row.neuron} {row.label}"] = np.where(tokens > 0, z, np.nan)
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(domains)).dropna(axis=1)
