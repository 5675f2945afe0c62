"""The ledger: every row against an independent expression on the same tables, for runs with universal neurons, without
any, with every published claim planted, and without tables."""

import json
import re
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from lib.chapters.universality.properties import PUBLISHED_MEDIANS
from lib.display import claims
from lib.display.claims import FAILS, HOLDS, UNKNOWN, VERDICTS, Evidence
from lib.report import answer, front, ledger, ledger_page
from tests.report.expected_functions import functions, functions_left_out
from tests.report.expected_interventions import interventions
from tests.report.made_tables import LAYERS, SEEDS, WIDTH, make_tables

CASES = {
    "many universal": (1, True, False),
    "other numbers": (2, True, False),
    "none universal": (3, False, False),
    "planted": (4, True, True),
}
ByName = dict[str, dict[str, float]]  # claim → seed → value, NaN for a seed that cannot be asked


def chapter_3(neurons: pd.DataFrame, matches: pd.DataFrame, threshold: float) -> ByName:
    """Every quantity of chapter 3 by reference seed, from the matches and the neurons' properties, with loops."""
    found: ByName = {}

    def put(name: str, seed: str, value: float) -> None:
        found.setdefault(name, {})[seed] = value

    for seed, own_matches in matches.groupby("seed"):
        own = {(row["layer"], row["neuron"]): row for row in neurons[neurons["seed"] == seed].to_dict("records")}
        pairs = {key: ([], []) for key in own}
        at_home = {layer: [] for layer in range(LAYERS)}
        for row in own_matches.to_dict("records"):
            pairs[row["layer"], row["neuron"]][0].append(row["corr"])
            pairs[row["layer"], row["neuron"]][1].append(row["baseline"])
            at_home[row["layer"]].append(row["match_layer"] == row["layer"])
        excess = {key: np.mean(corr) - np.mean(base) for key, (corr, base) in pairs.items()}
        adjusted = {key: excess[key] / (1 - np.mean(base)) for key, (_, base) in pairs.items()}
        worst = {key: min(corr) - max(base) for key, (corr, base) in pairs.items()}
        names = ("universal_share", "adjusted_share", "worst_share")
        for name, values in zip(names, (excess, adjusted, worst), strict=True):
            put(name, seed, np.mean([value > threshold for value in values.values()]))
        put("excess", seed, np.mean(list(excess.values())))
        put("depth", seed, np.mean([np.mean(home) for home in at_home.values()]) - 1 / LAYERS)

        chosen = [key for key in own if excess[key] > threshold]
        rest, enough = [key for key in own if key not in set(chosen)], len(chosen) >= 10
        apart, several = [], len(own_matches["model"].unique()) > 1
        for key in chosen:
            other = min(rest, key=lambda other, key=key: abs(np.mean(pairs[other][0]) - np.mean(pairs[key][0])))
            if abs(np.mean(pairs[other][0]) - np.mean(pairs[key][0])) <= 0.05:
                apart.append(np.ptp(pairs[key][0]) - np.ptp(pairs[other][0]))
        put("gap", seed, np.mean(apart) if several and len(apart) >= 10 else np.nan)
        in_layers = [sum(layer == one for layer, _ in chosen) / WIDTH for one in range(LAYERS)]
        put("layers", seed, min(in_layers) if enough else np.nan)
        for column in PUBLISHED_MEDIANS.index:
            ranks = []
            for layer, neuron in chosen:
                peers = [own[layer, other][column] for other in range(WIDTH)]
                ranks.append(100 * (sum(peer < own[layer, neuron][column] for peer in peers) + 0.5) / WIDTH)
            put(f"property_{column}", seed, np.median(ranks) if enough else np.nan)
        within = []
        for layer in range(LAYERS):
            columns = [[own[layer, neuron][name] for neuron in range(WIDTH)] for name in ("sparsity", "in_out_sim")]
            within.append(stats.pearsonr(*columns).statistic)
        put("frequency_cosine", seed, np.mean(within))
    return found


