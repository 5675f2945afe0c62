"""The neuron explorer: its data against plain expressions, and its page in a browser against the run's tables."""

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TEXT, needs_browser, processed_model, save_seed
from explored import made_run
from safetensors.numpy import load
from small_models import llama_model

from bench import pages as bench_pages
from lib.base.hub import seed_source
from lib.base.params import Params
from lib.models.folded import folded
from lib.models.trunk import load_model
from lib.report import example, explorer, explorer_files, explorer_passages, explorer_weights, render
from lib.run import Run


class Explorer:
    """The page of a run in a browser, which remembers everything that went wrong."""

    def __init__(self, browser, run: Run, where: str = "", **options):
        self.faults: list[str] = []
        self.page = browser.new_page(**options)
        self.page.on("console", lambda message: self.faults.append(message.text))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("requestfailed", lambda request: self.faults.append(request.url))
        self.page.on(
            "request", lambda request: request.url.startswith(("file:", "data:")) or self.faults.append(request.url)
        )
        self.page.goto((run.folder / "report" / "neurons.html").as_uri() + where)

    def wait_for(self, name: str) -> None:
        """Until the neuron is shown with its best matches."""
        self.page.wait_for_selector(f'#card[data-shown="{name}"][data-complete="{name}"]', timeout=10_000)

    def shown(self) -> str:
        return self.page.get_attribute("#card", "data-shown")

    def properties(self) -> dict[str, tuple[float, float]]:
        """Column → (value, percentile) as displayed; NaN where a dash is."""
        texts = self.page.eval_on_selector_all(
            "[data-column]",
            "all => all.map(one => [one.dataset.column, one.children[1].innerText, one.children[3].innerText])",
        )
        return {name: (displayed(value), displayed(percentile)) for name, value, percentile in texts}

    def listed(self) -> list[str]:
        return self.page.eval_on_selector_all("#rows tbody a", "all => all.map(one => one.innerText)")


def displayed(text: str) -> float:
    text = text.replace("−", "-").replace(",", "")
    return np.nan if text == "–" else float(text)


def arrays_in(path: Path) -> dict[str, np.ndarray]:
    """A data file's arrays, read as a browser reads the script: escapes in the string, then gzip."""
    text = path.read_bytes().removesuffix(b'");\n').split(b'","', 1)[1]
    letters = {b"\\": b"\\", b'"': b'"', b"n": b"\n", b"r": b"\r"}
    return load(gzip.decompress(re.sub(rb"\\(.)", lambda found: letters[found[1]], text, flags=re.DOTALL)))


def row_of(table: pd.DataFrame, seed: str, layer: int, neuron: int) -> pd.Series:
    return table[(table["seed"] == seed) & (table["layer"] == layer) & (table["neuron"] == neuron)].iloc[0]


# ---------------------------------------------------------------- the data


def test_extreme_tokens_are_those_of_the_whole_vocabulary(complete):
    table = complete.table("logit_tokens")
    bridge = processed_model(seed_source(complete.params, "c"))
    w_out, unembedding = bridge.blocks[1].mlp.W_out.detach().double().numpy(), bridge.W_U.detach().double().numpy()
    cosine = (w_out / np.linalg.norm(w_out, axis=1)[:, None]) @ (unembedding / np.linalg.norm(unembedding, axis=0))
    for neuron in (0, 31, 47):
        row, order = row_of(table, "c", 1, neuron), np.argsort(cosine[neuron])
        np.testing.assert_array_equal(row["suppressed"], order[: explorer.LOGIT_TOKENS])
        np.testing.assert_array_equal(row["promoted"], order[::-1][: explorer.LOGIT_TOKENS])
        np.testing.assert_allclose(row["promoted_cos"], cosine[neuron, row["promoted"]], atol=1e-5)


def test_windows_hold_the_text_around_the_strongest_activations(complete):
    rows = np.array([3, 50])
    found = explorer.windows(complete, complete.stats("examples"), "b", rows, limit=4)
    radius = found["tokens"].shape[2] // 2
    for index, rank in np.ndindex(2, 4):
        block, position = int(found["block"][index, rank]), int(found["position"][index, rank])
        for place, token in enumerate(found["tokens"][index, rank]):
            at = position + place - radius
            assert token == (complete.text.tokens[block, at] if 0 <= at < 256 else -1)
        assert found["activation"][index, rank, radius] == pytest.approx(found["value"][index, rank], rel=1e-3)
        assert found["domain"][index, rank] == complete.text.domain[block]


