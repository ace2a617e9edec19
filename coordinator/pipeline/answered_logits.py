"""Checks the logits that the last stage answered with, so that the sampler can rely on them."""

import math
from collections.abc import Sequence

import numpy as np

from coordinator.core.step import LogitsRow, PromptLogits
from coordinator.pipeline import wire
from stagecoach.contract.errors import InternalError, InvalidArgumentError
from stagecoach.contract.logits_request import LogitsRequest
from stagecoach.contract.prompt_logits import PromptLogitsRequest
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


def read_prompt_logits(
    messages: Sequence[stage_pb2.PromptLogits],
    wanted: Sequence[PromptLogitsRequest],
    vocab_size: int,
) -> tuple[PromptLogits, ...]:
    """Reads the rows of prompts of one micro-batch.

    Rows that say of themselves that they have NaN or infinities are let through: their request
    alone fails.

    Args:
        messages: As they came.
        wanted: What was asked for, in order.
        vocab_size: Logits in a full row.

    Raises:
        InternalError: They are not what was asked for; says what is wrong with which rows.
    """
    if [message.first_row for message in messages] != [request.first_row for request in wanted]:
        raise InternalError(
            f"answered with prompt_logits of {len(messages)} prompts, {len(wanted)} were wanted"
        )
    answers = []
    for message, request in zip(messages, wanted, strict=True):
        rows = wire.prompt_logits(message)
        try:
            _check_prompt(rows, request, vocab_size)
        except InvalidArgumentError as error:
            raise InternalError(
                f"prompt_logits from row {request.first_row} on: {error.message}"
            ) from error
        answers.append(rows)
    return tuple(answers)


def _check_prompt(rows: PromptLogits, request: PromptLogitsRequest, vocab_size: int) -> None:
    num_rows = len(request.token_ids)
    num_candidates = num_rows * request.num_candidates
    for field, values, num_wanted in (
        ("log_sum_exps", rows.log_sum_exps, num_rows),
        ("token_logits", rows.token_logits, num_rows),
        ("token_ranks", rows.token_ranks, num_rows),
        ("candidate_ids", rows.candidate_ids, num_candidates),
        ("candidate_logits", rows.candidate_logits, num_candidates),
    ):
        if len(values) != num_wanted:
            raise _malformed(field, f"are {len(values)}, {num_wanted} were wanted")
    if not _are_finite(rows.log_sum_exps):
        return
    if num_candidates and (highest := _highest(rows.candidate_ids)) >= vocab_size:
        raise _malformed("candidate_ids", f"has {highest}, the vocabulary {vocab_size}")
    lowest, last = int(np.min(rows.token_ranks)), int(np.max(rows.token_ranks))
    if lowest < 1 or last > vocab_size:
        wrong = lowest if lowest < 1 else last
        raise _malformed("token_ranks", f"has {wrong}, must be in [1, {vocab_size}]")
    for field, logits in (
        ("token_logits", rows.token_logits),
        ("candidate_logits", rows.candidate_logits),
    ):
        if not _are_finite(logits):
            raise _malformed(field, "are not finite, though log_sum_exps are")


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
