"""Reads what a class says under each of its attributes: type, value and docstring, from source."""

import ast
import inspect
import textwrap
from itertools import pairwise
from typing import NamedTuple


class Attribute(NamedTuple):
    """An annotated attribute with a docstring of its own."""

    annotation: str
    """As the source writes it."""
    value: ast.expr | None
    """What the source assigns; None for nothing."""
    text: str
    """The docstring, on one line."""


def attributes(described: type) -> dict[str, Attribute]:
    """The attributes that a class itself annotates and describes, by name; those of bases not."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(described)))
    [body] = [node.body for node in tree.body if isinstance(node, ast.ClassDef)]
    return {
        field.target.id: Attribute(
            ast.unparse(field.annotation), field.value, " ".join(str(after.value.value).split())
        )
        for field, after in pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
    }
