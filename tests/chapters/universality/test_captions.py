"""Sentences against made-up tables: the numbers are right, and there are words for nothing, one and many."""

import numpy as np
import pandas as pd
import pytest

from lib.chapters.universality import captions, properties
from lib.chapters.universality import captions_activations as activations
from lib.display.captions import GATED, Caption, count, p_words, percent
from lib.models.weights import READING_COLUMNS
from lib.run import with_universal
from tests.chapters.universality.test_figures import (
    OVER_SEEDS,
    compared_table,
    convergence_table,
    intervals_table,
    losses_table,
    made_up,
    matches_table,
)

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
        activations.losses(losses_table(), 64),
        activations.composition(
            pd.DataFrame({"domain": ["x", "y"], "blocks": 1, "tokens": [10, 20], "counted": [5, 20]})
        ),
        activations.activation_histograms(neurons.head(3)),
        activations.correlation_by_layer(neurons),
        *(
            activations.draws(properties.draw_summary(some, neurons, threshold), properties.draw_spread(some), neurons)
            for some in (draws, two)
        ),
        activations.convergence(summary, "a"),
        activations.convergence(summary.groupby("seed").tail(1), "a"),
        captions.excess(neurons, threshold),
        captions.seed_agreement(neurons, 4),
        captions.seed_agreement(neurons, 1),
        captions.layer_agreement(properties.match_layer_percent(matches_table())),
        captions.share_by_reference(properties.reference_shares(everyone)),
        captions.share_by_reference(properties.reference_shares(everyone[everyone["seed"] == "a"])),
        captions.share_by_reference(properties.reference_shares(everyone), intervals_table(), OVER_SEEDS),
        captions.share_by_compared(compared_table()),
        captions.share_by_compared(compared_table().query("compared == 1")),
        captions.share_by_threshold(everyone, threshold),
        captions.ceiling(neurons, threshold),
        captions.agreeing(neurons, 3, threshold),
        captions.share_by_layer(properties.layer_shares(everyone), "a"),
        captions.property_percentiles(tests, number),
        captions.frequency_and_cosine(neurons, properties.frequency_cosine_by_layer(everyone), "a"),
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
        assert len(finding.title) <= 130, finding.title
        assert not finding.title.endswith(".") and finding.text.endswith(".") and finding.alt.endswith("."), finding


def test_the_excess_sentence_counts():
    neurons = with_universal(made_up(), 0.5)
    number = int((neurons["excess_corr"] > 0.5).sum())
    text = captions.excess(neurons, 0.5).text
    assert f"**{number}** of 80 neurons (**{100 * number / 80:.2f} %**) are universal" in text
    assert captions.excess(with_universal(neurons, 2), 2).text.startswith("**0** of 80 neurons (**0 %**) are universal")
    assert "1.26 % for Pythia-160M, 4.16 % for GPT2-small, 1.23 % for GPT2-medium" in text


def test_the_property_sentence_counts_medians_on_the_published_side():
    tests = pd.DataFrame(
        {
            "label": ["skew", "mean", "kurtosis", "variance"],
            "published": ["high", "low", "high", ""],
            "median_percentile": [80.0, 91.0, 55.0, 40.0],
        }
    )
    text = captions.property_percentiles(tests, 30).text
    assert "**2** of 3 medians lie on the same side of 50 as the published ones, not mean." in text
    assert "whiskers: 5th and 95th percentile" in text and "fewer than 10" not in text
    assert (
        "With fewer than 10 universal neurons this seed decides nothing."
        in captions.property_percentiles(tests, 9).text
    )


def test_the_property_table_shows_dashes_for_what_is_unknown_and_the_ledgers_numbers():
    tests = properties.property_tests(with_universal(made_up(), 2))
    found = OVER_SEEDS._replace(value=88.2, low=71.4, high=105.0)
    table = captions.property_table(tests, {"skew": found, "mean": found._replace(seeds=0)}).set_index("property")
    assert (table["effect (Cliff's delta)"] == "–").all() and (table["corrected p"] == "–").all()
    assert table.loc["activation frequency", "published GPT2-small"] == "24"
    shown = table["mean over seeds (95 % interval)"]
    assert shown["skew of pre-activation"] == "88 (71 to 100)"
    assert shown["mean pre-activation"] == shown["activation frequency"] == "–"


def test_the_ceiling_sentence_counts():
    neurons = with_universal(made_up(), 0.5).assign(mean_baseline=0.4)
    neurons["mean_corr"] = np.where(neurons.index < 30, 0.85, 0.5)
    neurons["is_universal"], neurons["adjusted_excess"] = neurons.index < 13, np.where(neurons.index < 25, 0.75, 0.2)
    text = captions.ceiling(neurons, 0.5).text
    assert (
        "Of 30 neurons with a mean match above 0.8, **17** are not universal by excess: their baseline is 0.40" in text
    )
    assert "By adjusted excess **25** of the 30 are above 0.5." in text
    assert captions.ceiling(neurons.assign(mean_corr=0.1), 0.5).text == "No neuron has a mean match above 0.8."


def test_the_sentence_on_compared_seeds_counts():
    neurons = with_universal(made_up(), 0.5)
    found = captions.agreeing(neurons, 3, 0.5)
    excess = neurons["excess_corr"]
    assert found.title.startswith(
        f"{(excess > 0.55).sum()} of {(excess > 0.5).sum()} universal neurons pass in each of 3"
    )
    assert f"**{(excess > 0.45).sum()}** neurons pass in at least one" in found.text


def test_the_share_over_seeds_has_the_ledgers_interval():
    shares = properties.reference_shares(pd.concat([with_universal(made_up(), 0.5).assign(seed=seed) for seed in "ab"]))
    text = captions.share_by_reference(shares, intervals_table(), OVER_SEEDS).text
    assert "the mean lies within **0 %** to **51.00 %**" in text
    assert "With other text of this kind and other rotations seed a would have 10.00 % to 29.00 %" in text


def test_the_agreement_sentence_by_hand():
    matrix = pd.DataFrame([[90.0, 10.0, 0.0], [20.0, 60.0, 20.0], [40.0, 30.0, 30.0]])
    text = captions.layer_agreement(matrix).text
    assert "**60 %** of the neurons have their best match in the same layer (chance: 33 %)" in text
    assert "87 % in the same or an adjacent layer" in text


def test_the_sentences_of_a_sketch_and_of_seeds_of_different_depths():
    outsiders = pd.DataFrame({"seed": list("ab"), "model": list("ba"), "neurons": [80, 60], "outsiders": [2, 1]})
    neurons = with_universal(made_up(), 0.5)
    assert (
        "Of all references' 140 best matches, **3** may be" in activations.correlation_by_layer(neurons, outsiders).text
    )
    assert "followed" not in activations.correlation_by_layer(neurons).text
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
    facts = activations.pass_facts(done).set_index("fact")["value"]
    assert facts["tokens counted"] == "1,234,567" and facts["peak memory"] == "1.61 GB" and facts["device"] == "cpu"
    assert facts["products of activations"] == "exact"
    sketch = activations.pass_facts(done | {"rows": 16384, "products": "sketch"}).set_index("fact")["value"]
    assert sketch["products of activations"] == "estimated from a sketch of 16,384 rows"
