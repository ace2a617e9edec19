"""crewai."""

import os
import sys

os.environ.update(CREWAI_DISABLE_TELEMETRY="true", CREWAI_TRACING_ENABLED="false")

from crewai import LLM, Agent, Crew, Task
from crewai.tools import tool

_, SCRIPTED = sys.argv[1:]
asked: list[str] = []


@tool("weather")
def weather(city: str) -> str:
    """Weather of a city."""
    asked.append(city)
    return "sunny"


guide = Agent(
    role="Guide",
    goal="Tell the weather",
    backstory="You look it up.",
    llm=LLM(model="openai/scripted", base_url=f"{SCRIPTED}/v1", api_key="none"),
    tools=[weather],
)
task = Task(description="Weather in Paris?", expected_output="One sentence.", agent=guide)
result = Crew(agents=[guide], tasks=[task]).kickoff()
assert result.raw == "It is sunny.", result
assert asked == ["Paris"]
