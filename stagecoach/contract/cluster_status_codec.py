"""`CoordinatorStatus` <-> `GetStatusResponse`, for coordinators and clients."""

from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Any

from stagecoach.contract import stage_info_codec
from stagecoach.contract.cluster_status import (
    CoordinatorStatus,
    ModelStatus,
    StageState,
    StageStatus,
)
from stagecoach.contract.errors import IncompatibleError, InvalidArgumentError
from stagecoach.contract.float32 import as_meant
from stagecoach.v1 import generation_pb2

_TO_STATES: Mapping[StageState, generation_pb2.StageState.ValueType] = MappingProxyType(
    {
        StageState.READY: generation_pb2.STAGE_STATE_READY,
        StageState.CONNECTING: generation_pb2.STAGE_STATE_CONNECTING,
        StageState.LOST: generation_pb2.STAGE_STATE_LOST,
    }
)

_OfModel = generation_pb2.GetStatusResponse | generation_pb2.ModelStatus
_SAME = tuple(one.name for one in fields(ModelStatus) if one.name != "stages")
"""What is called alike, and is alike, in `ModelStatus` and in both messages."""

_FROM_STATES = MappingProxyType({number: state for state, number in _TO_STATES.items()})


def to_message(status: CoordinatorStatus) -> generation_pb2.GetStatusResponse:
    """Writes the state of a coordinator."""
    return generation_pb2.GetStatusResponse(
        **_model_fields(status),
        version=status.version,
        pid=status.pid,
        models=[generation_pb2.ModelStatus(**_model_fields(model)) for model in status.models],
    )


def from_message(message: generation_pb2.GetStatusResponse) -> CoordinatorStatus:
    """Reads the state of a coordinator; one that lists no models serves that of the other fields.

    Raises:
        IncompatibleError: The state of a link, or what a stage says of itself, is none that this
            version knows.
    """
    try:
        known = _read_model(message)
        models = [ModelStatus(**_read_model(model)) for model in message.models]
    except InvalidArgumentError as error:
        raise IncompatibleError(f"the status cannot be read: {error.message}") from error
    return CoordinatorStatus(
        **known,
        version=message.version,
        pid=message.pid,
        models=tuple(models) or (ModelStatus(**known),),
    )


def _model_fields(status: ModelStatus) -> dict[str, Any]:
    """The fields that both messages have of a model."""
    same = {name: getattr(status, name) for name in _SAME}
    return {**same, "stages": map(_to_stage_message, status.stages)}


def _read_model(message: _OfModel) -> dict[str, Any]:
    """The fields of a `ModelStatus`.

    Raises:
        InvalidArgumentError: A stage cannot be read.
    """
    same = {name: getattr(message, name) for name in _SAME}
    return {
        **same,
        "tokens_per_second": as_meant(message.tokens_per_second),
        "names": tuple(message.names),
        "stages": tuple(map(_from_stage_message, message.stages)),
    }


def _to_stage_message(status: StageStatus) -> generation_pb2.StageStatus:
    return generation_pb2.StageStatus(
        index=status.index,
        address=status.address,
        state=_TO_STATES[status.state],
        info=None if status.info is None else stage_info_codec.to_message(status.info),
        pipeline=status.pipeline,
        num_cached_kv_blocks=status.num_cached_kv_blocks,
    )


def _from_stage_message(message: generation_pb2.StageStatus) -> StageStatus:
    if message.state not in _FROM_STATES:
        raise InvalidArgumentError(f"state is {message.state}", field="stages.state")
    return StageStatus(
        index=message.index,
        address=message.address,
        state=_FROM_STATES[message.state],
        info=stage_info_codec.from_message(message.info) if message.HasField("info") else None,
        pipeline=message.pipeline if message.HasField("pipeline") else None,
        num_cached_kv_blocks=message.num_cached_kv_blocks,
    )
