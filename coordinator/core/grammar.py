"""A form that the output of a request must have, as its client put it.

The text is checked as far as that needs no vocabulary; `coordinator.constraint` compiles it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Any

from stagecoach.contract.errors import InvalidArgumentError

MAX_GRAMMAR_CHARS = 65_536
"""Characters of a schema, regex or grammar."""

MAX_JSON_DEPTH = 64
"""Levels of objects and arrays in the text of a schema."""


class GrammarKind(Enum):
    """The language that a grammar is written in; values as fields of `stagecoach.v1.Grammar`."""

    JSON_SCHEMA = "json_schema"
    JSON_OBJECT = "json_object"
    REGEX = "regex"
    LARK = "lark"
    OUTPUT = "output"
    """An `OutputGrammar`, of which a client wrote parts at most; no client can ask for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grammar:
    """What the whole output of a request must match.

    Raises:
        InvalidArgumentError: The text is empty, too long, or a schema that is no JSON; the error
            names the field.
    """

    kind: GrammarKind
    text: str = ""
    """A JSON schema, a regular expression in Rust's syntax, or a Lark grammar with a rule `start`.
    Empty exactly for `JSON_OBJECT`, which is any JSON object. For `OUTPUT`: what
    `OutputGrammar.to_json` wrote."""

    def __post_init__(self) -> None:
        if self.kind is GrammarKind.JSON_OBJECT:
            if self.text:
                raise InvalidArgumentError(f"{self.field} takes no text", field=self.field)
            return
        if not self.text:
            raise InvalidArgumentError(f"{self.field} is empty", field=self.field)
        if self.kind is GrammarKind.OUTPUT:
            return  # its parts were checked
        if len(self.text) > MAX_GRAMMAR_CHARS:
            raise InvalidArgumentError(
                f"{self.field} has {len(self.text)} characters, at most {MAX_GRAMMAR_CHARS} are"
                " allowed",
                field=self.field,
            )
        if not _is_unicode(self.text):
            raise InvalidArgumentError(f"{self.field} is not valid Unicode", field=self.field)
        if self.kind is GrammarKind.JSON_SCHEMA:
            read_schema(self.text, self.field)

    @property
    def field(self) -> str:
        """The field of `stagecoach.v1.GenerateRequest` that holds the text, for errors."""
        if self.kind is GrammarKind.OUTPUT:
            return "prompt.chat.tools"
        return f"grammar.{self.kind.value}"


_JSON_TYPES: Mapping[type, str] = MappingProxyType(
    {list: "array", str: "string", int: "number", float: "number", type(None): "null"}
)


def read_schema(text: str, field: str) -> dict[str, Any] | bool:
    """Reads a JSON schema, as far as that needs no knowledge of its keywords.

    Args:
        text: What a client sent.
        field: What errors call it.

    Raises:
        InvalidArgumentError: It is no JSON, none of an object or a boolean, or nested too deeply.
    """
    if _depth(text) > MAX_JSON_DEPTH:
        raise InvalidArgumentError(
            f"{field} is nested deeper than {MAX_JSON_DEPTH} levels", field=field
        )
    try:
        schema = json.loads(text)
    except ValueError as error:
        raise InvalidArgumentError(f"{field} is not JSON: {error}", field=field) from error
    if not isinstance(schema, dict | bool):
        raise InvalidArgumentError(
            f"{field} is a JSON {_JSON_TYPES[type(schema)]}, must be an object or a boolean",
            field=field,
        )
    return schema


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _depth(text: str) -> int:
    """Deepest nesting of brackets outside strings, of any text; parsers recurse that deep."""
    depth = deepest = 0
    in_string = is_escaped = False
    for char in text:
        if in_string:
            in_string = is_escaped or char != '"'
            is_escaped = char == "\\" and not is_escaped
        elif char == '"':
            in_string = True
        elif char in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif char in "]}":
            depth -= 1
    return deepest
