"""The life of a coordinator process: bind, connect the stages, serve, drain, stop."""

import asyncio
import json
import logging
import os
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import uvloop

from coordinator.config import ClusterConfig, CoordinatorConfig
from coordinator.core.catalog import Catalog
from coordinator.core.limits import ASSUMED_MODEL_LEN
from coordinator.doors.access.caller_shares import CallerShares
from coordinator.doors.access.callers import Callers
from coordinator.doors.grpc.server import GenerationServer
from coordinator.doors.http.app import AppOptions, create_app
from coordinator.doors.http.connection import ConnectionLimits
from coordinator.doors.http.door import Door
from coordinator.doors.http.host_guard import AllowedHosts
from coordinator.doors.http.server import HttpServer
from coordinator.engine.engine import Engine
from coordinator.engine.engines import Engines
from coordinator.model_keeper import ModelKeeper
from coordinator.observe.metrics import CoordinatorMetrics
from coordinator.observe.tracing.export import ObserversOf, exported_traces
from stagecoach.contract.cluster_status import ModelState
from stagecoach.contract.errors import UnavailableError
from stagecoach.model_files import ModelFiles, model_id_of, open_model
from stagecoach.process.load_display import Display, load_display
from stagecoach.process.orphans import adopt_orphans
from stagecoach.process.stop_event import run_until, stop_event
from stagecoach.telemetry.log_config import LogConfig
from stagecoach.telemetry.logs import LogHandler, set_up_logging
from stagecoach.telemetry.metrics_port import metrics_port

_log = logging.getLogger(__name__)


class _Observation(NamedTuple):
    """Who observes the engines, besides their log."""

    traces: ObserversOf
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
        StagecoachError: The address cannot be bound; or, of the only model, that it cannot be
            opened, or that its stages cannot be reached or do not fit together; or, of several,
            that none can ever be served.
    """
    adopt_orphans()
    with _observation(config, set_up_logging(log)) as observation:
        files = None
        if len(config.clusters) == 1:  # may download, which a signal shall be able to end
            files = open_model(config.clusters[0].model)
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
        traces = stack.enter_context(exported_traces(config.otlp_endpoint))
        if config.metrics_listen is None:
            yield _Observation(traces, None, None)
            return
        metrics = CoordinatorMetrics(num_lost_log_lines=lambda: log.num_lost)
        listen = config.metrics_listen
        address = stack.enter_context(metrics_port(listen.host, listen.port, metrics.registry))
        yield _Observation(traces, metrics, address)


async def _serve(
    config: CoordinatorConfig,
    files: ModelFiles | None,
    observation: _Observation,
    *,
    json_output: bool,
    exit_with_parent: bool,
) -> None:
    stop = stop_event(with_parent=exit_with_parent)
    callers = _callers(config)
    catalog = Catalog()
    keepers = _keepers(config, files, catalog, observation)
    engines = Engines(keepers)
    server = GenerationServer(
        catalog,
        config.listen,
        max_model_len=max(_max_model_len(cluster, files) for cluster in config.clusters),
        max_num_waiting=sum(cluster.max_num_waiting for cluster in config.clusters),
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
        addresses = [str(each) for cluster in config.clusters for each in cluster.addresses]
        with load_display(addresses, _log.info) as display:
            keeping = asyncio.create_task(_keep(keepers, display), name="models")
            try:
                await _unless_ended(keeping, _some_served(engines, keepers))
                catalog.open(engines)
                door.open()
                await server.serve()
                await _unless_ended(keeping, _settled(keepers))
            except BaseException:
                keeping.cancel()
                await asyncio.wait({keeping})
                raise
        if json_output:
            ready = {
                "grpc": address,
                "http": http_address,
                "metrics": observation.metrics_address,
                "pid": os.getpid(),
                "models": [
                    {"names": model.names, "state": model.state, "problem": model.problem or None}
                    for model in catalog.models()
                ],
            }
            print(json.dumps(ready), flush=True)
        await keeping

    try:
        await run_until(stop, work())
    finally:
        await server.stop(grace_s=config.drain_grace_s)
        await engines.close(0.0)  # of what was not served yet
        if http:
            await http.stop()
        await door.close()


def _keepers(
    config: CoordinatorConfig,
    files: ModelFiles | None,
    catalog: Catalog,
    observation: _Observation,
) -> list[ModelKeeper]:
    """What keeps each model, all of them listed in the catalog."""
    shares = CallerShares(max_requests=config.max_requests_per_key)
    keepers = []
    for cluster in config.clusters:
        names = cluster.served_model_names or (model_id_of(cluster.model),)
        observers = observation.traces(names[0])
        on_engine: Callable[[Engine], None] = _ignore_engine
        if observation.metrics is not None:
            metrics = observation.metrics.add(names[0], model=cluster.model)
            observers, on_engine = (*observers, metrics.recorder), metrics.serve
        keepers.append(
            ModelKeeper(
                cluster,
                catalog.add(cluster.served_model_names),
                is_only=len(config.clusters) == 1,
                shares=shares,
                on_engine=on_engine,
                observers=observers,
                files=files,
            )
        )
    return keepers


def _ignore_engine(_engine: Engine) -> None:
    """Does nothing with an engine that nobody wants metrics of."""


def _max_model_len(cluster: ClusterConfig, files: ModelFiles | None) -> int:
    """Most tokens of a request, or what is taken for it before the files are open."""
    if cluster.max_model_len is not None:
        return cluster.max_model_len
    return ASSUMED_MODEL_LEN if files is None else files.config.max_model_len


async def _keep(keepers: Sequence[ModelKeeper], display: Display) -> None:
    """Keeps every model until one ends the process, or all are closed."""
    tasks = [asyncio.create_task(keeper.run(display)) for keeper in keepers]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _some_served(engines: Engines, keepers: Sequence[ModelKeeper]) -> None:
    """Waits until some model is served.

    Raises:
        UnavailableError: Every model has failed at the first try.
    """
    serving = asyncio.create_task(engines.wait_ready(ready=True))
    settled = asyncio.create_task(_settled(keepers))
    try:
        await asyncio.wait({serving, settled}, return_when=asyncio.FIRST_COMPLETED)
        models = [keeper.listed for keeper in keepers]
        if not serving.done() and all(model.state is ModelState.FAILED for model in models):
            whys = "; ".join(f"{model.names[0]}: {model.problem}" for model in models)
            raise UnavailableError(f"no model can be served: {whys}")
        await serving
    finally:
        serving.cancel()
        settled.cancel()
        await asyncio.wait({serving, settled})


async def _settled(keepers: Sequence[ModelKeeper]) -> None:
    """Waits until every model was tried once."""
    for keeper in keepers:
        await keeper.settled.wait()


async def _unless_ended(keeping: asyncio.Task[None], wait: Coroutine[object, object, None]) -> None:
    """Waits for something that never comes when the models are not kept any more.

    Raises:
        Exception: What ended their keeping, or the wait.
    """
    waiting = asyncio.create_task(wait)
    try:
        await asyncio.wait({keeping, waiting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
        await asyncio.wait({waiting})
    (keeping if keeping.done() else waiting).result()


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
