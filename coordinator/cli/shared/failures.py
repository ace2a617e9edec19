"""How a command ends when it cannot do what it was asked: one line on stderr and an exit code."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

from stagecoach.contract.errors import InvalidArgumentError, StagecoachError
from stagecoach.contract.unexpected import in_words

_log = logging.getLogger(__name__)

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


@contextmanager
def reported_failures() -> Iterator[None]:
    """Turns what is raised inside into a line on stderr and an exit code.

    2 for what the caller got wrong, 1 for other failures; 130 after Ctrl-C and 141 when the reader
    of stdout went away, both quietly, as shells know them.
    """
    try:
        yield
    except InvalidArgumentError as error:
        _exit(error.message, EXIT_USAGE)
    except StagecoachError as error:
        _exit(error.message, EXIT_FAILURE)
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except BrokenPipeError:
        # What is still buffered would fail again, and be reported, when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
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
