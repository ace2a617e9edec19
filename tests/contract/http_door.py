"""A real HTTP server in this process, and what tests say to it."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any, NamedTuple

import httpx2

from coordinator.core.catalog import Catalog
from coordinator.doors.access.caller_shares import CallerShares
from coordinator.doors.access.callers import Callers
from coordinator.doors.http.app import AppOptions, create_app
from coordinator.doors.http.connection import ConnectionLimits
from coordinator.doors.http.door import Door
from coordinator.doors.http.server import HttpServer
from stagecoach.contract.address import Address
from stagecoach.security.tls_files import TlsFiles
from tests.contract.catalogs import ServedEngine, open_catalog

DEADLINE_S = 20.0


@asynccontextmanager
async def serving_http(
    *engines: ServedEngine,
    limits: ConnectionLimits | None = None,
    tls: TlsFiles | None = None,
    callers: Callers | None = None,
    shares: CallerShares | None = None,
    **options: Any,
) -> AsyncIterator[str]:
    """A server around the engines, or one that still waits for them; yields HOST:PORT.

    Args:
        *engines: What generates. None given: nothing yet.
        limits: Of each connection.
        tls: For HTTPS.
        callers: Who has a key.
        shares: Of whoever has a key.
        **options: Further fields of `AppOptions`.
    """
    catalog = Catalog()
    door = Door(catalog)
    app = create_app(door, AppOptions(callers=callers, **options))
    server = HttpServer(Address("127.0.0.1", 0), app, limits or ConnectionLimits(), tls=tls)
    address = await server.start()
    if engines:
        open_catalog(catalog, engines, shares)
    try:
        yield address
    finally:
        await server.stop()
        await door.close()


@asynccontextmanager
async def http_client(*engines: ServedEngine, **options: Any) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of a server around the engines; `options` are those of `serving_http`."""
    async with (
        serving_http(*engines, **options) as address,
        httpx2.AsyncClient(
            base_url=f"http://{address}", timeout=DEADLINE_S, trust_env=False
        ) as client,
    ):
        yield client


class Event(NamedTuple):
    """One server-sent event."""

    data: str

    @property
    def chunk(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.data)
        return content


def events_of(body: str) -> list[Event]:
    """The events of a whole stream, which must be well formed."""
    assert body.endswith("\n\n")
    events = []
    for block in body.removesuffix("\n\n").split("\n\n"):
        assert block.startswith("data: "), block
        assert "\n" not in block
        events.append(Event(block.removeprefix("data: ")))
    return events


@contextmanager
def in_background(serving: AbstractAsyncContextManager[str]) -> Iterator[str]:
    """Runs a server in a thread and event loop of its own, for clients that block.

    Args:
        serving: Yields an address; entered and left in that thread.
    """
    address: Future[str] = Future()
    stop = asyncio.Event()

    async def run() -> None:
        loop.set_result(asyncio.get_running_loop())
        try:
            async with serving as found:
                address.set_result(found)
                await stop.wait()
        except BaseException as error:
            if address.done():
                raise
            address.set_exception(error)

    loop: Future[asyncio.AbstractEventLoop] = Future()
    with ThreadPoolExecutor(max_workers=1) as pool:
        running = pool.submit(asyncio.run, run())
        try:
            yield address.result()
        finally:
            loop.result().call_soon_threadsafe(stop.set)
            running.result()


def send_then_read(address: str, pieces: Iterable[bytes]) -> bytes:
    """Sends all pieces and only then reads, until the server ends the connection; blocks."""
    host, _, port = address.partition(":")
    with socket.create_connection((host, int(port)), timeout=DEADLINE_S) as connection:
        for piece in pieces:
            connection.sendall(piece)
        received = b""
        while piece := connection.recv(2**16):
            received += piece
        return received