def null_excess(nulls: pd.DataFrame) -> dict[str, float]:
    """Weighted mean excess over rotated pre-activations by seed."""
    found = {}
    for seed, own in nulls.groupby("seed"):
        total, weight = 0.0, 0.0
        for _, rows in own.groupby(["layer", "neuron"]):
            excess = [row["corr"] - row["activation"] for row in rows.to_dict("records")]
            total, weight = total + rows["weight"].iloc[0] * np.mean(excess), weight + rows["weight"].iloc[0]
        found[seed] = total / weight
    return found


def chapter_4(tables: dict[str, pd.DataFrame], threshold: float) -> ByName:
    found: ByName = {}
    excess = tables["neurons_all_seeds"].set_index(["seed", "layer", "neuron"])["excess_corr"].to_dict()
    rows = tables["families"].to_dict("records")
    for seed in SEEDS:
        own = [row for row in rows if row["seed"] == seed]
        scores = [row["score"] for row in own if excess[seed, row["layer"], row["neuron"]] > threshold]
        enough = len(scores) >= 10
        values = {
            "unexplained": np.mean([score < 0.05 for score in scores]) if enough else np.nan,
            "well_explained": np.mean([score >= 0.5 for score in scores]) if enough else np.nan,
            "letters": len({row["label"] for row in own if row["family"] == "alphabet"}),
        }
        # of six layers a quarter is the first and half of the second
        parts = {"unigram": [1, 0.5], "position": [1, 0.5], "previous_token": [1, 1, 1]}
        for family, part in parts.items():
            layers = [row["layer"] for row in own if row["family"] == family]
            inside = [part[layer] if layer < len(part) else 0 for layer in layers]
            values[f"depth_{family}"] = np.mean(inside) if len(layers) >= 10 else np.nan
        layers = [row["layer"] for row in own if row["family"] == "syntax"]
        values["syntax"] = max(map(layers.count, set(layers))) / len(layers) if len(layers) >= 10 else np.nan
        for name, value in values.items():
            found.setdefault(name, {})[seed] = value
    return found


def chapter_5(tables: dict[str, pd.DataFrame]) -> ByName:
    found: ByName = {}
    rows = tables["roles"].to_dict("records")
    for seed in SEEDS:
        up, down = (
            [
                sum(r["seed"] == seed and r["layer"] == layer and r["role_learned"] == role for r in rows)
                for layer in range(LAYERS)
            ]
            for role in ("prediction", "suppression")
        )
        both = [one + other for one, other in zip(up, down, strict=True)]
        votes = [
            row["percentile"] > 50
            for row in tables["next_token"].to_dict("records")
            if row["seed"] == seed
            and row["role"] == "suppression"
            and not np.isnan(row["effect"])
            and row["label_score"] > row["null_score"]
        ]
        values = {
            "prediction_rise": sum(up[3:]) / sum(up),
            "kurtosis_growth": both[-1] - both[-2],
            "skew_before": sum(up[3:5]) / sum(both[3:5]),
            "suppression_switch": down[-1] / both[-1],
            "suppression_fires": np.mean(votes),
        }
        for name, value in values.items():
            found.setdefault(name, {})[seed] = value
    return found


def expected(tables: dict[str, pd.DataFrame], threshold: float) -> tuple[ByName, ByName]:
    """Every claim's values by seed, and for claims on matches their means without each seed."""
    neurons, matches, nulls = (tables[name] for name in ("neurons_all_seeds", "matches_all_seeds", "nulls"))
    values, left_out = chapter_3(neurons, matches, threshold), {}
    values["excess_activation_null"] = null_excess(nulls)
    for seed in SEEDS:
        without = [table[(table["seed"] != seed) & (table["model"] != seed)] for table in (matches, nulls)]
        rest = chapter_3(neurons[neurons["seed"] != seed], without[0], threshold)
        rest["excess_activation_null"] = null_excess(without[1])
        for name, own in rest.items():
            known = [value for value in own.values() if not np.isnan(value)]
            left_out.setdefault(name, {})[seed] = np.mean(known) if known else np.nan
    left_out = {name: own for name, own in left_out.items() if not np.isnan(list(own.values())).any()}
    values |= chapter_4(tables, threshold) | chapter_5(tables) | interventions(tables) | functions(tables)
    return values, left_out | functions_left_out(tables, SEEDS)


