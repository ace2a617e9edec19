"""What the routes of the HTTP door share; the door is bound before there is an engine."""

import time

from coordinator.core.catalog import Catalog
from coordinator.core.generation_engine import GenerationEngine
from coordinator.doors.http.body_workers import BodyWorkers
from coordinator.doors.http.held_logprobs import HeldLogprobs
from coordinator.doors.http.responses_store import ResponseStore
from coordinator.doors.http.speaker_names import reads_names


class Door:
    """Holds the models of one coordinator. Event loop only; the owner closes it.

    Args:
        catalog: Holds the engines, now or later.
    """

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        """What is served."""
        self.created_s = int(time.time())
        """When it was made, in seconds of the Unix clock."""
        self.bodies = BodyWorkers()
        """Validates what clients send."""
        self.logprobs = HeldLogprobs()
        """What answers hold until they are whole."""
        self.responses = ResponseStore()
        """Responses that later requests may go on with."""
        self._reads_names: dict[str, bool] = {}
        """By the first name of each model that was tried."""

    def open(self) -> None:
        """Prepares to read bodies; call it when the catalog is opened."""
        self.bodies.start()

    async def close(self) -> None:
        """Ends what reads bodies."""
        await self.bodies.close()

    async def model_reads_names(self, engine: GenerationEngine) -> bool:
        """Whether the names of speakers make a difference to a model; seen by trying once.

        Args:
            engine: Engine of the model.

        Raises:
            StagecoachError: It cannot be tried now, as no conversation can be read.
        """
        name = engine.served_model.names[0]
        if name not in self._reads_names:
            self._reads_names[name] = await reads_names(engine)
        return self._reads_names[name]
