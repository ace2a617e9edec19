"""Either of the two gRPC servers, for what holds of both."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from tests.contract.echo_engine import EchoEngine, serving
from tests.contract.stage_builders import running_stage

Server = Callable[[], AbstractAsyncContextManager[str]]
"""Starts one and yields its address."""


@asynccontextmanager
async def a_stage() -> AsyncIterator[str]:
    """A stage server."""
    async with running_stage() as stage:
        yield stage.address


@asynccontextmanager
async def a_coordinator() -> AsyncIterator[str]:
    """A coordinator's, with room for whatever a test asks of it."""
    async with serving(EchoEngine(max_running=10_000)) as address:
        yield address
