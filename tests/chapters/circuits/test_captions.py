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
        (captions.logit_effects(examples, table), figures.logit_effects(examples, effects, members)),
        (captions.next_token(split, 1000, "a"), figures.next_token(split[split["seed"] == "a"])),
        (captions.universal_roles(shares, 0.5), figures.universal_roles(shares, 0.5)),
        (captions.match_agreement(agreement), figures.match_agreement(agreement)),
    ]


@pytest.mark.parametrize("case", ["none", "one suppression", "many", "switch"])
def test_every_case_has_a_figure_without_a_warning_and_a_caption_without_nan(case):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
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
    late = "Suppression: 100 % of high-kurtosis neurons in the last layer"
    assert switch.title == f"{late} (undecided), without any before it"  # two seeds decide nothing
    assert "no prediction neuron, 50 suppression neurons" in switch.text
    three = captions.roles_by_layer(
        pd.concat([made_up("switch"), made_up("switch").query("seed == 'a'").assign(seed="c")])
    )
    assert three.title == f"{late}, without any before it" and "**every seed has it**" in three.text
    bars = figures.roles_by_layer(made_up("switch")).axes[1].patches
    assert [bar.get_height() for bar in bars] == [0] * LAYERS + [0, 0, 0, -25]
    one = pd.concat([made_up("switch").query("seed == 'a'"), made_up("many").query("seed != 'a' and learned_skew > 0")])
    assert captions.roles_by_layer(one).title.startswith(
        "Suppression: 50 % of high-kurtosis neurons in the last layer (0 %"
    )
    none = captions.roles_by_layer(made_up("none"))
    assert none.title == "No prediction or suppression neuron by either cut"
    table = made_up("many")
    published, everything = (int((table[name] > 10).sum()) for name in ("learned_kurt", "vocab_kurt"))
    text, lowering = captions.moments_by_layer(table).text, int((table["role_learned"] == "suppression").sum())
    turned = f"{lowering} of the {lowering} suppression neurons would turn into prediction neurons."
    assert f"**{published}** exceed the published kurtosis cut of 10" in text and everything > published
    assert f"With them {everything} neurons would exceed the published kurtosis cut, and {turned}" in text
    assert "no neuron of the last 2 layers passes the published cut" in captions.skew_of_peaked(made_up("none")).text


def test_figure_24_gives_one_number_the_mean_over_seeds_of_shares():
    percentiles = {"a": [90, 90, 40, 40], "b": [90, 40, 40, 40], "c": [40]}
    rows = [(seed, value) for seed, values in percentiles.items() for value in values]
    table = pd.DataFrame(rows, columns=["seed", "percentile"]).assign(
        role="suppression", effect=-0.1, label_score=0.2, null_score=0.1
    )
    caption = captions.next_token(table, 1000, "a")
    where = "More active before their class than their layer's median"
    assert caption.title == f"{where}: suppression 3 of 9 neurons (undecided)"
    assert "In seed a 2 of 4 suppression neurons do" in caption.text
    assert "On average over seeds **25 %** of the suppression neurons (0 % to 87 %) do" in caption.text
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


def test_neurons_picked_for_a_class_are_told_from_all_neurons():
    table = made_up("many")
    table.loc[table["role_learned"] == "suppression", "label"] = None
    examples = roles.example_neurons(table[table["seed"] == "a"], 2)
    caption = captions.logit_effects(examples, table)
    low, high = examples["label_score"].min(), examples["label_score"].max()
    assert f"it explains {100 * low:.0f} % to {100 * high:.0f} %" in caption.title
    assert "were picked because they have a class" in caption.text and "**0 %**" in caption.text
    some = captions.logit_effects(examples.assign(label_score=[0.2] + [0.0] * (len(examples) - 1)), table)
    assert f"Of the {len(examples)} neurons shown **1** has a class" in some.text and "20 %" in some.title
    assert "None of the" in captions.logit_effects(examples.assign(label_score=0.0), table).title


def test_shares_of_matches_stand_beside_chance_also_where_there_is_none():
    row = {"property": "role", "pairs": 9, "agreement": 0.4, "chance": 0.05, "chance_low": 0.0, "chance_high": 0.1}
    rows = [row | {"group": "prediction"}, row | {"group": "partition", "agreement": 0.36, "chance": 0.02}]
    rows.append(row | {"group": "none", "agreement": 0.77, "chance": 0.93, "chance_low": 0.9, "chance_high": 0.95})
    caption = captions.match_agreement(pd.DataFrame(rows))
    assert caption.title == "Neurons with a role match the same role 36 % to 40 % of the time (chance 2 % to 5 %)"
    assert "no permutation reached any of these shares" in caption.text
    assert "without a role less often than by chance: 77 % (chance 93 %)" in caption.text
    reached = captions.match_agreement(pd.DataFrame(rows).assign(chance_high=[0.38, 0.38, 0.95])).text
    assert "permutations stayed below 1 of 2 shares" in reached
    alone = captions.match_agreement(pd.DataFrame(rows[2:]).assign(chance_low=0.7))
    assert alone.title.startswith("No neuron with a role") and "about as often as by chance" in alone.text


def test_universal_roles_says_what_the_published_cuts_call_sharp_neurons():
    row = {"neurons": 10, "universal": 2, "share": 0.2, "expected_universal": 0.05, "top_share": 0.4, "expected": 0.05}
    row |= {"agree": True, "p_corrected": 0.01}
    learned = pd.DataFrame([row | {"role": "prediction"}, row | {"role": "partition", "p_corrected": 0.2}])
    none = {"neurons": 0, "universal": 0}
    published = pd.DataFrame(
        [none | {"role": role} for role in ("prediction", "suppression")] + [row | {"role": "partition"}]
    )
    caption = captions.universal_roles({"role_learned": learned, "role_published": published}, 0.5)
    assert caption.title == "Universal: 20.0 % of prediction, 20.0 % of partition neurons; depth alone gives 5.0 %"
    assert "2 of 10 partition neurons are universal: no neuron passes the kurtosis cut" in caption.text
    assert "significant for prediction (largest p = 0.01)" in caption.text
    sharp = published.assign(neurons=10)
    assert "sharp" not in captions.universal_roles({"role_learned": learned, "role_published": sharp}, 0.5).text
