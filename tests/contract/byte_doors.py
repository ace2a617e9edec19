"""The HTTP door of models whose tokens are bytes, which run in two stages, for OpenAI's package."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from openai import OpenAI

from stagecoach.contract.layer_range import LayerRange
from tests.byte_models import byte_model
from tests.clusters import running_engine
from tests.contract.http_door import in_background, serving_http

MODEL = "llama"
MAX_MODEL_LEN = 2048

THINKING_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}:"
    "{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}"
    "{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% if enable_thinking is not defined or "
    "enable_thinking %}<think>\n{% else %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""Of a model that thinks before it answers, unless it is told not to."""


@asynccontextmanager
async def serving(model: Path) -> AsyncIterator[str]:
    ranges = [LayerRange(0, 3), LayerRange(3, 6)]
    # Instructions are long where a byte is a token.
    settings: dict[str, Any] = {"kv_memory_bytes": 4 << 20}
    async with running_engine(model, ranges, **settings) as engine, serving_http(engine) as address:
        yield address


@contextmanager
def openai_client(folder: Path, **options: Any) -> Iterator[OpenAI]:
    """A client of a model that is written into a folder; `options` are those of `byte_model`."""
    model = byte_model(folder, max_model_len=MAX_MODEL_LEN, **options)
    with (
        in_background(serving(model)) as address,
        OpenAI(base_url=f"http://{address}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client
