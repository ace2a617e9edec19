"""The life of a coordinator process: bind, connect the stages, serve, drain, stop."""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import uvloop

from coordinator.assembly import open_engine
from coordinator.config import CoordinatorConfig
from coordinator.core.catalog import Catalog
from coordinator.doors.access.caller_engine import CallerEngine
from coordinator.doors.access.caller_shares import CallerShares
from coordinator.doors.access.callers import Callers
from coordinator.doors.grpc.server import GenerationServer
from coordinator.doors.http.app import AppOptions, create_app
from coordinator.doors.http.connection import ConnectionLimits
from coordinator.doors.http.door import Door
from coordinator.doors.http.host_guard import AllowedHosts
from coordinator.doors.http.server import HttpServer
from coordinator.engine.engines import Engines
from coordinator.observe.metrics import CoordinatorMetrics
from coordinator.observe.observer import EngineObserver
from coordinator.observe.tracing.export import exported_traces
from coordinator.stage_waits import StageWaits
from stagecoach.model_files import ModelFiles, open_model
from stagecoach.process.load_display import load_display
from stagecoach.process.orphans import adopt_orphans
from stagecoach.process.stop_event import run_until, stop_event
from stagecoach.security.credentials import read_tls
from stagecoach.telemetry.log_config import LogConfig
from stagecoach.telemetry.logs import LogHandler, set_up_logging
from stagecoach.telemetry.metrics_port import metrics_port

_log = logging.getLogger(__name__)


class _Observation(NamedTuple):
    """Who observes the engine, besides its log."""

    observers: tuple[EngineObserver, ...]
    metrics: CoordinatorMetrics | None
    """The exported metrics; None when they are not served."""
    metrics_address: str | None


def run(
    config: CoordinatorConfig, *, log: LogConfig, json_output: bool, exit_with_parent: bool
) -> None:
    """Runs a coordinator until it is told to stop; blocks.

    Args:
        config: What the operator set.
        log: How the log is written.
        json_output: Print one JSON line when ready.
        exit_with_parent: Stop when stdin reaches its end.

    Raises:
        StagecoachError: The model cannot be opened, the address cannot be bound, or the stages
            cannot be reached or do not fit together.
    """
    adopt_orphans()
    with _observation(config, set_up_logging(log)) as observation:
        files = open_model(config.model)  # may download, which a signal shall be able to end
        uvloop.run(
            _serve(
                config,
                files,
                observation,
                json_output=json_output,
                exit_with_parent=exit_with_parent,
            )
        )


@contextmanager
def _observation(config: CoordinatorConfig, log: LogHandler) -> Iterator[_Observation]:
    """Opens the metrics port and the way to the trace collector, as far as they are wanted."""
    with ExitStack() as stack:
        observers = stack.enter_context(exported_traces(config.otlp_endpoint, model=config.model))
        if config.metrics_listen is None:
            yield _Observation(observers, None, None)
            return
        metrics = CoordinatorMetrics(model=config.model, num_lost_log_lines=lambda: log.num_lost)
        listen = config.metrics_listen
        address = stack.enter_context(metrics_port(listen.host, listen.port, metrics.registry))
        yield _Observation((*observers, metrics.recorder), metrics, address)


async def _serve(
    config: CoordinatorConfig,
    files: ModelFiles,
    observation: _Observation,
    *,
    json_output: bool,
    exit_with_parent: bool,
) -> None:
    stop = stop_event(with_parent=exit_with_parent)
    max_model_len = config.max_model_len or files.config.max_model_len
    callers = _callers(config)
    if config.stage_tls is not None:
        read_tls(config.stage_tls)  # before anything waits for a stage
    catalog = Catalog()
    server = GenerationServer(
        catalog,
        config.listen,
        max_model_len=max_model_len,
        max_num_waiting=config.max_num_waiting,
        tls=config.door_tls,
        callers=callers,
    )
    address = await server.start()
    door = Door(catalog)
    http = (
        None
        if config.http_listen is None
        else HttpServer(
            config.http_listen,
            create_app(door, _app_options(config, callers)),
            ConnectionLimits(),
            tls=config.door_tls,
        )
    )

    async def work() -> None:
        http_address = await http.start() if http else None
        addresses = [str(address) for stage in config.stages for address in stage]
        with load_display(addresses, _log.info) as display:
            waits = StageWaits(display)
            engine = await open_engine(
                config,
                files,
                lambda address, error: catalog.starting(waits.update(address, error)),
                observation.observers,
            )
        if observation.metrics is not None:
            observation.metrics.serve(engine)
        shares = CallerShares(max_requests=config.max_requests_per_key)
        catalog.open(Engines([engine]), [CallerEngine(engine, shares)])
        door.open()
        await server.serve()
        engine.read_vocabulary()
        if json_output:
            ready = {
                "grpc": address,
                "http": http_address,
                "metrics": observation.metrics_address,
                "pid": os.getpid(),
            }
            print(json.dumps(ready), flush=True)
        await engine.wait_stopped()

    try:
        await run_until(stop, work())
    finally:
        await server.stop(grace_s=config.drain_grace_s)
        if http:
            await http.stop()
        await door.close()


def _app_options(config: CoordinatorConfig, callers: Callers | None) -> AppOptions:
    """What the HTTP API is told; its own address is one of its names."""
    names: frozenset[str] | None = None
    if config.checks_hosts and config.http_listen is not None:
        own = config.http_listen.url_host
        names = frozenset(name.lower() for name in (own, *config.allowed_hosts))
    return AppOptions(
        callers=callers,
        allowed_hosts=None
        if names is None
        else AllowedHosts(names=names, origins=frozenset(config.cors_origins)),
        cors_origins=config.cors_origins,
    )


def _callers(config: CoordinatorConfig) -> Callers | None:
    """Whoever has a key; None when nobody needs one.

    Raises:
        InvalidArgumentError: The keys cannot be read.
    """
    if config.api_keys_file is not None:
        return Callers.of_file(config.api_keys_file)
    return None if config.api_keys is None else Callers.of_text(config.api_keys)
