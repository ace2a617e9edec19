"""The link to one stage: what the stage says of itself, and one Forward stream after the other.

`stage_channel` reaches the stage, `stage_inquiry` asks what it is, `stream_opening` opens a stream,
and `forward_stream` holds what is in flight on one. gRPC's own retries are off: replay is ours.
"""

import asyncio
from collections.abc import Callable

from coordinator.pipeline.forward_stream import ForwardStream, Loss, StageReply
from coordinator.pipeline.link_config import LinkConfig
from coordinator.pipeline.stage_channel import StageChannels
from coordinator.pipeline.stage_inquiry import StageInquiry
from coordinator.pipeline.step_deadline import StepDeadline
from coordinator.pipeline.stream_opening import StreamOpening
from coordinator.pipeline.stream_watch import StreamWatch
from stagecoach.contract.errors import StagecoachError, UnavailableError
from stagecoach.contract.stage_info import StageInfo
from stagecoach.security.tls_files import TlsFiles
from stagecoach.v1 import stage_pb2


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
        self.address = address
        self.num_losses = 0
        """Times that an open stream ended without being asked to."""
        self._config = config
        self._on_lost = on_lost
        channels = StageChannels(address, config=config, tls=tls, is_open=lambda: self.is_open)
        self._inquiry = StageInquiry(channels)
        self._opening = StreamOpening(channels, coordinator_id)
        self._deadline = StepDeadline(config.step)
        self._stream: ForwardStream | None = None
        """The last that was opened."""

    @property
    def is_open(self) -> bool:
        """True while the Forward stream is up."""
        return self._stream is not None and self._stream.is_open

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
        return await self._inquiry.get_info(timeout_s)

    async def open(self, info: StageInfo, epoch: int) -> None:
        """Opens the Forward stream to the stage that `info` describes; all its slots are empty.

        Raises:
            UnavailableError: The stage cannot be reached in time.
            IncompatibleError: The stage is another one than `info` says, or is held by another
                coordinator.
            StaleStateError: The stage has seen a higher epoch.
        """
        assert not self.is_open, "the link is open already"
        opened = await self._opening.open(info, epoch)
        watch = StreamWatch(
            self._deadline,
            keepalive_s=self._config.keepalive_s,
            num_token_bytes=4 * info.hidden_size,
            now_s=asyncio.get_running_loop().time(),
        )
        self._stream = ForwardStream(
            opened, address=self.address, watch=watch, on_lost=self._stream_lost
        )

    async def forward(self, request: stage_pb2.ForwardRequest, num_tokens: int) -> StageReply:
        """Sends a micro-batch and waits for its result.

        Args:
            request: The micro-batch; the caller may change it once this returns.
            num_tokens: Tokens of the micro-batch, which the deadline depends on.

        Raises:
            UnavailableError: The stream is or goes down.
            DeadlineExceededError: No answer in time; the stream is taken down.
            StagecoachError: The stage refused or failed this micro-batch; the stream goes on.
        """
        stream = self._stream
        if stream is None or not stream.is_open:
            raise UnavailableError(f"stage {self.address} is not connected")
        return await stream.forward(request, num_tokens)

    def give_up(self, error: StagecoachError) -> None:
        """Fails what is in flight, though the stream goes on; what was not sent never is."""
        if self._stream is not None:
            self._stream.give_up(error)

    def drop(self) -> None:
        """Takes the stream down, which empties every slot of the stage; `open` opens another."""
        if self._stream is not None:
            self._stream.drop()

    async def close(self) -> None:
        """Ends the stream, which frees its slots on the stage, and closes the channels."""
        if self._stream is not None:
            await self._stream.close()
        await self._opening.close()
        await self._inquiry.close()

    def _stream_lost(self, loss: Loss) -> None:
        self.num_losses += 1
        self._on_lost(self, loss)
