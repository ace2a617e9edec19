"""Forms that a text can be asked to have."""

from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, model_validator

from coordinator.core.grammar import MAX_GRAMMAR_CHARS
from coordinator.http.schema.base import RequestModel, Unsupported

GrammarText = Annotated[str, Field(min_length=1, max_length=MAX_GRAMMAR_CHARS)]


class TextFormat(RequestModel):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(RequestModel):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchema(RequestModel):
    """A schema and its labels."""

    name: str = Field(
        min_length=1, max_length=64, description="A label; the text does not depend on it."
    )
    schema_: dict[str, JsonValue] = Field(alias="schema", description="The text conforms to it.")
    strict: bool | None = Field(
        None, description="The schema is always kept to, so that both values are honoured."
    )
    description: Unsupported = None


class JsonSchemaFormat(RequestModel):
    """JSON that conforms to a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")
]


class StructuredOutputs(RequestModel):
    """A form of the text; exactly one field is set."""

    json_: dict[str, Any] | GrammarText | None = Field(
        None, alias="json", description="A JSON schema, as an object or as text."
    )
    json_object: Literal[True] | None = Field(None, description="Any JSON object.")
    regex: GrammarText | None = Field(None, description="In Rust's syntax.")
    grammar: GrammarText | None = Field(None, description="Lark, with a rule `start`.")

    @model_validator(mode="after")
    def _check_one(self) -> "StructuredOutputs":
        num_set = len(self.model_dump(exclude_none=True))
        if num_set != 1:
            raise ValueError(f"has {num_set} forms, must have exactly one")
        return self
