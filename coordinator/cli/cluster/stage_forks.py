"""Starts stage servers as forks of one process, which has imported what they need."""

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack

from coordinator.cli.cluster.child import MAX_LINE_BYTES
from coordinator.cli.cluster.forked_process import ForkedProcess
from stagecoach.contract.errors import UnavailableError
from stagecoach.process.fork_server import ENVIRONMENT, Command, request, take_reply

_PREPARE = "stage_server.process.command:prepare"
_MODULE = "stage_server"


class StageForks:
    """Starts the fork server, again whenever it is not there, and stage servers from it.

    Stage servers are children of this process, which has to adopt orphans, and outlive the fork
    server. Event loop only; the owner closes it.
    """

    def __init__(self) -> None:
        self._server: _Server | None = None
        self._one_at_a_time = asyncio.Lock()

    async def start(self, arguments: Sequence[str]) -> ForkedProcess:
        """Starts a stage server, in a process group of its own; the caller waits for its end.

        Args:
            arguments: What `stage-server` gets after its name.

        Raises:
            UnavailableError: It cannot be started; says why.
        """
        command = Command(_MODULE, arguments)
        async with self._one_at_a_time:
            if self._server is not None:
                try:
                    return await self._server.fork(command)
                except ConnectionError:  # it was killed: the next one serves as well
                    await self.close()
            self._server = _Server()
            try:
                return await self._server.fork(command)
            except ConnectionError as error:
                # Whatever else ends it is said there.
                reason = await self.close() or "the process that forks them was killed"
                raise UnavailableError(f"no stage can be started: {reason}") from error

    async def close(self) -> str:
        """Ends the fork server, if there is one; may be called again.

        Returns:
            The last line that it logged.
        """
        server, self._server = self._server, None
        return "" if server is None else await server.end()


class _Server:
    """One fork server."""

    def __init__(self) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the rest
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.setblocking(False)
        with theirs:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "stagecoach.process.fork_server"),
                    *(_PREPARE, str(theirs.fileno())),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._said,
                pass_fds=(theirs.fileno(),),
                process_group=0,
                env={**os.environ, **ENVIRONMENT},
            )

    async def fork(self, command: Command) -> ForkedProcess:
        loop = asyncio.get_running_loop()
        with ExitStack() as ours, ExitStack() as theirs:
            (stdin, our_stdin), (our_stdout, stdout), (our_stderr, stderr) = (
                os.pipe() for _ in range(3)
            )
            for fd in (stdin, stdout, stderr):
                theirs.callback(os.close, fd)
            for fd in (our_stdin, our_stdout, our_stderr):
                ours.callback(os.close, fd)
            try:
                request(self._channel, command, (stdin, stdout, stderr))
                process_id = take_reply(await loop.sock_recv(self._channel, 16))
            except asyncio.CancelledError:  # its reply must not be the next one's
                self._process.kill()
                raise
            ours.pop_all()
        return await ForkedProcess.adopt(
            process_id, our_stdin, our_stdout, our_stderr, limit=MAX_LINE_BYTES
        )

    async def end(self) -> str:
        """Ends it; returns the last line that it wrote to its standard error."""
        self._channel.close()
        self._process.kill()
        await asyncio.to_thread(self._process.wait)
        with self._said:
            self._said.seek(0)
            lines = self._said.read().decode(errors="replace").splitlines()
        return next((line for line in reversed(lines) if line.strip()), "")
