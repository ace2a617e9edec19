"""The package `openai`; runs in an environment of its own."""

import json
import sys
from typing import Any, Literal

from openai import OpenAI, pydantic_function_tool
from pydantic import BaseModel

DEMO, SCRIPTED = (OpenAI(base_url=f"{url}/v1", api_key="none") for url in sys.argv[1:])
MODEL = DEMO.models.list().data[0].id
QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]


class Fact(BaseModel):
    """What is asked for."""

    kind: Literal["city", "country"]
    is_true: bool


class Weather(BaseModel):
    """Weather of a city."""

    city: Literal["Paris", "Rome"]


# The demo model, by chat.
whole = DEMO.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=12)
assert "Paris" in (whole.choices[0].message.content or ""), whole
chunks = DEMO.chat.completions.create(
    model=MODEL, messages=QUESTION, temperature=0, max_tokens=12, stream=True
)
streamed = "".join(one.choices[0].delta.content or "" for one in chunks)
assert streamed == whole.choices[0].message.content
parsed = DEMO.chat.completions.parse(model=MODEL, messages=QUESTION, response_format=Fact)
assert isinstance(parsed.choices[0].message.parsed, Fact)
tool = pydantic_function_tool(Weather)
forced = DEMO.chat.completions.parse(
    model=MODEL, messages=QUESTION, tools=[tool], tool_choice="required"
)
calls = forced.choices[0].message.tool_calls or []
assert isinstance(calls[0].function.parsed_arguments, Weather), forced
free = DEMO.chat.completions.create(model=MODEL, messages=QUESTION, tools=[tool], max_tokens=12)
assert free.choices[0].finish_reason in ("stop", "length", "tool_calls")

# The demo model, by responses.
response = DEMO.responses.create(
    model=MODEL, input="What is the capital of France?", temperature=0, max_output_tokens=16
)
assert "Paris" in response.output_text, response
more = DEMO.responses.create(
    model=MODEL, input="And of Italy?", previous_response_id=response.id, max_output_tokens=16
)
assert more.previous_response_id == response.id
fact = DEMO.responses.parse(model=MODEL, input="Paris?", text_format=Fact)
assert isinstance(fact.output_parsed, Fact)
with DEMO.responses.stream(model=MODEL, input="Hello", max_output_tokens=16) as events:
    kinds = [event.type for event in events]
assert kinds[0] == "response.created", kinds

# Embeddings.
vectors = DEMO.embeddings.create(model=MODEL, input=["Paris", "Rome"], dimensions=64)
assert [len(one.embedding) for one in vectors.data] == [64, 64]

# A model that calls tools, whose answers go back to it.
turns: list[Any] = [{"role": "user", "content": "Weather in Paris?"}]
while True:
    with SCRIPTED.chat.completions.stream(model="scripted", messages=turns, tools=[tool]) as stream:
        message = stream.get_final_completion().choices[0].message
    turns.append(message.model_dump(exclude={"parsed"}, exclude_none=True))
    if not message.tool_calls:
        break
    for call in message.tool_calls:
        city = json.loads(call.function.arguments)["city"]
        turns.append({"role": "tool", "tool_call_id": call.id, "content": f"{city}: sunny"})
assert message.content == "It is sunny.", turns
