"""What a stage server exports to Prometheus.

Collected by the threads of the metrics port; reads, and changes nothing.
"""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from stage_server.core.activity import StageActivity
from stage_server.core.engine import StageEngine
from stagecoach.telemetry.families import counter, counters, gauge, gauges, histogram, info
from stagecoach.version import __version__

_PREFIX = "stagecoach_stage_server"
"""Not `stagecoach_stage`, under which the coordinator exports how it sees its stages."""


class StageCollector(Collector):
    """Exports one stage server.

    Args:
        activity: What is counted.
        num_lost_log_lines: Lines of the log that could not be written.
    """

    def __init__(self, activity: StageActivity, num_lost_log_lines: Callable[[], int]) -> None:
        self._activity = activity
        self._num_lost_log_lines = num_lost_log_lines

    def describe(self) -> Iterator[Metric]:
        """Nothing: the registry holds this collector and standard ones, whose names differ."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yields everything."""
        activity = self._activity
        yield info("stagecoach_build", "The software.", {"version": __version__})
        yield counter(
            "stagecoach_log_lines_lost_total",
            "Lines of the log that could not be written.",
            self._num_lost_log_lines(),
        )
        yield gauge(
            f"{_PREFIX}_ready", "1 while micro-batches are taken.", float(activity.is_ready)
        )
        yield from self._micro_batches()
        yield from self._streams()
        if activity.load_s is not None:
            yield gauge(
                f"{_PREFIX}_model_load_seconds",
                "Time that loading and warming up took.",
                activity.load_s,
            )
        if activity.engine is not None:
            yield from _engine(activity.engine)

    def _micro_batches(self) -> Iterator[Metric]:
        activity = self._activity
        yield counter(
            f"{_PREFIX}_micro_batches_total",
            "Micro-batches of tokens that were computed.",
            activity.num_micro_batches,
        )
        yield counters(
            f"{_PREFIX}_tokens_total",
            "Rows that were computed: in slices of several tokens, or of one.",
            "kind",
            {"prefill": activity.num_prefill_tokens, "decode": activity.num_decode_tokens},
        )
        yield histogram(f"{_PREFIX}_compute_seconds", "The forward.", activity.compute)
        yield histogram(f"{_PREFIX}_queue_seconds", "Waiting for the model thread.", activity.queue)
        yield histogram(
            f"{_PREFIX}_serialize_seconds",
            "Reading a message and writing its answer.",
            activity.serialize,
        )
        yield counters(
            f"{_PREFIX}_micro_batch_errors_total",
            "Micro-batches that were refused or failed, by error.",
            "error",
            activity.micro_batch_errors,
        )

    def _streams(self) -> Iterator[Metric]:
        activity = self._activity
        yield counter(
            f"{_PREFIX}_streams_opened_total",
            "Forward streams that were opened.",
            activity.num_streams_opened,
        )
        yield gauge(
            f"{_PREFIX}_streams", "Forward streams that are open.", activity.num_open_streams
        )
        yield counters(
            f"{_PREFIX}_stream_errors_total",
            "Forward streams that were refused or ended with an error, by error.",
            "error",
            activity.stream_errors,
        )


def _engine(engine: StageEngine) -> Iterator[Metric]:
    about = engine.info
    yield info(
        f"{_PREFIX}",
        "The stage.",
        {
            "model_name": about.model_id,
            "layers": str(about.layers),
            "device": about.device,
            "dtype": about.precision.weights.name,
            "attention": about.attention,
            "max_graph_seqs": str(about.max_graph_seqs),
        },
    )
    num_free_blocks = engine.num_free_kv_blocks
    num_held_slots = engine.num_held_kv_slots
    yield gauges(
        f"{_PREFIX}_kv_blocks",
        "KV blocks, held by slots or free.",
        "state",
        {"used": about.num_kv_blocks - num_free_blocks, "free": num_free_blocks},
    )
    yield gauges(
        f"{_PREFIX}_kv_slots",
        "KV slots, with tokens or empty.",
        "state",
        {"used": num_held_slots, "free": about.max_num_seqs - num_held_slots},
    )
    yield gauge(f"{_PREFIX}_weight_bytes", "Memory of the weights.", about.weight_bytes)
    yield gauge(f"{_PREFIX}_kv_bytes", "Memory of the KV pool.", about.kv_bytes)


def stage_registry(
    activity: StageActivity, *, num_lost_log_lines: Callable[[], int]
) -> CollectorRegistry:
    """A registry of its own for one server, with the figures of its process.

    Args:
        activity: What is counted.
        num_lost_log_lines: Lines of the log that could not be written.
    """
    registry = CollectorRegistry(support_collectors_without_names=True)
    registry.register(StageCollector(activity, num_lost_log_lines))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry
