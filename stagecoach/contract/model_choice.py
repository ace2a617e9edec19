"""Which of the models of a coordinator is meant, and what is said where none is."""

from collections.abc import Iterable

from stagecoach.contract.errors import InvalidArgumentError, ModelNotFoundError

_MAX_SHOWN_CHARS = 128
"""Most characters of a wanted name that an error shows."""


def unnamed(num_models: int, names: Iterable[str]) -> InvalidArgumentError:
    """What tells that a name is needed, as there are several models.

    Args:
        num_models: That there are.
        names: All names of all models.
    """
    return InvalidArgumentError(
        f"model is not given, and {num_models} are served: name one of {_shown(names)}",
        field="model",
    )


def not_found(wanted: str, num_models: int, names: Iterable[str]) -> ModelNotFoundError:
    """What tells that no model has a name; arguments as of `unnamed`."""
    return ModelNotFoundError(
        f"the model {wanted[:_MAX_SHOWN_CHARS]!r} is not served here;"
        f" {_shown(names)} {'is' if num_models == 1 else 'are'}",
        field="model",
    )


def _shown(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
