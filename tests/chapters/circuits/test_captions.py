"""Figures and captions of chapter 5, for made-up tables: no, one and many neurons of each role."""

import warnings

import numpy as np
import pandas as pd
import pytest

from lib.chapters.circuits import captions, claims, figures, role_agreement, roles
from lib.chapters.interventions import captions as written
from lib.chapters.interventions import figures as drawn
from lib.display.html import table_html
from lib.run import with_universal

LAYERS, WIDTH = 4, 25


def made_up(case: str) -> pd.DataFrame:
    """200 neurons of seeds a and b with every column of the circuit table; `case` says which roles there are."""
    generator = np.random.default_rng(0)
    one = pd.DataFrame({"layer": np.repeat(range(LAYERS), WIDTH), "neuron": np.tile(range(WIDTH), LAYERS)})
    table = pd.concat([one.assign(seed=seed) for seed in "ab"], ignore_index=True)
    total = len(table)
    table["learned_kurt"] = generator.uniform(2.5, 3.1, total)
    table["learned_var"] = generator.uniform(0.002, 0.004, total)
    table["learned_skew"] = generator.normal(0, 0.3, total)
    if case == "one suppression":
        table.loc[90, ["learned_kurt", "learned_skew"]] = [3.9, -0.8]
    if case == "many":
        table["learned_kurt"] = generator.uniform(2.5, 14, total)
        table["learned_var"] = generator.uniform(0.002, 0.009, total)
    if case == "switch":
        last = table["layer"] == LAYERS - 1
        table.loc[last, "learned_kurt"], table.loc[last, "learned_skew"] = 12.0, -1.0
    table.loc[3, ["learned_kurt", "learned_skew"]] = np.nan  # writes nothing
    table["null_kurt"], table["null_var"], table["null_score"], table["unlearned"] = 3.4, 0.005, 0.1, 7
    learned = table.rename(columns=lambda name: name.replace("learned_", "vocab_"))
    table["role_published"] = roles.roles(learned, roles.PUBLISHED_CUTS)
    table["role_learned"] = roles.roles(learned, roles.Cuts(3.4, 0.005))
    table["role_calibrated"] = table["role_learned"].replace({"suppression": "prediction"})
    table["vocab_kurt"] = table["learned_kurt"] + 2
    table["skew_sign"] = np.sign(table["learned_skew"])
    for side in ("raised", "lowered"):
        table[side] = generator.choice(["digits", "ends with -ing", "all capitals"], total)
        table[f"{side}_score"] = generator.uniform(0.01, 0.2, total)
    table["label_score"] = table[["raised_score", "lowered_score"]].max(axis=1)
    table["label"] = table["raised"].where(table["label_score"] > 0.1)
    table["excess_corr"] = generator.uniform(-0.1, 0.6, total)
    return with_universal(table, 0.5)


def matches_of(table: pd.DataFrame) -> pd.DataFrame:
    rows = table[["seed", "layer", "neuron"]].assign(corr=0.4, match_layer=table["layer"], match_neuron=table["neuron"])
    return rows.assign(model=rows["seed"].map({"a": "b", "b": "a"}))


def splits_of(table: pd.DataFrame) -> pd.DataFrame:
    chosen = [roles.neurons_of_role(table, role).head(6) for role in ("suppression", "prediction")]
    chosen = pd.concat(chosen, ignore_index=True)
    generator = np.random.default_rng(1)
    for name in ("mean_in", "mean_out", "effect"):
        chosen[name] = generator.normal(0, 1, len(chosen))
    chosen["layer_low"], chosen["layer_high"], chosen["percentile"] = -0.3, 0.3, generator.uniform(0, 100, len(chosen))
    chosen["p_value"] = chosen["p_corrected"] = 0.01
    if len(chosen):
        chosen.loc[0, ["effect", "p_value", "p_corrected", "percentile"]] = np.nan
    return chosen


def everything(case: str):
    """(caption, figure) of every kind."""
    table = made_up(case)
    own = table[table["seed"] == "a"]
    examples = roles.example_neurons(own, 2)
    effects = np.random.default_rng(2).normal(0, 0.1, (len(examples), 300))
    members = effects > 0.1
    split = splits_of(table)
    shares = {column: role_agreement.universal_shares(table, column) for column in figures.CUTS}
    agreement = role_agreement.match_agreement(table, matches_of(table), 0, draws=10)
    labels = {"vocab_kurt": "kurtosis", "entropy": "entropy rule", "nowhere": "unknown"}
    properties = table.assign(entropy=table["neuron"] < 3, nowhere=np.nan)
    ranks = role_agreement.property_agreement(properties, matches_of(table), list(labels), 0, draws=10)
    return [
        (written.property_agreement(ranks, labels), drawn.property_agreement(ranks, labels)),
        (captions.moments_by_layer(table), figures.moments_by_layer(table)),
        (captions.skew_of_peaked(table), figures.skew_of_peaked(table)),
        (captions.roles_by_layer(table), figures.roles_by_layer(table)),
        (captions.logit_effects(examples), figures.logit_effects(examples, effects, members)),
        (captions.next_token(split, 1000, "a"), figures.next_token(split[split["seed"] == "a"])),
        (captions.universal_roles(shares, 0.5), figures.universal_roles(shares, 0.5)),
        (captions.match_agreement(agreement), figures.match_agreement(agreement)),
    ]


