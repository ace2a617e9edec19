"""`StageService`: says what the stage is, and opens Forward streams.

Checks who opens a stream and gives the stream the lease; `stream` then serves that stream.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import NamedTuple, NoReturn

import grpc

from stage_server.compute.executor import ModelExecutor
from stage_server.core.activity import StageActivity
from stage_server.core.engine import DeviceLostError, StageEngine
from stage_server.core.load_board import LoadBoard
from stage_server.wire.answer import parse_request
from stage_server.wire.lease import StageLease
from stage_server.wire.stream import ForwardContext, ForwardStream
from stagecoach.contract import stage_info_codec, status
from stagecoach.contract.errors import (
    IncompatibleError,
    InternalError,
    InvalidArgumentError,
    LoadingError,
    StagecoachError,
    UnavailableError,
    draining_error,
)
from stagecoach.contract.protocol import PROTOCOL_VERSION
from stagecoach.contract.stage_info import StageInfo
from stagecoach.security.peer import require_role
from stagecoach.security.role import Role
from stagecoach.v1 import stage_pb2

SERVICE_NAME = "stagecoach.v1.StageService"

_MAX_COORDINATOR_ID_CHARS = 256
_MAX_SHOWN_CHARS = 128
"""Most characters of what a peer sent that it is told back: an error has to fit into the headers of
a response."""

InfoContext = grpc.aio.ServicerContext[bytes, stage_pb2.GetInfoResponse]

_log = logging.getLogger(__name__)


class _Stage(NamedTuple):
    """What there is to serve once the model is loaded."""

    engine: StageEngine
    lease: StageLease


class StageServicer:
    """Implements `stagecoach.v1.StageService`; event loop only.

    Refuses calls with UNAVAILABLE until `serve`, after `drain`, and while the model thread hangs.

    Args:
        board: Says how far the loading is, until `serve`.
        activity: Counts streams and micro-batches.
        only_coordinators: Refuse peers whose certificate is not that of a coordinator; every call
            of this service is refused then, unlike those about health.
    """

    def __init__(
        self, board: LoadBoard, activity: StageActivity, *, only_coordinators: bool
    ) -> None:
        self._board = board
        self._activity = activity
        self._only_coordinators = only_coordinators
        self._stage: _Stage | None = None
        self._draining = False
        self._hangs = False
        self._streams: set[ForwardStream] = set()
        self._no_streams = asyncio.Event()
        self._no_streams.set()

    def handlers(self) -> grpc.GenericRpcHandler:
        """Returns what registers this service with a server.

        Requests stay bytes: those of Forward, with their answers, belong to the model thread, and
        that of GetInfo has no fields.
        """
        return grpc.method_handlers_generic_handler(
            SERVICE_NAME,
            {
                "GetInfo": grpc.unary_unary_rpc_method_handler(
                    self.get_info,
                    response_serializer=stage_pb2.GetInfoResponse.SerializeToString,
                ),
                "Forward": grpc.stream_stream_rpc_method_handler(self.forward),
            },
        )

    def serve(self, engine: StageEngine, executor: ModelExecutor) -> None:
        """Begins to serve a loaded engine that `executor` owns."""
        self._stage = _Stage(engine, StageLease(engine, executor))

    def set_hangs(self, hangs: bool) -> None:
        """Says that the model thread hangs, or that it works again."""
        self._hangs = hangs

    async def drain(self, *, grace_s: float) -> None:
        """Opens no more streams and ends the open ones once their micro-batches are answered.

        Returns when they have ended, or after `grace_s`.
        """
        self._draining = True
        for stream in self._streams:
            stream.drain()
        try:
            async with asyncio.timeout(grace_s):
                await self._no_streams.wait()
        except TimeoutError:
            _log.warning("a stream did not end in time", extra={"grace_s": grace_s})

    async def get_info(self, _request: bytes, context: InfoContext) -> stage_pb2.GetInfoResponse:
        """Answers `GetInfo`, also while the model is busy. The request has no fields."""
        try:
            self._check_peer(context)
            engine = self._ready().engine
        except StagecoachError as error:
            await _abort(context, error)
        info = replace(engine.info, num_free_kv_blocks=engine.num_free_kv_blocks)
        return stage_info_codec.to_message(info)

    async def check_caller(self, context: InfoContext) -> None:
        """Aborts a call of another service whose caller may not call this one."""
        try:
            self._check_peer(context)
        except StagecoachError as error:
            await _abort(context, error)

    async def forward(self, requests: AsyncIterator[bytes], context: ForwardContext) -> None:
        """Answers `Forward` from its opening to its end, and says why it ended."""
        try:
            await self._forward(requests, context)
        except StagecoachError as error:
            self._activity.stream_errors[error.reason] += 1
            await _abort(context, error)
        except grpc.aio.BaseError:
            raise  # the call is broken already
        except DeviceLostError:
            await _abort(context, UnavailableError("the stage's device is lost"))
        except Exception:  # a bug; the peer shall be told no more of it than where to look
            _log.exception("a stream failed")
            self._activity.stream_errors[InternalError.reason] += 1
            await _abort(context, InternalError("the stage failed; its log says why"))

    async def _forward(self, requests: AsyncIterator[bytes], context: ForwardContext) -> None:
        self._check_peer(context)
        stage = self._ready()
        info = stage.engine.info
        opening = await _read_open(requests)
        _check_opening(opening, info)
        async with stage.lease.hold(opening.coordinator_id, opening.epoch) as tenure:
            opened = stage_pb2.StreamOpened(epoch=opening.epoch)
            await context.write(stage_pb2.ForwardResponse(opened=opened).SerializeToString())
            if self._draining:
                raise draining_error()
            stream = ForwardStream(context, tenure, self._activity)
            facts = {"coordinator_id": opening.coordinator_id, "epoch": opening.epoch}
            _log.info("stream opened", extra=facts)
            self._streams.add(stream)
            self._no_streams.clear()
            self._activity.num_streams_opened += 1
            self._activity.num_open_streams = len(self._streams)
            try:
                await stream.run()
            finally:
                self._streams.discard(stream)
                self._activity.num_open_streams = len(self._streams)
                if not self._streams:
                    self._no_streams.set()
                _log.info("stream closed", extra=facts)

    def _check_peer(self, context: InfoContext | ForwardContext) -> None:
        if self._only_coordinators:
            require_role(Role.COORDINATOR, context.auth_context())

    def _ready(self) -> _Stage:
        if self._stage is None:
            progress = self._board.progress
            raise LoadingError(f"the stage is {progress}", progress=progress)
        if self._draining:
            raise draining_error()
        if self._hangs:
            raise UnavailableError("the stage's model thread hangs")
        return self._stage


async def _read_open(requests: AsyncIterator[bytes]) -> stage_pb2.OpenStream:
    """Reads the first message, which must open the stream."""
    data = await anext(requests, None)
    request = None if data is None else parse_request(data)
    payload = None if request is None else request.WhichOneof("payload")
    if request is None or payload != "open":
        raise InvalidArgumentError(
            f"payload is {payload or 'unset'}, must be open in the first message", field="payload"
        )
    return request.open


def _check_opening(opening: stage_pb2.OpenStream, info: StageInfo) -> None:
    """Refuses a coordinator that means another stage than this one."""
    if not 1 <= len(opening.coordinator_id) <= _MAX_COORDINATOR_ID_CHARS:
        raise InvalidArgumentError(
            f"coordinator_id has {len(opening.coordinator_id)} characters, must have 1 to "
            f"{_MAX_COORDINATOR_ID_CHARS}",
            field="coordinator_id",
        )
    layers = f"{opening.layers.start}:{opening.layers.end}"
    for name, found, own in (
        ("protocol_version", str(opening.protocol_version), str(PROTOCOL_VERSION)),
        ("fingerprint", opening.fingerprint, info.fingerprint),
        ("layers", layers, str(info.layers)),
    ):
        if found != own:
            shown = found[:_MAX_SHOWN_CHARS]
            raise IncompatibleError(
                f"the coordinator expects {name} {shown!r}, this stage has {own!r}",
                field=name,
                expected=shown,
                found=own,
            )


async def _abort(context: InfoContext | ForwardContext, error: StagecoachError) -> NoReturn:
    code, message, metadata = status.trailing_metadata(error)
    await context.abort(code, message, metadata)
