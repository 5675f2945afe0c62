"""The rule of the ledger against SciPy, statsmodels and plain loops, and on planted seeds."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from lib.display import claims
from lib.display.claims import BY_CHANCE, CONSTRUCTED, FAILS, HOLDS, UNKNOWN, Claim, Effects, Evidence, Statement

ABOVE = Statement("it is large", "—", 0.0, "above", "no difference", "figure")
BELOW = replace(ABOVE, side="below")
seeds = st.lists(st.floats(-5, 5).map(lambda value: round(value, 3)), min_size=2, max_size=9)


def of(*values: float, **fields) -> Effects:
    return Effects(
        pd.Series(dict(zip("abcdefghijklmnopqrst", values, strict=False)), dtype=float), "{:.2f}".format, **fields
    )


def decided(*values: float, statement: Statement = ABOVE, others: int = 0, **fields) -> str:
    """The verdict on values beside `others` rows that are sure."""
    found = claims.decision(of(*values, **fields), statement)
    corrected = claims.corrected(pd.Series([found.p_value] + [1e-9] * others))
    return claims.verdict(found, corrected.iloc[0])


@settings(deadline=None, max_examples=60)
@given(seeds, st.floats(-3, 3).map(lambda value: round(value, 3)))
def test_value_interval_and_p_value_are_those_of_the_one_sample_t_test(values, bound):
    found = claims.decision(of(*values), replace(ABOVE, bound=bound))
    if len(set(values)) == 1:
        return
    test = stats.ttest_1samp(values, bound)
    interval = test.confidence_interval(0.95)
    assert np.isclose(found.value, np.mean(values)) and np.isclose(found.p_value, test.pvalue, rtol=1e-6)
    assert np.allclose([found.low, found.high], interval)
    assert (found.agree, found.against) == (sum(v > bound for v in values), sum(v < bound for v in values))


def test_an_interval_ends_where_the_values_do():
    share = replace(ABOVE, within=(0.0, 1.0))
    found, free = (claims.decision(of(0.99, 0.7, 0.95, 1.0), one) for one in (share, ABOVE))
    assert free.high > 1 and found.high == 1.0 and found.low == free.low and found.p_value == free.p_value
    assert claims.decision(of(0.0, 0.1, 0.0), share).low == 0.0


def test_left_out_means_give_the_jackknife_of_a_plain_loop():
    """The variance of seeds has no plain mean: its pseudo-values by a loop, then Student's t."""
    random = np.random.default_rng(5)
    drawn, number = random.normal(size=(6, 40)), 6
    whole = [np.mean([np.corrcoef(drawn[i], drawn[j])[0, 1] for j in range(6) if j != i]) for i in range(6)]
    left_out, plain = {}, []
    for out in range(number):
        rest = [i for i in range(number) if i != out]
        plain.append(np.mean([np.corrcoef(drawn[i], drawn[j])[0, 1] for i in rest for j in rest if i != j]))
        left_out["abcdef"[out]] = plain[-1]
    error = 0.0
    for value in plain:
        error += (value - sum(plain) / number) ** 2
    error = (error * (number - 1) / number) ** 0.5
    found = claims.decision(of(*whole, left_out=pd.Series(left_out)), ABOVE)
    assert np.isclose(found.high - found.value, stats.t.ppf(0.975, 5) * error)
    assert np.isclose(found.p_value, 2 * stats.t.sf(abs(np.mean(whole)) / error, 5))
    # each pair counts for two seeds, so that the seeds' values vary less than independent ones
    assert not np.isclose(found.p_value, stats.ttest_1samp(whole, 0).pvalue, rtol=0.05)


def test_a_missing_left_out_mean_leaves_the_row_undecided():
    found = claims.decision(of(1, 1.1, 1.2, left_out=pd.Series({"a": 1.15, "b": 1.1})), ABOVE)
    assert np.isnan(found.p_value) and not found.firm and claims.verdict(found, found.p_value) == UNKNOWN


@settings(deadline=None, max_examples=60)
@given(st.lists(st.one_of(st.floats(0, 1), st.just(np.nan)), min_size=1, max_size=40))
def test_the_correction_is_that_of_statsmodels(p_values):
    given_p = pd.Series(p_values)
    ours, known = claims.corrected(given_p), given_p.notna()
    assert ours[~known].isna().all()
    if known.any():
        np.testing.assert_allclose(ours[known], multipletests(given_p[known], method="fdr_bh")[1], atol=1e-12)


