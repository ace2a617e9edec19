"""Runs a module as `python -m` does, and tells whoever asks how many asyncio tasks it has.

    python -m tests.faults.observed SOCKET MODULE ARGUMENTS...

The module is not changed in any way: a thread of its own answers each connection to the Unix socket
with one JSON object and closes it. A connection that sends `collect` has garbage collected first.
"""

import asyncio
import gc
import json
import runpy
import socket
import sys
import threading
import time

COLLECT = b"collect"
COUNT = b"count"
RETRY_S = 0.05


def _num_tasks() -> int:
    """Tasks of all event loops that have not ended."""
    gc.unfreeze()  # what was frozen when a start ended is not among the objects
    # By the type: asking the objects would wake the lazy ones among them.
    tasks = [item for item in gc.get_objects() if issubclass(type(item), asyncio.Task)]
    return sum(not task.done() for task in tasks)


def _answer(listener: socket.socket) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:  # no descriptor is left; the row that took them gives them back
            time.sleep(RETRY_S)
            continue
        with connection:
            if connection.recv(16) == COLLECT:
                gc.collect()
            connection.sendall(json.dumps({"num_tasks": _num_tasks()}).encode())


def main() -> None:
    """Starts the observer, then becomes the module."""
    path, module, *arguments = sys.argv[1:]
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    threading.Thread(target=_answer, args=(listener,), name="observer", daemon=True).start()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