def test_shades_are_right_to_half_a_step_and_mark_what_is_no_activation():
    activation = np.array([[[-0.17, 3.0, np.nan, np.nan]], [[np.nan] * 4], [[-0.1, -0.05, -0.1, -0.02]]])
    tokens = np.array([[[5, 6, 7, -1]], [[1, 2, -1, -1]], [[1, 2, 3, 4]]])
    made = explorer_files.shaded(activation, tokens)
    back = (
        made["low"][:, None, None] + made["shade"] / explorer_files.SHADES * (made["high"] - made["low"])[:, None, None]
    )
    known = np.isfinite(activation)
    np.testing.assert_allclose(back[known], activation[known], atol=3.17 / explorer_files.SHADES / 2 + 1e-6)
    assert made["shade"][0, 0, 2:].tolist() == [explorer_files.UNCOUNTED, explorer_files.OUTSIDE]
    assert made["shade"][1, 0].tolist() == [explorer_files.UNCOUNTED] * 2 + [explorer_files.OUTSIDE] * 2


def test_a_page_with_a_limit_keeps_the_most_universal_neurons_and_best_matches():
    frame = pd.DataFrame({"layer": [0, 0, 1, 1], "neuron": [0, 1, 0, 1], "excess_corr": [0.1, np.nan, 0.9, 0.4]})
    matches = pd.DataFrame(
        {"seed": "a", "model": "b", "match_layer": [1, 0, 1], "match_neuron": [1, 0, 1], "corr": [0.2, 0.8, 0.9]}
    )
    assert explorer.rows_shown(frame, matches, "a", 2).tolist() == [2, 3]
    assert explorer.rows_shown(frame.assign(excess_corr=np.nan), matches, "b", 2).tolist() == [0, 3]
    assert explorer.rows_shown(frame, matches, "a", 4).tolist() == [0, 1, 2, 3]


def test_fresh_data_are_not_written_again(complete, monkeypatch):
    monkeypatch.setattr("lib.base.params.OUTPUTS", complete.folder.parent)
    folder = complete.folder / "report" / "neurons"
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    render.render(complete.folder)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert (complete.folder / "report" / "index.html").read_text().count('href="neurons.html"') >= 1
    assert len(list(folder.glob("seed.a.*.js"))) == 1
    assert arrays_in(folder / "seed.a.js")["neuron"].tolist() == [*range(48)] * 2


def test_rounded_numbers_keep_four_digits_and_what_is_no_number():
    values = np.array([0.123456789, -9.87654321e-7, 1e30, 0, np.nan, -np.inf], np.float32)
    made = explorer_files.rounded(values)
    np.testing.assert_allclose(made, values, rtol=2**-14)
    assert (made[~np.isnan(made)].view(np.uint32) & 0x3FF == 0).all() and made[0] != values[0]


def test_neighbours_and_connections_are_those_of_all_cosines(complete):
    own = folded(load_model(seed_source(complete.params, "a")))
    with torch.no_grad():
        reads, writes = (torch.cat(one) / torch.cat(one).norm(dim=1, keepdim=True) for one in (own.w_in, own.w_out))
        near, across = (reads @ reads.T).numpy(), (writes @ reads.T).numpy()  # writes of the first with reads
    table = complete.table("neighbours").query("seed == 'a'")
    for flat in (3, 60):
        row = table.iloc[flat]
        others = np.argsort(-np.where(np.arange(96) == flat, -np.inf, near[flat]))[: explorer_weights.NEIGHBOURS]
        np.testing.assert_array_equal(row["near_in"], others)
        np.testing.assert_allclose(row["near_in_cos"], near[flat, others], atol=1e-5)
    early, late = table.iloc[3], table.iloc[60]
    cosine = across[3, 48:]
    z = (cosine - cosine.mean()) / cosine.std()
    strongest = np.argsort(-np.abs(z))[: explorer_weights.CONNECTIONS]
    np.testing.assert_array_equal(early["later"], 48 + strongest)
    np.testing.assert_allclose(early["later_z"], z[strongest], atol=1e-3)
    assert set(early["earlier"]) == set(late["later"]) == {-1}  # nothing before the first layer, or after the last
    np.testing.assert_array_equal(
        late["earlier"], np.argsort(-np.abs(across[:48, 60] - across[:48, 60].mean()))[: explorer_weights.CONNECTIONS]
    )
    assert explorer_weights.chance_z(1) == pytest.approx(0.6745, abs=1e-3) and explorer_weights.chance_z(0) is None


