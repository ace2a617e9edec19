"""Opens the Forward stream to one stage, on a connection of its own.

The socket of that connection is looked for, because what it has acknowledged tells a slow link from
a dead one. Where it cannot be found, the connection is made again with pings that are strict.
"""

import asyncio
import logging
from typing import NamedTuple

import grpc
import grpc.aio

from coordinator.pipeline.call_ending import CallEnding, is_cancelled
from coordinator.pipeline.channel_socket import ChannelSocket, new_user_timeout_ms
from coordinator.pipeline.forward_call import ForwardCall, read
from coordinator.pipeline.liveness import PINGS_PER_KEEPALIVE
from coordinator.pipeline.stage_channel import StageChannels
from coordinator.pipeline.stage_errors import named
from stagecoach.contract.errors import IncompatibleError, UnavailableError
from stagecoach.contract.keepalive import keepalive_options, strict_keepalive_options
from stagecoach.contract.limits import GRPC_CEILING_BYTES, MessageLimits
from stagecoach.contract.protocol import PROTOCOL_VERSION
from stagecoach.contract.stage_info import StageInfo
from stagecoach.v1 import stage_pb2, stage_pb2_grpc

_log = logging.getLogger(__name__)


class OpenedStream(NamedTuple):
    """A stream that the stage has answered."""

    call: ForwardCall
    ending: CallEnding
    socket: ChannelSocket | None
    """Socket of the connection; None when it cannot be looked at."""


class StreamOpening:
    """Opens one stream after the other; the connection of one is closed before the next.

    Args:
        channels: The way to the stage.
        coordinator_id: Identity of this coordinator process.
    """

    def __init__(self, channels: StageChannels, coordinator_id: str) -> None:
        self._channels = channels
        self._coordinator_id = coordinator_id
        self._channel: grpc.aio.Channel | None = None
        self._can_look = True
        """False when the connection of a stream could not be looked at."""

    async def open(self, info: StageInfo, epoch: int) -> OpenedStream:
        """Opens a stream; see `StageLink.open`."""
        address = self._channels.address
        stream = await self._open(info, epoch)
        if stream.socket is None and stream.call.done():  # so is its connection
            raise named(await stream.ending.error(), address)
        if stream.socket is None and self._can_look:
            self._can_look = False
            _log.warning(
                "cannot look at the connection, a slow link may count as dead",
                extra={"stage": address},
            )
            stream.call.cancel()
            stream = await self._open(info, epoch + 1)
        return stream

    async def close(self) -> None:
        """Closes the connection of the last stream, if there is one."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def _open(self, info: StageInfo, epoch: int) -> OpenedStream:
        """Opens a stream on a new connection, and finds its socket if that can be done."""
        channels, address = self._channels, self._channels.address
        await self.close()
        user_timeout_ms = new_user_timeout_ms()
        options = self._options(info, user_timeout_ms)
        self._channel = channels.connect(await channels.credentials(), options)
        call: ForwardCall = stage_pb2_grpc.StageServiceStub(self._channel).Forward()
        ending = CallEnding(call)
        try:
            async with asyncio.timeout(channels.timeout_s):
                await call.write(self._request(info, epoch))
                response = await read(call)
        except TimeoutError as error:
            call.cancel()
            problem = f"did not open a stream within {channels.timeout_s:g} s"
            channels.be_patient()
            raise UnavailableError(f"stage {address} {problem}") from error
        except (grpc.RpcError, asyncio.InvalidStateError) as error:
            channels.forget_certificate()
            raise named(await ending.error(), address) from error
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            raise UnavailableError(f"stage {address}: the connection was closed") from None
        channels.forget_certificate()
        if response is None:
            raise named(await ending.error(), address)
        if response.WhichOneof("payload") != "opened" or response.opened.epoch != epoch:
            call.cancel()
            raise IncompatibleError(f"stage {address} did not answer `open` with `opened`")
        channels.arrive()
        if not self._can_look:
            return OpenedStream(call, ending, None)
        socket = await asyncio.to_thread(ChannelSocket.find, user_timeout_ms)
        return OpenedStream(call, ending, socket)

    def _options(self, info: StageInfo, user_timeout_ms: int) -> list[tuple[str, int]]:
        keepalive_ms = self._channels.config.keepalive_ms
        limits = MessageLimits.of_stage(
            max_num_batched_tokens=info.max_num_batched_tokens,
            max_num_seqs=info.max_num_seqs,
            hidden_size=info.hidden_size,
            vocab_size=info.vocab_size,
        )
        return [
            *(
                keepalive_options(
                    int(keepalive_ms / PINGS_PER_KEEPALIVE), unacknowledged_ms=user_timeout_ms
                )
                if self._can_look
                else strict_keepalive_options(keepalive_ms)
            ),
            ("grpc.max_send_message_length", min(limits.request_bytes, GRPC_CEILING_BYTES)),
            ("grpc.max_receive_message_length", min(limits.response_bytes, GRPC_CEILING_BYTES)),
        ]

    def _request(self, info: StageInfo, epoch: int) -> stage_pb2.ForwardRequest:
        return stage_pb2.ForwardRequest(
            open=stage_pb2.OpenStream(
                protocol_version=PROTOCOL_VERSION,
                fingerprint=info.fingerprint,
                layers=stage_pb2.LayerRange(start=info.layers.start, end=info.layers.end),
                coordinator_id=self._coordinator_id,
                epoch=epoch,
            )
        )
