"""Tables as a run writes them, of random numbers, with or without universal neurons, and with every claim planted."""

import numpy as np
import pandas as pd

from lib.chapters.universality.properties import PUBLISHED_MEDIANS
from lib.run import with_universal

LAYERS, WIDTH, SEEDS = 6, 60, ["a", "b", "c", "d"]
NEURON = ["seed", "layer", "neuron"]
LOW = {column for column, row in PUBLISHED_MEDIANS.iterrows() if (row < 50).all()}


def make_tables(random_seed: int, universal: bool, planted: bool = False) -> dict[str, pd.DataFrame]:
    """The tables that the ledger and the front page read."""
    random = np.random.default_rng(random_seed)
    index = pd.MultiIndex.from_product([SEEDS, range(LAYERS), range(WIDTH)], names=NEURON).to_frame(index=False)
    matches = made_matches(random, index, universal, planted)
    return {
        "neurons_all_seeds": made_neurons(random, index, matches, planted),
        "matches_all_seeds": matches,
        "nulls": made_nulls(random, index, matches, planted),
        **made_families(random, index, planted),
        **made_roles(random, index, planted),
        **made_interventions(random, index, universal, planted),
    }


def few_of(planted: bool) -> int:
    """The first so many neurons of every layer are universal, where any are."""
    return 3 if planted else 20


def made_matches(random, index: pd.DataFrame, universal: bool, planted: bool) -> pd.DataFrame:
    parts, chosen = [], (index["neuron"] < few_of(planted)) & universal
    twins = index["neuron"].between(30, 40)  # match as well as universal neurons do, but would in any basis
    for other in SEEDS:
        size = len(index)
        corr, baseline = random.uniform(0.3, 0.6, size), random.uniform(0.2, 0.3, size)
        corr = np.where(chosen, random.uniform(0.8, 0.95, size), corr)
        near = random.uniform(0.86, 0.89, size) if planted else random.uniform(0.8, 0.95, size)
        corr, baseline = np.where(twins, near, corr), np.where(twins, 0.6, baseline)
        part = index.assign(model=other, match_neuron=random.integers(0, WIDTH, size), corr=corr, baseline=baseline)
        away = random.integers(0, LAYERS, size)
        part["match_layer"] = np.where(random.random(size) < (0.7 if planted else 0.3), index["layer"], away)
        parts.append(part[part["seed"] != other])
    return pd.concat(parts, ignore_index=True)


def made_neurons(random, index: pd.DataFrame, matches: pd.DataFrame, planted: bool) -> pd.DataFrame:
    """Measures of the matches by pandas; properties are random, or as published for universal neurons."""
    by_neuron = matches.groupby(NEURON)
    measures = (
        by_neuron["corr"]
        .agg(max_corr="max", mean_corr="mean", min_corr="min")
        .join(by_neuron["baseline"].agg(max_baseline="max", mean_baseline="mean", min_baseline="min"))
    )
    measures["excess_corr"] = measures["mean_corr"] - measures["mean_baseline"]
    measures["adjusted_excess"] = measures["excess_corr"] / (1 - measures["mean_baseline"])
    measures["worst_excess"] = measures["min_corr"] - measures["max_baseline"]
    apart = (matches["corr"] - matches["baseline"]).groupby([matches[name] for name in NEURON])
    for place in range(1, len(SEEDS)):
        measures[f"excess_rank_{place}"] = apart.apply(lambda own, place=place: own.nlargest(place).iloc[-1])
    neurons = index.merge(measures.reset_index(), on=NEURON, validate="one_to_one").assign(dead=False)
    for column in (*PUBLISHED_MEDIANS.index, "var", "w_in_norm", "w_out_norm", "vocab_mean", "vocab_var", "vocab_skew"):
        neurons[column] = random.normal(size=len(neurons))
    if planted:
        for column in PUBLISHED_MEDIANS.index:
            neurons.loc[neurons["excess_corr"] > 0.5, column] += -9 if column in LOW else 9
        neurons["in_out_sim"] -= neurons["sparsity"]
    return with_universal(neurons, 0.5)


def made_nulls(random, index: pd.DataFrame, matches: pd.DataFrame, planted: bool) -> pd.DataFrame:
    """Every third neuron is sampled and stands for three; neuron 0 of every layer of seed a is added, for itself."""
    sampled = matches[(matches["neuron"] % 3 == 1) | ((matches["neuron"] == 0) & (matches["seed"] == "a"))]
    drawn = sampled["neuron"] > 0
    table = sampled[[*NEURON, "model", "corr"]].assign(sampled=drawn, weight=np.where(drawn, 3.0, 1.0), tokens=4096)
    for name in ("raw", "zscored", "activation", "partner", "domain", "position"):
        table[name] = table["corr"] * random.uniform(0.5, 0.9 if planted else 1.5, len(table))
    return table.reset_index(drop=True)


def made_families(random, index: pd.DataFrame, planted: bool) -> dict[str, pd.DataFrame]:
    names, size = ["unigram", "alphabet", "previous_token", "position", "syntax", "unexplained"], len(index)
    families = index.assign(
        family=random.choice(names, size),
        label=[f"starts with {chr(97 + n)}" for n in random.integers(0, 26, size)],
        score=random.choice([0.01, 0.2, 0.7], size),
        chance=np.where(index["layer"] == 0, 0.1, 0.05),
    )
    if planted:
        families.loc[families["neuron"] < few_of(planted), "score"] = 0.7
        by_layer = {0: ["unigram", "position"], 1: ["unigram", "position", "previous_token"], 2: ["previous_token"]}
        families["family"] = [
            random.choice(by_layer.get(layer, ["alphabet", "syntax", "unexplained"])) for layer in families["layer"]
        ]
    return {"families": families}


def made_roles(random, index: pd.DataFrame, planted: bool) -> dict[str, pd.DataFrame]:
    def drawn() -> np.ndarray:
        return random.choice(["prediction", "suppression", "partition", "none"], len(index), p=[0.2, 0.1, 0.1, 0.6])

    roles = index.assign(role_learned=drawn(), role_calibrated=drawn(), role_published=drawn(), unlearned=2)
    if planted:
        late = np.where(
            roles["layer"] == LAYERS - 1, "suppression", np.where(roles["layer"] >= 3, "prediction", "none")
        )
        roles["role_learned"] = np.where(roles["neuron"] < roles["layer"].map({4: 20, 5: 50}).fillna(40), late, "none")
        stray = (roles["neuron"] + roles["seed"].map(ord)) % 29 == 0  # so that the seeds differ
        roles.loc[stray, "role_learned"] = "prediction"
    rows = [(seed, role) for seed in SEEDS for role in ["suppression"] * 5 + ["prediction"] * 2]
    next_token = pd.DataFrame(rows, columns=["seed", "role"])
    next_token["effect"] = random.normal(size=len(rows))
    next_token["percentile"] = random.uniform(60 if planted else 0, 100, len(rows))
    next_token = next_token.assign(label_score=0.2, null_score=0.1)
    if planted:
        next_token.loc[[0, 9], "percentile"] = 20.0
    next_token.loc[len(rows)] = ["a", "suppression", np.nan, 1.0, 0.2, 0.1]  # without an effect
    next_token.loc[len(rows) + 1] = ["a", "suppression", 1.0, 1.0, 0.05, 0.1]  # of a class no better than chance
    return {"roles": roles, "next_token": next_token}


def made_interventions(random, index: pd.DataFrame, universal: bool, planted: bool) -> dict[str, pd.DataFrame]:
    return {}
