"""Sentences against made-up tables: the numbers are right, and there are words for nothing, one and many."""

import numpy as np
import pandas as pd
import pytest

from lib.chapters.universality import captions, properties
from lib.chapters.universality import captions_activations as activations
from lib.display.captions import GATED, Caption, count, p_words, percent
from lib.display.claims import Decision
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

DECIDED = Decision(80.0, 70.0, 90.0, 1.0, 0.001, 5, 0, 5, True)  # every seed on the claimed side
SAMPLED = {"held_out_corr": 0.6, "excess_se": 0.01, "draw_se": 0.002}
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
        activations.sampling(neurons[["layer", "neuron"]].assign(**SAMPLED), neurons, threshold),
        activations.sampling(neurons[["layer", "neuron"]].head(0).assign(**SAMPLED), neurons, threshold),
        activations.convergence(summary.groupby("seed").tail(1), "a"),
        captions.excess(neurons, threshold),
        captions.seed_agreement(neurons, 4),
        captions.seed_agreement(neurons, 4, OVER_SEEDS),
        captions.seed_agreement(neurons, 1),
        captions.layer_agreement(properties.match_layer_percent(matches_table())),
        captions.share_by_reference(properties.reference_shares(everyone), "a"),
        captions.share_by_reference(properties.reference_shares(everyone[everyone["seed"] == "a"]), "a"),
        captions.share_by_reference(properties.reference_shares(everyone), "a", intervals_table(), OVER_SEEDS),
        captions.share_by_compared(compared_table()),
        captions.share_by_compared(compared_table().query("compared == 1")),
        captions.share_by_threshold(everyone, threshold),
        captions.ceiling(neurons, threshold),
        captions.agreeing(neurons, 3, threshold),
        captions.share_by_layer(properties.layer_shares(everyone), "a"),
        captions.property_percentiles(tests, number),
        captions.property_percentiles(tests, number, dict.fromkeys(tests["property"], OVER_SEEDS)),
        captions.frequency_and_cosine(neurons, properties.frequency_cosine_by_layer(everyone), "a"),
        captions.redundancy(neurons),
    ]


@EVERY_CASE
@pytest.mark.parametrize("left_out", [[], READING_COLUMNS], ids=["", "gated"])
def test_every_caption_has_a_title_a_text_and_a_description_without_nan(threshold, left_out):
    made = captions_of(made_up().assign(**dict.fromkeys(left_out, np.nan)), threshold)
    assert sum(GATED in finding.text for finding in made) == (0 if not left_out else 2 if threshold == 2 else 4)
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
            "property": ["skew", "mean", "kurt", "var"],
            "label": ["skew", "mean", "kurtosis", "variance"],
            "published": ["high", "low", "high", ""],
            "median_percentile": [80.0, 91.0, 55.0, 40.0],
            "effect": [0.6, 0.8, -0.03, -0.2],
        }
    )
    text = captions.property_percentiles(tests, 30).text
    assert (
        "**1** of 3 properties differ in the published direction by median and effect, not mean and kurtosis." in text
    )
    assert "whiskers: 5th and 95th percentile" in text and "fewer than 10" not in text
    assert (
        "With fewer than 10 universal neurons this seed decides nothing."
        in captions.property_percentiles(tests, 9).text
    )


