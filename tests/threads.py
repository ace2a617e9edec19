"""An event loop of its own thread, so that synchronous code may talk to a server on it."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import TypeVar

T = TypeVar("T")

DEADLINE_S = 120.0


@contextmanager
def in_a_thread(block: AbstractAsyncContextManager[T]) -> Iterator[T]:
    """Enters an asynchronous block on a loop of another thread, for the time of this block."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        value = asyncio.run_coroutine_threadsafe(block.__aenter__(), loop).result(DEADLINE_S)
        try:
            yield value
        finally:
            ending = block.__aexit__(None, None, None)
            asyncio.run_coroutine_threadsafe(ending, loop).result(DEADLINE_S)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(DEADLINE_S)
        loop.close()
