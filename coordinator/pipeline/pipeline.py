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
from coordinator.pipeline.stage_link import LinkConfig, StageLink
from coordinator.pipeline.topology import Topology
from protos.errors import (
    DeadlineExceededError,
    IncompatibleError,
    InternalError,
    LoadingError,
    StagecoachError,
    StaleStateError,
    UnauthenticatedError,
    UnavailableError,
)
from security.tls_files import TlsFiles

_log = logging.getLogger(__name__)

_RETRY_FIRST_S, _RETRY_MAX_S = 0.1, 2.0
_LOADING_POLL_S = 0.25
"""Between two questions to a stage that loads, for its progress to be seen."""

OnStage = Callable[[str, StagecoachError | None], None]
"""Told the address of a stage and why it does not serve; None when it does."""


def ignore_stage(_address: str, _error: StagecoachError | None) -> None:
    """For those who only want to know when all serve."""


class Pipeline:
    """The stages of one model, in order. Used from one event loop.

    Args:
        addresses: HOST:PORT of every stage, in any order.
        coordinator_id: Identity of this coordinator process.
        config: Deadlines of the links.
        tls: Of the links; None: they speak plain text.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        coordinator_id: str,
        config: LinkConfig,
        tls: TlsFiles | None = None,
    ) -> None:
        """Makes the links; connects nothing yet."""
        self._links = [
            StageLink(
                address,
                coordinator_id=coordinator_id,
                config=config,
                on_lost=self._stage_lost,
                tls=tls,
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
    def stage_losses(self) -> tuple[int, ...]:
        """Times that each stage was lost, in pipeline order."""
        return tuple(link.num_losses for link in self._links)

    @property
    def is_open(self) -> bool:
        """True while every stage can be reached."""
        return all(self.open_stages)

    def on_lost(self, listener: Callable[[], None]) -> None:
        """Names the one who is called each time a stage is lost."""
        self._listener = listener

    async def connect(self, timeout_s: float, on_stage: OnStage = ignore_stage) -> Topology:
        """Waits for every stage, checks that they make one model, and opens all streams.

        Args:
            timeout_s: Until every stage must serve.
            on_stage: Told how each stage answers, again and again until it serves.

        Raises:
            UnavailableError: A stage was not serving within `timeout_s`.
            UnauthenticatedError: A stage and this coordinator do not take each other's certificate.
            IncompatibleError: The stages do not fit together; says which and why.
        """
        deadline = time.monotonic() + timeout_s
        infos = await asyncio.gather(
            *(self._wait_for(link, deadline, on_stage) for link in self._links)
        )
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
                    facts = {"stage": link.address, "error": error.message}
                    _log.info("stage cannot be opened yet", extra=facts)
                    await asyncio.sleep(_RETRY_FIRST_S)
                else:
                    _log.warning("stage is back", extra={"stage": link.address})

    async def stage_infos(self) -> list[StageInfo | None]:
        """What each stage says of itself now, in pipeline order; None for one that is lost."""

        async def ask(link: StageLink) -> StageInfo | None:
            if not link.is_open:
                return None
            try:
                return await link.get_info()
            except StagecoachError as error:
                facts = {"stage": link.address, "error": error.message}
                _log.info("stage does not say what it is", extra=facts)
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
        vocab_size = self.topology.vocab_size
        rows = tuple(wire.logits_row(row, vocab_size) for row in reply.result.logits)
        if [row.row for row in rows] != [request.row for request in logits]:
            raise InternalError(f"stage {last.address} did not answer with the wanted logits")
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

    async def _wait_for(
        self, link: StageLink, deadline: float, on_stage: OnStage = ignore_stage
    ) -> StageInfo:
        """Asks a stage what it is until it answers, with growing pauses."""
        pause_s = _RETRY_FIRST_S
        while True:
            try:
                info = await link.get_info()
                on_stage(link.address, None)
                return info
            except UnauthenticatedError as error:
                on_stage(link.address, error)
                # Certificates may be renewed while requests wait; nobody waits at the start.
                if self._topology is None or time.monotonic() + pause_s > deadline:
                    raise
            except (UnavailableError, DeadlineExceededError) as error:
                on_stage(link.address, error)
                if isinstance(error, LoadingError):
                    pause_s = min(pause_s, _LOADING_POLL_S)
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
