"""A client that sends bytes to the HTTP door, whatever they are, and reads what comes of them."""

import asyncio
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress

from tests.faults.malformed_http import HostileRequest, hostile_request

END_S = 30.0
"""Bound for an answer and the end of its connection."""
PATIENCE_S = 0.2
"""Until a client gives up sending more of a request that may never have been whole."""
NUM_CLIENTS = 16

_STATUS_LINE = re.compile(rb"HTTP/1\.1 (\d{3}) ")


async def answer(address: str, request: HostileRequest) -> bytes:
    """Sends a request on a connection of its own; returns all that came until its end.

    Args:
        address: HOST:PORT.
        request: What is sent; unless it is whole, the client ends its half once an answer begins,
            or none does.

    Raises:
        TimeoutError: The connection goes on.
    """
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    pieces: list[bytes] = []
    try:
        async with asyncio.timeout(END_S):
            writer.write(request.data)
            if not request.is_whole:
                await _first_piece(reader, pieces)
                with suppress(OSError):  # it has reset the connection
                    writer.write_eof()
            while piece := await reader.read(2**16):
                pieces.append(piece)
    except ConnectionError:  # an end too: what it did not read of ours, it answers with a reset
        pass
    finally:
        writer.transport.abort()
    return b"".join(pieces)


async def _first_piece(reader: asyncio.StreamReader, pieces: list[bytes]) -> None:
    try:
        async with asyncio.timeout(PATIENCE_S):
            pieces.append(await reader.read(2**16))
    except TimeoutError:
        return


def statuses(data: bytes) -> list[int]:
    """Of all responses on one connection."""
    return [int(status) for status in _STATUS_LINE.findall(data)]


async def send_hostile(address: str, seeds: Iterable[int], *secrets: str) -> Counter[int]:
    """Sends a hostile request for each seed, several at a time, and checks what comes.

    Args:
        address: HOST:PORT.
        seeds: One a request.
        *secrets: What no answer may show.

    Returns:
        How often each status came; 0 counts connections that ended without an answer.
    """
    counts: Counter[int] = Counter()
    shown = (*(secret.encode() for secret in secrets), b"Traceback", b"internal_error")

    async def run(seeds: Iterator[int]) -> None:
        for seed in seeds:
            request = hostile_request(seed)
            try:
                data = await answer(address, request)
            except TimeoutError:
                raise AssertionError(f"seed {seed} hangs: {request.data[:300]!r}") from None
            got = statuses(data)
            counts.update(got or [0])
            assert got or not request.is_whole, f"seed {seed} has no answer: {request.data[:300]!r}"
            assert all(status < 500 or status == 503 for status in got), f"seed {seed}: {data!r}"
            assert not any(word in data for word in shown), f"seed {seed}: {data!r}"

    left = iter(seeds)
    async with asyncio.TaskGroup() as group:
        for _ in range(NUM_CLIENTS):
            group.create_task(run(left))
    return counts
