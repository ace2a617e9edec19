"""Logs that never leak nor fail, the metrics port, and a histogram equal to Prometheus's own."""

import io
import json
import logging
import random
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import prometheus_client
import pytest
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from stagecoach.contract.errors import InvalidArgumentError, UnavailableError
from stagecoach.telemetry.families import histogram
from stagecoach.telemetry.histogram import NS_PER_S, STEP_BOUNDS_S, Histogram
from stagecoach.telemetry.log_config import LogConfig
from stagecoach.telemetry.logs import LogHandler, formatter
from stagecoach.telemetry.metrics_port import metrics_port


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    """A logger whose events reach nobody but the handlers that a test adds."""
    logger = logging.getLogger("tests.telemetry")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    yield logger
    logger.handlers.clear()
    logger.propagate = True


def attach(logger: logging.Logger, sink: io.RawIOBase | io.BytesIO, form: str) -> LogHandler:
    handler = LogHandler(sink)
    handler.setFormatter(formatter(LogConfig(format=form), colors=False))
    logger.addHandler(handler)
    return handler


def test_a_json_line_has_the_event_its_fields_and_its_origin(log: logging.Logger) -> None:
    sink = io.BytesIO()
    attach(log, sink, "json")
    log.warning("request ended", extra={"request_id": "r-1", "total_s": 0.5, "error": None})
    line = json.loads(sink.getvalue())
    assert line.pop("timestamp").endswith("Z")
    line.pop("message", None)  # of pytest's own handler
    assert line == {
        "event": "request ended",
        "level": "warning",
        "logger": "tests.telemetry",
        "request_id": "r-1",
        "total_s": 0.5,
        "error": None,
    }


def test_a_console_line_has_the_same_facts(log: logging.Logger) -> None:
    sink = io.BytesIO()
    attach(log, sink, "console")
    log.info("stage %s", "lost", extra={"stage": "box1:50051"})
    [line] = sink.getvalue().decode().splitlines()
    for part in ("info", "stage lost", "tests.telemetry", "stage=box1:50051"):
        assert part in line


@pytest.mark.parametrize("form", ["console", "json"])
def test_a_traceback_shows_no_local_variable(log: logging.Logger, form: str) -> None:
    sink = io.BytesIO()
    attach(log, sink, form)
    prompt = "my secret " + "prompt"
    try:
        prompt.index("absent")
    except ValueError:
        log.exception("failed")
    text = sink.getvalue().decode()
    assert "ValueError" in text
    assert "my secret" not in text


def test_what_cannot_be_encoded_is_written_all_the_same(log: logging.Logger) -> None:
    sink = io.BytesIO()
    handler = attach(log, sink, "console")
    # Past the logger: what pytest captures must be encodable where tests run in several processes.
    handler.handle(logging.makeLogRecord({"msg": "half a surrogate \ud800"}))
    assert b"surrogate" in sink.getvalue()
    assert handler.num_lost == 0


def test_a_full_disk_costs_lines_and_nothing_else(log: logging.Logger) -> None:
    with Path("/dev/full").open("wb", buffering=0) as full:
        handler = attach(log, full, "json")
        log.info("one")
        log.error("two")
    assert handler.num_lost == 2


def test_a_line_that_was_cut_counts_as_lost_and_the_next_ones_are_whole(
    log: logging.Logger,
) -> None:
    class Cutting(io.BytesIO):
        room = 5

        def write(self, line: bytes, /) -> int:  # type: ignore[override]
            written = super().write(line[: self.room])
            self.room = 10_000
            return written

    sink = Cutting()
    handler = attach(log, sink, "json")
    log.info("one")
    log.info("two")
    assert handler.num_lost == 1
    assert '"event": "two"' in sink.getvalue().decode()


def test_a_reader_that_went_away_costs_lines_and_nothing_else(log: logging.Logger) -> None:
    sink = io.BytesIO()
    handler = attach(log, sink, "console")
    sink.close()
    log.info("one")
    assert handler.num_lost == 1


@pytest.mark.parametrize(
    ("values", "field"), [({"format": "xml"}, "log_format"), ({"level": "loud"}, "log_level")]
)
def test_an_unknown_choice_is_refused_by_name(values: dict[str, str], field: str) -> None:
    with pytest.raises(InvalidArgumentError, match="is not one of") as caught:
        LogConfig(**values)
    assert caught.value.field == field


class One(Collector):
    """Exports one histogram."""

    def __init__(self, values: Histogram) -> None:
        self.values = values

    def collect(self) -> Iterator[Metric]:
        yield histogram("some_seconds", "Some.", self.values)


def samples_of(registry: CollectorRegistry) -> dict[tuple[str, str], float]:
    """Values by name and bucket, as a scraper reads them; times of creation left out."""
    return {
        (sample.name, sample.labels.get("le", "")): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


@pytest.mark.parametrize("seed", range(3))
def test_a_histogram_equals_that_of_prometheus(seed: int) -> None:
    rng = random.Random(seed)
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    fast = Histogram(STEP_BOUNDS_S, unit=NS_PER_S)
    ours.register(One(fast))
    slow = prometheus_client.Histogram(
        "some_seconds", "Some.", buckets=STEP_BOUNDS_S, registry=theirs
    )
    on_the_bounds = [round(bound * NS_PER_S) for bound in STEP_BOUNDS_S]
    for value_ns in [*on_the_bounds, *(rng.randrange(20 * NS_PER_S) for _ in range(200)), 0]:
        count = rng.randrange(1, 4)
        fast.observe(value_ns, count)
        for _ in range(count):
            slow.observe(value_ns / NS_PER_S)
    ours_seen, theirs_seen = samples_of(ours), samples_of(theirs)
    total = ("some_seconds_sum", "")
    assert ours_seen.pop(total) == pytest.approx(theirs_seen.pop(total))
    as_numbers = [
        {(name, float(le or "nan") if le else 0.0): value for (name, le), value in seen.items()}
        for seen in (ours_seen, theirs_seen)
    ]
    assert as_numbers[0] == as_numbers[1]


def test_an_empty_histogram_shows_all_its_buckets() -> None:
    family = HistogramMetricFamily("some", "Some.", labels=[])
    Histogram((1, 2)).add_to(family)
    assert [(sample.labels.get("le"), sample.value) for sample in family.samples] == [
        *(("1", 0.0), ("2", 0.0), ("+Inf", 0.0)),
        *((None, 0.0), (None, 0.0)),
    ]


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Gauge("answer", "The answer.", registry=registry).set(42)
    return registry


def get(address: str, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as response:
        return str(response.read().decode())


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_port_serves_the_registry_until_its_end(registry: CollectorRegistry, host: str) -> None:
    with metrics_port(host, 0, registry) as address:
        assert "answer 42.0" in get(address)
    with pytest.raises(OSError, match="refused"):
        get(address)


def test_a_client_that_says_nothing_holds_up_nobody(registry: CollectorRegistry) -> None:
    with metrics_port("127.0.0.1", 0, registry) as address:
        port = int(address.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)):
            assert "answer 42.0" in get(address)


def test_a_port_that_is_taken_is_said_in_one_line(registry: CollectorRegistry) -> None:
    with metrics_port("127.0.0.1", 0, registry) as address:
        port = int(address.rpartition(":")[2])
        expected = f"cannot serve metrics on {address}: the address is in use"
        with (
            pytest.raises(UnavailableError, match=expected),
            metrics_port("127.0.0.1", port, registry),
        ):
            pass
