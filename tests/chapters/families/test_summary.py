"""Summaries, figures and sentences of chapter 4 on made-up families: right numbers, and words for every empty case."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from lib.chapters.families import captions, figures, figures_opening, summary
from lib.chapters.families.scoring import UNEXPLAINED, Choice, Scores, assign
from lib.chapters.families.summary import FAMILIES, LOWER_HALF, TOP
from lib.labels.labels import LabelSet
from lib.run import with_universal

LAYERS, WIDTH = 3, 20


def families_table(case: str = "some", threshold: float = 0.5) -> pd.DataFrame:
    """Two seeds of 60 neurons; family, label and scores go round; `none`: nothing passes chance."""
    parts = []
    for seed in "ab":
        total = LAYERS * WIDTH
        names = [name for name in FAMILIES if name != UNEXPLAINED]
        table = pd.DataFrame(
            {"seed": seed, "layer": np.repeat(range(LAYERS), WIDTH), "neuron": np.tile(range(WIDTH), LAYERS)}
        )
        score = np.linspace(0.01, 0.9, total)
        family = np.array(names)[np.arange(total) % 5]
        table["family"] = np.where((score > 0.3) & (case != "none"), family, UNEXPLAINED)
        table["best_family"], table["label"], table["kind"] = family, [f"word “{name}”" for name in family], "kind"
        table["chosen_score"], table["score"], table["gap"] = score + 0.01, score, 0.01
        table["first_family"], table["first_score"], table["first_held_out"] = family, score + 0.01, score
        table["chance"], table["labelled_score"], table["difference"] = 0.3, score, 1.0
        table["runner_up_family"], table["runner_up_label"], table["runner_up_score"] = "syntax", "x", score / 2
        table["near_tie"] = False
        for name in names:
            table[f"score_{name}"], table[f"label_{name}"] = score / 2, f"word “{name}”"
        table["position_information"] = score / 10
        table["excess_corr"] = np.linspace(-0.1, 0.95, total)
        parts.append(table)
    return with_universal(pd.concat(parts, ignore_index=True), threshold)


def matches_table() -> pd.DataFrame:
    """Every neuron's partner is itself, but in the last layer the neuron before."""
    rows = families_table()[["seed", "layer", "neuron"]].assign(corr=0.5)
    rows["model"] = rows["seed"].map({"a": "b", "b": "a"})
    rows["match_layer"] = rows["layer"]
    rows["match_neuron"] = (rows["neuron"] - (rows["layer"] == LAYERS - 1)) % WIDTH
    return rows


def statistics_and_sets(neurons: int = WIDTH):
    """One layer's statistics thrice: activation is 2 + 3 z with known z by token; labels over 5 tokens."""
    generator = np.random.default_rng(0)
    sizes = {"token_labels": 11, "position": 8, "domain": 3, "word_place": 8}
    own = {"mean": torch.full((neurons,), 2.0), "deviation": torch.full((neurons,), 3.0)}
    for name, size in sizes.items():
        own[f"{name}.count"] = torch.tensor(generator.integers(1, 9, (2, size)))
        own[f"{name}.mean"] = torch.tensor(generator.normal(0, 1, (2, size, neurons))).half()
        own[f"{name}.spread"] = torch.rand(size, neurons).half()
        own[f"{name}.tokens"] = own[f"{name}.count"].sum(1)
        own[f"{name}.center"], own[f"{name}.variance"] = torch.zeros(2, neurons), torch.ones(2, neurons)
    words = [f"word “{name}”" for name in FAMILIES if name != UNEXPLAINED]
    members = np.array([np.arange(5) == index % 5 for index in range(len(words))])
    letters = pd.DataFrame({"label": ["first letter a", "first letter b"], "family": "alphabet", "kind": "alphabet"})
    table = pd.concat([pd.DataFrame({"label": words, "family": "unigram", "kind": "word"}), letters], ignore_index=True)
    return [own] * LAYERS, [LabelSet("token", table, np.concatenate([members, members[:2]]))]


