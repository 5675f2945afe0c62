"""The neuron explorer: its data against plain expressions, and its page in a browser against the run's tables."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import TEXT, needs_browser, processed_model, save_seed
from explored import made_run
from small_models import llama_model

from bench import pages
from lib.base.hub import seed_source
from lib.base.params import Params
from lib.report import explorer, explorer_files, render
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
    assert len(list(folder.glob("seed.a.*.js"))) == 1 and re.match(
        r'explorerFile\("seed.a","[\w+/=]+"\);\n$', (folder / "seed.a.js").read_text()
    )


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
            ".logits.up li > span:last-child", "all => all.map(one => one.innerText)"
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
    stats, histogram = complete.stats("examples"), complete.stats("histogram")
    values = stats["a.value"][0, 3][: explorer_files.MAX_EXAMPLES]
    peaks = opened.page.eval_on_selector_all(".examples:not(.small) .where b", "all => all.map(one => one.innerText)")
    assert [displayed(one) for one in peaks] == [pytest.approx(value, abs=0.006) for value in values]
    texts = opened.page.eval_on_selector_all(".examples:not(.small) .peak", "all => all.map(one => one.textContent)")
    tokens = complete.text.tokens[stats["a.block"][0, 3].astype(int), stats["a.position"][0, 3].astype(int)][
        : len(texts)
    ]
    expected = [
        re.sub(" {3,}", lambda run: f"␣{len(run[0])}", explorer.token_text(complete.tokenizer, int(token)))
        for token in tokens
    ]
    assert texts == expected
    opened.page.hover(".examples:not(.small) .peak >> nth=0")
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
    label = families[families["layer"] == 1]["label"].iloc[0]
    page.fill("#search", label)
    assert (
        f"b/1/{families[(families['layer'] == 1)]['neuron'].iloc[0]}" in opened.listed()
        and 0 < len(opened.listed()) <= 48
    )
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
    assert "This page holds the 30 of 96" in opened.page.inner_text("#found")
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
        painted, everything = pages.views(browser, f"{(complete.folder / 'report').resolve().as_uri()}/{page}")
        assert 0 < painted < 60 and 0 < everything < 60  # seconds, not milliseconds
    assert pages.main([str(tmp_path)]) == 2 and "`make report` makes one" in capsys.readouterr().err


def test_description_is_json_without_nan(complete):
    found = explorer.measured(complete)
    assert found and all(set(one) & {"ablation", "fixed", "heads"} for one in found.values())
    json.loads(explorer.as_json(found))
