"""The metrics of one coordinator: what counts, and the registry that shows it."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector

from coordinator.observe.metrics.exposition import CoordinatorCollector, ModelMetrics


class CoordinatorMetrics:
    """Metrics in a registry of their own, so that several coordinators fit into one process.

    Args:
        num_lost_log_lines: Lines of the log that could not be written.

    Attributes:
        registry: What the metrics port serves.
    """

    def __init__(self, *, num_lost_log_lines: Callable[[], int] = lambda: 0) -> None:
        self.registry = CollectorRegistry(support_collectors_without_names=True)
        self._collector = CoordinatorCollector(num_lost_log_lines=num_lost_log_lines)
        self.registry.register(self._collector)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

    def add(self, name: str, *, model: str) -> ModelMetrics:
        """Shows one model more.

        Args:
            name: What its samples have as `model`: the name that answers show.
            model: As the operator named it.

        Returns:
            What counts; its recorder is the observer to give to the model's engine.
        """
        metrics = ModelMetrics(name, model=model)
        self._collector.models = (*self._collector.models, metrics)
        return metrics
