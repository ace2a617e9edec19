"""Docstrings of the packages name what they describe, so that one can be read alone."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("stagecoach", "coordinator", "stage_server", "tools")

_FRAGMENT = r"(Of|Those|That of|Likewise)\b"
"""How a text begins that names its noun nowhere."""
_ARGUMENT = re.compile(rf"^ +\*{{0,2}}\w+: {_FRAGMENT}.*$", re.MULTILINE)


def strings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of every docstring: of modules, classes, functions and attributes."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            yield node.lineno, node.value.value


def fragments(source: str) -> list[tuple[int, str]]:
    """Line and text of what says "of the file" and leaves out what of it."""
    found = []
    for line, text in strings(ast.parse(source)):
        if re.match(_FRAGMENT, text):
            found.append((line, text))
        found += [(line, match[0].strip()) for match in _ARGUMENT.finditer(text)]
    return found


def test_no_docstring_needs_its_neighbour() -> None:
    found = {
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if "_pb2" not in path.name
        for line, text in fragments(path.read_text())
    }
    assert found == set()


def test_fragments_are_seen() -> None:
    source = '''
class Window:
    """Means of some steps.

    Args:
        name: Of the stage.
        other: Those of a stage that is lost.
        third: Name of a stage.
    """

    num_steps: int
    """Of the window."""
    length_s: float
    """Time that the window spans. Those before are forgotten."""
'''
    assert [text for _, text in fragments(source)] == [
        "name: Of the stage.",
        "other: Those of a stage that is lost.",
        "Of the window.",
    ]
