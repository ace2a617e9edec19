"""A real HTTP server in this process, and what tests say to it."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from coordinator.http.app import create_app
from coordinator.http.connection import ConnectionLimits
from coordinator.http.door import Door
from coordinator.http.server import HttpServer
from coordinator.service.generation_engine import GenerationEngine


@asynccontextmanager
async def serving_http(
    engine: GenerationEngine | None, limits: ConnectionLimits | None = None
) -> AsyncIterator[str]:
    """A server around the engine, or one that still waits for it; yields HOST:PORT."""
    door = Door()
    server = HttpServer("127.0.0.1:0", create_app(door), limits or ConnectionLimits())
    address = await server.start()
    if engine is not None:
        door.open(engine)
    try:
        yield address
    finally:
        await server.stop()


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
