"""How fast emulated stages could be at most: the roofline of their devices and nothing else."""

import math
import re

from coordinator.planner.plan import Plan, StagePlan
from coordinator.planner.prediction import Conditions, predict
from stagecoach.client import ModelStatus, StageStatus
from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.contract.stage_info import StageInfo
from stagecoach.model_files import ModelFiles, open_model
from stagecoach.roofline.devices import Gpu, gpu_named
from stagecoach.roofline.model_shape import ModelShape
from stagecoach.roofline.networks import Network
from stagecoach.roofline.stage_cost import StageCost

_NO_NETWORK = Network(name="none", bits_per_s=math.inf, round_trip_s=0.0)

_EMULATED = re.compile(r"emulated (\S+)(?: at efficiency (\d+(?:\.\d+)?))?")
"""How an emulated stage names its device."""


class DecodeLimit:
    """The limit of a cluster all of whose stages are emulated.

    Args:
        status: State of the model.

    Raises:
        StagecoachError: A stage is real or its device is not known here, or the model cannot be
            opened from here, or its cost is not known.
    """

    def __init__(self, status: ModelStatus) -> None:
        files = open_model(status.model_id)
        stages = tuple(_stage_plan(files, stage) for stage in status.pipeline_stages)
        self._plan = Plan(model=stages[0].cost.model, stages=stages)

    def tokens_per_s(self, batch: int, *, prompt_tokens: int, output_tokens: int) -> float:
        """Returns the most tokens a second that the devices allow.

        That of the best number of micro-batches, at the mean length of the sequences while they
        decode, with a network and software that take no time.

        Args:
            batch: Sequences that decode together.
            prompt_tokens: Tokens of each prompt.
            output_tokens: Tokens of each output.
        """
        conditions = Conditions(
            network=_NO_NETWORK, overhead_s=0.0, context_tokens=prompt_tokens + output_tokens // 2
        )
        return predict(self._plan, batch, conditions).pipelined.tokens_per_s


def _stage_plan(files: ModelFiles, stage: StageStatus) -> StagePlan:
    if stage.info is None:
        raise InvalidArgumentError(f"stage {stage.index} has never been reached", field="stages")
    return StagePlan(
        gpu=_gpu(stage),
        gpu_index=stage.index,
        cost=_cost(files, stage.info),
        kv_bytes=stage.kv_bytes,
    )


def _cost(files: ModelFiles, info: StageInfo) -> StageCost:
    """What a stage holds by the bytes that it says: the bits of the files, or one format."""
    as_stored, as_named = (
        StageCost(model=ModelShape.of(files.config, info.precision, kept), layers=info.layers)
        for kept in (files.kept_matrices, None)
    )
    return as_stored if as_stored.weight_bytes == info.weight_bytes else as_named


def _gpu(stage: StageStatus) -> Gpu:
    match = _EMULATED.fullmatch(stage.device or "")
    if match is None:
        raise InvalidArgumentError(
            f"stage {stage.index} runs on {stage.device!r}, which is not emulated", field="device"
        )
    efficiency = float(match[2] or 1)
    return gpu_named(match[1]).scaled(bandwidth=efficiency, compute=efficiency)
