"""openai-agents."""

import sys

from agents import (
    Agent,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

_, SCRIPTED = sys.argv[1:]
set_tracing_disabled(True)
asked: list[str] = []


@function_tool
def weather(city: str) -> str:
    """Weather of a city."""
    asked.append(city)
    return "sunny"


for kind in (OpenAIResponsesModel, OpenAIChatCompletionsModel):
    client = AsyncOpenAI(base_url=f"{SCRIPTED}/v1", api_key="none")
    agent = Agent(
        name="Guide",
        instructions="Be brief.",
        model=kind(model="scripted", openai_client=client),
        tools=[weather],
    )
    result = Runner.run_sync(agent, "Weather in Paris?")
    assert result.final_output == "It is sunny.", result
    more = [*result.to_input_list(), {"role": "user", "content": "And now?"}]
    assert Runner.run_sync(agent, more).final_output == "It is sunny."
assert asked == 4 * ["Paris"]
