"""Records of steps as a watcher gets them."""

from typing import NamedTuple

from stagecoach.contract.step_record import StepRecord


class StepChunk(NamedTuple):
    """Records that a watcher has not had, in the order in which the steps ended."""

    records: tuple[StepRecord, ...]
    """Records of steps, at least one."""
    num_lost: int
    """Steps right before these that were dropped."""