def with_interval(values: dict[str, float], left_out: dict[str, float] | None, bound: float) -> dict[str, float]:
    """Mean, 95 % interval and p-value by SciPy's t-test, or by a loop over left-out seeds."""
    known = {seed: value for seed, value in values.items() if not np.isnan(value)}
    if len(known) < 2:
        return {"value": np.mean(list(known.values())) if known else np.nan} | dict.fromkeys(
            ("low", "high", "p_value"), np.nan
        )
    numbers, freedom = list(known.values()), len(known) - 1
    error = np.std(numbers, ddof=1) / len(known) ** 0.5
    if left_out is not None:
        without = [left_out[seed] for seed in known]
        centre = sum(without) / len(without)
        error = (sum((one - centre) ** 2 for one in without) * freedom / len(known)) ** 0.5
    mean = np.mean(numbers)
    half = stats.t.ppf(0.975, freedom) * error
    p_value = (
        2 * stats.t.cdf(-abs(mean - bound) / error, freedom) if error > 1e-15 else float(len({*numbers, bound}) == 1)
    )
    return {"value": mean, "low": mean - half, "high": mean + half, "p_value": p_value}


def decided(values: dict[str, float], left_out: dict[str, float] | None, bound: float, side: str, p: float) -> str:
    """The verdict written out."""
    sign = 1 if side == "above" else -1
    known = {seed: sign * (value - bound) for seed, value in values.items() if not np.isnan(value)}
    numbers = list(known.values())
    without = [sign * (left_out[seed] - bound) for seed in known] if left_out else numbers
    if len(known) < 3 or not p < 0.05:
        return UNKNOWN
    if min(numbers) > 0 and min(without) > 0:
        return HOLDS
    return FAILS if max(numbers) < 0 and max(without) < 0 else UNKNOWN


@pytest.fixture(scope="module", params=CASES)
def case(request) -> tuple[str, dict]:
    return request.param, make_tables(*CASES[request.param])


def test_every_row_is_what_an_independent_expression_gives(case):
    name, tables = case
    table = ledger.ledger(Evidence(tables, "a", 0.5)).set_index("name")
    values, left_out = expected(tables, 0.5)
    assert set(table.index) == set(values) and set(table["verdict"]) <= set(VERDICTS)
    found = {}
    for claim, row in table.iterrows():
        own = {seed: value for seed, value in values[claim].items() if not np.isnan(value)}
        assert json.loads(row["by_seed"]) == pytest.approx(own, rel=1e-9), claim
        found[claim] = with_interval(values[claim], left_out.get(claim), row["bound"])
        found[claim] |= np.clip(pd.Series(found[claim])[["low", "high"]], *claims.statements()[claim].within).to_dict()
        for column, value in found[claim].items():
            assert row[column] == pytest.approx(value, rel=1e-6, abs=1e-12, nan_ok=True), (claim, column)
    p_values = pd.Series({claim: one["p_value"] for claim, one in found.items()})
    corrected = p_values.copy()
    corrected[p_values.notna()] = multipletests(p_values.dropna(), method="fdr_bh")[1]
    for claim, row in table.iterrows():
        verdict = decided(values[claim], left_out.get(claim), row["bound"], row["side"], corrected[claim])
        assert row["verdict"] == verdict, (claim, row["here"], corrected[claim])
        published, (low, high) = claims.statements()[claim].values, (row["low"], row["high"])
        size = UNKNOWN
        if published and row["seeds"] > 2:
            overlap = not (high < min(published) or low > max(published))
            size = FAILS if not overlap else UNKNOWN if low < row["bound"] < high else HOLDS
        assert row["size_verdict"] == size, claim
        assert (row["decides"] != "") == (verdict == UNKNOWN), claim
    assert table["here"].str.len().min() > 0 and not table["here"].str.contains("nan|None|undefined").any()
    assert not table["decides"].str.contains("nan|None|undefined").any()
    if name == "planted":
        assert list(table.index[table["verdict"] != HOLDS]) == []


