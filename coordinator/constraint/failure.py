"""What goes wrong with a grammar, as a typed error that names its field."""

import logging

from coordinator.core.grammar import Grammar
from coordinator.sandbox import (
    CallTimeoutError,
    JobError,
    MemoryLimitError,
    ProcessKilledError,
    SandboxError,
)
from stagecoach.contract.errors import (
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    StagecoachError,
    UnavailableError,
)

_log = logging.getLogger(__name__)

_MAX_CHARS = 300
_NOISE = "<non-verbose/>"
_BACKTRACE = "<backtrace>"
_PANIC = "panic:"
_NO_TOKEN = ("", "NoExtensionBias")
"""What the library says where the grammar goes on with bytes that no token begins with."""


def failure(grammar: Grammar, message: str, field: str = "") -> InvalidArgumentError:
    """Returns an error that names the field of a grammar and says what is wrong with it.

    Args:
        grammar: The grammar.
        message: What the library says; may have several lines.
        field: Field of the part that it speaks of; empty: it is all of the grammar.
    """
    field = field or grammar.field
    line = " ".join(message.partition(_BACKTRACE)[0].replace(_NOISE, "").split())
    if line in _NO_TOKEN:
        line = "wants text that the model has no tokens for"
    elif line.startswith(_PANIC):
        line = f"is more than the grammar engine can take ({line.removeprefix(_PANIC).strip()})"
    if len(line) > _MAX_CHARS:
        line = f"{line[:_MAX_CHARS]}..."
    return InvalidArgumentError(f"{field}: {line}", field=field)


def killed() -> UnavailableError:
    """Returns the error of a request whose processes were killed from outside again and again."""
    return UnavailableError("the processes that follow grammars were killed; try again later")


def sandbox_failure(
    grammar: Grammar, error: SandboxError, *, work: str, limit_s: float
) -> StagecoachError:
    """Returns the error of a grammar whose process did not answer.

    Args:
        grammar: The grammar.
        error: What became of the process.
        work: What it was to do with the grammar, as a participle.
        limit_s: The time it had.
    """
    match error:
        case CallTimeoutError():
            return DeadlineExceededError(
                f"{grammar.field} was not {work} within {limit_s:g} s",
                field=grammar.field,
                limit_s=limit_s,
            )
        case MemoryLimitError():
            return failure(grammar, "takes more memory than a grammar may")
        case JobError():
            _log.error("grammar job failed", extra={"error": str(error)})
            return InternalError("a grammar could not be followed; see the coordinator's log")
        case ProcessKilledError():
            return killed()
        case _:
            return failure(grammar, "is more than the grammar engine can take: it crashed")
