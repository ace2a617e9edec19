"""Decides what runs in the next micro-batch, as plain data.

Continuous batching after vLLM's v1 scheduler (github.com/vllm-project/vllm, `vllm/v1/core`): there
is no prefill phase and no decode phase. Knows no grpc, torch, asyncio or clock.
"""

from coordinator.scheduler.config import SchedulerConfig
from coordinator.scheduler.load import Load, StepBudget
from coordinator.scheduler.pace import Pace
from coordinator.scheduler.scheduler import Scheduler

__all__ = ["Load", "Pace", "Scheduler", "SchedulerConfig", "StepBudget"]
