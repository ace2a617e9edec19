"""A process in a terminal of its own: types into it and reads what it shows."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parents[1]
DEADLINE_S = 120.0

CTRL_C, CTRL_D, TAB, ENTER, ALT_ENTER = "\x03", "\x04", "\t", "\r", "\x1b\r"

# A new session has no terminal of its own, and no Ctrl-C, until it takes one.
_TAKE_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)

_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07]*\x07|\x1b[=>()][0-9A-Za-z]?")


class Terminal:
    """Runs a command in a pseudo-terminal; a context manager that ends it.

    Args:
        command: What to run.
        environment: Added to that of the tests.
        columns: Width of the terminal.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        *,
        columns: int = 80,
    ) -> None:
        self.shown = ""
        """All that was written so far, without escape sequences."""
        self.raw = ""
        self._read_up_to = 0
        self._is_closed = False
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
        inherited = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _TAKE_TERMINAL, *command],
            cwd=ROOT,
            # This terminal does not say where its cursor is.
            env={**inherited, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", **(environment or {})},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.wait()
        if not self._is_closed:
            os.close(self._ours)

    def type(self, text: str) -> None:
        """Types text as it is; a line ends with ENTER."""
        os.write(self._ours, text.encode())

    def expect(self, text: str) -> str:
        """Waits until the text is shown, after what was expected before; returns what came."""
        deadline = time.monotonic() + DEADLINE_S
        while (found := self.shown.find(text, self._read_up_to)) < 0:
            assert self._read_more(deadline), (
                f"{text!r} is not in the end of {self.shown[-2000:]!r}"
            )
        end = found + len(text)
        came, self._read_up_to = self.shown[self._read_up_to : end], end
        return came

    def close(self) -> None:
        """Closes the terminal; its process gets SIGHUP."""
        os.close(self._ours)
        self._is_closed = True

    def modes(self) -> Sequence[object]:
        """How the terminal treats what is typed, such as whether it echoes."""
        return termios.tcgetattr(self._ours)[:4]

    def ended(self) -> int:
        """Waits for the end of the process and returns its exit code."""
        deadline = time.monotonic() + DEADLINE_S
        while self._read_more(deadline):
            pass
        return self.process.wait(DEADLINE_S)

    def _read_more(self, deadline: float) -> bool:
        """Reads what comes next; False at the end."""
        remaining_s = deadline - time.monotonic()
        readable, _, _ = select.select([self._ours], [], [], max(remaining_s, 0))
        assert readable, f"nothing more came after {self.shown[-2000:]!r}"
        try:
            data = os.read(self._ours, 65536)
        except OSError:  # how Linux tells that the other side was closed
            return False
        self.raw += data.decode(errors="replace")
        self.shown = _ESCAPES.sub("", self.raw).replace("\r", "")
        return bool(data)
