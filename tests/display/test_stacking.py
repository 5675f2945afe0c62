"""A figure made narrow has one column of panels, all labels, and legends within its width."""

import numpy as np

from lib.display import plots
from lib.display.stacking import WIDTHS, stack


def places(fig):
    fig.draw_without_rendering()
    return [axes.get_window_extent() for axes in fig.axes]


def test_panels_stand_below_one_another_with_the_labels_that_they_shared():
    fig, grid = plots.canvas(2, 2, sharex=True, sharey=True)
    for index, axes in enumerate(grid.flat):
        axes.plot([0, 1], [index, index + 1], label="a line that has a long name")
    grid[1, 0].set(xlabel="left below", ylabel="second row")
    grid[1, 1].set_xlabel("right below")
    grid[0, 0].set_ylabel("first row")
    grid[0, 0].set_title("left")
    grid[0, 1].set_visible(False)
    plots.legend_right(grid[1, 1])
    stack(fig)
    boxes = places(fig)
    assert len(boxes) == 3 and fig.get_figwidth() == WIDTHS[0]
    assert all(below.y1 < above.y0 for above, below in zip(boxes, boxes[1:], strict=False))
    labels = [(axes.get_xlabel(), axes.get_ylabel()) for axes in fig.axes]
    assert labels == [("left below", "first row"), ("left below", "second row"), ("right below", "second row")]
    assert [axes.get_title() for axes in fig.axes] == ["left", "left", ""]
    assert all(axes.get_xticklabels()[0].get_visible() for axes in fig.axes)
    (legend,) = fig.legends
    assert grid[1, 1].get_legend() is None and legend.get_window_extent().x1 <= fig.bbox.x1


def test_words_on_an_axis_turn_and_numbers_thin_out():
    fig, (left, right) = plots.canvas(1, 2)
    words = ["one long word", "another one", "a third", "the last of all"]
    left.bar(range(4), range(4))
    left.set_xticks(range(4), words)
    right.plot(range(40))
    right.set_xticks(range(0, 40, 2))
    stack(fig)
    fig.draw_without_rendering()
    assert [label.get_rotation() for label in left.get_xticklabels()] == [90] * 4
    assert [label.get_text() for label in left.get_xticklabels()] == words
    assert len(right.get_xticks()) == 10 and np.ptp(right.get_xticks()) == 36


def test_a_figure_with_long_names_becomes_wider():
    fig, axes = plots.canvas()
    axes.barh(range(2), range(2))
    axes.set_yticks(range(2), ["a_name_of_some_forty_letters_without_blanks", "another"])
    stack(fig)
    assert fig.get_figwidth() > WIDTHS[0]
