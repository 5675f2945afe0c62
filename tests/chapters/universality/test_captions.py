"""Sentences against made-up tables: the numbers are right, and there are words for nothing, one and many."""

import numpy as np
import pandas as pd
import pytest

from lib.chapters.universality import captions, properties
from lib.display.captions import GATED, Caption, count, p_words, percent
from lib.models.weights import READING_COLUMNS
from lib.run import with_universal
from tests.chapters.universality.test_figures import convergence_table, losses_table, made_up, matches_table

EVERY_CASE = pytest.mark.parametrize("threshold", [-1, 0.5, 0.93, 2], ids=["all", "some", "few", "none"])


def test_numbers_in_words():
    assert [count(number, "neuron") for number in (0, 1, 2, 1234)] == [
        "no neuron",
        "1 neuron",
        "2 neurons",
        "1,234 neurons",
    ]
    assert [percent(share) for share in (0, 1e-6, 0.0416, 1, np.nan)] == [
        "0 %",
        "less than 0.01 %",
        "4.16 %",
        "100.00 %",
        "undefined",
    ]
    assert p_words(0.0) == "p < 1e-300" and p_words(0.031) == "p = 0.031"


def captions_of(neurons: pd.DataFrame, threshold: float) -> list[Caption]:
    neurons = with_universal(neurons, threshold)
    everyone = pd.concat([neurons.assign(seed=seed) for seed in "ab"])
    tests = properties.property_tests(neurons)
    number = int(neurons["is_universal"].sum())
    summary = properties.convergence_summary(convergence_table(neurons))
    draws = neurons.assign(baseline=neurons["mean_baseline"], draw=0)[["draw", "layer", "neuron", "baseline"]]
    two = pd.concat([draws, draws.assign(draw=1, baseline=draws["baseline"] + 0.01)])
    return [
        captions.losses(losses_table(), 64),
        captions.composition(pd.DataFrame({"domain": ["x", "y"], "blocks": 1, "tokens": [10, 20], "counted": [5, 20]})),
        captions.activation_histograms(neurons.head(3)),
        captions.correlation_by_layer(neurons),
        *(
            captions.draws(properties.draw_summary(some, neurons, threshold), properties.draw_spread(some), neurons)
            for some in (draws, two)
        ),
        captions.convergence(summary, "a"),
        captions.convergence(summary.groupby("seed").tail(1), "a"),
        captions.excess(neurons, threshold),
        captions.seed_agreement(neurons, 4),
        captions.seed_agreement(neurons, 1),
        captions.layer_agreement(properties.match_layer_percent(matches_table())),
        captions.share_by_reference(properties.reference_shares(everyone)),
        captions.share_by_reference(properties.reference_shares(everyone[everyone["seed"] == "a"])),
        captions.share_by_threshold(everyone, threshold),
        captions.share_by_layer(properties.layer_shares(everyone), "a"),
        captions.property_percentiles(tests, number),
        captions.raw_values(neurons, ["skew", "kurt"]),
        captions.frequency_and_cosine(neurons),
        captions.redundancy(neurons),
    ]


@EVERY_CASE
@pytest.mark.parametrize("left_out", [[], READING_COLUMNS], ids=["", "gated"])
def test_every_caption_has_a_title_a_text_and_a_description_without_nan(threshold, left_out):
    made = captions_of(made_up().assign(**dict.fromkeys(left_out, np.nan)), threshold)
    assert sum(GATED in finding.text for finding in made) == (0 if not left_out else 2 if threshold == 2 else 3)
    for finding in made:
        for words in finding:
            assert words and "nan" not in words.split() and "nan " not in words.replace("**", " "), finding
        assert len(finding.title) <= 95, finding.title
        assert not finding.title.endswith(".") and finding.text.endswith(".") and finding.alt.endswith("."), finding


