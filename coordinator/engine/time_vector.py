"""The times of a step, and their sums over the steps that a request took part in.

Every request of a micro-batch adds the times of its step, so they are one vector inside: to add
them as `StepTotals` would take ten times as long.
"""

from collections.abc import Sequence
from typing import Self

import numpy as np

from stagecoach.contract.request_timings import StepTotals
from stagecoach.contract.stage_timings import StageTimings

_NUM_OWN = 4
"""Elements for the coordinator: schedule, sample, detokenize, whole step."""

_NUM_AT_STAGE = 4
"""Elements for each stage: queue, compute, serialize, wire."""


class TimeVector:
    """Times of one step, or sums over several.

    Args:
        ns: int64 `[4 + 4 * num_stages]`, in nanoseconds; the vector's own from now on.
    """

    __slots__ = ("_ns",)

    def __init__(self, ns: np.ndarray) -> None:
        self._ns = ns

    @classmethod
    def zeros(cls, num_stages: int) -> Self:
        """What a sum starts with."""
        return cls(np.zeros(_NUM_OWN + num_stages * _NUM_AT_STAGE, dtype=np.int64))

    @classmethod
    def of_step(
        cls,
        *,
        schedule_ns: int,
        sample_ns: int,
        detokenize_ns: int,
        step_ns: int,
        stages: Sequence[StageTimings[int]],
    ) -> Self:
        """The times of one step; the fields are those of `StepTotals`."""
        ns = [schedule_ns, sample_ns, detokenize_ns, step_ns]
        for stage in stages:
            ns += (stage.queue_ns, stage.compute_ns, stage.serialize_ns, stage.wire_ns)
        return cls(np.array(ns, dtype=np.int64))

    def add(self, step: "TimeVector") -> None:
        """Adds the times of a step of as many stages."""
        self._ns += step._ns

    def totals(self, num_steps: int) -> StepTotals:
        """Reads the sums.

        Args:
            num_steps: Steps that were added.
        """
        schedule_ns, sample_ns, detokenize_ns, step_ns = self._ns[:_NUM_OWN].tolist()
        stages = self._ns[_NUM_OWN:].reshape(-1, _NUM_AT_STAGE).tolist()
        return StepTotals(
            num_steps=num_steps,
            schedule_ns=schedule_ns,
            sample_ns=sample_ns,
            detokenize_ns=detokenize_ns,
            step_ns=step_ns,
            stages=tuple(StageTimings(*stage) for stage in stages),
        )
