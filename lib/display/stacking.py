"""A figure made narrow: its panels below one another, as wide as a phone, with text of the same size.

The layout is computed anew. A figure with long labels becomes as wide as it must, and scrolls on a phone.
"""

import warnings
from collections.abc import Iterable
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.legend import Legend
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, MaxNLocator

WIDTHS = (3.3, 4.4, 6.4)  # inches, tried in order
LEAST = 1.5  # inches from the left to the right end of a panel
GAP = 6  # pixels between the labels of two ticks
LONGEST, NAME = 38, 18  # letters of a legend's entry in one line, of a name beside a panel


def stack(fig: Figure) -> None:
    """Lays out the panels of a finished figure in one column."""
    panels = [axes for axes in fig.axes if axes.get_subplotspec() is not None]
    shown = [axes for axes in panels if axes.get_visible()]
    for axes in panels:
        if not axes.get_visible():
            axes.remove()
    heights = [max(1.6, axes.get_position().height * fig.get_figheight()) for axes in shown]
    for row, axes in enumerate(shown):
        _label(axes, shown)
        heights[row] = max(heights[row], _fold_names(axes))
    grid = GridSpec(len(shown), 1, figure=fig, height_ratios=heights)
    for row, axes in enumerate(shown):
        axes.set_subplotspec(grid[row])
    _move_legends(fig, shown)
    for width in WIDTHS:
        room = _lay_out(fig, shown, width, heights)
        if not room or any(axes.get_window_extent().width < LEAST * fig.dpi for axes in shown):
            continue
        crowded = [axes for axes in shown if _crowded(axes)]
        for axes in crowded:
            _thin(axes)
        if crowded:
            _lay_out(fig, shown, width, heights)
        if not any(map(_crowded, crowded)):
            break


def _label(axes: Axes, shown: list[Axes]) -> None:
    """Gives a panel the labels that it had from others: the first of its row, the first and last of its column."""
    place = axes.get_subplotspec()
    for other in shown:
        beside = other.get_subplotspec()
        if beside.rowspan == place.rowspan and beside.colspan.start == 0 and not axes.get_ylabel():
            axes.set_ylabel(other.get_ylabel())
        if beside.colspan == place.colspan and beside.rowspan.start == 0 and not axes.get_title():
            axes.set_title(other.get_title(), fontsize=other.title.get_fontsize())
        if beside.colspan == place.colspan and beside.rowspan.stop > place.rowspan.stop and not axes.get_xlabel():
            axes.set_xlabel(other.get_xlabel())
    if len(axes.get_shared_y_axes().get_siblings(axes)) > 1:
        first = next(other for other in shown if axes.get_shared_y_axes().joined(axes, other))
        size = first.get_yticklabels()[0].get_fontsize() if first.get_yticklabels() else None
        axes.tick_params(axis="y", labelleft=True, **({"labelsize": size} if size else {}))
    if len(axes.get_shared_x_axes().get_siblings(axes)) > 1:
        axes.tick_params(labelbottom=True)


def _fold_names(axes: Axes) -> float:
    """Breaks long names beside a panel; returns how high the panel must be for them, in inches."""
    names = [label.get_text() for label in axes.get_yticklabels()]
    if not isinstance(axes.yaxis.get_major_locator(), FixedLocator) or not any(names):
        return 0.0
    if not any("\n" in name for name in names):  # not broken yet, by a panel that shares the axis
        names = [_broken(name) if len(name) > NAME else name for name in names]
    elif max(map(len, "\n".join(names).split("\n"))) > NAME + 4:
        names = ["\n".join(_broken(line) if len(line) > NAME else line for line in name.split("\n")) for name in names]
    axes.set_yticklabels(names)
    lines = sum(name.count("\n") + 1.3 for name in names)
    return lines * axes.get_yticklabels()[0].get_fontsize() * 1.2 / 72


def _move_legends(fig: Figure, shown: list[Axes]) -> None:
    """Puts legends that stood beside panels below them, each entry once, and makes wide ones narrow."""
    entries, title, size = {}, "", None
    labelled = [zip(*axes.get_legend_handles_labels(), strict=True) for axes in shown]
    whole = {label: one for panel in labelled for one, label in panel if isinstance(one, ErrorbarContainer)}
    for owner in (fig, *shown):
        for legend in [part for part in owner.get_children() if isinstance(part, Legend)]:
            names = [text.get_text() for text in legend.get_texts()]
            broken = [_broken(name) if len(name) > LONGEST else name for name in names]
            drawn = [whole.get(name, one) for name, one in zip(names, legend.legend_handles, strict=True)]
            own = dict(zip(broken, drawn, strict=True))
            anchor = legend.get_bbox_to_anchor()
            beside = owner is fig or anchor.x0 > owner.bbox.x1 - 1 or (legend._ncols > 1 and len(shown) == 1)
            if not beside and legend._ncols > 1:
                place = anchor.transformed(owner.transAxes.inverted())
                look = {"loc": legend._loc, "frameon": legend.get_frame_on(), "title": legend.get_title().get_text()}
                look |= {"fontsize": legend.get_texts()[0].get_fontsize(), "ncols": _columns(own)}
                if not place.width:
                    look["bbox_to_anchor"] = (place.x0, place.y0)
                owner.legend(own.values(), own, **{key: value for key, value in look.items() if value != ""})
            elif beside:
                entries |= own
                title, size = legend.get_title().get_text() or title, legend.get_texts()[0].get_fontsize()
                legend.remove()
    if entries:
        place = {"loc": "outside lower center", "frameon": False, "fontsize": size, "title": title or None}
        fig.legend(entries.values(), entries, ncols=_columns(entries), **place)


def _columns(entries: Iterable[str]) -> int:
    """How many columns of a legend with these entries fit."""
    longest = max(len(line) for entry in entries for line in entry.split("\n"))
    return min(4, max(1, 36 // (longest + 6)))


def _lay_out(fig: Figure, shown: list[Axes], width: float, heights: list[float]) -> bool:
    """Lays the panels out in this width; False where labels leave no room for them."""
    below = sum(0.24 * -(-len(legend.get_texts()) // legend._ncols) for legend in fig.legends)
    fig.set_size_inches(width, sum(heights) + 0.75 * len(shown) + below)
    fig.set_layout_engine("constrained")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fig.draw_without_rendering()
        if _fold_labels(shown):
            fig.draw_without_rendering()
    return not any("collapsed" in str(one.message) for one in said)


def _fold_labels(shown: list[Axes]) -> bool:
    """Breaks labels and titles that are longer than their panel; whether any was."""
    again = False
    for axes in shown:
        box = axes.get_window_extent()
        for text, most in ((axes.xaxis.label, box.width), (axes.yaxis.label, box.height), (axes.title, box.width)):
            again |= _fold(text, 1.1 * most)
    return again


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
    turned = any(label.get_rotation() % 90 for label in axes.get_xticklabels())
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
