"""The SDK in a program whose gRPC calls OpenTelemetry's own instrumentation wraps."""

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.instrumentation.grpc import GrpcAioInstrumentorClient, GrpcInstrumentorClient
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from stagecoach.client import (
    AsyncClient,
    Client,
    InvalidArgumentError,
    RequestAbortedError,
    UnavailableError,
)
from tests.contract.echo_engine import EchoEngine
from tests.contract.test_generation_client import (
    DEADLINE_S,
    UNUSED_ADDRESS,
    BackgroundServer,
    check_completion,
    until,
    until_async,
)

GENERATE = "/stagecoach.v1.GenerationService/Generate"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """Every span of a call that has ended."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    # The synchronous instrumentation takes the program's provider, which can be set only once.
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    instrumentors = (GrpcInstrumentorClient(), GrpcAioInstrumentorClient())
    for instrumentor in instrumentors:
        instrumentor.instrument(tracer_provider=provider)
    try:
        yield exporter
    finally:
        for instrumentor in instrumentors:
            instrumentor.uninstrument()
        provider.shutdown()


@pytest.fixture
def engine() -> EchoEngine:
    return EchoEngine()


@pytest.fixture
def client(engine: EchoEngine, spans: InMemorySpanExporter) -> Iterator[Client]:
    assert spans is not None
    with BackgroundServer(engine) as server, Client(server.address) as client:
        yield client


def names(spans: InMemorySpanExporter) -> list[str]:
    return [span.name for span in spans.get_finished_spans()]


def test_every_call_works_and_is_traced(client: Client, spans: InMemorySpanExporter) -> None:
    check_completion(client.complete("abé", max_tokens=5, request_id="mine"))
    with client.generate("abé", max_tokens=5, request_id="mine") as stream:
        assert len(list(stream)) == 5
        check_completion(stream.result())
    assert client.tokenize("ab")
    assert client.status().ready
    client.wait_until_ready(1)
    with pytest.raises(InvalidArgumentError, match="temperature") as caught:
        client.complete("a", temperature=-1.0)
    assert caught.value.field == "temperature"
    assert names(spans).count(GENERATE) == 3


async def test_every_call_of_the_async_client_works_and_is_traced(
    engine: EchoEngine, spans: InMemorySpanExporter
) -> None:
    with BackgroundServer(engine) as server:
        async with AsyncClient(server.address) as client:
            check_completion(await client.complete("abé", max_tokens=5, request_id="mine"))
            async with client.generate("abé", max_tokens=5, request_id="mine") as stream:
                assert len([event async for event in stream]) == 5
                check_completion(await stream.result())
            assert await client.tokenize("ab")
            assert (await client.status()).ready
            await client.wait_until_ready(1)
            with pytest.raises(InvalidArgumentError, match="temperature") as caught:
                await client.complete("a", temperature=-1.0)
            assert caught.value.field == "temperature"
    assert names(spans).count(GENERATE) == 3


@pytest.mark.parametrize("how", ["closed", "closed unread", "left", "closed by another thread"])
def test_a_stream_that_is_left_ends_its_request(
    client: Client, engine: EchoEngine, spans: InMemorySpanExporter, how: str
) -> None:
    engine.delay_s = 0.002
    stream = client.generate("a" * 1000, ignore_eos=True)
    if how == "left":
        for _event in stream:
            break
        del stream
    elif how == "closed by another thread":
        thread = threading.Timer(0.05, stream.close)
        thread.start()
        with pytest.raises(RequestAbortedError):
            for _event in stream:
                pass
        thread.join(DEADLINE_S)
    else:
        if how == "closed":
            next(stream)
        stream.close()
        stream.close()
        with pytest.raises(RequestAbortedError):
            next(stream)
    until(lambda: not engine.running)
    assert names(spans) in ([GENERATE], [])


async def test_an_async_stream_that_is_left_ends_its_request(
    engine: EchoEngine, spans: InMemorySpanExporter
) -> None:
    assert spans is not None
    engine.delay_s = 0.002
    with BackgroundServer(engine) as server:
        async with AsyncClient(server.address) as client:
            for num_read in (0, 1, 5):
                async with client.generate("a" * 1000, ignore_eos=True) as stream:
                    for _ in range(num_read):
                        await anext(stream)
                with pytest.raises(RequestAbortedError):
                    await anext(stream)
                await until_async(lambda: not engine.running)
            async for _event in client.generate("a" * 1000, ignore_eos=True):
                break
            await until_async(lambda: not engine.running)


def test_watching_steps_works(client: Client) -> None:
    with client.watch_steps() as watch:
        assert watch.origin_unix_ns > 0


async def test_watching_steps_works_for_asyncio(
    engine: EchoEngine, spans: InMemorySpanExporter
) -> None:
    assert spans is not None
    with BackgroundServer(engine) as server:
        async with (
            AsyncClient(server.address) as client,
            await client.watch_steps() as watch,
        ):
            assert watch.origin_unix_ns > 0


def test_a_coordinator_that_is_not_there_is_unavailable(spans: InMemorySpanExporter) -> None:
    assert spans is not None
    with Client(UNUSED_ADDRESS) as client, pytest.raises(UnavailableError):
        client.complete("a", timeout_s=5)


INSTRUMENTED_CLI = """
from opentelemetry.instrumentation.grpc import GrpcAioInstrumentorClient, GrpcInstrumentorClient
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import set_tracer_provider

set_tracer_provider(TracerProvider())
GrpcInstrumentorClient().instrument()
GrpcAioInstrumentorClient().instrument()
from coordinator.cli.__main__ import main

main()
"""


@pytest.mark.parametrize("program", [("-m", "coordinator.cli"), ("-c", INSTRUMENTED_CLI)])
@pytest.mark.parametrize(
    ("arguments", "told"),
    [(("generate", "abé", "--max-tokens", "5"), "abéa\n"), (("status",), "echo")],
)
def test_a_command_prints_nothing_on_its_way_out(
    engine: EchoEngine, program: tuple[str, ...], arguments: tuple[str, ...], told: str
) -> None:
    with BackgroundServer(engine) as server:
        done = subprocess.run(
            [sys.executable, *program, *arguments, "--coordinator", server.address],
            capture_output=True,
            text=True,
            check=True,
            timeout=DEADLINE_S,
        )
    assert done.stderr == ""
    assert done.stdout.startswith(told)
