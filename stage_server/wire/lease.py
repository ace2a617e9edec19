"""The KV slots of a stage belong to one Forward stream at a time: the stream is the lease.

However a stream ends, a job on the model thread frees its slots. The job runs after all jobs that
the stream had queued, and the next stream is told `opened` only after it. So no stream sees
another's KV, and a coordinator that dies leaks nothing.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from stage_server.compute.executor import Deferred, ModelExecutor
from stage_server.core.engine import StageEngine
from stagecoach.contract.errors import IncompatibleError, StaleStateError

T = TypeVar("T")


class Tenure:
    """One stream's time as the owner of the slots; made by `StageLease.hold`.

    Attributes:
        coordinator_id: Who holds it.
        epoch: Epoch of the stream.
        fenced: Done when a stream of a higher epoch took the slots away.
    """

    def __init__(
        self, coordinator_id: str, epoch: int, engine: StageEngine, executor: ModelExecutor
    ) -> None:
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

    def run(self, job: Callable[[StageEngine], T | Deferred[T]]) -> asyncio.Future[T]:
        """Queues a job for the model thread. What it defers ends also after the tenure.

        Raises:
            StaleStateError: In the future, when the tenure had ended before the job's turn came;
                then it has not run.
        """
        assert not self._ended, "a stream that ended submits nothing"
        return self._executor.submit(lambda: self._run(job))

    def note_tokens(self, num_tokens: int) -> None:
        """Says how many rows the present job computes; called by the job itself."""
        self._executor.note_tokens(num_tokens)

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

    def _run(self, job: Callable[[StageEngine], T | Deferred[T]]) -> T | Deferred[T]:
        if self._ended:
            raise StaleStateError(f"the stream of epoch {self.epoch} has ended", epoch=self.epoch)
        return job(self._engine)


class StageLease:
    """Decides which stream owns the KV slots; event loop only."""

    def __init__(self, engine: StageEngine, executor: ModelExecutor) -> None:
        self._engine = engine
        self._executor = executor
        self._tenure: Tenure | None = None
        self._opened: Tenure | None = None
        self._freed: asyncio.Future[None] | None = None
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
