"""The models that are served, by their names: what the doors hold."""

from collections.abc import Sequence

from coordinator.core.generation_engine import GenerationEngine
from coordinator.core.process_state import ProcessState
from stagecoach.contract.cluster_status import ModelState
from stagecoach.contract.errors import InvalidArgumentError, UnavailableError
from stagecoach.contract.model_choice import not_found, unnamed


class CatalogModel:
    """One model of a catalog, which has an engine, will have one, or cannot. Event loop only.

    Args:
        names: What requests may call it; empty until its engine says so.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._engine: GenerationEngine | None = None
        self._problem = "it waits for its stages"
        self._has_failed = False
        self.max_model_len: int | None = None
        """Most tokens that one request may hold; None until it was served once."""

    def loading(self, why: str) -> None:
        """Tells callers from now on what they wait for."""
        self._engine, self._problem, self._has_failed = None, why, False

    def fail(self, why: str) -> None:
        """Tells callers from now on why it cannot be served."""
        self._engine, self._problem, self._has_failed = None, why, True

    def open(self, engine: GenerationEngine) -> None:
        """Serves it from now on."""
        served = engine.served_model
        self._names, self.max_model_len = served.names, served.max_model_len
        self._engine, self._problem, self._has_failed = engine, "", False

    @property
    def names(self) -> tuple[str, ...]:
        """What requests may call it, the one that answers show first."""
        return self._names

    @property
    def has_engine(self) -> bool:
        """True while it takes requests, though they may wait for a stage."""
        return self._engine is not None

    @property
    def state(self) -> ModelState:
        """Whether its requests are served at present."""
        if self._engine is not None and self._engine.is_ready:
            return ModelState.SERVING
        return ModelState.FAILED if self._has_failed else ModelState.LOADING

    @property
    def problem(self) -> str:
        """Why its requests are not served at present; empty while they are."""
        return self._problem if self._engine is None else self._engine.problem

    def engine(self) -> GenerationEngine:
        """What serves it.

        Raises:
            UnavailableError: It has no engine; says why.
        """
        if self._engine is not None:
            return self._engine
        name = repr(self._names[0])
        if self._has_failed:
            raise UnavailableError(f"the model {name} cannot be served: {self._problem}")
        raise UnavailableError(f"the model {name} is starting: {self._problem}")


class Catalog:
    """The models of one process, each in its own state, and the state of that process.

    Doors are bound before there is an engine, and everything is refused until the first model has
    one. From then on each model is asked for itself. Event loop only.
    """

    def __init__(self) -> None:
        self._process: ProcessState | None = None
        self._models: list[CatalogModel] = []

    def add(self, names: tuple[str, ...] = ()) -> CatalogModel:
        """Adds a model, which has no engine yet.

        Args:
            names: What requests may call it. May be empty for the only model, whose engine tells.

        Raises:
            InvalidArgumentError: Another model has one of the names.
        """
        for name in names:
            if any(name in model.names for model in self._models):
                raise InvalidArgumentError(
                    f"served_model_name {name!r} is of two models", field="served_model_name"
                )
        model = CatalogModel(names)
        self._models.append(model)
        return model

    def open(self, process: ProcessState) -> None:
        """Answers for the process and its models from now on; call it once, when one is served."""
        self._process = process

    @property
    def is_open(self) -> bool:
        """True once a model was served."""
        return self._process is not None

    @property
    def is_ready(self) -> bool:
        """True while requests of some model are served."""
        return self._process is not None and self._process.is_ready

    def process(self) -> ProcessState:
        """The process that serves.

        Raises:
            UnavailableError: No model was served yet.
        """
        if self._process is None:
            raise UnavailableError(f"the coordinator is starting: {self._why_not()}")
        return self._process

    def models(self) -> Sequence[CatalogModel]:
        """Every model, the first one first: it is shown where there is room for one only.

        Raises:
            UnavailableError: No model was served yet.
        """
        self.process()
        return self._models

    def model(self, name: str) -> CatalogModel:
        """The model of this name.

        Raises:
            UnavailableError: No model was served yet.
            ModelNotFoundError: No model has that name.
        """
        models = self.models()
        for model in models:
            if name in model.names:
                return model
        raise not_found(name, len(models), self._names())

    def engine(self, model: str | None) -> GenerationEngine:
        """The engine that a request is for.

        Args:
            model: What the request calls the model. None: it names none, which is enough while
                there is only one.

        Raises:
            UnavailableError: No model was served yet, or this one has no engine.
            ModelNotFoundError: No model has that name.
            InvalidArgumentError: None is named, and there are several.
        """
        if model is not None:
            return self.model(model).engine()
        models = self.models()
        if len(models) > 1:
            raise unnamed(len(models), self._names())
        return models[0].engine()

    def _why_not(self) -> str:
        """What is waited for, of each model by its name where there are several."""
        if len(self._models) == 1:
            return self._models[0].problem
        whys = (f"model {model.names[0]!r}: {model.problem}" for model in self._models)
        return "; ".join(whys) or "it waits for its stages"

    def _names(self) -> list[str]:
        return [name for model in self._models for name in model.names]
