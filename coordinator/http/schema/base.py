"""What all requests share: strict types, no unknown field, and values that ask for nothing.

Every field of OpenAI's schema is honoured or refused by name. Some have a value that asks for
nothing, such as `store: false`; that value is taken, so that clients which always send the field
work, and every other one is refused. A description says which.
"""

from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    WithJsonSchema,
)
from pydantic_core import CoreSchema

from coordinator.http.schema.bounds import bound_errors


class RequestModel(BaseModel):
    """Base of everything that a client sends."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: type[BaseModel], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """The schema, of which few errors come."""
        schema = handler(source)
        bound_errors(schema)
        return schema


class ModelRequest(RequestModel):
    """Base of what is asked of a model."""

    model: str | None = Field(None, description="The model's id. Null: the one that is served.")


class ResponseModel(BaseModel):
    """Base of everything that is answered."""

    model_config = ConfigDict(extra="forbid")


def _refuse(value: object) -> object:
    if value:
        raise ValueError("is not supported")
    return value


Unsupported = Annotated[
    Any,
    AfterValidator(_refuse),
    WithJsonSchema({"enum": [None, False, "", [], {}, 0]}),
    Field(description="Not supported: only null and what asks for nothing is taken."),
]
"""A field of OpenAI's that this server does not have: null, false, empty, or refused by name."""


def _check_labels(labels: dict[str, str]) -> dict[str, str]:
    if any(len(name) > 64 or len(text) > 512 for name, text in labels.items()):
        raise ValueError("has a name of more than 64 or a value of more than 512 characters")
    return labels


Labels = Annotated[dict[str, str], Field(max_length=16), AfterValidator(_check_labels)]
"""OpenAI's `metadata`: up to 16 labels; names to 64 and values to 512 characters."""
