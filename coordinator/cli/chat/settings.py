"""What `/set` can change while a chat runs. Ranges are for the coordinator to check."""

import difflib
from collections.abc import Callable, Mapping
from typing import Any, cast

from stagecoach.client import GenerateOptions
from stagecoach.contract.errors import InvalidArgumentError

DROP_OLDEST = "drop_oldest"
"""Whether the oldest turns go when the conversation outgrows the model."""

DEFAULT = "default"
"""The value that takes a setting back."""


def _switch(text: str) -> bool:
    if text.lower() not in ("on", "off"):
        raise ValueError
    return text.lower() == "on"


class _Kind:
    """How a value is read, and what one looks like."""

    def __init__(self, read: Callable[[str], object], example: str) -> None:
        self.read = read
        self.example = example


_KINDS: Mapping[str, _Kind] = {
    **dict.fromkeys(("max_tokens", "min_tokens", "top_k", "seed"), _Kind(int, "a whole number")),
    **dict.fromkeys(
        (
            "temperature",
            "top_p",
            "min_p",
            "repetition_penalty",
            "presence_penalty",
            "frequency_penalty",
        ),
        _Kind(float, "a number, such as 0.7"),
    ),
    "stop": _Kind(lambda text: (text.replace("\\n", "\n"),), "text"),
    DROP_OLDEST: _Kind(_switch, "on or off"),
}

NAMES = tuple(sorted(name.replace("_", "-") for name in _KINDS))
"""Names of the settings, as they are typed."""


def setting_name(field: str) -> str:
    """What `/set` calls an argument of the SDK; others stay as they are."""
    return field.replace("_", "-") if field in _KINDS else field


class Settings:
    """How answers are made.

    Args:
        options: Sampling parameters of every request.
        drop_oldest: Whether the oldest turns go when the conversation outgrows the model.
    """

    def __init__(self, options: GenerateOptions, *, drop_oldest: bool) -> None:
        self._defaults = options
        self._drop_oldest = drop_oldest
        self.options: GenerateOptions = {**options}
        self.drop_oldest = drop_oldest

    def set(self, name: str, text: str) -> None:
        """Changes one setting.

        Args:
            name: With dashes or underscores.
            text: The value, or `default`.

        Raises:
            InvalidArgumentError: There is no such setting, or it has no such value.
        """
        field = name.strip("-").replace("-", "_")
        kind = _KINDS.get(field)
        if kind is None:
            near = difflib.get_close_matches(field.replace("_", "-"), NAMES, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(NAMES)}"
            raise InvalidArgumentError(f"there is no setting {name!r}{hint}", field=field)
        try:
            value = None if text == DEFAULT else kind.read(text)
        except ValueError as error:
            raise InvalidArgumentError(
                f"{field} is {text!r}, must be {kind.example}, or {DEFAULT}", field=field
            ) from error
        if field == DROP_OLDEST:
            self.drop_oldest = self._drop_oldest if value is None else bool(value)
        elif value is None:
            self._take_back(field)
        else:
            self.options = cast(GenerateOptions, {**self.options, field: value})

    def shown(self) -> Mapping[str, object]:
        """What differs from the coordinator's own defaults, for people."""
        given: dict[str, object] = {
            name: value for name, value in self.options.items() if value not in (None, (), False)
        }
        return {**given, DROP_OLDEST: "on" if self.drop_oldest else "off"}

    def _take_back(self, field: str) -> None:
        options: dict[str, Any] = {**self.options}
        options.pop(field, None)
        if field in self._defaults:
            options[field] = self._defaults[field]  # type: ignore[literal-required]
        self.options = cast(GenerateOptions, options)
