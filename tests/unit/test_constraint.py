"""From a grammar to the tokens that may follow, on vocabularies small enough to read."""

import asyncio
import random
import threading
from typing import Any

import llguidance
import psutil
import pytest

from coordinator.constraint import GrammarCompiler, TokenConstraint, grammar_compiler
from coordinator.core.grammar import Grammar, GrammarKind
from coordinator.text.gguf_tokenizer import build_gguf_tokenizer
from coordinator.text.gguf_vocabulary import GgufVocabulary
from coordinator.text.tokenizer import Tokenizer
from protos.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    QueueFullError,
    UnavailableError,
    UnsupportedModelError,
)

TOKENS = ["a", "b", "ab", "1", "</s>"]
A, B, AB, ONE, EOS = range(5)


def create_tokenizer() -> Tokenizer:
    vocabulary = GgufVocabulary.parse(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.tokens": TOKENS,
            "tokenizer.ggml.token_type": [1] * EOS + [3],
            "tokenizer.ggml.merges": [],
        }
    )
    return Tokenizer(build_gguf_tokenizer(vocabulary), eos_token_ids=(EOS,))


def create_compiler(**changes: Any) -> GrammarCompiler:
    settings = {"vocab_size": len(TOKENS), "eos_token_ids": frozenset({EOS}), **changes}
    return GrammarCompiler(create_tokenizer(), **settings)


def regex(text: str) -> Grammar:
    return Grammar(kind=GrammarKind.REGEX, text=text)


async def compile_one(text: str, *, ignore_eos: bool = False, **changes: Any) -> TokenConstraint:
    return await create_compiler(**changes).compile(regex(text), ignore_eos=ignore_eos)


async def test_every_token_that_keeps_to_the_grammar_is_allowed_and_no_other() -> None:
    constraint = await compile_one("(ab|b1){2}")
    followed = [(A, [A, B, AB]), (B, [B]), (B, [A, B, AB]), (ONE, [ONE])]
    for token_id, allowed in followed:
        assert constraint.allowed_ids.tolist() == allowed
        assert not constraint.is_complete
        constraint.append(token_id)
    assert constraint.is_complete
    assert constraint.allowed_ids.tolist() == []


async def test_an_end_token_is_allowed_exactly_where_the_output_is_complete() -> None:
    constraint = await compile_one("a(b1)*")
    assert constraint.allowed_ids.tolist() == [A, AB]
    constraint.append(A)
    assert constraint.allowed_ids.tolist() == [B, EOS]
    constraint.append(B)
    assert constraint.allowed_ids.tolist() == [ONE]


async def test_an_end_token_that_is_ignored_is_allowed_only_alone() -> None:
    constraint = await compile_one("a(b1)*", ignore_eos=True)
    constraint.append(A)
    assert constraint.allowed_ids.tolist() == [B]


async def test_the_model_may_have_more_or_fewer_logits_than_the_tokenizer_has_tokens() -> None:
    assert (await compile_one("[ab]+", vocab_size=99)).allowed_ids.tolist() == [A, B, AB]
    assert (await compile_one("[ab]+", vocab_size=2)).allowed_ids.tolist() == [A, B]


async def test_text_that_the_model_has_no_tokens_for_is_told() -> None:
    with pytest.raises(InvalidArgumentError, match="has no tokens for") as caught:
        await compile_one("xyz")
    assert caught.value.field == "grammar.regex"
    constraint = await compile_one("ax")
    constraint.append(A)
    assert constraint.allowed_ids.tolist() == []
    assert not constraint.is_complete
    assert "has no tokens for" in constraint.error.message


async def test_outputs_of_one_grammar_do_not_know_each_other() -> None:
    compiler = create_compiler()
    first = await compiler.compile(regex("a1|b"))
    first.append(A)
    second = await compiler.compile(regex("a1|b"))
    assert first.allowed_ids.tolist() == [ONE]
    assert second.allowed_ids.tolist() == [A, B]


async def test_a_model_without_an_end_token_takes_no_grammar() -> None:
    with pytest.raises(UnsupportedModelError, match="no end token"):
        await compile_one("a", eos_token_ids=frozenset())


