"""The forms that a caller may want the output to have, and their message."""

import json
from collections.abc import Mapping

from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.v1 import generation_pb2

JsonSchema = str | bool | Mapping[str, object]
"""A JSON schema: as JSON text, or as `json.loads` reads it."""


def grammar_message(
    *,
    json_schema: JsonSchema | None,
    json_object: bool,
    regex: str | None,
    lark: str | None,
) -> generation_pb2.Grammar | None:
    """Writes the form that was asked for; None when none was.

    Raises:
        InvalidArgumentError: More than one was, or one is not what it must be.
    """
    forms: dict[str, object] = {
        "json_schema": None if json_schema is None else _schema_text(json_schema),
        "json_object": generation_pb2.JsonObject() if json_object else None,
        "regex": regex,
        "lark": lark,
    }
    wanted = [name for name, form in forms.items() if form is not None]
    if not wanted:
        return None
    if len(wanted) > 1:
        raise InvalidArgumentError(
            f"{wanted[0]} and {wanted[1]} are both given: the output has one form",
            field=wanted[0],
            other_field=wanted[1],
        )
    try:
        return generation_pb2.Grammar(**{wanted[0]: forms[wanted[0]]})  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(
            f"{wanted[0]} is {forms[wanted[0]]!r:.100}, which it cannot be", field=wanted[0]
        ) from error


def _schema_text(schema: JsonSchema) -> str:
    if isinstance(schema, str):
        return schema
    try:
        return json.dumps(schema)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgumentError(
            f"json_schema cannot be written as JSON: {error}", field="json_schema"
        ) from error
