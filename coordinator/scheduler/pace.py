"""How full the pipeline is kept: depth and budget of the next micro-batch, from what came back."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from coordinator.core.step import SchedulerOutput
from coordinator.scheduler.depth import DepthChooser
from coordinator.scheduler.load import Load, StepBudget
from coordinator.scheduler.rate_window import Landing
from coordinator.scheduler.step_times import LIKELY_FIXED_SHARE, StepTimes
from coordinator.scheduler.throttle import step_budget
from stagecoach.contract.stage_timings import StageTimings

NUM_WIRE_MICRO_BATCHES = 2
"""Micro-batches in flight beyond one a stage at most, to hide the wire."""


class StepPlan(NamedTuple):
    """A micro-batch that may go out."""

    depth: int
    """Micro-batches in flight that are aimed at."""
    budget: StepBudget


class Pace:
    """Decides how many micro-batches are in flight and what goes into each. Pure: no clock.

    Args:
        num_stages: Stages of the pipeline.
        max_num_batched_tokens: Tokens in one micro-batch.
        depth: A fixed number of micro-batches in flight; None measures which is best.
    """

    def __init__(
        self, *, num_stages: int, max_num_batched_tokens: int, depth: int | None = None
    ) -> None:
        self._max_num_batched_tokens = max_num_batched_tokens
        self._fixed_depth = depth
        self._times = StepTimes()
        self._depth = DepthChooser(
            num_stages=num_stages,
            max_depth=num_stages + NUM_WIRE_MICRO_BATCHES,
            max_num_batched_tokens=max_num_batched_tokens,
            times=self._times,
        )

    def plan(self, load: Load, *, num_in_flight: int, num_prefill_only: int) -> StepPlan | None:
        """Decides whether another micro-batch goes out now, and what it may hold.

        One that holds prompts alone leaves its place to the streams that it would hold up.

        Args:
            load: What there is to do.
            num_in_flight: Micro-batches in flight that hold tokens.
            num_prefill_only: Micro-batches of `num_in_flight` in which no sequence decodes.

        Returns:
            None when enough are in flight.
        """
        depth = self._fixed_depth or self._depth.choose(load)
        if num_in_flight >= depth + min(1, num_prefill_only):
            return None
        budget = step_budget(
            load,
            depth=depth,
            max_num_batched_tokens=self._max_num_batched_tokens,
            times=self._times,
        )
        if num_in_flight >= depth:
            budget = replace(budget, max_num_prefill_tokens=0)
        if self._times.is_known:
            budget = replace(budget, duration_ns=partial(self._duration_ns, depth))
        return StepPlan(depth, budget)

    def observe(
        self,
        output: SchedulerOutput,
        *,
        depth: int,
        load: Load,
        stages: Sequence[StageTimings[int]],
        landed_ns: int,
        num_failed_drafts: int = 0,
    ) -> None:
        """Learns from a micro-batch that came back.

        Args:
            output: The micro-batch.
            depth: Depth of the plan that the micro-batch followed.
            load: The load then.
            stages: Times of the micro-batch at each stage.
            landed_ns: When it came back, on a monotonic clock.
            num_failed_drafts: Rows of it that were guessed in vain.
        """
        if not output.slices:
            return
        num_prefill_tokens, num_decode_tokens = output.count_tokens()
        self._times.add(num_prefill_tokens + num_decode_tokens, stages)
        weight = self._times.prefill_weight(load.num_decodes)
        self._depth.observe(
            Landing(
                depth=depth,
                load=load,
                work=num_decode_tokens - num_failed_drafts + weight * num_prefill_tokens,
                landed_ns=landed_ns,
            )
        )

    def interrupt(self) -> None:
        """Says that the pipeline ran empty or was lost: what is half measured is void."""
        self._depth.interrupt()

    def _duration_ns(self, depth: int, num_rows: int) -> float:
        """Time from one token of a sequence to its next, in micro-batches of so many rows.

        The pipeline's whole length while it is not full, and else the turns of its slowest stage.
        """
        time = self._times.of(num_rows, fixed_share_above=LIKELY_FIXED_SHARE)
        return max(time.total_ns + time.wire_ns, depth * time.slowest_ns)
