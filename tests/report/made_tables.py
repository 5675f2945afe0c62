"""Tables as a run writes them, of random numbers, with or without universal neurons, and with every claim planted."""

import numpy as np
import pandas as pd

from lib.chapters.universality.properties import PUBLISHED_MEDIANS
from lib.run import with_universal

LAYERS, WIDTH, SEEDS = 6, 60, ["a", "b", "c", "d"]
NEURON = ["seed", "layer", "neuron"]
RUNGS = ("one", "few_2", "few_4", "few_8", "one_to_one", "orthogonal", "nearest", "half", "all")
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
        **made_functions(random, index, matches, universal, planted),
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
    size = len(index)
    late = index["layer"] >= LAYERS - 2
    weights = index.assign(
        entropy=late & (index["neuron"] < 8),
        w_out_norm=random.uniform(1, 2, size),
        null_share=random.random(size),
        partner_cos=random.uniform(-0.9 if planted else -0.6, -0.6 if planted else -0.1, size),
    )
    weights["entropy_score"] = (weights["w_out_norm"] * weights["null_share"]).where(late)
    norms = pd.MultiIndex.from_product([SEEDS, range(LAYERS), range(4)], names=["seed", "layer", "head"]).to_frame(
        index=False
    )
    norms["ratio"] = random.uniform(15, 20, len(norms)) if planted else random.uniform(0.5, 3.5, len(norms))
    norms["ratio_without_bias"] = norms["ratio"] + 1
    return {
        "causal_weights": weights,
        "value_norms": norms,
        "fixed_activation": made_fixed(random, planted),
        "mean_ablation": made_ablated(random, planted),
        "query_paths": made_paths(random, planted),
        "ablations": made_sets(random, universal, planted),
    }


def grouped(groups: dict[str, int], seeds: list[str] = SEEDS) -> pd.DataFrame:
    """A row for each seed and neuron of groups of so many neurons."""
    rows = [
        (seed, group, LAYERS - 1, 10 * place + number)
        for seed in seeds
        for place, (group, size) in enumerate(groups.items())
        for number in range(size)
    ]
    return pd.DataFrame(rows, columns=["seed", "group", "layer", "neuron"])


def made_fixed(random, planted: bool) -> pd.DataFrame:
    """Seed d has no candidate, as a seed may."""
    held = pd.concat([grouped({"entropy": 5, "control": 9}, SEEDS[:3]), grouped({"control": 2}, SEEDS[3:])])
    held = held.merge(pd.DataFrame({"value": [0.0, 6.0]}), how="cross").assign(variant="total")
    for outcome in ("scale", "entropy", "loss", "reciprocal_rank"):
        held[f"{outcome}_change"], held[f"{outcome}_error"] = random.normal(0, 0.01, len(held)), 0.001
    if planted:
        ours = (held["group"] == "entropy") & (held["value"] == 6)
        for outcome in ("scale", "entropy"):
            held.loc[ours, f"{outcome}_change"] += 0.5
        held.loc[~ours, "reciprocal_rank_change"] += 0.3 * np.sign(held.loc[~ours, "reciprocal_rank_change"])
    return held


def made_ablated(random, planted: bool) -> pd.DataFrame:
    table = grouped({"entropy": 6, "control": 9, "frequency": 6, "frequency control": 9})
    table = table.merge(pd.DataFrame({"variant": ["total", "frozen scale", "fixed frequency"]}), how="cross")
    for outcome in ("entropy", "kl_unigram"):
        change = random.uniform(0.5, 1, len(table)) * random.choice([-1, 1], len(table))
        if planted:
            removed = table["group"].isin(["entropy", "frequency"]) & (table["variant"] != "total")
            change = np.where(removed, random.uniform(-0.4, 0.4, len(table)), np.abs(change))
        table[f"{outcome}_change"], table[f"{outcome}_error"] = change, 0.01
        table.loc[table["neuron"] % 10 == 5, f"{outcome}_error"] = 0.9  # no effect beyond two standard errors
    return table


def made_paths(random, planted: bool) -> pd.DataFrame:
    """Two deactivation pairs and one activation pair a seed, in the order of scores; b's first head never sees BOS."""
    parts = []
    for seed in SEEDS:
        for place, role in enumerate(["deactivation", "deactivation", "activation"]):
            active = random.normal(size=50)
            where = {"seed": seed, "layer": 3 - place, "neuron": 7, "head_layer": 4, "head": place, "role": role}
            noise, strength = random.normal(size=(2, 50)), random.uniform(1.5, 5) if planted else random.normal(0, 0.5)
            part = pd.DataFrame({"activation": active, "block": np.repeat(range(10), 5), "norm": 1.0}).assign(**where)
            part["bos"] = 0.01 if (seed, place) == ("b", 0) else 0.5
            part["bos_change"], part["norm_change"] = noise - np.array([[strength], [-strength]]) * active
            parts.append(part)
    return pd.concat(parts, ignore_index=True)


