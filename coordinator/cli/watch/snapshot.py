"""The state of a cluster at one moment."""

from dataclasses import dataclass

from coordinator.cli.shared.model_title import model_title
from coordinator.observe.step_window import StageActivity
from stagecoach.client import (
    CoordinatorStatus,
    ModelStatus,
    StagecoachError,
    StageState,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What is known at one moment."""

    address: str
    """Address of the coordinator."""
    status: CoordinatorStatus | None
    """What it said last; None when it never did."""
    error: StagecoachError | None
    """Why it said nothing this time."""
    activities: tuple[tuple[StageActivity, ...], ...]
    """What each stage of each model did over the last seconds, in the order of the models; of a
    model, empty when nothing ran. There may be fewer than models."""
    tokens_per_s: tuple[float, ...]
    """Tokens of all models generated a second between one question and the next, oldest first."""

    @property
    def models(self) -> tuple[tuple[ModelStatus, tuple[StageActivity, ...]], ...]:
        """Each model with what its stages did; none when nothing is known."""
        models = () if self.status is None else self.status.models
        idle = ((),) * (len(models) - len(self.activities))
        return tuple(zip(models, (*self.activities, *idle), strict=False))

    @property
    def is_ready(self) -> bool:
        """True when requests of every model are being served."""
        return self.error is None and self.status is not None and self.status.ready

    @property
    def why_not(self) -> str | None:
        """Why requests are not being served; None when they are."""
        if self.error is not None:
            return self.error.message
        if self.status is None or self.status.ready:
            return None
        away = [model for model in self.status.models if not model.ready]
        if len(self.status.models) == 1:
            return _why_not(self.status.models[0])
        return "; ".join(f"{model_title(model)}: {_why_not(model)}" for model in away)


def _why_not(model: ModelStatus) -> str:
    """Why a model is not served."""
    if model.problem:
        return model.problem
    missing = (
        f"stage {stage.index} at {stage.address} is {stage.state}"
        for stage in model.stages
        if stage.state is not StageState.READY
    )
    return "; ".join(missing) or "it is draining or connecting its stages"
