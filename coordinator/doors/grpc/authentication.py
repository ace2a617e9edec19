"""Asks every call for its API key before anything else of it is looked at."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
import grpc.aio

from coordinator.doors.access.callers import Callers, current_caller
from stagecoach.contract.errors import UnauthenticatedError
from stagecoach.contract.status import trailing_metadata

_OPEN_TO_ALL = "/grpc.health.v1.Health/"

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")


class Authentication(grpc.aio.ServerInterceptor):
    """Refuses every call without a good key; health alone is open to all.

    Args:
        callers: Knows the keys.
    """

    def __init__(self, callers: Callers) -> None:
        self._callers = callers

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails],
            Awaitable["grpc.RpcMethodHandler[RequestT, ResponseT] | None"],
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[RequestT, ResponseT] | None":
        """Names the caller for whoever answers this call, or answers it with UNAUTHENTICATED."""
        if not handler_call_details.method.startswith(_OPEN_TO_ALL):
            values = [
                value
                for name, value in handler_call_details.invocation_metadata or ()
                if name == "authorization"
            ]
            try:
                caller = self._callers.authenticate(str(values[0]) if values else None)
            except UnauthenticatedError as error:
                return _refusal(error)
            current_caller.set(caller)
        return await continuation(handler_call_details)


def _refusal(error: UnauthenticatedError) -> "grpc.RpcMethodHandler[Any, Any]":
    async def refuse(_requests: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        await context.abort(*trailing_metadata(error))

    # Of a kind that waits for no message, whatever the call is.
    return grpc.stream_stream_rpc_method_handler(refuse)
