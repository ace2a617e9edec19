"""The life of the gRPC door: bind, serve the engines of a catalog, drain, stop.

The port is bound before the engines exist, so that a port in use is found at once and health can
say NOT_SERVING while the stages load.
"""

import asyncio
import logging
from typing import Any

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from coordinator.core.catalog import Catalog
from coordinator.core.process_state import ProcessState
from coordinator.doors.access.callers import Callers, current_caller
from coordinator.doors.grpc.authentication import Authentication
from coordinator.doors.grpc.servicer import SERVICE_NAME, GenerationServicer
from stagecoach.contract.address import Address
from stagecoach.contract.errors import UnavailableError
from stagecoach.contract.keepalive import keepalive_options, permitted_pings
from stagecoach.contract.limits import max_request_bytes, server_limits
from stagecoach.security.credentials import server_credentials
from stagecoach.security.tls_files import TlsFiles
from stagecoach.serving.call_pool import CallPool
from stagecoach.serving.guarded_calls import (
    EVERY_OTHER,
    HEALTH_CHECK,
    HEALTH_WATCH,
    GuardedCalls,
    host_of,
    max_open_calls,
)
from stagecoach.serving.reflection import METHODS as REFLECTION_METHODS
from stagecoach.serving.reflection import reflection_handlers
from stagecoach.v1 import generation_pb2_grpc

_MAX_OTHER_CALLS = 2048
"""Besides the requests that wait: those that run, status, tokenization."""
_MESSAGE_TIMEOUT_S = 60.0
"""Time for a whole message to arrive, as for a request over HTTP."""
_KEEPALIVE_MS = 10_000
_PING_ANSWER_MS = 120_000
"""How long an answer to a ping may take: it waits behind a prompt of megabytes that comes over a
slow link."""
_CLOSING_GRACE_S = 1.0
"""Time for the last events and statuses on their way, after the engine has ended all requests."""
_HEALTH_NAMES = ("", SERVICE_NAME)

_log = logging.getLogger(__name__)


def max_calls_of_caller(max_num_waiting: int) -> int:
    """Most calls of one API key at once, or of one host where there are no keys.

    Above what the waiting queue holds, so that the queue is what refuses, unless more than 2048
    requests run at once.

    Args:
        max_num_waiting: Most requests that wait.
    """
    return max_num_waiting + _MAX_OTHER_CALLS


class GenerationServer:
    """A gRPC server around the engines of one process. Event loop only.

    Args:
        catalog: Holds the engines, now or later; requests are UNAVAILABLE until it does.
        listen: Where; port 0 takes a free one.
        max_model_len: Most tokens of one request; bounds the messages.
        max_num_waiting: Most requests that wait; bounds the calls.
        tls: Who it is. None: it speaks plain text.
        callers: Whose API keys are good. None: no key is needed.
    """

    def __init__(
        self,
        catalog: Catalog,
        listen: Address,
        *,
        max_model_len: int,
        max_num_waiting: int,
        tls: TlsFiles | None = None,
        callers: Callers | None = None,
    ) -> None:
        self._listen = listen
        self._tls = tls
        self._catalog = catalog
        self._reporter: asyncio.Task[None] | None = None
        self._health = health.aio.HealthServicer()
        max_calls = max_calls_of_caller(max_num_waiting)
        pools = _call_pools(max_calls)
        guard = GuardedCalls(pools, message_timeout_s=_MESSAGE_TIMEOUT_S, peer_of=_peer_of)
        self._server = grpc.aio.server(
            interceptors=(guard,) if callers is None else (Authentication(callers), guard),
            options=[
                *_server_options(max_request_bytes(max_model_len)),
                *server_limits(max_calls_per_connection=2 * max_calls),
            ],
            maximum_concurrent_rpcs=max_open_calls(pools),
        )
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(
            GenerationServicer(catalog), self._server
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._server.add_generic_rpc_handlers(reflection_handlers(SERVICE_NAME))

    async def start(self) -> str:
        """Binds and answers calls; health is NOT_SERVING and requests are UNAVAILABLE.

        Returns:
            HOST:PORT, with the port that was taken.

        Raises:
            UnavailableError: The address cannot be bound.
            InvalidArgumentError: The TLS files are not good.
        """
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        try:
            if self._tls is None:
                port = self._server.add_insecure_port(str(self._listen))
            else:
                port = self._server.add_secure_port(
                    str(self._listen), server_credentials(self._tls)
                )
        except RuntimeError as error:
            raise UnavailableError(
                f"cannot listen on {self._listen}: the address is in use or not of this machine"
            ) from error
        await self._server.start()
        address = str(self._listen._replace(port=port))
        transport = "TLS" if self._tls else "plain text"
        _log.info("listening", extra={"address": address, "transport": transport})
        return address

    async def serve(self) -> None:
        """Makes health SERVING from now on while requests are served; needs an open catalog."""
        process = self._catalog.process()
        await self._set_health(_health(is_ready=process.is_ready))
        self._reporter = asyncio.create_task(self._report(process), name="health")

    async def stop(self, *, grace_s: float) -> None:
        """Drains and closes the port, and every engine of the catalog.

        Args:
            grace_s: Seconds for requests that were accepted; the rest fail as UNAVAILABLE.
        """
        if self._reporter is not None:
            self._reporter.cancel()
            await asyncio.wait({self._reporter})
        await self._health.enter_graceful_shutdown()
        if self._catalog.is_open:
            _log.info("draining", extra={"grace_s": grace_s})
            await self._catalog.process().close(grace_s)
        await self._server.stop(_CLOSING_GRACE_S)
        _log.info("stopped")

    async def _report(self, process: ProcessState) -> None:
        """Keeps health true to the process."""
        while True:
            is_ready = process.is_ready
            await self._set_health(_health(is_ready=is_ready))
            await process.wait_ready(ready=not is_ready)

    async def _set_health(self, state: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for name in _HEALTH_NAMES:
            await self._health.set(name, state)


def _health(*, is_ready: bool) -> health_pb2.HealthCheckResponse.ServingStatus:
    states = health_pb2.HealthCheckResponse
    return states.SERVING if is_ready else states.NOT_SERVING


def _call_pools(max_calls_of_caller: int) -> dict[str, CallPool]:
    """Health has places of its own: it is open to all, and answered whatever else goes on."""
    reflection = CallPool(max_calls=256, max_calls_of_peer=32)
    return {
        HEALTH_CHECK: CallPool(max_calls=1024, max_calls_of_peer=128),
        HEALTH_WATCH: CallPool(max_calls=1024, max_calls_of_peer=128, is_of_watches=True),
        **dict.fromkeys(REFLECTION_METHODS, reflection),
        EVERY_OTHER: CallPool(
            max_calls=2 * max_calls_of_caller, max_calls_of_peer=max_calls_of_caller
        ),
    }


def _peer_of(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """Whose call it is: of an API key, or of a host."""
    caller = current_caller.get()
    return host_of(context) if caller is None else f"API key {caller.name!r}"


def _server_options(message_bytes: int) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", message_bytes),
        ("grpc.max_send_message_length", message_bytes),
        # By default two servers share a port, and calls go to either.
        ("grpc.so_reuseport", 0),
        *keepalive_options(
            _KEEPALIVE_MS, unacknowledged_ms=_KEEPALIVE_MS, answer_ms=_PING_ANSWER_MS
        ),
        *permitted_pings(),
    ]
