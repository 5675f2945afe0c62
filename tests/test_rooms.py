"""The rooms of lib/ (docs/layout.md): who may import whom."""

import ast
from graphlib import TopologicalSorter

import pytest

from lib.base.params import ROOT

# From top to bottom: a room imports from itself and from rooms above it.
ROOMS = "base kernels text models run cache labels collect display chapters report lab training".split()
CHAPTERS = "universality families circuits interventions emergence same_function published".split()
ONLY = {  # where a room may use less than all that stands above it
    "kernels": {"kernels"},
    "text": {"base", "text"},
    "run": {"base", "text"},
    "cache": {"base", "text", "run"},
    "labels": {"base", "text", "run", "cache", "labels"},
    "display": {"base", "text", "display"},
    "training": {"base", "text", "training"},
}
SHOWN = {"figures", "captions", "claims", "in_short"}  # of a chapter, for itself and for the report
FILES = {path: path.relative_to(ROOT).with_suffix("").parts[1:] for path in sorted((ROOT / "lib").rglob("*.py"))}
MODULES = {parts: path for path, parts in FILES.items()}


def imported(path) -> set[tuple[str, ...]]:
    """The modules of lib that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "lib":
            own = tuple(node.module.split(".")[1:])
            found |= {(*own, name.name) if (*own, name.name) in MODULES else own for name in node.names}
        elif isinstance(node, ast.Import):
            found |= {tuple(name.name.split(".")[1:]) for name in node.names if name.name.split(".")[0] == "lib"}
    return found


IMPORTS = {parts: imported(path) for parts, path in MODULES.items()}


def refused(own: tuple[str, ...], other: tuple[str, ...]) -> str | None:
    """Why a module must not import another one, or None."""
    room, theirs = own[0], other[0]
    if theirs not in ONLY.get(room, ROOMS[: ROOMS.index(room) + 1]):
        return f"{'/'.join(own)} imports {'/'.join(other)}, of a room that {room}/ may not use"
    if room == theirs == "chapters" and own[1] != other[1]:
        if CHAPTERS.index(other[1]) > CHAPTERS.index(own[1]):
            return f"{'/'.join(own)} imports {'/'.join(other)}, of a later chapter"
        if other[-1] in SHOWN:
            return f"{'/'.join(own)} imports {'/'.join(other)}, which belongs to another chapter"
    if room == theirs == "chapters" and other[-1] in SHOWN and own[-1] not in SHOWN:
        return f"{'/'.join(own)} imports {'/'.join(other)}, but statistics know nothing of how they are shown"
    return None


@pytest.mark.parametrize("own", [own for own in IMPORTS if own != ("__init__",)], ids="/".join)
def test_a_module_imports_only_from_rooms_that_its_room_may_use(own):
    found = [refused(own, other) for other in sorted(IMPORTS[own])]
    assert not any(found), "; ".join(filter(None, found))


def test_no_module_imports_itself_through_others():
    TopologicalSorter(IMPORTS).prepare()  # CycleError names the circle


def test_every_module_and_chapter_has_its_room():
    assert {parts[0] for parts in MODULES} == {*ROOMS, "__init__"}
    assert {parts[1] for parts in MODULES if parts[0] == "chapters"} == {*CHAPTERS, "__init__"}
