"""The language of each domain of a text, and whether it is English prose (docs/method.md §5).

The table domains.yaml says it of the texts that everyone has, and a run's `domains` of its own. Syntax is labelled in
English prose only, and labels of context name languages and source code. A domain that neither names is read like any
other, but gets neither kind of label.
"""

from pathlib import Path
from typing import NamedTuple

import yaml

from lib.base.errors import InputError

TABLE = Path(__file__).with_suffix(".yaml")
CODE, SEVERAL = "code", "several"


class Domain(NamedTuple):
    """`language`: its two letters, or CODE for source code, or SEVERAL; `prose`: running English text."""

    language: str
    prose: bool = False


PROSE, ENGLISH = Domain("en", prose=True), Domain("en")


def domain_of(name: str, kind: str) -> Domain:
    """The domain that a line `name: kind` of the table describes; InputError for an unknown kind."""
    known = {"prose": PROSE, "english": ENGLISH, CODE: Domain(CODE), SEVERAL: Domain(SEVERAL)}
    if kind not in known and not (len(kind) == 2 and kind.isalpha() and kind.islower()):
        raise InputError(
            f"{TABLE}: '{name}' is '{kind}', but must be one of {', '.join(known)}, or the two letters of a language."
        )
    return known.get(kind, Domain(kind))


def known_domains(own: dict[str, str] | None) -> dict[str, Domain]:
    """The table's domains and a run's own, given as `name: kind`, which go before."""
    return DOMAINS | {name: domain_of(name, kind) for name, kind in (own or {}).items()}


_table = yaml.load(TABLE.read_text(encoding="utf-8"), yaml.BaseLoader)  # strings only: `no` is Norwegian, not False
LANGUAGES: dict[str, str] = _table["languages"]
DOMAINS = {name: domain_of(name, kind) for name, kind in _table["domains"].items()}
ENGLISH_PROSE = tuple(name for name, domain in DOMAINS.items() if domain.prose)
