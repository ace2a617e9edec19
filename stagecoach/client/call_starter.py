"""Starts streams where Ctrl-C cannot leave them half started."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from stagecoach.contract.errors import RequestAbortedError

Call = TypeVar("Call")


class CallStarter:
    """Starts the streams of one client; any number of threads may share it.

    Ctrl-C raises KeyboardInterrupt anywhere in the main thread, also in the middle of a start. gRPC
    then knows of a call that nobody takes events of, and closing its channel waits for that call
    without end. So what the main thread starts is started by a thread of its own, which Ctrl-C does
    not reach; a stream that nobody waits for any more ends with its channel.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="stagecoach-starts")

    def start(self, start: Callable[[], Call]) -> Call:
        """Returns what `start` returns, which must not take long, or raises what it raises.

        Raises:
            RequestAbortedError: This was closed.
        """
        if threading.current_thread() is not threading.main_thread():
            return start()
        try:
            started = self._thread.submit(start)
        except RuntimeError as error:
            raise RequestAbortedError("the client is closed") from error
        return started.result()

    def close(self) -> None:
        """Ends the thread, if there is one; nothing can be started any more."""
        self._thread.shutdown()