@pytest.mark.parametrize(
    "values, statement, verdict",
    [
        ((1.0, 1.1, 0.9, 1.2, 1.0), ABOVE, HOLDS),
        ((1.0, 1.1, 0.9, 1.2, 1.0), BELOW, FAILS),
        ((-1.0, -1.1, -0.9), BELOW, HOLDS),
        ((1.0, 1.1, 0.9, 1.2, -0.01), ABOVE, UNKNOWN),  # one disagrees, however little
        ((0.1, 2.0, 0.1, 3.0, 0.2), ABOVE, UNKNOWN),  # all agree, but the mean is not sure
        ((1.0,), ABOVE, UNKNOWN),
        ((1.0, 1.01), ABOVE, UNKNOWN),
        ((), ABOVE, UNKNOWN),
        ((np.nan, np.nan), ABOVE, UNKNOWN),
        ((1.0, 1.1, 0.9, np.nan), ABOVE, HOLDS),  # of those that can be asked
        ((1.0, 1.0, 1.0), ABOVE, HOLDS),  # equal values
        ((0.1, 0.1, 0.1), BELOW, FAILS),
        ((0.0, 0.0, 0.0), ABOVE, UNKNOWN),  # on the bound is on neither side
        ((0.0, 0.0, 0.0), BELOW, UNKNOWN),
        ((0.0, 1.0, 1.1, 0.9), ABOVE, UNKNOWN),
        ((0.0, -1.0, -1.1, -0.9, -1.0), ABOVE, UNKNOWN),  # not every seed is on the other side
    ],
)
def test_planted_seeds_are_decided(values, statement, verdict):
    assert decided(*values, statement=statement) == verdict


def test_equal_values_on_an_inexact_bound_are_on_neither_side():
    at = replace(ABOVE, bound=0.1)
    found = claims.decision(of(0.1, 0.1, 0.1), at)  # their mean is 0.10000000000000002
    assert (found.agree, found.against) == (0, 0) and claims.verdict(found, found.p_value) == UNKNOWN


def test_a_mean_that_one_seed_keeps_on_its_side_is_undecided():
    values, left_out = (0.2, 0.3, 0.25), pd.Series({"a": 0.25, "b": 0.26, "c": -0.01})
    found = claims.decision(of(*values, left_out=left_out), ABOVE)
    assert not found.firm and claims.verdict(found, 0.001) == UNKNOWN
    assert "one seed alone" in claims.decides(found, 0.2, ABOVE, of(*values))


def test_more_rows_make_a_row_harder_to_decide():
    values = (0.5, 0.9, 1.6, 0.4, 1.1)
    p_value = stats.ttest_1samp(values, 0).pvalue
    assert 0.005 < p_value < 0.05 and decided(*values) == HOLDS
    found = claims.decision(of(*values), ABOVE)
    nulls = claims.corrected(pd.Series([found.p_value] + [0.9] * 20))
    assert claims.verdict(found, nulls.iloc[0]) == UNKNOWN


def test_a_family_of_nulls_has_at_most_one_in_twenty_wrong():
    """Of 400 families of 30 rows without any effect at most 5 % decide a row, and of 12,000 rows hardly any."""
    random, families, rows = np.random.default_rng(0), 0, 0
    for _ in range(400):
        found = [claims.decision(of(*random.normal(size=5)), ABOVE) for _ in range(30)]
        corrected = claims.corrected(pd.Series([one.p_value for one in found]))
        wrong = sum(claims.verdict(one, p) != UNKNOWN for one, p in zip(found, corrected, strict=True))
        families, rows = families + (wrong > 0), rows + wrong
    assert families <= 0.05 * 400 + 2 * np.sqrt(400 * 0.05 * 0.95) and rows <= 0.005 * 400 * 30


def test_of_the_decided_at_most_one_in_twenty_is_wrong_beside_true_effects():
    random, wrong, number = np.random.default_rng(1), 0, 0
    for _ in range(100):
        means = [0.0] * 20 + [3.0] * 10
        found = [claims.decision(of(*random.normal(mean, 1, size=5)), ABOVE) for mean in means]
        corrected = claims.corrected(pd.Series([one.p_value for one in found]))
        said = [claims.verdict(one, p) != UNKNOWN for one, p in zip(found, corrected, strict=True)]
        wrong, number = wrong + sum(said[:20]), number + sum(said)
    assert number > 500 and wrong / number < 0.05


# ---------------------------------------------------------------- size


@pytest.mark.parametrize(
    "values, published, verdict",
    [
        ((1.0, 1.1, 0.9, 1.2), (1.0, 4.0), HOLDS),
        ((1.0, 1.1, 0.9, 1.2), (1.05,), HOLDS),
        ((1.0, 1.1, 0.9, 1.2), (3.0, 4.0), FAILS),
        ((1.0, 1.1, 0.9, 1.2), (-1.0, 0.2), FAILS),
        ((1.0, 4.0, -2.0, 1.2), (1.05,), UNKNOWN),  # the interval has the bound inside too
        ((1.0, 1.1, 0.9, 1.2), (), UNKNOWN),
        ((1.0, 1.0), (1.0,), UNKNOWN),  # two seeds are too few
        ((1.0,), (1.0,), UNKNOWN),
        ((), (1.0,), UNKNOWN),
        ((1.0, 1.0, 1.0), (1.0,), HOLDS),
    ],
)
def test_the_size_replicates_where_the_interval_has_a_published_value(values, published, verdict):
    statement = replace(ABOVE, values=published)
    assert claims.size_verdict(claims.decision(of(*values), statement), statement) == verdict


# ---------------------------------------------------------------- what would decide a row


