"""What a last stage answers of hidden states is checked before anything is made of it."""

import struct
from collections.abc import Callable

import pytest

from coordinator.pipeline.answered_sums import read_hidden_sums
from stagecoach.contract.errors import InternalError
from stagecoach.contract.hidden_sums import HiddenSumRequest
from stagecoach.v1 import stage_pb2, tensor_pb2

WANTED = [HiddenSumRequest(first_row=2, num_rows=5)]


def answer() -> stage_pb2.HiddenSum:
    data = struct.pack("<3f", 0.5, -1.0, float("inf"))
    tensor = tensor_pb2.Tensor(dtype=tensor_pb2.DTYPE_FLOAT32, shape=[3], data=data)
    return stage_pb2.HiddenSum(first_row=2, sum=tensor)


def test_sums_are_read_and_those_that_are_not_finite_are_left_to_their_request() -> None:
    (found,) = read_hidden_sums([answer()], WANTED, 3)
    assert list(found) == [0.5, -1.0, float("inf")]
    assert read_hidden_sums([], [], 3) == ()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda one: setattr(one, "first_row", 1), "with 1 hidden_sums, not with the 1 wanted"),
        (
            lambda one: one.sum.shape.__setitem__(0, 2),
            r"row 2 on: .* shape is \[2\], expected \[3\]",
        ),
        (lambda one: setattr(one.sum, "data", b"1234"), "data has 4 bytes"),
        (lambda one: setattr(one.sum, "dtype", tensor_pb2.DTYPE_FLOAT16), "dtype is float16"),
        (lambda one: one.ClearField("sum"), "row 2 on"),
    ],
)
def test_sums_that_are_not_what_was_asked_for_are_refused(
    spoil: Callable[[stage_pb2.HiddenSum], object], message: str
) -> None:
    one = answer()
    spoil(one)
    with pytest.raises(InternalError, match=message):
        read_hidden_sums([one], WANTED, 3)


def test_an_old_stage_that_answers_nothing_is_not_believed() -> None:
    with pytest.raises(InternalError, match="with 0 hidden_sums, not with the 1 wanted"):
        read_hidden_sums([], WANTED, 3)
