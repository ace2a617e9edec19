"""What each error of a stage means for the micro-batch that it ended."""

import pytest

from coordinator.engine.step_fault import StepFault
from stagecoach.contract import errors

LOST = {errors.UnavailableError, errors.LoadingError, errors.DeadlineExceededError}
REPLAY = {errors.KvFullError, errors.StaleStateError, errors.DeviceMemoryError}


def all_below(base: type[errors.StagecoachError]) -> set[type[errors.StagecoachError]]:
    return {base}.union(*(all_below(one) for one in base.__subclasses__()))


@pytest.mark.parametrize("kind", sorted(all_below(errors.StagecoachError), key=str))
def test_every_error_means_one_thing(kind: type[errors.StagecoachError]) -> None:
    expected = StepFault.FATAL
    if kind in LOST:
        expected = StepFault.LOST
    elif kind in REPLAY:
        expected = StepFault.REPLAY
    assert StepFault.of(kind("wrong")) is expected


def test_an_error_of_a_later_version_means_what_its_base_means() -> None:
    class RestartingError(errors.LoadingError):
        reason = "RESTARTING"

    assert StepFault.of(RestartingError("soon")) is StepFault.LOST
