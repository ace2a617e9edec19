"""Runs micro-batches through all stages in turn, and keeps the links to the stages.

The hub of the system: what one stage answers becomes the next stage's input, undecoded. A lost
stage fails what is in flight at once; `reconnect` brings the pipeline back.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from coordinator.core.stage_info import StageInfo
from coordinator.core.step import (
    LogitsRequest,
    SchedulerOutput,
    StageSpan,
    StageTimings,
    StepOutput,
)
from coordinator.pipeline import wire
from coordinator.pipeline.answered_logits import read_logits
from coordinator.pipeline.stage_link import LinkConfig, StageLink
from coordinator.pipeline.topology import Topology
from protos.errors import (
    DeadlineExceededError,
    IncompatibleError,
    InternalError,
    StagecoachError,
    StaleStateError,
    UnavailableError,
)

_log = logging.getLogger(__name__)

_RETRY_FIRST_S, _RETRY_MAX_S = 0.1, 2.0


class Pipeline:
    """The stages of one model, in order. Used from one event loop.

    Args:
        addresses: HOST:PORT of every stage, in any order.
        coordinator_id: Identity of this coordinator process.
        config: Deadlines of the links.
    """

    def __init__(
        self, addresses: Sequence[str], *, coordinator_id: str, config: LinkConfig
    ) -> None:
        """Makes the links; connects nothing yet."""
        self._links = [
            StageLink(
                address, coordinator_id=coordinator_id, config=config, on_lost=self._stage_lost
            )
            for address in addresses
        ]
        self._listener: Callable[[], None] | None = None
        self._epoch = 0
        self._num_losses = 0
        self._topology: Topology | None = None

    @property
    def topology(self) -> Topology:
        """The stages as they were when the pipeline was connected."""
        assert self._topology is not None, "the pipeline is not connected"
        return self._topology

    @property
    def open_stages(self) -> tuple[bool, ...]:
        """Which links are up, in pipeline order."""
        return tuple(link.is_open for link in self._links)

    @property
    def is_open(self) -> bool:
        """True while every stage can be reached."""
        return all(self.open_stages)

    def on_lost(self, listener: Callable[[], None]) -> None:
        """Names the one who is called each time a stage is lost."""
        self._listener = listener

    async def connect(self, timeout_s: float) -> Topology:
        """Waits for every stage, checks that they make one model, and opens all streams.

        Raises:
            UnavailableError: A stage was not serving within `timeout_s`.
            IncompatibleError: The stages do not fit together; says which and why.
        """
        deadline = time.monotonic() + timeout_s
        infos = await asyncio.gather(*(self._wait_for(link, deadline) for link in self._links))
        pairs = sorted(zip(self._links, infos, strict=True), key=lambda pair: pair[1].layers)
        self._links = [link for link, _ in pairs]
        self._topology = Topology.of([(link.address, info) for link, info in pairs])
        for link, info in pairs:
            await self._open(link, info)
        return self._topology

    async def reconnect(self, timeout_s: float) -> None:
        """Brings every lost link back; stages come back with all slots empty.

        Raises:
            UnavailableError: A stage was not serving again within `timeout_s`.
            IncompatibleError: Another stage than before listens there now.
        """
        deadline = time.monotonic() + timeout_s
        for link, expected in zip(self._links, self.topology.infos, strict=True):
            while not link.is_open:
                found = await self._wait_for(link, deadline)
                _check_same(link.address, expected, found)
                try:
                    await self._open(link, found)
                except (UnavailableError, StaleStateError) as error:
                    if time.monotonic() > deadline:
                        raise
                    _log.info("cannot open stage %s yet: %s", link.address, error)
                    await asyncio.sleep(_RETRY_FIRST_S)

    async def stage_infos(self) -> list[StageInfo | None]:
        """What each stage says of itself now, in pipeline order; None for one that is lost."""

        async def ask(link: StageLink) -> StageInfo | None:
            if not link.is_open:
                return None
            try:
                return await link.get_info()
            except StagecoachError as error:
                _log.info("stage %s does not say what it is: %s", link.address, error)
                return None

        return list(await asyncio.gather(*map(ask, self._links)))

    async def run(self, output: SchedulerOutput, logits: Sequence[LogitsRequest]) -> StepOutput:
        """Runs one micro-batch through all stages.

        Micro-batches keep the order in which `run` was called at every stage, so slot operations
        stay in order however many are in flight. The loss of any stage fails all of them at once.

        Args:
            output: What to run.
            logits: Rows whose logits the sampler wants.

        Raises:
            UnavailableError: A stage is or was lost.
            DeadlineExceededError: A stage did not answer in time and is given up.
            StagecoachError: A stage refused or failed this micro-batch; later stages have not seen
                it.
        """
        timings: list[StageTimings] = []
        spans: list[StageSpan] = []
        num_tokens = output.num_tokens
        last = self._links[-1]
        started_ns = time.perf_counter_ns()
        request = wire.first_request(output)
        num_losses = self._num_losses
        for link in self._links:
            if num_losses != self._num_losses:
                raise UnavailableError("a stage was lost meanwhile")
            if link is last:
                wire.add_logits(request, logits)
            built_ns = time.perf_counter_ns() - started_ns
            reply = await link.forward(request, num_tokens)
            timings.append(reply.timings.with_serialization(built_ns))
            spans.append(reply.span)
            started_ns = time.perf_counter_ns()
            if num_tokens and link is not last:
                wire.set_hidden_states(request, reply.result)
        try:
            rows = read_logits(reply.result.logits, logits, self.topology.vocab_size)
        except InternalError as error:
            raise InternalError(f"stage {last.address} {error.message}") from error
        timings[-1] = timings[-1].with_serialization(time.perf_counter_ns() - started_ns)
        return StepOutput(
            micro_batch_id=output.micro_batch_id,
            logits=rows,
            stage_timings=tuple(timings),
            stage_spans=tuple(spans),
        )

    async def close(self) -> None:
        """Ends all streams, which frees every slot on every stage."""
        await asyncio.gather(*(link.close() for link in self._links))

    def _stage_lost(self) -> None:
        self._num_losses += 1
        for link in self._links:
            link.give_up(UnavailableError("a stage was lost meanwhile"))
        if self._listener is not None:
            self._listener()

    async def _open(self, link: StageLink, info: StageInfo) -> None:
        self._epoch = max(self._epoch + 1, time.time_ns())
        await link.open(info, self._epoch)

    async def _wait_for(self, link: StageLink, deadline: float) -> StageInfo:
        """Asks a stage what it is until it answers, with growing pauses."""
        pause_s = _RETRY_FIRST_S
        while True:
            try:
                return await link.get_info()
            except (UnavailableError, DeadlineExceededError):
                if time.monotonic() + pause_s > deadline:
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _RETRY_MAX_S)


def _check_same(address: str, expected: StageInfo, found: StageInfo) -> None:
    """Refuses a stage that came back as another one."""
    for what in (
        "protocol_version",
        "fingerprint",
        "layers",
        "hidden_states_dtype",
        "kv_block_size",
    ):
        before, now = getattr(expected, what), getattr(found, what)
        if before != now:
            raise IncompatibleError(
                f"stage {address} came back with {what} {now}, expected {before}",
                stage=address,
                expected=before,
                found=now,
            )
    for what in ("num_kv_blocks", "max_num_seqs", "max_num_batched_tokens", "max_model_len"):
        before, now = getattr(expected, what), getattr(found, what)
        if now < before:
            raise IncompatibleError(
                f"stage {address} came back with {what} {now}, needs at least {before}",
                stage=address,
                expected=before,
                found=now,
            )
