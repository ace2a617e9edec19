"""Domain types <-> `stagecoach.v1` messages, for the stage link alone.

Hidden states are never decoded here: the tensor message of one stage's answer becomes the input of
the next stage's request.
"""

from collections.abc import Iterable, Sequence
from typing import TypeVar, cast

import numpy as np

from coordinator.core.step import LogitsRow, PromptLogits, SchedulerOutput
from stagecoach.contract import tensor_codec
from stagecoach.contract.hidden_sums import HiddenSumRequest
from stagecoach.contract.logits_request import LogitsRequest
from stagecoach.contract.prompt_logits import PromptLogitsRequest
from stagecoach.contract.slot_ops import ForkSlot, FreeSlot, SlotOp, TruncateSlot
from stagecoach.v1 import stage_pb2, tensor_pb2

_Number = TypeVar("_Number", int, float)

_MANY = 32
"""Numbers from which a buffer is faster; of 1 024, a list takes twenty times as long."""


def first_request(output: SchedulerOutput) -> stage_pb2.ForwardRequest:
    """Writes a micro-batch for the first stage; for the next ones only its inputs change."""
    return stage_pb2.ForwardRequest(
        micro_batch=stage_pb2.MicroBatch(
            micro_batch_id=output.micro_batch_id,
            slices=[
                stage_pb2.SequenceSlice(
                    kv_slot=piece.kv_slot,
                    start_position=piece.start_position,
                    num_tokens=len(piece.token_ids),
                )
                for piece in output.slices
            ],
            slot_ops=map(_slot_op, output.slot_ops),
            token_ids=_token_ids(output) if output.slices else None,
        )
    )


def _slot_op(op: SlotOp) -> stage_pb2.SlotOp:
    match op:
        case FreeSlot():
            return stage_pb2.SlotOp(free=stage_pb2.FreeSlot(kv_slot=op.kv_slot))
        case TruncateSlot():
            truncate = stage_pb2.TruncateSlot(kv_slot=op.kv_slot, num_tokens=op.num_tokens)
            return stage_pb2.SlotOp(truncate=truncate)
        case ForkSlot():
            fork = stage_pb2.ForkSlot(
                source_kv_slot=op.source_kv_slot,
                target_kv_slot=op.target_kv_slot,
                num_tokens=op.num_tokens,
            )
            return stage_pb2.SlotOp(fork=fork)


def set_hidden_states(
    request: stage_pb2.ForwardRequest, result: stage_pb2.MicroBatchResult
) -> None:
    """Makes what one stage answered the input of the next, undecoded."""
    request.micro_batch.hidden_states.CopyFrom(result.hidden_states)


def add_logits(request: stage_pb2.ForwardRequest, wanted: Iterable[LogitsRequest]) -> None:
    """Says which logits the last stage shall answer with."""
    request.micro_batch.logits.extend(
        stage_pb2.LogitsRequest(
            row=one.row,
            num_candidates=one.num_candidates,
            min_mass=one.min_mass,
            min_gap=one.min_gap,
            temperature=None if one.temperature == 1.0 else one.temperature,
            token_ids=one.token_ids,
            wants_unit_log_sum_exp=one.wants_unit_log_sum_exp,
            num_contenders=one.num_contenders,
            noise_key=one.noise_key,
        )
        for one in wanted
    )


def add_prompt_logits(
    request: stage_pb2.ForwardRequest, wanted: Iterable[PromptLogitsRequest]
) -> None:
    """Says of which rows the last stage shall answer how likely their next tokens are."""
    request.micro_batch.prompt_logits.extend(
        stage_pb2.PromptLogitsRequest(
            first_row=one.first_row, token_ids=one.token_ids, num_candidates=one.num_candidates
        )
        for one in wanted
    )


def add_hidden_sums(request: stage_pb2.ForwardRequest, wanted: Iterable[HiddenSumRequest]) -> None:
    """Says of which rows the last stage shall add up the final hidden states."""
    request.micro_batch.hidden_sums.extend(
        stage_pb2.HiddenSumRequest(first_row=one.first_row, num_rows=one.num_rows) for one in wanted
    )


def _token_ids(output: SchedulerOutput) -> stage_pb2.TokenIds:
    return stage_pb2.TokenIds(ids=[i for piece in output.slices for i in piece.token_ids])


def logits_row(message: stage_pb2.LogitsRow, vocab_size: int) -> LogitsRow:
    """Reads one row of logits.

    Raises:
        InvalidArgumentError: The full row is malformed.
    """
    full = None
    if message.HasField("full"):
        row = tensor_codec.to_numpy(
            message.full,
            dtype=tensor_pb2.DTYPE_FLOAT32,
            shape=(vocab_size,),
            field="logits.full",
        )
        full = row.data
    return LogitsRow(
        row=message.row,
        log_sum_exp=message.log_sum_exp,
        candidate_ids=_numbers(message.candidate_ids),
        candidate_logits=_numbers(message.candidate_logits),
        token_logits=_numbers(message.token_logits),
        contender_ids=_numbers(message.contender_ids),
        contender_logits=_numbers(message.contender_logits),
        full=full,
        unit_log_sum_exp=(
            message.unit_log_sum_exp if message.HasField("unit_log_sum_exp") else None
        ),
    )


def prompt_logits(message: stage_pb2.PromptLogits) -> PromptLogits:
    """Reads rows of a prompt."""
    return PromptLogits(
        log_sum_exps=_floats(message.log_sum_exps),
        token_logits=_floats(message.token_logits),
        token_ranks=_ids(message.token_ranks),
        candidate_ids=_ids(message.candidate_ids),
        candidate_logits=_floats(message.candidate_logits),
    )


def hidden_sum(message: stage_pb2.HiddenSum, hidden_size: int) -> Sequence[float]:
    """Reads a sum of hidden states into a buffer of float32, `[hidden_size]`.

    Raises:
        InvalidArgumentError: It has another dtype or shape.
    """
    values = tensor_codec.to_numpy(
        message.sum, dtype=tensor_pb2.DTYPE_FLOAT32, shape=(hidden_size,), field="hidden_sums.sum"
    )
    return cast("Sequence[float]", values.data)


def _floats(values: Sequence[float]) -> Sequence[float]:
    return cast("Sequence[float]", np.array(values, dtype=np.float32).data)


def _ids(values: Sequence[int]) -> Sequence[int]:
    return cast("Sequence[int]", np.array(values, dtype=np.uint32).data)


def _numbers(values: Sequence[_Number]) -> Sequence[_Number]:
    """Copies a repeated field: few into a list, many into a buffer, whichever is the faster."""
    if len(values) < _MANY:
        return list(values)
    return cast("Sequence[_Number]", np.array(values).data)
