"""pydantic-ai."""

import sys
from typing import Literal

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

DEMO, SCRIPTED = (OpenAIProvider(base_url=f"{url}/v1", api_key="none") for url in sys.argv[1:])
MODEL = "SmolLM2-135M-Instruct.Q4_1"


class Fact(BaseModel):
    """What is asked for."""

    kind: Literal["city", "country"]
    is_true: bool


# The demo model: by a call that is forced, and by a schema.
model = OpenAIChatModel(MODEL, provider=DEMO)
for output in (Fact, NativeOutput(Fact)):
    result = Agent(model, output_type=output).run_sync("Is Paris a city?")
    assert isinstance(result.output, Fact)

# A model that calls tools.
asked: list[str] = []


def weather(city: str) -> str:
    """Weather of a city."""
    asked.append(city)
    return "sunny"


for kind in (OpenAIChatModel, OpenAIResponsesModel):
    agent = Agent(kind("scripted", provider=SCRIPTED), system_prompt="Be brief.", tools=[weather])
    assert agent.run_sync("Weather in Paris?").output == "It is sunny."
assert asked == ["Paris", "Paris"]