def test_passages_are_the_activations_of_best_matches_on_the_neurons_own_examples(complete):
    table = complete.table("passages")
    assert set(table["seed"]) == {"a"} and table.groupby(explorer.KEY)["rank"].nunique().max() == 3
    examples, checked = complete.stats("examples"), 0
    permuted = table[(table["seed"] == "a") & (table["model"] == "b")]  # b is a with its neurons in another order
    for row in permuted.itertuples():
        own = examples["a.window"][row.layer, row.neuron, row.rank].astype(float)
        counted = np.isfinite(own)
        found = np.array(row.activation, float)
        inside = np.abs(np.arange(-12, 13)) <= np.where(np.arange(25) < 12, row.position, 255 - row.position)
        np.testing.assert_allclose(found[counted], own[counted], rtol=2e-3, atol=2e-3)
        np.testing.assert_array_equal(np.isfinite(found), inside)
        checked += counted.sum()
    assert checked > 1000


def test_passages_stop_at_the_limit_of_text(complete, monkeypatch):
    neurons = complete.table("neurons_all_seeds")
    neurons["is_universal"] = (neurons["seed"] == "b") & (neurons["neuron"] == 3)
    chosen = explorer_passages.shown_neurons(neurons, "a")
    assert chosen["seed"].value_counts().to_dict() == {"a": 96, "b": 2}
    everything = explorer_passages.strongest(complete.stats("examples"), chosen, 256)
    monkeypatch.setattr(explorer_passages, "MAX_TOKENS", 4 * 256)
    some = explorer_passages.strongest(complete.stats("examples"), chosen, 256)
    assert 0 < len(some) < len(everything) and some["block"].nunique() <= 4


def test_a_preview_reads_no_passages(complete, monkeypatch):
    monkeypatch.setattr(explorer_passages, "kept", lambda run, name, module, inputs, make: make())
    monkeypatch.setitem(complete.done, "preliminary", 0.5)
    table = explorer_passages.passage_table(complete)
    made = explorer_files.passage_file(table, ["a", "b", "c"], {}, complete.stats("examples"))
    assert table.empty and made["flat"].shape == (0,) and made["shade"].shape[:3] == (0, 3, 3)


def test_consensus_needs_most_of_the_set_and_takes_the_best_label():
    base = {"layer": 0, "neuron": 0, "chance": 0.1}
    rows = [
        {"seed": "a", "label_unigram": "x", "score_unigram": 0.9, "label_syntax": "z", "score_syntax": 0.3},
        {"seed": "b", "label_unigram": "y", "score_unigram": 0.9, "label_syntax": "z", "score_syntax": 0.2},
        {"seed": "c", "label_unigram": "x", "score_unigram": 0.05, "label_syntax": "x", "score_syntax": 0.6},
    ]
    families = pd.DataFrame([base | row for row in rows])
    pairs = [(one, other) for one in "abc" for other in "abc" if one != other]
    matches = pd.DataFrame(
        [{"seed": one, "layer": 0, "neuron": 0, "model": m, "match_layer": 0, "match_neuron": 0} for one, m in pairs]
    )
    found = explorer_passages.consensus(families, matches)
    assert found["consensus"].tolist() == ["x"] * 3 and set(found["consensus_votes"]) == {2}
    np.testing.assert_allclose(found["consensus_score"], 0.5)  # 0.9 + 0.6 over three members
    two = explorer_passages.consensus(families[families["seed"] != "a"], matches[matches["seed"] != "a"])
    assert two.empty  # b and c share no label above chance
    six = pd.concat([families.assign(seed=families["seed"].map(dict(a="d", b="e", c="f"))), families])
    pairs = [(one, other) for one in "abcdef" for other in "abcdef" if one != other]
    matches = pd.DataFrame(
        [{"seed": one, "layer": 0, "neuron": 0, "model": m, "match_layer": 0, "match_neuron": 0} for one, m in pairs]
    )
    six.loc[six["label_syntax"] == "z", "score_syntax"] = 0.0
    six.loc[six["seed"] == "f", ["label_syntax", "score_syntax"]] = ["y", 0.5]
    found = explorer_passages.consensus(six, matches)
    assert set(found["consensus"]) == {"x"} and set(found["consensus_votes"]) == {3}  # of six: frequent, no majority


