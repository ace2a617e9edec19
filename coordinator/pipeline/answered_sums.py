"""Checks the sums of hidden states that the last stage answered with."""

from collections.abc import Sequence

from coordinator.pipeline import wire
from stagecoach.contract.errors import InternalError, InvalidArgumentError
from stagecoach.contract.hidden_sums import HiddenSumRequest
from stagecoach.v1 import stage_pb2


def read_hidden_sums(
    messages: Sequence[stage_pb2.HiddenSum], wanted: Sequence[HiddenSumRequest], hidden_size: int
) -> tuple[Sequence[float], ...]:
    """Reads the sums of one micro-batch, as `StepOutput.hidden_sums` has them.

    One that is not finite is let through: its request alone fails.

    Args:
        messages: As they came.
        wanted: What was asked for, in order.
        hidden_size: Elements of each.

    Raises:
        InternalError: They are not what was asked for; says what is wrong with which rows.
    """
    if [message.first_row for message in messages] != [request.first_row for request in wanted]:
        raise InternalError(
            f"answered with {len(messages)} hidden_sums, not with the {len(wanted)} wanted"
        )
    sums = []
    for message in messages:
        try:
            sums.append(wire.hidden_sum(message, hidden_size))
        except InvalidArgumentError as error:
            raise InternalError(
                f"hidden_sums from row {message.first_row} on: {error.message}"
            ) from error
    return tuple(sums)
