"""The metrics of one coordinator: what counts, and the registry that shows it."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector

from coordinator.observe.metrics.exposition import CoordinatorCollector, EngineView
from coordinator.observe.metrics.recorder import MetricsRecorder


class CoordinatorMetrics:
    """Metrics in a registry of their own, so that several coordinators fit into one process.

    Args:
        model: As the operator named it.
        num_lost_log_lines: Lines of the log that could not be written.

    Attributes:
        recorder: The observer to give to the engine.
        registry: What the metrics port serves.
    """

    def __init__(self, *, model: str, num_lost_log_lines: Callable[[], int] = lambda: 0) -> None:
        self.recorder = MetricsRecorder()
        self.registry = CollectorRegistry(support_collectors_without_names=True)
        self._collector = CoordinatorCollector(
            self.recorder, model=model, num_lost_log_lines=num_lost_log_lines
        )
        self.registry.register(self._collector)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

    def serve(self, engine: EngineView) -> None:
        """Shows the state of an engine, which tells `recorder` what it does."""
        self._collector.engine = engine
