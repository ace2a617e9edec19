"""How a command ends when it cannot do what it was asked: one line on stderr and an exit code."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MappingProxyType
from typing import NoReturn

import typer

from stagecoach.contract.errors import InvalidArgumentError, StagecoachError
from stagecoach.contract.unexpected import in_words
from stagecoach.process.flags import in_flags_of
from stagecoach.process.standard_streams import drop_output

_log = logging.getLogger(__name__)

_PARAMETERS = MappingProxyType({"tls": "tls_ca"})
"""The parameter of our commands that becomes an argument of the SDK of another name."""

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


@contextmanager
def reported_failures(command: Callable[..., object] | None = None) -> Iterator[None]:
    """Turns what is raised inside into a line on stderr and an exit code.

    2 for what the caller got wrong, 1 for other failures; 130 after Ctrl-C and 141 when the reader
    of stdout went away, both quietly, as shells know them.

    Args:
        command: Whose flags errors name. None: no command was reached.
    """
    try:
        yield
    except StagecoachError as error:
        told = error if command is None else in_flags_of(command, error, _PARAMETERS)
        _exit(told.message, EXIT_USAGE if isinstance(error, InvalidArgumentError) else EXIT_FAILURE)
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except BrokenPipeError:
        drop_output()  # it would fail again, and be reported, when Python exits
        raise typer.Exit(EXIT_BROKEN_PIPE) from None
    except (typer.Exit, typer.Abort, typer.BadParameter):
        raise
    except OSError as error:
        _exit(in_words(error), EXIT_FAILURE)
    except Exception as error:  # a bug; a command shows one line and no traceback
        _log.debug("failed", exc_info=True)
        _exit(in_words(error), EXIT_FAILURE)


def _exit(message: str, code: int) -> NoReturn:
    print(f"coordinator-cli: {' '.join(message.split())}", file=sys.stderr)
    raise typer.Exit(code) from None
