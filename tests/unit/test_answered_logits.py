"""Rows of logits as a stage might answer: what the sampler may rely on, and what is refused."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from coordinator.pipeline.answered_logits import read_logits
from stagecoach.contract.errors import InternalError
from stagecoach.contract.logits_request import LogitsRequest
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
