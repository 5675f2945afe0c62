"""What a figure shows, in words: from a run's tables to a title, a sentence and an alternative text.

Every number is computed, so that the report stays true when a parameter changes; every function also has words for
the cases in which there is nothing to show (no universal neuron, one seed, one rotation draw).
"""

from typing import NamedTuple

import numpy as np

pass

GATED = (
    "These models have gated MLPs, whose neurons read through two vectors (gate and up), so that what one w_in defines is "
    "left out: its norm, bias, cosine with w_out and nearest other neuron, and the L2 penalty."
)


class Caption(NamedTuple):
    """`title` heads the figure, `text` (Markdown) follows it, `alt` replaces it for a reader who cannot see it."""

    title: str
    text: str
    alt: str


def percent(share: float, digits: int = 2) -> str:
    """0.0416 as "4.16 %"; "0 %" only for exactly 0."""
    if share == 0 or not np.isfinite(share):
        return "0 %" if share == 0 else "undefined"
    smallest = 10.0**-digits
    return f"{100 * share:.{digits}f} %" if 100 * share >= smallest / 2 else f"less than {smallest:.{digits}f} %"


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign, minus as a minus; what rounds to 0 has none."""
    if not np.isfinite(value):
        return "undefined"
    text = f"{value:+.{digits}f}".replace("-", "−")
    return text if float(text.replace("−", "-")) else text[1:]


def signed_percent(value: float) -> str:
    """A share that may be below 0 or above 1, in whole percent."""
    return f"{100 * value:.0f} %".replace("-", "−") if np.isfinite(value) else "undefined"


def count(number: int, noun: str) -> str:
    """1 neuron, 2 neurons, 1,234 neurons, no neuron."""
    number = int(number)
    return f"no {noun}" if number == 0 else f"{number:,} {noun}{'' if number == 1 else 's'}"


def p_words(p_value: float) -> str:
    """A p-value as it is written in a sentence."""
    if not np.isfinite(p_value):
        return "p undefined"
    return "p < 1e-300" if p_value < 1e-300 else f"p = {p_value:.2g}"


# ---------------------------------------------------------------- chapter 1: the seeds, the text and the pass


# ---------------------------------------------------------------- chapter 2: correlation and its baseline


# ---------------------------------------------------------------- chapter 3: universality
