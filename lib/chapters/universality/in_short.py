"""The findings that open chapters 01 to 03, from what their notebooks hold."""

import numpy as np
import pandas as pd
from IPython.display import HTML

from lib.base.errors import listed
from lib.chapters.universality import properties
from lib.chapters.universality.properties import PUBLISHED_SHARES
from lib.display.captions import count, percent
from lib.display.claims import FEWEST, SIGNIFICANT
from lib.display.findings import Finding, in_short

# What it means that universal neurons rank low or high in their layer by a property
DIFFERENCES = {
    "sparsity": ("fire on fewer tokens", "fire on more tokens"),
    "skew": ("have a shorter tail of strong activations", "have a longer tail of strong activations"),
    "vocab_kurt": ("spread their effect over more output tokens", "concentrate their effect on fewer output tokens"),
}


def activations(losses: pd.DataFrame, text: pd.DataFrame, neurons: pd.DataFrame) -> HTML:
    """Chapter 01: what is read, how well it is predicted, how often a neuron is active."""
    every = losses.loc[losses["domain"] == "all", "loss"]
    largest = text.loc[text["counted"].idxmax()]
    apart = percent(every.max() / every.min() - 1, 1)
    return in_short(
        [
            Finding(
                f"The seeds predict the text about equally well: **{every.mean():.2f}** nats per token on average, "
                f"and at most {apart} apart."
                if every.max() < 1.05 * every.min()
                else f"The seeds do **not** predict the text equally well: their losses lie {apart} apart.",
                "losses",
            ),
            Finding(
                f"Statistics use {count(text['counted'].sum(), 'token')}. The largest of "
                f"{count(len(text), 'domain')}, {largest['domain']}, has "
                f"**{percent(largest['counted'] / text['counted'].sum(), 0)}** of them.",
                "text_composition",
            ),
            Finding(
                f"The median neuron is active on **{percent(neurons['sparsity'].median(), 0)}** of the tokens; "
                f"one neuron in ten on fewer than {percent(neurons['sparsity'].quantile(0.1), 0)}.",
                "activation_histograms",
            ),
        ]
    )


def correlation(neurons: pd.DataFrame, drawn: pd.DataFrame, sample: pd.DataFrame, threshold: float) -> HTML:
    """Chapter 02: best match and chance, and whether rotation or text decides; `drawn` and `sample` are the
    reference's rows of baseline_draws.parquet and sampling.parquet."""
    match, chance = neurons["mean_corr"].mean(), neurons["mean_baseline"].mean()
    findings = [
        Finding(
            f"A neuron's best match in another seed correlates at **{match:.2f}** on average. In a randomly rotated "
            f"basis it is **{chance:.2f}**.",
            "correlation_by_layer",
        )
    ]
    universal = int(neurons["is_universal"].sum())
    by_draw = properties.draw_summary(drawn, neurons, threshold)["universal"]
    if len(by_draw) > 1:
        off = int((by_draw - universal).abs().max())
        text = f"The random rotation {'matters' if off > 0.2 * max(1, universal) else 'hardly matters'}: a single draw "
        text += f"changes the number of universal neurons, {universal:,}, by at most **{off:,}**."
        findings.append(Finding(text, "baseline_draws"))
    if len(sample):
        held_out = neurons[["layer", "neuron", "mean_baseline"]].merge(sample, on=["layer", "neuron"])
        number = int((held_out["held_out_corr"] - held_out["mean_baseline"] > threshold).sum())
        text = f"Matches are {'partly' if number < universal / 2 else 'not'} luck of the text: with all of it "
        text += f"{universal:,} neurons are universal, with partners chosen on other text than measured **{number:,}**."
        findings.append(Finding(text, "sampling"))
    return in_short(findings)


def universality(neurons: pd.DataFrame, matrix: pd.DataFrame, tests: pd.DataFrame) -> HTML:
    """Chapter 03: how many, at what depth, how they differ; from `match_layer_percent` and `property_tests`."""
    return in_short([_how_many(neurons), _depth(matrix), _differences(tests, int(neurons["is_universal"].sum()))])


def _how_many(neurons: pd.DataFrame) -> Finding:
    number, share, published = neurons["is_universal"].sum(), neurons["is_universal"].mean(), PUBLISHED_SHARES["share"]
    if not number:
        return Finding("**No neuron** is universal at this threshold.", "figure_02a_11_distributions")
    text = f"**{percent(share)}** of the neurons ({number:,}) are universal."
    where = "fewer than in the paper's models, which are larger and read more text"
    where = "more than in any of the paper's models" if share > published.max() else where
    where = "about as many as in the paper's models" if published.min() <= share <= published.max() else where
    return Finding(f"{text} That is {where}.", "figure_02a_11_distributions")


def _depth(matrix: pd.DataFrame) -> Finding:
    place, _ = properties.place_words(matrix.index.name == "depth")
    same, chance = np.nanmean(np.diag(matrix)), 100 / len(matrix)
    if len(matrix) == 1:
        return Finding(f"The models have one {place}, so every match lies in it.", "figure_02c_layers")
    tend = "tend" if same > chance else "do **not** tend"
    text = f"Matches of all neurons {tend} to lie at the same depth: **{same:.0f} %** are in the neuron's own {place}"
    own = np.diag(matrix)
    text += f", by chance {chance:.0f} %. It is {np.nanmin(own):.0f} % in {place} {matrix.index[np.nanargmin(own)]}, "
    text += f"{np.nanmax(own):.0f} % in {place} {matrix.index[np.nanargmax(own)]}."
    return Finding(text, "figure_02c_layers")


def _differences(tests: pd.DataFrame, number: int) -> Finding:
    if number < FEWEST:
        text = f"With {count(number, 'universal neuron')} nothing can be said about how they differ."
        return Finding(text, "figure_03_percentiles")
    clear = tests[(tests["p_corrected"] < SIGNIFICANT) & tests["property"].isin(DIFFERENCES)].set_index("property")
    said = [
        words[bool(clear.loc[name, "median_percentile"] > 50)]
        for name, words in DIFFERENCES.items()
        if name in clear.index
    ]
    if not said:
        return Finding(
            "Universal neurons do **not** clearly differ from the rest of their layer.", "figure_03_percentiles"
        )
    return Finding(f"Compared with the rest of their layer, universal neurons {listed(said)}.", "figure_03_percentiles")
