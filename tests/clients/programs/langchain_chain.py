"""LangChain with `langchain-openai`."""

import sys
from typing import Any, Literal

from langchain.agents import create_agent
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

DEMO, SCRIPTED = (f"{url}/v1" for url in sys.argv[1:])
MODEL = "SmolLM2-135M-Instruct.Q4_1"
QUESTION = "What is the capital of France?"
asked: list[str] = []


class Fact(BaseModel):
    """What is asked for."""

    kind: Literal["city", "country"]
    is_true: bool


def weather(city: str) -> str:
    """Weather of a city."""
    asked.append(city)
    return "sunny"


# The demo model.
greedy: Any = ChatOpenAI(base_url=DEMO, api_key="none", model=MODEL, temperature=0, max_tokens=12)
answer = greedy.invoke(QUESTION).content
assert "Paris" in answer, answer
assert "".join(chunk.content for chunk in greedy.stream(QUESTION)) == answer
chat: Any = ChatOpenAI(base_url=DEMO, api_key="none", model=MODEL)
for method in ("json_schema", "function_calling"):
    assert isinstance(chat.with_structured_output(Fact, method=method).invoke(QUESTION), Fact)
called = chat.bind_tools([Fact], tool_choice="Fact").invoke(QUESTION)
assert called.tool_calls[0]["name"] == "Fact"
vectors = OpenAIEmbeddings(
    base_url=DEMO, api_key="none", model=MODEL, check_embedding_ctx_length=False
).embed_documents(["Paris", "Rome"])
assert len(vectors) == 2

# A model that calls tools.
caller = ChatOpenAI(base_url=SCRIPTED, api_key="none", model="scripted")
agent: Any = create_agent(caller, tools=[weather])
said = agent.invoke({"messages": [{"role": "user", "content": "Weather in Paris?"}]})
assert said["messages"][-1].content == "It is sunny."
assert asked == ["Paris"]
