"""From a grammar to the tokens that may follow, in real processes, on small vocabularies."""

import json
import random
from collections.abc import AsyncIterator

import pytest
import tokenizers

from coordinator.constraint import grammar_job
from coordinator.constraint.messages import (
    NewTokens,
    Standing,
    decode_compiled,
    decode_states,
    encode_grammar,
    encode_tokens,
)
from coordinator.constraint.vocabulary import Vocabulary
from coordinator.core.grammar import Grammar, GrammarKind
from coordinator.text.tokenizer import Tokenizer
from stagecoach.contract.errors import InvalidArgumentError, StagecoachError, UnsupportedModelError
from tests.grammars import (
    AB,
    EOS,
    ONE,
    TOKENS,
    A,
    B,
    Make,
    append,
    create_tokenizer,
    grammars_closed,
    make_of_bytes,
    regex,
    schema,
)
from tests.json_outputs import allowed_ids
from tests.text_models import BYTE_TOKENS


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    async with grammars_closed() as create:
        yield create


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
        state = decode_compiled(twin(encode_grammar(grammar.kind, grammar.text))).state
        constraint = await grammars.compile(grammar)
        for _ in range(60):
            allowed = allowed_ids(state)
            assert constraint.allowed_ids.tolist() == allowed, grammar.text
            assert constraint.is_complete == (state.standing is Standing.COMPLETE)
            if not allowed:
                break
            token_id = generator.choice(allowed)
            (state,) = decode_states(twin(encode_tokens([NewTokens(0, (token_id,))])), 1)
            await append(constraint, token_id)


async def test_outputs_of_one_grammar_do_not_know_each_other(make: Make) -> None:
    grammars = make()
    first = await grammars.compile(regex("a1|b"))
    await append(first, A)
    second = await grammars.compile(regex("a1|b"))
    assert first.allowed_ids.tolist() == [ONE]
    assert second.allowed_ids.tolist() == [A, B]


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
