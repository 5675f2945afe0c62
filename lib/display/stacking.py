"""A figure made narrow: its panels below one another, as wide as a phone, with text of the same size.

The layout is computed anew. A figure with long labels becomes as wide as it must, and scrolls on a phone.
"""

from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.legend import Legend
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, MaxNLocator

WIDTHS = (3.3, 4.4, 6.4)  # inches, tried in order
LEAST = 1.5  # inches from the left to the right end of a panel
GAP = 6  # pixels between the labels of two ticks
LONGEST = 38  # letters of a legend in one line


def stack(fig: Figure) -> None:
    """Lays out the panels of a finished figure in one column."""
    panels = [axes for axes in fig.axes if axes.get_subplotspec() is not None]
    shown = [axes for axes in panels if axes.get_visible()]
    for axes in panels:
        if not axes.get_visible():
            axes.remove()
    heights = [max(1.6, axes.get_position().height * fig.get_figheight()) for axes in shown]
    for axes in shown:
        _label(axes, shown)
    grid = GridSpec(len(shown), 1, figure=fig, height_ratios=heights)
    for row, axes in enumerate(shown):
        axes.set_subplotspec(grid[row])
    _move_legends(fig, shown)
    for width in WIDTHS:
        _lay_out(fig, shown, width, heights)
        crowded = [axes for axes in shown if _crowded(axes)]
        narrow = any(axes.get_window_extent().width < LEAST * fig.dpi for axes in shown)
        if not narrow and crowded:
            for axes in crowded:
                _thin(axes)
            _lay_out(fig, shown, width, heights)
        if not narrow:
            break


def _label(axes: Axes, shown: list[Axes]) -> None:
    """Gives a panel the labels that it had from the first panel of its row and the last of its column."""
    place = axes.get_subplotspec()
    for other in shown:
        beside = other.get_subplotspec()
        if beside.rowspan == place.rowspan and beside.colspan.start == 0 and not axes.get_ylabel():
            axes.set_ylabel(other.get_ylabel())
        if beside.colspan == place.colspan and beside.rowspan.stop > place.rowspan.stop and not axes.get_xlabel():
            axes.set_xlabel(other.get_xlabel())
    if len(axes.get_shared_y_axes().get_siblings(axes)) > 1:
        axes.tick_params(labelleft=True)
    if len(axes.get_shared_x_axes().get_siblings(axes)) > 1:
        axes.tick_params(labelbottom=True)


def _move_legends(fig: Figure, shown: list[Axes]) -> None:
    """Puts legends that stood beside panels below them, each entry once."""
    entries, title, size = {}, "", None
    for owner in (fig, *shown):
        for legend in [part for part in owner.get_children() if isinstance(part, Legend)]:
            if owner is not fig and legend.get_bbox_to_anchor().x0 < owner.bbox.x1 - 1:
                continue
            names = [text.get_text() for text in legend.get_texts()]
            names = [_broken(name) if len(name) > LONGEST else name for name in names]
            entries |= dict(zip(names, legend.legend_handles, strict=True))
            title, size = legend.get_title().get_text() or title, legend.get_texts()[0].get_fontsize()
            legend.remove()
    if entries:
        place = {"loc": "outside lower center", "frameon": False, "fontsize": size, "title": title or None}
        columns = 2 if max(map(len, entries)) < 16 else 1
        fig.legend(entries.values(), entries, ncols=columns if len(entries) < 9 else 2, **place)


def _lay_out(fig: Figure, shown: list[Axes], width: float, heights: list[float]) -> None:
    below = sum(0.24 * -(-len(legend.get_texts()) // legend._ncols) for legend in fig.legends)
    fig.set_size_inches(width, sum(heights) + 0.75 * len(shown) + below)
    fig.set_layout_engine("constrained")
    fig.draw_without_rendering()
    again = False
    for axes in shown:
        for text, most in (
            (axes.xaxis.label, axes.get_window_extent().width * 1.1),
            (axes.yaxis.label, axes.get_window_extent().height * 1.1),
            (axes.title, axes.get_window_extent().width * 1.1),
        ):
            again |= _fold(text, most)
        legend = axes.get_legend()
        wide = legend is not None and legend.get_window_extent().width > 1.1 * axes.get_window_extent().width
        if wide and legend._ncols > 1:
            legend.set_ncols(1)
            again = True
    if again:
        fig.draw_without_rendering()


def _fold(text: Text, most: float) -> bool:
    """Breaks a label that is longer than `most` pixels at the space nearest to its middle; whether it did."""
    words, box = text.get_text(), text.get_window_extent()
    if max(box.width, box.height) <= most or "\n" in words:
        return False
    text.set_text(_broken(words))
    return text.get_text() != words


def _broken(words: str) -> str:
    """Words on two lines, broken at the space nearest to their middle, but not inside brackets or a formula."""
    spaces = [place for place, letter in enumerate(words) if letter == " "]
    before = [words[:place] for place in spaces]
    whole = [head for head in before if head.count("$") % 2 == 0 and head.count("(") <= head.count(")")]
    if not whole:
        return words
    head = min(whole, key=lambda head: abs(len(head) - len(words) / 2))
    return f"{head}\n{words[len(head) + 1 :]}"


def _crowded(axes: Axes) -> bool:
    """Whether labels of the x axis touch."""
    boxes = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_visible() and label.get_text()]
    boxes = sorted((box for box in boxes if box.width), key=lambda box: box.x0)
    turned = any(label.get_rotation() for label in axes.get_xticklabels())
    return not turned and any(after.x0 < before.x1 + GAP for before, after in pairwise(boxes))


def _thin(axes: Axes) -> None:
    """Turns labels that are words; leaves every second of labels that are numbers, or fewer on a linear axis."""
    labels = [label.get_text() for label in axes.get_xticklabels()]
    if not isinstance(axes.xaxis.get_major_locator(), FixedLocator):
        if axes.get_xscale() == "linear":
            axes.xaxis.set_major_locator(MaxNLocator(3))
    elif all(_is_number(label) for label in labels):
        axes.set_xticks(axes.get_xticks()[::2], labels[::2])
    else:
        axes.set_xticks(axes.get_xticks(), [label.replace("\n", " ") for label in labels], rotation=90)


def _is_number(label: str) -> bool:
    return not label or np.char.isnumeric(label.strip("−-kMB% .,").replace(".", "")).item()
