"""The engines of one process, as the one thing that its doors and its operator see."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from stagecoach.contract.cluster_status import CoordinatorStatus, ModelStatus


class RunningEngine(Protocol):
    """What is needed of each engine: what `ProcessState` is of all, of one model."""

    @property
    def is_ready(self) -> bool:
        """True while requests of the model are served."""
        ...

    async def wait_ready(self, *, ready: bool) -> None:
        """Returns when `is_ready` has become so."""
        ...

    async def status(self) -> ModelStatus:
        """The state of the model and of every stage."""
        ...

    async def close(self, grace_s: float) -> None:
        """Admits nothing more, lets requests finish within the grace time, fails the rest."""
        ...


class Engines:
    """Implements `ProcessState` over one engine for each model. Event loop only.

    Args:
        engines: At least one, in the order in which the status shows them.
    """

    def __init__(self, engines: Sequence[RunningEngine]) -> None:
        self._engines = tuple(engines)

    @property
    def is_ready(self) -> bool:
        """True while requests of some model are served: a model that is away stops no other."""
        return any(engine.is_ready for engine in self._engines)

    async def wait_ready(self, *, ready: bool) -> None:
        """Returns when `is_ready` has become so."""
        while self.is_ready != ready:
            waits = [
                asyncio.ensure_future(engine.wait_ready(ready=ready))
                for engine in self._engines
                if engine.is_ready != ready
            ]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
                await asyncio.gather(*waits, return_exceptions=True)

    async def status(self) -> CoordinatorStatus:
        """The state of the coordinator, of every model and of every stage."""
        models = await asyncio.gather(*(engine.status() for engine in self._engines))
        return CoordinatorStatus.of(models)

    async def close(self, grace_s: float) -> None:
        """Closes every engine at once; each lets requests finish within the grace time."""
        await asyncio.gather(*(engine.close(grace_s) for engine in self._engines))