def test_counts_by_family_group_layer_and_seed():
    rows = families_table().query("seed == 'a'").reset_index(drop=True)
    counts = summary.family_counts(rows).set_index("family")
    assert counts["all"].sum() == 60 and counts.loc[UNEXPLAINED, "all"] == (rows["score"] <= 0.3).sum()
    assert counts["universal"].sum() == (rows["excess_corr"] > 0.5).sum() and counts[TOP].sum() == 3
    assert counts["rest"].sum() == 60 - counts["universal"].sum()  # the top lies among the universal
    assert summary.layer_counts(rows).to_numpy().sum() == 60
    comparison = summary.published_comparison(with_universal(rows, 2)).set_index("group")
    assert comparison.loc["universal", "neurons"] == 0 and comparison["low"].sum() == (rows["score"] < 0.05).sum()
    assert summary.seed_shares(families_table()).sum(axis=1).round(9).eq(1).all()


def test_family_agreement_by_hand():
    families = families_table()
    pairs = summary.matched_pairs(families, matches_table())
    assert len(pairs) == 120
    table = summary.family_agreement(pairs).set_index("pairs_of")
    explained = families.query("seed == 'a' and family != @UNEXPLAINED")
    same = (explained["layer"] < LAYERS - 1).sum()  # in the last layer the partner has the family before
    assert table.loc["all explained", "pairs"] == 2 * len(explained)
    assert table.loc["all explained", "same_family"] == pytest.approx(same / len(explained))
    assert table.loc["all explained", "same_label"] == pytest.approx(same / len(explained))
    lower = pairs[(pairs["family"] != UNEXPLAINED) & (pairs["score"] < explained["score"].median())]
    assert table.loc[LOWER_HALF, "pairs"] == len(lower) == len(explained)  # half of both seeds' pairs
    assert table.loc[LOWER_HALF, "same_label"] == pytest.approx((lower["label"] == lower["match_label"]).mean())
    shares = pairs.loc[pairs["family"] != UNEXPLAINED, "match_family"].value_counts(normalize=True)
    own = pairs.loc[pairs["family"] != UNEXPLAINED, "family"]
    assert table.loc["all explained", "chance_family"] == pytest.approx(own.map(shares).mean())


def test_activation_with_and_without_a_label_equals_that_of_every_token_written_out():
    """Mean and deviation with the label and without it, from sums by half against a list of every token."""
    generator = np.random.default_rng(0)
    v, half = generator.normal(3, 2, 60), np.arange(60) % 2
    member = np.stack([np.arange(60) < 20, np.arange(60) % 3 == 0, np.zeros(60, dtype=bool)])
    z = (v - v.mean()) / v.std()

    def of_halves(masks, value):
        return torch.tensor([[value(z[mask & (half == one)]) for mask in masks] for one in (0, 1)])

    own = {"mean": torch.tensor([v.mean()]), "deviation": torch.tensor([v.std()])}
    own["token_labels.count"] = of_halves(member, len)
    own["token_labels.mean"] = of_halves(member, lambda part: part.mean() if len(part) else 0.0)[..., None]
    own["token_labels.spread"] = torch.tensor([z[mask].std() if mask.any() else 0.0 for mask in member])[:, None]
    everyone = [np.ones(60, dtype=bool)]
    for key, value in (("tokens", len), ("center", np.mean), ("variance", np.var)):
        own[f"token_labels.{key}"] = of_halves(everyone, value) if key != "tokens" else of_halves(everyone, value)[:, 0]
    labels = pd.DataFrame({"label": ["x", "y", "none"], "family": "unigram", "kind": "word"})
    chosen = pd.DataFrame({"layer": 0, "neuron": 0, "label": labels["label"]})
    found = summary.activation_by_label(chosen, [own], [LabelSet("token", labels, np.zeros((3, 1), dtype=bool))])
    for row, mask in zip(found.itertuples(), member, strict=True):
        with_label = (v[mask].mean(), v[mask].std()) if mask.any() else (np.nan, np.nan)
        assert (row.on, row.on_spread) == pytest.approx(with_label, nan_ok=True)
        assert (row.off, row.off_spread) == pytest.approx((v[~mask].mean(), v[~mask].std()))


