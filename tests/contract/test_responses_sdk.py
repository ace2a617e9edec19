"""`client.responses` of the official `openai` package against real pipelines."""

import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel, Field

from tests.contract.byte_doors import MODEL, THINKING_TEMPLATE, openai_client
from tests.contract.test_http_tools import WEATHER
from tests.responses_events import check_events, check_response

TOOLS: Any = [
    {"type": "function", "name": "weather", "parameters": WEATHER, "strict": True},
    {"type": "function", "name": "now", "description": "The time."},
]


class Colour(BaseModel):
    """What `parse` asks for."""

    name: Literal["red", "green"]
    shade: int = Field(ge=1, le=9)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    with openai_client(tmp_path_factory.mktemp("model")) as found:
        yield found


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    folder = tmp_path_factory.mktemp("model")
    with openai_client(folder, chat_template=THINKING_TEMPLATE) as found:
        yield found


def ask(client: OpenAI, **settings: Any) -> Any:
    defaults: dict[str, Any] = {"model": MODEL, "input": "Hi", "temperature": 0}
    return client.responses.create(**{**defaults, **settings})


def checked(client: OpenAI, **settings: Any) -> dict[str, Any]:
    """A streamed response, each event of which was checked."""
    events = [json.loads(event.to_json()) for event in ask(client, **settings, stream=True)]
    return check_events(events)


def test_text_is_the_same_whole_and_streamed(client: OpenAI) -> None:
    settings = {"max_output_tokens": 12, "instructions": "Be brief."}
    whole = ask(client, **settings)
    check_response(json.loads(whole.to_json()))
    assert whole.status == "incomplete"
    assert whole.incomplete_details.reason == "max_output_tokens"
    assert whole.usage.output_tokens == 12
    [item] = checked(client, **settings)["output"]
    assert item["content"][0]["text"] == whole.output_text


def test_the_stream_helper_reads_every_event(client: OpenAI) -> None:
    form: Any = {
        "format": {"type": "json_schema", "name": "x", "schema": {"enum": ["red", "green"]}}
    }
    with client.responses.stream(model=MODEL, input="Hi", temperature=0, text=form) as stream:
        text = "".join(one.delta for one in stream if one.type == "response.output_text.delta")
        done = stream.get_final_response()
    assert done.status == "completed"
    assert done.output_text == text
    assert json.loads(text) in ("red", "green")


def test_a_model_of_pydantic_is_parsed(client: OpenAI) -> None:
    done = client.responses.parse(model=MODEL, input="Hi", temperature=0, text_format=Colour)
    assert isinstance(done.output_parsed, Colour)
    assert json.loads(done.output_text) == done.output_parsed.model_dump()


def test_any_object_is_json(client: OpenAI) -> None:
    done = ask(client, text={"format": {"type": "json_object"}}, max_output_tokens=300)
    assert done.output_text.startswith("{")


def test_a_required_call_conforms_to_its_schema_and_is_parsed(client: OpenAI) -> None:
    class Place(BaseModel):
        """What is looked up."""

        city: Literal["Paris", "Rome"]

    done = client.responses.parse(
        model=MODEL,
        input="Hi",
        temperature=0,
        tools=[openai.pydantic_function_tool(Place, name="look")],
        tool_choice="required",
        parallel_tool_calls=False,
    )
    [call] = done.output
    assert call.type == "function_call"
    assert isinstance(call.parsed_arguments, Place)


@pytest.mark.parametrize(
    "choice",
    [
        {"type": "function", "name": "now"},
        {
            "type": "allowed_tools",
            "mode": "required",
            "tools": [{"type": "function", "name": "now"}],
        },
    ],
    ids=["named", "allowed"],
)
def test_only_what_is_named_is_called(client: OpenAI, choice: Any) -> None:
    settings = {"tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": False}
    [call] = checked(client, **settings)["output"]
    assert (call["type"], call["name"]) == ("function_call", "now")
    assert json.loads(call["arguments"]) == {}


