"""Text files are read and written in UTF-8, whatever the machine's locale is."""

import ast

import pytest

from lib.base.params import ROOT

FILES = sorted(path for room in ("lib", "bench") for path in (ROOT / room).rglob("*.py"))


def unnamed(tree: ast.AST) -> list[int]:
    """Lines that open text without an encoding; ruff's rule sees only paths whose type it can tell."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or any(given.arg in ("encoding", None) for given in node.keywords):
            continue
        match node.func:
            case ast.Attribute(attr="read_text" | "write_text"):
                found.append(node.lineno)
            case ast.Name(id="open"):
                texts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
                if not any(text in ("rb", "wb", "ab", "r+b", "xb") for text in texts):
                    found.append(node.lineno)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_text_has_an_encoding(path):
    assert unnamed(ast.parse(path.read_text(encoding="utf-8"))) == []


def test_a_missing_encoding_is_found():
    assert unnamed(
        ast.parse("path.read_text()\nopen(path)\nopen(path, 'rb')\npath.write_text(a, encoding='utf-8')")
    ) == [1, 2]
