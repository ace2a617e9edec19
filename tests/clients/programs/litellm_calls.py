"""litellm."""

import sys
from typing import Any

import litellm

DEMO, SCRIPTED = ({"api_base": f"{url}/v1", "api_key": "none"} for url in sys.argv[1:])
MODEL = "openai/SmolLM2-135M-Instruct.Q4_1"
QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
        },
    },
}

# The demo model.
greedy: Any = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 12, **DEMO}
whole: Any = litellm.completion(**greedy)
assert "Paris" in whole.choices[0].message.content
chunks: Any = litellm.completion(**greedy, stream=True)
streamed = "".join(one.choices[0].delta.content or "" for one in chunks)
assert streamed == whole.choices[0].message.content
forced: Any = litellm.completion(
    model=MODEL, messages=QUESTION, tools=[WEATHER], tool_choice="required", **DEMO
)
assert forced.choices[0].message.tool_calls[0].function.name == "weather"
vectors: Any = litellm.embedding(model=MODEL, input=["Paris", "Rome"], **DEMO)
assert len(vectors.data) == 2

# A model that thinks, calls a tool, and gets its answer.
turns = [*QUESTION]
first: Any = litellm.completion("openai/scripted", turns, tools=[WEATHER], **SCRIPTED)
message = first.choices[0].message
assert message.reasoning_content == "I look.", message
[call] = message.tool_calls
turns += [message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
last: Any = litellm.completion("openai/scripted", turns, tools=[WEATHER], **SCRIPTED)
assert last.choices[0].message.content == "It is sunny."
