"""The models that are served, by their names: what the doors hold."""

from collections.abc import Sequence

from coordinator.core.generation_engine import GenerationEngine
from coordinator.core.process_state import ProcessState
from stagecoach.contract.errors import InvalidArgumentError, ModelNotFoundError, UnavailableError

_MAX_SHOWN_CHARS = 128
"""Most characters of a model's name in a request that an error shows."""


class Catalog:
    """The engines of one process, one for each model, and the state of that process.

    Doors are bound before there is an engine, so the catalog is empty until it is opened. Event
    loop only.
    """

    def __init__(self) -> None:
        self._why_not = "it waits for its stages"
        self._process: ProcessState | None = None
        self._engines: tuple[GenerationEngine, ...] = ()
        self._by_name: dict[str, GenerationEngine] = {}

    def starting(self, why: str) -> None:
        """Tells callers from now on what they wait for."""
        self._why_not = why

    def open(self, process: ProcessState, engines: Sequence[GenerationEngine]) -> None:
        """Serves these models from now on; call it once.

        Args:
            process: That the engines run in.
            engines: At least one. The first model is the one that is shown where there is room
                for one only.

        Raises:
            InvalidArgumentError: Two models have a name in common.
        """
        by_name: dict[str, GenerationEngine] = {}
        for engine in engines:
            for name in engine.served_model.names:
                if name in by_name:
                    raise InvalidArgumentError(
                        f"served_model_name {name!r} is of two models", field="served_model_name"
                    )
                by_name[name] = engine
        self._engines = tuple(engines)
        self._by_name = by_name
        self._process = process

    @property
    def is_open(self) -> bool:
        """True once there are engines."""
        return self._process is not None

    @property
    def is_ready(self) -> bool:
        """True while requests of every model are served."""
        return self._process is not None and self._process.is_ready

    def process(self) -> ProcessState:
        """The process that serves.

        Raises:
            UnavailableError: There is no engine yet.
        """
        if self._process is None:
            raise UnavailableError(f"the coordinator is starting: {self._why_not}")
        return self._process

    def engine(self, model: str | None) -> GenerationEngine:
        """The engine that a request is for.

        Args:
            model: What the request calls the model. None: it names none, which is enough while
                there is only one.

        Raises:
            UnavailableError: There is no engine yet.
            ModelNotFoundError: No model has that name.
            InvalidArgumentError: None is named, and there are several.
        """
        engines = self.engines()
        if model is None:
            if len(engines) > 1:
                raise InvalidArgumentError(
                    f"model is not given, and {len(engines)} are served: name one of"
                    f" {self._shown_names()}",
                    field="model",
                )
            return engines[0]
        engine = self._by_name.get(model)
        if engine is None:
            raise ModelNotFoundError(
                f"the model {model[:_MAX_SHOWN_CHARS]!r} is not served here;"
                f" {self._shown_names()} {'is' if len(engines) == 1 else 'are'}",
                field="model",
            )
        return engine

    def engines(self) -> Sequence[GenerationEngine]:
        """Every engine, that of the first model first.

        Raises:
            UnavailableError: There is no engine yet.
        """
        self.process()
        return self._engines

    def _shown_names(self) -> str:
        return ", ".join(map(repr, self._by_name))
