"""From a grammar to the tokens that may follow, in real processes, on small vocabularies."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import psutil
import pytest
import tokenizers

from coordinator.constraint import (
    compile_turns,
    grammar_compiler,
    grammar_job,
    output_group,
    template_cache,
)
from coordinator.constraint.grammar_compiler import GrammarCompiler
from coordinator.constraint.messages import (
    NewTokens,
    Standing,
    decode_state,
    decode_states,
    encode_grammar,
    encode_tokens,
)
from coordinator.constraint.token_constraint import TokenConstraint
from coordinator.constraint.vocabulary import Vocabulary
from coordinator.core.grammar import Grammar, GrammarKind
from coordinator.text.gguf_tokenizer import build_gguf_tokenizer
from coordinator.text.gguf_vocabulary import GgufVocabulary
from coordinator.text.tokenizer import Tokenizer
from protos.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    QueueFullError,
    StagecoachError,
    UnavailableError,
    UnsupportedModelError,
)
from tests.text_models import BYTE_TOKENS

TOKENS = ["a", "b", "ab", "1", "</s>"]
A, B, AB, ONE, EOS = range(5)
ENDLESS = {"anyOf": [{"type": "integer", "multipleOf": n} for n in (300007, 300017)]}
"""97 bytes that the engine never comes to an end with."""


def create_tokenizer(tokens: list[str]) -> Tokenizer:
    """A byte-level tokenizer whose last token ends a text."""
    vocabulary = GgufVocabulary.parse(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [1] * (len(tokens) - 1) + [3],
            "tokenizer.ggml.merges": [],
        }
    )
    return Tokenizer(build_gguf_tokenizer(vocabulary), eos_token_ids=(len(tokens) - 1,))


def regex(text: str) -> Grammar:
    return Grammar(kind=GrammarKind.REGEX, text=text)


def schema(content: object) -> Grammar:
    return Grammar(kind=GrammarKind.JSON_SCHEMA, text=json.dumps(content))


class Grammars:
    """A compiler, and all that it made, to be closed."""

    def __init__(self, tokenizer: Tokenizer | None = None, **changes: Any) -> None:
        self.settings = {"vocab_size": len(TOKENS), "eos_token_ids": frozenset({EOS}), **changes}
        self.compiler = GrammarCompiler(tokenizer or create_tokenizer(TOKENS), **self.settings)
        self.constraints: list[TokenConstraint] = []

    async def compile(self, grammar: Grammar, **options: Any) -> TokenConstraint:
        constraint = await self.compiler.compile(grammar, **options)
        self.constraints.append(constraint)
        return constraint

    async def close(self) -> None:
        for constraint in self.constraints:
            constraint.close()
        await self.compiler.close()


Make = Callable[..., Grammars]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    """Makes compilers, and closes them."""
    made: list[Grammars] = []

    def create(*arguments: Any, **changes: Any) -> Grammars:
        made.append(Grammars(*arguments, **changes))
        return made[-1]

    yield create
    for grammars in made:
        await grammars.close()
    assert psutil.Process().children(recursive=True) == []


def make_of_bytes(make: Make) -> Grammars:
    """A model whose tokens are the bytes."""
    return make(
        create_tokenizer([*BYTE_TOKENS, "</s>"]),
        vocab_size=len(BYTE_TOKENS) + 1,
        eos_token_ids=frozenset({len(BYTE_TOKENS)}),
    )


async def append(constraint: TokenConstraint, token_id: int) -> None:
    """Appends a token and waits until it is known what may follow."""
    ready = asyncio.Event()
    constraint.when_ready(ready.set)
    constraint.append(token_id)
    assert not constraint.is_ready
    async with asyncio.timeout(20):
        await ready.wait()
    assert constraint.is_ready


async def test_every_token_that_keeps_to_the_grammar_is_allowed_and_no_other(make: Make) -> None:
    constraint = await make().compile(regex("(ab|b1){2}"))
    followed = [(A, [A, B, AB]), (B, [B]), (B, [A, B, AB]), (ONE, [ONE])]
    for token_id, allowed in followed:
        assert constraint.allowed_ids.tolist() == allowed
        assert not constraint.is_complete
        await append(constraint, token_id)
    assert constraint.is_complete
    assert constraint.allowed_ids.tolist() == []


async def test_an_end_token_is_allowed_exactly_where_the_output_is_complete(make: Make) -> None:
    constraint = await make().compile(regex("a(b1)*"))
    assert constraint.allowed_ids.tolist() == [A, AB]
    await append(constraint, A)
    assert constraint.allowed_ids.tolist() == [B, EOS]
    await append(constraint, B)
    assert constraint.allowed_ids.tolist() == [ONE]


async def test_an_end_token_that_is_ignored_is_allowed_only_alone(make: Make) -> None:
    constraint = await make().compile(regex("a(b1)*"), ignore_eos=True)
    await append(constraint, A)
    assert constraint.allowed_ids.tolist() == [B]


async def test_the_model_may_have_more_or_fewer_logits_than_the_tokenizer_has_tokens(
    make: Make,
) -> None:
    more = await make(vocab_size=99).compile(regex("[ab]+"))
    assert more.allowed_ids.tolist() == [A, B, AB]
    fewer = await make(vocab_size=2).compile(regex("[ab]+"))
    assert fewer.allowed_ids.tolist() == [A, B]


async def test_several_tokens_may_end_an_output(make: Make) -> None:
    constraint = await make(eos_token_ids=frozenset({EOS, ONE})).compile(regex("a+"))
    await append(constraint, A)
    assert constraint.allowed_ids.tolist() == [A, ONE, EOS]


HOLED = {
    "between": ({"a": 0, "b": 1, "ab": 3, "1": 7, "</s>": 9}, {"</s>": 9}),
    "before": ({"a": 2, "b": 3, "ab": 4, "1": 5, "</s>": 6}, {"</s>": 6}),
    "added": ({"a": 0, "b": 1, "ab": 3, "1": 9}, {"</s>": 10}),
}


@pytest.mark.parametrize("name", HOLED)
async def test_ids_that_stand_for_no_token_are_never_allowed(make: Make, name: str) -> None:
    """The engine takes the number of tokens for the end of their ids."""
    vocabulary, added = HOLED[name]
    content = json.loads(create_tokenizer(TOKENS).serialized())
    content["model"]["vocab"] = vocabulary
    content["added_tokens"] = [
        {**content["added_tokens"][0], "content": text, "id": token_id}
        for text, token_id in added.items()
    ]
    backend = tokenizers.Tokenizer.from_str(json.dumps(content))
    ids = backend.get_vocab()
    end = ids["</s>"]
    tokenizer = Tokenizer(backend, eos_token_ids=(end,))
    grammars = make(tokenizer, vocab_size=16, eos_token_ids=frozenset({end}))
    constraint = await grammars.compile(regex("(ab|b1)*"))
    assert constraint.allowed_ids.tolist() == sorted([ids["a"], ids["b"], ids["ab"], end])
    await append(constraint, ids["b"])
    assert constraint.allowed_ids.tolist() == [ids["1"]]


async def test_text_that_the_model_has_no_tokens_for_is_told(make: Make) -> None:
    grammars = make()
    with pytest.raises(InvalidArgumentError, match="has no tokens for") as caught:
        await grammars.compile(regex("xyz"))
    assert caught.value.field == "grammar.regex"
    constraint = await grammars.compile(regex("ax"))
    await append(constraint, A)
    assert constraint.allowed_ids.tolist() == []
    assert not constraint.is_complete
    assert isinstance(constraint.error, StagecoachError)
    assert "has no tokens for" in constraint.error.message


async def test_a_model_without_an_end_token_takes_no_grammar(make: Make) -> None:
    for eos_token_ids in (frozenset[int](), frozenset({99})):
        with pytest.raises(UnsupportedModelError, match="no end token"):
            await make(eos_token_ids=eos_token_ids).compile(regex("a"))


GRAMMARS = [
    regex(r"(ab|é|[x-z]{2}){3,5}[0-9]"),
    regex(r"(?s:.){0,20}"),
    schema({"type": "integer", "minimum": -17, "maximum": 4211}),
    schema({"type": "string", "pattern": "^[a-f]{2,4}-[0-9]{2}$"}),
    schema({"type": "array", "items": {"type": "string", "maxLength": 3}, "maxItems": 3}),
    schema(
        {
            "type": "object",
            "properties": {"a": {"enum": ["red", 7, None]}, "b": {"type": "boolean"}},
            "required": ["b"],
            "additionalProperties": False,
        }
    ),
    schema({"anyOf": [{"type": "number"}, {"const": {"k": ["v", 1.5]}}]}),
    Grammar(kind=GrammarKind.LARK, text='start: "(" inner ")"\ninner: /[ab]{1,3}/ | start'),
    Grammar(kind=GrammarKind.JSON_OBJECT),
]


async def test_masks_through_a_process_are_those_of_an_engine_of_ones_own(make: Make) -> None:
    grammars = make_of_bytes(make)
    vocabulary = Vocabulary(
        tokenizer=create_tokenizer([*BYTE_TOKENS, "</s>"]).serialized(),
        num_logits=len(BYTE_TOKENS) + 1,
        eos_token_ids=(len(BYTE_TOKENS),),
    )
    generator = random.Random(11)
    for grammar in GRAMMARS * 2:
        twin = grammar_job.prepare(vocabulary.encode())
        state, _ = decode_state(twin(encode_grammar(grammar.kind, grammar.text)))
        constraint = await grammars.compile(grammar)
        for _ in range(60):
            bits = np.unpackbits(np.frombuffer(state.mask, dtype=np.uint8), bitorder="little")
            allowed_ids = np.flatnonzero(bits).tolist()
            assert constraint.allowed_ids.tolist() == allowed_ids, grammar.text
            assert constraint.is_complete == (state.standing is Standing.COMPLETE)
            if not allowed_ids:
                break
            token_id = generator.choice(allowed_ids)
            (state,) = decode_states(twin(encode_tokens([NewTokens(0, (token_id,))])))
            await append(constraint, token_id)


async def test_outputs_of_one_grammar_do_not_know_each_other(make: Make) -> None:
    grammars = make()
    first = await grammars.compile(regex("a1|b"))
    await append(first, A)
    second = await grammars.compile(regex("a1|b"))
    assert first.allowed_ids.tolist() == [ONE]
    assert second.allowed_ids.tolist() == [A, B]


async def test_an_output_that_grows_too_complex_breaks_no_other_of_its_grammar(
    make: Make,
) -> None:
    """Copies of a matcher share one automaton; the first to exceed its limit broke all."""
    grammars = make()
    grammar = regex("(a|b1{1000000})*")
    steady = await grammars.compile(grammar)
    broken = await grammars.compile(grammar)
    assert steady.process_id == broken.process_id
    for token_id in (B, ONE, ONE):
        if len(broken.allowed_ids) == 0:
            break
        await append(broken, token_id)
    assert broken.allowed_ids.tolist() == []
    assert "too many" in str(broken.error)
    assert not broken.is_complete
    for _ in range(40):
        assert A in steady.allowed_ids
        await append(steady, A)


async def test_a_grammar_is_compiled_once_for_all_who_send_it(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_cache, "MAX_TEMPLATES", 2)
    grammars = make()
    await grammars.compiler.start()
    (root,) = psutil.Process().children()
    await asyncio.gather(*(grammars.compile(regex("a|b")) for _ in range(8)))
    for text in ("a", "b", "1", "a|b"):
        await grammars.compile(regex(text))
    # One for the outputs of each, and the two templates used last.
    await until(lambda: len(root.children(recursive=True)) == 5 + 2)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - a process tells no event
            await asyncio.sleep(0.02)


CRASHING = {
    "an integer bound of 64 bits": schema(
        {"type": "integer", "minimum": -(2**63), "maximum": -(2**63) + 2}
    ),
    "a chain of properties": schema(
        {
            "$ref": "#/$defs/0",
            "$defs": {
                **{
                    str(i): {"properties": {"x": {"$ref": f"#/$defs/{i + 1}"}}} for i in range(1000)
                },
                "1000": {"type": "null"},
            },
        }
    ),
    "a chain of items": schema(
        {
            "$ref": "#/$defs/0",
            "$defs": {
                **{str(i): {"items": {"$ref": f"#/$defs/{i + 1}"}} for i in range(1000)},
                "1000": {"type": "null"},
            },
        }
    ),
    "a chain of rules": Grammar(
        kind=GrammarKind.LARK,
        text="start: r0\n" + "\n".join(f"r{i}: r{i + 1}" for i in range(3500)) + '\nr3500: "a"',
    ),
}


@pytest.mark.parametrize("name", CRASHING)
async def test_a_grammar_that_the_engine_crashes_on_costs_its_request_alone(
    make: Make, name: str
) -> None:
    grammars = make_of_bytes(make)
    steady = await grammars.compile(regex("[ab]+"))
    before = steady.allowed_ids.tolist()
    (result,) = await asyncio.gather(grammars.compile(CRASHING[name]), return_exceptions=True)
    if not isinstance(result, TokenConstraint):
        assert isinstance(result, InvalidArgumentError)
        assert result.field == CRASHING[name].field
    await append(steady, BYTE_TOKENS.index("a"))
    assert steady.allowed_ids.tolist() == [*before, len(BYTE_TOKENS)]
    assert (await grammars.compile(schema({"type": "null"}))).allowed_ids.tolist()


async def test_endless_grammars_hold_up_no_usual_one_and_end_with_their_time(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar_compiler, "COMPILE_TIMEOUT_S", 6.0)
    monkeypatch.setattr(compile_turns, "MAX_PAUSED", 2)
    grammars = make_of_bytes(make)
    await grammars.compiler.start()
    endless = [
        asyncio.create_task(grammars.compile(schema({**ENDLESS, "title": str(i)})))
        for i in range(6)
    ]
    await until(lambda: any(task.done() for task in endless))
    usual = await grammars.compile(schema({"type": "boolean"}))
    assert len(usual.allowed_ids) > 0
    errors = await asyncio.gather(*endless, return_exceptions=True)
    kinds = [type(error) for error in errors]
    assert kinds.count(QueueFullError) == 2
    assert kinds.count(DeadlineExceededError) + kinds.count(InvalidArgumentError) == 4


async def test_to_give_up_the_wait_for_a_grammar_is_to_end_its_process(make: Make) -> None:
    grammars = make_of_bytes(make)
    await grammars.compiler.start()
    (root,) = psutil.Process().children()
    waiting = [asyncio.create_task(grammars.compile(schema(ENDLESS))) for _ in range(2)]
    await until(lambda: len(root.children()) == 1)
    waiting[0].cancel()
    await asyncio.sleep(0.1)
    assert len(root.children()) == 1
    waiting[1].cancel()
    await until(lambda: root.children() == [])


async def test_closing_ends_what_is_compiled_at_once(make: Make) -> None:
    grammars = make_of_bytes(make)
    waiting = asyncio.create_task(grammars.compile(schema(ENDLESS)))
    await until(lambda: len(psutil.Process().children(recursive=True)) == 2)
    await grammars.compiler.close()
    with pytest.raises(UnavailableError, match="shutting down"):
        await waiting
    assert psutil.Process().children(recursive=True) == []
    with pytest.raises(UnavailableError, match="shutting down"):
        await grammars.compile(regex("a"))
    await grammars.compiler.close()


async def test_waiting_and_following_are_bounded(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar_compiler, "MAX_WAITING", 2)
    grammars = make()
    waiting = [asyncio.create_task(grammars.compile(regex(text))) for text in ("a", "b")]
    await asyncio.sleep(0)
    with pytest.raises(QueueFullError, match="at most 2"):
        await grammars.compile(regex("1"))
    constraints = await asyncio.gather(*waiting)
    assert [one.allowed_ids.tolist() for one in constraints] == [[A], [B]]
    monkeypatch.setattr(grammar_compiler, "MAX_OUTPUTS", 3)
    third = await grammars.compile(regex("1"))
    with pytest.raises(QueueFullError, match="at most 3"):
        await grammars.compile(regex("1"))
    third.close()
    assert (await grammars.compile(regex("1"))).allowed_ids.tolist() == [ONE]


def kill_process_of(constraint: TokenConstraint) -> None:
    assert constraint.process_id is not None
    psutil.Process(constraint.process_id).kill()


async def test_outputs_of_one_grammar_share_processes_as_far_as_these_hold(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_group, "MAX_MEMBERS", 3)
    grammars = make()
    outputs = await asyncio.gather(*(grammars.compile(regex("a+")) for _ in range(7)))
    assert len({output.process_id for output in outputs}) == 3
    outputs[0].close()
    assert (await grammars.compile(regex("a+"))).process_id == outputs[0].process_id
    assert (await grammars.compile(regex("b+"))).process_id not in {
        output.process_id for output in outputs
    }


async def test_outputs_whose_process_dies_go_on_in_processes_of_their_own(make: Make) -> None:
    grammars = make()
    outputs = [await grammars.compile(regex("(a1)+b")) for _ in range(3)]
    for output in outputs:
        await append(output, A)
    await append(outputs[1], ONE)
    shared_id = outputs[0].process_id
    kill_process_of(outputs[0])
    for output, token_id, allowed_ids in (
        (outputs[0], ONE, [A, B]),
        (outputs[1], A, [ONE]),
        (outputs[2], ONE, [A, B]),
    ):
        await append(output, token_id)
        assert output.allowed_ids.tolist() == allowed_ids
    later = await grammars.compile(regex("(a1)+b"))
    own_ids = {output.process_id for output in (*outputs, later)}
    assert len(own_ids) == 4
    assert shared_id not in own_ids


async def test_the_process_of_an_output_alone_that_dies_breaks_that_output_alone(
    make: Make,
) -> None:
    grammars = make()
    outputs = [await grammars.compile(regex("a+")) for _ in range(2)]
    kill_process_of(outputs[0])
    for output in outputs:
        await append(output, A)
    broken, steady = outputs
    kill_process_of(broken)
    await append(broken, A)
    assert broken.allowed_ids.tolist() == []
    assert not broken.is_complete
    assert isinstance(broken.error, InvalidArgumentError)
    await append(steady, A)
    assert steady.allowed_ids.tolist() == [A, EOS]


async def test_tokens_that_come_while_an_output_moves_are_followed_too(make: Make) -> None:
    """As when a request is computed again from the tokens it has."""
    grammars = make()
    outputs = [await grammars.compile(regex("(a1)+b")) for _ in range(2)]
    kill_process_of(outputs[0])
    for token_id in (A, ONE, A):
        outputs[0].append(token_id)
        await asyncio.sleep(0)
    await until(lambda: outputs[0].is_ready)
    assert outputs[0].allowed_ids.tolist() == [ONE]
    await append(outputs[1], A)
    outputs[1].append(ONE)
    outputs[1].close()


async def test_an_output_may_be_closed_while_it_moves(make: Make) -> None:
    grammars = make()
    outputs = [await grammars.compile(regex("a+")) for _ in range(2)]
    await grammars.compiler.start()
    (root,) = psutil.Process().children()
    kill_process_of(outputs[0])
    await append(outputs[1], A)
    outputs[0].append(A)
    await asyncio.sleep(0.005)
    for output in outputs:
        output.close()
    await until(lambda: len(root.children(recursive=True)) == 1)


async def test_numbers_are_guarded_in_each_output_by_itself(make: Make) -> None:
    grammars = make_of_bytes(make)
    number = schema({"type": "number"})
    one, other = await grammars.compile(number), await grammars.compile(number)
    digit, point = BYTE_TOKENS.index("7"), BYTE_TOKENS.index(".")
    for token_id in (digit, point, *([digit] * 14)):
        await append(one, token_id)
    assert digit not in one.allowed_ids
    await append(other, digit)
    assert digit in other.allowed_ids
    kill_process_of(one)
    await append(other, point)
    assert digit in other.allowed_ids


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
async def test_no_regex_takes_without_end(make: Make, text: str) -> None:
    """It compiles or is refused, and every mask after it comes or says why not."""
    try:
        constraint = await make().compile(regex(text))
    except InvalidArgumentError:
        return
    for _ in range(200):
        allowed_ids = constraint.allowed_ids
        if len(allowed_ids) == 0:
            assert constraint.is_complete or "grammar.regex" in str(constraint.error)
            return
        await append(constraint, int(allowed_ids[0]))


async def test_no_output_holds_more_than_some_ten_megabytes(make: Make) -> None:
    """The limits are llguidance's own operations; that they bound memory too is only measured."""
    grammars = make()
    for _ in range(2):
        constraint = await grammars.compile(regex("(a{1000}){1000}"))
        await append(constraint, A)
        process_id = constraint.process_id
        assert psutil.Process(process_id).memory_full_info().uss < 40e6
