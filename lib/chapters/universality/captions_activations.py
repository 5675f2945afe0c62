"""Captions of the figures of chapters 01 and 02, computed from the run's tables."""

import numpy as np
import pandas as pd

from lib.display.captions import Caption, count, percent, signed


def value_range(values: pd.Series, words) -> str:
    """Smallest to largest value, or the one that all have."""
    low, high = words(values.min()), words(values.max())
    return low if low == high else f"{low} to {high}"


# ---------------------------------------------------------------- notebook 01: the text and its activations


def losses(table: pd.DataFrame, vocabulary: int) -> Caption:
    """How well the seeds predict the text; `vocabulary` is the number of tokens."""
    every = table[table["domain"] == "all"]
    title = f"Loss of {count(len(every), 'seed')}: {value_range(every['loss'], '{:.2f}'.format)} nats per token"
    apart = every["loss"].max() / every["loss"].min() - 1
    text = (
        f"Mean cross-entropy by domain on {every['tokens'].max():,} predicted tokens; uniform guessing over "
        f"{vocabulary:,} tokens would lose {np.log(vocabulary):.2f}. The seeds lie **{percent(apart, 1)}** apart."
    )
    return Caption(title, text, f"Dot plot of loss by domain of text, one dot per seed. {title}.")


def composition(text_table: pd.DataFrame) -> Caption:
    """What the text consists of."""
    counted, tokens = text_table["counted"].sum(), text_table["tokens"].sum()
    largest = text_table.loc[text_table["counted"].idxmax()]
    title = f"{counted:,} counted tokens from {count(len(text_table), 'domain')}"
    text = (
        f"Of the text's {tokens:,} positions **{percent(counted / tokens, 1)}** are counted. The largest domain, "
        f"*{largest['domain']}*, has {percent(largest['counted'] / counted, 1)} of them."
    )
    return Caption(title, text, f"Bar chart of the counted tokens in each domain of text. {title}.")


def pass_facts(done: dict) -> pd.DataFrame:
    """What the pass wrote about itself: fact, value."""
    facts = {
        "tokens counted": f"{done['tokens_counted']:,}",
        "blocks × context": f"{done['blocks']:,} × {done['context']:,}",
        "passes over the text": str(done.get("passes", 1)),
        "products of activations": _products(done.get("rows", 0), done.get("products", "exact")),
        "precision of the products": str(done["precision"]),
        "device": str(done.get("device_name", done["device"])),
        "loops over activations": str(done.get("loops", "torch")),
        "wall time": f"{done['wall_seconds']:,.1f} s",
        "speed, summed over seeds and passes": f"{done['tokens_per_second']:,.0f} tokens/s",
        "peak memory": f"{done['peak_memory_bytes'] / 1e9:.2f} GB",
    }
    return pd.DataFrame(facts.items(), columns=["fact", "value"])


def _products(rows: int, products: str) -> str:
    return f"estimated from a sketch of {rows:,} rows" if products == "sketch" else "exact"


def activation_histograms(chosen: pd.DataFrame) -> Caption:
    """How skewed and how often active the drawn neurons (rows of `neurons`) are."""
    skewed = int((chosen["skew"] > 1).sum())
    title = f"A long right tail in {skewed} of {count(len(chosen), 'chosen neuron')}"
    text = (
        f"The skew is above 1 (a Gaussian has 0) in **{skewed}** of {count(len(chosen), 'neuron')}. They are active on "
        f"{value_range(chosen['sparsity'], lambda share: percent(share, 1))} of the counted tokens."
    )
    return Caption(title, text, f"Histograms of the pre-activation of chosen neurons, counts on a log axis. {title}.")


# ---------------------------------------------------------------- notebook 02: correlation and its baseline


def correlation_by_layer(neurons: pd.DataFrame, outsiders: pd.DataFrame | None = None) -> Caption:
    """Best matches and their rotated baseline; with the table `outsiders` of a run whose products are a sketch's."""
    corr, baseline, excess = neurons[["mean_corr", "mean_baseline", "excess_corr"]].mean()
    title = f"Best matches correlate {corr:.2f} on average, {baseline:.2f} in a rotated basis"
    text = (
        "Boxes: quartiles of each layer's neurons; whiskers: 5th and 95th percentile. The mean excess is "
        f"**{excess:.3f}**; it is above 0 for {percent((neurons['excess_corr'] > 0).mean(), 1)} of the neurons."
    )
    if neurons["dead"].any():
        text += f" Neurons that never vary on this text ({neurons['dead'].sum():,}) have correlation 0 by definition."
    if outsiders is not None:
        number, total = outsiders["outsiders"].sum(), outsiders["neurons"].sum()
        text += (
            f" Of all references' {total:,} best matches, **{number:,}** may be surpassed by a neuron that was not "
            "followed: by the sketch it is better by more than four standard errors."
        )
    return Caption(title, text, f"Box plots by layer of best match and rotated baseline. {title}.")


