"""What the operator of a command wrote for each of its parameters."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import get_type_hints

from typer.models import OptionInfo

from stagecoach.contract.error_words import in_words_of
from stagecoach.contract.errors import StagecoachError


def in_flags_of(
    command: Callable[..., object],
    error: StagecoachError,
    parameters: Mapping[str, str] = MappingProxyType({}),
) -> StagecoachError:
    """Returns an error that names the flags of a command instead of its parameters.

    Args:
        command: A command of Typer.
        error: What it could not do; names that are no flags of the command stay.
        parameters: The parameter behind a field whose name is another one.
    """
    flags = _flags_of(command)
    return in_words_of(error, lambda field: flags.get(parameters.get(field, field), field))


def _flags_of(command: Callable[..., object]) -> Mapping[str, str]:
    """The flag of each parameter; one that is positional has none."""
    hints = get_type_hints(command, include_extras=True)
    return {
        name: f"--{name.replace('_', '-')}"
        for name, hint in hints.items()
        if any(isinstance(extra, OptionInfo) for extra in getattr(hint, "__metadata__", ()))
    }
