"""LlamaIndex."""

import asyncio
import sys

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike

DEMO, SCRIPTED = (f"{url}/v1" for url in sys.argv[1:])
MODEL = "SmolLM2-135M-Instruct.Q4_1"
QUESTION = "What is the capital of France?"
asked: list[str] = []


def weather(city: str) -> str:
    """Weather of a city."""
    asked.append(city)
    return "sunny"


# The demo model.
model = OpenAILike(
    api_base=DEMO, api_key="none", model=MODEL, is_chat_model=True, temperature=0, max_tokens=12
)
assert "Paris" in model.complete(QUESTION).text
assert "Paris" in "".join(part.delta or "" for part in model.stream_complete(QUESTION))
embedding = OpenAILikeEmbedding(api_base=DEMO, api_key="none", model_name=MODEL)
assert len(embedding.get_text_embedding_batch(["Paris", "Rome"])) == 2

# A model that calls tools.
caller = OpenAILike(
    api_base=SCRIPTED,
    api_key="none",
    model="scripted",
    is_chat_model=True,
    is_function_calling_model=True,
)


async def said() -> str:
    """What an agent says."""
    return str(await FunctionAgent(tools=[weather], llm=caller).run("Weather in Paris?"))


assert asyncio.run(said()) == "It is sunny."
assert asked == ["Paris"]