def test_the_example_holds_every_neuron_that_its_pages_link_to(complete, tmp_path):
    page = tmp_path / "04.html"
    page.write_text('<a href="neurons.html#a/1/7">7</a> <a href="neurons.html">Neurons</a>')
    kept = example.neurons_kept(complete, [page])
    neurons, matches = complete.table("neurons_all_seeds"), complete.table("matches_all_seeds")
    universal = neurons[neurons["is_universal"]]
    expected = {(row.seed, row.layer * 48 + row.neuron) for row in universal.itertuples()} | {("a", 55)}
    first = matches.assign(flat=matches["layer"] * 48 + matches["neuron"])
    for row in first.itertuples():
        if (row.seed, row.flat) in expected.copy() and (row.seed, row.flat) in {
            *[(one.seed, one.layer * 48 + one.neuron) for one in universal.itertuples()],
            ("a", 55),
        }:
            expected.add((row.model, row.match_layer * 48 + row.match_neuron))
    assert {(seed, flat) for seed, rows in kept.items() for flat in rows} == expected
    before = complete.table("logit_tokens")
    explorer_files.write_files(
        complete, tmp_path / "neurons", {"a": np.array([55]), "b": np.array([0]), "c": np.array([], int)}
    )
    own, whole = (
        arrays_in(folder / "seed.a.0.js") for folder in (tmp_path / "neurons", complete.folder / "report" / "neurons")
    )
    assert {name: values[0].tolist() for name, values in own.items()} == {
        name: values[55].tolist() for name, values in whole.items()
    }
    pd.testing.assert_frame_equal(complete.table("logit_tokens"), before)  # the run's own stay whole


# ---------------------------------------------------------------- the page


@needs_browser
@pytest.mark.parametrize("where", ["a/1/17", "b/0/5", "c/1/40"])
def test_a_neuron_opened_by_its_address_shows_what_the_tables_say(complete, browser, where):
    seed, layer, neuron = where.split("/")[0], *map(int, where.split("/")[1:])
    opened = Explorer(browser, complete, f"#{where}")
    opened.wait_for(where)
    neurons, families, circuits = (complete.table(name) for name in ("neurons_all_seeds", "families", "circuits"))
    peers = neurons.merge(families[[*explorer.KEY, "position_information"]], on=explorer.KEY)
    new = [name for name in circuits if name not in peers or name in explorer.KEY]
    peers = peers.merge(circuits[new], on=explorer.KEY).query("seed == @seed and layer == @layer")
    found = opened.properties()
    assert {
        "excess_corr",
        "sparsity",
        "kurt",
        "in_out_sim",
        "vocab_kurt",
        "position_information",
        "null_share",
    } <= found.keys()
    for name, (value, percentile) in found.items():
        expected = peers.loc[peers["neuron"] == neuron, name].iloc[0]
        np.testing.assert_allclose(value, expected, rtol=6e-3 if abs(expected) < 1e-3 else 6e-4, atol=1e-9)
        below = (peers[name] < expected).sum() + (peers[name] == expected).sum() / 2
        assert np.isnan(expected) or abs(percentile - 100 * below / peers[name].notna().sum()) <= 0.51

    text = opened.page.inner_text("#body")
    family = row_of(families, seed, layer, neuron)
    label = family["label"].replace("“", "‘").replace("”", "’")
    assert f"“{label}” explains {100 * family['score']:.1f} % of its variance" in text
    assert ("unexplained" in opened.page.inner_text(".badges")) == (family["family"] == "unexplained")
    universal = row_of(neurons, seed, layer, neuron)["excess_corr"] > 0.5
    assert opened.page.inner_text(".badges li >> nth=0") == ("universal" if universal else "not universal")

    matches = complete.table("matches_all_seeds").query("seed == @seed and layer == @layer and neuron == @neuron")
    for match in matches.itertuples():
        card = opened.page.inner_text(f'[data-match="{match.model}/{match.match_layer}/{match.match_neuron}"]')
        assert (
            f"correlation {match.corr:.3f}".replace("-", "−") in card and f"rotated basis {match.baseline:.3f}" in card
        )

    logits = row_of(complete.table("logit_tokens"), seed, layer, neuron)
    cosines = [
        displayed(one)
        for one in opened.page.eval_on_selector_all(
            ".logits.up:not(.means) li > span:last-child", "all => all.map(one => one.innerText)"
        )
    ]
    np.testing.assert_allclose(cosines, logits["promoted_cos"], atol=6e-4)
    tokens = opened.page.eval_on_selector_all(".logits.down code", "all => all.map(one => one.textContent)")
    vocabulary = [explorer.token_text(complete.tokenizer, token) for token in logits["suppressed"]]
    assert [token.replace("␣", " ") for token in tokens] == vocabulary
    assert opened.faults == []
    opened.page.close()


