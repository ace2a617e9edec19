"""Domain types <-> `stagecoach.v1` messages, for the stage link alone.

Hidden states are never decoded here: the tensor message of one stage's answer becomes the input of
the next stage's request.
"""

from coordinator.core.stage_info import StageInfo
from coordinator.core.step import LogitsRequest, LogitsRow, SchedulerOutput
from protos import tensor_codec
from protos.layer_range import LayerRange
from protos.stagecoach.v1 import stage_pb2, tensor_pb2


def stage_info(message: stage_pb2.GetInfoResponse) -> StageInfo:
    """Reads what a stage says of itself.

    Raises:
        InvalidArgumentError: The layer range is empty.
    """
    return StageInfo(
        protocol_version=message.protocol_version,
        model_id=message.model_id,
        fingerprint=message.fingerprint,
        layers=LayerRange(message.layers.start, message.layers.end),
        num_model_layers=message.num_model_layers,
        hidden_size=message.hidden_size,
        vocab_size=message.vocab_size,
        dtype=message.dtype,
        hidden_states_dtype=tensor_codec.DTYPES[message.hidden_states_dtype].name,
        kv_block_size=message.kv_block_size,
        num_kv_blocks=message.num_kv_blocks,
        num_free_kv_blocks=message.num_free_kv_blocks,
        max_num_seqs=message.max_num_seqs,
        max_num_batched_tokens=message.max_num_batched_tokens,
        max_model_len=message.max_model_len,
        device=message.device,
        emulated=message.emulated,
        version=message.version,
        pid=message.pid,
        weight_bytes=message.weight_bytes,
        kv_bytes=message.kv_bytes,
    )


def micro_batch(output: SchedulerOutput) -> stage_pb2.MicroBatch:
    """Writes what every stage gets alike: slices and freed slots, without inputs."""
    return stage_pb2.MicroBatch(
        micro_batch_id=output.micro_batch_id,
        slices=[
            stage_pb2.SequenceSlice(
                kv_slot=piece.kv_slot,
                start_position=piece.start_position,
                num_tokens=len(piece.token_ids),
            )
            for piece in output.slices
        ],
        slot_ops=[
            stage_pb2.SlotOp(free=stage_pb2.FreeSlot(kv_slot=kv_slot))
            for kv_slot in output.freed_kv_slots
        ],
    )


def token_ids(output: SchedulerOutput) -> stage_pb2.TokenIds:
    """Writes the inputs of the first stage."""
    return stage_pb2.TokenIds(ids=[i for piece in output.slices for i in piece.token_ids])


def set_inputs(batch: stage_pb2.MicroBatch, inputs: stage_pb2.TokenIds | tensor_pb2.Tensor) -> None:
    """Gives a micro-batch its rows: token ids, or what the stage before answered."""
    if isinstance(inputs, stage_pb2.TokenIds):
        batch.token_ids.CopyFrom(inputs)
    else:
        batch.hidden_states.CopyFrom(inputs)


def logits_request(request: LogitsRequest) -> stage_pb2.LogitsRequest:
    """Writes what is wanted of one row."""
    return stage_pb2.LogitsRequest(
        row=request.row,
        num_candidates=request.num_candidates,
        min_mass=request.min_mass,
        min_gap=request.min_gap,
        temperature=request.temperature,
        token_ids=request.token_ids,
    )


def logits_row(message: stage_pb2.LogitsRow, vocab_size: int) -> LogitsRow:
    """Reads one row of logits.

    Raises:
        InvalidArgumentError: The full row is malformed.
    """
    full = None
    if message.HasField("full"):
        tensor_codec.check(
            message.full,
            dtype=tensor_pb2.DTYPE_FLOAT32,
            shape=(vocab_size,),
            field="logits.full",
        )
        full = memoryview(message.full.data).cast("f")
    return LogitsRow(
        row=message.row,
        log_sum_exp=message.log_sum_exp,
        candidate_ids=list(message.candidate_ids),
        candidate_logits=list(message.candidate_logits),
        token_logits=list(message.token_logits),
        full=full,
    )
