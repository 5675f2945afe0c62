"""What the explorer notebook computes, against direct expressions; and the notebook itself, alone and in JupyterLab."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import needs_browser
from nbclient import NotebookClient

from lib.base.errors import InputError
from lib.base.hub import seed_source
from lib.base.params import ROOT
from lib.lab import own_text, panels
from lib.lab.widgets import LabelPanel, TextPanel, ThresholdPanel
from lib.labels.labels import token_counts, token_labels
from lib.models.trunk import Trunk, load_model
from lib.run import with_universal
from lib.text.tokens import token_text
from tests.base.test_params import is_sentence

TEXTS = ["the", " The", " then", "42", " 1999", "\n", " a"]


@pytest.mark.parametrize(
    "typed, expected", [("the, A", [0, 1, 6]), ("/ ?[0-9]+/", [3, 4]), ("42", [3]), ("/ ?the.*/", [0, 2])]
)
def test_a_typed_label_is_words_or_a_regular_expression(typed, expected):
    assert np.flatnonzero(panels.typed_label(typed, TEXTS)).tolist() == expected


@pytest.mark.parametrize("typed", ["", " ", "/", "//", "/(/", "zebra", "/(?s:.*)/"])
def test_a_label_that_says_nothing_is_refused_in_a_sentence(typed):
    with pytest.raises(InputError) as error:
        panels.typed_label(typed, TEXTS)
    assert str(error.value)[0].isalpha() and len(str(error.value)) > 20


def grouped(post: np.ndarray, group: np.ndarray, half: np.ndarray, groups: int) -> dict[str, torch.Tensor]:
    """Compact grouped moments of (tokens, neurons) activations, by definition."""
    z = (post - post.mean(0)) / post.std(0)
    own = {
        name: np.zeros((2, *shape))
        for name, shape in {
            "count": (groups,),
            "mean": (groups, post.shape[1]),
            "center": (post.shape[1],),
            "variance": (post.shape[1],),
        }.items()
    }
    for side in (0, 1):
        own["center"][side], own["variance"][side] = z[half == side].mean(0), z[half == side].var(0)
        for one in range(groups):
            chosen = z[(half == side) & (group == one)]
            own["count"][side, one] = len(chosen)
            own["mean"][side, one] = chosen.mean(0) if len(chosen) else 0
    named = {f"token.{name}": torch.from_numpy(own[name]) for name in ("count", "mean")}
    named["token_labels.tokens"] = named["token.count"].sum(1)
    return named | {f"token_labels.{name}": torch.from_numpy(own[name]) for name in ("center", "variance")}


def test_label_scores_are_the_share_of_variance_that_the_label_explains():
    rng = np.random.default_rng(0)
    group, half, member = rng.integers(0, 6, 400), rng.integers(0, 2, 400), np.array([1, 0, 1, 0, 0, 0], bool)
    post = rng.normal(size=(400, 5)) + np.where(member[group], 1.5, 0)[:, None] * np.arange(5)
    found = panels.label_scores(grouped(post, group, half, 6), member)
    for side, name in ((0, "chosen_score"), (1, "score")):
        values, label = post[half == side], member[group][half == side]
        share = label.mean()
        direct = 1 - ((1 - share) * values[~label].var(0) + share * values[label].var(0)) / values.var(
            0
        )  # docs/method.md §5
        np.testing.assert_allclose(found[name], direct, rtol=1e-9)
    difference = (values[label].mean(0) - values[~label].mean(0)) / post.std(0)
    np.testing.assert_allclose(found["difference"], difference, rtol=1e-9)
    rare = panels.label_scores(grouped(post, np.minimum(group, 4), half, 6), np.eye(6, dtype=bool)[5])
    assert rare["score"].isna().all()
    said = panels.explained_sentence(rare.assign(layer=0, neuron=range(5), chance=0.1), "x", 1, 0.0)
    assert "too few or too many" in said


def test_what_fires_is_universal_and_unusually_active():
    own = pd.DataFrame(
        {
            "layer": [0, 0, 1],
            "neuron": [0, 1, 1],
            "excess_corr": [0.9, 0.1, 0.6],
            "activation_mean": 0.0,
            "activation_std": [1.0, 1.0, 0.5],
        }
    )
    post = np.zeros((2, 3, 2))
    post[0, 1, 0], post[0, 2, 1], post[1, 2, 1] = 2.5, 9.0, 2.0
    found = own_text.fired(post, with_universal(own, 0.5))
    assert found[["layer", "neuron", "token", "deviations"]].to_numpy().tolist() == [[1, 1, 2, 4.0], [0, 0, 1, 2.5]]
    assert own_text.fired(post, with_universal(own, 1.0)).empty
    assert own_text.matched_sets({"a": found.head(0)}, matches([("a", 0, 1, "b", 0, 5, True)])).empty


def matches(rows: list[tuple]) -> pd.DataFrame:
    """Rows of matches_all_seeds: seed, layer and neuron, those of the match, and whether it is mutual."""
    return pd.DataFrame(rows, columns=[*own_text.NEURON, *own_text.PARTNER, "mutual"])


def rows(*neurons: tuple[int, int, float]) -> pd.DataFrame:
    """Rows of `fired`: layer, neuron, deviations."""
    table = pd.DataFrame(neurons, columns=["layer", "neuron", "deviations"])
    return table.assign(token=1, excess_corr=0.6, activation=1.0)


def test_fired_neurons_are_grouped_by_mutual_matches():
    fired = {"a": rows((0, 1, 3.0), (0, 2, 2.5)), "b": rows((0, 5, 9.0), (1, 0, 4.0)), "c": rows((0, 7, 2.0))}
    pairs = [
        ("a", 0, 1, "b", 0, 5, True),  # a set of two, with c's through b's
        ("b", 0, 5, "c", 0, 7, True),
        ("a", 0, 2, "b", 1, 0, False),  # not mutual
        ("a", 0, 2, "c", 3, 3, True),  # did not fire
    ]
    found = own_text.matched_sets(fired, matches(pairs))
    together = [list(own["seed"] + own["neuron"].astype(str)) for _, own in found.groupby("set", sort=False)]
    assert together == [["a1", "b5", "c7"], ["b0"], ["a2"]]  # by the largest deviation in the set


def test_labels_of_a_typed_text_hold_where_they_do(complete):
    vocabulary = token_labels(complete.tokenizer, token_counts(complete.text), complete.text.vocab_size)
    tokens = own_text.text_tokens(complete.tokenizer, "the 42 cats", 0, 256)
    texts = [token_text(complete.tokenizer, token) for token in tokens[1:]]
    names, member = own_text.labels_holding(vocabulary, 256, tokens)
    places = {name: np.flatnonzero(row).tolist() for name, row in zip(names, member, strict=True)}
    spaced = [place for place, text in enumerate(texts) if text.startswith(" ")]
    assert places["starts with a space"] == spaced and 0 < len(spaced) < len(texts)
    assert places["previous: starts with a space"] == [place + 1 for place in spaced if place + 1 < len(texts)]
    assert places["next: starts with a space"] == [place - 1 for place in spaced if place > 0]
    assert places["position < 3"] == [0, 1]  # BOS is at 0
    html = own_text.labels_html(["<x>", *texts[1:]], (names, member), ["position < 3"])
    assert "&lt;x&gt;" in html and html.count("position &lt; 3") == 2 and "starts with" not in html


def test_a_set_links_to_its_neurons_and_marks_where_the_label_holds(complete):
    found = rows((0, 1, 3.0), (0, 2, 2.5)).assign(seed="a", set=[0, 1], label=["<x>", None], score=[0.5, np.nan])
    post = np.array([[[0.0, 0.1, 2.0], [0.0, 1.0, 0.0]]])  # (layers, tokens, neurons)
    holding = (pd.Index(["<x>"]), np.array([[True, False]]))
    html = own_text.sets_html(found, {"a": post, "b": post}, ["<b>", "y"], holding, "report.html#")
    assert 'href="report.html#a/0/1"' in html and "&lt;x&gt;, score 0.50" in html and "unexplained" in html
    assert html.count("<b>&lt;b&gt;</b>") == 1 and html.count("<h4>In seed a only</h4>") == 2
    assert "href" not in own_text.sets_html(found, {"a": post}, ["<b>", "y"], holding, "")


@pytest.mark.parametrize("excess", [np.linspace(-0.1, 0.9, 40), np.full(40, np.nan), np.zeros(40)])
def test_threshold_figure_and_sentence_for_any_excess(excess):
    own = pd.DataFrame({"layer": np.repeat([0, 1], 20), "neuron": np.tile(range(20), 2), "excess_corr": excess})
    own = with_universal(own, 0.5)
    fig = panels.threshold_figure(own, 0.5, 1)
    number = int((excess > 0.5).sum())
    within = int((excess[20:] > 0.5).sum())
    sentence = panels.threshold_sentence(own, "a", 0.5, 1)
    assert fig.axes[0].get_yscale() == "log"
    assert len(fig.axes) == 3 and (f"{number} neurons of 40" if number else "no neuron of 40") in sentence
    assert re.search(rf"in layer 1 ({within} neurons|no neuron) of 20", sentence)


def test_a_typed_text_is_refused_when_it_does_not_fit(complete):
    assert own_text.text_tokens(complete.tokenizer, " the cat", 0, 256)[0] == 0
    for typed in ("", "word " * 300):
        with pytest.raises(InputError) as error:
            own_text.text_tokens(complete.tokenizer, typed, 0, 256)
        assert is_sentence(str(error.value))


def test_threshold_panel_follows_its_controls(complete):
    panel = ThresholdPanel(complete)
    before = panel.figure.value
    panel.threshold.value = 0.01
    number = int((complete.neurons["excess_corr"] > 0.01).sum())
    assert panel.figure.value != before and f"{number} neurons" in panel.sentence.value and number > 0
    panel.seed.value = "b"
    assert "of seed b" in panel.sentence.value


def test_a_typed_label_scores_as_the_same_label_of_the_report(complete):
    panel, families = LabelPanel(complete), complete.table("families").query("seed == 'a'")
    word = families["label_unigram"].mode()[0]
    panel.typed.value = word.removeprefix("word “").removesuffix("”")
    same = families[families["label_unigram"] == word][["layer", "neuron", "score_unigram"]]
    scores = panel.scores.merge(same, on=["layer", "neuron"])
    assert len(scores) == len(same) > 0
    np.testing.assert_allclose(scores["score"], scores["score_unigram"], atol=2e-3)
    panel.typed.value = "/(/"
    assert "not a regular expression" in panel.output.value


def test_a_typed_label_says_which_of_its_tokens_have_no_sums(complete, monkeypatch):
    panel = LabelPanel(complete)
    panel.typed.value = "/.*e.*/"
    every, scores = panel.output.value, panel.scores
    assert "rare" not in every and "a typed label is of the token itself" in panel.children[2].value.lower()
    carried = np.array(["e" in text for text in panel.texts])
    monkeypatch.setattr("lib.lab.widgets.TOKENS_KEPT", 700)  # as if the later rows were the one of all others
    panel.show()
    assert f"matches {carried[:700].sum()} tokens" in panel.output.value
    assert f"{carried[700:].sum()} rare tokens more" in panel.output.value and not panel.scores.equals(scores)


def test_the_page_of_neurons_is_served_with_its_data(complete, tmp_path):
    report = complete.folder / "report"
    address = own_text.neuron_address(report)
    for name in ("neurons.html", *(f"neurons/{path.name}" for path in (report / "neurons").iterdir())):
        with urllib.request.urlopen(address.replace("neurons.html#", name)) as served:
            assert served.read() == (report / name).read_bytes()
    assert own_text.neuron_address(tmp_path) == ""


def test_text_panel_runs_every_seed(complete):
    panel = TextPanel(complete, "The cat sat on the mat.")
    panel.threshold.value = 0.01
    tokens = own_text.text_tokens(complete.tokenizer, "The cat sat on the mat.", complete.text.bos_id, 256)
    post = own_text.activations(Trunk(load_model(seed_source(complete.params, "b"))), tokens)
    assert panel.fired["b"].equals(own_text.fired(post, with_universal(panel.neurons["b"], 0.01)))
    assert "Matched in 2 of 3 seeds" in panel.output.value  # b is a with its neurons in another order
    assert "Labels at each token" in panel.output.value


@pytest.fixture
def notebook(complete):
    """The explorer notebook with the small run in its parameters cell."""
    notebook = nbformat.read(ROOT / "notebooks" / "optional" / "explorer.ipynb", as_version=4)
    cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    outputs, params_file = str(complete.folder.parent), str(complete.folder / "params.yaml")
    cell.source += f"\nfrom lib.base import params\nparams.OUTPUTS = __import__('pathlib').Path({outputs!r})"
    cell.source += f"\nparams_file = {params_file!r}"
    return notebook


def test_the_notebook_runs_from_a_fresh_kernel(notebook, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    executed = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": ROOT / "notebooks" / "optional"}}
    ).execute()
    shown = [
        output.data
        for cell in executed.cells
        for output in cell.get("outputs", [])
        if output.output_type in ("display_data", "execute_result")
    ]
    assert sum("application/vnd.jupyter.widget-view+json" in data for data in shown) == 3


@contextlib.contextmanager
def jupyterlab(root: Path, opened: str, home: Path, **environment):
    """The address of a JupyterLab in the folder `root`, started as `make lab` starts it, on a notebook there."""
    recipe = next(line for line in (ROOT / "Makefile").read_text().splitlines() if "-m jupyterlab" in line)
    options = [option for option in recipe.split() if option.startswith("--ServerApp")]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folders = {
        name: str(home / name)
        for name in (
            "JUPYTER_CONFIG_DIR",
            "JUPYTER_DATA_DIR",
            "JUPYTER_RUNTIME_DIR",
            "JUPYTERLAB_SETTINGS_DIR",
            "JUPYTERLAB_WORKSPACES_DIR",
        )
    }
    with open(home / "log.txt", "w", encoding="utf-8") as log:
        server = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "jupyterlab",
                *options,
                "--allow-root",
                "--no-browser",
                f"--LabApp.default_url=/lab/tree/{opened}",
                "--LabApp.expose_app_in_browser=True",
                f"--ServerApp.port={port}",
                "--IdentityProvider.token=key",
            ],
            cwd=root,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | folders | environment,
            stdout=log,
            stderr=log,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/api?token=key", timeout=5):
                break
            time.sleep(0.5)
        else:
            raise AssertionError((home / "log.txt").read_text())
        yield f"{address}/?token=key"  # leads to the notebook
    finally:
        server.terminate()
        server.wait(30)


@needs_browser
def test_the_notebook_in_jupyterlab_follows_its_sliders_and_lights_up_neurons(tmp_path, notebook, browser):
    (tmp_path / "notebooks" / "optional").mkdir(parents=True)
    nbformat.write(notebook, tmp_path / "notebooks" / "optional" / "explorer.ipynb")
    with jupyterlab(tmp_path, "notebooks/optional/explorer.ipynb", tmp_path, PYTHONPATH=str(ROOT)) as address:
        page = opened_notebook(browser, address)
        page.evaluate(RUN_ALL)
        follows_its_sliders(page)


RUN_ALL = """async () => {
    await jupyterapp.restored;
    await jupyterapp.shell.currentWidget.sessionContext.ready;
    await jupyterapp.commands.execute('notebook:run-all-cells');
}"""


def opened_notebook(browser, address: str):
    """JupyterLab's page, once its notebook is there."""
    page = browser.new_page(viewport={"width": 1280, "height": 1400})
    page.set_default_timeout(120_000)
    page.goto(address)
    page.wait_for_selector(".jp-NotebookPanel .jp-Cell")
    return page


