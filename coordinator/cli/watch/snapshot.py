"""The state of a cluster at one moment."""

from dataclasses import dataclass

from coordinator.observe.step_window import StageActivity
from stagecoach.client import CoordinatorStatus, StagecoachError, StageState, StageStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What is known at one moment."""

    address: str
    """Of the coordinator."""
    status: CoordinatorStatus | None
    """What it said last; None when it never did."""
    error: StagecoachError | None
    """Why it said nothing this time."""
    stages: tuple[StageActivity, ...]
    """What each stage did over the last seconds; empty when nothing ran."""
    tokens_per_s: tuple[float, ...]
    """Tokens generated a second between one question and the next, oldest first."""

    @property
    def is_ready(self) -> bool:
        """True when requests are being served."""
        return self.error is None and self.status is not None and self.status.ready

    @property
    def why_not(self) -> str | None:
        """Why requests are not being served; None when they are."""
        if self.error is not None:
            return self.error.message
        if self.status is None or self.status.ready:
            return None
        missing = [_missing(stage) for stage in self.status.stages if _is_missing(stage)]
        return "; ".join(missing) or "it is draining or connecting its stages"


def _is_missing(stage: StageStatus) -> bool:
    return stage.state is not StageState.READY


def _missing(stage: StageStatus) -> str:
    return f"stage {stage.index} at {stage.address} is {stage.state}"
