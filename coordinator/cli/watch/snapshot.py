"""The state of a cluster at one moment."""

from dataclasses import dataclass

from coordinator.observe.step_window import StageActivity
from stagecoach.client import (
    CoordinatorStatus,
    ModelStatus,
    StagecoachError,
    StageState,
    StageStatus,
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
        stages = [stage for model in self.status.models for stage in model.stages]
        missing = [_missing(stage) for stage in stages if _is_missing(stage)]
        return "; ".join(missing) or "it is draining or connecting its stages"


def _is_missing(stage: StageStatus) -> bool:
    return stage.state is not StageState.READY


def _missing(stage: StageStatus) -> str:
    return f"stage {stage.index} at {stage.address} is {stage.state}"
