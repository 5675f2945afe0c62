"""Examples by activation interval: against plain loops, the same twice, and labels of words judged at words."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import needs_browser

from lib.base.hub import seed_source
from lib.labels.groupings import run_groupings, run_label_sets
from lib.labels.labels import Grouping, LabelSet
from lib.models.trunk import Trunk, load_model
from lib.report import contexts
from lib.text.blocks import Text
from lib.text.tokens import token_text


@pytest.fixture(scope="module")
def activation():
    made = np.random.default_rng(0).normal(size=(5, 400)).astype(np.float16)
    made[4] = -1  # never active
    return made


def test_intervals_are_tenths_of_the_range_above_zero(activation):
    high = activation.max(1).astype(np.float32) * 1.25
    made = contexts.intervals(activation, high)
    for (neuron, token), value in np.ndenumerate(activation.astype(float)):
        plain = 0 if value <= 0 else min(10, math.ceil(value / (float(high[neuron]) / 10)))
        assert made[neuron, token] == plain
    assert contexts.intervals(np.array([[0, 0.1, 1, 1.5]]), np.ones(1)).tolist() == [[0, 1, 10, 10]]
    assert not made[4].any()


def test_the_first_tokens_of_each_interval_in_a_random_order_are_drawn(activation):
    interval = contexts.intervals(activation, activation.max(1).astype(np.float32))
    order = np.random.default_rng(1).permutation(400)[:350]
    made = contexts.drawn(interval, order)
    for neuron in range(5):
        for number in range(1, 11):
            plain = [token for token in order if interval[neuron, token] == number][: contexts.EACH]
            assert made[neuron, number - 1].tolist() == plain + [-1] * (contexts.EACH - len(plain))


def test_tokens_with_a_label_are_counted_by_interval(activation):
    interval = contexts.intervals(activation, activation.max(1).astype(np.float32))
    draws = np.random.default_rng(2)
    carries, counted = draws.integers(0, 3, 400).astype(np.uint8), draws.random(400) < 0.9
    made = contexts.counted_by_interval(interval, carries, counted)
    for neuron, truth, number in np.ndindex(made.shape):
        assert made[neuron, truth, number] == sum(
            counted[token] and carries[token] == truth and interval[neuron, token] == number for token in range(400)
        )


def test_the_order_depends_on_the_number_of_a_token_alone(complete):
    sample = contexts.Sample.of(complete)
    order = sample.order()
    assert sorted(order) == np.flatnonzero(sample.counted).tolist()
    assert (order != np.sort(order)).mean() > 0.9
    later = contexts.Sample(sample.text, sample.number, sample.counted.copy())
    later.counted[order[::2]] = False
    assert later.order().tolist() == order[1::2].tolist()


def test_the_same_run_gives_the_same_contexts_twice(complete):
    rows = np.array([0, 7, 50])
    found = [contexts.activations(complete, contexts.Sample.of(complete), rows) for _ in range(2)]
    for one, two in zip(*(each.values() for each in found), strict=True):
        np.testing.assert_array_equal(one, two)
    orders = [contexts.Sample.of(complete).order() for _ in range(2)]
    np.testing.assert_array_equal(*orders)


def test_the_table_holds_the_model_s_activations_and_true_labels(complete):
    table = pd.read_parquet(complete.folder / "tables" / "contexts.parquet")
    sample = contexts.Sample.of(complete)
    series = {}
    Trunk(load_model(seed_source(complete.params, "a"))).run(
        sample.text.tokens, lambda layer, _, post: series.update({layer: post.flatten(0, 1).numpy()}), 2
    )
    context = complete.text.context
    for row in table.iloc[::13].itertuples():
        own = series[row.layer][:, row.neuron]
        high = complete.stats("examples")["a.value"][row.layer, row.neuron, 0]
        place, shade = np.array(row.place).reshape(10, -1), np.array(row.shade).reshape(10, contexts.EACH, -1)
        for number, rank in np.argwhere(place >= 0):
            at = place[number, rank]
            assert high * number / 10 - 2e-3 <= own[at] <= high * (number + 1) / 10 + 2e-3
            assert sample.counted[at]
            for step, one in enumerate(shade[number, rank]):
                beside = at + step - contexts.RADIUS
                if beside // context != at // context:
                    assert one == contexts.OUTSIDE
                elif sample.counted[beside]:
                    assert one / contexts.SHADES * high == pytest.approx(
                        max(0, own[beside]), abs=float(high) / 400 + 2e-3
                    )
                else:
                    assert one == contexts.UNCOUNTED
        assert sum(row.counts) == sample.counted.sum()


def test_tokens_by_mean_activation_are_those_of_the_whole_text(complete, monkeypatch):
    monkeypatch.setattr(contexts, "LEAST_COUNT", 5)
    text, series = complete.text, []
    Trunk(load_model(seed_source(complete.params, "a"))).run(
        text.tokens, lambda layer, _, post: series.append(post.numpy()), 2
    )
    counted = text.counted()
    tokens = text.tokens[counted].numpy()
    made = contexts.mean_by_token(complete, 1, np.array([3]))
    own = pd.Series(series[1][counted.numpy()][:, 3]).groupby(tokens).agg(["mean", "size"])
    best = own[own["size"] >= 5].sort_values("mean", ascending=False).head(contexts.TOP_TOKENS)
    np.testing.assert_allclose(made["top_mean"][0], best["mean"], atol=2e-3)
    assert made["top_count"][0].tolist() == own.loc[made["top_token"][0], "size"].tolist()


def test_a_label_of_a_word_holds_for_the_whole_word_alone(complete):
    tokenizer = complete.tokenizer
    texts = [token_text(tokenizer, token) for token in range(len(tokenizer))]
    the, letter, bos = texts.index(" the"), texts.index("s"), complete.text.bos_id
    tokens = torch.tensor([[bos, the, letter, the, the]])
    text = Text(tokens, torch.zeros(1), torch.zeros(1), ("x",), "", len(tokenizer), bos, ())
    sample = contexts.Sample(text, torch.zeros(1, dtype=torch.long), np.ones(5, bool))
    ids = (tokens == the).int()
    before = torch.cat([torch.full((1, 1), -1), ids[:, :-1]], 1)
    after = torch.cat([ids[:, 1:], torch.full((1, 1), -1)], 1)
    groupings, sets = {}, []
    for name, of in (("token", ids), ("previous_token", before), ("next_token", after)):
        groupings[name] = Grouping(name, ("other", "the"), of)
        kinds = pd.DataFrame({"label": [f"{name} word", f"{name} sign"], "family": "x", "kind": ["word", "sign"]})
        sets.append(LabelSet(name, kinds, np.array([[False, True]] * 2)))
    wanted = {label for one in sets for label in one.labels["label"]}
    made = {name: one.tolist() for name, one in contexts.carried(sample, tokenizer, groupings, sets, wanted).items()}
    assert made["token sign"] == [0, 1, 0, 1, 1]
    assert made["token word"] == [0, 0, 0, 1, 1]  # "thes" is not "the"
    assert made["previous_token word"] == [contexts.UNKNOWN, 0, 0, 0, 1]
    assert made["next_token word"] == [0, 0, 1, 1, contexts.UNKNOWN]


def test_the_page_s_labels_are_known(complete):
    label, carries = contexts._labels(complete, contexts.Sample.of(complete), np.arange(96))
    assert all(label)
    sets = run_label_sets(complete, run_groupings(complete))
    one = next(one for one in sets if one.grouping == "domain" and set(one.labels["label"]) & set(label))
    name = next(name for name in label if name in set(one.labels["label"]))
    member = one.member[one.labels["label"].tolist().index(name)]
    plain = member[complete.text.domain[:, None].expand_as(complete.text.tokens).flatten().numpy()]
    assert carries[name].tolist() == plain.astype(int).tolist()


@needs_browser
def test_the_page_shows_intervals_marks_and_more_of_a_block(complete, browser):
    row = pd.read_parquet(complete.folder / "tables" / "contexts.parquet").iloc[50]
    page, faults = browser.new_page(viewport={"width": 390, "height": 800}), []
    page.on("pageerror", lambda error: faults.append(str(error)))
    address = (complete.folder / "report" / "neurons.html").as_uri()
    page.goto(f"{address}#a/{row['layer']}/{row['neuron']}")
    page.wait_for_selector("#contexts:not([hidden]) .intervals")
    assert page.locator(".intervals > li").count() == contexts.INTERVALS
    assert page.locator(".context").count() == (row["place"] >= 0).sum()
    marks = page.eval_on_selector_all(".context .mark", "all => all.map(one => one.textContent)")
    slots = [index for number in range(9, -1, -1) for index in range(number * 3, number * 3 + 3)]
    assert marks == ["✗✓·"[row["carries"][slot]] for slot in slots if row["place"][slot] >= 0]
    short = page.locator(".context p").last.inner_text()
    page.locator(".context button").last.click()
    longer = page.locator(".context p").last.inner_text()
    assert len(longer) > len(short) and short.strip() in longer
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert not faults
    page.close()
