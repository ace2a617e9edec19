"""Grammars as llguidance takes them; in sandboxed processes."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import llguidance

from coordinator.constraint.engine_words import plain_words
from coordinator.constraint.json_schema import Schema, prepare_schema
from coordinator.constraint.lark_grammar import check_lark
from coordinator.constraint.object_keys import SHORT_ESCAPES
from coordinator.core.grammar import GrammarKind
from coordinator.core.output_grammar import CONTENT_PART, GrammarPart, OutputGrammar

_WHITESPACE = r"[\x20\x0A\x0D\x09]{1,40}"
"""Whitespace between the tokens of JSON. Bounded, because a model may otherwise write it without
end; enough for ten levels of indentation."""


class PartError(ValueError):
    """A part of an output's grammar is wrong."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


_WITHIN_SCHEMA = ".properties."


class Source(NamedTuple):
    """A grammar as llguidance takes it."""

    text: str
    has_json: bool
    """Whether it is, or holds, JSON of a schema."""
    limits_integers: bool
    """See `NumberGuard`."""
    originals: Mapping[str, str]
    """Patterns as the client wrote them, by what is written for them."""
    relaxed_fields: tuple[str, ...] = ()
    """Fields of the request with schemas for which others stand, as they cannot be kept to."""


def source_of(kind: GrammarKind, text: str) -> Source:
    """A client's grammar.

    Raises:
        ValueError: A schema is not well formed, or it or a Lark grammar asks for what the engine
            gets wrong.
    """
    match kind:
        case GrammarKind.REGEX:
            return Source(llguidance.LLMatcher.grammar_from_regex(text), False, False, {})
        case GrammarKind.LARK:
            check_lark(text)
            # Named as Lark, because the engine takes a text in braces for grammars of its own form.
            return Source(json.dumps({"grammars": [{"lark_grammar": text}]}), False, False, {})
        case _:
            schema = prepare_schema(text or '{"type": "object"}')
            return Source(_json_source(schema), True, schema.has_decimals, schema.originals)


def output_source(grammar: OutputGrammar, vocabulary: llguidance.LLTokenizer) -> Source:
    """The grammar of a whole output with its parts.

    Raises:
        PartError: A part is wrong and nothing stands for it, or content of its form may begin as a
            call does.
    """
    sources = [_part_source(part, vocabulary) for part in grammar.parts]
    grammars: list[dict[str, Any]] = [{"name": "output", "lark_grammar": grammar.lark}]
    for part, source in zip(grammar.parts, sources, strict=True):
        (inner,) = json.loads(source.text)["grammars"]
        grammars.append({**inner, "name": part.name})
        if part.name == CONTENT_PART:
            _check_apart(part, source, grammar.call_beginnings, vocabulary)
    return Source(
        json.dumps({"grammars": grammars}),
        any(source.has_json for source in sources),
        any(source.limits_integers for source in sources),
        {},
        tuple(dict.fromkeys(field for source in sources for field in source.relaxed_fields)),
    )


def _part_source(part: GrammarPart, vocabulary: llguidance.LLTokenizer) -> Source:
    """A part, of which the engine has said that it takes it."""
    try:
        source = source_of(part.kind, part.text)
        message = llguidance.LLMatcher.validate_grammar(source.text, vocabulary)
        if message:
            raise ValueError(plain_words(part.kind, message, source.originals))
    except ValueError as error:
        if part.otherwise is None:
            raise PartError(part.field, str(error)) from error
        source = source_of(GrammarKind.JSON_SCHEMA, part.otherwise)
        return source._replace(relaxed_fields=(part.field.partition(_WITHIN_SCHEMA)[0],))
    return source


def _check_apart(
    content: GrammarPart,
    source: Source,
    beginnings: Sequence[str],
    vocabulary: llguidance.LLTokenizer,
) -> None:
    """Refuses content that may begin as a call does, so that nothing would tell which it is."""
    if not beginnings:
        return
    matcher = llguidance.LLMatcher(vocabulary, source.text, log_level=0)
    for beginning in beginnings:
        token_ids = vocabulary.greedy_tokenize(beginning)
        if matcher.validate_tokens(token_ids) == len(token_ids):
            raise PartError(
                content.field,
                f"JSON that is valid against it may begin with {beginning}, as calls of tools do:"
                " allow no other properties in it, or name them otherwise",
            )


def _json_source(schema: Schema) -> str:
    text = schema.text
    if text.strip() in ("true", "false"):  # options need an object
        text = f'{{"allOf": [{text}]}}'
    # A keyword that is not implemented is refused, whatever the schema asks for.
    return llguidance.LLMatcher.grammar_from_json_schema(
        text,
        overrides={
            "lenient": False,
            "whitespace_pattern": _WHITESPACE,
            "json_allowed_escapes": SHORT_ESCAPES if schema.takes_keys_apart else None,
        },
    )
