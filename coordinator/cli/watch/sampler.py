"""Asks a coordinator for its state and listens to its steps; outlives its absence."""

import asyncio
import math
from collections import deque

from coordinator.cli.watch.snapshot import Snapshot
from coordinator.observe.step_window import StepWindow
from stagecoach.client import AsyncClient, CoordinatorStatus, StagecoachError

ANSWER_TIMEOUT_S = 5.0
RETRY_S = 1.0
MIN_WINDOW_S = 3
"""Time over which means are taken: over a shorter one the figures of a slow model jump."""
MAX_HISTORY = 120
"""Figures of tokens a second that are kept; as many as a wide terminal shows."""


class ClusterSampler:
    """Watches one coordinator; within one event loop.

    Args:
        client: Talks to it.
        interval_s: Between two snapshots.
    """

    def __init__(self, client: AsyncClient, *, interval_s: float) -> None:
        self._client = client
        self._now = asyncio.get_running_loop().time
        self._window_s = max(math.ceil(interval_s), MIN_WINDOW_S)
        self._windows: list[StepWindow] = []
        """The window of each model, in the order of the models."""
        self._models_changed = asyncio.Event()
        self._status: CoordinatorStatus | None = None
        self._asked_s = 0.0
        self._tokens_per_s: deque[float] = deque(maxlen=MAX_HISTORY)

    async def listen(self) -> None:
        """Takes in what the steps of every model did, for ever; begins anew for other models."""
        while True:
            self._models_changed.clear()
            names = _names(self._status)
            self._windows = [self._new_window() for _ in names]
            async with asyncio.TaskGroup() as group:
                listening = [
                    group.create_task(self._listen_to(name, window))
                    for name, window in zip(names, self._windows, strict=True)
                ]
                await self._models_changed.wait()
                for task in listening:
                    task.cancel()

    async def _listen_to(self, model: str | None, window: StepWindow) -> None:
        """Takes in the steps of one model, though it, or the coordinator, goes away at times."""
        while True:
            try:
                async with await self._client.watch_steps(model=model) as steps:
                    async for record in steps:
                        window.add(record, self._now_ns())
            except StagecoachError:
                pass  # `sample` runs into the same and tells it
            await asyncio.sleep(RETRY_S)

    async def sample(self) -> Snapshot:
        """Asks once and sums up."""
        error: StagecoachError | None = None
        try:
            status = await self._client.status(timeout_s=ANSWER_TIMEOUT_S)
            self._count(status)
            if _names(status) != _names(self._status):
                self._models_changed.set()
            self._status = status
        except StagecoachError as raised:
            error = raised
        return Snapshot(
            address=self._client.address,
            status=self._status,
            error=error,
            activities=tuple(window.activity(self._now_ns()).stages for window in self._windows),
            tokens_per_s=tuple(self._tokens_per_s),
        )

    def _now_ns(self) -> int:
        return int(self._now() * 1e9)

    def _new_window(self) -> StepWindow:
        return StepWindow(self._now_ns(), self._window_s)

    def _count(self, status: CoordinatorStatus) -> None:
        """Adds to the history what was generated since the same coordinator answered last."""
        now_s, before = self._now(), self._status
        if before is not None and before.pid == status.pid and now_s > self._asked_s:
            new_tokens = _num_generated_tokens(status) - _num_generated_tokens(before)
            self._tokens_per_s.append(max(new_tokens, 0) / (now_s - self._asked_s))
        self._asked_s = now_s


def _num_generated_tokens(status: CoordinatorStatus) -> int:
    return sum(model.num_generated_tokens for model in status.models)


def _names(status: CoordinatorStatus | None) -> list[str | None]:
    """A name of each model; a coordinator that names none has one."""
    models = () if status is None else status.models
    return [next(iter(model.names), None) for model in models]