async def test_an_output_that_grows_too_complex_breaks_no_other_of_its_grammar(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Copies of a matcher share one automaton; the first to exceed its limit broke all."""
    limits = llguidance.LLParserLimits(max_lexer_states=200, verbose_errors=False)
    monkeypatch.setattr(grammar_compiler, "_LIMITS", limits)
    compiler = create_compiler()
    grammar = regex("[ab]*a[ab]{300}1")
    steady = await compiler.compile(grammar)
    broken = await compiler.compile(grammar)
    generator = random.Random(5)
    for _ in range(300):
        if len(broken.allowed_ids) == 0:
            break
        broken.append(generator.choice([A, B]))
    assert "too many states" in broken.error.message
    assert not broken.is_complete
    for _ in range(40):
        assert steady.allowed_ids.tolist() == [A, B, AB]
        steady.append(A)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Compiling waits for this."""
    gate = threading.Event()
    real = GrammarCompiler._compile

    def wait_and_compile(self: GrammarCompiler, grammar: Grammar) -> llguidance.LLMatcher:
        assert gate.wait(20)
        return real(self, grammar)

    monkeypatch.setattr(GrammarCompiler, "_compile", wait_and_compile)
    return gate


async def test_the_loop_goes_on_while_a_grammar_is_compiled_and_waiting_is_bounded(
    slow: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar_compiler, "MAX_WAITING", 2)
    compiler = create_compiler()
    waiting = [asyncio.create_task(compiler.compile(regex(text))) for text in ("a", "b")]
    await asyncio.sleep(0)
    with pytest.raises(QueueFullError, match="at most 2"):
        await compiler.compile(regex("1"))
    slow.set()
    constraints = await asyncio.gather(*waiting)
    assert [one.allowed_ids.tolist() for one in constraints] == [[A], [B]]
    assert (await compiler.compile(regex("1"))).allowed_ids.tolist() == [ONE]


async def test_waiting_for_a_grammar_ends(
    slow: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar_compiler, "COMPILE_TIMEOUT_S", 0.0)
    compiler = create_compiler()
    try:
        with pytest.raises(DeadlineExceededError, match=r"grammar\.regex was not compiled within"):
            await compiler.compile(regex("a"))
    finally:
        slow.set()


async def test_closing_lets_those_that_wait_have_their_grammars_and_takes_no_more(
    slow: threading.Event,
) -> None:
    compiler = create_compiler()
    waiting = [asyncio.create_task(compiler.compile(regex(text))) for text in ("a", "b")]
    await asyncio.sleep(0)
    compiler.close()
    with pytest.raises(UnavailableError, match="shutting down"):
        await compiler.compile(regex("1"))
    slow.set()
    constraints = await asyncio.gather(*waiting)
    assert [one.allowed_ids.tolist() for one in constraints] == [[A], [B]]
    compiler.close()


@pytest.mark.parametrize(
    "text",
    [
        "((a{1,1000}){1,1000}){1,1000}",
        "(a|b)*a(a|b){18}",
        "[ab]*a[ab]{2000}1",
        "(.*a.{20}b.*){10}",
        "a{1000000}",
        "(a{0,300}b{0,300}){300}",
    ],
)
async def test_no_regex_takes_without_end(text: str) -> None:
    """It compiles or is refused, and every mask after it comes or says why not."""
    compiler = create_compiler()
    try:
        constraint = await compiler.compile(regex(text))
    except InvalidArgumentError:
        return
    for _ in range(200):
        allowed_ids = constraint.allowed_ids
        if len(allowed_ids) == 0:
            assert constraint.is_complete or constraint.error.field == "grammar.regex"
            return
        constraint.append(int(allowed_ids[0]))


async def test_no_grammar_holds_more_than_some_ten_megabytes() -> None:
    """The limits are llguidance's own operations; that they bound memory too is only measured."""
    compiler = create_compiler()
    process = psutil.Process()
    before_bytes = process.memory_info().rss
    constraints = [await compiler.compile(regex("(a{1000}){1000}")) for _ in range(4)]
    held_bytes = process.memory_info().rss - before_bytes
    compiler.close()
    assert held_bytes < len(constraints) * 40e6
