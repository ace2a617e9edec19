"""Where in a request of `/v1/responses` stands what the core's errors name.

The core is told messages and functions. Several items may be one message, one request goes on with
the items of others, and functions stand in namespaces and beside tools that the model is not shown.
"""

from collections.abc import Iterator, Sequence

from coordinator.core.request_spec import ChatMessage
from coordinator.doors.http.field_names import FieldNames, field_names
from coordinator.doors.http.responses_items import Item
from coordinator.doors.http.schema.responses import ResponsesRequest


def response_names(
    request: ResponsesRequest,
    turns: Sequence[Sequence[ChatMessage]],
    *,
    before: Sequence[Item],
    given: Sequence[Item],
) -> FieldNames:
    """The names that a request has for the contract's fields.

    Args:
        request: Validated.
        turns: What `conversation_turns` made of its instructions and all items.
        before: Items of the responses that it goes on with.
        given: Items of its input.
    """
    names = dict(field_names(request))
    places = _places(request, before, given)
    for index, turn in enumerate(turns):
        field, num_calls = f"prompt.chat.messages[{index}]", 0
        for message in turn:
            place = next(places)
            names.setdefault(field, place)
            for _ in message.tool_calls:
                call = f"{field}.tool_calls[{num_calls}]"
                num_calls += 1
                names[call] = place
                if place.startswith("input"):
                    names[f"{call}.id"] = f"{place}.call_id"
                    names[f"{call}.arguments"] = f"{place}.arguments"
    return names


def _places(
    request: ResponsesRequest, before: Sequence[Item], given: Sequence[Item]
) -> Iterator[str]:
    """Where each message stands that the model is told."""
    if request.instructions:
        yield "instructions"
    for item in before:
        if item.message is not None:
            yield "previous_response_id"
    for index, item in enumerate(given):
        if item.message is not None:
            yield "input" if isinstance(request.input, str) else f"input[{index}]"
