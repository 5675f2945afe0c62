"""Token classes: labels of a token's text alone. The table is lib/labels/token_classes.yaml, one entry a label.

After an edit of the table the labels are scored again from statistics that exist; no model runs. A token's text has its
leading space; bytes that are only part of a character are lone surrogates (U+DC80 to U+DCFF), which match no letter.
"""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import yaml

from lib.base.errors import InputError, listed

TABLE = Path(__file__).with_suffix(".yaml")


@dataclass(frozen=True)
class TokenClass:
    """One label: 1 for the tokens whose whole text the regular expression matches; InputError if it is none."""

    label: str
    pattern: str
    family: str = "token_class"

    def __post_init__(self):
        try:
            re.compile(self.pattern, re.DOTALL)
        except re.error as error:
            raise InputError(
                f"the token class '{self.label}' has the pattern {self.pattern!r}, which is not a regular expression "
                f"({error})."
            ) from None

    def members(self, texts: list[str]) -> list[bool]:
        """For each text whether it carries the label."""
        return list(map(bool, map(re.compile(self.pattern, re.DOTALL).fullmatch, texts)))  # millions of calls


def looks(label: str, pattern: str, family: str = "token_class") -> TokenClass:
    """The token's whole text matches the pattern; begin it with ` ?` to allow a leading space."""
    return TokenClass(label, pattern, family)


def words(label: str, text: str) -> TokenClass:
    """The token is one of the words, in any case, with or without a leading space."""
    return TokenClass(label, f" ?(?i:{'|'.join(map(re.escape, text.split()))})")


def names(label: str, text: str) -> TokenClass:
    """The token is one of the names as written here (an underscore stands for a space) or in capitals."""
    written = [name.replace("_", " ") for name in text.split()]
    return TokenClass(label, f" ?(?:{'|'.join(re.escape(form) for name in written for form in (name, name.upper()))})")


def signs(label: str, text: str) -> TokenClass:
    """The token is nothing but these characters, with or without a leading space."""
    return TokenClass(label, f" ?[{re.escape(text)}]+")


def suffixes(text: str) -> list[TokenClass]:
    """One label per ending: the token is letters only and ends so."""
    return [TokenClass(f"ends with -{end}", rf"(?i: ?[^\W\d_]*{end})") for end in text.split()]


def prefixes(text: str) -> list[TokenClass]:
    """One label per beginning: the token is letters only and begins so."""
    return [TokenClass(f"begins with {start}-", rf"(?i: ?{start}[^\W\d_]*)") for start in text.split()]


def first_letters(text: str) -> list[TokenClass]:
    """One label per letter: the token begins with it, in either case, with or without a leading space."""
    return [TokenClass(f"first letter {letter}", f"(?i: ?{letter}.*)", "alphabet") for letter in text]


LABELLED = {kind.__name__: kind for kind in (looks, words, names, signs)}
UNLABELLED = {kind.__name__: kind for kind in (suffixes, prefixes, first_letters)}


def read_token_classes(path: Path) -> tuple[TokenClass, ...]:
    """The classes of a table, in its order; InputError for a bad entry or pattern and for a label given twice."""
    try:
        entries = yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader)  # all texts: `no` is a word, not False
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{path.name}{where}: not valid YAML ({getattr(error, 'problem', error)}).") from None
    classes = [one for entry in (entries if isinstance(entries, list) else [entries]) for one in _classes(entry, path)]
    labels = Counter(one.label for one in classes)
    if twice := [label for label, number in labels.items() if number > 1]:
        raise InputError(f"{path.name} gives the label '{twice[0]}' twice; names of labels must differ.")
    return tuple(classes)


def _classes(entry: object, path: Path) -> list[TokenClass]:
    """The classes that one entry of the table makes."""
    match entry:
        case {"label": str(label), **rest} if len(rest) == 1 and LABELLED.keys() >= rest.keys():
            [(kind, value)] = rest.items()
            if isinstance(value, str):
                return [LABELLED[kind](label, value)]
        case {**rest} if len(rest) == 1 and UNLABELLED.keys() >= rest.keys():
            [(kind, value)] = rest.items()
            if isinstance(value, str):
                return UNLABELLED[kind](value)
    raise InputError(
        f"{path.name} has the entry {entry!r}; an entry is a label with one of {listed(LABELLED)}, or one of "
        f"{listed(UNLABELLED)} alone."
    )


TOKEN_CLASSES = read_token_classes(TABLE)
