"""How long a call may take, as gRPC can say it."""

import time

from stagecoach.contract.errors import DeadlineExceededError, InvalidArgumentError

LONGEST_S = 1e9
"""gRPC adds the time to a clock in nanoseconds, and takes what overflows for no time at all."""


def call_timeout_s(timeout_s: float | None) -> float | None:
    """Returns what gRPC takes for a time limit; None, which is no limit, for endless ones.

    Raises:
        InvalidArgumentError: It is no time above 0.
    """
    if timeout_s is None:
        return None
    is_number = isinstance(timeout_s, int | float) and not isinstance(timeout_s, bool)
    if not is_number or not timeout_s > 0:  # also refuses NaN
        raise InvalidArgumentError(
            f"timeout_s is {timeout_s!r}, must be above 0", field="timeout_s"
        )
    return None if timeout_s > LONGEST_S else timeout_s


class Deadline:
    """When several calls, one after the other, have to be over.

    Args:
        timeout_s: Time limit of all. None: no limit.

    Raises:
        InvalidArgumentError: It is no time above 0.
    """

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = call_timeout_s(timeout_s)
        self._end_s = None if self._timeout_s is None else time.monotonic() + self._timeout_s

    def left_s(self) -> float | None:
        """Returns how long the next call may take; None, which is no limit, for endless ones.

        Raises:
            DeadlineExceededError: The time is over.
        """
        if self._end_s is None:
            return None
        left_s = self._end_s - time.monotonic()
        if left_s <= 0:
            raise DeadlineExceededError(f"not done within {self._timeout_s} s")
        return left_s