@needs_browser
def test_strongest_examples_and_histogram_are_those_of_the_statistics(complete, browser):
    opened = Explorer(browser, complete, "#a/0/3")
    opened.wait_for("a/0/3")
    best, every = ".examples:not(.small, .intervals)", "all => all.map(one => one.textContent)"
    stats, histogram = complete.stats("examples"), complete.stats("histogram")
    values = stats["a.value"][0, 3][: explorer_files.MAX_EXAMPLES]
    peaks = opened.page.eval_on_selector_all(f"{best} .where b", every)
    assert [displayed(one) for one in peaks] == [pytest.approx(value, abs=0.006) for value in values]
    texts = opened.page.eval_on_selector_all(f"{best} .peak", every)
    tokens = complete.text.tokens[stats["a.block"][0, 3].astype(int), stats["a.position"][0, 3].astype(int)][
        : len(texts)
    ]
    expected = [
        re.sub(" {3,}", lambda run: f"␣{len(run[0])}", explorer.token_text(complete.tokenizer, int(token)))
        for token in tokens
    ]
    assert texts == expected
    opened.page.hover(f"{best} .peak >> nth=0")
    assert displayed(opened.page.inner_text("#hover").removeprefix("activation ")) == pytest.approx(values[0], rel=6e-3)
    bars = opened.page.eval_on_selector_all(".histogram rect title", "all => all.map(one => one.textContent)")
    counts = [int(re.search(r": ([\d,]+) tokens", bar)[1].replace(",", "")) for bar in bars]
    np.testing.assert_array_equal(counts, histogram["a.counts"][0, 3])
    assert opened.faults == []
    opened.page.close()


@needs_browser
def test_a_neuron_is_reached_by_keys_buttons_scatter_plot_search_and_history(complete, browser):
    opened = Explorer(browser, complete)
    page, neurons = opened.page, complete.table("neurons_all_seeds")
    order = neurons[neurons["seed"] == "a"].sort_values(
        ["excess_corr", "layer", "neuron"], ascending=[False, True, True]
    )
    names = [f"a/{row.layer}/{row.neuron}" for row in order.itertuples()]
    opened.wait_for(names[0])  # without an address: the most universal neuron of the reference
    assert opened.listed() == names[: len(opened.listed())] and page.url.endswith(f"#{names[0]}")
    page.keyboard.press("ArrowRight")
    opened.wait_for(names[1])
    page.click("#next")
    opened.wait_for(names[2])
    page.click("#previous")
    opened.wait_for(names[1])
    page.keyboard.press("ArrowLeft")
    opened.wait_for(names[0])

    page.select_option("#across", "sparsity")
    far = next(
        name
        for name in names[10:]
        if page.evaluate(
            "([l, n]) => { const p = neuronPlace(l, n); return [...Array(96).keys()].every(i => {"
            " const q = neuronPlace(i / 48 | 0, i % 48);"
            " return q.at === p.at || Math.hypot(q.x - p.x, q.y - p.y) > 3; }); }",
            [int(part) for part in name.split("/")[1:]],
        )
    )
    place = page.evaluate("([l, n]) => neuronPlace(l, n)", [int(part) for part in far.split("/")[1:]])
    page.click("#scatter", position={"x": place["x"], "y": place["y"]})
    opened.wait_for(far)

    page.select_option("#seed", "c")
    opened.wait_for("c" + far[1:])
    page.fill("#search", "b/1/7")
    page.press("#search", "Enter")
    opened.wait_for("b/1/7")
    page.go_back()
    opened.wait_for("c" + far[1:])

    page.goto(page.url.split("#")[0] + "#a/1/400")
    page.wait_for_selector("text=There is no neuron “1/400” in seed a; layers are 0 to 1, neurons 0 to 47.")
    assert opened.faults == []
    page.close()


@needs_browser
def test_filters_list_what_the_tables_hold(complete, browser):
    opened = Explorer(browser, complete, "#b/0/0")
    opened.wait_for("b/0/0")
    page, families = opened.page, complete.table("families").query("seed == 'b'")
    neurons = complete.table("neurons_all_seeds").query("seed == 'b'")
    page.check("#universal")
    assert set(opened.listed()) == {
        f"b/{row.layer}/{row.neuron}" for row in neurons[neurons["excess_corr"] > 0.5].itertuples()
    }
    page.uncheck("#universal")
    family = families["family"].value_counts().index[-1]
    page.select_option("#family", family)
    page.select_option("#order", "score")
    own = families[families["family"] == family].sort_values(
        ["score", "layer", "neuron"], ascending=[False, True, True]
    )
    assert opened.listed() == [f"b/{row.layer}/{row.neuron}" for row in own.itertuples()]
    page.select_option("#family", "")
    page.select_option("#layer", "1")
    assert len(opened.listed()) == 48 and all(name.startswith("b/1/") for name in opened.listed())
    explained = families[(families["layer"] == 1) & (families["family"] != "unexplained")].sort_values("score")
    label = explained["label"].iloc[-1]
    page.fill("#search", label)
    best = explained[explained["label"] == label].sort_values("score", ascending=False)
    assert opened.listed()[: len(best)] == [f"b/1/{neuron}" for neuron in best["neuron"]]
    words = re.sub(r"\W+", "", label.split(": ")[-1].casefold())
    marked = page.eval_on_selector_all("#rows tbody tr:first-child mark", "all => all.map(one => one.textContent)")
    assert words in re.sub(r"\W+", "", "".join(marked).casefold())
    assert opened.faults == []
    page.close()


