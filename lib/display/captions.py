"""Captions of figures, and the only functions that round numbers for a sentence.

A caption's numbers are computed from the run's tables, and it has words for the cases with nothing to show: no
universal neuron, one seed, one rotation draw.
"""

from typing import NamedTuple

import numpy as np

GATED = "Neurons of gated MLPs read through two vectors (gate and up); properties of a single w_in are left out."


class Caption(NamedTuple):
    """`title` states the finding above the figure, `text` (Markdown) stands below it, `alt` describes it in words."""

    title: str
    text: str
    alt: str


def percent(share: float, digits: int = 2) -> str:
    """0.0416 as "4.16 %"; "0 %" only for exactly 0."""
    if share == 0 or not np.isfinite(share):
        return "0 %" if share == 0 else "undefined"
    smallest = 10.0**-digits
    if 0 < 100 * share < smallest / 2:
        return f"less than {smallest:.{digits}f} %"
    return f"{100 * share:.{digits}f} %".replace("-", "−")


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign, + or −; what rounds to 0 has none."""
    if not np.isfinite(value):
        return "undefined"
    text = f"{value:+.{digits}f}".replace("-", "−")
    return text if float(text.replace("−", "-")) else text[1:]


def signed_percent(value: float) -> str:
    """A share below 0 or above 1 in whole percent: −0.25 as "−25 %"."""
    return f"{100 * value:.0f} %".replace("-", "−") if np.isfinite(value) else "undefined"


def count(number: int, noun: str, plural: str | None = None) -> str:
    """1 neuron, 2 neurons, 1,234 neurons, no neuron; `plural` where an s does not make it, "properties"."""
    number = int(number)
    return f"no {noun}" if number == 0 else f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def p_words(p_value: float) -> str:
    """p = 0.031, as in a sentence."""
    if not np.isfinite(p_value):
        return "p undefined"
    return "p < 1e-300" if p_value < 1e-300 else f"p = {p_value:.2g}"