@pytest.mark.parametrize("case", ["some", "none"])
@pytest.mark.parametrize("threshold", [0.5, 2], ids=["universal", "no universal"])
def test_every_figure_draws_and_every_caption_is_whole(case, threshold):
    families, (statistics, sets) = families_table(case, threshold), statistics_and_sets()
    own = families[families["seed"] == "a"].reset_index(drop=True)
    chosen, none = (summary.best_neurons(own, family, 4) for family in ("unigram", "no such family"))
    levels = pd.DataFrame({"layer": range(LAYERS), "chance": 0.3, "median": 0.1, "largest": 0.5, "nonlinear": True})
    counts, held = summary.family_counts(own), summary.held_out_counts(own)
    layers = summary.layer_counts(own)
    agreement = summary.family_agreement(summary.matched_pairs(families, matches_table()))
    shares = summary.seed_shares(families)
    positions = own.nlargest(2, "position_information").assign(label="position")
    places = summary.activation_by_word_place(
        chosen,
        statistics,
        tuple(
            f"{word}|{place}"
            for word in ("unigram", "x")
            for place in ("as word", "word start", "word middle", "other")
        ),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="vert: bool was deprecated")  # seaborn 0.13 calling matplotlib 3.11
        drawn = [
            figures.family_counts(counts),
            figures.families_by_layer(layers, layers * 0),
            figures.scores(own),
            figures.chance_level(own, levels),
            figures.seed_shares(shares),
            figures.family_agreement(agreement),
            figures.activation_by_label(summary.activation_by_label(chosen, statistics, sets)),
            figures.activation_by_label(summary.activation_by_label(none, statistics, sets)),
            figures.activation_by_word_place(places),
            figures.activation_by_word_place(places.head(0)),
            figures.activation_heatmap(summary.activation_by_letter(chosen, statistics, sets), "letter"),
            figures.activation_heatmap(summary.activation_by_letter(none, statistics, sets), "letter"),
            figures.activation_heatmap(summary.activation_by_domain(chosen, statistics, ("x", "y", "z")), "domain"),
            figures.activation_by_position(positions, summary.activation_by_position(positions, statistics)),
            figures.explained_by_excess(own),
        ]
        for fig in drawn:
            fig.draw_without_rendering()
    findings = [
        captions.family_counts(counts, "a"),
        captions.scores(own, held),
        captions.chance_level(own, levels),
        captions.families_by_layer(layers),
        captions.explained_by_excess(own),
        captions.seed_shares(shares),
        captions.seed_shares(shares.head(1)),
        captions.family_agreement(agreement, 2),
        captions.family_agreement(summary.family_agreement(summary.matched_pairs(own, matches_table())), 1),
        captions.best_neurons(chosen, "unigram"),
        captions.best_neurons(none, "unigram"),
        captions.activation_by_position(positions, own),
        captions.best_neurons(none, "syntax"),
    ]
    assert "known as English prose" in findings[-1].text
    assert "known as English prose" not in captions.best_neurons(none, "unigram").text
    published = captions.best_neurons(chosen.assign(assigned=True), "unigram").text
    assert "the paper's best neuron for *the word “to”*: 0.987" in published or chosen.empty
    findings.insert(-1, captions.word_neurons(chosen, summary.shared_words(own), places))
    for words in [captions.labels(own), *(part for finding in findings for part in finding)]:
        assert words and "nan" not in words.replace("**", " ").replace("%", " ").split(), words
    table = captions.published(summary.published_comparison(own))
    assert table["number"].tolist()[:2] == ["1,211", f"{own['is_universal'].sum()}"] and not table.isna().any(axis=None)
    for finding in findings:
        assert len(finding.title) <= 130 and not finding.title.endswith("."), finding.title
        assert finding.text.endswith(".") and finding.alt.endswith("."), finding
    assert ("No neuron is universal" in findings[0].text) == (threshold == 2)


def test_no_chosen_neuron_gives_empty_tables():
    nobody = pd.DataFrame({"layer": [], "neuron": [], "label": []})
    assert {"mean", "place"} <= set(summary.activation_by_word_place(nobody, [], ()))
    assert summary.activation_by_domain(nobody, [], ("x", "y")).shape == (0, 2)


