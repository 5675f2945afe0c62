"""Pieces of an error's sentence."""

import pytest

from lib.base.errors import first_line


@pytest.mark.parametrize(
    "message, expected",
    [
        ("It is cut short.\nMore of it.", "It is cut short"),
        ("", "ValueError"),
        ("One size. Another size.", "One size; Another size"),
        ("Sizes differ. For details look at the above report!", "Sizes differ"),
        ("See the table above for what is missing.", "ValueError"),
        ("must be a number above 0", "must be a number above 0"),
    ],
)
def test_the_first_line_is_part_of_a_sentence_and_points_to_nothing_unseen(message, expected):
    assert first_line(ValueError(message)) == expected
