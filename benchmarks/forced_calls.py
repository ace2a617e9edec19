"""Whether calls of tools that are forced are ever malformed, whatever the model draws.

Random schemas of the kinds that agents have (strings, bounded numbers, choices, lists, objects in
objects, optional properties) become tools; the demo model is made to call one, at a temperature at
which it writes nonsense. Every answer is read by the official `openai` package; arguments that are
no JSON, or do not conform to their schema, are malformed. A call that `max_tokens` cuts says so,
and is counted apart.
"""

import argparse
import asyncio
import json
import random
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jsonschema_rs
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageFunctionToolCall

from benchmarks.cluster import running_doors
from benchmarks.report import print_json, print_table

MODEL = "demo"
_TOLD_EVERY = 100
WORDS = ("city", "days", "unit", "query", "limit", "path", "mode", "user_id", "tags", "at")


def random_schema(generator: random.Random, depth: int = 0) -> dict[str, Any]:
    """A schema of one value."""
    kinds = ["string", "integer", "number", "boolean", "enum", "array", "object", "nullable"]
    kind = generator.choice(kinds[: len(kinds) if depth < 2 else 5])
    low = generator.randint(-50, 50)
    match kind:
        case "enum":
            return {"enum": generator.sample([*WORDS, 3, None, True], 3)}
        case "array":
            items = random_schema(generator, depth + 1)
            return {"type": "array", "items": items, "maxItems": generator.randint(1, 3)}
        case "object":
            return random_object(generator, depth + 1)
        case "nullable":
            return {"anyOf": [{"type": "string", "maxLength": 12}, {"type": "null"}]}
        case "integer" | "number":
            if generator.random() < 0.4:
                return {"type": kind}
            return {"type": kind, "minimum": low, "maximum": low + generator.randint(0, 1000)}
        case "string":
            forms: list[dict[str, Any]] = [{}, {"maxLength": 20}, {"pattern": "^[a-z]{2,8}$"}]
            return {"type": "string", **generator.choice(forms)}
        case _:
            return {"type": kind}


def random_object(generator: random.Random, depth: int = 0) -> dict[str, Any]:
    """A schema of an object."""
    names = generator.sample(WORDS, generator.randint(0 if depth else 1, 4 - depth))
    return {
        "type": "object",
        "properties": {name: random_schema(generator, depth) for name in names},
        "required": [name for name in names if generator.random() < 0.7],
    }


async def call(client: AsyncOpenAI, index: int, options: argparse.Namespace) -> str:
    """What became of one call: conforms, cut, or what is wrong with it."""
    schema = random_object(random.Random(f"{options.seed} {index % options.schemas}"))
    tool: Any = {
        "type": "function",
        "function": {"name": f"tool_{index % options.schemas}", "parameters": schema},
    }
    done = await client.chat.completions.create(
        model="",
        messages=[{"role": "user", "content": "Call the tool."}],
        tools=[tool],
        tool_choice="required",
        parallel_tool_calls=False,
        temperature=options.temperature,
        seed=index,
        max_tokens=options.tokens,
    )
    [choice] = done.choices
    if choice.finish_reason == "length":
        return "cut" if not choice.message.tool_calls else "cut, but there is a call"
    calls = choice.message.tool_calls or []
    if choice.finish_reason != "tool_calls" or len(calls) != 1:
        return f"finish_reason {choice.finish_reason} with {len(calls)} calls"
    made = calls[0]
    assert isinstance(made, ChatCompletionMessageFunctionToolCall)
    try:
        arguments = json.loads(made.function.arguments)
        jsonschema_rs.validator_for(schema).validate(arguments)
    except (ValueError, jsonschema_rs.ValidationError) as error:
        print(f"call {index}: {made.function.arguments!r}: {error}", file=sys.stderr)
        return "malformed"
    return "conforms" if made.function.name == tool["function"]["name"] else "another name"


async def call_all(address: str, options: argparse.Namespace) -> Counter[str]:
    """Makes all calls, some at once."""
    client = AsyncOpenAI(base_url=f"http://{address}/v1", api_key="none", max_retries=0)
    turns = asyncio.Semaphore(options.at_once)
    found: Counter[str] = Counter()

    async def one(index: int) -> None:
        async with turns:
            found[await call(client, index, options)] += 1
        if found.total() % _TOLD_EVERY == 0:
            print(f"{found.total()} of {options.calls}: {dict(found)}", file=sys.stderr)

    async with client, asyncio.TaskGroup() as calls:
        for index in range(options.calls):
            calls.create_task(one(index))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints what became of the calls; exits with 1 if one was malformed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--schemas", type=int, default=500, help="different schemas")
    parser.add_argument("--temperature", type=float, default=1.5)
    parser.add_argument("--tokens", type=int, default=400, help="most tokens of a call")
    parser.add_argument("--at-once", type=int, default=32)
    parser.add_argument("--stages", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    with running_doors(MODEL, num_stages=options.stages) as doors:
        found = asyncio.run(call_all(doors.http, options))
    rows = [(what, count) for what, count in found.most_common()]
    if options.json:
        print_json(dict(rows))
    else:
        print_table("Forced calls of tools", ["a call", "calls"], rows)
    if set(found) - {"conforms", "cut"}:
        sys.exit(1)


if __name__ == "__main__":
    main()
