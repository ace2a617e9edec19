"""Grammars in tests: small vocabularies, and compilers that are closed with all they made."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from coordinator.constraint.grammar_compiler import GrammarCompiler
from coordinator.constraint.token_constraint import TokenConstraint
from coordinator.core.grammar import Grammar, GrammarKind
from coordinator.text.gguf_tokenizer import build_gguf_tokenizer
from coordinator.text.gguf_vocabulary import GgufVocabulary
from coordinator.text.tokenizer import Tokenizer
from tests.child_processes import children
from tests.text_models import BYTE_TOKENS

TOKENS = ["a", "b", "ab", "1", "</s>"]
A, B, AB, ONE, EOS = range(5)


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


@asynccontextmanager
async def grammars_closed() -> AsyncIterator[Make]:
    """Makes compilers, and closes them; no process is left."""
    made: list[Grammars] = []

    def create(*arguments: Any, **changes: Any) -> Grammars:
        made.append(Grammars(*arguments, **changes))
        return made[-1]

    yield create
    for grammars in made:
        await grammars.close()
    assert children(recursive=True) == []


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
