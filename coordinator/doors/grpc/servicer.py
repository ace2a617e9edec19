"""Answers the calls of `stagecoach.v1.GenerationService` from the engines of a catalog.

A call that fails ends with the status of a typed error, never with UNKNOWN; what was not foreseen
is logged here and reaches the client as INTERNAL without details.
"""

import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import grpc.aio

from coordinator.core.catalog import Catalog
from coordinator.doors.embedding import Embedded, embed_all
from coordinator.doors.grpc import embed_messages, messages, step_messages
from coordinator.doors.grpc.unknown_fields import refuse_unknown_fields
from stagecoach.contract import cluster_status_codec
from stagecoach.contract.errors import InternalError, StagecoachError
from stagecoach.v1 import generation_pb2, generation_pb2_grpc

SERVICE_NAME = generation_pb2.DESCRIPTOR.services_by_name["GenerationService"].full_name

GenerateContext = grpc.aio.ServicerContext[
    generation_pb2.GenerateRequest, generation_pb2.GenerateResponse
]
EmbedContext = grpc.aio.ServicerContext[generation_pb2.EmbedRequest, generation_pb2.EmbedResponse]
TokenizeContext = grpc.aio.ServicerContext[
    generation_pb2.TokenizeRequest, generation_pb2.TokenizeResponse
]
GetStatusContext = grpc.aio.ServicerContext[
    generation_pb2.GetStatusRequest, generation_pb2.GetStatusResponse
]
WatchStepsContext = grpc.aio.ServicerContext[
    generation_pb2.WatchStepsRequest, generation_pb2.WatchStepsResponse
]

_log = logging.getLogger(__name__)


class GenerationServicer(generation_pb2_grpc.GenerationServiceServicer):
    """The service; calls are UNAVAILABLE until the catalog is open. Event loop only.

    Args:
        catalog: Holds the engines.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    # `Generate` writes to its context instead of yielding: a call that is cancelled while it sends
    # would leave a generator suspended, and its request running, until the garbage collector came.
    async def Generate(  # type: ignore[override]  # noqa: N802
        self, request: generation_pb2.GenerateRequest, context: GenerateContext
    ) -> None:
        """Streams the events of one request; the end of the call ends the request."""
        with _internal_errors():
            engine = self._catalog.engine(messages.model_name(request))
            stream = await engine.submit(messages.request_spec(request))
            try:
                async for event in stream:
                    await context.write(messages.generate_response(event))
            finally:
                stream.cancel()

    # Writes to its context for the same reason as `Generate`.
    async def Embed(  # type: ignore[override]  # noqa: N802
        self, request: generation_pb2.EmbedRequest, context: EmbedContext
    ) -> None:
        """Streams embeddings as they are done; the end of the call ends the request."""

        async def send(one: Embedded) -> None:
            await context.write(embed_messages.embed_response(one))

        with _internal_errors():
            engine = self._catalog.engine(messages.model_name(request))
            specs = embed_messages.embedding_specs(request)
            await embed_all(engine, specs, send, of_item=embed_messages.of_item)

    async def Tokenize(  # noqa: N802
        self, request: generation_pb2.TokenizeRequest, context: TokenizeContext
    ) -> generation_pb2.TokenizeResponse:
        """Turns a prompt into token ids."""
        with _internal_errors():
            prompt = messages.tokenize_prompt(request)
            engine = self._catalog.engine(messages.model_name(request))
            token_ids = await engine.tokenize(prompt)
            return generation_pb2.TokenizeResponse(token_ids=token_ids)

    async def GetStatus(  # noqa: N802
        self, request: generation_pb2.GetStatusRequest, context: GetStatusContext
    ) -> generation_pb2.GetStatusResponse:
        """Reports the state of the coordinator, of every model and of every stage."""
        with _internal_errors():
            refuse_unknown_fields(request, "GetStatusRequest")
            return cluster_status_codec.to_message(await self._catalog.process().status())

    # Writes to its context for the same reason as `Generate`.
    async def WatchSteps(  # type: ignore[override]  # noqa: N802
        self, request: generation_pb2.WatchStepsRequest, context: WatchStepsContext
    ) -> None:
        """Streams what each micro-batch did, until the call ends."""
        with _internal_errors():
            refuse_unknown_fields(request, "WatchStepsRequest")
            feed = self._catalog.engine(messages.model_name(request)).watch_steps()
            try:
                await context.write(step_messages.watch_started(feed.origin_ns))
                async for chunk in feed:
                    await context.write(step_messages.step_chunk(chunk, feed.origin_ns))
            finally:
                feed.close()


@contextmanager
def _internal_errors() -> Iterator[None]:
    """Logs what nobody foresaw inside, and makes it an error that says no more than a reference.

    Errors of ours pass: `GuardedCalls` ends the call with their status.
    """
    try:
        yield
    except StagecoachError:
        raise
    except Exception as error:  # a bug; whoever called shall be told no more of it
        reference = secrets.token_hex(4)
        _log.exception("internal error %s", reference)
        raise InternalError(
            f"internal error; the coordinator's log has it as {reference}"
        ) from error
