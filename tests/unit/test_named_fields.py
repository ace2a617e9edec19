"""An error names a field as the client wrote it, whichever door the client came through.

The cases follow from the proto, the SDK's arguments and the HTTP schema, so that a new field is
covered by itself: it is refused by its name, or is listed here as one that takes every value.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from coordinator.core.request_spec import RequestSpec
from coordinator.doors.grpc.messages import request_spec
from coordinator.doors.http.errors import ErrorBody, error_body
from coordinator.doors.http.field_names import NO_NAMES, field_names, renamed
from coordinator.doors.http.ignored_fields import known_fields
from coordinator.doors.http.request_specs import (
    chat_prompt,
    chat_specs,
    completion_specs,
    text_prompt,
)
from coordinator.doors.http.schema.anthropic import MessagesRequest
from coordinator.doors.http.schema.base import ModelRequest
from coordinator.doors.http.schema.chat import ChatCompletionRequest
from coordinator.doors.http.schema.completion import CompletionRequest
from coordinator.doors.http.schema.ollama import OllamaChatRequest
from coordinator.doors.http.schema.responses import ResponsesRequest
from coordinator.doors.http.schema.tokens import DetokenizeRequest, TokenizeRequest
from coordinator.doors.http.validation import validate
from coordinator.doors.thinking_arguments import MAX_EFFORT_CHARS
from coordinator.engine.admission import Admission
from stagecoach.client.channel import Peer, read_error
from stagecoach.client.request import GenerateOptions, generate_request
from stagecoach.contract import status
from stagecoach.contract.error_words import in_words_of
from stagecoach.contract.errors import InvalidArgumentError, StagecoachError
from stagecoach.v1 import generation_pb2

VOCAB_SIZE = 100
Request = generation_pb2.GenerateRequest

NUMBERS = [math.nan, -1e9, 1e9, -5, 0, 2**32 - 1, 2**70]
TEXTS = ["", "x" * 70_000, "\n"]
OTHERS: list[Any] = [[""], [-1], [2**32 - 1], {2**32 - 1: 0.0}, {1: 1e9}, {"x": 1}, {"1": 1e9}]
BAD = [*NUMBERS, *TEXTS, *OTHERS]
"""Of whichever type a field is, one of these is out of its range or of another type."""


async def admit(spec: RequestSpec) -> None:
    """Checks what a door made of a request against a model without a tokenizer."""
    admission = Admission(
        text=None,
        vocab_size=VOCAB_SIZE,
        eos_token_ids=frozenset(),
        max_request_tokens=64,
        answers_prompt_logits=False,
        answers_hidden_sums=True,
        hidden_size=8,
    )
    admission.check(spec)
    await admission.encode(spec.prompt)


def paths(descriptor: Descriptor, parent: str = "") -> Iterator[str]:
    """Every field of a message, those inside of its own messages included."""
    for field in descriptor.fields:
        path = f"{parent}{field.name}"
        inner = field.message_type
        if inner is None or field.is_repeated or not inner.fields:
            yield path
        else:
            yield from paths(inner, f"{path}.")


PATHS = [*paths(Request.DESCRIPTOR)]
TAKES_ALL = {
    *("ignore_eos", "min_tokens", "sampling.top_k", "sampling.seed", "grammar.json_object"),
    *("prompt.add_special_tokens", "prompt.chat.add_generation_prompt"),
    "prompt.chat.continue_final_message",
    *("prompt.chat.parallel_tool_calls", "prompt.chat.enable_thinking", "divide_output"),
    "model",  # tests/contract/test_catalog.py
}
"""Beside the other fields of a good request."""
BAD_ITEMS: Mapping[str, list[Message]] = {
    "messages": [generation_pb2.ChatMessage(role="wizard", content="x")],
    "tools": [generation_pb2.Tool(name="a b")],
}


def put(message: Message, path: str, value: Any) -> None:
    """Sets a field; the values are tried in turn, so that those of another type are left out."""
    *parents, name = path.split(".")
    for parent in parents:
        getattr(message, parent).SetInParent()
        message = getattr(message, parent)
    field = message.DESCRIPTOR.fields_by_name[name]
    if field.message_type is not None and not field.message_type.GetOptions().map_entry:
        value = BAD_ITEMS[name] if field.is_repeated else generation_pb2.JsonObject()
    message.MergeFrom(type(message)(**{name: value}))


def named_paths(message: str) -> set[str]:
    """Fields of the contract that a message names by their path."""
    return {path for path in PATHS if "." in path and path in message}


async def refusals(path: str) -> list[InvalidArgumentError]:
    found = []
    for value in BAD:
        message = Request()
        message.prompt.token_ids.ids.append(1)
        if path.startswith("prompt.chat.") and path != "prompt.chat.messages":
            message.prompt.chat.messages.add(role="user", content="x")
        try:
            put(message, path, value)
        except (TypeError, ValueError, OverflowError):
            continue
        try:
            await admit(request_spec(message))
        except InvalidArgumentError as error:
            if not (path.startswith("prompt.chat.") and "no tokenizer" in error.message):
                found.append(error)
    return found


@pytest.mark.parametrize("path", PATHS)
async def test_grpc_names_the_path_of_a_field(path: str) -> None:
    errors = await refusals(path)
    for error in errors:
        assert error.field
        assert path == error.field or path.startswith((f"{error.field}.", f"{error.field}["))
        assert error.message.startswith(error.field)
        assert named_paths(error.message) <= {path}
    if path == "prompt.add_special_tokens":
        assert errors  # beside token ids
    else:
        assert bool(errors) != (path in TAKES_ALL)


class Ended(grpc.RpcError):
    """A call that ended with an error of ours."""

    def __init__(self, error: StagecoachError) -> None:
        self._ending = status.trailing_metadata(error)

    def code(self) -> grpc.StatusCode:
        return self._ending[0]

    def details(self) -> str:
        return self._ending[1]

    def trailing_metadata(self) -> Any:
        return self._ending[2]


async def refusal_of_sdk(prompt: Any, options: Mapping[str, Any]) -> InvalidArgumentError | None:
    """What a caller of the SDK sees, whether the SDK or the coordinator refuses."""
    try:
        message = generate_request(prompt, **options)
    except InvalidArgumentError as error:
        return error
    try:
        await admit(request_spec(message))
    except InvalidArgumentError as error:
        told = read_error(Ended(error), Peer("localhost:1"))
        assert isinstance(told, InvalidArgumentError)
        return told
    return None


@pytest.mark.parametrize("name", GenerateOptions.__annotations__)
async def test_the_sdk_names_an_argument_wherever_it_is_refused(name: str) -> None:
    is_refused = False
    for value in [*BAD, object(), "\ud800"]:
        error = await refusal_of_sdk([1], {name: value})
        if error is not None:
            is_refused = True
            assert error.field == name
            assert re.match(rf"{name}\b", error.message)
            assert not named_paths(error.message)
    assert is_refused != (name == "json_object")


@pytest.mark.parametrize(
    ("prompt", "options", "field", "words"),
    [
        ([VOCAB_SIZE], {}, "prompt", "prompt: token id 100 is outside"),
        ("", {}, "prompt", "prompt is empty"),
        ([{"role": "wizard", "content": "x"}], {}, "prompt", "prompt has a message whose role"),
        ([1], {"add_special_tokens": True}, "add_special_tokens", "add_special_tokens is set"),
        ([1], {"min_tokens": 5, "max_tokens": 2}, "min_tokens", "min_tokens is 5, must be in"),
        ([1], {"regex": "a", "lark": "b"}, "regex", "regex and lark are both given"),
        (
            [{"role": "user", "content": "x"}],
            {"add_generation_prompt": True, "continue_final_message": True},
            "continue_final_message",
            "continue_final_message and add_generation_prompt are both true",
        ),
    ],
)
async def test_the_sdk_names_what_is_wrong_between_arguments(
    prompt: Any, options: Mapping[str, Any], field: str, words: str
) -> None:
    error = await refusal_of_sdk(prompt, options)
    assert error is not None
    assert error.field == field
    assert error.message.startswith(words)


async def test_a_float_is_shown_as_it_was_written() -> None:
    error = await refusal_of_sdk([1], {"temperature": 200.1})
    assert error is not None
    assert error.message == "temperature is 200.1, must be in [0.0, 100.0]"


BODIES: dict[type[ModelRequest], dict[str, Any]] = {
    ChatCompletionRequest: {"messages": [{"role": "user", "content": "x"}]},
    CompletionRequest: {"prompt": [1]},
    TokenizeRequest: {"prompt": "x"},
    DetokenizeRequest: {"tokens": [1]},
}
HTTP_NAMES = {field.name for kind in BODIES for field in known_fields(kind)}
CASES = [(kind, field) for kind in BODIES for field in known_fields(kind)]


async def refusal_of_http(kind: type[ModelRequest], body: Mapping[str, Any]) -> ErrorBody | None:
    names = NO_NAMES
    try:
        request = validate(json.dumps(body).encode(), kind)
        names = field_names(request)
        match request:
            case ChatCompletionRequest():
                spec = chat_specs(request, "r")[0][0]
            case CompletionRequest():
                spec = completion_specs(request, "r")[0][0]
            case TokenizeRequest(prompt=str(text)):
                spec = RequestSpec(prompt=text_prompt(request, text))
            case TokenizeRequest():
                spec = RequestSpec(prompt=chat_prompt(request, request.messages or ()))
            case _:
                return None
        await admit(spec)
    except InvalidArgumentError as error:
        if "no tokenizer" in error.message:
            return None
        return error_body(error, names).error
    return None


def foreign_names(message: str, body: Mapping[str, Any]) -> set[str]:
    """Names in a message, of any door, that its client did not write."""
    words = set(re.findall(r"[a-z]+(?:[_.][a-z]+)+", message))
    return {word for word in words & {*HTTP_NAMES, *PATHS} if word not in body}


@pytest.mark.parametrize(
    ("kind", "field"), CASES, ids=[f"{kind.__name__}-{field.name}" for kind, field in CASES]
)
async def test_http_names_a_field_of_the_body(kind: type[ModelRequest], field: Any) -> None:
    is_refused = False
    for value in BAD:
        if value != value or (isinstance(value, dict) and 1 in value):
            continue  # JSON has no such
        body = BODIES[kind] | {field.name: value}
        error = await refusal_of_http(kind, body)
        if error is not None:
            is_refused = True
            assert error.param is not None
            assert re.match(rf"{re.escape(field.name)}(\W|$)", error.param)
            assert re.match(rf"{re.escape(field.name)}\b", error.message)
            assert not foreign_names(error.message, body)
    assert is_refused or not field.is_of_use


@pytest.mark.parametrize(
    ("kind", "fields", "param"),
    [
        (ChatCompletionRequest, {"max_completion_tokens": 2, "min_tokens": 5}, "min_tokens"),
        (ChatCompletionRequest, {"max_tokens": 2, "min_tokens": 5}, "min_tokens"),
        (CompletionRequest, {"min_tokens": 20}, "min_tokens"),  # above the default
        (CompletionRequest, {"max_tokens": 2, "min_tokens": 5}, "min_tokens"),
        (ChatCompletionRequest, {"max_tokens": 2, "max_completion_tokens": 5}, "max_tokens"),
        (ChatCompletionRequest, {"top_logprobs": 3}, "top_logprobs"),
        (CompletionRequest, {"best_of": 3}, "best_of"),
        (CompletionRequest, {"logit_bias": {"200": 1}}, "logit_bias"),
        (CompletionRequest, {"stop_token_ids": [200]}, "stop_token_ids"),
        (CompletionRequest, {"prompt": [200]}, "prompt"),
        (
            CompletionRequest,
            {"response_format": {"type": "text"}, "structured_outputs": {"regex": "a"}},
            "structured_outputs",
        ),
        (
            ChatCompletionRequest,
            {"add_generation_prompt": True, "continue_final_message": True},
            "continue_final_message",
        ),
        (CompletionRequest, {"structured_outputs": {"json": "["}}, "structured_outputs.json"),
    ],
)
async def test_http_names_what_is_wrong_between_fields(
    kind: type[ModelRequest], fields: Mapping[str, Any], param: str
) -> None:
    body = {**BODIES[kind], **fields}
    error = await refusal_of_http(kind, body)
    assert error is not None
    assert error.param == param
    assert error.message.startswith(param)
    assert not foreign_names(error.message, body)


def test_a_second_field_is_renamed_and_what_is_quoted_is_not() -> None:
    names = {"a.b": "b", "a.c": "c", "a": "whole"}
    error = InvalidArgumentError(
        "a.b is 'a.b', which a.c[1] has not; a.b.d and xa.c stay", field="a.b", other_field="a.c"
    )
    told = in_words_of(error, lambda field: names.get(field, field))
    assert told.message == "b is 'a.b', which c[1] has not; a.b.d and xa.c stay"
    assert told.details == {"field": "b", "other_field": "c"}
    assert in_words_of(error, lambda field: field) is error


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("listen 'nowhere' is not HOST:PORT", "--listen 'nowhere' is not HOST:PORT"),
        ("cannot listen on 127.0.0.1:1", "cannot listen on 127.0.0.1:1"),
        ("a free port to listen on is missing", "a free port to listen on is missing"),
    ],
)
def test_a_plain_word_in_a_message_stays(message: str, told: str) -> None:
    error = in_words_of(InvalidArgumentError(message, field="listen"), "--{}".format)
    assert (error.message, error.details["field"]) == (told, "--listen")


FUNCTION = {"name": "f", "parameters": {}}
TURNS = [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    ("kind", "fields", "place"),
    [
        (
            ChatCompletionRequest,
            {"messages": TURNS, "tools": [{"type": "function", "function": FUNCTION}]},
            "tools[0].function.parameters",
        ),
        (
            OllamaChatRequest,
            {"messages": TURNS, "tools": [{"type": "function", "function": FUNCTION}]},
            "tools[0].function.parameters",
        ),
        (
            MessagesRequest,
            {"messages": TURNS, "max_tokens": 1, "tools": [{"name": "f", "input_schema": {}}]},
            "tools[0].input_schema",
        ),
        (
            ResponsesRequest,
            {"input": "x", "tools": [{"type": "function", **FUNCTION}]},
            "tools[0].parameters",
        ),
    ],
)
def test_the_schema_of_a_tool_has_the_name_that_its_door_gives_it(
    kind: type[ModelRequest], fields: dict[str, Any], place: str
) -> None:
    names = field_names(kind.model_validate({"model": "m", **fields}))
    for inside in ("", ".type", ".properties.a"):
        assert renamed(f"prompt.chat.tools[0].parameters{inside}", names) == place + inside


def test_tools_of_a_response_have_the_places_that_they_were_written_at() -> None:
    function = {"type": "function", **FUNCTION}
    space = {"type": "namespace", "name": "n", "description": "N.", "tools": [function, function]}
    request = ResponsesRequest.model_validate(
        {"input": "x", "tools": [{"type": "web_search"}, function, space]}
    )
    places = ["tools[1]", "tools[2].tools[0]", "tools[2].tools[1]"]
    for index, place in enumerate(places):
        named = renamed(f"prompt.chat.tools[{index}].parameters.type", field_names(request))
        assert named == f"{place}.parameters.type"


@pytest.mark.parametrize(
    ("kind", "fields", "place"),
    [
        (ChatCompletionRequest, {"messages": TURNS, "reasoning_effort": "?"}, "reasoning_effort"),
        (TokenizeRequest, {"messages": TURNS, "reasoning_effort": "?"}, "reasoning_effort"),
        (ResponsesRequest, {"input": "x", "reasoning": {"effort": "?"}}, "reasoning.effort"),
        (
            MessagesRequest,
            {"messages": TURNS, "max_tokens": 1, "output_config": {"effort": "?"}},
            "output_config.effort",
        ),
        (OllamaChatRequest, {"messages": TURNS, "think": "?"}, "think"),
    ],
)
def test_a_long_word_for_how_long_to_think_is_refused_by_its_name(
    kind: type[ModelRequest], fields: dict[str, Any], place: str
) -> None:
    body = json.dumps({"model": "m", **fields}).replace("?", "x" * (MAX_EFFORT_CHARS + 1))
    with pytest.raises(InvalidArgumentError) as caught:
        validate(body.encode(), kind)
    assert caught.value.details["field"] == place
    assert caught.value.message.startswith(place)
    assert len(caught.value.message) < 200
