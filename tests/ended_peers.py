"""Writing to what the other side may have ended meanwhile: its end is for the reader to judge."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import grpc


@contextmanager
def may_have_ended() -> Iterator[None]:
    """A block that writes; it is left without a word if the call or connection is over.

    How it ended, if that matters, is asked of it afterwards.
    """
    with suppress(grpc.RpcError, asyncio.InvalidStateError, ConnectionError):
        yield
