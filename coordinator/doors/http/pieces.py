"""A body that is made and sent piece by piece, so that no size of it holds up anybody."""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from http import HTTPStatus
from itertools import islice
from typing import TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from coordinator.core.turn import Turn

_PIECE_CHARS = 32 * 1024
"""What is sent at one go."""

Item = TypeVar("Item")


class PiecewiseResponse(Response):
    """JSON in pieces; with its length when there is only one.

    Args:
        pieces: Pieces of the text; not one of them takes long to make.
    """

    media_type = "application/json"

    def __init__(self, pieces: Iterable[str]) -> None:
        super().__init__()
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the pieces.

        Raises:
            Exception: What making the first of them raised; nothing was sent.
        """
        pieces = joined(self._pieces)
        first = await anext(pieces)
        second = await anext(pieces, None)
        if second is None:
            await Response(first, media_type=self.media_type)(scope, receive, send)
            return
        headers = [(b"content-type", self.media_type.encode())]
        await send({"type": "http.response.start", "status": HTTPStatus.OK, "headers": headers})
        await _send(send, first)
        await _send(send, second)
        async for piece in pieces:
            await _send(send, piece)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def listed(
    items: Iterable[Item], write: Callable[[Sequence[Item]], Sequence[object]], *, num_items: int
) -> Iterator[str]:
    """The inside of a JSON list, in pieces.

    Args:
        items: What it is made of.
        write: Makes what JSON can write of some items.
        num_items: How many of them take little time.
    """
    rest, separator = iter(items), ""
    while part := list(islice(rest, num_items)):
        written = json.dumps(write(part), ensure_ascii=False, separators=(",", ":"))
        yield separator + written[1:-1]
        separator = ","


def spliced(text: str, lists: Iterable[tuple[str, Iterable[str]]]) -> Iterator[str]:
    """A JSON text with lists put in where it has empty ones.

    Args:
        text: Written without spaces.
        lists: The names of empty lists, in the order in which they stand, and the inside of each.
    """
    for name, inside in lists:
        # In a string the quotes would have backslashes before them.
        head, found, text = text.partition(f'"{name}":[]')
        assert found, f"no empty list is named {name}"
        yield f'{head}"{name}":['
        yield from inside
        yield "]"
    yield text


def chain_listed(items: Iterable[Iterable[str]]) -> Iterator[str]:
    """The inside of a JSON list, of items that come in pieces themselves."""
    for index, item in enumerate(items):
        if index:
            yield ","
        yield from item


def number(value: float) -> float | None:
    """A number as JSON can write it; infinity becomes null."""
    return value if math.isfinite(value) else None


async def joined(pieces: Iterable[str]) -> AsyncIterator[bytes]:
    """Pieces of a size that is worth sending; gives way to others while it makes them."""
    turn = Turn()
    parts: list[str] = []
    num_chars = 0
    for piece in pieces:
        parts.append(piece)
        num_chars += len(piece)
        if num_chars >= _PIECE_CHARS:
            yield "".join(parts).encode()
            parts, num_chars = [], 0
        await turn.give_way()
    if parts:
        yield "".join(parts).encode()


async def _send(send: Send, piece: bytes) -> None:
    await send({"type": "http.response.body", "body": piece, "more_body": True})
    await asyncio.sleep(0)  # sending waits only for a client that is slow to read
