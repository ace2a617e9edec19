"""The link to one stage: a channel, one Forward stream, and the micro-batches in flight on it.

One reader task owns the stream's answers and resolves a future for each micro-batch; another looks
at the connection and at the clock, since cancelling a read would break the stream. Writes go out in
the order of the calls, which keeps slot operations in order. What the stage says of itself comes
over a connection of its own, where it waits behind no tensor. gRPC's own retries are off: replay is
ours.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import grpc
import grpc.aio

from coordinator.pipeline.call_ending import CallEnding, unless_cancelled
from coordinator.pipeline.channel_socket import ChannelSocket, new_user_timeout_ms
from coordinator.pipeline.liveness import PINGS_PER_KEEPALIVE, WATCH_PERIOD_S
from coordinator.pipeline.step_deadline import StepDeadline, StepTimeouts
from coordinator.pipeline.stream_watch import StreamWatch
from stagecoach.contract import stage_info_codec, status
from stagecoach.contract.errors import (
    DeadlineExceededError,
    IncompatibleError,
    InvalidArgumentError,
    StagecoachError,
    UnauthenticatedError,
    UnavailableError,
    is_draining,
)
from stagecoach.contract.keepalive import keepalive_options, strict_keepalive_options
from stagecoach.contract.protocol import PROTOCOL_VERSION
from stagecoach.contract.stage_info import StageInfo
from stagecoach.contract.step_record import StageVisit
from stagecoach.security.credentials import channel_credentials, read_tls
from stagecoach.security.diagnosis import Trust, explained
from stagecoach.security.role import Role
from stagecoach.security.served import certificate_of_role
from stagecoach.security.tls_files import TlsFiles
from stagecoach.v1 import stage_pb2, stage_pb2_grpc

ForwardCall = grpc.aio.StreamStreamCall[stage_pb2.ForwardRequest, stage_pb2.ForwardResponse]

MESSAGE_HEADROOM_BYTES = 1 << 20
"""Room in a message for everything that is not a tensor."""

MAX_PATIENCE = 4
"""A stage that was not reached in time has twice as long the next time, up to so many times."""

NUM_HANDSHAKES = 4
"""A call on a new connection takes so many times a look at the certificate: a handshake, the first
frames of HTTP/2, the call, and one more for what is slower at times."""

MAX_MESSAGE_BYTES = 2**31 - 1
"""gRPC keeps message sizes in a 32-bit integer."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkConfig:
    """Deadlines of a link, in seconds."""

    connect_timeout_s: float = 5.0
    """For GetInfo and for opening the stream, at first."""
    step: StepTimeouts = field(default_factory=StepTimeouts)
    """For one micro-batch, once those before it are answered."""
    keepalive_s: float = 5.0
    """A stage that is cut off is lost after twice as long. Connections on which nothing comes are
    pinged more often."""


class Loss(NamedTuple):
    """What was lost with a stream that ended without being asked to."""

    micro_batch_ids: frozenset[int]
    """Those that the stage was sent and did not answer: what it may have been lost by."""
    is_announced: bool
    """True when the stage said that it stops, so that nothing is to blame."""


class _Stream(NamedTuple):
    """A Forward stream that is open."""

    call: ForwardCall
    ending: CallEnding
    watch: StreamWatch


class StageReply(NamedTuple):
    """What a stage made of a micro-batch."""

    result: stage_pb2.MicroBatchResult
    visit: StageVisit


