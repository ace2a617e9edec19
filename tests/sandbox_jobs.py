"""What sandboxed processes are made to do in tests; a job of `coordinator.sandbox`."""

import ctypes
import hashlib
import os
import re
import signal
import sys
import time
from collections.abc import Callable


def prepare(payload: bytes) -> Callable[[bytes], bytes]:
    """Keeps a count, which starts as the payload says."""
    if payload == b"broken":
        raise ValueError("cannot be prepared")
    count = int(payload)
    held: list[bytearray] = []

    def answer(call: bytes) -> bytes:
        nonlocal count
        name, _, rest = call.decode().partition(" ")
        match name:
            case "add":
                count += int(rest)
            case "pid":
                return str(os.getpid()).encode()
            case "fds":
                return str(len(os.listdir("/proc/self/fd"))).encode()
            case "echo":
                return hashlib.sha256(call).hexdigest().encode() * int(rest.split()[0])
            case "segfault":
                ctypes.string_at(0)
            case "overflow":
                _overflow_the_stack()
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "native":  # holds the GIL, in native code, for ages
                re.match("(a*)*b", "a" * 60)
            case "nap":
                time.sleep(0.5)
            case "eat":
                held.append(bytearray(int(rest)))
            case "abort":
                os.abort()
            case "raise":
                raise ValueError(rest)
            case "print":
                print("words", file=sys.stderr, flush=True)
        return str(count).encode()

    return answer


def _overflow_the_stack() -> None:
    """Recurses in native code, which knows no limit of Python's: a level for each parenthesis."""
    compiled = ctypes.create_string_buffer(4096)
    ctypes.CDLL(None).regcomp(compiled, b"(" * 10_000_000, 1)
