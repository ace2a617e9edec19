"""A child process that a fork server made, with what asyncio's own have."""

import asyncio
import os
import signal
from contextlib import suppress
from typing import Self


class ForkedProcess:
    """One running process; `adopt` makes it. Used from one event loop.

    Its standard input is a pipe that nothing is written to, and that ends with this process.
    """

    def __init__(
        self,
        process_id: int,
        stdin: int,
        stdout: asyncio.StreamReader,
        stderr: asyncio.StreamReader,
    ) -> None:
        self.pid = process_id
        self.returncode: int | None = None
        self.stdout = stdout
        self.stderr = stderr
        self._stdin = stdin
        self._ended = asyncio.Event()
        self._process_fd = os.pidfd_open(process_id)
        asyncio.get_running_loop().add_reader(self._process_fd, self._reap)

    @classmethod
    async def adopt(
        cls, process_id: int, stdin: int, stdout: int, stderr: int, *, limit: int
    ) -> Self:
        """Takes over a child of this process.

        Args:
            process_id: Nobody else waits for it.
            stdin: Our end of its standard input; owned from now on, as are the next two.
            stdout: Our end of its standard output.
            stderr: Our end of its standard error.
            limit: Bytes of the longest line of either.
        """
        readers = [await _reader(fd, limit) for fd in (stdout, stderr)]
        return cls(process_id, stdin, *readers)

    async def wait(self) -> int:
        """Waits for the end; returns the exit code, negative for a signal."""
        await self._ended.wait()
        assert self.returncode is not None, "it ended"
        return self.returncode

    def terminate(self) -> None:
        """Sends SIGTERM."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Sends SIGKILL."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self.returncode is None:
            with suppress(ProcessLookupError):  # it has just ended
                signal.pidfd_send_signal(self._process_fd, number)

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._process_fd)
        _, status = os.waitpid(self.pid, 0)
        self.returncode = os.waitstatus_to_exitcode(status)
        os.close(self._process_fd)
        os.close(self._stdin)
        self._ended.set()


async def _reader(fd: int, limit: int) -> asyncio.StreamReader:
    """Reads a pipe, which closes when its other end does."""
    reader = asyncio.StreamReader(limit=limit)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb", buffering=0)
    )
    return reader
