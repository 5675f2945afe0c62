"""A colour means one thing on a page, and can be seen on a light page and on a dark one."""

from itertools import combinations

import pytest

from lib.chapters.circuits import figures as circuits
from lib.chapters.emergence import figures as emergence
from lib.chapters.families import figures as families
from lib.chapters.interventions import figures as interventions
from lib.chapters.universality import figures as universality
from lib.display import plots

SHARED = {
    "measured": {plots.CORRELATION},
    "chance": {plots.BASELINE},
    "excess": {plots.EXCESS},
    "universal": {plots.COLOURS["universal"]},
    "other": {plots.COLOURS["other"]},
    "seeds": set(plots.SEED_COLOURS),
}
ROLES = {role: {colour} for role, colour in plots.ROLE_COLOURS.items() if role != "none"}
HUES = {
    name: {colour} for name, colour in families.COLOURS.items() if len(set(colour[i : i + 2] for i in (1, 3, 5))) > 1
}
PAGES = {
    "universality": {"clique": {universality.CLIQUE}, "adjusted": {universality.MEASURE_LOOKS[1]["color"]}},
    "families": {"label": {families.LABEL}, **HUES},
    "circuits": {**ROLES, "percentiles": set(circuits.SHADES[1:])},
    "interventions": {group: {interventions.GROUP_COLOURS[group]} for group in ("entropy", "frequency")},
    "emergence": {**ROLES, **{when: {colour} for when, colour in emergence.WHEN_COLOURS.items()}},
}
GROUND = {"light": "#ffffff", "dark": "#14181b"}  # of pages, as in style.css


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, two: str) -> float:
    low, high = sorted((luminance(one), luminance(two)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("page", PAGES)
def test_no_colour_means_two_things_on_a_page(page):
    for (one, ours), (other, theirs) in combinations((SHARED | PAGES[page]).items(), 2):
        assert not {colour.lower() for colour in ours} & {colour.lower() for colour in theirs}, (one, other)


def test_colours_can_be_seen_on_a_dark_page_and_most_on_a_light_one():
    shown = {colour for page in PAGES.values() for colours in page.values() for colour in colours}
    shown |= {colour for name, colours in SHARED.items() if name != "seeds" for colour in colours}
    assert {colour: contrast(colour, GROUND["dark"]) for colour in shown if contrast(colour, GROUND["dark"]) < 3} == {}
    assert all(contrast(colour, GROUND["light"]) > 1.4 for colour in shown)


def test_seeds_differ_in_shape():
    looks = plots.seed_looks("abcdefgh")
    assert len({look["marker"] for look in looks.values()}) == 8
    assert {look["color"] for look in looks.values()} == set(plots.SEED_COLOURS)
