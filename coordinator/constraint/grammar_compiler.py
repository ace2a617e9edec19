"""Compiles grammars for one model: off the event loop, one at a time, within limits."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import llguidance

from coordinator.constraint.failure import failure
from coordinator.constraint.token_constraint import TokenConstraint
from coordinator.core.grammar import Grammar, GrammarKind
from coordinator.text.tokenizer import Tokenizer
from protos.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    QueueFullError,
    UnavailableError,
    UnsupportedModelError,
)

COMPILE_TIMEOUT_S = 10.0
"""Most seconds that a request waits for its grammar, the compilation of others included."""

MAX_WAITING = 64
"""Most requests that wait for a grammar at once."""

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


class GrammarCompiler:
    """Makes constraints of grammars. Used from one event loop; the work is done on one thread.

    Args:
        tokenizer: The model's; None when it serves token ids only.
        vocab_size: Logits in a row.
        eos_token_ids: Ids that end an output; allowed only where it is complete.
    """

    def __init__(
        self, tokenizer: Tokenizer | None, *, vocab_size: int, eos_token_ids: frozenset[int]
    ) -> None:
        """Builds nothing yet: the model's vocabulary is read for the first grammar."""
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grammars")
        self._num_waiting = 0
        self._is_closed = False
        self._vocabulary: llguidance.LLTokenizer | None = None  # the thread's alone

    def check_model(self, grammar: Grammar) -> None:
        """Refuses grammars for a model whose output has no text.

        Raises:
            InvalidArgumentError: It has no tokenizer.
        """
        if self._tokenizer is None:
            raise InvalidArgumentError("the model has no tokenizer: no grammar", field="grammar")

    async def compile(self, grammar: Grammar, *, ignore_eos: bool = False) -> TokenConstraint:
        """Makes the constraint of one new output.

        Args:
            grammar: What it must match.
            ignore_eos: Choose the model's end tokens only where nothing else may follow.

        Raises:
            InvalidArgumentError: The grammar is wrong or too large, or the model has no tokenizer.
            UnsupportedModelError: What the model's tokens spell cannot be told.
            QueueFullError: Too many requests wait for their grammars.
            DeadlineExceededError: It took too long.
            UnavailableError: The compiler was closed.
        """
        self.check_model(grammar)
        if self._is_closed:
            raise UnavailableError("the coordinator is shutting down")
        if self._num_waiting >= MAX_WAITING:
            raise QueueFullError(
                f"{self._num_waiting} requests wait for their grammars, at most {MAX_WAITING} may",
                limit=MAX_WAITING,
            )
        self._num_waiting += 1
        try:
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(COMPILE_TIMEOUT_S):
                matcher = await loop.run_in_executor(self._thread, self._compile, grammar)
        except TimeoutError as error:
            raise DeadlineExceededError(
                f"{grammar.field} was not compiled within {COMPILE_TIMEOUT_S} s",
                limit_s=COMPILE_TIMEOUT_S,
            ) from error
        finally:
            self._num_waiting -= 1
        return TokenConstraint(
            matcher,
            grammar,
            vocab_size=self._vocab_size,
            avoided_ids=self._eos_token_ids if ignore_eos else frozenset(),
        )

    def close(self) -> None:
        """Takes no more grammars; those that wait are still compiled. May be called again."""
        self._is_closed = True
        self._thread.shutdown(wait=False)

    # One matcher for every output: copies of one share an automaton that grows, and
    # break all at once when any of them makes it too large.
    def _compile(self, grammar: Grammar) -> llguidance.LLMatcher:
        """A matcher at the start of an output; on the thread."""
        if self._vocabulary is None:
            self._vocabulary = self._read_vocabulary()
        try:
            source = _source(grammar)
        except ValueError as error:
            raise failure(grammar, str(error)) from error
        matcher = llguidance.LLMatcher(self._vocabulary, source, log_level=0, limits=_LIMITS)
        if not matcher.is_error():
            # The first mask builds most of the automaton, and may find it too large.
            matcher.compute_bitmask()
        if matcher.is_error():
            raise failure(grammar, matcher.get_error())
        return matcher

    def _read_vocabulary(self) -> llguidance.LLTokenizer:
        assert self._tokenizer is not None, "checked before"
        # A model may have more logits than its tokenizer has tokens, and the other way round.
        num_tokens = self._tokenizer.vocab_size
        eos_token_ids = sorted(
            token_id for token_id in self._eos_token_ids if token_id < num_tokens
        )
        if not eos_token_ids:
            raise UnsupportedModelError("the model has no end token, which a grammar ends with")
        try:
            return llguidance.LLTokenizer(
                self._tokenizer.serialized(),
                n_vocab=max(self._vocab_size, num_tokens),
                eos_token=eos_token_ids,
            )
        except ValueError as error:
            raise UnsupportedModelError(
                f"what the model's tokens spell cannot be told: {error}"
            ) from error


def _source(grammar: Grammar) -> str:
    """The grammar as llguidance takes it.

    Raises:
        ValueError: A schema is not well formed.
    """
    match grammar.kind:
        case GrammarKind.JSON_SCHEMA:
            return _json_source(grammar.text)
        case GrammarKind.JSON_OBJECT:
            return _json_source('{"type": "object"}')
        case GrammarKind.REGEX:
            return llguidance.LLMatcher.grammar_from_regex(grammar.text)
        case GrammarKind.LARK:
            return llguidance.LLMatcher.grammar_from_lark(grammar.text)


def _json_source(schema: str) -> str:
    if schema.strip() in ("true", "false"):  # options need an object
        schema = f'{{"allOf": [{schema}]}}'
    # A keyword that is not implemented is refused, whatever the schema asks for.
    return llguidance.LLMatcher.grammar_from_json_schema(
        schema, defaults={"whitespace_pattern": _WHITESPACE}, overrides={"lenient": False}
    )