def test_over_seeds_the_property_sentence_says_which_sides_hold_in_every_seed():
    tests = properties.property_tests(with_universal(made_up(), 0.5))
    found = dict.fromkeys(properties.PUBLISHED_MEDIANS.index, DECIDED)
    mixed = DECIDED._replace(value=36.2, low=13.8, high=58.6, agree=4, against=1)
    found |= {"input_bias": mixed, "skew": DECIDED._replace(agree=0, against=5), "kurt": DECIDED._replace(seeds=0)}
    caption = captions.property_percentiles(tests, 30, found)
    assert caption.title.startswith("5 of 7 medians lie on the published side of 50 in each of 5 seeds; the seeds dis")
    assert "On the other side in each seed: skew of pre-activation." in caption.text
    assert "The seeds disagree, so this run cannot tell: input bias 36 (14 to 59)." in caption.text
    two = {name: one._replace(seeds=2, agree=2, against=0) for name, one in found.items()}
    assert "Three seeds are needed to decide." in captions.property_percentiles(tests, 30, two).text
    nobody = {name: one._replace(seeds=0) for name, one in found.items()}
    assert "in one seed" in captions.property_percentiles(tests, 30, nobody).title


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
    assert (
        "By adjusted excess **25** of the 30 are above 0.5; with such a match any baseline below 0.6 suffices." in text
    )
    assert "suffices" not in captions.ceiling(neurons, 0.8).text
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
    intervals = pd.concat([intervals_table(), intervals_table().assign(seed="b", share=0.9, low=0.8, high=0.95)])
    text = captions.share_by_reference(shares, "a", intervals, OVER_SEEDS).text
    assert "(grey: 95 % interval over seeds, **0 %** to **51.00 %**)" in text
    assert "Resampling text and rotations gives 10.00 % to 29.00 % for seed a (black line)." in text


def test_the_agreement_sentence_by_hand():
    matrix = pd.DataFrame([[90.0, 10.0, 0.0], [20.0, 60.0, 20.0], [40.0, 30.0, 30.0]])
    text = captions.layer_agreement(matrix).text
    assert "**60 %** of the neurons have their best match in the same layer." in text
    assert "In the same or an adjacent layer it is 87 % (chance: 78 %)." in text
    found = captions.layer_agreement(matrix, DECIDED._replace(low=0.2, high=0.3))
    assert found.title.endswith("in the same layer of the other seed (30 to 90 % by layer; chance 33 %)")
    assert "(53 to 63 %, 95 % over seeds)" in found.text


def test_universal_neurons_by_layer_are_counted_over_seeds_of_the_references_depth():
    def rows(seed: str, universal: list[int]) -> pd.DataFrame:
        return pd.DataFrame({"seed": seed, "layer": range(len(universal)), "universal": universal})

    shares = pd.concat([rows("a", [7, 6, 1]), rows("b", [2, 9, 3]), rows("c", [9, 1, 2]), rows("deep", [90, 0, 0, 0])])
    found = captions.share_by_layer(shares, "a")
    assert found.title == (
        "Universal neurons are most frequent in layer 0 (18 of 40 with 3 seeds as reference), rarest in layer 2 (6)"
    )
    assert "In **2** of 3 seeds no layer has more of them than layer 0." in found.text
    even = captions.share_by_layer(rows("a", [5, 5, 5]), "a").title
    assert even == "As many universal neurons in each layer, with 1 seed as reference"
    few = captions.share_by_layer(rows("a", [5, 0, 1]), "a").title
    assert few == "6 universal neurons with 1 seed as reference: too few to compare layers"


def test_the_spread_at_equal_match_is_claimed_only_where_the_seeds_decide_it():
    neurons = with_universal(made_up(), 0.5)
    open_ = captions.seed_agreement(neurons, 4, DECIDED._replace(low=-0.037, high=0.048, p_value=0.7)).text
    assert "this run cannot tell (95 % interval of the difference: −0.037 to +0.048 over seeds)" in open_
    clear = captions.seed_agreement(neurons, 4, DECIDED._replace(value=0.02, low=0.01, high=0.03)).text
    assert "Beside others of equal mean match they differ **more**: +0.020 (+0.010 to +0.030 over seeds)." in clear
    assert "equal mean match" not in captions.seed_agreement(neurons, 4).text


def test_partners_are_counted_and_the_assignment_is_a_lower_bound():
    numbers = {"universal": 27, "mutual": 0.12, "mutual_universal": 0.81, "cliques": 13, "one_layer": 0.77}
    numbers |= {"by_depth": False, "universal_assigned": 14}
    found = captions.partners(numbers, 5, 5)
    assert found.title == "81 % of the best matches of universal neurons are mutual; 13 cliques span all 5 seeds"
    assert "**14** instead of 27 neurons are universal. That is a lower bound" in found.text
    none = captions.partners(numbers | {"universal": 0, "mutual_universal": np.nan, "cliques": 0}, 5, 5)
    assert none.title == "12 % of all best matches are mutual; no clique spans all 5 seeds" and "lower" not in none.text


