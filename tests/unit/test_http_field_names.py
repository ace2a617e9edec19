"""What a client reads of the core's errors: the names of its own fields, whatever the error is."""

from collections.abc import Iterator
from typing import Any

import pytest

from coordinator.doors.http.errors import error_body
from coordinator.doors.http.field_names import field_names, renamed
from coordinator.doors.http.schema.chat import ChatCompletionRequest
from coordinator.doors.http.schema.completion import CompletionRequest
from stagecoach.contract.errors import DeadlineExceededError, InvalidArgumentError, StagecoachError

SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "integer"}}}
CHAT = {"messages": [{"role": "user", "content": "Hi."}]}


@pytest.mark.parametrize("kind", [InvalidArgumentError, DeadlineExceededError])
@pytest.mark.parametrize(
    ("field", "request_fields", "expected"),
    [
        ("grammar.json_schema", {"response_format": SCHEMA}, "response_format.json_schema.schema"),
        ("grammar.regex", {"structured_outputs": {"regex": "a"}}, "structured_outputs.regex"),
        ("grammar.regex", {"structured_outputs": {"choice": ["a"]}}, "structured_outputs.choice"),
        ("prompt.chat.messages", {}, "messages"),
        (
            "prompt.chat.messages[2].tool_calls[1].arguments",
            {},
            "messages[2].tool_calls[1].function.arguments",
        ),
        ("prompt.chat.messages[2].tool_calls[1].id", {}, "messages[2].tool_calls[1].id"),
        ("prompt.chat.tools[1].parameters", {}, "tools[1].function.parameters"),
    ],
)
def test_every_error_of_a_chat_names_the_field_as_it_was_written(
    kind: type[StagecoachError], field: str, request_fields: dict[str, object], expected: str
) -> None:
    request = ChatCompletionRequest.model_validate(CHAT | request_fields)
    body = error_body(kind(f"{field} is not good", field=field), field_names(request))
    assert body.error.param == expected
    assert body.error.message == f"{expected} is not good"


def test_the_text_of_a_completion_that_took_too_long_is_its_prompt() -> None:
    request = CompletionRequest.model_validate({"prompt": "a"})
    error = DeadlineExceededError("prompt.text: 9 bytes", field="prompt.text", limit_s=1.0)
    assert error_body(error, field_names(request)).error.message == "prompt: 9 bytes"


class OnlyLookedUp(dict[str, str]):
    """Names that nobody goes through."""

    def __iter__(self) -> Iterator[str]:
        raise AssertionError("a request of 4096 messages has as many names")


def test_a_name_is_looked_up_and_not_searched_for() -> None:
    names = OnlyLookedUp({"prompt.chat.messages[1]": "messages[2].content[0]"})
    assert renamed("prompt.chat.messages[1].content", names) == "messages[2].content[0]"
    assert renamed("sampling.top_p", names) == "top_p"


class CountedLookups(dict[str, str]):
    """Names that count how often one is asked for."""

    num_lookups = 0

    def get(self, *arguments: Any) -> Any:
        self.num_lookups += 1
        return super().get(*arguments)


@pytest.mark.parametrize("name", ["." * 1000, "[" * 1000, "a.b[0]" * 1000])
def test_what_a_client_calls_a_parameter_makes_no_more_lookups(name: str) -> None:
    """Each look-up copied the rest of the path: 40 000 dots held the event loop for 4 s."""
    names = CountedLookups(field_names(ChatCompletionRequest.model_validate(CHAT)))
    field = "prompt.chat.tools[0].parameters.properties."
    assert renamed(field + name, names) == f"tools[0].function.parameters.properties.{name}"
    assert names.num_lookups < 20
