"""The tables of fields in `docs/clients.md` say what the HTTP door does with a request."""

from typing import Any

import pytest
from pydantic import ValidationError

from coordinator.core.catalog import Catalog
from coordinator.doors.http.app import create_app
from coordinator.doors.http.door import Door
from coordinator.doors.http.ignored_fields import ignored_fields
from coordinator.doors.http.schema.anthropic import CountTokensRequest, MessagesRequest
from coordinator.doors.http.schema.base import RequestModel
from coordinator.doors.http.schema.chat import ChatCompletionRequest
from coordinator.doors.http.schema.completion import CompletionRequest
from coordinator.doors.http.schema.embedding import EmbeddingRequest
from coordinator.doors.http.schema.ollama import (
    OllamaChatRequest,
    OllamaEmbeddingsRequest,
    OllamaEmbedRequest,
    OllamaGenerateRequest,
    OllamaShowRequest,
)
from coordinator.doors.http.schema.responses import ResponsesRequest
from coordinator.doors.http.schema.tokens import DetokenizeRequest, TokenizeRequest
from tools.http_fields import ENDPOINTS, Treatment, fields, route_table, tables

LEAST: dict[type[RequestModel], dict[str, Any]] = {
    ChatCompletionRequest: {"messages": [{"role": "user", "content": "x"}]},
    CompletionRequest: {"prompt": "x"},
    EmbeddingRequest: {"input": "x"},
    MessagesRequest: {"messages": [{"role": "user", "content": "x"}]},
    CountTokensRequest: {"messages": [{"role": "user", "content": "x"}]},
    OllamaChatRequest: {"messages": [{"role": "user", "content": "x"}]},
    OllamaGenerateRequest: {"prompt": "x"},
    OllamaShowRequest: {},
    OllamaEmbedRequest: {"input": "x"},
    OllamaEmbeddingsRequest: {"prompt": "x"},
    ResponsesRequest: {"input": "x"},
    TokenizeRequest: {"prompt": "x"},
    DetokenizeRequest: {"tokens": [1]},
}
"""A request with what it must have and nothing else."""


def places(model: type[RequestModel], treatment: Treatment) -> list[str]:
    """Fields of a request itself; not of the objects inside."""
    return [
        field.place
        for field in fields(model)
        if field.treatment is treatment and "." not in field.place
    ]


@pytest.mark.parametrize("model", ENDPOINTS.values(), ids=lambda model: model.__name__)
def test_a_field_that_is_said_to_be_refused_is_refused_by_name(model: type[RequestModel]) -> None:
    for place in places(model, Treatment.REFUSED):
        with pytest.raises(ValidationError) as caught:
            model.model_validate({**LEAST[model], place: "something"})
        assert {error["loc"][0] for error in caught.value.errors()} == {place}


@pytest.mark.parametrize("model", ENDPOINTS.values(), ids=lambda model: model.__name__)
def test_a_field_that_is_said_to_be_named_is_taken_and_named(model: type[RequestModel]) -> None:
    for place in places(model, Treatment.NAMED):
        wanted = model.model_validate({**LEAST[model], place: "something"})
        assert ignored_fields(wanted) == {place: place}


@pytest.mark.parametrize("route", ENDPOINTS)
def test_every_field_stands_once_in_the_table_of_its_route(route: str) -> None:
    model = ENDPOINTS[route]
    assert {field.place for field in fields(model)} >= {
        info.alias or name for name, info in model.model_fields.items()
    }
    assert [one.place for one in fields(model) if not (one.meaning and one.values)] == []
    _, _, *rows = route_table(route).splitlines()
    told = [
        (place, treatment)
        for places, treatment in (row.removeprefix("| ").split(" | ")[:2] for row in rows)
        for place in places.split(", ")
    ]
    assert sorted(told) == sorted(
        (f"`{field.place}`", field.treatment.value) for field in fields(model)
    )


def test_every_route_that_takes_a_body_has_a_table() -> None:
    routes = {
        path
        for path, methods in create_app(Door(Catalog())).openapi()["paths"].items()
        if any("requestBody" in method for method in methods.values())
    }
    assert set(ENDPOINTS) == routes
    assert all(f"#### `{route}`\n" in tables() for route in routes)


def test_fields_of_objects_are_named_by_their_place() -> None:
    found = {field.place: field for field in fields(ChatCompletionRequest)}
    assert found["messages[].tool_calls"].treatment is Treatment.HONOURED
    assert found["messages[].function_call"].treatment is Treatment.REFUSED
    assert found["messages[].name"].treatment is Treatment.HONOURED
    assert found["stream_options.include_obfuscation"].treatment is Treatment.NAMED
    assert found["response_format.json_schema.schema"].values == "object"
    assert found["response_format.type"].values == '`"text"` or `"json_object"` or `"json_schema"`'
    assert found["temperature"].values == "number 0 to 2"
