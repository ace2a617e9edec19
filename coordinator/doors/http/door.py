"""The engine behind the HTTP door, which is bound before there is one."""

import time
from collections.abc import Sequence

from coordinator.core.generation_engine import GenerationEngine
from coordinator.doors.http.body_workers import BodyWorkers
from coordinator.doors.http.errors import ModelNotFoundError
from coordinator.doors.http.held_logprobs import HeldLogprobs
from coordinator.doors.http.speaker_names import reads_names
from stagecoach.contract.errors import UnavailableError


class Door:
    """Holds the engine of one coordinator. Event loop only; the owner closes it.

    Args:
        served_names: Names of the model, the one that answers show first. None given: its id.
    """

    def __init__(self, served_names: Sequence[str] = ()) -> None:
        self._served_names = tuple(served_names)
        self.created_s = int(time.time())
        """When it was made, in seconds of the Unix clock."""
        self.bodies = BodyWorkers()
        """Validates what clients send."""
        self.logprobs = HeldLogprobs()
        """What answers hold until they are whole."""
        self._engine: GenerationEngine | None = None
        self._reads_names: bool | None = None

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

    async def model_reads_names(self) -> bool:
        """Whether the names of speakers make a difference to the model; seen by trying once.

        Raises:
            StagecoachError: It cannot be tried now, as no conversation can be read.
        """
        if self._reads_names is None:
            self._reads_names = await reads_names(self.engine())
        return self._reads_names

    def served_names(self) -> tuple[str, ...]:
        """The names of the model, the one that answers show first.

        Raises:
            UnavailableError: There is no engine yet.
        """
        return self._served_names or (self.engine().served_model.model_id,)

    def check_model(self, wanted: str | None) -> None:
        """Refuses a request for another model.

        Args:
            wanted: What the request names; None takes what is served.

        Raises:
            ModelNotFoundError: It is another one.
            UnavailableError: There is no engine yet.
        """
        names = self.served_names()
        if wanted is not None and wanted not in names:
            raise ModelNotFoundError(
                f"the model {wanted[:128]!r} is not served here; {', '.join(map(repr, names))} is",
                field="model",
            )
