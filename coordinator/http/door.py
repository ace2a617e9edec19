"""The engine behind the HTTP door, which is bound before there is one."""

import time

from coordinator.http.body_workers import BodyWorkers
from coordinator.service.generation_engine import GenerationEngine
from protos.errors import UnavailableError


class Door:
    """Holds the engine of one coordinator. Event loop only; the owner closes it."""

    def __init__(self) -> None:
        """Starts without an engine."""
        self.created_s = int(time.time())
        """When it was made, in seconds of the Unix clock."""
        self.bodies = BodyWorkers()
        """Validates what clients send."""
        self._engine: GenerationEngine | None = None

    def open(self, engine: GenerationEngine) -> None:
        """Serves from this engine from now on."""
        self._engine = engine
        self.bodies.start()

    async def close(self) -> None:
        """Ends what reads bodies."""
        await self.bodies.close()

    @property
    def is_ready(self) -> bool:
        """True while requests are served."""
        return self._engine is not None and self._engine.is_ready

    def engine(self) -> GenerationEngine:
        """The engine.

        Raises:
            UnavailableError: There is none yet.
        """
        if self._engine is None:
            raise UnavailableError("the coordinator is starting: it waits for its stages")
        return self._engine