def test_family_that_does_not_hold_is_named_although_its_neurons_go_to_another():
    """Topic wins on the half that chooses and is nothing on the other, where token class takes the neurons over."""
    names = np.array(["topic", "token_class"])
    before, after = np.array([[0.3] * 100, [0.1] * 100]), np.array([[0.01] * 100, [0.1] * 100])
    choice = Choice(tuple(names), np.zeros((2, 100), dtype=int), before, after)
    labels = pd.DataFrame({"label": ["x"], "kind": ["token"]})
    table = assign(
        choice, np.array([0.05]), labels, Scores(torch.zeros(2, 1, 100), torch.zeros(1, 100), torch.zeros(1, 100))
    )
    assert (table["family"] == "token_class").all()
    held = summary.held_out_counts(table).set_index("family")
    assert held.loc["topic", ["chosen", "held_out"]].tolist() == [100, 0] and held.loc[
        "topic", "median_gap"
    ] == pytest.approx(0.29)
    caption = captions.scores(table, summary.held_out_counts(table))
    assert "**100** neurons exceed the chance level on the even blocks" in caption.text
    assert "**0 %** exceed it on the odd ones; the median change of their score is −0.290." in caption.text
    assert "None of topic (100) exceeds chance on the odd ones" in caption.text


def test_a_neuron_of_another_family_is_said_to_be_so():
    own = families_table().query("seed == 'a'").reset_index(drop=True)
    strongest = own["score_alphabet"].idxmax()
    chosen = summary.best_neurons(own, "alphabet", 3)
    assert captions.best_neurons(chosen, "alphabet").title.endswith("word “alphabet”")  # the best of its own neurons
    own["family"] = own["family"].replace("alphabet", "syntax")
    own.loc[strongest, ["family", "label"]] = "unigram", "word “the”"
    caption = captions.best_neurons(summary.best_neurons(own, "alphabet", 3), "alphabet")
    assert caption.title.endswith(", of a neuron of word “the”") and ", a neuron of *word “the”*." in caption.text
    own.loc[strongest, "family"] = UNEXPLAINED
    caption = captions.best_neurons(summary.best_neurons(own, "alphabet", 3), "alphabet")
    assert caption.title.endswith(", of an unexplained neuron")
    syntax = captions.best_neurons(summary.best_neurons(own, "syntax", 3), "syntax").text
    assert ", and *word “context”* alone " in syntax


def test_layers_that_hardly_differ_are_said_to_be_alike():
    layers = pd.DataFrame(0, index=pd.RangeIndex(2, name="layer"), columns=list(FAMILIES))
    layers["topic"], layers[UNEXPLAINED] = [10, 12], [90, 88]
    title = captions.families_by_layer(layers).title
    assert title == "All layers have about the same share of explained neurons, 10 % to 12 %"
    layers["topic"] = [10, 30]
    assert captions.families_by_layer(layers).title.startswith("Layer 1 has the largest share")


def test_opening_shows_the_best_universal_neuron_of_each_family_or_the_best_of_all():
    statistics, sets = statistics_and_sets()
    table = families_table()
    own = table[table["seed"] == "a"].reset_index(drop=True)
    token = next(one for one in sets if one.grouping == "token")
    letters = token.labels.loc[token.labels["family"] == "alphabet", "label"]
    own["label_alphabet"] = letters.iloc[0]
    own["label_previous_token"], own["label_position"] = token.labels["label"].iloc[0], token.labels["label"].iloc[0]
    own["family"] = "context"
    own.loc[own.index[[7, 20]], "family"] = "alphabet"
    own["is_universal"] = own.index == 7
    shown = figures_opening.opening(own, statistics, sets)
    assert shown.neurons["alphabet"][["layer", "neuron"]].tolist() == [0, 7]
    assert shown.neurons["position"][["layer", "neuron"]].tolist() == [2, 19]  # the largest score of all
    tokens, z = summary.row_means(statistics[0], "token_labels", 7)
    at = letters.index[tokens[letters.index] > 0]
    np.testing.assert_allclose(shown.means["alphabet"], z[at])
    figures_opening.figure(shown)
    text = figures_opening.caption(shown).text
    assert "*First letter*: layer 0, neuron 7" in text and text.count("no neuron of this seed belongs") == 2
    nothing = figures_opening.opening(own.drop(columns=[f"score_{name}" for name in figures_opening.PANELS]), [], [])
    figures_opening.figure(nothing)
    assert figures_opening.caption(nothing).title == "No letter, previous-token or position neuron"
