"""How a keyword of a schema is refused: by its name, its value and the path to it."""

from typing import NoReturn

_SHOWN = 40


def refuse(name: str, value: object, where: str, why: str) -> NoReturn:
    """Says that a keyword is not supported.

    Args:
        name: The keyword.
        value: As the client wrote it.
        where: The path to it, of which each step is `escaped`.
        why: What is wrong with it.

    Raises:
        ValueError: Always.
    """
    shown = str(value)
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
    said = f"{name} {shown} at {where} is not supported: {why}"
    raise ValueError(said.encode(errors="backslashreplace").decode())  # JSON has half characters


def escaped(name: str) -> str:
    """A name as a step of a path."""
    return name.replace("~", "~0").replace("/", "~1")
