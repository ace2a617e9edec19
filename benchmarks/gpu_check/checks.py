"""The table of checks: what runs, in which order, and how long each may take."""

from typing import NamedTuple

from stagecoach.contract.errors import InvalidArgumentError

DEADLINE_S = 600.0
"""For all checks together."""


class Check(NamedTuple):
    """One check; its module in this package has the same name and does what `CheckModule` says."""

    name: str
    max_elapsed_s: float
    """After which it is ended. Their sum is above the deadline: they seldom take so long. A first
    run of kernels and of parity compiles kernels most of the time, on one core."""


CHECKS = (
    Check("device", 90.0),
    Check("kernels", 240.0),
    Check("parity", 240.0),
    Check("parity_1b", 150.0),
    Check("text", 120.0),
    Check("speed", 150.0),
    Check("shortage", 90.0),
    Check("recovery", 120.0),
)
"""In their order: what tells most of a card that is not right comes first."""

DEVICE_FACT = "device"
"""Name of the fact that says which device was taken, by the check of that name."""

CPU = "cpu"
"""What it says of the CPU."""

DEVICE = CHECKS[0]
"""Runs in any case, and first: the head of the report is from it, and a device that cannot be taken
ends everything."""


def chosen_checks(text: str | None) -> tuple[Check, ...]:
    """Returns the checks that a list of names stands for, in the table's order; None: all.

    Raises:
        InvalidArgumentError: A name is not that of a check.
    """
    if text is None:
        return CHECKS
    names = [name.strip() for name in text.split(",")]
    known = [check.name for check in CHECKS]
    for name in names:
        if name not in known:
            raise InvalidArgumentError(
                f"only {name!r} is not one of {', '.join(known)}", field="only"
            )
    return tuple(check for check in CHECKS if check is DEVICE or check.name in names)
