"""A response of events that says that it is alive while there is nothing to tell.

Nothing is sent at first, so that what fails early has a status of its own. After a while the head
goes out, and then what every client skips, such as a comment: a proxy or a client that waits for
bytes waits on.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus

from starlette.types import Send

from coordinator.doors.http.pieces import joined
from coordinator.doors.http.schema.base import ResponseModel
from stagecoach.contract.errors import InternalError, StagecoachError

_log = logging.getLogger(__name__)

_HEADERS = [
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # or nginx would hold events back
]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamForm:
    """How one API writes the events of a stream."""

    content_type: bytes = b"text/event-stream; charset=utf-8"
    write: Callable[[ResponseModel], bytes]
    """Writes an event."""
    alive: bytes
    """What every client skips."""
    done: bytes = b""
    """What follows the events of an answer that is whole."""


def _data(event: ResponseModel) -> bytes:
    return b"data: %b\n\n" % event.model_dump_json(exclude_unset=True).encode()


OPENAI_STREAM = StreamForm(write=_data, alive=b": waiting\n\n", done=b"data: [DONE]\n\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a client is left without a byte."""

    head_s: float = 5.0
    """Before the head of the response goes out, though there is no token yet."""
    comment_s: float = 10.0
    """Before a comment, or what else is skipped, goes out, once there is a head."""


class EventSender:
    """Sends events; the first one starts the response. For one task and `kept_alive`.

    Args:
        send: ASGI's sender of the request.
        patience: How long the client is left without a byte.
        form: How events are written.
    """

    def __init__(self, send: Send, patience: Patience, form: StreamForm = OPENAI_STREAM) -> None:
        self._send = send
        self._form = form
        self._patience = patience
        self._writing = asyncio.Lock()
        self._last_s = asyncio.get_running_loop().time()
        """When something was sent, on the clock of the event loop; at first, when it was made."""
        self.turn = asyncio.Lock()
        """Held by whoever takes long to make an event, so that they do it one after another."""
        self.is_started = False

    @asynccontextmanager
    async def kept_alive(self) -> AsyncIterator[None]:
        """Sends the head, and what is skipped, while nothing else is sent inside the block."""
        keeping = asyncio.create_task(self._keep_alive())
        try:
            yield
        finally:
            keeping.cancel()
            await asyncio.wait({keeping})

    async def deliver(
        self,
        run: Callable[[], Awaitable[Sequence[ResponseModel]]],
        fail: Callable[[StagecoachError], Awaitable[None]],
        *,
        request_id: str | None,
        is_done: bool = True,
    ) -> None:
        """Sends a whole stream; what fails once it has begun ends it with an event that says so.

        Args:
            run: Sends all events but those at the end, which it returns.
            fail: Sends an error as the last event.
            request_id: By which the log has what a bug was.
            is_done: See `end`.

        Raises:
            StagecoachError: The request was not admitted, or failed before anything was sent.
            Exception: A bug showed before anything was sent.
        """
        try:
            async with self.kept_alive():
                last = await run()
            await self.end(*last, is_done=is_done)
        except StagecoachError as error:
            if not self.is_started:
                raise
            await fail(error)
        except Exception:  # a bug; the log has it, and a stream that has begun has to say so
            if not self.is_started:
                raise
            _log.exception("internal error in request %s", request_id)
            told = f"internal error; the coordinator's log has it as {request_id}"
            await fail(InternalError(told))

    async def send(self, *chunks: ResponseModel) -> None:
        """Sends an event for each chunk, all at once."""
        await self._write(self._written(chunks), more=True)

    async def send_pieces(self, pieces: Iterable[str]) -> None:
        """Sends events that are written already; gives way to others while it makes the pieces.

        Args:
            pieces: Pieces of whole events; not one of them takes long to make.
        """
        async with self._writing:  # nothing may stand inside an event
            async for piece in joined(pieces):
                await self._put(piece, more=True)

    async def end(self, *chunks: ResponseModel, is_done: bool = False) -> None:
        """Sends the last events and ends the response.

        Args:
            *chunks: One event each.
            is_done: Tell the client that this is all there was to come.
        """
        done = self._form.done if is_done else b""
        await self._write(self._written(chunks) + done, more=False)

    def _written(self, chunks: Iterable[ResponseModel]) -> bytes:
        return b"".join(map(self._form.write, chunks))

    async def _keep_alive(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            wait_s = self._patience.comment_s if self.is_started else self._patience.head_s
            silence_s = loop.time() - self._last_s
            if silence_s < wait_s:
                await asyncio.sleep(wait_s - silence_s)
            elif self.is_started:
                await self._write(self._form.alive, more=True)
            else:
                await self._write(b"", more=True)

    async def _write(self, body: bytes, *, more: bool) -> None:
        async with self._writing:  # the head is whole before anything follows it
            await self._put(body, more=more)

    async def _put(self, body: bytes, *, more: bool) -> None:
        self._last_s = asyncio.get_running_loop().time()
        if not self.is_started:
            await self._send(
                {
                    "type": "http.response.start",
                    "status": HTTPStatus.OK,
                    "headers": [(b"content-type", self._form.content_type), *_HEADERS],
                }
            )
            self.is_started = True
        if body or not more:
            await self._send({"type": "http.response.body", "body": body, "more_body": more})
