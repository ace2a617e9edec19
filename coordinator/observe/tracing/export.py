"""Where traces go: an OTLP collector over gRPC, as the flag or the standard environment says.

Everything of OpenTelemetry is imported when traces are wanted: the package is optional.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from coordinator.observe.observer import EngineObserver
from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.version import __version__

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


def traces_are_wanted(endpoint: str | None, environment: Mapping[str, str]) -> bool:
    """Says whether there is somewhere to send traces to, and nobody forbids it.

    Args:
        endpoint: URL that the flag gives; it wins over everything but a disabled SDK.
        environment: With OpenTelemetry's standard variables.

    Raises:
        InvalidArgumentError: The environment asks for another protocol than gRPC.
    """
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if endpoint is None:
        if not any(environment.get(name) for name in _ENDPOINTS):
            return False
        if environment.get("OTEL_TRACES_EXPORTER", "otlp").strip() != "otlp":
            return False
    name = next((name for name in _PROTOCOLS if environment.get(name)), None)
    if name is not None and environment[name] != "grpc":
        raise InvalidArgumentError(
            f"{name} is {environment[name]!r}, only grpc is supported", field="otlp_endpoint"
        )
    return True


ObserversOf = Callable[[str], tuple[EngineObserver, ...]]
"""The observers of a model, by its name."""


@contextmanager
def exported_traces(endpoint: str | None) -> Iterator[ObserversOf]:
    """Exports traces in the background until the end of the block, which sends what is left.

    Args:
        endpoint: URL of the collector, http:// or https://. None: as the environment says.

    Yields:
        What makes the observer to give to the engine of a model; none when no traces are wanted.

    Raises:
        InvalidArgumentError: Traces are wanted and the package is not installed, or as
            `traces_are_wanted`.
    """
    if not traces_are_wanted(endpoint, os.environ):
        yield lambda _: ()
        return
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        from coordinator.observe.tracing.request_traces import RequestTraces
    except ImportError as error:
        raise InvalidArgumentError(
            "traces need OpenTelemetry: pip install -e '.[otel]' in the clone, or unset"
            " otlp_endpoint and OTEL_EXPORTER_OTLP_ENDPOINT",
            field="otlp_endpoint",
        ) from error
    resource = Resource.create({"service.name": "stagecoach", "service.version": __version__})
    provider = TracerProvider(resource=resource.merge(OTELResourceDetector().detect()))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    try:
        tracer = provider.get_tracer("stagecoach", __version__)
        yield lambda model: (RequestTraces(tracer, model=model),)
    finally:
        provider.shutdown()
