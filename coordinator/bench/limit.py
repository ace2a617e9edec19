"""How fast emulated stages could be at most: the roofline of their devices and nothing else."""

import math
import re

from coordinator.planner.plan import Plan, StagePlan
from coordinator.planner.prediction import Conditions, predict
from stagecoach.client import CoordinatorStatus, StageStatus
from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.precision import Precision
from stagecoach.model_files import open_model
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
        status: State of the cluster.

    Raises:
        StagecoachError: A stage is real or its device is not known here, or the model cannot be
            opened from here, or its cost is not known.
    """

    def __init__(self, status: CoordinatorStatus) -> None:
        config = open_model(status.model_id).config
        stages = tuple(
            _stage_plan(ModelShape.of(config, _precision(stage)), stage)
            for stage in status.pipeline_stages
        )
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


def _precision(stage: StageStatus) -> Precision:
    if stage.info is None:
        raise InvalidArgumentError(f"stage {stage.index} has never been reached", field="stages")
    return stage.info.precision


def _stage_plan(model: ModelShape, stage: StageStatus) -> StagePlan:
    if stage.layers is None:
        raise InvalidArgumentError(f"stage {stage.index} has never been reached", field="stages")
    return StagePlan(
        gpu=_gpu(stage),
        gpu_index=stage.index,
        cost=StageCost(model=model, layers=LayerRange(*stage.layers)),
        kv_bytes=stage.kv_bytes,
    )


def _gpu(stage: StageStatus) -> Gpu:
    match = _EMULATED.fullmatch(stage.device or "")
    if match is None:
        raise InvalidArgumentError(
            f"stage {stage.index} runs on {stage.device!r}, which is not emulated", field="device"
        )
    efficiency = float(match[2] or 1)
    return gpu_named(match[1]).scaled(bandwidth=efficiency, compute=efficiency)
