"""An empty effort, as the empty box of a form sends it, asks for nothing: not for thinking."""

import json

import pytest

from coordinator.core.request_spec import ChatMessage, ChatPrompt, Prompt
from coordinator.doors.http.request_specs import chat_specs
from coordinator.doors.http.responses_specs import responses_spec
from coordinator.doors.http.schema.chat import ChatCompletionRequest
from coordinator.doors.http.schema.responses import ResponsesRequest

TURN = {"role": "user", "content": "Hi"}


def chat(effort: str | None) -> Prompt:
    request = ChatCompletionRequest.model_validate({"messages": [TURN], "reasoning_effort": effort})
    return chat_specs(request, "r")[0][0].prompt


def response(effort: str | None) -> Prompt:
    request = ResponsesRequest.model_validate({"input": "Hi", "reasoning": {"effort": effort}})
    return responses_spec(request, (ChatMessage(role="user", content="Hi"),), "r").prompt


@pytest.mark.parametrize("prompt_of", [chat, response])
def test_an_empty_effort_is_none(prompt_of: object) -> None:
    assert callable(prompt_of)
    prompts = [prompt_of(effort) for effort in ("", None, "low")]
    assert all(isinstance(one, ChatPrompt) for one in prompts)
    empty, absent, low = [json.loads(one.template_arguments) for one in prompts]
    assert empty == absent == {}
    assert low["enable_thinking"] is True
