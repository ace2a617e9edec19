"""A body that is made and sent piece by piece, so that no size of it holds up anybody."""

import asyncio
import json
from array import array
from collections.abc import AsyncIterator, Iterator, Sequence
from http import HTTPStatus

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

MAX_WHOLE_IDS = 8192
"""Ids that are written at one go; about a millisecond."""


class PiecewiseResponse(Response):
    """JSON in pieces; with its length when there is only one.

    Args:
        pieces: Not one of them takes long to make; at least one.
    """

    media_type = "application/json"

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        """Makes nothing yet."""
        super().__init__()
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the pieces.

        Raises:
            Exception: What making the first two of them raised; nothing was sent.
        """
        first = await anext(self._pieces)
        second = await anext(self._pieces, None)
        if second is None:
            await Response(first, media_type=self.media_type)(scope, receive, send)
            return
        headers = [(b"content-type", self.media_type.encode())]
        await send({"type": "http.response.start", "status": HTTPStatus.OK, "headers": headers})
        await _send(send, first)
        await _send(send, second)
        async for piece in self._pieces:
            await _send(send, piece)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send(send: Send, piece: bytes) -> None:
    await send({"type": "http.response.body", "body": piece, "more_body": True})
    await asyncio.sleep(0)  # sending waits only for a client that is slow to read


def id_pieces(token_ids: Sequence[int]) -> Iterator[str]:
    """A JSON list of numbers, in pieces."""
    yield "["
    for start in range(0, len(token_ids), MAX_WHOLE_IDS):
        part = token_ids[start : start + MAX_WHOLE_IDS]
        ids = part.tolist() if isinstance(part, array) else list(part)
        yield ("," if start else "") + json.dumps(ids, separators=(",", ":"))[1:-1]
    yield "]"
