"""The process that all sandboxed ones are forked from, as the coordinator sees it."""

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress

from coordinator.sandbox.errors import ProcessDiedError, SandboxError
from coordinator.sandbox.sandbox_process import SandboxProcess

_log = logging.getLogger(__name__)

_ONE_THREAD = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""A fork copies the thread that forks and no other."""


_REAP_EVERY_S = 0.25
"""Such a process may be one of which nobody had heard yet."""


class ForkServer:
    """Starts sandboxed processes, and the process that they are forked from when it is not there.

    That one is started for the first `fork` or `start`, prepares the job, and is started again for
    the next `fork` after it died; what it forked lives on. What it leaves to this process, see
    `adopt_orphans`, is reaped here. Event loop only; the owner closes it.

    Args:
        module: Path of the job's module; see the package.
        payload: What its `prepare` gets.
    """

    def __init__(self, module: str, payload: bytes) -> None:
        self._module = module
        self._payload = payload
        self._starting: asyncio.Task[SandboxProcess] | None = None
        self._running: dict[asyncio.Task[int], int] = {}
        """Waits for the end of each, and process ids."""
        self._orphaned: set[int] = set()
        """Process groups of which something may be left to this process."""
        self._is_closed = False

    async def start(self) -> None:
        """Prepares the job, if that is not done.

        Raises:
            JobError: It cannot be prepared.
            ProcessKilledError: The process was killed meanwhile.
            ProcessDiedError: No process could be started, or the server was closed.
        """
        await self._root()

    async def fork(self, *, memory_bytes: int | None = None) -> SandboxProcess:
        """Starts a process with the job as it was prepared; the caller closes it.

        Args:
            memory_bytes: What it may take beyond what it shares; None for no limit.

        Raises:
            JobError: The job cannot be prepared.
            ProcessKilledError: The server's process was killed while it was started.
            ProcessDiedError: No process could be started, or the server was closed.
        """
        root = await self._root()
        try:
            return await root.fork(memory_bytes=memory_bytes)
        except ProcessDiedError:
            if root.is_alive:
                raise
            return await (await self._root()).fork(memory_bytes=memory_bytes)

    async def close(self) -> None:
        """Ends the server and all that it forked. May be called again."""
        self._is_closed = True
        if self._starting is not None:
            starting, self._starting = self._starting, None
            starting.cancel()
            await asyncio.wait({starting})
            if not starting.cancelled() and starting.exception() is None:
                starting.result().close()
        for process_id in (*self._running.values(), *self._orphaned):
            with suppress(ProcessLookupError):  # it has just ended
                os.killpg(process_id, signal.SIGKILL)
        if self._running:
            await asyncio.wait(self._running)
        while self._orphaned:  # noqa: ASYNC110 - no event tells of all of them
            await asyncio.sleep(_REAP_EVERY_S)

    async def _root(self) -> SandboxProcess:
        """The server's own process, prepared."""
        if self._is_closed:
            raise ProcessDiedError("the server was closed")
        starting = self._starting
        if starting is None or (starting.done() and not _is_good(starting)):
            starting = self._starting = asyncio.create_task(self._start(), name="fork server")
        # Those who wait share the start; one that gives up ends nothing.
        await asyncio.wait({starting})
        if starting.cancelled():
            raise ProcessDiedError("the server was closed")
        return starting.result()

    async def _start(self) -> SandboxProcess:
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise ProcessDiedError(f"no process could be started: {error}") from error
        root = SandboxProcess(ours)
        try:
            with theirs:
                process = _spawn(self._module, theirs.fileno())
            reaper = asyncio.create_task(_ended(process), name="fork server's end")
            self._running[reaper] = process.pid
            reaper.add_done_callback(self._forget)
            await root.call(self._payload, timeout_s=None)
        except OSError as error:
            root.close()
            raise ProcessDiedError(f"no process could be started: {error}") from error
        except SandboxError as error:
            _log.error("fork server failed", extra={"job": self._module, "error": str(error)})
            root.close()
            raise
        except BaseException:
            root.close()
            raise
        return root

    def _forget(self, ended: asyncio.Task[int]) -> None:
        """Begins to reap what a server's process left when it ended."""
        self._reap(self._running.pop(ended))

    def _reap(self, process_id: int) -> None:
        """Reaps of a process group what has ended, now and until there is none of it."""
        if _reap_group(process_id):
            self._orphaned.add(process_id)
            asyncio.get_running_loop().call_later(_REAP_EVERY_S, self._reap, process_id)
        else:
            self._orphaned.discard(process_id)


def _spawn(module: str, fd: int) -> subprocess.Popen[bytes]:
    """Starts the process of a job, with the descriptor of its socket.

    By `vfork`, which the event loop's own way to start a process (uvloop's) is not: a copy of this
    process would run gRPC's handlers of forks on both sides, and they break connections.

    Raises:
        OSError: The machine has no room for it.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "coordinator.sandbox.worker", module, str(fd)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=(fd,),
        start_new_session=True,
        env={**os.environ, **_ONE_THREAD},
    )


async def _ended(process: subprocess.Popen[bytes]) -> int:
    """Waits for the end of a process; returns its exit status."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    process_fd = os.pidfd_open(process.pid)
    loop.add_reader(process_fd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(process_fd)
        os.close(process_fd)
    return process.wait()


def _reap_group(process_id: int) -> bool:
    """Reaps what has ended of a process group; False when none of it is a child of this process.

    A process of the group has another parent only while that lives, which is of the group too.
    """
    try:
        while os.waitid(os.P_PGID, process_id, os.WEXITED | os.WNOHANG) is not None:
            pass
    except ChildProcessError:
        return False
    return True


def _is_good(starting: asyncio.Task[SandboxProcess]) -> bool:
    if starting.cancelled() or starting.exception() is not None:
        return False
    return starting.result().is_alive
