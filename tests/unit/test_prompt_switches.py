"""How a prompt is read: the same switches through HTTP, gRPC and the SDK."""

from typing import Any

import pytest
from pydantic import ValidationError

from coordinator.core.request_spec import ChatMessage, ChatPrompt, Prompt, TextPrompt, TokenPrompt
from coordinator.doors.grpc.messages import tokenize_prompt
from coordinator.doors.http.request_specs import (
    chat_prompt,
    chat_specs,
    completion_specs,
    text_prompt,
)
from coordinator.doors.http.schema.chat import ChatCompletionRequest
from coordinator.doors.http.schema.completion import CompletionRequest
from coordinator.doors.http.schema.tokens import TokenizeRequest
from stagecoach.client.prompt import PromptLike, PromptOptions, prompt_message
from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.v1 import generation_pb2, stage_pb2

TURNS: list[dict[str, str]] = [{"role": "user", "content": "a"}]
MESSAGES = (ChatMessage(role="user", content="a"),)

CHAT_CASES: list[tuple[PromptOptions, ChatPrompt]] = [
    ({}, ChatPrompt(messages=MESSAGES)),
    ({"add_generation_prompt": None}, ChatPrompt(messages=MESSAGES)),
    ({"add_generation_prompt": True}, ChatPrompt(messages=MESSAGES)),
    ({"add_generation_prompt": False}, ChatPrompt(messages=MESSAGES, add_generation_prompt=False)),
    (
        {"continue_final_message": True},
        ChatPrompt(messages=MESSAGES, add_generation_prompt=False, continue_final_message=True),
    ),
    ({"add_special_tokens": True}, ChatPrompt(messages=MESSAGES, add_special_tokens=True)),
    ({"add_special_tokens": False}, ChatPrompt(messages=MESSAGES)),
]
TEXT_CASES: list[tuple[PromptOptions, TextPrompt]] = [
    ({}, TextPrompt(text="a")),
    ({"add_special_tokens": True}, TextPrompt(text="a")),
    ({"add_special_tokens": False}, TextPrompt(text="a", add_special_tokens=False)),
]


def over_grpc(prompt: PromptLike, options: PromptOptions) -> Prompt:
    message = generation_pb2.TokenizeRequest(prompt=prompt_message(prompt, **options))
    return tokenize_prompt(message)


@pytest.mark.parametrize(("switches", "expected"), CHAT_CASES)
def test_switches_of_a_conversation(switches: PromptOptions, expected: ChatPrompt) -> None:
    request: dict[str, Any] = {"messages": TURNS, **switches}
    specs = chat_specs(ChatCompletionRequest.model_validate(request), "r")
    assert specs[0][0].prompt == expected
    tokenized = TokenizeRequest.model_validate(request)
    assert tokenized.messages is not None
    assert chat_prompt(tokenized, tokenized.messages) == expected
    assert over_grpc(TURNS, switches) == expected


@pytest.mark.parametrize(("switches", "expected"), TEXT_CASES)
def test_switches_of_a_text(switches: PromptOptions, expected: TextPrompt) -> None:
    request: dict[str, Any] = {"prompt": "a", **switches}
    specs = completion_specs(CompletionRequest.model_validate(request), "r")
    assert specs[0][0].prompt == expected
    assert text_prompt(TokenizeRequest.model_validate(request), "a") == expected
    assert over_grpc("a", switches) == expected


def test_token_ids_have_no_switches() -> None:
    request = {"prompt": [1, 2], "add_special_tokens": True}
    specs = completion_specs(CompletionRequest.model_validate(request), "r")
    assert specs[0][0].prompt == TokenPrompt(token_ids=(1, 2))
    ids = stage_pb2.TokenIds(ids=[1, 2])
    message = generation_pb2.TokenizeRequest(
        prompt=generation_pb2.Prompt(token_ids=ids, add_special_tokens=True)
    )
    with pytest.raises(InvalidArgumentError, match="used as they are") as caught:
        tokenize_prompt(message)
    assert caught.value.field == "prompt.add_special_tokens"


def test_going_on_with_a_message_and_beginning_one_are_refused_together() -> None:
    both: PromptOptions = {"add_generation_prompt": True, "continue_final_message": True}
    for model in (ChatCompletionRequest, TokenizeRequest):
        with pytest.raises(ValidationError, match="both true"):
            model.model_validate({"messages": TURNS, **both})
    with pytest.raises(InvalidArgumentError, match="both true") as caught:
        over_grpc(TURNS, both)
    assert caught.value.field == "prompt.chat.continue_final_message"


@pytest.mark.parametrize(
    ("prompt", "options", "field"),
    [
        ("a", {"add_generation_prompt": False}, "add_generation_prompt"),
        ([1], {"continue_final_message": True}, "continue_final_message"),
        ("a", {"add_special_tokens": 1}, "add_special_tokens"),
    ],
)
def test_the_sdk_refuses_switches_of_another_form(
    prompt: PromptLike, options: Any, field: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        prompt_message(prompt, **options)
    assert caught.value.field == field


def test_the_sdk_knows_no_other_switches() -> None:
    unknown: Any = {"add_newlines": True}
    with pytest.raises(TypeError, match="add_newlines"):
        prompt_message("a", **unknown)