@pytest.mark.parametrize("case", ["none", "one suppression", "many", "switch"])
def test_every_case_has_a_figure_without_a_warning_and_a_caption_without_nan(case):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert captions.classes_by_role(made_up(case)).endswith(
            " have a class beyond chance (calibrated cuts, all seeds)."
        )
        for caption, fig in everything(case):
            for words in caption:
                assert words and "nan" not in words.replace("*", " ").replace("(", " ").split(), caption
            assert len(caption.title) <= 130 and not caption.title.endswith("."), caption.title
            assert caption.text.endswith((".", ".**")) and caption.alt.endswith("."), caption
            fig.draw_without_rendering()
            panels = [axes for axes in fig.axes if axes.get_visible()]
            assert any(axes.get_xlabel() for axes in panels) and any(axes.get_ylabel() for axes in panels)


def test_captions_say_where_suppression_takes_over_and_how_many_neurons_pass_the_cuts():
    switch = captions.roles_by_layer(made_up("switch"))
    assert switch.title == "Suppression takes over in the last layer: 25 against 0 neurons a seed"
    assert (
        "the paper's switch to suppression is seen" in switch.text
        and "no prediction neuron, 50 suppression neurons" in switch.text
    )
    bars = figures.roles_by_layer(made_up("switch")).axes[1].patches
    assert [bar.get_height() for bar in bars] == [0] * LAYERS + [0, 0, 0, -25]
    one = pd.concat([made_up("switch").query("seed == 'a'"), made_up("many").query("seed != 'a' and learned_skew > 0")])
    assert captions.roles_by_layer(one).title == "Suppression outnumbers prediction in the last layer of 1 of 2 seeds"
    none = captions.roles_by_layer(made_up("none"))
    assert none.title == "No prediction or suppression neuron by either cut"
    table = made_up("many")
    published, everything = (int((table[name] > 10).sum()) for name in ("learned_kurt", "vocab_kurt"))
    text, lowering = captions.moments_by_layer(table).text, int((table["role_learned"] == "suppression").sum())
    assert f"**{published}** exceed the published kurtosis cut of 10" in text and everything > published
    assert f"With them {everything} neurons would exceed the published kurtosis cut, and {lowering} suppression" in text
    assert "no neuron of the last 2 layers passes the published cut" in captions.skew_of_peaked(made_up("none")).text


def test_figure_24_gives_one_number_the_mean_over_seeds_of_shares():
    percentiles = {"a": [90, 90, 40, 40], "b": [90, 40, 40, 40], "c": [40]}
    rows = [(seed, value) for seed, values in percentiles.items() for value in values]
    table = pd.DataFrame(rows, columns=["seed", "percentile"]).assign(
        role="suppression", effect=-0.1, label_score=0.2, null_score=0.1
    )
    caption = captions.next_token(table, 1000, "a")
    assert caption.title.startswith("25 % of suppression neurons fire more before their class")
    assert "In seed a 2 of 4 suppression neurons do" in caption.text
    assert (
        "The mean" not in caption.text
        and "over 3 seeds is **25 %** of the suppression neurons (0 % to 50 %)" in caption.text
    )
    assert claims.share_above_layer(claims.tested(table, "suppression")).mean() == 0.25
    by_chance = table.assign(label_score=0.1)
    assert "cannot be tested" in captions.next_token(by_chance, 1000, "a").text


def test_marks_of_what_depth_explains_stand_in_both_panels():
    table = made_up("many")
    shares = {"role_learned": role_agreement.universal_shares(table, "role_learned")}
    for axes, column in zip(figures.universal_roles(shares, 0.5).axes, ("expected_universal", "expected"), strict=True):
        np.testing.assert_allclose(axes.lines[0].get_ydata(), shares["role_learned"][column])


def test_caption_of_a_one_layer_model_mentions_no_switch():
    table = made_up("many").query("layer == 0")
    found = captions.roles_by_layer(table)
    assert found.title.startswith("One layer") and "switch" not in found.text and "second half" not in found.text


def test_tables_of_words_wrap_and_escape_html():
    examples = pd.DataFrame(
        {"role": ["prediction"], "layer": [1], "neuron": [2], "label": ["a <b>"], "label_score": [0.5]}
    )
    html = table_html(captions.token_table(examples, [(["x", "<i>"], ["y"])]))
    assert "&lt;i&gt;" in html and "a &lt;b&gt;" in html and "<i>" not in html
    assert html.count("text-align:left;white-space:normal") == 5 and "<td>1</td>" in html
    assert captions.readable("     a  b----------") == "␣×5a␣␣b-×10"
    table = captions.class_table(made_up("none"))
    assert table["most frequent classes"].tolist() == ["–"] * 3 and table["neurons"].tolist() == [0, 0, 0]
