"""Compiles and follows grammars; runs in sandboxed processes alone.

One process follows some outputs of one grammar. Their matchers are copies that share an automaton
with a bounded number of states: what one output has built, no other builds again, and all break
when one makes it too large. So whoever breaks in company is tried again alone, in a process that is
forked from the compiled grammar; see `OutputGroup`.
"""

from collections.abc import Callable
from pathlib import Path

import llguidance

from coordinator.constraint.engine_vocabulary import build_vocabulary
from coordinator.constraint.engine_words import plain_words
from coordinator.constraint.grammar_source import PartError, Source, output_source, source_of
from coordinator.constraint.messages import (
    Compiled,
    OutputState,
    Standing,
    decode_grammar,
    decode_tokens,
    encode_compiled,
    encode_states,
)
from coordinator.constraint.number_guard import NumberGuard, NumericTokens
from coordinator.constraint.output_numbers import OutputNumbers
from coordinator.constraint.vocabulary import Vocabulary
from coordinator.core.grammar import GrammarKind
from coordinator.core.output_grammar import OutputGrammar, Spelling

_Numbers = NumberGuard | OutputNumbers

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
    vocabulary = build_vocabulary(Vocabulary.decode(payload))
    ids = range(vocabulary.vocab_size)
    tokens = NumericTokens((token_id, vocabulary.decode_bytes([token_id])) for token_id in ids)
    return _Outputs(vocabulary, tokens)


class _Outputs:
    """The grammar of this process, and the outputs that follow it."""

    def __init__(self, vocabulary: llguidance.LLTokenizer, tokens: NumericTokens) -> None:
        self._vocabulary = vocabulary
        self._tokens = tokens
        self._start: _Output | None = None
        """Before any token; outputs are copies of it."""
        self._outputs: dict[int, _Output] = {}

    def __call__(self, payload: bytes) -> bytes:
        """The first call brings the grammar, every later one tokens; answers with what follows."""
        if self._start is None:
            return self._compile(payload)
        states: list[OutputState] = []
        for number, token_ids in decode_tokens(payload):
            if not token_ids:
                self._outputs.pop(number, None)
                continue
            output = self._outputs.get(number)
            if output is None:
                output = self._outputs[number] = self._start.copy()
            states.append(output.push(token_ids))
        return encode_states(states)

    def _compile(self, payload: bytes) -> bytes:
        kind, text = decode_grammar(payload)
        try:
            source = self._source(kind, text)
        except PartError as error:
            return encode_compiled(Compiled(OutputState.broken(str(error), error.field)))
        except ValueError as error:
            return encode_compiled(Compiled(OutputState.broken(str(error))))
        # The first mask builds most of the automaton, and may find it too large.
        matcher = llguidance.LLMatcher(self._vocabulary, source.text, log_level=0, limits=_LIMITS)
        self._start = _Output(self._vocabulary, matcher, self._numbers(kind, text, source))
        state = self._start.state()
        if state.standing is Standing.BROKEN:
            state = OutputState.broken(plain_words(kind, state.error, source.originals))
        return encode_compiled(Compiled(state, _own_bytes(), source.relaxed_fields))

    def _source(self, kind: GrammarKind, text: str) -> Source:
        """The grammar as llguidance takes it.

        Raises:
            ValueError: It is wrong.
        """
        if kind is GrammarKind.OUTPUT:
            return output_source(OutputGrammar.from_json(text), self._vocabulary)
        return source_of(kind, text)

    def _numbers(self, kind: GrammarKind, text: str, source: Source) -> "_Numbers | None":
        """What else watches over the numbers of an output."""
        if not source.has_json:
            return None
        if kind is not GrammarKind.OUTPUT:
            return NumberGuard(self._tokens, limits_integers=source.limits_integers)
        output = OutputGrammar.from_json(text)
        return OutputNumbers(
            self._tokens,
            opening=self._spelled(output.opening),
            json_after=[self._spelled(one) for one in output.json_after],
            begins_with_json=output.begins_with_json,
            limits_integers=source.limits_integers,
        )

    def _spelled(self, spelling: Spelling) -> bytes:
        """The bytes of a text, with those that the engine has for special tokens."""
        return b"".join(
            one.encode() if isinstance(one, str) else self._vocabulary.decode_bytes([one])
            for one in spelling
        )


class _Output:
    """One output, as far as it is."""

    def __init__(
        self,
        vocabulary: llguidance.LLTokenizer,
        matcher: llguidance.LLMatcher,
        numbers: _Numbers | None,
    ) -> None:
        self._vocabulary = vocabulary
        self._matcher = matcher
        self._numbers = numbers

    def copy(self) -> "_Output":
        """Another one that has come to the same point."""
        numbers = None if self._numbers is None else self._numbers.copy()
        return _Output(self._vocabulary, self._matcher.deep_copy(), numbers)

    def push(self, token_ids: list[int]) -> OutputState:
        """Goes on, and says what may follow."""
        self._matcher.consume_tokens(token_ids)
        if self._numbers is not None:
            self._numbers.push(self._vocabulary.decode_bytes(token_ids))
        return self.state()

    def state(self) -> OutputState:
        """What may follow."""
        matcher = self._matcher
        if matcher.is_error():
            return OutputState.broken(matcher.get_error())
        if matcher.is_stopped():
            return OutputState.complete() if matcher.is_accepting() else OutputState.broken("")
        mask = matcher.compute_bitmask()
        if matcher.is_error():
            return OutputState.broken(matcher.get_error())
        return OutputState.open(mask if self._numbers is None else self._numbers.restrict(mask))


def _own_bytes() -> int:
    """Memory of this process that it shares with no other."""
    own_kib = 0
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_"):
            own_kib += int(line.split()[1])
    return own_kib * 1024
