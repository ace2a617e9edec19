"""How a server writes its log, as one frozen, validated value."""

from dataclasses import dataclass

from stagecoach.contract.errors import InvalidArgumentError

LOG_FORMATS = ("console", "json")
LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    """What an operator decides about the log.

    Raises:
        InvalidArgumentError: A value is not one of those allowed; the error names the field.
    """

    format: str = "console"
    """One of `LOG_FORMATS`: lines for people, or one JSON object a line."""
    level: str = "info"
    """One of `LOG_LEVELS`: the least important events that are written."""

    def __post_init__(self) -> None:
        for field, value, choices in (
            ("log_format", self.format, LOG_FORMATS),
            ("log_level", self.level, LOG_LEVELS),
        ):
            if value not in choices:
                raise InvalidArgumentError(
                    f"{field} {value!r} is not one of {', '.join(choices)}", field=field
                )
