"""How long a call may take, as gRPC can say it."""

from stagecoach.contract.errors import InvalidArgumentError

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
