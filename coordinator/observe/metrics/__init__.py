"""What the coordinator exports to Prometheus; the engine knows nothing of it."""

from coordinator.observe.metrics.coordinator_metrics import CoordinatorMetrics

__all__ = ["CoordinatorMetrics"]
