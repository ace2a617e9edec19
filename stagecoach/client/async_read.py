"""Reads one message of a streaming call, for asyncio."""

import asyncio
from typing import Any

import grpc.aio

from stagecoach.client.channel import Peer, read_error_async
from stagecoach.contract.errors import RequestAbortedError


async def read_message(
    call: "grpc.aio.UnaryStreamCall[Any, Any]", *, peer: Peer, name: str
) -> object:
    """Waits for the next message.

    Args:
        call: The running call.
        peer: The coordinator, for errors.
        name: What the call is to its reader, for errors.

    Returns:
        A response; anything else is grpc's sign that the stream ended in good order.

    Raises:
        RequestAbortedError: The call was cancelled.
        StagecoachError: The call failed.
        asyncio.CancelledError: The task was cancelled.
    """
    try:
        return await call.read()
    except grpc.RpcError as error:
        raise await read_error_async(error, peer) from error
    except asyncio.CancelledError:
        # grpc.aio raises this for the call's own cancellation as well as for that of the task.
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise RequestAbortedError(f"the {name} was closed") from None
