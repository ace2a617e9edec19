"""What other GPUs would buy: the same cluster with bandwidth and arithmetic multiplied."""

from dataclasses import dataclass, replace

from coordinator.planner.plan import Plan
from coordinator.planner.prediction import Conditions, predict, time_to_first_token_s

FACTORS = (0.5, 1.0, 2.0, 4.0)
"""Factors of bandwidth and of arithmetic, each combined with each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIf:
    """The speed of one batch size on other GPUs."""

    batch_size: int
    bandwidth: float
    """Factor on the bandwidth of all GPUs."""
    compute: float
    """Factor on their arithmetic."""
    tokens_per_s: float
    time_to_first_token_s: float
    """Time to the first token of one prompt as long as the sequences, whatever the batch size."""


def what_if(plan: Plan, batch_size: int, conditions: Conditions) -> list[WhatIf]:
    """Predicts a batch for every pair of factors, pipelined; the layer split stays.

    Returns:
        By bandwidth, and by arithmetic within the same bandwidth.
    """
    answers = []
    for bandwidth in FACTORS:
        for compute in FACTORS:
            other = _scaled(plan, bandwidth, compute)
            prediction = predict(other, batch_size, conditions)
            answers.append(
                WhatIf(
                    batch_size=batch_size,
                    bandwidth=bandwidth,
                    compute=compute,
                    tokens_per_s=prediction.pipelined.tokens_per_s,
                    time_to_first_token_s=time_to_first_token_s(other, conditions),
                )
            )
    return answers


def _scaled(plan: Plan, bandwidth: float, compute: float) -> Plan:
    stages = (
        replace(stage, gpu=stage.gpu.scaled(bandwidth=bandwidth, compute=compute))
        for stage in plan.stages
    )
    return replace(plan, stages=tuple(stages))
