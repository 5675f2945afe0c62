"""What chapters open with: findings with the run's numbers, also where there is nothing to find."""

import ast
import json
import re

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup

from lib.base.params import ROOT
from lib.chapters.circuits import in_short as circuits
from lib.chapters.emergence import in_short as emergence
from lib.chapters.emergence.figures import timeline
from lib.chapters.families import in_short as families
from lib.chapters.families import summary
from lib.chapters.interventions import in_short as interventions
from lib.chapters.interventions import neuron_sets
from lib.chapters.universality import in_short as universality
from lib.chapters.universality import properties
from lib.run import with_universal
from tests.report.made_tables import make_tables

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def said(html) -> list[str]:
    """The findings as text, without their links; none has a number that is not known."""
    soup = BeautifulSoup(html.data, "html.parser")
    for link in soup.find_all("a"):
        link.decompose()
    texts = [item.get_text().strip() for item in soup.find_all("li")]
    assert not any(re.search(r"\b(nan|None|undefined)\b|\*\*", text) for text in texts), texts
    return texts


@pytest.fixture(scope="module", params=[True, False], ids=["some universal", "none universal"])
def tables(request) -> dict[str, pd.DataFrame]:
    made = make_tables(2, universal=request.param)
    return made | {"neurons_all_seeds": with_universal(made["neurons_all_seeds"], 0.5)}


def of_a(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["seed"] == "a"].drop(columns="seed").reset_index(drop=True)


def test_chapter_03_says_how_many_at_what_depth_and_how_they_differ(tables):
    neurons, matches = of_a(tables["neurons_all_seeds"]), of_a(tables["matches_all_seeds"])
    matrix = properties.match_layer_percent(matches)
    how_many, depth, differences = said(universality.universality(neurons, matrix, properties.property_tests(neurons)))
    number = int(neurons["is_universal"].sum())
    assert how_many.startswith(
        f"{100 * number / len(neurons):.2f} % of the neurons ({number})" if number else "No neuron"
    )
    assert f"{np.diag(matrix).mean():.0f} % are in the neuron's own layer, by chance 17 %." in depth
    assert number or differences == "With no universal neuron nothing can be said about how they differ."


@pytest.mark.parametrize("number", [0, 1, 100])
def test_chapter_02_says_whether_rotation_and_text_matter(number):
    neurons = pd.DataFrame({"layer": 0, "neuron": range(200), "mean_corr": 0.9, "mean_baseline": 0.2})
    neurons["is_universal"] = neurons["neuron"] < number
    neurons.loc[~neurons["is_universal"], "mean_corr"] = 0.3
    drawn = pd.concat([neurons[["layer", "neuron"]].assign(draw=draw, baseline=0.2) for draw in (0, 1)])
    sample = neurons[["layer", "neuron"]].assign(held_out_corr=neurons["mean_corr"])
    best, rotation, text = said(universality.correlation(neurons, drawn, sample, 0.5))
    assert f"correlates at {neurons['mean_corr'].mean():.2f}" in best and "it is 0.20" in best
    assert f"universal neurons, {number}, by at most 0." in rotation and f"all of it {number} neurons" in text
    assert len(said(universality.correlation(neurons, drawn[drawn["draw"] == 0], sample.head(0), 0.5))) == 1


def test_chapter_04_says_what_can_be_named_and_whether_seeds_agree(tables):
    rows = summary.with_excess(tables["families"], tables["neurons_all_seeds"])
    counts, pairs = summary.family_counts(rows[rows["seed"] == "a"]), tables["matches_all_seeds"]
    agreement = summary.family_agreement(summary.matched_pairs(tables["families"], pairs))
    named, shared, agree = said(families.families(counts, agreement))
    explained = counts.loc[counts["family"] != "unexplained", "all"].sum() / counts["all"].sum()
    assert (
        named.startswith(f"A label explains {100 * explained:.0f} % of the neurons") and "top 5 % by excess" in shared
    )
    assert f"{100 * agreement['same_label'].iloc[0]:.0f} % of explained neurons" in agree
    assert len(said(families.families(counts, agreement.assign(pairs=0)))) == 2


def test_chapter_05_says_what_weights_do_and_whether_roles_recur(tables):
    roles = tables["roles"]
    texts = said(circuits.circuits(roles, pd.DataFrame(columns=["property", "group", "pairs"])))
    peaked = roles["role_learned"].isin(["prediction", "suppression"]).mean()
    assert len(texts) == 2 and texts[0].startswith(f"{100 * peaked:.1f} % of the neurons")
    row = {"property": "role", "group": "prediction", "pairs": 10, "agreement": 0.4, "chance": 0.1, "chance_high": 0.2}
    table = pd.DataFrame([row, row | {"group": "suppression", "pairs": 30, "agreement": 0.2, "chance_high": 0.1}])
    assert " recur across seeds: 25 % of" in said(circuits.circuits(roles, table))[2]
    assert "do not clearly recur" in said(circuits.circuits(roles, table.assign(chance_high=0.3)))[2]
    none = roles.assign(role_learned="none", role_published="none")
    assert "No neuron reaches the paper's cut" in said(circuits.circuits(none, table.head(0)))[0]


