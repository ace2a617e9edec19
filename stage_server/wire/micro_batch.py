"""Micro-batch messages <-> `ForwardBatch` and `ForwardOutput`.

Every field is checked before a tensor is made from any of them. No tensor arithmetic here.
"""

import math
from collections.abc import Sequence

import torch

from stage_server.core.batch import (
    ForwardBatch,
    ForwardOutput,
    HiddenSum,
    LogitsRow,
    PromptLogits,
    SequenceSlice,
)
from stagecoach.contract import tensor_codec
from stagecoach.contract.dtypes import dtype_named
from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.contract.hidden_sums import HiddenSumRequest
from stagecoach.contract.limits import LOGIT_BYTES, max_logits_bytes
from stagecoach.contract.logits_request import LogitsRequest
from stagecoach.contract.prompt_logits import MAX_PROMPT_CANDIDATES, PromptLogitsRequest
from stagecoach.contract.slot_ops import ForkSlot, FreeSlot, SlotOp, TruncateSlot
from stagecoach.contract.stage_info import StageInfo
from stagecoach.v1 import stage_pb2

_CANDIDATE_BYTES = 8
"""An id and a logit."""


def parse_micro_batch(message: stage_pb2.MicroBatch, info: StageInfo) -> ForwardBatch:
    """Reads a micro-batch for the stage that `info` describes.

    Raises:
        InvalidArgumentError: A field is malformed, out of range, or not for this stage; the error
            names it.
    """
    slices = _parse_slices(message.slices, info)
    num_tokens = sum(piece.num_tokens for piece in slices)
    slot_ops = tuple(_parse_slot_op(i, op, info) for i, op in enumerate(message.slot_ops))
    logits = _parse_logits(message.logits, num_tokens, info)
    prompt_logits = _parse_prompt_logits(message.prompt_logits, num_tokens, info)
    hidden_sums = _parse_hidden_sums(message.hidden_sums, len(slices), num_tokens, info)
    token_ids, hidden_states = _parse_inputs(message, num_tokens, info)
    return ForwardBatch(
        slices=slices,
        slot_ops=slot_ops,
        token_ids=token_ids,
        hidden_states=hidden_states,
        logits=logits,
        prompt_logits=prompt_logits,
        hidden_sums=hidden_sums,
    )


def write_output(output: ForwardOutput, result: stage_pb2.MicroBatchResult) -> None:
    """Writes the output of a micro-batch into an empty result."""
    if output.hidden_states is not None:
        tensor_codec.write_torch(output.hidden_states, result.hidden_states)
    for row in output.logits:
        _write_logits_row(row, result.logits.add())
    for rows in output.prompt_logits:
        _write_prompt_logits(rows, result.prompt_logits.add())
    for one in output.hidden_sums:
        _write_hidden_sum(one, result.hidden_sums.add())


def _parse_slices(
    messages: Sequence[stage_pb2.SequenceSlice], info: StageInfo
) -> tuple[SequenceSlice, ...]:
    slices = tuple(SequenceSlice(m.kv_slot, m.start_position, m.num_tokens) for m in messages)
    seen: set[int] = set()
    num_tokens = 0
    for i, piece in enumerate(slices):
        _check_slot(f"slices[{i}].kv_slot", piece.kv_slot, info)
        if piece.kv_slot in seen:
            raise _invalid(f"slices[{i}].kv_slot", f"is {piece.kv_slot}, which occurs twice")
        seen.add(piece.kv_slot)
        if piece.num_tokens < 1:
            raise _invalid(f"slices[{i}].num_tokens", "is 0, must be at least 1")
        if piece.end_position > info.max_model_len:
            raise _invalid(
                f"slices[{i}]",
                f"ends at position {piece.end_position}, max_model_len is {info.max_model_len}",
            )
        num_tokens += piece.num_tokens
    if num_tokens > info.max_num_batched_tokens:
        raise _invalid(
            "slices",
            f"have {num_tokens} tokens, max_num_batched_tokens is {info.max_num_batched_tokens}",
        )
    return slices


def _parse_slot_op(index: int, message: stage_pb2.SlotOp, info: StageInfo) -> SlotOp:
    field = f"slot_ops[{index}]"
    match message.WhichOneof("op"):
        case "free":
            _check_slot(f"{field}.free.kv_slot", message.free.kv_slot, info)
            return FreeSlot(message.free.kv_slot)
        case "truncate":
            truncate = message.truncate
            _check_slot(f"{field}.truncate.kv_slot", truncate.kv_slot, info)
            return TruncateSlot(truncate.kv_slot, truncate.num_tokens)
        case "fork":
            fork = message.fork
            _check_slot(f"{field}.fork.source_kv_slot", fork.source_kv_slot, info)
            _check_slot(f"{field}.fork.target_kv_slot", fork.target_kv_slot, info)
            if fork.source_kv_slot == fork.target_kv_slot:
                raise _invalid(f"{field}.fork", f"forks slot {fork.source_kv_slot} to itself")
            if fork.num_tokens < 1:
                raise _invalid(f"{field}.fork.num_tokens", "is 0, must be at least 1")
            return ForkSlot(fork.source_kv_slot, fork.target_kv_slot, fork.num_tokens)
        case _:
            raise _invalid(field, "names no operation")


