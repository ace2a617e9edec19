"""What Prometheus is shown. Names follow vLLM's where it has the same thing.

Called by the threads of the metrics port; reads, and changes nothing.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from coordinator.core.observation import EngineFigures
from coordinator.observe.metrics.recorder import MetricsRecorder
from stagecoach.telemetry.families import (
    counter,
    counters,
    gauge,
    gauges,
    histogram,
    histograms,
    info,
)
from stagecoach.telemetry.histogram import NS_PER_S
from stagecoach.version import __version__


class EngineView(Protocol):
    """What is read of an engine at each scrape."""

    def figures(self) -> EngineFigures:
        """Its state now. Any thread."""
        ...


class ModelMetrics:
    """The metrics of one model.

    Args:
        name: What its samples have as `model`.
        model: As the operator named it.
    """

    def __init__(self, name: str, *, model: str) -> None:
        self.name = name
        self.recorder = MetricsRecorder()
        """What is counted: the observer to give to its engine, or to one after the other."""
        self._model = model
        self._engine: EngineView | None = None

    def serve(self, engine: EngineView) -> None:
        """Shows the state of this engine from now on, which tells `recorder` what it does."""
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """Yields everything, without the label that tells models from each other."""
        yield info("stagecoach_model", "The model.", {"model_name": self._model})
        yield from self._requests()
        yield from self._tokens()
        yield from self._steps()
        engine = self._engine
        figures = None if engine is None else engine.figures()
        is_ready = figures is not None and figures.is_ready
        yield gauge("stagecoach_ready", "1 while requests are served.", is_ready)
        if figures is not None:
            yield from _state(figures)
            yield from _faults(figures)
            yield from _stages(figures)

    def _requests(self) -> Iterator[Metric]:
        recorder = self.recorder
        yield counter(
            "stagecoach_requests_accepted_total",
            "Requests that were valid and queued.",
            recorder.num_accepted,
        )
        yield counters(
            "stagecoach_requests_refused_total",
            "Requests that the engine did not take, by error.",
            "error",
            recorder.refusals,
        )
        ends = dict(recorder.ends)
        yield counters(
            "stagecoach_request_success_total",
            "Requests that ended in good order, by reason: stop, length or abort.",
            "finished_reason",
            {reason: count for reason, count in ends.items() if reason != "error"},
        )
        yield counters(
            "stagecoach_request_errors_total",
            "Accepted requests that failed, by error.",
            "error",
            recorder.errors,
        )
        for name, text, values in (
            (
                "time_to_first_token_seconds",
                "From arrival to the first token.",
                recorder.time_to_first_token,
            ),
            (
                "inter_token_latency_seconds",
                "From a token to the next one of its request.",
                recorder.inter_token,
            ),
            (
                "request_queue_time_seconds",
                "From arrival to the first step.",
                recorder.queue_time,
            ),
            (
                "e2e_request_latency_seconds",
                "From arrival to the end.",
                recorder.whole_request,
            ),
            (
                "request_prompt_tokens",
                "Prompt tokens of requests that ended.",
                recorder.prompt_tokens,
            ),
            (
                "request_generation_tokens",
                "Output tokens of requests that ended.",
                recorder.generated_tokens,
            ),
        ):
            yield histogram(f"stagecoach_{name}", text, values)

    def _tokens(self) -> Iterator[Metric]:
        recorder = self.recorder
        yield counter(
            "stagecoach_prompt_tokens_total",
            "Tokens of the prompts of accepted requests.",
            recorder.num_prompt_tokens,
        )
        yield counter(
            "stagecoach_generation_tokens_total",
            "Tokens that were sent to clients.",
            recorder.num_generated_tokens,
        )

    def _steps(self) -> Iterator[Metric]:
        recorder = self.recorder
        yield counter(
            "stagecoach_micro_batches_total",
            "Micro-batches of tokens that went through all stages.",
            recorder.num_steps,
        )
        yield counters(
            "stagecoach_computed_tokens_total",
            "Rows of micro-batches: prompts and what is computed again, or decode.",
            "kind",
            {"prefill": recorder.num_prefill_tokens, "decode": recorder.num_decode_tokens},
        )
        now_ns = recorder.now_ns()
        yield counter(
            "stagecoach_working_seconds_total",
            "Time in which at least one accepted request had not ended.",
            recorder.bubbles.working_ns(now_ns) / NS_PER_S,
        )
        ratios = recorder.bubbles.ratios(now_ns)
        yield gauges(
            "stagecoach_stage_bubble_ratio",
            "Share of the last ten seconds of work in which the stage did not compute.",
            "stage",
            {str(index): ratio for index, ratio in enumerate(ratios)},
        )
        stages = tuple(recorder.stages)
        for part, text in (
            ("compute", "The forward of a micro-batch."),
            ("queue", "A micro-batch waiting inside the stage."),
            ("serialize", "Reading and writing messages, on both ends."),
            ("wire", "What is left of the round trip to the stage."),
        ):
            yield histograms(
                f"stagecoach_stage_{part}_seconds",
                text,
                "stage",
                ((str(index), getattr(times, part)) for index, times in enumerate(stages)),
            )


class CoordinatorCollector(Collector):
    """Exports one coordinator: its process, and each of its models under the label `model`.

    Args:
        num_lost_log_lines: Lines of the log that could not be written.
    """

    def __init__(self, *, num_lost_log_lines: Callable[[], int]) -> None:
        self.models: tuple[ModelMetrics, ...] = ()
        self._num_lost_log_lines = num_lost_log_lines

    def describe(self) -> Iterator[Metric]:
        """Nothing: the registry holds this collector and standard ones, whose names differ."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yields everything, each name once."""
        yield info("stagecoach_build", "The software.", {"version": __version__})
        yield counter(
            "stagecoach_log_lines_lost_total",
            "Lines of the log that could not be written.",
            self._num_lost_log_lines(),
        )
        families: dict[str, Metric] = {}
        for model in self.models:
            for metric in model.collect():
                family = families.setdefault(
                    metric.name, Metric(metric.name, metric.documentation, metric.type)
                )
                family.samples += [
                    sample._replace(labels={"model": model.name, **sample.labels})
                    for sample in metric.samples
                ]
        yield from families.values()