def test_without_a_universal_neuron_no_direction_is_claimed():
    table = ledger.ledger(Evidence(make_tables(*CASES["none universal"]), "a", 0.5)).set_index("name")
    about = [name for name in table.index if name.startswith("property_")] + ["gap", "layers", "unexplained"]
    assert (table.loc[about, "verdict"] == UNKNOWN).all() and (table.loc[about, "seeds"] == 0).all()
    assert table.loc[about, "decides"].str.contains("10").all()  # the number that is needed


def test_claims_without_their_tables_stay_undecided():
    table = ledger.ledger(Evidence({}, "a", 0.5))
    assert len(table) == len(ledger.CLAIMS) >= 40 and (table["verdict"] == UNKNOWN).all()
    assert (table["here"] == "not measured in this run").all()
    assert len(answer.answer(Evidence({}, "a", 0.5), table)) == 7
    assert not any(one.name == other.name for one, other in combinations(ledger.CLAIMS, 2))


def test_every_statement_is_measured_once():
    from lib.chapters.emergence.claims import CLAIMS as OF_TRAINING

    assert sorted(claims.statements()) == sorted(claim.name for claim in (*ledger.CLAIMS, *OF_TRAINING))


def test_a_claim_that_untrained_models_satisfy_is_marked():
    tables = make_tables(*CASES["planted"])
    evidence = Evidence(tables, "a", 0.5)
    untrained = ledger.ledger(evidence)[["name", "here", "verdict", "seeds"]].set_index("name")
    untrained.loc["excess", "verdict"] = UNKNOWN
    table = ledger.ledger(evidence, untrained).set_index("name")
    marked = table["mark"].str.contains(claims.BY_CHANCE, regex=False)
    assert marked.drop("excess").all() and not marked["excess"]
    assert (table["untrained"] == untrained["here"]).all()
    built = [
        name for name, statement in claims.statements().items() if statement.by_construction and name in table.index
    ]
    assert table.index[table["mark"].str.contains(claims.CONSTRUCTED)].tolist() == built
    assert f"{len(table) - 1} hold for untrained models too" in ledger.summary(table.reset_index())
    text = ledger.sources(table.reset_index())
    assert f"Of the {len(table)} decided, at most {0.05 * len(table):.1f} are expected to be wrong." in text


def test_the_summary_has_the_verdicts_and_the_sources_whose_claims_they_are(case):
    _, tables = case
    table = ledger.ledger(Evidence(tables, "a", 0.5))
    number = table["verdict"].value_counts().reindex(VERDICTS, fill_value=0)
    source = table["source"].value_counts()
    own, follow_up = source["this report"], source["arXiv 2406.16254"] + source["arXiv 2508.00903"]
    assert source[claims.PAPER] + own + follow_up == len(table)
    whose = (
        f"{source[claims.PAPER]} of the paper, {follow_up} of follow-up work (arXiv 2406.16254, arXiv 2508.00903) and "
        f"{own} of this report"
    )
    assert ledger.sources(table).startswith(f"The claims are {whose}. ")
    verb = "holds" if number[HOLDS] == 1 else "hold"
    assert ledger.summary(table).startswith(f"**{number[HOLDS]}** of {len(table)} claims {verb} in this run. ")
    assert f"on {number[UNKNOWN]} this run cannot tell" in ledger.summary(table)
    papers = table[table["source"] == claims.PAPER]
    assert ledger.sources(papers).startswith(f"The claims are {len(papers)} of the paper. ")


