"""Captions of the figures of chapters 01 and 02, computed from the run's tables."""

import numpy as np
import pandas as pd

from lib.collect.seed_checks import groups_in_words, shared_groups
from lib.display.captions import Caption, count, percent, signed

SETTLED = 0.05  # relative change of the number of universal neurons up to which it counts as settled


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


def initialisations(table: pd.DataFrame | None) -> str:
    """From `initialisation_table`: which seeds share an initialisation? One sentence (Markdown)."""
    if table is None:
        return "This run's statistics are older than the comparison of initial weights; `make clean` makes them again."
    if not len(table):
        return "No two seeds have the same shape, so none share an initialisation."
    shared = table[table["shared"].astype(bool)]
    if shared.empty:
        nearest = table.loc[(table["same_index"] - table["other_index"]).idxmax()]
        return (
            f"**No two seeds share an initialisation**: the mean cosine of w_in of the same index is at most "
            f"{_cosine(nearest['same_index'])}, of different indices {_cosine(nearest['other_index'])} (first layer)."
        )
    groups = groups_in_words(shared_groups(table))
    same, other = (value_range(shared[name], _cosine) for name in ("same_index", "other_index"))
    return (
        f"**Seeds that share an initialisation: {groups}**; the mean cosine of w_in of the same index is {same}, "
        f"of different indices {other} (first layer), so their matches may come from where training began."
    )


def _cosine(value: float) -> str:
    return f"{round(value, 3) + 0.0:.3f}".replace("-", "−")  # no −0.000


def same_logits(checks: pd.DataFrame | None) -> str:
    """From tables/seed_checks: does this report read the models as transformers does? One sentence (Markdown)."""
    if checks is None:
        return ""
    worst = checks.loc[checks["logit_difference"].idxmax()]
    blocks = count(int(checks["blocks"].max()), "block")
    return (
        f"On the first {blocks} the logits of the models as they are read here differ from those of plain transformers "
        f"by at most **{worst['logit_difference']:.1e}** (seed {worst['seed']}; standard deviation of its logits: "
        f"{worst['logit_spread']:.2f})."
    )


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
        f"**{excess:.3f}**. A positive excess alone is no evidence of a special basis: part of it may come from the "
        "nonlinearity, and untrained models may have one too (chapter 3, *Nulls*, and the ledger)."
    )
    if neurons["dead"].any():
        text += f" Neurons that never vary on this text ({neurons['dead'].sum():,}) have correlation 0 by definition."
    if outsiders is not None:
        number, total = outsiders["outsiders"].sum(), outsiders["neurons"].sum()
        text += (
            f" For **{number:,}** of {total:,} matches of all references ({percent(number / total, 1)}) the sketch "
            "shows a neuron that was not followed and looks better by more than four standard errors."
        )
    return Caption(title, text, f"Box plots by layer of best match and rotated baseline. {title}.")


def draws(
    draw_summary: pd.DataFrame, spread: pd.Series, neurons: pd.DataFrame, sample: pd.DataFrame | None = None
) -> Caption:
    """From `draw_summary` and `draw_spread` of the reference: does the draw of the rotation matter?

    What the draws add to the error of a neuron's excess is that of their mean; the whole error is in `sample`, the
    reference's rows of `sampling`.
    """
    alt = "Histogram of the standard deviation of each neuron's baseline over draws; bar chart of universal neurons."
    if len(draw_summary) < 2:
        text = "This run drew a single rotation; set `rotations` to 2 or more to see the spread."
        return Caption("One rotation draw: its spread is unknown", text, alt)
    number = len(draw_summary)
    error = spread / np.sqrt(number)
    universal = value_range(draw_summary["universal"], "{:,}".format)
    title = f"The {number} draws contribute {error.median():.4f} to the standard error of an excess; by one alone "
    title += f"{universal} neurons are universal"
    text = (
        f"The {number} draws contribute **{error.median():.4f}** (median; 99th percentile {error.quantile(0.99):.4f}) "
        "to the standard error of a neuron's excess"
    )
    if sample is not None and len(sample):
        text += f"; the total is {sample['excess_se'].median():.4f} (below)"
    text += f". A single draw would call {universal} of {len(neurons):,} neurons universal."
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
    few, many = (summary[summary["tokens"] == point["tokens"]] for point in (before, last))
    then, now = int(few["universal"].sum()), int(many["universal"].sum())
    change = abs(now - then) / then if then else float(now > 0)
    settled = f"the number has {'' if change <= SETTLED else 'not '}settled"
    over = f"of {count(len(many), 'reference seed')}"
    title = f"The last {last['tokens'] / before['tokens']:.1f}× of tokens took the universal neurons {over} from "
    title += f"{then:,} to {now:,}: {settled}"
    text = "Means over the reference's neurons (left) and the number of universal neurons of every seed (right), all "
    text += "against the baseline of the whole text. "
    if not then and not now:
        title = "No neuron is universal on half of the text or on all of it"
        return Caption(title, f"{text}No neuron is universal at the last two points.", f"{alt} {title}.")
    text += f"From {before['tokens']:,.0f} to {last['tokens']:,.0f} tokens the number, over all reference seeds, went "
    text += f"from {then:,} to **{now:,}**: {settled}. "
    text += f"Of a seed's neurons universal at either point {value_range(few['agreement'].dropna(), _whole_percent)} "
    text += "are universal at both. The reference's mean excess moved by "
    text += f"{signed(last['excess_corr'] - before['excess_corr'], 4)}."
    return Caption(title, text, f"{alt} {title}.")


def _whole_percent(share: float) -> str:
    return percent(share, 0)


def sampling(table: pd.DataFrame, neurons: pd.DataFrame, threshold: float) -> Caption:
    """From the reference's rows of `sampling`: how much of a best match is luck of the text?"""
    alt = "Scatter of the correlation on other text against the best match; histogram of the excess' standard error."
    if not len(table):
        text = "This run has no parts of its text to compare: they need more text."
        return Caption("No parts of the text to compare", text, alt)
    kept = ["layer", "neuron", "mean_baseline", "excess_corr", "is_universal"]
    held_out = neurons[kept].merge(table, on=["layer", "neuron"])
    passed = held_out["held_out_corr"] - held_out["mean_baseline"] > threshold
    number, stay = int(neurons["is_universal"].sum()), int((passed & held_out["is_universal"]).sum())
    near = int(((held_out["excess_corr"] - threshold).abs() < 2 * held_out["excess_se"]).sum())
    means = f"{table['held_out_corr'].mean():.3f} instead of {neurons['mean_corr'].mean():.3f}"
    title = f"With partners chosen on other text {stay:,} of {count(number, 'universal neuron')} stay; {near:,} "
    title += f"{'neuron lies' if near == 1 else 'neurons lie'} within two errors of the threshold"
    text = (
        f"With partners chosen on other text **{stay:,}** of {count(number, 'universal neuron')} stay, and the mean "
        f"match is {means}. "
    )
    if not number:
        title = f"With partners chosen on other text the mean match is {means}; no neuron is universal"
        text = f"No neuron is universal. With partners chosen on other text the mean match is {means}. "
    text += (
        f"**{near:,}** {'neuron lies' if near == 1 else 'neurons lie'} within two standard errors of the threshold. "
        f"The standard error of a neuron's excess has median {table['excess_se'].median():.4f}"
        f"; by the drawn rotations alone it is {table['draw_se'].median():.4f}. The baseline is held fixed."
    )
    if table["draw_se"].isna().all():
        text = text.split(";")[0] + ", without that of the one drawn rotation. The baseline is held fixed."
    return Caption(title, text, f"{alt} {title}.")
