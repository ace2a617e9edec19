"""Compiles and follows grammars; runs in sandboxed processes alone.

One process follows one output. Copies of a matcher within a process would share an automaton with
a bounded number of states, and all break when one of them makes it too large; a forked process has
one of its own.
"""

from collections.abc import Callable
from pathlib import Path

import llguidance

from coordinator.constraint.engine_vocabulary import build_vocabulary
from coordinator.constraint.messages import (
    OutputState,
    decode_grammar,
    decode_token,
    encode_state,
)
from coordinator.constraint.vocabulary import Vocabulary
from coordinator.core.grammar import GrammarKind

_WHITESPACE = r"[\x20\x0A\x0D\x09]{1,40}"
"""Between the tokens of JSON. Bounded, because a model may otherwise write it without end; enough
for ten levels of indentation."""

# Counted in operations, so that the same output always keeps to them or never does. The worst
# grammars known take some ten milliseconds a mask with these and some ten megabytes an output,
# while every format of JSON schema works.
_LIMITS = llguidance.LLParserLimits(
    initial_lexer_fuel=100_000,
    step_lexer_fuel=50_000,
    step_max_items=5_000,
    max_lexer_states=50_000,
    max_grammar_size=200_000,
    verbose_errors=False,
)


def prepare(payload: bytes) -> Callable[[bytes], bytes]:
    """Reads a vocabulary; see `coordinator.sandbox`."""
    return _Output(build_vocabulary(Vocabulary.decode(payload)))


class _Output:
    """The grammar of this process, and the output that follows it."""

    def __init__(self, vocabulary: llguidance.LLTokenizer) -> None:
        self._vocabulary = vocabulary
        self._matcher: llguidance.LLMatcher | None = None

    def __call__(self, payload: bytes) -> bytes:
        """The first call brings the grammar, every later one a token; answers with what follows."""
        if self._matcher is not None:
            self._matcher.consume_token(decode_token(payload))
            return encode_state(_state(self._matcher))
        try:
            source = _source(*decode_grammar(payload))
        except ValueError as error:
            return encode_state(OutputState.broken(str(error)))
        # The first mask builds most of the automaton, and may find it too large.
        self._matcher = llguidance.LLMatcher(self._vocabulary, source, log_level=0, limits=_LIMITS)
        return encode_state(_state(self._matcher), own_bytes=_own_bytes())


def _state(matcher: llguidance.LLMatcher) -> OutputState:
    if matcher.is_error():
        return OutputState.broken(matcher.get_error())
    if matcher.is_stopped():
        return OutputState.complete() if matcher.is_accepting() else OutputState.broken("")
    mask = matcher.compute_bitmask()
    return OutputState.broken(matcher.get_error()) if matcher.is_error() else OutputState.open(mask)


def _source(kind: GrammarKind, text: str) -> str:
    """The grammar as llguidance takes it.

    Raises:
        ValueError: A schema is not well formed.
    """
    match kind:
        case GrammarKind.JSON_SCHEMA:
            return _json_source(text)
        case GrammarKind.JSON_OBJECT:
            return _json_source('{"type": "object"}')
        case GrammarKind.REGEX:
            return llguidance.LLMatcher.grammar_from_regex(text)
        case GrammarKind.LARK:
            return llguidance.LLMatcher.grammar_from_lark(text)


def _json_source(schema: str) -> str:
    if schema.strip() in ("true", "false"):  # options need an object
        schema = f'{{"allOf": [{schema}]}}'
    # A keyword that is not implemented is refused, whatever the schema asks for.
    return llguidance.LLMatcher.grammar_from_json_schema(
        schema, defaults={"whitespace_pattern": _WHITESPACE}, overrides={"lenient": False}
    )


def _own_bytes() -> int:
    """Memory of this process that it shares with no other."""
    own_kib = 0
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_"):
            own_kib += int(line.split()[1])
    return own_kib * 1024
