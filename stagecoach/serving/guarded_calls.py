"""Reads the requests of a server of `grpc.aio`, each within a time, and bounds its open calls.

grpc.aio by itself waits for a request for ever, sends no status when a client closes its side
without one, and answers UNKNOWN, with a traceback in the log, to bytes that are no message. It does
all that before a method of ours runs. So every method is made one that takes a stream of bytes.
"""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from ipaddress import IPv6Address
from typing import Any
from urllib.parse import unquote

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from stagecoach.contract.errors import DeadlineExceededError, InvalidArgumentError, StagecoachError
from stagecoach.contract.status import trailing_metadata
from stagecoach.serving.call_pool import CallPool, Place

HEALTH_CHECK = "/grpc.health.v1.Health/Check"
HEALTH_WATCH = "/grpc.health.v1.Health/Watch"
EVERY_OTHER = ""
"""Stands, in place of a method, for every method that is not named."""

Context = grpc.aio.ServicerContext[Any, Any]


def host_of(context: Context) -> str:
    """The host at the other end of a call: an IPv4 address, or the network of an IPv6 address.

    Who has one IPv6 address has the 2^64 beside it.
    """
    kind, _, address = unquote(context.peer()).partition(":")
    if kind not in ("ipv4", "ipv6"):
        return kind  # a socket of this machine
    host = address.rpartition(":")[0].strip("[]")
    if kind == "ipv4":
        return host
    return f"{IPv6Address(int.from_bytes(IPv6Address(host).packed[:8]) << 64)}/64"


def max_open_calls(pools: Mapping[str, CallPool]) -> int:
    """Bound on the calls of a server, for `grpc.aio.server`, which refuses those above it.

    Twice what the pools hold: a call that was refused or ended is counted until its client has read
    that, or its connection is lost.
    """
    return 2 * sum(pool.max_calls for pool in set(pools.values()))


class GuardedCalls(grpc.aio.ServerInterceptor):
    """Gives each call a place in a pool, and its method the requests of the call.

    Methods are coroutine functions that write to their context. One that takes a stream gets an
    iterator that waits for each message no longer than the limit; what may come later is read from
    the context, as bytes. A method that is not a coroutine function, such as one that its servicer
    inherits and does not implement, is UNIMPLEMENTED.

    Args:
        pools: By method, as in `/package.Service/Method`; `EVERY_OTHER` is the rest.
        message_timeout_s: Until a message must have come.
        peer_of: Whose call it is, for the pool.
    """

    def __init__(
        self,
        pools: Mapping[str, CallPool],
        *,
        message_timeout_s: float,
        peer_of: Callable[[Context], str] = host_of,
    ) -> None:
        self._pools = pools
        self._message_timeout_s = message_timeout_s
        self._peer_of = peer_of

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable["grpc.RpcMethodHandler[Any, Any] | None"]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """Returns the handler that guards the call; None when there is no such method."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        behavior = _behavior(handler)
        if not inspect.iscoroutinefunction(behavior):
            return None
        pool = self._pools.get(method) or self._pools[EVERY_OTHER]

        async def answer(_requests: object, context: Context) -> Any:  # noqa: ANN401
            try:
                place = pool.take(self._peer_of(context))
                # Until the status is sent, as a client may leave no room for it.
                context.add_done_callback(lambda _context: place.free())  # type: ignore[arg-type]
                requests = _Requests(
                    place, context, method, handler.request_deserializer, self._message_timeout_s
                )
                if handler.request_streaming:
                    return await behavior(requests, context)
                request = await anext(requests, None)
                if request is None:
                    raise InvalidArgumentError(f"{method} came without a message")
                if not pool.is_of_watches:
                    return await behavior(request, context)
                async with place.waiting(None):
                    return await behavior(request, context)
            except StagecoachError as error:
                await context.abort(*trailing_metadata(error))

        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(
                answer, response_serializer=handler.response_serializer
            )
        return grpc.stream_unary_rpc_method_handler(
            answer, response_serializer=handler.response_serializer
        )


class _Requests:
    """The messages of one call, each within the time."""

    def __init__(
        self,
        place: Place,
        context: Context,
        method: str,
        decode: Callable[[bytes], Any] | None,
        timeout_s: float,
    ) -> None:
        self._place = place
        self._context = context
        self._method = method
        self._decode = decode
        self._timeout_s = timeout_s

    def __aiter__(self) -> "_Requests":
        return self

    async def __anext__(self) -> Any:  # noqa: ANN401
        """Reads the next one.

        Raises:
            InvalidArgumentError: It cannot be decoded.
            DeadlineExceededError: It did not come.
            QueueFullError: Another call needed the place.
        """
        try:
            async with self._place.waiting(self._timeout_s):
                data = await self._context.read()
        except TimeoutError:
            raise DeadlineExceededError(
                f"no message of {self._method} within {self._timeout_s:g} s"
            ) from None
        if not isinstance(data, bytes):
            raise StopAsyncIteration
        if self._decode is None:
            return data
        try:
            return self._decode(data)
        except DecodeError:
            raise InvalidArgumentError(
                f"{len(data)} bytes are not a request of {self._method}"
            ) from None


def _behavior(
    handler: "grpc.RpcMethodHandler[Any, Any]",
) -> Callable[[Any, Context], Awaitable[Any]]:
    """The method itself; typed as coroutine function, which the caller checks."""
    behaviors: dict[tuple[bool, bool], Any] = {
        (False, False): handler.unary_unary,
        (False, True): handler.unary_stream,
        (True, False): handler.stream_unary,
        (True, True): handler.stream_stream,
    }
    behavior: Callable[[Any, Context], Awaitable[Any]] = behaviors[
        handler.request_streaming, handler.response_streaming
    ]
    return behavior
