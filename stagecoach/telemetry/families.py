"""Shorthand for what a collector exports."""

from collections.abc import Iterable, Mapping

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)

from stagecoach.telemetry.histogram import Histogram


def gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    """A gauge without labels."""
    return GaugeMetricFamily(name, text, value=value)


def gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    """A gauge for each value of one label."""
    family = GaugeMetricFamily(name, text, labels=[label])
    for value_of_label, value in values.items():
        family.add_metric([value_of_label], value)
    return family


def counter(name: str, text: str, value: float) -> CounterMetricFamily:
    """A counter without labels; `name` ends in `_total`."""
    return CounterMetricFamily(name, text, value=value)


def counters(name: str, text: str, label: str, values: Mapping[str, float]) -> CounterMetricFamily:
    """A counter for each value of one label; `name` ends in `_total`."""
    family = CounterMetricFamily(name, text, labels=[label])
    # Copied in one step: the writer may add a label meanwhile.
    for value_of_label, value in dict(values).items():
        family.add_metric([value_of_label], value)
    return family


def histogram(name: str, text: str, values: Histogram) -> HistogramMetricFamily:
    """A histogram without labels."""
    family = HistogramMetricFamily(name, text, labels=[])
    values.add_to(family)
    return family


def histograms(
    name: str, text: str, label: str, values: Iterable[tuple[str, Histogram]]
) -> HistogramMetricFamily:
    """A histogram for each value of one label."""
    family = HistogramMetricFamily(name, text, labels=[label])
    for value_of_label, histogram_of_label in values:
        histogram_of_label.add_to(family, [value_of_label])
    return family


def info(name: str, text: str, facts: Mapping[str, str]) -> InfoMetricFamily:
    """Constant facts as the labels of a metric that is 1; its name gets the suffix `_info`."""
    return InfoMetricFamily(name, text, value=dict(facts))
