"""Traces of real requests, received by a real OTLP collector over gRPC."""

import asyncio
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from coordinator.assembly import open_engine
from coordinator.config import ClusterConfig, parse_stages
from coordinator.core.events import TokensEvent
from coordinator.core.request_spec import RequestSpec, TokenPrompt
from coordinator.observe.tracing.export import exported_traces, traces_are_wanted
from stagecoach.contract.errors import InvalidArgumentError, UnavailableError
from stagecoach.contract.layer_range import LayerRange
from stagecoach.model_files import open_model
from tests.clusters import generate, running_stage, status_when
from tests.tiny_models import tiny_model

OTEL_VARIABLES = (
    *("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
    *("OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"),
    *("OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER", "OTEL_SERVICE_NAME"),
    "OTEL_RESOURCE_ATTRIBUTES",
)


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.services: set[str] = set()

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        for resource_spans in request.resource_spans:
            attributes = attributes_of(resource_spans.resource)
            self.services.add(attributes["service.name"])
            for scope_spans in resource_spans.scope_spans:
                self.spans += scope_spans.spans
        return trace_service_pb2.ExportTraceServiceResponse()

    def traces(self) -> dict[str, dict[str, Span]]:
        """Spans by their names, by the id of the request."""
        roots = [span for span in self.spans if not span.parent_span_id]
        return {
            attributes_of(root)["gen_ai.response.id"]: {
                span.name: span for span in self.spans if span.trace_id == root.trace_id
            }
            for root in roots
        }


def attributes_of(holder: Any) -> dict[str, Any]:
    """Attributes of a span or a resource."""
    return {
        pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in holder.attributes
    }


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OTEL_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def collector() -> Iterator[tuple[Collector, str]]:
    """A collector and its URL."""
    received = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(  # type: ignore[no-untyped-call]
        received, server
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield received, f"http://127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("model"))


def request(request_id: str, max_tokens: int) -> RequestSpec:
    prompt = TokenPrompt(token_ids=(3, 4, 5, 6))
    return RequestSpec(prompt=prompt, max_tokens=max_tokens, ignore_eos=True, request_id=request_id)


def check_phases(trace: dict[str, Span], names: list[str]) -> None:
    """The phases fill the request from its beginning to its end, one after the other."""
    root = trace.pop("generate")
    assert sorted(trace) == sorted(names)
    instant_ns = root.start_time_unix_nano
    for name in names:
        span = trace[name]
        assert span.parent_span_id == root.span_id
        assert span.start_time_unix_nano == instant_ns
        instant_ns = span.end_time_unix_nano
        assert instant_ns >= span.start_time_unix_nano
    assert instant_ns == root.end_time_unix_nano


async def test_each_request_has_a_trace_with_its_phases_and_counts(
    model: Path, collector: tuple[Collector, str]
) -> None:
    received, url = collector
    with exported_traces(url) as observers_of:
        async with running_stage(model, LayerRange(0, 6), max_num_seqs=1) as address:
            config = ClusterConfig(model=str(model), stages=parse_stages([address]))
            observers = observers_of("tiny")
            engine = await open_engine(config, open_model(config.model), observers=observers)
            assert len([e async for e in await engine.submit(request("whole", 5))]) > 1
            running = await engine.submit(request("aborted", 50))
            waiting = await engine.submit(request("never-ran", 5))
            waiting.cancel()
            async for event in running:
                if isinstance(event, TokensEvent):
                    running.cancel()
            await engine.close(grace_s=1.0)
    assert received.services == {"stagecoach"}
    traces = received.traces()
    assert sorted(traces) == ["aborted", "never-ran", "whole"]
    attributes = attributes_of(traces["whole"]["generate"])
    assert attributes["gen_ai.usage.input_tokens"] == 4
    assert attributes["gen_ai.usage.output_tokens"] == 5
    assert attributes["gen_ai.request.model"] == "tiny"
    check_phases(traces["whole"], ["queue", "prefill", "decode"])
    check_phases(traces["aborted"], ["queue", "prefill", "decode"])
    check_phases(traces["never-ran"], ["queue"])


async def test_a_request_that_failed_has_its_error_and_no_message(
    model: Path, collector: tuple[Collector, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    received, url = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "my-cluster")
    with exported_traces(None) as observers_of:
        async with running_stage(model, LayerRange(0, 6)) as address:
            config = ClusterConfig(
                model=str(model), stages=parse_stages([address]), stage_wait_s=0.1
            )
            observers = observers_of("tiny")
            engine = await open_engine(config, open_model(config.model), observers=observers)
            task = asyncio.create_task(generate(engine, range(3, 8), 200))
            await status_when(engine, lambda now: now.num_generated_tokens >= 3)
        with pytest.raises(UnavailableError):
            await task
        await engine.close(grace_s=0.0)
    assert received.services == {"my-cluster"}
    [trace] = received.traces().values()
    root = trace["generate"]
    assert root.status.code == Status.STATUS_CODE_ERROR
    assert root.status.message == attributes_of(root)["error.type"] == "UNAVAILABLE"


@pytest.mark.parametrize(
    ("endpoint", "environment", "wanted"),
    [
        (None, {}, False),
        ("http://c:4317", {}, True),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"}, True),
        (None, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4317"}, True),
        (
            None,
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317", "OTEL_TRACES_EXPORTER": "none"},
            False,
        ),
        ("http://c:4317", {"OTEL_TRACES_EXPORTER": "none"}, True),
        ("http://c:4317", {"OTEL_SDK_DISABLED": "true"}, False),
        ("http://c:4317", {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, True),
    ],
)
def test_the_flag_or_the_standard_environment_asks_for_traces(
    endpoint: str | None, environment: dict[str, str], wanted: bool
) -> None:
    assert traces_are_wanted(endpoint, environment) is wanted


def test_another_protocol_than_grpc_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="only grpc is supported"):
        traces_are_wanted("http://c:4317", {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"})


def test_without_the_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)
    with (
        pytest.raises(InvalidArgumentError, match=r"pip install -e '\.\[otel\]'"),
        exported_traces("http://localhost:4317"),
    ):
        pass


def test_without_a_wish_for_traces_the_package_is_not_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)
    with exported_traces(None) as observers_of:
        assert observers_of("tiny") == ()
