"""One sandboxed process, as the coordinator sees it."""

import asyncio
import os
import signal
import socket
from collections import deque
from contextlib import suppress
from typing import NamedTuple, Self

from coordinator.sandbox.channel import Channel
from coordinator.sandbox.errors import (
    CallTimeoutError,
    JobError,
    MemoryLimitError,
    ProcessDiedError,
    ProcessKilledError,
    SandboxError,
)
from coordinator.sandbox.frames import CALL_HEADER, FORK_BODY, FORKED_BODY, Frame, FrameKind, encode

_FORK_TIMEOUT_S = 30.0
"""Time limit of a fork by a process that has nothing else to do; a bound for a starved machine."""
_GRACE_S = 1.0
"""After its time the process is killed from here; this much later by the kernel."""
_MAX_LAST_WORDS = 200


class SandboxProcess:
    """Answers one call after another; ends at the first that it does not answer in time.

    Made by `ForkServer.fork` and `fork`; the owner closes it. Event loop only.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._channel = Channel(sock, self._take, self._hear_end)
        self._answers: deque[_Asked] = deque()
        self._end: SandboxError | None = None
        self._process_fd: int | None = None
        self.process_id: int | None = None
        """Process id of the fork; None for a fork server's own, which is not forked."""

    @property
    def is_alive(self) -> bool:
        """True until it ended, or was closed."""
        return self._end is None

    def submit(self, payload: bytes, *, timeout_s: float | None) -> asyncio.Future[bytes]:
        """Sends a call at once.

        Args:
            payload: Bytes that the job is given.
            timeout_s: How long it may take, all calls before it included; None for no limit.

        Returns:
            What the job answers, or a `SandboxError`. Cancelling it does not end the call.
        """
        limit_ms = 0 if timeout_s is None else max(1, round((timeout_s + _GRACE_S) * 1000))
        frame = encode(FrameKind.CALL, CALL_HEADER.pack(limit_ms), payload)
        return self._ask(frame, None, timeout_s)

    async def call(self, payload: bytes, *, timeout_s: float | None) -> bytes:
        """Sends a call and waits for its answer; to give up the wait is to kill the process.

        Raises:
            ProcessDiedError: It crashed.
            ProcessKilledError: It was killed or closed before it answered.
            CallTimeoutError: It took too long.
            MemoryLimitError: It wanted too much memory.
            JobError: The job has a bug.
        """
        try:
            return await self.submit(payload, timeout_s=timeout_s)
        except asyncio.CancelledError:
            self.close()
            raise

    async def fork(self, *, memory_bytes: int | None = None) -> Self:
        """Starts a process that goes on from the state of this one.

        Args:
            memory_bytes: What it may take beyond what this one holds; None for no limit.

        Raises:
            ProcessKilledError: This one has ended.
            ProcessDiedError: The machine has no room for another.
        """
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise ProcessDiedError(f"no process could be started: {error}") from error
        child = type(self)(ours)
        frame = encode(FrameKind.FORK, FORK_BODY.pack(memory_bytes or 0))
        answer = self._ask(frame, theirs.detach(), _FORK_TIMEOUT_S, child)
        try:
            await answer
        except BaseException as error:
            child.close()
            if isinstance(error, SandboxError) and not self.is_alive:
                raise ProcessKilledError(f"no process could be forked: {error}") from error
            raise
        return child

    def pause(self) -> None:
        """Stops the process where it is; its calls' time goes on."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Lets a process that was stopped go on."""
        self._signal(signal.SIGCONT)

    def yield_cpu(self) -> None:
        """Lets the process and those forked from now on run only when others leave the CPU."""
        if self.process_id is not None:
            with suppress(ProcessLookupError):
                os.setpriority(os.PRIO_PROCESS, self.process_id, 19)

    def close(self) -> None:
        """Kills the process, whatever it does. May be called again."""
        self._finish(ProcessKilledError("the process was closed"))

    def _ask(
        self,
        frame: bytes,
        fd: int | None,
        timeout_s: float | None,
        child: "SandboxProcess | None" = None,
    ) -> asyncio.Future[bytes]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bytes] = loop.create_future()
        if self._end is None:
            timer = None
            if timeout_s is not None:
                timer = loop.call_later(timeout_s, self._time_out, timeout_s)
            self._answers.append(_Asked(answer, timer, child))
        else:
            answer.set_exception(self._end)
        self._channel.send(frame, fd)
        return answer

    def _take(self, frame: Frame, fd: int | None) -> None:
        answer, timer, child = self._answers.popleft()
        if timer is not None:
            timer.cancel()
        match frame.kind:
            case FrameKind.DONE:
                _resolve(answer, frame.body)
            case FrameKind.FORKED:
                assert child is not None, "a process that nobody wanted"
                assert fd is not None, "a process without its descriptor"
                child._adopt(fd, *FORKED_BODY.unpack(frame.body))
                _resolve(answer, b"")
            case FrameKind.NOT_FORKED:
                _fail(answer, ProcessDiedError(f"no process could be started: {_text(frame.body)}"))
            case FrameKind.NO_MEMORY:
                _fail(answer, MemoryLimitError("the process may take no more memory"))
            case _:
                _fail(answer, JobError(_text(frame.body)))

    def _adopt(self, process_fd: int, process_id: int) -> None:
        """Takes what the process can be signalled by."""
        self._process_fd = process_fd
        self.process_id = process_id
        if self._end is not None:  # closed before it was there
            self._kill()

    def _time_out(self, timeout_s: float) -> None:
        self._finish(CallTimeoutError(f"the call took longer than {timeout_s:g} s"))

    def _hear_end(self, last_words: bytes) -> None:
        words = _text(last_words)
        # The only way in which native code tells that it found no memory.
        if "Aborted" in words or "MemoryError" in words:
            self._finish(MemoryLimitError("the process was denied memory, and gave up"))
        elif words:
            self._finish(ProcessDiedError(f"the process crashed: {words}"))
        elif self._is_late():  # its own timer ended it, while nobody here could
            self._finish(CallTimeoutError("the call took longer than it may"))
        else:
            self._finish(ProcessKilledError("the process was killed"))

    def _is_late(self) -> bool:
        """True when the call that it is at should have been answered."""
        timer = self._answers[0].timer if self._answers else None
        return timer is not None and timer.when() <= asyncio.get_running_loop().time()

    def _finish(self, end: SandboxError) -> None:
        if self._end is not None:
            return
        self._end = end
        self._channel.close()
        self._kill()
        for answer, timer, _ in self._answers:
            if timer is not None:
                timer.cancel()
            _fail(answer, end)
        self._answers.clear()

    def _kill(self) -> None:
        self._signal(signal.SIGKILL)
        if self._process_fd is not None:
            process_fd, self._process_fd = self._process_fd, None
            os.close(process_fd)

    def _signal(self, number: signal.Signals) -> None:
        if self._process_fd is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._process_fd, number)


class _Asked(NamedTuple):
    """What is not answered yet."""

    answer: asyncio.Future[bytes]
    timer: asyncio.TimerHandle | None
    child: SandboxProcess | None
    """The process that a fork becomes; None where the job is no fork."""


def _resolve(answer: asyncio.Future[bytes], result: bytes) -> None:
    if not answer.done():
        answer.set_result(result)


def _fail(answer: asyncio.Future[bytes], error: SandboxError) -> None:
    if not answer.done():
        answer.set_exception(error)


def _text(body: bytes) -> str:
    return " ".join(body[:_MAX_LAST_WORDS].decode(errors="replace").split())
