"""A response of server-sent events that says that it is alive while there is nothing to tell.

Nothing is sent at first, so that what fails early has a status of its own. After a while the head
goes out, and then comments, which every client skips: a proxy or a client that waits for bytes
waits on.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus

from starlette.types import Send

from coordinator.doors.http.schema.base import ResponseModel

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # or nginx would hold events back
]
_COMMENT = b": waiting\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a client is left without a byte."""

    head_s: float = 5.0
    """Before the head of the response goes out, though there is no token yet."""
    comment_s: float = 10.0
    """Before a comment goes out, once there is a head."""


class EventSender:
    """Sends server-sent events; the first one starts the response. For one task and `kept_alive`.

    Args:
        send: ASGI's sender of the request.
        patience: How long the client is left without a byte.
    """

    def __init__(self, send: Send, patience: Patience) -> None:
        self._send = send
        self._patience = patience
        self._writing = asyncio.Lock()
        self._last_s = asyncio.get_running_loop().time()
        """When something was sent, on the clock of the event loop; at first, when it was made."""
        self.turn = asyncio.Lock()
        """Held by whoever takes long to make an event, so that they do it one after another."""
        self.is_started = False

    @asynccontextmanager
    async def kept_alive(self) -> AsyncIterator[None]:
        """Sends the head, and comments, while nothing else is sent inside the block."""
        keeping = asyncio.create_task(self._keep_alive())
        try:
            yield
        finally:
            keeping.cancel()
            await asyncio.wait({keeping})

    async def send(self, *chunks: ResponseModel) -> None:
        """Sends an event for each chunk, all at once."""
        await self._write(_events(chunks), more=True)

    async def end(self, *chunks: ResponseModel, is_done: bool = False) -> None:
        """Sends the last events and ends the response.

        Args:
            *chunks: One event each.
            is_done: Tell the client that this is all there was to come.
        """
        done = b"data: [DONE]\n\n" if is_done else b""
        await self._write(_events(chunks) + done, more=False)

    async def _keep_alive(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            wait_s = self._patience.comment_s if self.is_started else self._patience.head_s
            silence_s = loop.time() - self._last_s
            if silence_s < wait_s:
                await asyncio.sleep(wait_s - silence_s)
            elif self.is_started:
                await self._write(_COMMENT, more=True)
            else:
                await self._write(b"", more=True)

    async def _write(self, body: bytes, *, more: bool) -> None:
        async with self._writing:  # the head is whole before anything follows it
            self._last_s = asyncio.get_running_loop().time()
            if not self.is_started:
                await self._send(
                    {
                        "type": "http.response.start",
                        "status": HTTPStatus.OK,
                        "headers": _HEADERS,
                    }
                )
                self.is_started = True
            if body or not more:
                await self._send({"type": "http.response.body", "body": body, "more_body": more})


def _events(chunks: Iterable[ResponseModel]) -> bytes:
    return b"".join(
        b"data: %b\n\n" % chunk.model_dump_json(exclude_unset=True).encode() for chunk in chunks
    )
