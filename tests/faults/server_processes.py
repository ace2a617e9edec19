"""Stage servers and coordinators as processes of their own, and what the system says of them."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Self

from tests.faults.observed import COLLECT, COUNT
from tests.open_files import open_files

START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 30.0
_DYING_S = 20.0
_OBSERVER_S = 20.0


class Footprint(NamedTuple):
    """What a process holds."""

    num_fds: int
    """Descriptors, but for those of sandboxed processes."""
    num_threads: int
    num_tasks: int
    """Of asyncio."""
    rss_bytes: int
    num_sandboxed: int
    """Processes that work for clients; some are kept for the next client, up to a bound."""

    @property
    def num_open_fds(self) -> int:
        """All descriptors: a sandboxed process has its own and a socket."""
        return self.num_fds + 2 * self.num_sandboxed


class ServerProcess:
    """One server that runs as `python -m MODULE ARGUMENTS` would, and says when it is ready.

    Args:
        module: `stage_server` or `coordinator.cli`.
        arguments: Its own.
        folder: For its log and the observer's socket.
        environment: Added to ours.
        prefix: What the command begins with, to run somewhere else.
        log: Where stderr goes; None is a file of its own.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        folder: Path,
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        log: Path | None = None,
    ) -> None:
        self._sockets = tempfile.TemporaryDirectory(prefix="stagecoach-")  # a short path
        self._observer = f"{self._sockets.name}/observer"
        self._is_told_to_end = False
        self.log_path = log or folder / f"{module}-{time.monotonic_ns()}.log"
        with self.log_path.open("wb") as stderr:
            self._process = subprocess.Popen(
                [
                    *prefix,
                    *(sys.executable, "-m", "tests.faults.observed", self._observer, module),
                    *arguments,
                    *("--json", "--exit-with-parent"),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, **(environment or {})},
            )

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """How it ended; negative for a signal, None while it runs."""
        return self._process.poll()

    @property
    def log(self) -> str:
        """Everything that it has logged."""
        return self.log_path.read_text(errors="replace")

    def ready_line(self) -> dict[str, object]:
        """Waits until it is ready and returns what it says then."""
        stdout = self._process.stdout
        assert stdout is not None
        readable, _, _ = select.select([stdout], [], [], START_TIMEOUT_S)
        line = stdout.readline() if readable else b""
        assert line, f"not ready: {self.log}"
        content: dict[str, object] = json.loads(line)
        return content

    def footprint(self, *, collected: bool = False) -> Footprint:
        """What it holds now; asking costs it a connection for a moment.

        Args:
            collected: Have it collect garbage first, which takes it a third of a second.
        """
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_OBSERVER_S)
            connection.connect(self._observer)
            connection.sendall(COLLECT if collected else COUNT)
            num_tasks = json.loads(connection.makefile().read())["num_tasks"]
        status = dict(
            line.split(":\t", 1)
            for line in Path(f"/proc/{self.pid}/status").read_text().splitlines()
            if ":\t" in line
        )
        files = open_files(self.pid)
        num_sandboxed = sum(file.target == "anon_inode:[pidfd]" for file in files)
        return Footprint(
            num_fds=len(files) - 2 * num_sandboxed,
            num_threads=int(status["Threads"]),
            num_tasks=num_tasks,
            rss_bytes=1024 * int(status["VmRSS"].split()[0]),
            num_sandboxed=num_sandboxed,
        )

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal."""
        self._is_told_to_end |= number in (signal.SIGTERM, signal.SIGINT)
        self._process.send_signal(number)

    def kill(self) -> None:
        """Kills it and waits until it is gone."""
        self._process.kill()
        self._process.wait(STOP_TIMEOUT_S)

    def wait(self, timeout_s: float) -> int:
        """Waits for its end.

        Raises:
            subprocess.TimeoutExpired: It goes on.
        """
        return self._process.wait(timeout_s)

    def close(self) -> None:
        """Ends it, kindly if it lets us, and gives back what it took of this process."""
        if self._process.poll() is None:
            self.signal(signal.SIGCONT)
            if not self._is_told_to_end:  # a second time would end it at once, without a drain
                self.signal(signal.SIGTERM)
            try:
                self._process.wait(_DYING_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(STOP_TIMEOUT_S)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._sockets.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def is_running(pid: int) -> bool:
    """False for a zombie too: nobody reaps an orphan in a container."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
