"""OpenTelemetry's instrumentation of gRPC, with the Python client of this project."""

import asyncio
import os
from importlib.util import find_spec

from opentelemetry import trace
from opentelemetry.instrumentation.grpc import (
    GrpcAioInstrumentorClient,
    GrpcInstrumentorClient,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from stagecoach import AsyncClient, Client

ADDRESS = os.environ["STAGECOACH_COORDINATOR"]
spans = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(spans))
trace.set_tracer_provider(provider)
GrpcInstrumentorClient().instrument()
GrpcAioInstrumentorClient().instrument()

assert find_spec("torch") is None, "the client is installed by itself"
with Client(ADDRESS) as client:
    done = client.complete("Once upon a time", max_tokens=4)
    streamed = "".join(event.text for event in client.generate("Once upon a time", max_tokens=4))
assert done.text == streamed


async def main() -> None:
    """The same by the client of an event loop."""
    async with AsyncClient(ADDRESS) as other:
        stream = other.generate("Once upon a time", max_tokens=4)
        assert "".join([event.text async for event in stream]) == done.text


asyncio.run(main())
names = [span.name for span in spans.get_finished_spans()]
assert len(names) >= 3, names
