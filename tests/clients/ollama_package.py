"""What the package `ollama` makes of the door, as JSON; runs in an environment of its own."""

import json
import sys
from typing import Any

import ollama

ADDRESS, MODEL = sys.argv[1:]
GREEDY = {"temperature": 0, "num_predict": 12}
MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
client = ollama.Client(host=ADDRESS)


def weather(city: str) -> str:
    """Weather of a city.

    Args:
        city: Its name.
    """
    return f"sunny in {city}"


def scripted() -> Any:
    """Calls of tools and thinking, whole and streamed."""
    asked: Any = {"messages": MESSAGES, "tools": [weather], "think": True}
    first = client.chat(MODEL, **asked).message
    lines = [part.message for part in client.chat(MODEL, **asked, stream=True)]
    return {
        "calls": [[one.function.name, one.function.arguments] for one in first.tool_calls or ()],
        "thinking": first.thinking,
        "streamed calls": [
            [one.function.name, one.function.arguments]
            for line in lines
            for one in line.tool_calls or ()
        ],
        "streamed thinking": "".join(line.thinking or "" for line in lines),
    }


def real() -> Any:
    """What the demo model says, and what is told of it."""
    chat = client.chat(MODEL, messages=MESSAGES, options=GREEDY)
    parts = [
        part.message.content
        for part in client.chat(MODEL, messages=MESSAGES, options=GREEDY, stream=True)
    ]
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    formed = client.chat(MODEL, messages=MESSAGES, format=schema, options={"num_predict": 32})
    texts = [
        part.response for part in client.generate(MODEL, prompt="A", options=GREEDY, stream=True)
    ]
    try:
        client.chat("nobody", messages=MESSAGES)
    except ollama.ResponseError as error:
        refused = [error.status_code, error.error]
    return {
        "chat": chat.message.content,
        "streamed": "".join(part or "" for part in parts),
        "formed": json.loads(formed.message.content or ""),
        "generated": [client.generate(MODEL, prompt="A", options=GREEDY).response, "".join(texts)],
        "models": [one.model for one in client.list().models],
        "loaded": [one.model for one in client.ps().models],
        "capabilities": client.show(MODEL).capabilities,
        "refused": refused,
    }


print(json.dumps(scripted() if MODEL == "scripted" else real()))
