"""The life of a stage server: bind, load, serve, drain, stop.

The port is bound before the model loads, so that a second server on it fails at once and health
can say NOT_SERVING meanwhile. Loading runs on the model thread; the event loop only ever waits.
"""

import asyncio
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import NamedTuple

import grpc
import uvloop
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from stage_server.compute.executor import ModelExecutor
from stage_server.core.activity import StageActivity
from stage_server.core.config import StageConfig
from stage_server.core.engine import StageEngine
from stage_server.core.load_board import LoadBoard
from stage_server.process.load_watch import shown
from stage_server.process.watchdog import watch
from stage_server.wire.limits import message_limits
from stage_server.wire.servicer import SERVICE_NAME, StageServicer
from stage_server.wire.stream import MAX_IN_FLIGHT
from stagecoach.contract.address import Address
from stagecoach.contract.errors import InternalError, InvalidArgumentError
from stagecoach.contract.keepalive import keepalive_options, permitted_pings
from stagecoach.contract.limits import MessageLimits, server_limits
from stagecoach.contract.load_progress import LoadPhase, LoadProgress
from stagecoach.model_files import open_model
from stagecoach.process.stop_event import stop_event
from stagecoach.security.role import Role
from stagecoach.security.tls_files import TlsFiles
from stagecoach.serving.call_pool import CallPool
from stagecoach.serving.guarded_calls import (
    EVERY_OTHER,
    HEALTH_CHECK,
    HEALTH_WATCH,
    GuardedCalls,
    max_open_calls,
)
from stagecoach.serving.reflection import METHODS as REFLECTION_METHODS
from stagecoach.serving.reflection import reflection_handlers

_MAX_CALLS_PER_CONNECTION = 1024
_MESSAGE_TIMEOUT_S = 10.0
"""Messages are small but for micro-batches, which are not waited for in this way."""
_KEEPALIVE_MS = 5_000
_UNACKNOWLEDGED_MS = 30_000
"""What a coordinator's machine may leave so long without an acknowledgement or without room for it;
a coordinator that is stopped for less goes on where it was."""
_CLOSING_GRACE_S = 0.5
"""Time for statuses on their way and for health watchers, after the streams have ended."""
_HEALTH_NAMES = ("", SERVICE_NAME)

_log = logging.getLogger(__name__)