NUMBER = re.compile(r"\d[\d,.]*\d|\d")


def test_the_answer_has_seven_statements_with_the_run_s_numbers(case):
    _, tables = case
    evidence = Evidence(tables, "a", 0.5)
    findings = answer.answer(evidence, ledger.ledger(evidence))
    texts = [finding.text for finding in findings]
    assert len(texts) == 7 and all("**" in text for text in [*texts[:5], texts[6]])
    assert all(
        text.endswith(".") and "nan" not in text and finding.figure
        for text, finding in zip(texts, findings, strict=True)
    )
    sentences = [sentence for text in texts for sentence in re.split(r"(?<=\.) ", text)]
    assert max(len(NUMBER.findall(sentence)) for sentence in sentences) == 2
    number = int((tables["neurons_all_seeds"].query("seed == 'a'")["excess_corr"] > 0.5).sum())
    assert f", {number} in all, " in texts[0]
    # of 36 pairs of six layers 6 + 10 are the same or adjacent
    assert "against 44 % by chance" in texts[1] and "Of the mean excess" in texts[1]
    assert "which 5 % of rotated neurons pass" in texts[3]


def test_a_share_below_the_paper_s_is_explained_by_what_is_smaller():
    few, many = (Evidence(make_tables(*CASES[name]), "a", 0.5) for name in ("none universal", "many universal"))
    small, large = {"a": (6, 60), "b": (6, 60)}, {"a": (12, 3072)}
    text = answer.why_fewer(few, small, 1000)
    assert text.endswith("these models have fewer and narrower layers and are compared on less text.")
    assert answer.why_fewer(few, large, 1000).endswith("these models are compared on less text.")
    assert answer.why_fewer(few, large, 10**9) == answer.why_fewer(many, small, 1000) == ""


def test_eight_claims_of_the_paper_stand_on_the_front_page():
    chosen = [statement for statement in claims.statements().values() if statement.front]
    assert sorted(statement.front for statement in chosen) == list(range(1, 9))
    assert all(statement.short and statement.source == claims.PAPER for statement in chosen)


def test_every_claim_stands_under_one_question(case):
    _, tables = case
    evidence = Evidence(tables, "a", 0.5)
    table = ledger.ledger(evidence)
    page = ledger_page.ledger_page(front.RunClaims(table, [], "", False), [], {})
    names = [row["name"] for group in page["groups"] for row in group["rows"]]
    assert sorted(names) == sorted(table["name"]) and len(page["groups"]) == 6
    rows = {row["name"]: row for group in page["groups"] for row in group["rows"]}
    assert rows["property_kurt"] in page["groups"][1]["rows"] and rows["depth"] in page["groups"][0]["rows"]
    assert rows["universal_share"]["brief"] == "1.23 % to 4.16 %" and rows["property_mean"]["brief"] == "4 to 20"
    assert rows["gap"]["brief"] == rows["gap"]["published"]


@pytest.mark.parametrize(
    "here, parts",
    {
        "0.51 % (0.40 % to 0.62 %, 95 % over 5 seeds); 4 compared seeds": (
            "0.51 %",
            "0.40 % to 0.62 %",
            "4 compared seeds",
        ),
        "99 in each of 5 seeds; percentile": ("99 in each of 5 seeds", "", "percentile"),
        "+0.1 (1 seed)": ("+0.1 (1 seed)", "", ""),
        "not measured in this run": ("not measured in this run", "", ""),
    }.items(),
)
def test_a_row_s_sentence_is_read_in_parts(here, parts):
    assert ledger_page.in_parts(here) == parts


@pytest.mark.parametrize("number", [1, 2, 5])
def test_chance_of_an_adjacent_place_is_that_of_all_pairs(number):
    places = pd.Series(range(number))
    pairs = [abs(one - other) <= 1 for one in range(number) for other in range(number)]
    assert answer.near_by_chance(places, number) == pytest.approx(np.mean(pairs))
