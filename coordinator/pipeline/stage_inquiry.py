"""Asks one stage what it is, over a connection of its own, where no tensor is in the way."""

import asyncio

import grpc
import grpc.aio

from coordinator.pipeline.call_ending import is_cancelled, unless_cancelled
from coordinator.pipeline.stage_channel import StageChannels
from stagecoach.contract import stage_info_codec, status
from stagecoach.contract.errors import (
    DeadlineExceededError,
    IncompatibleError,
    InvalidArgumentError,
    UnavailableError,
)
from stagecoach.contract.keepalive import strict_keepalive_options
from stagecoach.contract.protocol import PROTOCOL_VERSION
from stagecoach.contract.stage_info import StageInfo
from stagecoach.v1 import stage_pb2, stage_pb2_grpc


class StageInquiry:
    """Calls GetInfo. Keeps its channel from one call to the next.

    Args:
        channels: The way to the stage.
    """

    def __init__(self, channels: StageChannels) -> None:
        self._channels = channels
        self._channel: grpc.aio.Channel | None = None

    async def get_info(self, timeout_s: float | None = None) -> StageInfo:
        """Asks the stage; see `StageLink.get_info`."""
        channels = self._channels
        address = channels.address
        channel = await self._open_channel()
        stub = stage_pb2_grpc.StageServiceStub(channel)
        try:
            message = await stub.GetInfo(
                stage_pb2.GetInfoRequest(), timeout=timeout_s or channels.timeout_s
            )
        except grpc.RpcError as error:
            cause = unless_cancelled(status.from_rpc_error(error))
            is_late = isinstance(cause, DeadlineExceededError)
            if is_late and timeout_s is None:
                channels.be_patient()
            if not is_late:
                channels.forget_certificate()  # it may have another
            if self._channel is channel and not (is_late and channels.is_open()):
                self._channel = None
                await channel.close()  # the next one reads the files again
            raise await channels.explained(cause) from error
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            raise UnavailableError(f"stage {address}: the connection was closed") from None
        if message.protocol_version != PROTOCOL_VERSION:
            raise IncompatibleError(
                f"stage {address}: protocol version is {message.protocol_version}, expected"
                f" {PROTOCOL_VERSION}",
                stage=address,
                found=message.protocol_version,
                expected=PROTOCOL_VERSION,
            )
        try:
            return stage_info_codec.from_message(message)
        except InvalidArgumentError as error:
            raise IncompatibleError(
                f"stage {address} does not say what it is: {error.message}", stage=address
            ) from error

    async def close(self) -> None:
        """Closes the channel, if there is one."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def _open_channel(self) -> grpc.aio.Channel:
        if self._channel is None:
            credentials = await self._channels.credentials()
            if self._channel is None:  # nobody else has asked meanwhile
                self._channel = self._channels.connect(
                    credentials,
                    strict_keepalive_options(
                        self._channels.config.keepalive_ms, answer_ms=self._channels.answer_ms
                    ),
                )
        return self._channel