def _parse_inputs(
    message: stage_pb2.MicroBatch, num_tokens: int, info: StageInfo
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Reads token ids or hidden states, whichever this stage takes."""
    found = message.WhichOneof("inputs")
    expected = None if num_tokens == 0 else "token_ids" if info.is_first else "hidden_states"
    if found != expected:
        raise _invalid(
            "inputs",
            f"is {found or 'unset'}, must be {expected or 'unset'} for {num_tokens} tokens and "
            f"layers {info.layers}",
        )
    if expected is None:
        return None, None
    if expected == "token_ids":
        ids = list(message.token_ids.ids)
        if len(ids) != num_tokens:
            raise _invalid("token_ids", f"has {len(ids)} ids, slices have {num_tokens} tokens")
        _check_token_ids("token_ids", ids, info)
        return torch.tensor(ids, dtype=torch.int64), None
    hidden_states = tensor_codec.to_torch(
        message.hidden_states,
        dtype=dtype_named(info.precision.wire.name),
        shape=(num_tokens, info.hidden_size),
        field="hidden_states",
    )
    return None, hidden_states


def _parse_logits(
    messages: Sequence[stage_pb2.LogitsRequest], num_tokens: int, info: StageInfo
) -> tuple[LogitsRequest, ...]:
    if messages:
        _check_is_last("logits", info)
    requests = tuple(_parse_logits_request(i, m, num_tokens, info) for i, m in enumerate(messages))
    num_bytes = sum(_most_bytes(request, info.vocab_size) for request in requests)
    limit = max_logits_bytes(max_num_seqs=info.max_num_seqs, vocab_size=info.vocab_size)
    if num_bytes > limit:
        raise _invalid("logits", f"may take {num_bytes} bytes, at most {limit} are sent")
    return requests


def _parse_prompt_logits(
    messages: Sequence[stage_pb2.PromptLogitsRequest], num_tokens: int, info: StageInfo
) -> tuple[PromptLogitsRequest, ...]:
    if messages:
        _check_is_last("prompt_logits", info)
    requests: list[PromptLogitsRequest] = []
    end_row = 0
    for i, message in enumerate(messages):
        field = f"prompt_logits[{i}]"
        request = PromptLogitsRequest(
            first_row=message.first_row,
            token_ids=tuple(message.token_ids),
            num_candidates=message.num_candidates,
        )
        if not request.token_ids:
            raise _invalid(f"{field}.token_ids", "is empty")
        if request.first_row < end_row:
            raise _invalid(
                f"{field}.first_row", f"is {request.first_row}, must be at least {end_row}"
            )
        end_row = request.end_row
        if end_row > num_tokens:
            raise _invalid(field, f"ends at row {end_row}, there are {num_tokens}")
        _check_token_ids(f"{field}.token_ids", request.token_ids, info)
        most = min(MAX_PROMPT_CANDIDATES, info.vocab_size)
        if request.num_candidates > most:
            raise _invalid(
                f"{field}.num_candidates", f"is {request.num_candidates}, must be at most {most}"
            )
        requests.append(request)
    return tuple(requests)


def _parse_hidden_sums(
    messages: Sequence[stage_pb2.HiddenSumRequest],
    num_slices: int,
    num_tokens: int,
    info: StageInfo,
) -> tuple[HiddenSumRequest, ...]:
    if messages:
        _check_is_last("hidden_sums", info)
    if len(messages) > num_slices:
        raise _invalid("hidden_sums", f"are {len(messages)}, at most one for each of {num_slices}")
    requests: list[HiddenSumRequest] = []
    end_row = 0
    for i, message in enumerate(messages):
        field = f"hidden_sums[{i}]"
        request = HiddenSumRequest(first_row=message.first_row, num_rows=message.num_rows)
        if request.num_rows < 1:
            raise _invalid(f"{field}.num_rows", "is 0, must be at least 1")
        if request.first_row < end_row:
            raise _invalid(
                f"{field}.first_row", f"is {request.first_row}, must be at least {end_row}"
            )
        end_row = request.end_row
        if end_row > num_tokens:
            raise _invalid(field, f"ends at row {end_row}, there are {num_tokens}")
        requests.append(request)
    return tuple(requests)


def _parse_logits_request(
    index: int, message: stage_pb2.LogitsRequest, num_tokens: int, info: StageInfo
) -> LogitsRequest:
    field = f"logits[{index}]"
    if message.row >= num_tokens:
        raise _invalid(f"{field}.row", f"is {message.row}, must be in [0, {num_tokens})")
    if message.num_candidates < 1:
        raise _invalid(f"{field}.num_candidates", "is 0, must be at least 1")
    min_mass = message.min_mass if message.HasField("min_mass") else None
    if min_mass is not None and not 0 < min_mass <= 1:
        raise _invalid(f"{field}.min_mass", f"is {min_mass}, must be in (0, 1]")
    min_gap = message.min_gap if message.HasField("min_gap") else None
    if min_gap is not None and not 0 <= min_gap < math.inf:
        raise _invalid(f"{field}.min_gap", f"is {min_gap}, must be finite and at least 0")
    temperature = message.temperature if message.HasField("temperature") else 1.0
    if not 0 < temperature < math.inf:
        raise _invalid(f"{field}.temperature", f"is {temperature}, must be finite and above 0")
    token_ids = tuple(message.token_ids)
    _check_token_ids(f"{field}.token_ids", token_ids, info)
    if message.num_contenders > info.vocab_size:
        raise _invalid(
            f"{field}.num_contenders",
            f"is {message.num_contenders}, must be at most {info.vocab_size}",
        )
    return LogitsRequest(
        row=message.row,
        num_candidates=message.num_candidates,
        min_mass=min_mass,
        min_gap=min_gap,
        temperature=temperature,
        token_ids=token_ids,
        wants_unit_log_sum_exp=message.wants_unit_log_sum_exp,
        num_contenders=message.num_contenders,
        noise_key=message.noise_key,
    )


def _most_bytes(request: LogitsRequest, vocab_size: int) -> int:
    """Bounds what the answer to one request takes on the wire."""
    full_bytes = vocab_size * LOGIT_BYTES
    if request.num_candidates >= vocab_size:
        return full_bytes
    num_pairs = request.num_candidates + request.num_contenders
    reduced_bytes = num_pairs * _CANDIDATE_BYTES + len(request.token_ids) * LOGIT_BYTES
    may_be_full = request.min_mass is not None or request.min_gap is not None
    return max(reduced_bytes, full_bytes) if may_be_full else reduced_bytes


def _write_logits_row(row: LogitsRow, message: stage_pb2.LogitsRow) -> None:
    message.row = row.row
    message.log_sum_exp = row.log_sum_exp
    if row.unit_log_sum_exp is not None:
        message.unit_log_sum_exp = row.unit_log_sum_exp
    message.candidate_ids.extend(row.candidate_ids)
    message.candidate_logits.extend(row.candidate_logits)
    message.token_logits.extend(row.token_logits)
    message.contender_ids.extend(row.contender_ids)
    message.contender_logits.extend(row.contender_logits)
    if row.full is not None:
        tensor_codec.write_torch(row.full, message.full)


def _write_prompt_logits(rows: PromptLogits, message: stage_pb2.PromptLogits) -> None:
    message.first_row = rows.first_row
    message.log_sum_exps.extend(rows.log_sum_exps.tolist())
    message.token_logits.extend(rows.token_logits.tolist())
    message.token_ranks.extend(rows.token_ranks.tolist())
    message.candidate_ids.extend(rows.candidate_ids.flatten().tolist())
    message.candidate_logits.extend(rows.candidate_logits.flatten().tolist())


def _write_hidden_sum(one: HiddenSum, message: stage_pb2.HiddenSum) -> None:
    message.first_row = one.first_row
    tensor_codec.write_torch(one.sum, message.sum)


def _check_is_last(field: str, info: StageInfo) -> None:
    if not info.is_last:
        raise _invalid(
            field,
            f"are for the last stage; this one has layers {info.layers} of {info.num_model_layers}",
        )


def _check_slot(field: str, kv_slot: int, info: StageInfo) -> None:
    if kv_slot >= info.max_num_seqs:
        raise _invalid(field, f"is {kv_slot}, must be in [0, {info.max_num_seqs})")


def _check_token_ids(field: str, ids: Sequence[int], info: StageInfo) -> None:
    highest = max(ids, default=0)
    if highest >= info.vocab_size:
        raise _invalid(field, f"holds {highest}, must be in [0, {info.vocab_size})")


def _invalid(field: str, problem: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{field} {problem}", field=field)