def draws(draw_summary: pd.DataFrame, spread: pd.Series, neurons: pd.DataFrame) -> Caption:
    """From `draw_summary` and `draw_spread` of the reference: does the draw of the rotation matter?

    The error of a neuron's excess by the draws is that of their mean.
    """
    alt = "Histogram of the standard deviation of each neuron's baseline over draws; bar chart of universal neurons."
    if len(draw_summary) < 2:
        text = "This run drew a single rotation; set `rotations` to 2 or more to see the spread."
        return Caption("One rotation draw: its spread is unknown", text, alt)
    number = len(draw_summary)
    error = spread / np.sqrt(number)
    universal = value_range(draw_summary["universal"], "{:,}".format)
    title = f"An excess errs by {error.median():.4f} over rotations; by one alone {universal} neurons are universal"
    text = (
        f"The standard error of a neuron's excess by the {number} draws, their standard deviation divided by "
        f"√{number}, has median **{error.median():.4f}** and 99th percentile {error.quantile(0.99):.4f}. A single draw "
        f"would call {universal} of {len(neurons):,} neurons universal."
    )
    return Caption(title, text, f"{alt} {title}.")


def convergence(summary: pd.DataFrame, reference: str) -> Caption:
    """From `convergence_summary`: what more tokens change."""
    own = summary[summary["seed"] == reference].sort_values("tokens")
    last = own.iloc[-1]
    alt = "Line plots against the number of tokens: mean best match, baseline and excess; universal neurons."
    if len(own) < 2:
        text = f"The text is too short to measure matches on shares of it; it has {last['tokens']:,.0f} counted tokens."
        return Caption("Too few tokens to see convergence", text, alt)
    before = own.iloc[-2]
    move = signed(last["excess_corr"] - before["excess_corr"], 4)
    title = f"The last {last['tokens'] / before['tokens']:.1f}× of tokens moved the mean excess by {move}, "
    title += f"universal neurons from {before['universal']:,.0f} to {last['universal']:,.0f}"
    text = "Means over the reference's neurons (left) and the number of universal neurons of every seed (right), all "
    text += "against the baseline of the whole text. "
    text += f"From {before['tokens']:,.0f} to {last['tokens']:,.0f} tokens "
    if np.isfinite(before["agreement"]):
        text += (
            f"the number went from {before['universal']:,.0f} to **{last['universal']:,.0f}**, and "
            f"{percent(before['agreement'], 0)} of the neurons universal at either point are universal at both."
        )
    else:
        text += "no neuron is universal."
    return Caption(title, text, f"{alt} {title}.")


def sampling(table: pd.DataFrame, neurons: pd.DataFrame, threshold: float) -> Caption:
    """From the reference's rows of `sampling`: how much of a best match is luck of the text?"""
    alt = "Scatter of the correlation on other text against the best match; histogram of the excess' standard error."
    if not len(table):
        text = "This run has no parts of its text to compare: they need more text."
        return Caption("No parts of the text to compare", text, alt)
    held_out = neurons[["layer", "neuron", "mean_baseline"]].merge(table, on=["layer", "neuron"])
    share = (held_out["held_out_corr"] - held_out["mean_baseline"] > threshold).mean()
    means = f"{table['held_out_corr'].mean():.3f} instead of {neurons['mean_corr'].mean():.3f}"
    title = f"With partners chosen on other text the mean match is {means}; an excess errs by "
    title += f"{table['excess_se'].median():.4f}"
    text = (
        f"With partners chosen on other text **{percent(share)}** of the neurons are universal, instead of "
        f"{percent(neurons['is_universal'].mean())}. The standard error of a neuron's excess has median "
        f"**{table['excess_se'].median():.4f}**; by the drawn rotations alone it is {table['draw_se'].median():.4f}."
        " The baseline of other text is taken to be the same."
    )
    if table["draw_se"].isna().all():
        text = text.split(";")[0] + ", without that of the one drawn rotation. The baseline is held fixed."
    return Caption(title, text, f"{alt} {title}.")
