"""Sets the log of a process up: structured events on stderr, for people or as JSON.

Modules log through the standard library: an event's name is its message, its facts are `extra`.

    _log.info("request accepted", extra={"request_id": "req-1", "num_prompt_tokens": 12})

No event may hold a prompt, a generated token or text, or a secret.
"""

import logging
import os
from typing import Protocol

import structlog

from stagecoach.telemetry.log_config import LogConfig


class ByteSink(Protocol):
    """Where lines go: an unbuffered file, so that a line that fails is not tried again later."""

    def write(self, line: bytes, /) -> int | None:
        """Writes what there is room for and returns how many bytes; None when there is none."""
        ...


class LogHandler(logging.Handler):
    """Writes each event as one line in one write, and never fails its caller.

    A full disk or a closed pipe costs lines, not service; they are counted.

    Attributes:
        num_lost: Lines that could not be written, or not in full.
    """

    def __init__(self, sink: ByteSink) -> None:
        super().__init__()
        self.num_lost = 0
        self._sink = sink

    def emit(self, record: logging.LogRecord) -> None:
        """Writes an event."""
        try:
            line = f"{self.format(record)}\n".encode(errors="backslashreplace")
            self.num_lost += self._sink.write(line) != len(line)
        except Exception:  # whoever logs must not fail by it
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Counts a line; there is nowhere left to say why it was lost."""
        self.num_lost += 1


def set_up_logging(config: LogConfig) -> LogHandler:
    """Sends all events of this process to stderr; call it once, before anything is logged.

    Returns:
        The handler, which counts what it loses.
    """
    stderr = open(2, "wb", buffering=0, closefd=False)  # noqa: SIM115  as long as the process
    handler = LogHandler(stderr)
    handler.setFormatter(formatter(config, colors=os.isatty(2)))
    logging.basicConfig(handlers=[handler], level=config.level.upper(), force=True)
    return handler


def formatter(config: LogConfig, *, colors: bool) -> logging.Formatter:
    """Turns events of the standard library's loggers into lines.

    Args:
        config: Says in which format.
        colors: Whether the console format may use colours.
    """
    renderer: structlog.typing.Processor
    if config.format == "json":
        renderer = structlog.processors.JSONRenderer()
    else:
        # Both of structlog's other ways to show a traceback print local variables: prompts.
        renderer = structlog.dev.ConsoleRenderer(
            colors=colors, exception_formatter=structlog.dev.plain_traceback
        )
    tracebacks = [structlog.processors.format_exc_info] if config.format == "json" else []
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.ExtraAdder(),
            structlog.processors.TimeStamper(fmt="iso", utc=True),
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            *tracebacks,
            renderer,
        ],
    )