def test_the_excess_sentence_counts():
    neurons = with_universal(made_up(), 0.5)
    number = int((neurons["excess_corr"] > 0.5).sum())
    text = captions.excess(neurons, 0.5).text
    assert f"**{number}** of 80 neurons (**{100 * number / 80:.2f} %**) are universal" in text
    assert captions.excess(with_universal(neurons, 2), 2).text.startswith("**0** of 80 neurons (**0 %**) are universal")
    assert "1.26 % for Pythia-160M, 4.16 % for GPT2-small, 1.23 % for GPT2-medium" in text


def test_the_property_sentence_names_each_verdict():
    tests = pd.DataFrame(
        {
            "label": ["skew", "mean", "kurtosis", "variance"],
            "verdict": ["holds", "does not hold", "cannot tell", ""],
            "effect": [0.5, 0.9, 0.1, -0.2],
            "median_percentile": [80.0, 91.0, 55.0, 40.0],
            "p_corrected": [1e-5, 1e-9, 0.4, 1],
        }
    )
    text = captions.property_percentiles(tests, 30).text
    assert "The paper's direction **holds** for skew; it **does not hold** for mean;" in text
    assert "this run **cannot tell** for kurtosis (corrected p ≥ 0.05)." in text
    assert "kurtosis (1 universal, fewer than 10)" in captions.property_percentiles(tests, 1).text


def test_the_property_table_shows_dashes_for_what_is_unknown():
    table = captions.property_table(properties.property_tests(with_universal(made_up(), 2))).set_index("property")
    assert (table["effect (Cliff's delta)"] == "–").all() and (table["corrected p"] == "–").all()
    assert table.loc["activation frequency", "published GPT2-small"] == "24"


def test_the_agreement_sentence_by_hand():
    matrix = pd.DataFrame([[90.0, 10.0, 0.0], [20.0, 60.0, 20.0], [40.0, 30.0, 30.0]])
    text = captions.layer_agreement(matrix).text
    assert "**60 %** of the neurons have their best match in the same layer (chance: 33 %)" in text
    assert "87 % in the same or an adjacent layer" in text


def test_the_sentences_of_a_sketch_and_of_seeds_of_different_depths():
    outsiders = pd.DataFrame({"seed": list("ab"), "model": list("ba"), "neurons": [80, 60], "outsiders": [2, 1]})
    neurons = with_universal(made_up(), 0.5)
    assert "Of all references' 140 best matches, **3** may be" in captions.correlation_by_layer(neurons, outsiders).text
    assert "followed" not in captions.correlation_by_layer(neurons).text
    matches = matches_table()
    deep = properties.match_layer_percent(matches.assign(depth=matches["layer"] // 2, match_depth=0))
    found = captions.layer_agreement(deep)
    assert found.title == "50 % of best matches lie in the same part of the depth of the other seed"
    assert "each depth is cut into 2 equal parts" in found.text


def test_layers_lie_where_their_middle_is():
    for layers, parts in ((2, 2), (3, 2), (24, 12), (7, 5)):
        middle = (np.arange(layers) + 0.5) / layers
        assert (
            properties.depth_of(np.arange(layers), layers, parts).tolist()
            == (middle * parts + 1e-9).astype(int).tolist()
        )


def test_the_facts_of_the_pass():
    done = {
        "tokens_counted": 1234567,
        "blocks": 10,
        "context": 256,
        "precision": "fp32",
        "device": "cpu",
        "wall_seconds": 12.34,
        "tokens_per_second": 4567.8,
        "peak_memory_bytes": 3 * 2**29,
    }
    facts = captions.pass_facts(done).set_index("fact")["value"]
    assert facts["tokens counted"] == "1,234,567" and facts["peak memory"] == "1.61 GB" and facts["device"] == "cpu"
    assert facts["products of activations"] == "exact"
    sketch = captions.pass_facts(done | {"rows": 16384, "products": "sketch"}).set_index("fact")["value"]
    assert sketch["products of activations"] == "estimated from a sketch of 16,384 rows"
