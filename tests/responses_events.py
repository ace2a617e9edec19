"""The events of a streamed response, judged by the official package's own types."""

import json
from collections.abc import Iterable, Sequence
from typing import Any, get_args

from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel

_UNION, *_ = get_args(ResponseStreamEvent)
_KINDS: dict[str, type[BaseModel]] = {
    get_args(kind.model_fields["type"].annotation)[0]: kind for kind in get_args(_UNION)
}
EXTRAS = {"bytes", "name", "store"}
"""What is told beyond the types of the package: the bytes of a token in a delta, the name of a
call, and whether a response is kept."""


def read_events(body: str) -> list[dict[str, Any]]:
    """The events of a whole stream, which must be well formed; comments are left out."""
    assert body.endswith("\n\n")
    events = []
    for block in body.removesuffix("\n\n").split("\n\n"):
        if block.startswith(":"):
            continue
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events


def check_events(events: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Checks each event and the order of all; returns the response at the end."""
    for event in events:
        _check_type(_KINDS[event["type"]], event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    created, in_progress, *between, last = events
    assert created["type"] == "response.created"
    assert in_progress["type"] == "response.in_progress"
    assert created["response"] == in_progress["response"]
    assert last["type"] == f"response.{last['response']['status']}"
    response: dict[str, Any] = last["response"]
    assert response["id"] == created["response"]["id"]
    items = _items_of(between)
    if response["status"] != "failed":
        assert items == response["output"]
    check_response(response)
    return response


def check_response(response: dict[str, Any]) -> None:
    """Checks a response against the package's type."""
    _check_type(Response, response)


def _check_type(kind: type[BaseModel], facts: dict[str, Any]) -> None:
    _check_known(kind.model_validate_json(json.dumps(facts), strict=True))


def _check_known(value: object) -> None:
    """Refuses fields that the package does not know, at any depth."""
    if isinstance(value, BaseModel):
        unknown = set(value.model_extra or ()) - EXTRAS
        assert not unknown, f"{type(value).__name__} has no {unknown}"
        for name in type(value).model_fields:
            _check_known(getattr(value, name))
    elif isinstance(value, list):
        for one in value:
            _check_known(one)


def _items_of(events: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The items that are done, each of which is told of between its beginning and its end."""
    items: list[dict[str, Any]] = []
    opened: dict[str, Any] | None = None
    texts = ""
    for event in events:
        kind = event["type"].removeprefix("response.")
        assert event["output_index"] == len(items)
        if kind == "output_item.added":
            assert opened is None
            opened, texts = event["item"], ""
            assert opened["status"] == "in_progress"
            continue
        assert opened is not None
        if kind == "output_item.done":
            assert event["item"]["id"] == opened["id"]
            assert _text_of(event["item"]) == texts
            items.append(event["item"])
            opened = None
            continue
        assert event["item_id"] == opened["id"]
        if kind.endswith(".delta"):
            texts += event["delta"]
        elif kind.endswith("_arguments.done"):
            assert event["arguments"] == texts
        elif kind.endswith("_text.done"):
            assert event["text"] == texts
        elif kind == "content_part.done":
            assert event["part"]["text"] == texts
        else:
            assert kind == "content_part.added"
            assert event["part"]["text"] == texts == ""
    return items


def _text_of(item: dict[str, Any]) -> str:
    if item["type"] == "function_call":
        arguments: str = item["arguments"]
        return arguments
    return "".join(part["text"] for part in item["content"])
