"""The error that users are meant to read, InputError, and pieces of its sentence."""

import re
import sys
from collections.abc import Callable, Iterable
from functools import wraps
from io import TextIOWrapper


class InputError(Exception):
    """Bad input; the message is one sentence that names it and what is allowed."""


def exit_on_input_error(main: Callable[..., int]) -> Callable[..., int]:
    """Print an InputError to stderr and return 2. Letters that the terminal's encoding lacks are printed as escapes."""

    @wraps(main)
    def command(*arguments) -> int:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
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


def shortened(names: Iterable[object], most: int = 5) -> str:
    """The first few of some names, and how many others there are."""
    names = list(map(str, names))
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def first_line(error: Exception) -> str:
    """An error's first line as part of a sentence, or the name of its type."""
    lines = without_pointers(str(error)).strip().splitlines()
    return lines[0].rstrip(".").replace(". ", "; ") if lines else type(error).__name__


def without_pointers(text: str) -> str:
    """A library's message without its sentences on a report above, which is not shown with it."""
    shown = "(?:report|table|message|output|traceback|log)"
    return re.sub(rf"[^.!;\n]*\b(?:above {shown}|{shown} above)\b[^.!;\n]*[.!;]?", "", text).strip()


def capital(text: str) -> str:
    """The text with its first letter in upper case."""
    return text[:1].upper() + text[1:]