def _state(figures: EngineFigures) -> Iterator[Metric]:
    yield gauge("stagecoach_num_requests_running", "Requests with a KV slot.", figures.num_running)
    yield gauge(
        "stagecoach_num_requests_waiting", "Requests that wait for one.", figures.num_waiting
    )
    yield gauge(
        "stagecoach_micro_batches_in_flight",
        "Micro-batches on their way through the stages.",
        figures.num_micro_batches,
    )
    num_used = figures.num_kv_blocks - figures.num_free_kv_blocks
    num_cached = max(0, figures.num_cached_kv_blocks)
    yield gauge(
        "stagecoach_kv_cache_usage_perc",
        "Share of the KV blocks that running requests hold; 1 means 100 percent.",
        num_used / figures.num_kv_blocks,
    )
    yield gauges(
        "stagecoach_kv_blocks",
        "KV blocks of the smallest stage: held by requests, by the prefix cache, by nobody.",
        "state",
        {
            "used": num_used,
            "cached": num_cached,
            "empty": max(0, figures.num_free_kv_blocks - num_cached),
        },
    )
    yield counter(
        "stagecoach_prefix_cache_queries_total",
        "Prompt tokens that were looked up in the prefix cache.",
        figures.num_prefix_query_tokens,
    )
    yield counter(
        "stagecoach_prefix_cache_hits_total",
        "Those of them that it held.",
        figures.num_prefix_hit_tokens,
    )
    yield counter(
        "stagecoach_draft_tokens_total",
        "Guessed tokens that were checked in the pass that computed the next one.",
        figures.num_draft_tokens,
    )
    yield counter(
        "stagecoach_accepted_draft_tokens_total",
        "Those of them that were right.",
        figures.num_accepted_draft_tokens,
    )


def _faults(figures: EngineFigures) -> Iterator[Metric]:
    yield counter(
        "stagecoach_num_preemptions_total",
        "Times that a request gave up its KV to others.",
        figures.num_preemptions,
    )
    yield counter(
        "stagecoach_replays_total",
        "Times that a request lost its KV to a fault and was computed again.",
        figures.num_replays,
    )
    yield counters(
        "stagecoach_stage_losses_total",
        "Times that the stage was lost.",
        "stage",
        {
            str(index): sum(server.num_losses for server in servers)
            for index, servers in enumerate(figures.stages)
        },
    )


def _stages(figures: EngineFigures) -> Iterator[Metric]:
    yield gauges(
        "stagecoach_stage_up",
        "Servers of the stage that can be reached; 0 while it is lost.",
        "stage",
        {
            str(index): sum(server.is_open for server in servers)
            for index, servers in enumerate(figures.stages)
        },
    )
    labels = ("stage", "address", "layers", "device", "dtype")
    family = GaugeMetricFamily("stagecoach_stage_info", "Each stage server.", labels=labels)
    for index, servers in enumerate(figures.stages):
        for server in servers:
            if (stage := server.info) is not None:
                weights = stage.precision.weights.name
                facts = (str(index), server.address, str(stage.layers), stage.device, weights)
                family.add_metric(facts, 1)
    yield family
