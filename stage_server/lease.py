"""The KV slots of a stage belong to one Forward stream at a time: the stream is the lease.

However a stream ends, its slots are freed by a job on the model thread that stands behind
everything the stream had queued, and the next stream is told `opened` only after that job. So no
stream sees another's KV, and a coordinator that dies leaks nothing.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from protos.errors import IncompatibleError, StagecoachError, StaleStateError
from stage_server.batch import ForwardBatch, ForwardOutput
from stage_server.engine import StageEngine
from stage_server.executor import ModelExecutor, Timed

_log = logging.getLogger(__name__)


class Tenure:
    """One stream's time as the owner of the slots; made by `StageLease.hold`.

    Attributes:
        coordinator_id: Who holds it.
        epoch: Of the stream.
        fenced: Done when a stream of a higher epoch took the slots away.
    """

    def __init__(
        self, coordinator_id: str, epoch: int, engine: StageEngine, executor: ModelExecutor
    ) -> None:
        """Neither opened nor ended yet."""
        self.coordinator_id = coordinator_id
        self.epoch = epoch
        self.fenced: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._engine = engine
        self._executor = executor
        self._ended = False

    @property
    def ended(self) -> bool:
        """True once the slots are no longer this stream's. Any thread."""
        return self._ended

    def forward(self, batch: ForwardBatch) -> "asyncio.Future[Timed[ForwardOutput]]":
        """Queues a micro-batch; see `StageEngine.forward` for the errors of the outcome.

        A micro-batch whose turn comes after the end of the tenure is not computed.

        Raises:
            StaleStateError: The tenure has ended.
        """
        if self._ended:
            raise self.stale_error()
        return self._executor.submit(lambda: self._forward(batch))

    def end(self) -> None:
        """Gives the slots up; what is queued will not be computed."""
        self._ended = True

    def stale_error(self) -> StaleStateError:
        """Says that a higher epoch holds the stage."""
        return StaleStateError(
            f"epoch {self.epoch} of coordinator {self.coordinator_id!r} was replaced by a higher "
            "one",
            epoch=self.epoch,
        )

    def _forward(self, batch: ForwardBatch) -> ForwardOutput:
        if self._ended:
            raise StaleStateError(f"the stream of epoch {self.epoch} has ended", epoch=self.epoch)
        try:
            return self._engine.forward(batch)
        except StagecoachError:
            raise
        except Exception:
            _log.exception("a forward failed")
            raise


class StageLease:
    """Decides which stream owns the KV slots; event loop only."""

    def __init__(self, engine: StageEngine, executor: ModelExecutor) -> None:
        """Nobody holds the stage."""
        self._engine = engine
        self._executor = executor
        self._tenure: Tenure | None = None
        self._opened: Tenure | None = None
        self._freed: asyncio.Future[Timed[None]] | None = None
        self._last: tuple[str, int] | None = None
        """Coordinator and epoch of the latest tenure, kept after its end to refuse late streams."""

    @asynccontextmanager
    async def hold(self, coordinator_id: str, epoch: int) -> AsyncIterator[Tenure]:
        """Holds all slots, empty at the start and freed at the end.

        Raises:
            IncompatibleError: Another coordinator holds the stage.
            StaleStateError: This coordinator had a stream of the same or a higher epoch, or opens
                one while this waits.
        """
        tenure = self._claim(coordinator_id, epoch)
        try:
            if self._freed is not None:
                await asyncio.shield(self._freed)
            if tenure.ended:
                raise tenure.stale_error()
            self._opened = tenure
            yield tenure
        finally:
            self._end(tenure)

    def _claim(self, coordinator_id: str, epoch: int) -> Tenure:
        held = self._tenure
        if held is not None and held.coordinator_id != coordinator_id:
            raise IncompatibleError(
                f"the stage is held by coordinator {held.coordinator_id!r}",
                holder=held.coordinator_id,
            )
        if self._last is not None and self._last[0] == coordinator_id and epoch <= self._last[1]:
            raise StaleStateError(
                f"epoch is {epoch}, must be above {self._last[1]}, the latest of coordinator "
                f"{coordinator_id!r}",
                epoch=epoch,
                latest_epoch=self._last[1],
            )
        if held is not None:
            self._end(held)
            held.fenced.set_result(None)
        self._last = (coordinator_id, epoch)
        self._tenure = Tenure(coordinator_id, epoch, self._engine, self._executor)
        return self._tenure

    def _end(self, tenure: Tenure) -> None:
        """Ends a tenure once; frees its slots if it was ever opened."""
        if tenure.ended:
            return
        tenure.end()
        self._tenure = None
        if self._opened is tenure:
            self._opened = None
            self._freed = self._executor.submit(self._engine.free_all_slots)