def sentence(effects: Effects, statement: Statement = ABOVE) -> str:
    found = claims.decision(effects, statement)
    return claims.decides(found, found.p_value, statement, effects)


def test_an_undecided_row_says_what_it_lacks():
    needed = "10 universal neurons are needed, and c has 3"
    assert sentence(claims.unmeasured("not measured in this run")) == "not measured in this run"
    assert sentence(of(1.0, np.nan, missing=needed)) == f"1 seed can be asked, and 3 are needed: {needed}"
    assert sentence(of(1.0, 1.1)) == "2 seeds can be asked, and 3 are needed"
    assert sentence(of(1.0, 1.1, -0.2, 0.3)).startswith("3 of 4 seeds lie on the claimed side;")
    assert sentence(of(0.0, 0.0, 0.0)).startswith("0 of 3 seeds lie on the claimed side;")


def test_the_number_of_seeds_that_would_decide_is_the_first_whose_t_test_would():
    values = np.array([0.1, 2.0, 0.1, 3.0, 0.2])
    number = int(sentence(of(*values)).split()[1])
    distance, deviation = values.mean(), values.std(ddof=1)
    p_values = [2 * stats.t.sf(distance / (deviation / n**0.5), n - 1) for n in (number - 1, number)]
    assert p_values[1] < 0.05 <= p_values[0] and number > 5


# ---------------------------------------------------------------- rows


@pytest.fixture
def stated(monkeypatch):
    """Statements by name instead of those of claims.yaml."""

    def use(**entries: Statement):
        monkeypatch.setattr(claims, "statements", lambda: entries)
        return {
            name: Claim(name, "03_universality", ("table",), lambda evidence, n=name: evidence.tables["table"][n])
            for name in entries
        }

    return use


def test_rows_have_words_marks_and_reasons(stated):
    made = stated(
        sure=replace(ABOVE, values=(1.0,)),
        random=replace(ABOVE, no_size="nobody has published it"),
        built=replace(ABOVE, by_construction="chosen by it"),
        few=ABOVE,
        absent=ABOVE,
    )
    table = {
        "sure": of(1.0, 1.1, 0.9, control=pd.Series({"a": 0.1, "b": 0.3}), details="and more"),
        "random": of(2.0, 2.1, 2.2),
        "built": of(3.0, 3.0, 3.0),
        "few": of(1.0, np.nan, missing="b has 3 of the 10 neurons"),
        "absent": claims.unmeasured("no neuron"),
    }
    untrained = pd.DataFrame(
        {
            "name": ["sure", "random", "few", "absent"],
            "here": ["0.1", "2.0", "1", "too few"],
            "verdict": [UNKNOWN, HOLDS, HOLDS, UNKNOWN],
            "seeds": [3, 3, 3, 0],
        }
    ).set_index("name")
    rows = claims.claim_rows(Evidence({"table": table}, "a", 0.5), made.values(), untrained).set_index("name")
    low, high = stats.t.interval(0.95, 2, loc=1.0, scale=0.1 / 3**0.5)
    assert rows.loc["sure", "here"] == f"1.00 ({low:.2f} to {high:.2f}, 95 % over 3 seeds); and more"
    assert rows.loc["built", "here"] == "3.00 in each of 3 seeds" and rows.loc["few", "here"] == "1.00 (1 seed)"
    assert rows.loc["absent", "here"] == rows.loc["absent", "decides"] == "no neuron"
    assert rows["mark"].to_dict() == {"sure": "", "random": BY_CHANCE, "built": CONSTRUCTED, "few": "", "absent": ""}
    assert rows["verdict"].tolist() == [HOLDS] * 3 + [UNKNOWN] * 2
    assert rows["size_verdict"].tolist() == [HOLDS] + [UNKNOWN] * 4
    assert rows.loc["sure", "control"] == "0.20" and (rows["control"].drop("sure") == "").all()
    assert rows.loc["random", ["untrained", "untrained_verdict"]].tolist() == ["2.0", HOLDS]
    assert rows.loc["absent", "untrained"] == "no seed can be asked"
    assert json.loads(rows.loc["few", "by_seed"]) == {"a": 1.0} and json.loads(rows.loc["absent", "by_seed"]) == {}
    assert (rows["decides"] == "").tolist() == [True] * 3 + [False] * 2
    tested = rows["p_value"].dropna()
    np.testing.assert_allclose(rows["p_corrected"].dropna(), multipletests(tested, method="fdr_bh")[1])


def test_a_claim_without_its_table_is_not_measured(stated):
    made = stated(one=ABOVE)
    row = claims.claim_rows(Evidence({}, "a", 0.5), made.values()).iloc[0]
    assert row["verdict"] == UNKNOWN and row["here"] == "not measured in this run" and row["untrained"] == ""


def test_every_statement_has_a_reason_and_either_published_values_or_why_not():
    for name, statement in claims.statements().items():
        assert statement.side in ("above", "below") and statement.claim and statement.why and statement.figure, name
        assert bool(statement.values) != bool(statement.no_size), name
        assert np.isfinite(statement.bound) and all(np.isfinite(value) for value in statement.values), name
