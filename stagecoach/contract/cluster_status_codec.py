"""`CoordinatorStatus` <-> `GetStatusResponse`, for coordinators and clients."""

from collections.abc import Mapping
from types import MappingProxyType

from stagecoach.contract import stage_info_codec
from stagecoach.contract.cluster_status import CoordinatorStatus, StageState, StageStatus
from stagecoach.contract.errors import IncompatibleError, InvalidArgumentError
from stagecoach.v1 import generation_pb2

_TO_STATES: Mapping[StageState, generation_pb2.StageState.ValueType] = MappingProxyType(
    {
        StageState.READY: generation_pb2.STAGE_STATE_READY,
        StageState.CONNECTING: generation_pb2.STAGE_STATE_CONNECTING,
        StageState.LOST: generation_pb2.STAGE_STATE_LOST,
    }
)

_FROM_STATES = MappingProxyType({number: state for state, number in _TO_STATES.items()})


def to_message(status: CoordinatorStatus) -> generation_pb2.GetStatusResponse:
    """Writes the state of a coordinator."""
    return generation_pb2.GetStatusResponse(
        model_id=status.model_id,
        ready=status.ready,
        stages=map(_to_stage_message, status.stages),
        num_running=status.num_running,
        num_waiting=status.num_waiting,
        max_num_seqs=status.max_num_seqs,
        num_kv_blocks=status.num_kv_blocks,
        num_free_kv_blocks=status.num_free_kv_blocks,
        max_model_len=status.max_model_len,
        num_finished=status.num_finished,
        num_generated_tokens=status.num_generated_tokens,
        version=status.version,
        pid=status.pid,
        num_preemptions=status.num_preemptions,
        tokens_per_second=status.tokens_per_second,
        has_tokenizer=status.has_tokenizer,
        num_cached_kv_blocks=status.num_cached_kv_blocks,
        num_prefix_query_tokens=status.num_prefix_query_tokens,
        num_prefix_hit_tokens=status.num_prefix_hit_tokens,
    )


def from_message(message: generation_pb2.GetStatusResponse) -> CoordinatorStatus:
    """Reads the state of a coordinator.

    Raises:
        IncompatibleError: The state of a link, or what a stage says of itself, is none that this
            version knows.
    """
    try:
        stages = tuple(map(_from_stage_message, message.stages))
    except InvalidArgumentError as error:
        raise IncompatibleError(f"the status cannot be read: {error.message}") from error
    return CoordinatorStatus(
        model_id=message.model_id,
        ready=message.ready,
        has_tokenizer=message.has_tokenizer,
        version=message.version,
        pid=message.pid,
        stages=stages,
        num_running=message.num_running,
        num_waiting=message.num_waiting,
        max_num_seqs=message.max_num_seqs,
        num_kv_blocks=message.num_kv_blocks,
        num_free_kv_blocks=message.num_free_kv_blocks,
        num_cached_kv_blocks=message.num_cached_kv_blocks,
        max_model_len=message.max_model_len,
        num_finished=message.num_finished,
        num_generated_tokens=message.num_generated_tokens,
        num_preemptions=message.num_preemptions,
        num_prefix_query_tokens=message.num_prefix_query_tokens,
        num_prefix_hit_tokens=message.num_prefix_hit_tokens,
        tokens_per_second=message.tokens_per_second,
    )


def _to_stage_message(status: StageStatus) -> generation_pb2.StageStatus:
    return generation_pb2.StageStatus(
        index=status.index,
        address=status.address,
        state=_TO_STATES[status.state],
        info=None if status.info is None else stage_info_codec.to_message(status.info),
        pipeline=status.pipeline,
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
    )
