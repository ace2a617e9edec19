"""A child process of ours that says in one JSON line on stdout when it is ready."""

import asyncio
import json
import signal
import sys
from collections.abc import Callable, Sequence

from coordinator.cli.cluster.forked_process import ForkedProcess
from coordinator.cli.shared.failures import EXIT_USAGE
from stagecoach.contract.errors import (
    InternalError,
    InvalidArgumentError,
    StagecoachError,
    UnavailableError,
)
from stagecoach.contract.load_progress import LoadProgress

MAX_LINE_BYTES = 2**20


Process = asyncio.subprocess.Process | ForkedProcess
"""A child with pipes for its standard streams, in a process group of its own."""


async def spawn(arguments: Sequence[str]) -> Process:
    """Starts this Python.

    Args:
        arguments: After the interpreter.
    """
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=MAX_LINE_BYTES,
        process_group=0,
    )


class Child:
    """One running child. Used from one event loop.

    Its stdin is a pipe that nothing is written to: it ends when this process ends in whatever way,
    and a child that runs with `--exit-with-parent` ends with it. It has its own process group, so
    that Ctrl-C reaches this process alone, which stops its children in order.

    Args:
        name: Name that people read.
        process: Nobody else waits for it.
        relay_logs: Write what the child logs to our stderr, with its name.
        on_progress: Told how far the child is, if it says so before it is ready.
    """

    def __init__(
        self,
        name: str,
        process: Process,
        *,
        relay_logs: bool,
        on_progress: Callable[[LoadProgress], None] = lambda _: None,
    ) -> None:
        self._on_progress = on_progress
        self.name = name
        self._process = process
        self._relay_logs = relay_logs
        self._last_log_line = ""
        loop = asyncio.get_running_loop()
        self._address: asyncio.Future[str | None] = loop.create_future()
        self._ready_line: asyncio.Future[bytes] = loop.create_future()
        self._readers = (
            asyncio.create_task(self._read_stdout()),
            asyncio.create_task(self._read_stderr()),
        )

    async def listening(self) -> str:
        """Waits for the line that says where the child listens; it may be long from ready.

        Raises:
            StagecoachError: The child ended first; see `ended`.
        """
        address = await asyncio.shield(self._address)
        if address is None:
            raise await self.ended()
        return address

    async def ready(self) -> dict[str, object]:
        """Waits for the line that says that the child is ready, and returns its content.

        Raises:
            StagecoachError: The child ended first; see `ended`.
        """
        line = await asyncio.shield(self._ready_line)
        if not line:
            raise await self.ended()
        try:
            content = json.loads(line)
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise InternalError(f"{self.name} did not print a JSON object when it was ready")
        return content

    async def ended(self) -> StagecoachError:
        """Waits for the end of the child and says in one line how it came.

        Returns:
            InvalidArgumentError for one that refused its arguments, else UnavailableError.
        """
        code = await self._process.wait()
        await asyncio.wait(self._readers)
        if code < 0:  # what it logged before need not be the reason
            cause, said = f"signal {signal.Signals(-code).name}", "; logged last: "
        else:
            cause, said = f"exit code {code}", ": "
        message = f"{self.name} ended with {cause}"
        if self._last_log_line:
            message = f"{message}{said}{self._last_log_line}"
        if code == EXIT_USAGE:
            return InvalidArgumentError(message)
        return UnavailableError(message)

    async def stop(self, *, grace_s: float) -> None:
        """Ends the child with SIGTERM, and after the grace time with SIGKILL."""
        if self._process.returncode is None:
            self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), grace_s)
            except TimeoutError:
                print(f"{self.name} did not end in {grace_s:.0f} s: killed", file=sys.stderr)
                self._process.kill()
        await self._process.wait()
        await asyncio.wait(self._readers)

    async def _read_stdout(self) -> None:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        while self._is_about_start(line):
            line = await self._process.stdout.readline()
        if not self._address.done():
            self._address.set_result(None)
        self._ready_line.set_result(line)
        while await self._process.stdout.read(MAX_LINE_BYTES):
            pass  # a child that nobody listens to must not block on a full pipe

    async def _read_stderr(self) -> None:
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            text = line.decode(errors="replace").rstrip()
            self._last_log_line = text or self._last_log_line
            if self._relay_logs:
                print(f"[{self.name}] {text}", file=sys.stderr, flush=True)

    def _is_about_start(self, line: bytes) -> bool:
        """Takes a line that says where a child listens or how far it is; False for any other."""
        try:
            content = json.loads(line)
        except ValueError:
            return False
        match content:
            case {"listening": str(address)} if not self._address.done():
                self._address.set_result(address)
                return True
            case {"progress": dict(details)}:
                progress = LoadProgress.from_details(details)
                if progress is not None:
                    self._on_progress(progress)
                return progress is not None
        return False