def made_sets(random, universal: bool, planted: bool) -> pd.DataFrame:
    """A set of universal neurons and random ones beside it in every layer; without universal neurons, of one each."""
    rows = []
    for seed in SEEDS:
        for kind in ("mean", "zero") if seed == "a" else ("mean",):
            for layer in range(LAYERS):
                groups = [("universal", 0), *(("random", draw) for draw in range(10 if seed == "a" else 5))]
                groups += [("position", 0), ("syntax", 0)] if layer == 0 else []
                for group, draw in groups:
                    neurons = 3 if universal else 1
                    row = {"seed": seed, "kind": kind, "layer": layer, "group": group, "draw": draw, "neurons": neurons}
                    change = random.normal(0, 1)
                    if planted and group == "universal":
                        change += {0: 20, LAYERS - 1: -10}.get(layer, 10)  # in the last layer the other way round
                    row |= {"loss_change": change, "kl": random.random(), "residual_power": random.random()}
                    row |= {f"{name}_error": 0.1 for name in ("loss_change", "kl", "residual_power")}
                    rows.append(
                        row | {"power": random.uniform(1, 1.1), "information": np.nan, "tokens": 99, "blocks": 9}
                    )
    return pd.DataFrame(rows)


def made_functions(random, index: pd.DataFrame, matches, universal: bool, planted: bool) -> dict[str, pd.DataFrame]:
    """Chapter 8's tables: each seed's ladder and transplants from the seed that follows it, its maps and its heads."""
    following = dict(zip(SEEDS, [*SEEDS[1:], SEEDS[0]], strict=True))
    ladder = index.assign(model=index["seed"].map(following), full=index["seed"] == "a", tokens=99, sampled=True)
    size, better = len(ladder), 0.2 if planted else 0.0
    for number, name in enumerate(RUNGS):
        ladder[f"r2_{name}"] = random.uniform(-0.1, 0.1 + 0.05 * number, size) + better * (name == "all") + better / 9
        ladder[f"null_r2_{name}"] = random.uniform(-0.1, 0.1 + 0.05 * number, size)
    ladder["kind"] = random.choice(["twin", "split", "spread", "part", "own"], size)
    rows = []
    for seed, model in following.items():
        four = ["match", "second", "random", "match − second"]
        for name, partners in (("universal", four), ("group 1", ["match", "all"])):
            row = {"seed": seed, "model": model, "full": seed == "a", "set": name, "neurons": 9, "r2": 0.3}
            row |= {"tokens": 99, "blocks": 9, "low": -1.0, "high": 2.0, "loss_change": 0.5, "loss_change_error": 0.1}
            for partner in ("mean", *partners):
                value = random.uniform(0, 1) + 2 * (planted and partner == "match")
                known = partner != "mean" and (universal or name != "universal")
                rows.append(row | {"partner": partner, "recovered": value if known else np.nan})
    mapped = matches[[*NEURON, "model", "corr"]].assign(candidates=LAYERS * WIDTH)
    mapped = mapped.assign(sampled=mapped["neuron"] % 2 == 0, is_universal=(mapped["neuron"] < 20) & universal)
    for name in ("rank", "exchanged", "matched"):
        most = 2 if planted and name == "rank" else 60 if planted else 5
        mapped[name] = random.integers(1, most, len(mapped))
    heads = pd.MultiIndex.from_product(
        [SEEDS, SEEDS, range(LAYERS), range(4)], names=["seed", "model", "layer", "head"]
    )
    heads = heads.to_frame(index=False).query("seed != model").reset_index(drop=True)
    heads = heads.assign(corr=random.random(len(heads)) + planted, tokens=99, match_layer=heads["layer"], type="none")
    for name in ("baseline", "equal_baseline"):
        heads[name] = random.random(len(heads))
    for score in ("bos", "previous", "induction"):
        heads[score], heads[f"match_{score}"] = random.random((2, len(heads)))
        heads[f"{score}_rank"] = random.uniform(-0.5, 0.5, len(heads))
        other = random.uniform(-0.5, 0.5, len(heads))
        heads[f"match_{score}_rank"] = 0.2 * other + heads[f"{score}_rank"] if planted else other
    return {"ladder": ladder, "transplants": pd.DataFrame(rows), "residual_map": mapped, "heads": heads}
