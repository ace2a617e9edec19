"""Forms that a text can be asked to have."""

from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, Tag, model_validator

from coordinator.core.grammar import MAX_GRAMMAR_CHARS
from coordinator.doors.http.schema.base import (
    TEXT,
    Advisory,
    RequestModel,
    Unsupported,
    by_json_type,
    by_type,
)

_OBJECT = Tag("<object>")
GrammarText = Annotated[str, Field(min_length=1, max_length=MAX_GRAMMAR_CHARS)]

_FORM = Field(description="Any text, any JSON object, or JSON that conforms to a schema.")


class TextFormat(RequestModel):
    """Any text."""

    type: Literal["text"] = _FORM


class JsonObjectFormat(RequestModel):
    """Any JSON object."""

    type: Literal["json_object"] = _FORM


class JsonSchema(RequestModel):
    """A schema and its labels."""

    name: str = Field(
        min_length=1, max_length=64, description="A label; the text does not depend on it."
    )
    schema_: dict[str, JsonValue] | None = Field(
        None, alias="schema", description="The text conforms to it. Null or absent: any object."
    )
    strict: bool | None = Field(
        None, description="The schema is always kept to, so that both values are honoured."
    )
    description: Advisory = None


class JsonSchemaFormat(RequestModel):
    """JSON that conforms to a schema."""

    type: Literal["json_schema"] = _FORM
    json_schema: JsonSchema = Field(description="Only with the type `json_schema`.")


ResponseFormat = Annotated[
    Annotated[TextFormat, Tag("<text>")]
    | Annotated[JsonObjectFormat, Tag("<json_object>")]
    | Annotated[JsonSchemaFormat, Tag("<json_schema>")],
    by_type(("text", "json_object", "json_schema")),
]


JsonForm = Annotated[
    Annotated[dict[str, Any], _OBJECT] | Annotated[GrammarText, TEXT],
    by_json_type({dict: _OBJECT, str: TEXT}, "must be a schema, or a string that holds one"),
]


MAX_CHOICE_TEXTS = 1024
"""Texts of which one may be asked for."""


class StructuredOutputs(RequestModel):
    """A form of the text; exactly one field is set."""

    json_: JsonForm | None = Field(
        None, alias="json", description="A JSON schema, as an object or as text."
    )
    json_object: bool | None = Field(None, description="Any JSON object; false asks for nothing.")
    regex: GrammarText | None = Field(None, description="In Rust's syntax.")
    grammar: GrammarText | None = Field(
        None,
        description="Lark, with a rule `start`. Of a rule's attributes, lazy, suffix and max_tokens"
        " are honoured; the others, %json and tokens of the model are refused.",
    )
    choice: list[str] | None = Field(
        None,
        min_length=1,
        max_length=MAX_CHOICE_TEXTS,
        description="The text is one of these, as it stands.",
    )
    disable_fallback: Advisory = None
    disable_any_whitespace: Unsupported = None
    disable_additional_properties: Unsupported = None

    @model_validator(mode="after")
    def _check_one(self) -> "StructuredOutputs":
        forms = (self.json_, self.json_object or None, self.regex, self.grammar, self.choice)
        num_set = sum(form is not None for form in forms)
        if num_set != 1:
            raise ValueError(f"has {num_set} forms, must have exactly one")
        return self
