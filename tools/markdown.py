"""Writes Markdown: tables, and the first sentences of docstrings on one line."""

from collections.abc import Sequence


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A table; bars in its cells are escaped.

    Args:
        header: One word for each column.
        rows: Cells, as many in each row as the header has.
    """
    lines = [header, ("---",) * len(header), *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def first_sentence(text: str) -> str:
    """The first paragraph of a docstring, on one line and without its full stop."""
    return " ".join(text.partition("\n\n")[0].split()).removesuffix(".")


def split_at(text: str, opening: str) -> tuple[str, str]:
    """Parts a text from the rest that opens with a word; that rest has no full stop."""
    meaning, _, rest = text.partition(opening)
    return meaning.strip(), rest.removesuffix(".")


def _cell(text: str) -> str:
    return text.replace("|", r"\|")
