"""Server reflection: tells a generic client, such as grpcurl, what it may call and how.

Answers under both names that clients ask for; `v1` and `v1alpha` have the same messages.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection, reflection_pb2

SERVICE_NAMES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
METHODS = tuple(f"/{name}/ServerReflectionInfo" for name in SERVICE_NAMES)

Context = grpc.aio.ServicerContext[Any, Any]


async def _everyone(_context: Context) -> None:
    """Lets every caller ask."""


def reflection_handlers(
    service_name: str, *, check_caller: Callable[[Context], Awaitable[None]] = _everyone
) -> Sequence[grpc.GenericRpcHandler]:
    """Returns what registers reflection with a server of `grpc.aio`.

    Args:
        service_name: The server's own service; health and reflection are named beside it.
        check_caller: Aborts a call whose caller may not call the service either.
    """
    names = (service_name, health.SERVICE_NAME, *SERVICE_NAMES)
    servicer = reflection.aio.ReflectionServicer(names)

    async def info(requests: AsyncIterator[Any], context: Context) -> None:
        await check_caller(context)
        async with aclosing(servicer.ServerReflectionInfo(requests, context)) as answers:
            async for answer in answers:
                await context.write(answer)

    method = grpc.stream_stream_rpc_method_handler(
        info,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return [
        grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": method})
        for name in SERVICE_NAMES
    ]
