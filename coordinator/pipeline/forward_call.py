"""The Forward call of gRPC, with its types."""

import grpc.aio

from stagecoach.v1 import stage_pb2

ForwardCall = grpc.aio.StreamStreamCall[stage_pb2.ForwardRequest, stage_pb2.ForwardResponse]


async def read(call: ForwardCall) -> stage_pb2.ForwardResponse | None:
    """Returns the next message; None at the end of the stream."""
    message = await call.read()
    return message if isinstance(message, stage_pb2.ForwardResponse) else None