def test_a_conversation_goes_on_behind_a_call(client: OpenAI) -> None:
    named = {"type": "function", "name": "weather"}
    first = ask(client, tools=TOOLS, tool_choice=named)
    [call] = first.output
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny."}
    settings: dict[str, Any] = {"tools": TOOLS, "tool_choice": "none", "max_output_tokens": 5}
    kept = ask(client, input=[output], previous_response_id=first.id, **settings)
    question = {"role": "user", "content": "Hi"}
    repeated = ask(client, input=[question, call.to_dict(), output], **settings)
    assert kept.output_text == repeated.output_text
    assert kept.usage.input_tokens == repeated.usage.input_tokens
    listed = [one.type for one in client.responses.input_items.list(kept.id, order="asc")]
    assert listed == ["message", "function_call", "function_call_output"]


def test_a_call_that_is_cut_is_incomplete_and_not_told_later(client: OpenAI) -> None:
    named = {"type": "function", "name": "weather"}
    settings: dict[str, Any] = {"tools": TOOLS, "tool_choice": named, "max_output_tokens": 60}
    cut = checked(client, **settings)
    assert cut["status"] == "incomplete"
    assert [item["status"] for item in cut["output"]] in ([], ["incomplete"])
    more: dict[str, Any] = {"input": "More", "max_output_tokens": 4}
    later = ask(client, previous_response_id=cut["id"], **more)
    fresh = [{"role": "user", "content": text} for text in ("Hi", "More")]
    assert later.usage.input_tokens == ask(client, **{**more, "input": fresh}).usage.input_tokens


def test_log_probabilities_come_where_they_are_included(client: OpenAI) -> None:
    settings: dict[str, Any] = {
        "max_output_tokens": 8,
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
    }
    whole = ask(client, **settings)
    [part] = whole.output[0].content
    assert len(part.logprobs) == 8
    assert b"".join(bytes(one.bytes) for one in part.logprobs).decode(errors="replace") == part.text
    assert all(one.logprob == one.top_logprobs[0].logprob for one in part.logprobs)
    streamed = checked(client, **settings)["output"][0]["content"][0]["logprobs"]
    assert [one["token"] for one in streamed] == [one.token for one in part.logprobs]
    shown = client.responses.retrieve(whole.id)
    assert shown.output_text == whole.output_text
    assert shown.to_dict()["output"] == [
        {**item, "content": [{**one, "logprobs": []} for one in item["content"]]}
        for item in whole.to_dict()["output"]
    ]


def test_a_response_is_retrieved_listed_and_deleted(client: OpenAI) -> None:
    done = ask(client, max_output_tokens=2, metadata={"a": "b"})
    assert client.responses.retrieve(done.id).metadata == {"a": "b"}
    [item] = client.responses.input_items.list(done.id).data
    assert item.type == "message"
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.cancel(done.id)
    client.responses.delete(done.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(done.id)
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, previous_response_id=done.id)
    assert caught.value.code == "previous_response_not_found"


def test_a_conversation_that_is_too_long_is_refused_by_name(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, input="x" * 3000)
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "input"


def test_a_schema_that_cannot_be_kept_to_is_named_by_its_path(client: OpenAI) -> None:
    lookbehind = {"type": "object", "properties": {"x": {"pattern": "(?<=a)b"}}}
    form = {"format": {"type": "json_schema", "name": "x", "schema": lookbehind}}
    tool = {"type": "function", "name": "f", "strict": True, "parameters": lookbehind}
    for settings, param in (
        ({"text": form}, "text.format.schema"),
        ({"tools": [tool]}, "tools[0]"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client, **settings)
        assert str(caught.value.param).startswith(param)


def test_thinking_is_an_item_of_its_own_and_can_be_switched_off(thinker: OpenAI) -> None:
    done = checked(thinker, max_output_tokens=40)
    item = done["output"][0]
    assert item["type"] == "reasoning"
    assert item["content"][0]["text"]
    assert done["usage"]["output_tokens_details"]["reasoning_tokens"]
    plain = ask(thinker, max_output_tokens=10, reasoning={"effort": "none"})
    assert [one.type for one in plain.output] == ["message"]
    assert plain.usage.output_tokens_details.reasoning_tokens == 0


def test_a_form_holds_after_thinking(thinker: OpenAI) -> None:
    form = {"format": {"type": "json_schema", "name": "x", "schema": {"const": 7}}}
    done = ask(thinker, text=form, reasoning={"effort": "none"}, max_output_tokens=20)
    assert json.loads(done.output_text) == 7