LABELS = [  # family, label, score; then the class that it raises, and tokens that it promotes and suppresses
    ("unigram", "word “the”", 0.4, "digits", "the", "⏎"),
    ("position", "position < 10", 0.9, "comma", " 12", ")"),
    ("token_class", "digits", 0.2, "full stop", "x", "x"),
    ("token_class", "closing bracket", 0.3, "", "x", "⏎⏎"),
    ("token_class", "line end", 0.25, "", "x", "x"),
    ("previous_token", "previous: line end", 0.5, "", "x", "x"),
    ("context", "language: German", 0.6, "", "x", "x"),
    ("token_class", "contains a digit", 0.5, "", "x", "x"),
    ("unexplained", "digits", 0.01, "", "x", "x"),
    ("alphabet", "first letter t", 0.8, "", "x", "x"),
]
FAKE = """(rows) => {
  const words = [...new Set(rows.flatMap(row => [row[0], row[1], row[3]]))].filter(Boolean);
  const vocabulary = [...new Set(rows.flatMap(row => [row[4], row[5]]))];
  Object.assign(explorer.run, {words, vocabulary, texts: ['family', 'label', 'raised'], measured: {},
    plain: ['score', 'chance', 'raised_score', 'null_score']});
  const index = text => text ? words.indexOf(text) : 65535, count = rows.length;
  const tokens = column => ({shape: [count, 1], values: rows.map(row => vocabulary.indexOf(row[column]))});
  window.fake = {name: 'z', count, data: {layer: {values: rows.map(() => 0)}, neuron: {values: rows.map((_, at) => at)},
    words: {values: [0, 1, 3].flatMap(column => rows.map(row => index(row[column])))},
    plain: {values: [...rows.map(row => row[2]), ...rows.map(() => .1), ...rows.map(() => .3), ...rows.map(() => .1)]}},
    tokens: {peak: tokens(4), promoted: tokens(4), suppressed: tokens(5),
      promoted_cos: {values: rows.map(() => 2000)}, suppressed_cos: {values: rows.map((_, at) => -3000 - at)}}};
}"""


@needs_browser
def test_search_understands_questions_and_ranks_what_fits_best_first(complete, browser):
    opened = Explorer(browser, complete, "#a/0/0")
    opened.wait_for("a/0/0")
    opened.page.evaluate(FAKE, LABELS)

    def found(query: str, scope: str = "any") -> dict[int, dict]:
        hits = opened.page.evaluate(
            "([query, scope]) => [...explorer.found(fake, fake.data.neuron.values, query, scope).hits.values()]",
            [query, scope],
        )
        return {hit["at"]: hit for hit in hits}

    for query, first in {
        'word "the"': [0],
        "word “the”": [0],
        "digits": [2, 7],  # neither "position < 10" nor the unexplained neuron
        "which neurons fire on German?": [6],
        "Deutsch": [6],
        "which fire on closing brackets?": [3],
        "right parenthesis": [3],
        "newline": [4, 5],
        "which fire at the start of a line?": [5],
        "which detect position?": [1],
        "number": [2, 7],
        "which one suppresses the newline?": [0, 3],
        "suppresses: )": [1],
        "promotes: digits": [0, 1],  # a class of tokens, then a token of digits
        "germ": [6],  # while one types
    }.items():
        hits = list(found(query))
        assert hits[: len(first)] == first, (query, hits)
        assert query not in ("digits", "number") or 8 not in hits and 1 not in hits
    assert list(found("digits", "promotes")) == [0, 1] and list(found("comma", "fires")) == []
    hit = found("which fire on GERMAN?")[6]
    assert hit["field"] == "fires on" and [hit["text"][slice(*mark)] for mark in hit["marks"]] == ["German"]
    both = opened.page.evaluate("explorer.found(fake, fake.data.neuron.values, 'german spoken', 'any')")
    assert both["lacking"] == 1  # nothing has both words
    opened.page.close()


