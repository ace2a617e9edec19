"""Errors of one of several prompts of a request, which say which one it is."""

from stagecoach.contract.errors import (
    ContextLengthExceededError,
    InvalidArgumentError,
    StagecoachError,
)

PROMPT = "prompt"
"""The contract's name of the one prompt of a request."""


def blamed_field(error: StagecoachError) -> str:
    """The contract's name of the field that is to blame; empty when there is none."""
    if isinstance(error, InvalidArgumentError):
        return error.field
    if isinstance(error, ContextLengthExceededError):
        return error.details.get("field", PROMPT)
    return error.details.get("field", "")


def of_item(error: StagecoachError, index: int, *, prompts: str = PROMPT) -> StagecoachError:
    """Says of an error of one of several prompts which one it is; others stay as they are.

    Args:
        error: What went wrong with it.
        index: Its place among the prompts.
        prompts: What the request calls them.
    """
    field = blamed_field(error)
    if field.partition(".")[0] != PROMPT:
        return error
    item = f"{prompts}[{index}]"
    for beginning in (field, f"the {PROMPT} "):
        if error.message.startswith(beginning):
            message = item + (" " if beginning[-1] == " " else "") + error.message[len(beginning) :]
            break
    else:
        message = f"{item}: {error.message}"
    return type(error)(message, **{**error.details, "field": item})
