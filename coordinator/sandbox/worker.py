"""The inside of a sandboxed process: answers calls and forks, one after another.

    python -m coordinator.sandbox.worker MODULE FD

starts a fork server on the socket FD, whose first call goes to `MODULE.prepare`, and every later
one to what that returned. A process that it forks, or that those fork, goes on with that on a
socket of its own. Each ends when its socket is closed; all of them when that of the fork server is.
Standard library only, and one thread, so that a fork copies all there is.
"""

import faulthandler
import gc
import importlib
import os
import resource
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from coordinator.sandbox.frames import (
    CALL_HEADER,
    FORK_BODY,
    FORKED_BODY,
    Frame,
    FrameKind,
    FrameReader,
    encode,
)
from stagecoach.process.orphans import adopt_orphans

Handler = Callable[[bytes], bytes]
"""What a job does with the payload of a call."""

_READ_BYTES = 1 << 18
_STACK_BYTES = 64 << 20
"""Native parsers recurse on what a client nests; the usual 8 MiB are soon gone."""
_FIRST_VICTIM = "800"
"""Score for the kernel when memory is short: rather one of these than the coordinator or a
stage."""


class _Channel:
    """The process's end of its socket; blocking."""

    def __init__(self, channel: socket.socket) -> None:
        self.socket = channel
        self._frames = FrameReader()
        self._fds: deque[int] = deque()

    def receive(self) -> Frame | None:
        """The next frame; None when nobody listens any more."""
        while (frame := self._frames.next()) is None:
            try:
                data, fds, _, _ = socket.recv_fds(self.socket, _READ_BYTES, 1)
            except ConnectionError:
                return None
            if not data:
                return None
            self._frames.push(data)
            self._fds.extend(fds)
        return frame

    def take_fd(self) -> int:
        """The descriptor that came with a frame."""
        return self._fds.popleft()

    def send(self, kind: FrameKind, body: bytes = b"", fds: tuple[int, ...] = ()) -> None:
        """Sends a frame; does nothing when nobody listens any more, which `receive` tells."""
        frame = encode(kind, body)
        with suppress(ConnectionError):
            num_sent = socket.send_fds(self.socket, [frame], fds) if fds else 0
            self.socket.sendall(memoryview(frame)[num_sent:])


def serve(channel: socket.socket, handler: Handler) -> None:
    """Answers calls with `handler`, and forks processes that do, until the socket is closed."""
    ours = _Channel(channel)
    while (frame := ours.receive()) is not None:
        if frame.kind is FrameKind.CALL:
            _answer(ours, handler, frame.body)
        else:
            assert frame.kind is FrameKind.FORK, frame.kind
            own = _fork(ours, *FORK_BODY.unpack(frame.body))
            ours = ours if own is None else _Channel(own)


def _answer(channel: _Channel, handler: Handler, body: bytes) -> None:
    (limit_ms,) = CALL_HEADER.unpack_from(body)
    payload = body[CALL_HEADER.size :]
    # The kernel ends the process, in native code too, should the coordinator not be able to.
    signal.setitimer(signal.ITIMER_REAL, limit_ms / 1000)
    try:
        answer = handler(payload)
    except MemoryError:
        channel.send(FrameKind.NO_MEMORY)
    except Exception as error:  # the job's, told to its owner
        channel.send(FrameKind.FAILED, f"{type(error).__name__}: {error}".encode(errors="replace"))
    else:
        channel.send(FrameKind.DONE, answer)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _fork(channel: _Channel, memory_bytes: int) -> socket.socket | None:
    """Forks.

    Returns:
        In the new process its socket; in this one None.
    """
    own_fd = channel.take_fd()
    has_last_words = faulthandler.is_enabled()
    try:
        faulthandler.disable()  # the new process must not say them on the socket of this one
        # Until its descriptor is taken, the process must not be reaped and its number reused.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        gc.collect()
        gc.freeze()  # a collection must not touch, and so copy, what is shared
        child_id = os.fork()
        if child_id == 0:
            channel.socket.close()
            return _begin_child(own_fd, memory_bytes)
        process_fd = os.pidfd_open(child_id)
    except OSError as error:
        channel.send(FrameKind.NOT_FORKED, str(error).encode())
    else:
        channel.send(FrameKind.FORKED, FORKED_BODY.pack(child_id), (process_fd,))
        os.close(process_fd)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    if has_last_words:
        _say_last_words(channel.socket)
    os.close(own_fd)
    return None


def _begin_child(own_fd: int, memory_bytes: int) -> socket.socket:
    own = socket.socket(fileno=own_fd)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # native code has its own words for what the caller is told anyway
        os.dup2(nowhere, stream)
    os.close(nowhere)
    _say_last_words(own)
    if memory_bytes:
        num_pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit_bytes = num_pages * resource.getpagesize() + memory_bytes
        _set_limit(resource.RLIMIT_AS, limit_bytes)
    return own


def _say_last_words(own: socket.socket) -> None:
    """Lets a crash say what it was, which tells it from being killed."""
    faulthandler.enable(file=own.fileno(), all_threads=False)


def _set_limit(which: int, limit: int) -> None:
    """Sets a soft limit, as far as the hard one lets it."""
    _, most = resource.getrlimit(which)
    capped = limit if most == resource.RLIM_INFINITY else min(limit, most)
    resource.setrlimit(which, (capped, most))


def _reap(*_: object) -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0] != 0:
            pass


def main() -> None:
    """Runs a fork server until its socket is closed, and then ends all that it forked."""
    module, fd = sys.argv[1:]
    assert os.getpgrp() == os.getpid(), "all of its process group are ended with it"
    # A terminal's and a service manager's signals are for the coordinator, which drains.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, _reap)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _set_limit(resource.RLIMIT_STACK, _STACK_BYTES)
    with suppress(OSError):  # where /proc is not to be written to, the kernel chooses as usual
        Path("/proc/self/oom_score_adj").write_text(_FIRST_VICTIM)
    adopt_orphans()
    serve_first(socket.socket(fileno=int(fd)), module)


def serve_first(channel: socket.socket, module: str) -> None:
    """Prepares the job with the first call, and serves."""
    own_id = os.getpid()
    handler: Handler | None = None

    def handle(payload: bytes) -> bytes:
        nonlocal handler
        if handler is None:
            handler = importlib.import_module(module).prepare(payload)
            return b""
        return handler(payload)

    serve(channel, handle)
    if os.getpid() == own_id:
        os.killpg(0, signal.SIGKILL)  # what works for nobody, too


if __name__ == "__main__":
    main()