@needs_browser
def test_search_and_filters_stand_in_the_address(complete, browser):
    opened = Explorer(browser, complete, "#b/1/5")
    opened.wait_for("b/1/5")
    page = opened.page

    def address() -> str:  # page.url lags behind
        return page.evaluate("location.hash")

    assert address() == "#b/1/5"
    page.select_option("#layer", "1")
    page.select_option("#what", "suppresses")
    page.fill("#search", "newline")
    query = "?q=newline&what=suppresses&layer=1"
    assert address() == f"#b/1/5{query}"
    listed = opened.listed()
    page.press("#search", "Enter")
    opened.wait_for(listed[0])
    assert address() == f"#{listed[0]}{query}"
    again = Explorer(browser, complete, address())
    again.wait_for(listed[0])
    assert again.listed() == listed and again.page.input_value("#what") == "suppresses"
    page.fill("#search", "")
    page.click("#random")
    page.wait_for_selector(f'#card[data-complete]:not([data-complete="{listed[0]}"])')
    assert opened.shown().startswith("b/1/")
    assert opened.faults == again.faults == []
    again.page.close()
    page.close()


@needs_browser
@pytest.mark.parametrize("storage", [True, False])
def test_stars_are_kept_and_saved_with_neurons_as_json(complete, browser, storage):
    opened = Explorer(browser, complete, "#a/0/3")
    if not storage:
        denied = "Object.defineProperty(window, 'localStorage', {get() { throw new Error('denied'); }})"
        opened.page.add_init_script(denied)
        opened.wait_for("a/0/3")  # a reload would abort what is still being read
        opened.page.reload()
    opened.wait_for("a/0/3")
    page = opened.page
    page.click("#star")
    assert page.get_attribute("#star", "aria-pressed") == "true" and page.inner_text("#stars") == "1"
    page.check("#starred")
    assert opened.listed() == ["a/0/3"]
    with page.expect_download() as saved:
        page.click("#save-stars")
    starred = json.loads(saved.value.path().read_text())["neurons"]
    row = row_of(complete.table("neurons_all_seeds"), "a", 0, 3)
    assert [(one["seed"], one["layer"], one["neuron"]) for one in starred] == [("a", 0, 3)]
    assert starred[0]["properties"]["excess_corr"]["value"] == pytest.approx(row["excess_corr"], rel=6e-4)
    with page.expect_download() as saved:
        page.click("#save")
    own = json.loads(saved.value.path().read_text())
    stats = complete.stats("examples")
    assert saved.value.suggested_filename == "test-a-0-3.json"
    assert own["examples"][0]["value"] == pytest.approx(stats["a.value"][0, 3, 0], rel=1e-5)
    assert sum(own["pre_activation"]["counts"]) == complete.stats("histogram")["a.counts"][0, 3].sum()
    matches = complete.table("matches_all_seeds").query("seed == 'a' and layer == 0 and neuron == 3")
    names = [f"{row.model}/{row.match_layer}/{row.match_neuron}" for row in matches.itertuples()]
    assert sorted(one["neuron"] for one in own["best_matches"]) == sorted(names)
    assert set(own["examples"][0]["other_seeds"]) == set(names) and len(own["near_in"]) == 3
    page.reload()
    opened.wait_for("a/0/3")
    assert page.get_attribute("#star", "aria-pressed") == str(storage).lower()
    assert opened.faults == []
    page.close()


@needs_browser
def test_passages_and_neighbours_are_shown_and_parts_add_sections(complete, browser):
    opened = Explorer(browser, complete, "#a/1/17")
    opened.wait_for("a/1/17")
    page = opened.page
    rows = page.eval_on_selector_all(
        ".same section:first-child .line", "all => all.map(one => [one.firstChild.innerText, one.lastChild.innerText])"
    )
    matches = complete.table("matches_all_seeds").query("seed == 'a' and layer == 1 and neuron == 17")
    names = [f"{row.model}/{row.match_layer}/{row.match_neuron}" for row in matches.itertuples()]
    assert [name for name, _ in rows] == ["a/1/17", *names] and len({text for _, text in rows}) == 1
    assert "onsensus" in page.inner_text(".consensus") and "Lowest value: " in page.inner_text(".pair")
    near = complete.table("neighbours").query("seed == 'a' and layer == 1 and neuron == 17").iloc[0]["near_out"]
    links = page.eval_on_selector_all(".near section:nth-child(2) a", "all => all.map(one => one.innerText)")
    assert links == [f"a/{flat // 48}/{flat % 48}" for flat in near]
    page.evaluate(
        "window.explorerSections.push(({seed, layer, neuron, at, get, run, element}) => {"
        " const box = document.getElementById('own-text'); box.hidden = false;"
        " box.append(element('b', {textContent: [seed.name, layer, neuron, get('value').length, run.run].join()})); })"
    )
    for where in ("a/0/3", "b/0/4"):  # the section is emptied in between
        page.goto(page.url.split("#")[0] + f"#{where}")
        opened.wait_for(where)
        number = len(complete.stats("examples")["a.value"][0, 0][: explorer_files.MAX_EXAMPLES])
        assert page.inner_text("#own-text").endswith(f"{where.replace('/', ',')},{number},test")
    assert opened.faults == []
    page.close()


