"""What a response looks like while it is made, when it is there, and as JSON."""

import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

from coordinator.core.events import Finished
from coordinator.core.request import FinishReason
from coordinator.doors.http.answer import TOKENS_PER_PIECE, SpellToken
from coordinator.doors.http.pieces import listed, spliced
from coordinator.doors.http.responses_output import MadeItem, Told
from coordinator.doors.http.schema.base import ResponseModel
from coordinator.doors.http.schema.responses_answer import (
    IncompleteDetails,
    InputTokensDetails,
    OutputTokensDetails,
    ResponseFailure,
    ResponseObject,
    ResponsesUsage,
)
from coordinator.doors.http.schema.responses_events import ResponseEvent
from coordinator.doors.http.token_logprobs import Pair, written_logprobs
from stagecoach.contract import errors

_LOGPROBS = "logprobs"


def finished(frame: ResponseObject, items: Sequence[MadeItem], end: Finished) -> ResponseObject:
    """The response when all is there."""
    is_cut = end.finish_reason is FinishReason.LENGTH
    return frame.model_copy(
        update={
            "status": "incomplete" if is_cut else "completed",
            "completed_at": None if is_cut else int(time.time()),
            "incomplete_details": IncompleteDetails(reason="max_output_tokens") if is_cut else None,
            "output": [made.item for made in items],
            "usage": ResponsesUsage(
                input_tokens=end.num_prompt_tokens,
                input_tokens_details=InputTokensDetails(cached_tokens=end.num_cached_tokens),
                output_tokens=end.num_completion_tokens,
                output_tokens_details=OutputTokensDetails(
                    reasoning_tokens=end.num_reasoning_tokens
                ),
                total_tokens=end.num_prompt_tokens + end.num_completion_tokens,
            ),
        }
    )


def failed(
    frame: ResponseObject, items: Sequence[MadeItem], error: errors.StagecoachError
) -> ResponseObject:
    """The response when it failed after it had begun, with what was whole by then."""
    match error:
        case errors.QueueFullError():
            failure = ResponseFailure(code="rate_limit_exceeded", message=error.message)
        case errors.InvalidArgumentError() | errors.ContextLengthExceededError():
            failure = ResponseFailure(code="invalid_prompt", message=error.message)
        case _:
            failure = ResponseFailure(code="server_error", message=error.message)
    output = [made.item for made in items]
    return frame.model_copy(update={"status": "failed", "error": failure, "output": output})


def response_pieces(
    response: ResponseObject, items: Sequence[MadeItem], spell: SpellToken
) -> Iterator[str]:
    """A whole response as JSON, in pieces none of which takes long."""
    return _pieces(response, [made.logprobs for made in items if made.logprobs], spell)


def event_pieces(told: Told, spell: SpellToken) -> Iterator[str]:
    """One server-sent event, in pieces none of which takes long."""
    yield f"event: {told.event.type}\ndata: "
    yield from _pieces(told.event, told.logprobs, spell)
    yield "\n\n"


def state_event(
    response: ResponseObject, number: int, *, is_created: bool = False
) -> ResponseEvent:
    """The event that tells what has become of a response."""
    kind = "created" if is_created else response.status
    return ResponseEvent.model_validate(
        {"type": f"response.{kind}", "sequence_number": number, "response": response}
    )


def _pieces(
    model: ResponseModel, logprobs: Iterable[Sequence[Pair]], spell: SpellToken
) -> Iterator[str]:
    write = partial(written_logprobs, spell=spell)
    inside = (listed(pairs, write, num_items=TOKENS_PER_PIECE) for pairs in logprobs)
    return spliced(model.model_dump_json(), ((_LOGPROBS, one) for one in inside))
