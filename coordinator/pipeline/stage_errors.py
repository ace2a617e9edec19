"""What went wrong with a stage, with the stage's address in the message."""

from stagecoach.contract.errors import StagecoachError, UnavailableError


def named(error: StagecoachError, address: str) -> StagecoachError:
    """Returns the same error with the address of the stage in its message."""
    told = type(error)(f"stage {address}: {error.message}")
    told.details.update(error.details)
    return told


def lost(cause: StagecoachError, address: str) -> UnavailableError:
    """Returns what a stream that broke, whatever the cause, means to those who wait on it."""
    error = UnavailableError(f"stage {address} was lost: {cause.message}")
    error.details.update(cause.details)
    return error