def follows_its_sliders(page) -> None:
    panel = page.locator(".jp-OutputArea-output:has(img.jupyter-widgets)").first
    sentence, picture = panel.locator(".widget-html-content").first, panel.locator("img.jupyter-widgets")
    before, drawn = sentence.inner_text(), picture.get_attribute("src")
    assert before.startswith("Above 0.5, ")
    panel.get_by_role("slider").first.focus()
    for _ in range(30):
        page.keyboard.press("ArrowLeft")
    page.wait_for_function("element => element.innerText.startsWith('Above 0.2, ')", arg=sentence.element_handle())
    assert sentence.inner_text() != before.replace("0.5", "0.2") and picture.get_attribute("src") != drawn

    lower = page.locator(".jp-OutputArea-output:has(textarea)").last
    lower.locator("textarea").fill("The cat sat on the mat.")
    threshold = lower.get_by_role("slider").first
    threshold.focus()
    for _ in range(49):
        page.keyboard.press("ArrowLeft")
    says = "([element, text]) => element.innerText.includes(text)"
    page.wait_for_function(says, arg=[lower.element_handle(), "threshold\n0.01"])
    lower.get_by_role("button", name="Run the models").click()
    page.wait_for_function(says, arg=[lower.element_handle(), "deviations above its mean"])
    page.wait_for_function(says, arg=[lower.element_handle(), "At threshold 0.01,"])  # the last of the slider's steps
    assert "fired on 7 tokens" in lower.inner_text()
    assert "Matched in 2 of 3 seeds" in lower.inner_text()
    page.close()
