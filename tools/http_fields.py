"""Tables of what the HTTP door does with each field of a request, from the schema it validates by.

Each route has one table, and each of its fields stands in it once. A field is honoured; or taken
only with values that ask for nothing, and refused by name with any other; or taken and named, as it
changes nothing. `coordinator.doors.http.schema.base.Unused` marks the latter two.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import Any, NamedTuple, get_args

from coordinator.core.request_spec import MAX_UINT32
from coordinator.doors.http.schema.anthropic import CountTokensRequest, MessagesRequest
from coordinator.doors.http.schema.base import RequestModel, Unused
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
from tools.markdown import table

ENDPOINTS: Mapping[str, type[RequestModel]] = {
    "/v1/chat/completions": ChatCompletionRequest,
    "/v1/completions": CompletionRequest,
    "/v1/embeddings": EmbeddingRequest,
    "/v1/messages": MessagesRequest,
    "/v1/messages/count_tokens": CountTokensRequest,
    "/api/chat": OllamaChatRequest,
    "/api/generate": OllamaGenerateRequest,
    "/api/show": OllamaShowRequest,
    "/api/embed": OllamaEmbedRequest,
    "/api/embeddings": OllamaEmbeddingsRequest,
    "/v1/responses": ResponsesRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}
"""The endpoints that take a body."""

Schema = Mapping[str, Any]
"""A JSON schema, as pydantic writes it."""


class Treatment(Enum):
    """What the door does with a field."""

    HONOURED = "honoured"
    REFUSED = "refused"
    """Taken only with a value that asks for nothing."""
    NAMED = "named"
    """Taken, of no effect, and named in the answer."""


class Field(NamedTuple):
    """A field of a request, or of an object inside one."""

    place: str
    """As `response_format.json_schema.name` or `messages[].role`."""
    treatment: Treatment
    values: str
    """What is taken, in words."""
    meaning: str


def fields(model: type[RequestModel]) -> list[Field]:
    """The fields of a request, each followed by those of the objects in it.

    Objects of several classes may stand in one place: their fields of one name are one field.
    """
    found: dict[str, Field] = {}
    for field in _fields(model, ""):
        other = found.get(field.place)
        values = [field.values] if other is None else [other.values, field.values]
        found[field.place] = field._replace(values=" or ".join(dict.fromkeys(values)))
    return list(found.values())


def tables() -> str:
    """A table of the fields of each route."""
    return "\n".join(f"#### `{route}`\n\n{route_table(route)}" for route in ENDPOINTS)


def route_table(route: str) -> str:
    """The table of one route: what is honoured, refused and named, in this order.

    Fields that are honoured have a row each; others share one where the same is said of them.
    """
    rows: dict[tuple[str, ...], list[str]] = {}
    for treatment in Treatment:
        for field in fields(ENDPOINTS[route]):
            if field.treatment is treatment:
                own = field.place if treatment is Treatment.HONOURED else ""
                taken = "anything" if treatment is Treatment.NAMED else field.values
                said = (own, treatment.value, taken, field.meaning)
                rows.setdefault(said, []).append(field.place)
    return table(
        ("field", "is", "takes", "meaning"),
        [(_listed(places), *said) for (_, *said), places in rows.items()],
    )


def _fields(model: type[RequestModel], path: str) -> Iterator[Field]:
    schema = model.model_json_schema()
    for attribute, info in model.model_fields.items():
        name = info.alias or attribute
        mark = next((one for one in info.metadata if isinstance(one, Unused)), None)
        if mark is None or mark.is_up_to_model:
            treatment = Treatment.HONOURED
        else:
            treatment = Treatment.REFUSED if mark.asks_for_nothing else Treatment.NAMED
        taken = schema["properties"][name]
        yield Field(path + name, treatment, _values(taken), info.description or "")
        is_list = any(one.get("type") == "array" for one in _members(taken))
        for inner in _models(info.annotation):
            yield from _fields(inner, f"{path}{name}{'[]' if is_list else ''}.")


def _models(annotation: object) -> list[type[RequestModel]]:
    """The classes of objects that an annotation allows."""
    if isinstance(annotation, type) and issubclass(annotation, RequestModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _members(schema: Schema) -> Iterator[Schema]:
    """What a schema allows one of, unions of unions included; without null."""
    for key in ("anyOf", "oneOf"):
        if key in schema:
            for member in schema[key]:
                yield from _members(member)
            return
    if schema.get("type") != "null":
        yield schema


def _values(schema: Schema) -> str:
    """What a schema allows, in words."""
    return " or ".join(dict.fromkeys(map(_value, _members(schema))))


def _value(schema: Schema) -> str:
    if "const" in schema or "enum" in schema:
        values = schema.get("enum", [schema.get("const")])
        return ", ".join(f"`{json.dumps(value)}`" for value in values if value is not None)
    kind = str(schema.get("type", "object" if "$ref" in schema else "anything"))
    match kind:
        case "array":
            return f"list of {_values(schema['items'])}"
        case "integer" | "number":
            return kind + _bounds(schema)
        case "string":
            return "text"
        case "boolean":
            return "`true` or `false`"
    return kind


def _bounds(schema: Schema) -> str:
    """The range of a number, without ends that only its width in bits sets.

    Pydantic calls them `ge` and `le` where a validator stands before.
    """
    low, high = (
        one if one is not None and abs(one) < MAX_UINT32 else None
        for one in (
            schema.get("minimum", schema.get("ge")),
            schema.get("maximum", schema.get("le")),
        )
    )
    if low is None:
        return ""
    return f" from {low}" if high is None else f" {low} to {high}"


def _listed(places: Iterable[str]) -> str:
    return ", ".join(f"`{place}`" for place in sorted(places))
