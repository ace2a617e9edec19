"""What a token that follows a grammar costs, in a sandboxed process and in this one.

As in a step of the engine, all outputs append a token, and wait until it is known what may follow:
outputs of one grammar, which share processes, and of a grammar each, which do not. The twin in this
process runs the same job without a sandbox. Both append the same tokens, in turns, so that a busy
machine slows both. Prints medians.
"""

import argparse
import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

from benchmarks.report import print_json, print_table
from coordinator.constraint import grammar_job
from coordinator.constraint.grammar_compiler import GrammarCompiler
from coordinator.constraint.messages import (
    NewTokens,
    OutputState,
    Standing,
    decode_states,
    encode_grammar,
    encode_tokens,
)
from coordinator.constraint.token_constraint import TokenConstraint
from coordinator.constraint.vocabulary import Vocabulary
from coordinator.core.grammar import Grammar, GrammarKind
from coordinator.text.tokenizer import Tokenizer
from coordinator.text.tokenizer_files import load_tokenizer
from stagecoach.model_files import open_model

MODEL = "demo"
NUM_TOKENS = 40
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "kind": {"enum": ["tree", "bush", "grass", "moss"]},
        "height": {"type": "number"},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["name", "kind", "height", "tags"],
    "additionalProperties": False,
}


class Cost(NamedTuple):
    """Milliseconds a token of one output."""

    in_process_ms: float
    sandboxed_ms: float
    loop_ms: float
    """Of the sandboxed: what the coordinator's own thread works."""


def in_process(tokenizer: Tokenizer, grammar: Grammar) -> Callable[[int, int], OutputState]:
    """The job without a sandbox: from an output's number and its next token to what may follow."""
    vocabulary = Vocabulary(
        tokenizer=tokenizer.serialized(),
        num_logits=tokenizer.vocab_size,
        eos_token_ids=tuple(tokenizer.eos_token_ids),
    )
    job = grammar_job.prepare(vocabulary.encode())
    job(encode_grammar(grammar.kind, grammar.text))

    def push(output: int, token_id: int) -> OutputState:
        (state,) = decode_states(job(encode_tokens([NewTokens(output, (token_id,))])), 1)
        return state

    return push


async def choose_tokens(compiler: GrammarCompiler, grammar: Grammar) -> list[int]:
    """One output, drawn from what the grammar allows; the longest of some."""
    draw = random.Random(0)
    longest: list[int] = []
    for _ in range(20):
        constraint = await compiler.compile(grammar)
        token_ids: list[int] = []
        while len(constraint.allowed_ids) and len(token_ids) < NUM_TOKENS:
            token_ids.append(int(draw.choice(constraint.allowed_ids)))
            await append_all([constraint], token_ids[-1])
        constraint.close()
        longest = max(longest, token_ids, key=len)
    return longest


async def append_all(constraints: Sequence[TokenConstraint], token_id: int) -> None:
    """Appends a token to each output; returns when it is known what may follow."""
    all_ready = asyncio.Event()
    num_left = len(constraints)

    def hear() -> None:
        nonlocal num_left
        num_left -= 1
        if num_left == 0:
            all_ready.set()

    for constraint in constraints:
        constraint.when_ready(hear)
        constraint.append(token_id)
    await all_ready.wait()


async def measure(
    compiler: GrammarCompiler, tokenizer: Tokenizer, num_outputs: int, *, num_grammars: int
) -> Cost:
    """Times a number of outputs that follow so many grammars."""
    grammars = [
        Grammar(kind=GrammarKind.JSON_SCHEMA, text=json.dumps({**SCHEMA, "title": str(index)}))
        for index in range(num_grammars)
    ]
    token_ids = await choose_tokens(compiler, grammars[0])
    push = in_process(tokenizer, grammars[0])
    in_process_s, sandboxed_s, loop_s = [], [], []
    constraints = [
        await compiler.compile(grammars[index % num_grammars]) for index in range(num_outputs)
    ]
    for token_id in token_ids:
        begun_s = time.perf_counter()
        states = [push(output, token_id) for output in range(num_outputs)]
        in_process_s.append(time.perf_counter() - begun_s)
        begun_s, own_begun_s = time.perf_counter(), time.thread_time()
        await append_all(constraints, token_id)
        sandboxed_s.append(time.perf_counter() - begun_s)
        loop_s.append(time.thread_time() - own_begun_s)
        assert all(
            (state.standing is Standing.OPEN) == (len(constraint.allowed_ids) > 0)
            for state, constraint in zip(states, constraints, strict=True)
        )
    for constraint in constraints:
        constraint.close()
    return Cost(
        *(1e3 * median(seconds) / num_outputs for seconds in (in_process_s, sandboxed_s, loop_s))
    )


async def measure_all(numbers: Sequence[int]) -> dict[str, Cost]:
    """Times each number of outputs, of one grammar and of as many."""
    tokenizer = load_tokenizer(open_model(MODEL))
    assert tokenizer is not None, "the demo model has a tokenizer"
    compiler = GrammarCompiler(
        tokenizer,
        vocab_size=tokenizer.vocab_size,
        eos_token_ids=frozenset(tokenizer.eos_token_ids),
    )
    costs = {}
    try:
        for number in numbers:
            costs[f"{number} of one grammar"] = await measure(
                compiler, tokenizer, number, num_grammars=1
            )
            if number > 1:
                costs[f"{number} of {number} grammars"] = await measure(
                    compiler, tokenizer, number, num_grammars=number
                )
    finally:
        await compiler.close()
    return costs


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--outputs", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    costs = asyncio.run(measure_all(options.outputs))
    if options.json:
        print_json({"rows": {name: cost._asdict() for name, cost in costs.items()}})
        return
    print_table(
        "A token that follows a grammar, ms of an output",
        ["outputs", "in process", "sandboxed", "of it the loop", "ratio"],
        [
            [name, *(f"{ms:.3f}" for ms in cost), cost.sandboxed_ms / cost.in_process_ms]
            for name, cost in costs.items()
        ],
    )


if __name__ == "__main__":
    main()
