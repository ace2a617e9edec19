"""The arguments of a command that another one starts."""

from collections.abc import Iterable, Mapping


def switch(on: str, off: str, value: bool | None) -> tuple[str, ...]:
    """The one of two flags that was given, if any."""
    return () if value is None else (on,) if value else (off,)


def each(option: str, values: Iterable[str] | None) -> tuple[str, ...]:
    """An option that was given any number of times, as arguments of a command."""
    return tuple(text for value in values or () for text in (option, value))


def given(options: Mapping[str, object]) -> tuple[str, ...]:
    """The options that were given, as arguments of a command."""
    return tuple(
        text for name, value in options.items() if value is not None for text in (name, str(value))
    )
