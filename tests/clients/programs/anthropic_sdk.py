"""The package `anthropic`; runs in an environment of its own."""

import sys
from typing import Any

import anthropic
from pydantic import BaseModel

DEMO, SCRIPTED = (
    anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) for url in sys.argv[1:]
)
MODEL = DEMO.models.list().data[0].id
WEATHER: Any = {
    "name": "weather",
    "description": "Weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
    },
}
QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
ASK: Any = {
    "model": MODEL,
    "max_tokens": 48,
    "messages": QUESTION,
    "extra_body": {"temperature": 0},
}
asked_cities: list[str] = []


class Fact(BaseModel):
    """What is asked for."""

    is_true: bool


@anthropic.beta_tool
def look(city: str) -> str:
    """Looks.

    Args:
        city: Where.
    """
    asked_cities.append(city)
    return "sunny"


def streamed(**fields: Any) -> Any:
    """A message that was put together of the events of a stream."""
    with DEMO.messages.stream(**{**ASK, **fields}) as stream:
        texts = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert texts == "".join(block.text for block in message.content if block.type == "text")
    return message


def whole(**fields: Any) -> Any:
    """A message that came at one go."""
    message = DEMO.messages.create(**{**ASK, **fields})
    assert message.id == f"msg_{message._request_id}"
    return message


def refused(**fields: Any) -> anthropic.APIStatusError:
    """An error."""
    try:
        DEMO.messages.create(**{**ASK, **fields})
    except anthropic.APIStatusError as error:
        return error
    raise AssertionError("nothing was refused")


# The demo model.
first = whole()
assert "Paris" in first.content[0].text
assert streamed().content[0].text == first.content[0].text
assert first.stop_reason == "end_turn"
stopped = whole(stop_sequences=["Paris"])
assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "Paris")
forced: Any = {"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "weather"}}
for message in (whole(**forced), streamed(**forced)):
    [block] = message.content
    assert (block.type, block.name, message.stop_reason) == ("tool_use", "weather", "tool_use")
    assert isinstance(block.input["city"], str)
parsed = DEMO.messages.parse(model=MODEL, max_tokens=48, messages=QUESTION, output_format=Fact)
assert isinstance(parsed.parsed_output, Fact)
assert DEMO.messages.count_tokens(model=MODEL, messages=QUESTION).input_tokens > len("capital")
for model in (*DEMO.models.list(), DEMO.models.retrieve(MODEL)):
    assert (model.type, model.id, model.display_name) == ("model", MODEL, MODEL)
    assert model.created_at.tzinfo is not None

# What is refused.
unknown = refused(model="claude")
assert (type(unknown), unknown.status_code) == (anthropic.NotFoundError, 404)
image: Any = {"type": "base64", "media_type": "image/png", "data": ""}
picture: Any = [{"role": "user", "content": [{"type": "image", "source": image}]}]
error: Any = refused(messages=picture).body
assert error["error"]["message"].startswith("messages[0].content[0]: ")

# A model that calls `look` and then answers.
last = SCRIPTED.beta.messages.tool_runner(
    model="scripted",
    max_tokens=64,
    tools=[look],
    messages=[{"role": "user", "content": "Weather?"}],
).until_done()
assert [one.text for one in last.content if one.type == "text"] == ["It is sunny."]
assert asked_cities == ["Paris"]
