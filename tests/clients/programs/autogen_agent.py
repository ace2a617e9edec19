"""AutoGen."""

import asyncio
import sys
from typing import Any

from autogen_agentchat.agents import AssistantAgent
from autogen_core.models import UserMessage
from autogen_ext.models.openai import OpenAIChatCompletionClient

DEMO, SCRIPTED = (f"{url}/v1" for url in sys.argv[1:])
INFO: Any = {
    "vision": False,
    "function_calling": True,
    "json_output": True,
    "family": "unknown",
    "structured_output": True,
}
asked: list[str] = []


async def weather(city: str) -> str:
    """Weather of a city."""
    asked.append(city)
    return "sunny"


async def main() -> None:
    """Talks to the demo model, and to one that calls tools."""
    model = OpenAIChatCompletionClient(
        model="SmolLM2-135M-Instruct.Q4_1",
        base_url=DEMO,
        api_key="none",
        model_info=INFO,
        max_tokens=12,
    )
    hello = await model.create([UserMessage(content="hi", source="user")])
    assert hello.content
    first: Any = await AssistantAgent("demo", model_client=model).run(task="hi")
    assert first.messages[-1].content
    caller = OpenAIChatCompletionClient(
        model="scripted", base_url=SCRIPTED, api_key="none", model_info=INFO
    )
    agent = AssistantAgent("guide", model_client=caller, tools=[weather], reflect_on_tool_use=True)
    result: Any = await agent.run(task="Weather in Paris?")
    assert result.messages[-1].content == "It is sunny.", result
    assert asked == ["Paris"]


asyncio.run(main())
