"""Requests to an engine, and how they end."""

from typing import Any

import pytest

from coordinator.core.request_spec import RequestSpec, TokenPrompt
from coordinator.engine.engine import Engine
from stagecoach.contract.errors import StagecoachError

PROMPT = (5, 6, 7)


def create_spec(**changes: Any) -> RequestSpec:
    fields: dict[str, Any] = {
        "prompt": TokenPrompt(token_ids=PROMPT),
        "max_tokens": 8,
        "ignore_eos": True,
    }
    return RequestSpec(**{**fields, **changes})


async def failure(engine: Engine, spec: RequestSpec) -> StagecoachError:
    """The error that a request ends with."""
    with pytest.raises(StagecoachError) as caught:
        async for _ in await engine.submit(spec):
            pass
    return caught.value
