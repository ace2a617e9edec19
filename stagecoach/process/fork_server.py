"""A process that has imported what others need, and is forked for each of them.

    python -m stagecoach.process.fork_server MODULE:FUNCTION FD

calls a function, which imports, and then starts a process for each request on the socket FD, until
nobody holds the other end. Importing torch takes a second or more; a fork takes milliseconds, and
what was imported is in memory once. Each process runs a module as `python -m MODULE ARGUMENTS`
does, in a process group of its own.

What is imported must start no thread, as a fork copies the one that forks and no other, and must
open no connection to a device. Whoever asks is the parent of what it asked for: it has to have
called `adopt_orphans`. So it learns how each process ended, also when the fork server is gone.
"""

import errno
import importlib
import json
import os
import runpy
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from stagecoach.contract.unexpected import in_words

_MAX_REQUEST_BYTES = 1 << 17
_NUM_STREAMS = 3
_MAX_NAME = 15
"""Longest name of a process that the kernel keeps, in bytes."""
_REPLY = struct.Struct("<i")

ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1"}
"""A fork server has it besides that of its owner: numpy starts threads when it is imported."""


Handler = Callable[[int, FrameType | None], object] | int | None
"""What a signal does in Python."""


class Command(NamedTuple):
    """What a process runs."""

    module: str
    arguments: Sequence[str]


def request(channel: socket.socket, command: Command, streams: tuple[int, int, int]) -> None:
    """Asks for a process; `take_reply` tells which it is.

    Args:
        channel: Our end of the fork server's socket, of packets.
        command: What it runs.
        streams: Descriptors for its standard input, output and error; the caller closes its own.

    Raises:
        OSError: The fork server is gone, or the command is too long for a packet.
    """
    socket.send_fds(channel, [json.dumps(command).encode()], streams)


def take_reply(packet: bytes) -> int:
    """Returns the id of the process that a packet on the socket tells of.

    Raises:
        OSError: There is no process: the machine has no room for it, or the fork server is gone.
    """
    if not packet:
        raise ConnectionResetError("the fork server is gone")
    (process_id,) = _REPLY.unpack(packet)
    if process_id < 0:
        raise OSError(-process_id, os.strerror(-process_id))
    return int(process_id)


def _serve(channel: socket.socket, inherited: Mapping[signal.Signals, Handler]) -> Command | None:
    """Forks for each request.

    Args:
        channel: Where requests come.
        inherited: What signals meant before this process ignored them.

    Returns:
        In a new process what it has to run; in this one None, when nobody asks any more.
    """
    while True:
        data, streams, _, _ = socket.recv_fds(channel, _MAX_REQUEST_BYTES, _NUM_STREAMS)
        if not data:
            return None
        process_id = _id_or_failure(_fork_orphan)
        if process_id == 0:
            channel.close()
            os.setpgid(0, 0)
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
                os.close(stream)
            for number, handler in inherited.items():
                signal.signal(number, handler)
            return Command(*json.loads(data))
        for stream in streams:
            os.close(stream)
        channel.send(_REPLY.pack(process_id))


def _id_or_failure(fork: Callable[[], int]) -> int:
    """Returns what `fork` returns, or the negative number of the error that it raises."""
    try:
        return fork()
    except OSError as error:
        return -(error.errno or errno.EAGAIN)


def _fork_orphan() -> int:
    """Forks a process whose parent has ended, so that it has the next above it that adopts.

    Returns:
        In the new process 0, once it has its last parent; in this one its id.

    Raises:
        OSError: The machine has no room for it.
    """
    told, tell = os.pipe()
    parent_id = os.fork()
    if parent_id == 0:
        os.close(told)
        own_id = os.getpid()
        process_id = _id_or_failure(os.fork)
        if process_id != 0:
            os.write(tell, _REPLY.pack(process_id))
            os._exit(0)
        os.close(tell)
        _await_end(own_id)
        return 0
    os.close(tell)
    with open(told, "rb") as reader:
        reply = reader.read()
    os.waitpid(parent_id, 0)  # from now on the new process has its last parent
    return take_reply(reply)


def _await_end(process_id: int) -> None:
    """Waits until a process has ended."""
    with suppress(ProcessLookupError):  # it was reaped
        process_fd = os.pidfd_open(process_id)
        select.select([process_fd], [], [])
        os.close(process_fd)


def main() -> None:
    """Runs a fork server until nobody holds the other end of its socket, or a process of it."""
    prepare, fd = sys.argv[1:]
    # A terminal's and a service manager's signals are for its owner, which stops what it asked for.
    inherited = {
        number: signal.signal(number, signal.SIG_IGN)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    module, function = prepare.split(":")
    try:
        getattr(importlib.import_module(module), function)()
    except ImportError as error:  # what is served is not installed, or damaged
        sys.exit(in_words(error))
    num_threads = len(list(Path("/proc/self/task").iterdir()))
    assert num_threads == 1, f"{num_threads - 1} threads began, which no fork would have"
    command = _serve(socket.socket(fileno=int(fd)), inherited)
    if command is not None:
        Path("/proc/self/comm").write_text(command.module[:_MAX_NAME])
        sys.argv = [command.module, *command.arguments]
        runpy.run_module(command.module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
