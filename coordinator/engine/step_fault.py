"""What an error of a stage means for the micro-batch that it ended."""

from enum import Enum

from stagecoach.contract.errors import (
    DeadlineExceededError,
    DeviceMemoryError,
    KvFullError,
    StagecoachError,
    StaleStateError,
    UnavailableError,
)


class StepFault(Enum):
    """What becomes of a micro-batch that failed, and the event by which the log knows it."""

    LOST = "micro-batch lost"
    """A stage is gone. The sequences are computed again, with all others of the pipeline if that
    is gone too."""
    REPLAY = "micro-batch replayed"
    """A stage could not run the micro-batch now. Its sequences are computed again."""
    FATAL = "micro-batch failed"
    """A stage will not run the micro-batch. Its requests fail."""

    @classmethod
    def of(cls, error: StagecoachError) -> "StepFault":
        """What an error means: what its class means, or the nearest base that means anything."""
        return next(
            (_MEANINGS[one] for one in type(error).__mro__ if one in _MEANINGS), StepFault.FATAL
        )


_MEANINGS: dict[type, StepFault] = {
    UnavailableError: StepFault.LOST,
    DeadlineExceededError: StepFault.LOST,
    KvFullError: StepFault.REPLAY,
    StaleStateError: StepFault.REPLAY,
    DeviceMemoryError: StepFault.REPLAY,
}
"""All that are not here are fatal."""