class StageServer:
    """A gRPC server around one engine; event loop only.

    Args:
        listen: Where to listen.
        limits: Largest messages.
        load: Makes the engine; called on the model thread.
        tls: Who it is, and whose certificates coordinators have to show. None: it speaks plain
            text, and takes anyone for a coordinator.
        board: Where `load` writes how far it is; callers are told until it is done.
        activity: Counts what the server does. None: in one that nobody reads.
    """

    def __init__(
        self,
        listen: Address,
        *,
        limits: MessageLimits,
        load: Callable[[], StageEngine],
        tls: TlsFiles | None = None,
        board: LoadBoard | None = None,
        activity: StageActivity | None = None,
    ) -> None:
        self._listen = listen
        self._load = load
        self._tls = tls
        self._board = board or LoadBoard()
        self._executor = ModelExecutor(max_queued=MAX_IN_FLIGHT + 1)  # and one that frees slots
        self._activity = activity or StageActivity()
        self._servicer = StageServicer(
            self._board, self._activity, only_coordinators=tls is not None
        )
        self._health = health.aio.HealthServicer()
        pools = _call_pools()
        self._server = grpc.aio.server(
            interceptors=(GuardedCalls(pools, message_timeout_s=_MESSAGE_TIMEOUT_S),),
            options=_server_options(limits),
            maximum_concurrent_rpcs=max_open_calls(pools),
        )
        self._server.add_generic_rpc_handlers(
            (
                self._servicer.handlers(),
                *reflection_handlers(SERVICE_NAME, check_caller=self._servicer.check_caller),
            )
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)

    async def start(self) -> Address:
        """Binds and answers calls; health is NOT_SERVING.

        Returns:
            Where it listens, with the port that was taken.

        Raises:
            InvalidArgumentError: The address cannot be bound, or the TLS files are not good.
        """
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        try:
            if self._tls is None:
                port = self._server.add_insecure_port(str(self._listen))
            else:
                # Here, as it takes 10 MB that a stage of plain text can do without.
                from stagecoach.security.credentials import server_credentials

                port = self._server.add_secure_port(
                    str(self._listen), server_credentials(self._tls)
                )
        except RuntimeError as error:
            raise InvalidArgumentError(
                f"cannot listen on {self._listen}: the address is in use or not of this machine",
                field="listen",
            ) from error
        await self._server.start()
        address = self._listen._replace(port=port)
        transport = "TLS" if self._tls else "plain text"
        _log.info("listening", extra={"address": str(address), "transport": transport})
        return address

    async def load(self) -> None:
        """Loads and warms up the engine, then turns health to SERVING.

        Raises:
            Exception: Whatever loading raised.
        """
        started_s = time.perf_counter()
        _log.info("load started")
        engine = await self._executor.submit(self._load)
        self._board.write(LoadProgress(phase=LoadPhase.WARMING_UP))
        await self._executor.submit(engine.warm_up)
        self._servicer.serve(engine, self._executor)
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)
        elapsed_s = time.perf_counter() - started_s
        self._activity.engine = engine
        self._activity.load_s = elapsed_s
        self._activity.is_ready = True
        facts = {"layers": str(engine.info.layers), "elapsed_s": round(elapsed_s, 3)}
        _log.info("load finished", extra=facts)

    async def watch(self, *, hang_timeout_s: float) -> InternalError:
        """Keeps health true to the model thread, once it has loaded, until that is past help.

        Args:
            hang_timeout_s: What a step may take, besides what its tokens add.

        Returns:
            Why the process must end.
        """

        async def on_change(hangs: bool) -> None:
            self._servicer.set_hangs(hangs)
            status = health_pb2.HealthCheckResponse
            await self._set_health(status.NOT_SERVING if hangs else status.SERVING)

        return await watch(self._executor, timeout_s=hang_timeout_s, on_change=on_change)

    async def stop(self, *, grace_s: float) -> bool:
        """Drains, closes the port and ends the model thread.

        Args:
            grace_s: Seconds for the micro-batches in flight.

        Returns:
            False when the model thread is still busy; it dies with the process.
        """
        _log.info("draining", extra={"grace_s": grace_s})
        self._activity.is_ready = False
        await self._health.enter_graceful_shutdown()
        await self._servicer.drain(grace_s=grace_s)
        await self._server.stop(_CLOSING_GRACE_S)
        stopped = await asyncio.to_thread(self._executor.stop, timeout_s=_CLOSING_GRACE_S)
        _log.info("stopped")
        return stopped

    async def _set_health(self, state: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for name in _HEALTH_NAMES:
            await self._health.set(name, state)


def run(config: StageConfig, *, num_lost_log_lines: Callable[[], int]) -> None:
    """Runs a stage server until a signal, or until its parent is gone; blocks.

    Args:
        config: What the operator set.
        num_lost_log_lines: Lines of the log that could not be written.

    Raises:
        StagecoachError: The model cannot be opened or loaded, the address cannot be bound, or the
            certificate is not that of a stage.
    """
    if config.tls is not None:
        # Here, as it takes 10 MB that a stage of plain text can do without.
        from stagecoach.security.credentials import require_own_role

        require_own_role(config.tls, Role.STAGE)
    files = open_model(config.model)
    model = files.config
    if config.layers.end > model.num_layers:
        raise InvalidArgumentError(
            f"layers {config.layers} go beyond the {model.num_layers} layers of {config.model}",
            field="layers",
        )
    limits = message_limits(config, hidden_size=model.hidden_size, vocab_size=model.vocab_size)

    def load() -> StageEngine:
        # Here, because its imports take seconds in which health should answer.
        from stage_server.process.build_engine import build_engine

        return build_engine(config, files, board.write)

    board = LoadBoard()
    activity = StageActivity()
    with ExitStack() as stack:
        metrics_address = None
        if config.metrics_listen is not None:
            # Here, because only those who want metrics need what exports them.
            from stage_server.process.metrics import stage_registry
            from stagecoach.telemetry.metrics_port import metrics_port

            registry = stage_registry(activity, num_lost_log_lines=num_lost_log_lines)
            port = metrics_port(config.metrics_listen.host, config.metrics_listen.port, registry)
            metrics_address = stack.enter_context(port)
        end = uvloop.run(_serve(config, limits, load, board, activity, metrics_address))
    if end.error is not None:
        print(f"stage-server: {end.error.message}", file=sys.stderr)
    if end.error is not None or not end.thread_ended:
        # A model thread inside a kernel would crash the interpreter's own shutdown.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0 if end.error is None else 1)


class _End(NamedTuple):
    """How serving came to its end."""

    error: InternalError | None
    """Why it had to; None when it was told to."""
    thread_ended: bool
    """False when the model thread is still busy."""


async def _serve(
    config: StageConfig,
    limits: MessageLimits,
    load: Callable[[], StageEngine],
    board: LoadBoard,
    activity: StageActivity,
    metrics_address: str | None,
) -> _End:
    """Serves until told to stop, or until the model thread is past help."""
    stop = stop_event(with_parent=config.exit_with_parent)
    server = StageServer(
        config.listen,
        limits=limits,
        load=load,
        tls=config.tls,
        board=board,
        activity=activity,
    )
    address = await server.start()
    if config.json_progress:
        print(json.dumps({"listening": str(address)}), flush=True)
    stopping = asyncio.create_task(stop.wait())
    loading = asyncio.create_task(_load(server, board, config))
    error = None
    try:
        await asyncio.wait({stopping, loading}, return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            await loading
            if config.json_output:
                _print_ready(address, config, metrics_address)
            error = await _watch_until(stopping, server, config)
    finally:
        stopping.cancel()
        loading.cancel()
        grace_s = 0.0 if error else config.drain_grace_s
        thread_ended = await server.stop(grace_s=grace_s)
    return _End(error, thread_ended)


async def _watch_until(
    stopping: asyncio.Task[bool], server: StageServer, config: StageConfig
) -> InternalError | None:
    """Waits for the end; returns None when `stopping` is what came."""
    watching = asyncio.create_task(server.watch(hang_timeout_s=config.hang_timeout_s))
    try:
        await asyncio.wait({stopping, watching}, return_when=asyncio.FIRST_COMPLETED)
        return watching.result() if watching.done() else None
    finally:
        watching.cancel()


async def _load(server: StageServer, board: LoadBoard, config: StageConfig) -> None:
    """Loads, and shows how far it is."""
    async with shown(
        board,
        f"layers {config.layers}",
        write_line=_log.info,
        json_lines=config.json_progress,
    ):
        await server.load()


def _call_pools() -> dict[str, CallPool]:
    """Health has places of its own: it is open to all, and answered whatever else goes on."""
    return {
        HEALTH_CHECK: CallPool(max_calls=256, max_calls_of_peer=64),
        HEALTH_WATCH: CallPool(max_calls=256, max_calls_of_peer=64, is_of_watches=True),
        **dict.fromkeys(REFLECTION_METHODS, CallPool(max_calls=64, max_calls_of_peer=16)),
        EVERY_OTHER: CallPool(max_calls=256, max_calls_of_peer=64),
    }


def _server_options(limits: MessageLimits) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", limits.request_bytes),
        ("grpc.max_send_message_length", limits.response_bytes),
        # By default two servers share a port, and calls go to either.
        ("grpc.so_reuseport", 0),
        *keepalive_options(_KEEPALIVE_MS, unacknowledged_ms=_UNACKNOWLEDGED_MS),
        *permitted_pings(),
        *server_limits(max_calls_per_connection=_MAX_CALLS_PER_CONNECTION),
    ]


def _print_ready(address: Address, config: StageConfig, metrics_address: str | None) -> None:
    ready = {
        "address": str(address),
        "layers": [config.layers.start, config.layers.end],
        "metrics": metrics_address,
        "pid": os.getpid(),
    }
    print(json.dumps(ready), flush=True)
