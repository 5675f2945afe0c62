"""The one error that users are meant to read: bad input, in one sentence."""

import sys
from collections.abc import Callable, Iterable
from functools import wraps


class InputError(Exception):
    """Something the user gave cannot be used; the message is one sentence naming it and what is allowed."""


def exit_on_input_error(main: Callable[..., int]) -> Callable[..., int]:
    """Print an InputError to stderr and return 2."""

    @wraps(main)
    def command(*arguments) -> int:
        try:
            return main(*arguments)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2

    return command


def listed(names: Iterable[str]) -> str:
    """One, two and three."""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def capital(text: str) -> str:
    """The text with its first letter in upper case."""
    return text[:1].upper() + text[1:]