def test_chapter_06_says_what_changes_in_the_running_model_or_that_nothing_ran(tables):
    compared = neuron_sets.comparisons(tables["ablations"])
    swept, norms = tables["fixed_activation"], tables["value_norms"]
    entropy, sink, sets = said(interventions.interventions(swept, norms, compared))
    assert " Over 3 seeds " in entropy and " times as large." in sink and "50 % is chance" in sets
    entropy, _, sets = said(interventions.interventions(swept[swept["group"] == "none"], norms, compared.head(0)))
    assert entropy.startswith("No neuron") and sets.startswith("No set")
    alike = pd.DataFrame({"group": "all", "property": ["x", "y"], "correlation": [0.5, 0.1], "chance_high": 0.2})
    left_out = said(interventions.left_out("the MLPs are gated.", alike))
    assert left_out[0] == "No interventions in this run. The MLPs are gated." and "1 of 2 properties" in left_out[1]
    assert len(said(interventions.left_out("the MLPs are gated.", alike.head(0)))) == 1


@pytest.mark.parametrize("share", [0.0, 0.01])
def test_chapter_07_says_when_they_arise_whether_they_stay_and_where(share):
    names = ["early", "half", "end"]
    points = pd.DataFrame({"point": names, "step": [1, 4, 10], "tokens": [1e6, 4e6, 1e7], "constant": True})
    shares = pd.DataFrame({"point": names, "seed": "a", "share": [0, share / 4, share]})
    layers = pd.DataFrame([(one, layer, share * (layer == at)) for at, one in enumerate(names) for layer in range(3)])
    layers.columns = ["point", "layer", "share"]
    layers["universal"] = (1000 * layers["share"]).astype(int)
    kept = pd.DataFrame({"point": ["half"], "universal": [4], "kept": [3], "persistence": [0.75], "chance": [0.01]})
    texts = said(emergence.emergence(points, shares, layers, kept, timeline(points)))
    if not share:
        assert texts == ["No neuron is universal at any checkpoint."]
        return
    assert (
        texts[0]
        == "The share of universal neurons grows through training: 0.25 % halfway, at 4M tokens, and 1.00 % at the end."
    )
    assert (
        texts[1].startswith("Most of them stay: 75 %")
        and "10 of the 10 universal neurons of all seeds are in layer 2; none of the first" in texts[2]
    )
    nobody = kept.assign(persistence=np.nan)
    assert len(said(emergence.emergence(points, shares, layers, nobody, timeline(points)))) == 2
    assert said(emergence.NO_TABLES)[0].startswith("There are no tables")


def test_chapter_01_says_what_is_read_and_how_often_neurons_are_active():
    losses = pd.DataFrame({"seed": ["a", "b"], "domain": "all", "loss": [2.0, 2.02]})
    text = pd.DataFrame({"domain": ["code", "prose"], "counted": [30, 70], "tokens": [40, 80]})
    neurons = pd.DataFrame({"sparsity": np.linspace(0, 0.2, 11)})
    loss, domains, active = said(universality.activations(losses, text, neurons))
    assert "2.01 nats per token on average, and at most 1.0 % apart" in loss and "prose, has 70 %" in domains
    assert active == "The median neuron is active on 10 % of the tokens; one neuron in ten on fewer than 2 %."
    assert "do not predict" in said(universality.activations(losses.assign(loss=[2, 3]), text, neurons))[0]


def code_of(notebook) -> list[str]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_chapter_ends_with_its_findings(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    assert ["in-short" in cell["metadata"].get("tags", []) for cell in cells] == [False] * (len(cells) - 1) + [True]
    assert " import in_short\n" in code_of(notebook)[-1]


def test_findings_link_to_figures_that_notebooks_show():
    shown = "\n".join(line for notebook in NOTEBOOKS for line in code_of(notebook))
    for module in (ROOT / "lib" / "chapters").glob("*/in_short.py"):
        calls = [node for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.Call)]
        figures = [call.args[1] for call in calls if getattr(call.func, "id", "") == "Finding" and len(call.args) > 1]
        named = [figure.value for figure in figures if isinstance(figure, ast.Constant)]
        assert len(named) >= 2 and all(f'"{name}"' in shown for name in named), module
