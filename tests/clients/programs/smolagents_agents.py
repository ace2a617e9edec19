"""smolagents."""

import sys

from smolagents import CodeAgent, OpenAIServerModel, ToolCallingAgent, tool

DEMO, SCRIPTED = (f"{url}/v1" for url in sys.argv[1:])
asked: list[str] = []


@tool
def weather(city: str) -> str:
    """Weather of a city.

    Args:
        city: Its name.
    """
    asked.append(city)
    return "sunny"


# The demo model.
model = OpenAIServerModel("SmolLM2-135M-Instruct.Q4_1", api_base=DEMO, api_key="none")
answer = model([{"role": "user", "content": "What is the capital of France?"}], max_tokens=12)
assert answer.content

# A model that calls a tool, and ends by a call.
caller = OpenAIServerModel("scripted", api_base=SCRIPTED, api_key="none")
agent = ToolCallingAgent(tools=[weather], model=caller, max_steps=3)
assert agent.run("Weather in Paris?") == "sunny"
assert asked == ["Paris"]

# A model that writes code: it gets no tools, and answers as one without them.
assert CodeAgent(tools=[], model=caller, max_steps=2).run("Weather in Paris?") == "sunny"
