"""Rows of logits as a stage might answer: what the sampler may rely on, and what is refused."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from coordinator.pipeline.answered_logits import read_logits, read_prompt_logits
from coordinator.sampling.prompt_logprobs import prompt_logprobs
from stagecoach.contract.errors import InternalError
from stagecoach.contract.logits_request import LogitsRequest
from stagecoach.contract.prompt_logits import PromptLogitsRequest
from stagecoach.v1 import stage_pb2, tensor_pb2

VOCAB_SIZE = 8
WANTED = [LogitsRequest(row=3, num_candidates=2, token_ids=(5,))]


def reduced() -> stage_pb2.LogitsRow:
    return stage_pb2.LogitsRow(
        row=3,
        log_sum_exp=0.5,
        candidate_ids=[7, 1],
        candidate_logits=[2.0, 1.0],
        token_logits=[0.25],
    )


def full(values: list[float]) -> stage_pb2.LogitsRow:
    data = np.array(values, dtype=np.float32).tobytes()
    tensor = tensor_pb2.Tensor(dtype=tensor_pb2.DTYPE_FLOAT32, shape=[len(values)], data=data)
    return stage_pb2.LogitsRow(row=3, log_sum_exp=0.5, full=tensor)


def test_what_was_asked_for_is_read() -> None:
    (row,) = read_logits([reduced()], WANTED, VOCAB_SIZE)
    assert (row.row, list(row.candidate_ids), list(row.token_logits)) == (3, [7, 1], [0.25])
    (row,) = read_logits([full([1.0] * VOCAB_SIZE)], WANTED, VOCAB_SIZE)
    assert row.full is not None
    assert len(row.full) == VOCAB_SIZE


MANY = 1024
MANY_WANTED = [
    LogitsRequest(row=3, num_candidates=MANY, token_ids=tuple(range(MANY)), num_contenders=MANY)
]


def reduced_to_many() -> stage_pb2.LogitsRow:
    ids, logits = range(MANY), [i / 8 for i in range(MANY)]
    return stage_pb2.LogitsRow(
        row=3,
        log_sum_exp=0.5,
        candidate_ids=ids,
        candidate_logits=logits,
        token_logits=logits,
        contender_ids=ids,
        contender_logits=logits,
    )


def test_many_are_read_as_few_are() -> None:
    message = reduced_to_many()
    (row,) = read_logits([message], MANY_WANTED, MANY)
    assert list(row.candidate_ids) == list(message.candidate_ids)
    assert list(row.candidate_logits) == list(message.candidate_logits)
    assert list(row.token_logits) == list(message.token_logits)
    assert list(row.contender_ids) == list(message.contender_ids)
    assert list(row.contender_logits) == list(message.contender_logits)


@pytest.mark.parametrize("field", ["candidate_ids", "contender_ids"])
def test_an_id_among_many_is_refused(field: str) -> None:
    message = reduced_to_many()
    getattr(message, field)[MANY // 2] = MANY
    with pytest.raises(InternalError, match=f"{field} has {MANY}, the vocabulary {MANY}"):
        read_logits([message], MANY_WANTED, MANY)


@pytest.mark.parametrize("field", ["candidate_logits", "token_logits", "contender_logits"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_logit_among_many_that_is_not_finite_is_refused(field: str, value: float) -> None:
    message = reduced_to_many()
    getattr(message, field)[MANY // 2] = value
    with pytest.raises(InternalError, match="not finite, though log_sum_exp is"):
        read_logits([message], MANY_WANTED, MANY)


def test_a_row_that_says_it_is_not_finite_is_left_to_its_request() -> None:
    message = reduced()
    message.log_sum_exp = math.nan
    message.candidate_logits[0] = math.inf
    (row,) = read_logits([message], WANTED, VOCAB_SIZE)
    assert math.isnan(row.log_sum_exp)


def set_id(row: stage_pb2.LogitsRow) -> None:
    row.candidate_ids[1] = VOCAB_SIZE


def set_nan(row: stage_pb2.LogitsRow) -> None:
    row.candidate_logits[1] = math.nan


def set_token_infinite(row: stage_pb2.LogitsRow) -> None:
    row.token_logits[0] = math.inf


def test_the_mass_at_temperature_one_is_there_when_it_was_wanted() -> None:
    wanted = [replace(WANTED[0], wants_unit_log_sum_exp=True)]
    with pytest.raises(InternalError, match="row 3: unit_log_sum_exp is missing"):
        read_logits([reduced()], wanted, VOCAB_SIZE)
    message = reduced()
    message.unit_log_sum_exp = 0.75
    (row,) = read_logits([message], wanted, VOCAB_SIZE)
    assert row.unit_log_sum_exp == 0.75


def test_a_stage_that_knows_no_noise_is_not_believed() -> None:
    """The likeliest tokens in place of contenders would be another text, in silence."""
    wanted = [replace(WANTED[0], num_contenders=2, noise_key=5)]
    with pytest.raises(InternalError, match="contender_ids are 0, with 0 logits, 2 were wanted"):
        read_logits([reduced()], wanted, VOCAB_SIZE)
    message = reduced()
    message.contender_ids.extend([0, 3])
    message.contender_logits.extend([0.5, -1.0])
    (row,) = read_logits([message], wanted, VOCAB_SIZE)
    assert list(row.contender_ids) == [0, 3]
    message.contender_ids[1] = VOCAB_SIZE
    with pytest.raises(InternalError, match="contender_ids has 8, the vocabulary 8"):
        read_logits([message], wanted, VOCAB_SIZE)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda row: setattr(row, "row", 2), "not of the 1 wanted"),
        (lambda row: row.candidate_ids.append(0), "row 3: candidate_ids are 3"),
        (lambda row: row.candidate_logits.pop(), "with 1 logits, 2 were wanted"),
        (lambda row: row.ClearField("candidate_ids"), "candidate_ids are 0"),
        (lambda row: row.token_logits.append(1.0), "token_logits are 2, 1 were wanted"),
        (set_id, "has 8, the vocabulary 8"),
        (set_nan, "not finite, though log_sum_exp is"),
        (set_token_infinite, "not finite, though log_sum_exp is"),
        (lambda row: row.contender_ids.append(1), "contender_ids are 1, with 0 logits, 0 were"),
        (lambda row: row.CopyFrom(full([1.0] * 7)), "row 3: "),
        (lambda row: row.CopyFrom(full([1.0] * 7 + [math.nan])), "full is not finite"),
    ],
)
def test_a_row_that_is_not_what_was_asked_for_is_refused(
    spoil: Callable[[stage_pb2.LogitsRow], object], message: str
) -> None:
    row = reduced()
    spoil(row)
    with pytest.raises(InternalError, match=message):
        read_logits([row], WANTED, VOCAB_SIZE)


PROMPT_WANTED = [PromptLogitsRequest(first_row=2, token_ids=(5, 6), num_candidates=1)]


def of_prompt() -> stage_pb2.PromptLogits:
    return stage_pb2.PromptLogits(
        first_row=2,
        log_sum_exps=[0.5, 0.25],
        token_logits=[-1.0, 0.0],
        token_ranks=[3, 1],
        candidate_ids=[7, 6],
        candidate_logits=[0.0, 0.0],
    )


def test_rows_of_a_prompt_are_read() -> None:
    (rows,) = read_prompt_logits([of_prompt()], PROMPT_WANTED, VOCAB_SIZE)
    assert list(rows.log_sum_exps) == [0.5, 0.25]
    assert list(rows.token_logits) == [-1.0, 0.0]
    assert list(rows.token_ranks) == [3, 1]
    assert list(rows.candidate_ids) == [7, 6]
    assert list(rows.candidate_logits) == [0.0, 0.0]
    assert read_prompt_logits([], [], VOCAB_SIZE) == ()


def test_rows_of_a_prompt_that_say_they_are_not_finite_are_left_to_their_request() -> None:
    message = of_prompt()
    message.log_sum_exps[1] = math.nan
    message.token_logits[1] = math.nan
    (rows,) = read_prompt_logits([message], PROMPT_WANTED, VOCAB_SIZE)
    with pytest.raises(InternalError, match="NaN or infinite logits"):
        prompt_logprobs(rows, 1)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda rows: setattr(rows, "first_row", 1), "prompt_logits of 1 prompts, 1 were wanted"),
        (lambda rows: rows.log_sum_exps.pop(), "row 2 on: log_sum_exps are 1, 2 were wanted"),
        (lambda rows: rows.token_logits.append(1.0), "token_logits are 3, 2 were wanted"),
        (lambda rows: rows.ClearField("token_ranks"), "token_ranks are 0, 2 were wanted"),
        (lambda rows: rows.candidate_ids.append(1), "candidate_ids are 3, 2 were wanted"),
        (lambda rows: rows.candidate_logits.pop(), "candidate_logits are 1, 2 were wanted"),
        (lambda rows: rows.candidate_ids.__setitem__(0, VOCAB_SIZE), "has 8, the vocabulary 8"),
        (lambda rows: rows.token_ranks.__setitem__(0, 0), r"has 0, must be in \[1, 8\]"),
        (lambda rows: rows.token_ranks.__setitem__(0, 9), r"has 9, must be in \[1, 8\]"),
        (lambda rows: rows.token_logits.__setitem__(0, math.nan), "token_logits are not finite"),
        (lambda rows: rows.candidate_logits.__setitem__(1, math.inf), "candidate_logits are not"),
    ],
)
def test_rows_of_a_prompt_that_are_not_what_was_asked_for_are_refused(
    spoil: Callable[[stage_pb2.PromptLogits], object], message: str
) -> None:
    rows = of_prompt()
    spoil(rows)
    with pytest.raises(InternalError, match=message):
        read_prompt_logits([rows], PROMPT_WANTED, VOCAB_SIZE)


def test_an_old_stage_that_answers_nothing_is_not_believed() -> None:
    with pytest.raises(InternalError, match="prompt_logits of 0 prompts, 1 were wanted"):
        read_prompt_logits([], PROMPT_WANTED, VOCAB_SIZE)
