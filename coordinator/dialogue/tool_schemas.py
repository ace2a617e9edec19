"""What the schemas of tools say of how their arguments are written."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from coordinator.core.grammar import read_schema
from coordinator.core.tools import Tool
from stagecoach.contract.errors import InvalidArgumentError

_NOTES = frozenset(
    {"title", "description", "default", "examples", "deprecated", "type", "$comment"}
)
"""Keywords of a string that do not say which string it is."""

_ELSEWHERE = (
    *("allOf", "anyOf", "oneOf", "$ref", "if", "patternProperties", "dependentSchemas"),
    *("const", "enum", "minProperties"),
)
"""Keywords by which a schema may have properties that it does not list."""

_OF_THE_WHOLE = (
    *_ELSEWHERE,
    *("$dynamicRef", "not", "dependentRequired", "dependencies"),
    *("maxProperties", "propertyNames", "unevaluatedProperties"),
)
"""Keywords of an object that say more than what each of its properties is."""

_DEFINITIONS = ("$defs", "definitions", "$schema")


class Parameter(NamedTuple):
    """One parameter of a tool."""

    name: str
    schema: Mapping[str, Any] | bool
    """With the definitions that it may refer to."""
    is_required: bool

    @property
    def is_text(self) -> bool:
        """Whether its values are strings, of which no more is known: such need no quotes."""
        schema = self.schema
        return (
            isinstance(schema, Mapping)
            and schema.get("type") == "string"
            and set(schema) <= _NOTES | set(_DEFINITIONS)
        )


def object_schema(tool: Tool, field: str) -> dict[str, Any]:
    """The schema of the object that holds the arguments of a tool.

    Only properties that it lists or requires are allowed, unless it says itself what else is: a
    model that invents others helps nobody.

    Args:
        tool: The tool.
        field: What errors call it.

    Raises:
        InvalidArgumentError: It is no schema of an object.
    """
    if tool.parameters is None:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    schema = read_schema(tool.parameters, field)
    if not isinstance(schema, dict):
        raise InvalidArgumentError(f"{field} must be a schema of an object", field=field)
    kind = schema.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise InvalidArgumentError(
            f"{field}.type is {json.dumps(kind)[:64]}, must be object: arguments have names",
            field=f"{field}.type",
        )
    closed: dict[str, Any] = {**schema, "type": "object"}
    if not any(keyword in schema for keyword in _ELSEWHERE):
        closed.setdefault("properties", {})
        if "additionalProperties" not in schema:
            closed |= {"properties": _with_required(closed), "additionalProperties": False}
    return closed


def _with_required(schema: Mapping[str, Any]) -> object:
    """The properties of a schema, and those that it requires without a word about them."""
    listed, required = schema["properties"], schema.get("required")
    if not (isinstance(listed, Mapping) and isinstance(required, list)):
        return listed
    return {
        **listed,
        **{name: True for name in required if isinstance(name, str) and name not in listed},
    }


def call_schema(tokens: Sequence[str], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a call that is a JSON document.

    Args:
        tokens: The tokens that it begins with, up to the arguments: a brace, a key, a colon, the
            name of the tool, a comma, a key and a colon.
        arguments: Schema that `object_schema` made.
    """
    _, name_key, _, name, _, arguments_key, _ = tokens
    keys = {json.loads(name_key): {"const": json.loads(name)}, json.loads(arguments_key): arguments}
    definitions = {one: arguments[one] for one in _DEFINITIONS if one in arguments}
    return {
        **definitions,
        "type": "object",
        "properties": keys,
        "required": list(keys),
        "additionalProperties": False,
    }


def parameters(schema: Mapping[str, Any]) -> list[Parameter]:
    """The properties that the schema of an object lists, in order.

    Args:
        schema: Schema that `object_schema` made.
    """
    listed = schema.get("properties")
    required = schema.get("required")
    names = required if isinstance(required, list) else []
    definitions = {name: schema[name] for name in _DEFINITIONS if name in schema}
    found = []
    for name, one in listed.items() if isinstance(listed, Mapping) else ():
        if isinstance(one, Mapping):
            refers = '"$ref"' in json.dumps(one)
            found.append(Parameter(name, {**definitions, **one} if refers else one, name in names))
        else:
            found.append(Parameter(name, one is not False, name in names))
    return found


def not_kept_one_by_one(schema: Mapping[str, Any]) -> str | None:
    """A keyword of which nothing is known where each parameter is written by itself.

    Args:
        schema: Schema that `object_schema` made.

    Returns:
        None where parameters that are each valid, with all that are required, make a valid object.
    """
    for keyword in _OF_THE_WHOLE:
        if keyword in schema:
            return keyword
    required = schema.get("required", [])
    is_listed = isinstance(required, list) and set(map(str, required)) <= {
        one.name for one in parameters(schema)
    }
    return None if is_listed else "required"


def text_parameters(tool: Tool) -> frozenset[str]:
    """Names of the parameters of a tool whose values may be written without quotes.

    Raises:
        InvalidArgumentError: Its schema is none of an object.
    """
    schema = object_schema(tool, f"tools: the parameters of {tool.name}")
    return frozenset(one.name for one in parameters(schema) if one.is_text)
