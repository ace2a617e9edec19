"""Checks the logits that the last stage answered with, so that the sampler can rely on them."""

import math
from collections.abc import Sequence

import numpy as np

from coordinator.core.step import LogitsRow
from coordinator.pipeline import wire
from stagecoach.contract.errors import InternalError, InvalidArgumentError
from stagecoach.contract.logits_request import LogitsRequest
from stagecoach.v1 import stage_pb2


def read_logits(
    messages: Sequence[stage_pb2.LogitsRow], wanted: Sequence[LogitsRequest], vocab_size: int
) -> tuple[LogitsRow, ...]:
    """Reads the rows of one micro-batch.

    A row that says of itself that it has NaN or infinities is let through: its request alone fails
    when it is sampled.

    Args:
        messages: As they came.
        wanted: What was asked for, in order.
        vocab_size: Logits in a full row.

    Raises:
        InternalError: They are not what was asked for; says what is wrong with which row.
    """
    if [message.row for message in messages] != [request.row for request in wanted]:
        raise InternalError(
            f"answered with logits of {len(messages)} rows, not of the {len(wanted)} wanted"
        )
    rows = []
    for message, request in zip(messages, wanted, strict=True):
        try:
            row = wire.logits_row(message, vocab_size)
            if request.wants_unit_log_sum_exp and row.unit_log_sum_exp is None:
                raise _malformed("unit_log_sum_exp", "is missing")
            if math.isfinite(row.log_sum_exp):
                _check(row, request, vocab_size)
        except InvalidArgumentError as error:
            raise InternalError(f"logits of row {request.row}: {error.message}") from error
        rows.append(row)
    return tuple(rows)


def _check(row: LogitsRow, request: LogitsRequest, vocab_size: int) -> None:
    if row.full is not None:
        if not np.isfinite(np.asarray(row.full)).all():
            raise _malformed("full", "is not finite, though log_sum_exp is")
        return
    num_candidates = len(row.candidate_ids)
    if num_candidates != request.num_candidates or len(row.candidate_logits) != num_candidates:
        raise _malformed(
            "candidate_ids",
            f"are {num_candidates}, with {len(row.candidate_logits)} logits, "
            f"{request.num_candidates} were wanted",
        )
    if len(row.token_logits) != len(request.token_ids):
        raise _malformed(
            "token_logits", f"are {len(row.token_logits)}, {len(request.token_ids)} were wanted"
        )
    num_contenders = len(row.contender_ids)
    if num_contenders != request.num_contenders or len(row.contender_logits) != num_contenders:
        raise _malformed(
            "contender_ids",
            f"are {num_contenders}, with {len(row.contender_logits)} logits, "
            f"{request.num_contenders} were wanted",
        )
    for field, ids in (("candidate_ids", row.candidate_ids), ("contender_ids", row.contender_ids)):
        if ids and (highest := _highest(ids)) >= vocab_size:
            raise _malformed(field, f"has {highest}, the vocabulary {vocab_size}")
    if not all(map(_are_finite, (row.candidate_logits, row.token_logits, row.contender_logits))):
        raise _malformed("candidate_logits", "are not finite, though log_sum_exp is")


def _highest(ids: Sequence[int]) -> int:
    return max(ids) if isinstance(ids, list) else int(np.max(ids))


def _are_finite(logits: Sequence[float]) -> bool:
    if isinstance(logits, list):
        return all(map(math.isfinite, logits))
    return bool(np.isfinite(logits).all())


def _malformed(field: str, problem: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{field} {problem}", field=field)
