"""What a request of `/v1/responses` asks for, with the conversation that it goes on with."""

import time
from collections.abc import Sequence
from functools import lru_cache

from coordinator.core.generation_engine import GenerationEngine
from coordinator.doors.access.callers import current_caller
from coordinator.doors.http.door import Door
from coordinator.doors.http.errors import PreviousResponseNotFoundError
from coordinator.doors.http.responses_items import (
    Item,
    conversation,
    conversation_turns,
    given_items,
    item_id,
    kind_of,
    with_id,
)
from coordinator.doors.http.responses_names import response_names
from coordinator.doors.http.responses_output import MadeItem
from coordinator.doors.http.responses_specs import response_frame, responses_spec
from coordinator.doors.http.responses_store import (
    KeptResponse,
    ResponseStore,
    Turn,
    check_num_items,
    resolved,
)
from coordinator.doors.http.responses_stream import Making
from coordinator.doors.http.responses_tools import functions_by_name
from coordinator.doors.http.schema.responses import ResponsesRequest
from coordinator.doors.http.schema.responses_answer import ResponseObject

_MAX_SPELLINGS = 4096
"""Tokens whose bytes one request keeps; the likely ones come again and again."""
_MAX_SHOWN_CHARS = 64


def making_of(door: Door, engine: GenerationEngine, wanted: ResponsesRequest, name: str) -> Making:
    """What is to be made for a request.

    Args:
        door: Keeps the responses before it, and is to keep this one.
        engine: Engine of the model that it names.
        wanted: Validated.
        name: Name of the request, of which the id of the response is made.

    Raises:
        PreviousResponseNotFoundError: It goes on with a response that is not kept.
        InvalidArgumentError: It refers to an item that is not kept, or a value is out of range.
    """
    owner = current_caller.get()
    response_id = f"resp_{name}"
    previous = _previous(door.responses, wanted.previous_response_id)
    items = resolved(given_items(wanted.input), door.responses, owner)
    check_num_items(len(items) + (0 if previous is None else previous.num_items))
    before = [] if previous is None else previous.items
    told = (one.message for one in (*before, *items) if one.message is not None)
    turns = conversation_turns(wanted.instructions, told)

    def keep(response: ResponseObject, made: Sequence[MadeItem]) -> None:
        turn = Turn(previous, _named(items, response_id), [one.kept for one in made])
        door.responses.keep(KeptResponse(response_id, owner, response.model_dump_json(), turn))

    return Making(
        engine=engine,
        spec=responses_spec(wanted, conversation(turns), response_id),
        frame=response_frame(
            wanted,
            response_id,
            created_s=int(time.time()),
            model=engine.served_model.names[0],
        ),
        functions=functions_by_name(wanted),
        spell=lru_cache(maxsize=_MAX_SPELLINGS)(engine.token_bytes),
        held=door.logprobs,
        keep=None if wanted.store is False else keep,
        names=response_names(wanted, turns, before=before, given=items),
    )


def _previous(responses: ResponseStore, response_id: str | None) -> Turn | None:
    if response_id is None:
        return None
    kept = responses.find(response_id, current_caller.get())
    if kept is None:
        raise PreviousResponseNotFoundError(
            f"previous_response_id is {response_id[:_MAX_SHOWN_CHARS]!r}, and no response of that"
            " id is kept: send the whole conversation",
            field="previous_response_id",
        )
    return kept.turn


def _named(items: Sequence[Item], response_id: str) -> list[Item]:
    """The same items with ids; those that were kept before have theirs."""
    return [
        item
        if item.id is not None
        else with_id(item, item_id(kind_of(item), response_id, f"in{index}"))
        for index, item in enumerate(items)
    ]