@needs_browser
def test_effects_stand_beside_the_neurons_that_were_intervened_on(complete, browser):
    table = complete.table("mean_ablation")
    row = table[table["variant"] == "total"].iloc[0]
    where = f"a/{row['layer']}/{row['neuron']}"
    opened = Explorer(browser, complete, f"#{where}")
    opened.wait_for(where)
    cells = opened.page.inner_text('[aria-label="Fixed at its mean activation"]').replace("−", "-")
    assert f"{1000 * row['loss_change']:.2f} ± {1000 * row['loss_error']:.2f}".replace(
        "-0.00 ", "0.00 "
    ) in cells.replace("-0.00 ", "0.00 ")
    circuits = row_of(complete.table("circuits"), "a", row["layer"], row["neuron"])
    assert f"a/{circuits['partner_layer']}/{circuits['partner_neuron']}" in opened.page.inner_text("#body")
    assert opened.faults == []
    opened.page.close()


@needs_browser
@pytest.mark.parametrize("scheme, width", [("light", 1280), ("dark", 390)])
def test_explorer_is_accessible(complete, browser, scheme, width):
    axe_package = pytest.importorskip(
        "axe_playwright_python", reason="the package axe-playwright-python is not installed"
    )
    opened = Explorer(browser, complete, "#a/1/17", color_scheme=scheme, viewport={"width": width, "height": 900})
    opened.wait_for("a/1/17")
    opened.page.eval_on_selector(".finder", "finder => { finder.open = true; }")
    opened.page.evaluate((Path(axe_package.__file__).parent / "axe.min.js").read_text())
    found = opened.page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    assert [(rule["id"], rule["nodes"][0]["html"]) for rule in found if rule["impact"] in ("serious", "critical")] == []
    assert opened.faults == []
    opened.page.close()


@needs_browser
def test_a_run_of_gated_models_without_chapters_and_with_a_limit(tmp_path, browser, monkeypatch):
    seeds = {name: save_seed(llama_model(index), tmp_path / name) for index, name in enumerate(("run", "run-0"))}
    run = made_run(tmp_path / "outputs", seeds, monkeypatch, threshold=1.0, compare="reference")
    monkeypatch.setattr(explorer, "MAX_NEURONS", 60)
    render.render(run.folder)
    assert explorer.optional(run, "families") is None and len(run.table("logit_tokens")) == 60
    opened = Explorer(browser, run, viewport={"width": 390, "height": 844})
    best = run.table("neurons").nlargest(1, "excess_corr").iloc[0]
    where = f"run/{int(best['layer'])}/{int(best['neuron'])}"
    opened.wait_for(where)
    assert (
        "w_in_norm" not in opened.properties() and "excess_corr" in opened.properties()
    )  # gated: w_in defines nothing
    assert opened.page.inner_text(".badges") == "not universal"
    opened.page.click("summary")
    assert "This page holds 30 of 96: those that match other seeds best" in opened.page.inner_text("#found")
    match = run.table("matches").merge(pd.DataFrame([best])[["layer", "neuron"]], on=["layer", "neuron"]).iloc[0]
    opened.page.goto(opened.page.url.split("#")[0] + f"#run-0/{match['match_layer']}/{match['match_neuron']}")
    opened.page.wait_for_selector(f'#card[data-shown="run-0/{match["match_layer"]}/{match["match_neuron"]}"]')
    assert "Not compared" in opened.page.inner_text(".matches")
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert opened.faults == []
    opened.page.close()


def test_a_run_without_statistics_has_no_explorer(tmp_path, monkeypatch):
    monkeypatch.setattr("lib.base.params.OUTPUTS", tmp_path)
    params = Params(
        run="bare", seeds={"a": "x/a", "b": "x/b"}, reference="a", text=str(TEXT), context=256, token_budget=512
    )
    assert not explorer.can_explore(Run(params))


@needs_browser
def test_the_first_view_is_timed_page_by_page(complete, browser, tmp_path, capsys):
    for page in ("index.html", f"neurons.html#{complete.params.reference}/0/0"):
        painted, everything = bench_pages.views(browser, f"{(complete.folder / 'report').resolve().as_uri()}/{page}")
        assert 0 < painted < 60 and 0 < everything < 60  # seconds, not milliseconds
    assert bench_pages.main([str(tmp_path)]) == 2 and "`make report` makes one" in capsys.readouterr().err


def test_description_is_json_without_nan(complete):
    found = explorer.measured(complete)
    assert found and all(set(one) & {"ablation", "fixed", "heads"} for one in found.values())
    json.loads(explorer.as_json(found))
