"""What the package `anthropic` makes of the door, as JSON; runs in an environment of its own."""

import json
import sys
from typing import Any

import anthropic
from pydantic import BaseModel

ADDRESS, MODEL = sys.argv[1:]
WEATHER: Any = {
    "name": "weather",
    "description": "Weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
    },
}
ASK: Any = {
    "model": MODEL,
    "max_tokens": 48,
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "extra_body": {"temperature": 0},
}


class Fact(BaseModel):
    """What is asked for."""

    is_true: bool


client = anthropic.Anthropic(base_url=ADDRESS, api_key="none", max_retries=0)
asked_cities: list[str] = []


def look(city: str) -> str:
    """Looks.

    Args:
        city: Where.
    """
    asked_cities.append(city)
    return "sunny"


def streamed(**fields: Any) -> Any:
    """A message that was put together of the events of a stream."""
    with client.messages.stream(**{**ASK, **fields}) as stream:
        texts = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert texts == "".join(block.text for block in message.content if block.type == "text")
    return message.model_dump(mode="json", include={"content", "stop_reason", "stop_sequence"})


def whole(**fields: Any) -> Any:
    """A message that came at one go."""
    message = client.messages.create(**{**ASK, **fields})
    assert message._request_id is not None
    assert message.id == f"msg_{message._request_id}"
    return message.model_dump(mode="json", include={"content", "stop_reason", "stop_sequence"})


def refused(**fields: Any) -> Any:
    """Class, status and type of an error."""
    try:
        client.messages.create(**{**ASK, **fields})
    except anthropic.APIStatusError as error:
        body: Any = error.body
        return [type(error).__name__, error.status_code, body["error"]]
    raise AssertionError("nothing was refused")


def scripted() -> Any:
    """The loop over tools, with a model that calls `look` and then answers."""
    runner = client.beta.messages.tool_runner(
        model=MODEL,
        max_tokens=64,
        tools=[anthropic.beta_tool(look)],
        messages=[{"role": "user", "content": "Weather?"}],
    )
    last = runner.until_done()
    return {"texts": [getattr(one, "text", "") for one in last.content], "cities": asked_cities}


def real() -> Any:
    """What the demo model says, of which the forms are known and one sentence."""
    image: Any = {"type": "base64", "media_type": "image/png", "data": ""}
    picture: Any = [{"role": "user", "content": [{"type": "image", "source": image}]}]
    forced: Any = {"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "weather"}}
    parsed = client.messages.parse(
        model=MODEL, max_tokens=48, messages=ASK["messages"], output_format=Fact
    )
    return {
        "whole": whole(),
        "streamed": streamed(),
        "stopped": whole(stop_sequences=["Paris"]),
        "forced": [whole(**forced), streamed(**forced)],
        "parsed": isinstance(parsed.parsed_output, Fact),
        "count": client.messages.count_tokens(model=MODEL, messages=ASK["messages"]).input_tokens,
        "unknown": refused(model="claude"),
        "picture": refused(messages=picture),
    }


print(json.dumps(scripted() if MODEL == "scripted" else real()))