class StageLink:
    """Talks to one stage server. Used from one event loop.

    Args:
        address: HOST:PORT.
        coordinator_id: Identity of this coordinator process.
        config: Deadlines.
        on_lost: Called once each time an open stream ends without being asked to, with the link.
        tls: What this coordinator shows to the stage, and whom it takes for one. None: plain text.
    """

    def __init__(
        self,
        address: str,
        *,
        coordinator_id: str,
        config: LinkConfig,
        on_lost: Callable[["StageLink", Loss], None],
        tls: TlsFiles | None = None,
    ) -> None:
        self._tls = tls
        self.address = address
        self._coordinator_id = coordinator_id
        self._config = config
        self._on_lost = on_lost
        self.num_losses = 0
        """Times that an open stream ended without being asked to."""
        self._channel: grpc.aio.Channel | None = None
        """For what the stage says of itself."""
        self._stream_channel: grpc.aio.Channel | None = None
        self._stream: _Stream | None = None
        self._tasks: tuple[asyncio.Task[None], ...] = ()
        self._write_lock = asyncio.Lock()
        self._pending: dict[int, asyncio.Future[_Arrival | StagecoachError]] = {}
        self._deadline = StepDeadline(config.step)
        self._can_look = True
        """False when the connection of a stream could not be looked at."""
        self._patience = 1.0
        """Times that reaching the stage may take what it may at first. Grows with what was late or
        slow, until a stream is open."""
        self._certificate: bytes | None = None
        """What the stage showed on this way to an open stream, as PEM; on a long way every look at
        it counts."""

    @property
    def is_open(self) -> bool:
        """True while the Forward stream is up."""
        return self._stream is not None

    async def get_info(self, timeout_s: float | None = None) -> StageInfo:
        """Asks the stage what it is.

        Args:
            timeout_s: None for that of the configuration, or longer when that was too short.

        Raises:
            UnavailableError: It cannot be reached in time, or is loading.
            UnauthenticatedError: One side does not take the other's certificate; says why.
            IncompatibleError: It speaks another version of the protocol.
            StagecoachError: As the stage answered.
        """
        if self._channel is None:
            credentials = await self._credentials()
            if self._channel is None:  # nobody else has asked meanwhile
                answer_ms = int(self._patience * self._keepalive_ms)
                self._channel = self._new_channel(
                    credentials, strict_keepalive_options(self._keepalive_ms, answer_ms=answer_ms)
                )
        channel = self._channel
        stub = stage_pb2_grpc.StageServiceStub(channel)
        try:
            message = await stub.GetInfo(
                stage_pb2.GetInfoRequest(), timeout=timeout_s or self._connect_timeout_s
            )
        except grpc.RpcError as error:
            cause = unless_cancelled(status.from_rpc_error(error))
            is_late = isinstance(cause, DeadlineExceededError)
            if is_late and timeout_s is None:
                self._be_patient()
            if not is_late:
                self._certificate = None  # it may have another
            if self._channel is channel and not (is_late and self.is_open):
                self._channel = None
                await channel.close()  # the next one reads the files again
            raise self._named(await self._explained(cause)) from error
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            raise UnavailableError(f"stage {self.address}: the connection was closed") from None
        if message.protocol_version != PROTOCOL_VERSION:
            raise IncompatibleError(
                f"stage {self.address}: protocol version is {message.protocol_version}, expected"
                f" {PROTOCOL_VERSION}",
                stage=self.address,
                found=message.protocol_version,
                expected=PROTOCOL_VERSION,
            )
        try:
            return stage_info_codec.from_message(message)
        except InvalidArgumentError as error:
            raise IncompatibleError(
                f"stage {self.address} does not say what it is: {error.message}",
                stage=self.address,
            ) from error

    async def open(self, info: StageInfo, epoch: int) -> None:
        """Opens the Forward stream to the stage that `info` describes; all its slots are empty.

        Raises:
            UnavailableError: The stage cannot be reached in time.
            IncompatibleError: The stage is another one than `info` says, or is held by another
                coordinator.
            StaleStateError: The stage has seen a higher epoch.
        """
        assert self._stream is None, "the link is open already"
        call, ending, socket = await self._open_stream(info, epoch)
        if socket is None and call.done():  # so is its connection
            raise self._named(await ending.error())
        if socket is None and self._can_look:
            self._can_look = False
            _log.warning(
                "cannot look at the connection, a slow link may count as dead",
                extra={"stage": self.address},
            )
            call.cancel()
            call, ending, socket = await self._open_stream(info, epoch + 1)
        watch = StreamWatch(
            self._deadline,
            keepalive_s=self._config.keepalive_s,
            num_token_bytes=4 * info.hidden_size,
            now_s=asyncio.get_running_loop().time(),
        )
        stream = self._stream = _Stream(call, ending, watch)
        self._tasks = (
            asyncio.create_task(self._take_answers(stream), name=f"reader {self.address}"),
            asyncio.create_task(self._watch(stream, socket), name=f"watch {self.address}"),
        )

    async def _open_stream(
        self, info: StageInfo, epoch: int
    ) -> tuple[ForwardCall, CallEnding, ChannelSocket | None]:
        """Opens a stream on a connection of its own, and finds its socket if that can be done."""
        await self._close_stream_channel()
        user_timeout_ms = new_user_timeout_ms()
        options = (
            keepalive_options(
                int(self._keepalive_ms / PINGS_PER_KEEPALIVE), unacknowledged_ms=user_timeout_ms
            )
            if self._can_look
            else strict_keepalive_options(self._keepalive_ms)
        )
        max_message_bytes = _max_message_bytes(info)
        options += [
            ("grpc.max_send_message_length", max_message_bytes),
            ("grpc.max_receive_message_length", max_message_bytes),
        ]
        self._stream_channel = self._new_channel(await self._credentials(), options)
        call: ForwardCall = stage_pb2_grpc.StageServiceStub(self._stream_channel).Forward()
        ending = CallEnding(call)
        request = stage_pb2.ForwardRequest(
            open=stage_pb2.OpenStream(
                protocol_version=PROTOCOL_VERSION,
                fingerprint=info.fingerprint,
                layers=stage_pb2.LayerRange(start=info.layers.start, end=info.layers.end),
                coordinator_id=self._coordinator_id,
                epoch=epoch,
            )
        )
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                await call.write(request)
                response = await _read(call)
        except TimeoutError as error:
            call.cancel()
            problem = f"did not open a stream within {self._connect_timeout_s:g} s"
            self._be_patient()
            raise UnavailableError(f"stage {self.address} {problem}") from error
        except (grpc.RpcError, asyncio.InvalidStateError) as error:
            self._certificate = None
            raise self._named(await ending.error()) from error
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            raise UnavailableError(f"stage {self.address}: the connection was closed") from None
        self._certificate = None
        if response is None:
            raise self._named(await ending.error())
        if response.WhichOneof("payload") != "opened" or response.opened.epoch != epoch:
            call.cancel()
            raise IncompatibleError(f"stage {self.address} did not answer `open` with `opened`")
        self._patience = 1.0
        if not self._can_look:
            return call, ending, None
        return call, ending, await asyncio.to_thread(ChannelSocket.find, user_timeout_ms)

    async def forward(self, request: stage_pb2.ForwardRequest, num_tokens: int) -> StageReply:
        """Sends a micro-batch and waits for its result.

        Args:
            request: The micro-batch; the caller may change it once this returns.
            num_tokens: Its rows, which the deadline depends on.

        Raises:
            UnavailableError: The stream is or goes down.
            DeadlineExceededError: No answer in time; the stream is taken down.
            StagecoachError: The stage refused or failed this micro-batch; the stream goes on.
        """
        stream = self._stream
        if stream is None:
            raise UnavailableError(f"stage {self.address} is not connected")
        started_ns = time.perf_counter_ns()
        loop = asyncio.get_running_loop()
        micro_batch_id = request.micro_batch.micro_batch_id
        future = self._pending[micro_batch_id] = loop.create_future()
        try:
            async with self._write_lock:
                if not future.done():  # given up while it waited
                    stream.watch.send(micro_batch_id, num_tokens, loop.time())
                    await stream.call.write(request)
            arrival = await future
        except asyncio.CancelledError:
            # As when the watch cancels a call that does not take a write.
            if _is_cancelled() or not future.done():
                raise
            arrival = future.result()
        except (grpc.RpcError, asyncio.InvalidStateError):
            if future.done():  # the reader or the watch knows why
                arrival = future.result()
            else:
                arrival = self._lost(await stream.ending.error())
                self._lose(stream, arrival)
        finally:
            del self._pending[micro_batch_id]
        if isinstance(arrival, StagecoachError):
            raise arrival
        if arrival.result.HasField("status"):
            raise self._named(status.from_status(arrival.result.status))
        timings = arrival.result.timings
        visit = StageVisit.of(
            started_ns,
            arrival.arrived_ns,
            queue_ns=timings.queue_ns,
            compute_ns=timings.compute_ns,
            serialize_ns=timings.serialize_ns,
        )
        return StageReply(arrival.result, visit)

    def give_up(self, error: StagecoachError) -> None:
        """Fails what is in flight, though the stream goes on; what was not sent never is."""
        for future in self._pending.values():
            if not future.done():
                future.set_result(error)

    def drop(self) -> None:
        """Takes the stream down, which empties every slot of the stage; `open` opens another."""
        stream, self._stream = self._stream, None
        if stream is not None:
            self.give_up(UnavailableError("a stage was lost meanwhile"))
            stream.call.cancel()

    async def close(self) -> None:
        """Ends the stream, which frees its slots on the stage, and closes the channel."""
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.call.done_writing()
            stream.call.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._close_stream_channel()
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def _take_answers(self, stream: _Stream) -> None:
        """Resolves futures until the stream ends, then says so to everyone who waits."""
        now = asyncio.get_running_loop().time
        try:
            while (response := await _read(stream.call)) is not None:
                arrived_ns = time.perf_counter_ns()
                stream.watch.answer(response.result.micro_batch_id, now())
                future = self._pending.get(response.result.micro_batch_id)
                if future is not None and not future.done():
                    future.set_result(_Arrival(response.result, arrived_ns))
        except grpc.RpcError:
            _log.debug("stream broke", extra={"stage": self.address})
        self._lose(stream, self._lost(await stream.ending.error()))

    async def _watch(self, stream: _Stream, socket: ChannelSocket | None) -> None:
        """Gives the stage up when it is dead. One timer a link costs a step nothing."""
        now = asyncio.get_running_loop().time
        while self._stream is stream:
            # A connection that is closed is the reader's to report.
            state = None if socket is None else socket.look()
            error = stream.watch.look(state, now())
            if error is not None:
                is_late = isinstance(error, DeadlineExceededError)
                self._lose(stream, self._named(error) if is_late else self._lost(error))
                stream.call.cancel()
            await asyncio.sleep(WATCH_PERIOD_S)

    def _lose(self, stream: _Stream, error: StagecoachError) -> None:
        """Takes the stream down, once, and fails what is in flight on it."""
        if self._stream is not stream:
            return
        self._stream = None
        self.num_losses += 1
        _log.warning("stage lost", extra={"stage": self.address, "error": error.message})
        self.give_up(error)
        self._on_lost(self, Loss(stream.watch.unanswered, is_draining(error)))

    def _lost(self, cause: StagecoachError) -> UnavailableError:
        """What a stream that broke means, whatever the reason, to those who wait on it."""
        error = UnavailableError(f"stage {self.address} was lost: {cause.message}")
        error.details.update(cause.details)
        return error

    def _named(self, error: StagecoachError) -> StagecoachError:
        """The same error with the stage's address in its message."""
        named = type(error)(f"stage {self.address}: {error.message}")
        named.details.update(error.details)
        return named

    async def _explained(self, error: StagecoachError) -> StagecoachError:
        """The same error, or what is wrong with the certificates of either side."""
        trust = None if self._tls is None else Trust(files=self._tls)
        return await asyncio.to_thread(explained, error, self.address, trust)

    @property
    def _keepalive_ms(self) -> int:
        return int(1000 * self._config.keepalive_s)

    @property
    def _connect_timeout_s(self) -> float:
        return self._patience * self._config.connect_timeout_s

    def _be_patient(self) -> None:
        self._patience = min(2 * self._patience, MAX_PATIENCE)

    def _new_channel(
        self, credentials: grpc.ChannelCredentials | None, further_options: list[tuple[str, int]]
    ) -> grpc.aio.Channel:
        options = [
            ("grpc.enable_http_proxy", 0),
            ("grpc.enable_retries", 0),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_reconnect_backoff_ms", 2000),
            ("grpc.keepalive_permit_without_calls", 1),
            *further_options,
        ]
        if credentials is None:
            return grpc.aio.insecure_channel(self.address, options=options)
        return grpc.aio.secure_channel(self.address, credentials, options=options)

    async def _credentials(self) -> grpc.ChannelCredentials | None:
        """What a channel connects with: it takes the certificate that was looked at, no other."""
        if self._tls is None:
            return None
        try:
            return channel_credentials(self._tls, served=await self._served(self._tls))
        except InvalidArgumentError as error:  # names a file, which clients need not hear of
            _log.error("no TLS to stage %s: %s", self.address, error.message)
            raise UnauthenticatedError(
                f"stage {self.address}: the TLS files of this coordinator are not good; its log"
                " says why"
            ) from error

    async def _served(self, tls: TlsFiles) -> bytes:
        """The stage's certificate, which has to be that of a stage."""
        read_tls(tls)  # says which file is not good; a handshake would only fail
        if self._certificate is not None:
            return self._certificate
        try:
            served = await asyncio.to_thread(
                certificate_of_role,
                self.address,
                tls,
                Role.STAGE,
                timeout_s=self._connect_timeout_s,
            )
        except DeadlineExceededError as error:
            self._be_patient()
            raise UnavailableError(f"stage {self.address}: {error.message}") from error
        except StagecoachError as error:
            raise self._named(await self._explained(error)) from error
        wanted = NUM_HANDSHAKES * served.took_s / self._config.connect_timeout_s
        self._patience = max(self._patience, min(wanted, MAX_PATIENCE))
        if not self.is_open:
            self._certificate = served.certificate
        return served.certificate

    async def _close_stream_channel(self) -> None:
        channel, self._stream_channel = self._stream_channel, None
        if channel is not None:
            await channel.close()


class _Arrival(NamedTuple):
    result: stage_pb2.MicroBatchResult
    arrived_ns: int


def _is_cancelled() -> bool:
    """True when this task is to end.

    grpc.aio raises `CancelledError` too when another task cancelled the call or closed its channel.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _read(call: ForwardCall) -> stage_pb2.ForwardResponse | None:
    """The next message; None at the end of the stream."""
    message = await call.read()
    return message if isinstance(message, stage_pb2.ForwardResponse) else None


def _max_message_bytes(info: StageInfo) -> int:
    """Hidden states of a full micro-batch, or full rows of logits for every slot."""
    hidden_states = info.max_num_batched_tokens * info.hidden_size * 4
    logits = info.max_num_seqs * info.vocab_size * 4
    return min(max(hidden_states, logits) + MESSAGE_HEADROOM_BYTES, MAX_MESSAGE_BYTES)
