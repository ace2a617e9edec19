"""The package `ollama`; runs in an environment of its own."""

import json
import sys
from typing import Any

import ollama

DEMO, SCRIPTED = (ollama.Client(host=url) for url in sys.argv[1:])
GREEDY = {"temperature": 0, "num_predict": 12}
MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "boolean"}},
    "required": ["a"],
    "additionalProperties": False,
}


def weather(city: str) -> str:
    """Weather of a city.

    Args:
        city: Its name.
    """
    return f"sunny in {city}"


# The demo model.
[MODEL] = (one.model for one in DEMO.list().models)
assert MODEL is not None
assert [one.model for one in DEMO.ps().models] == [MODEL]
assert set(DEMO.show(MODEL).capabilities or ()) >= {"completion", "tools"}
chat = DEMO.chat(MODEL, messages=MESSAGES, options=GREEDY).message.content or ""
assert "France" in chat
assert chat == "".join(
    part.message.content or ""
    for part in DEMO.chat(MODEL, messages=MESSAGES, options=GREEDY, stream=True)
)
formed = DEMO.chat(MODEL, messages=MESSAGES, format=SCHEMA, options={"num_predict": 32})
assert isinstance(json.loads(formed.message.content or "")["a"], bool)
text = DEMO.generate(MODEL, prompt="A", options=GREEDY).response
assert text
assert text == "".join(
    part.response for part in DEMO.generate(MODEL, prompt="A", options=GREEDY, stream=True)
)
vectors = DEMO.embed(MODEL, input=["Paris", "Rome"]).embeddings
assert len(vectors) == 2
assert len(DEMO.embeddings(MODEL, prompt="Paris").embedding) == len(vectors[0])
by_tag = DEMO.chat(f"{MODEL}:latest", messages=MESSAGES, options=GREEDY)
assert by_tag.message.content == chat
try:
    DEMO.chat("nobody", messages=MESSAGES)
except ollama.ResponseError as error:
    status = error.status_code
assert status == 404

# A model that thinks, and calls a tool.
asked: Any = {"messages": MESSAGES, "tools": [weather], "think": True}
CALLS = [("weather", {"city": "Paris"})]
first = SCRIPTED.chat("scripted", **asked).message
assert [(one.function.name, one.function.arguments) for one in first.tool_calls or ()] == CALLS
assert first.thinking == "I look."
lines = [part.message for part in SCRIPTED.chat("scripted", **asked, stream=True)]
assert [
    (one.function.name, one.function.arguments) for line in lines for one in line.tool_calls or ()
] == CALLS
assert "".join(line.thinking or "" for line in lines) == "I look."
result = {"role": "tool", "tool_name": "weather", "content": weather("Paris")}
last = SCRIPTED.chat("scripted", messages=[*MESSAGES, first, result], tools=[weather])
assert last.message.content == "It is sunny."