def test_pooled_and_layers_correlations_are_told_apart():
    neurons = with_universal(made_up(), 0.5)
    by_layer = pd.DataFrame({"seed": "a", "layer": range(3), "correlation": [-0.7, -0.2, 0.1]})
    found = captions.frequency_and_cosine(neurons, by_layer, "a", DECIDED._replace(low=-0.47, high=-0.43))
    assert "negative within 2 of 3 layers (−0.70 to +0.10)" in found.title
    assert "on average **−0.27** (−0.47 to −0.43, 95 % over seeds)." in found.text


def test_near_copies_are_told_by_the_largest_cosine_of_universal_neurons():
    neurons = with_universal(made_up(), 0.5).assign(max_cos_in=0.3, max_cos_out=0.4)
    neurons.loc[~neurons["is_universal"], "max_cos_out"] = 0.99
    assert captions.redundancy(neurons).title.endswith("; none is a near copy: largest cosine 0.40")
    neurons.loc[neurons["is_universal"], "max_cos_in"] = 0.97
    assert captions.redundancy(neurons).title.endswith("; there are near copies: largest cosine 0.97")


def test_convergence_is_said_of_all_seeds():
    rows = {"seed": ["a", "a", "b", "b"], "tokens": [50, 100, 50, 100], "excess_corr": [0.12, 0.11, 0.2, 0.2]}
    summary = pd.DataFrame(rows | {"universal": [26, 27, 30, 40], "agreement": [0.96, 1, 0.8, 1]})
    found = activations.convergence(summary, "a")
    assert found.title.endswith("universal neurons of 2 reference seeds from 56 to 67: the number has not settled")
    assert "80 % to 96 % are universal at both" in found.text and "moved by −0.0100." in found.text
    same = activations.convergence(summary.assign(universal=[26, 27, 30, 30]), "a")
    assert same.title.endswith("from 56 to 57: the number has settled")


def test_the_sampling_sentence_counts_who_stays_and_who_lies_near_the_threshold():
    neurons = pd.DataFrame({"layer": 0, "neuron": range(4), "mean_corr": [0.9, 0.8, 0.72, 0.5], "mean_baseline": 0.2})
    neurons["excess_corr"] = neurons["mean_corr"] - 0.2
    neurons = with_universal(neurons, 0.5)
    table = neurons[["layer", "neuron"]].assign(held_out_corr=[0.85, 0.65, 0.71, 0.4], excess_se=0.02, draw_se=0.001)
    found = activations.sampling(table, neurons, 0.5)
    assert "**2** of 3 universal neurons stay" in found.text and found.title.endswith(
        "1 neuron lies within two errors of the threshold"
    )
    draws = neurons[["layer", "neuron"]].assign(draw=0, baseline=0.2)
    two = pd.concat([draws, draws.assign(draw=1, baseline=0.22)])
    made = activations.draws(properties.draw_summary(two, neurons, 0.5), properties.draw_spread(two), neurons, table)
    assert "The 2 draws contribute **0.0100**" in made.text and "; the total is 0.0200 (below)." in made.text


def test_the_sentences_of_a_sketch_and_of_seeds_of_different_depths():
    outsiders = pd.DataFrame({"seed": list("ab"), "model": list("ba"), "neurons": [80, 60], "outsiders": [2, 1]})
    neurons = with_universal(made_up(), 0.5)
    assert (
        "For **3** of 140 matches of all references (2.1 %) the sketch shows"
        in activations.correlation_by_layer(neurons, outsiders).text
    )
    assert "followed" not in activations.correlation_by_layer(neurons).text
    matches = matches_table()
    deep = properties.match_layer_percent(matches.assign(depth=matches["layer"] // 2, match_depth=0))
    found = captions.layer_agreement(deep)
    assert found.title.startswith(
        "50 % of best matches lie in the same part of the depth of the other seed (0 to 100 %"
    )
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
