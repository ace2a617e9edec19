"""A trace for each request that ends: the request, and in it its queue, prefill and decode.

    generate  |------------------------------------|
    queue     |-----|
    prefill         |----------|
    decode                     |-------------------|

Spans are made when the request has ended, from the times that the engine keeps anyway; while it
runs, tracing costs nothing.
"""

import time
from collections.abc import Iterator
from typing import NamedTuple

from opentelemetry import trace
from opentelemetry.context import Context

from coordinator.core.observation import RequestEnd
from stagecoach.contract.errors import StagecoachError


class _Phase(NamedTuple):
    name: str
    start_ns: int
    end_ns: int


class RequestTraces:
    """An `EngineObserver` that makes spans; attributes follow OpenTelemetry's for generative AI.

    Args:
        tracer: Takes the spans; must not block.
        model: The name of the model that answers show.
    """

    def __init__(self, tracer: trace.Tracer, *, model: str) -> None:
        self._tracer = tracer
        self._model = model

    def request_accepted(self, request_id: str, num_prompt_tokens: int) -> None:
        """Does nothing: spans are made at the end."""

    def request_refused(self, error: StagecoachError) -> None:
        """Does nothing: there is no request to trace."""

    def request_ended(self, end: RequestEnd) -> None:
        """Makes the spans of a request."""
        to_unix_ns = time.time_ns() - time.perf_counter_ns()
        span = self._tracer.start_span(
            "generate",
            context=Context(),  # a trace of its own
            kind=trace.SpanKind.SERVER,
            start_time=end.arrival_ns + to_unix_ns,
            attributes={
                "gen_ai.request.model": self._model,
                "gen_ai.response.id": end.request_id,
                "gen_ai.response.finish_reasons": [end.reason.value],
                "gen_ai.usage.input_tokens": end.num_prompt_tokens,
                "gen_ai.usage.output_tokens": end.num_completion_tokens,
                "stagecoach.num_cached_tokens": end.num_cached_tokens,
                "stagecoach.num_steps": end.num_steps,
                "stagecoach.num_preemptions": end.num_preemptions,
                "stagecoach.num_replays": end.num_replays,
            },
        )
        if end.error is not None:
            span.set_attribute("error.type", end.error.reason)
            span.set_status(trace.StatusCode.ERROR, end.error.reason)
        inside = trace.set_span_in_context(span, Context())
        for phase in _phases(end):
            child = self._tracer.start_span(
                phase.name, context=inside, start_time=phase.start_ns + to_unix_ns
            )
            child.end(phase.end_ns + to_unix_ns)
        span.end(end.end_ns + to_unix_ns)


def _phases(end: RequestEnd) -> Iterator[_Phase]:
    """The parts of a request's time, as far as it came; they touch and do not overlap."""
    yield _Phase("queue", end.arrival_ns, end.first_step_ns or end.end_ns)
    if end.first_step_ns is not None:
        yield _Phase("prefill", end.first_step_ns, end.first_token_ns or end.end_ns)
    if end.first_token_ns is not None:
        yield _Phase("decode", end.first_token_ns, end.end_ns)
