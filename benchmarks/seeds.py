"""How often a seed gives another text when something else than the request changes.

For each dtype, requests with seeds of their own are generated one at a time, and then all at once:
undisturbed, while a stage is killed and they are replayed, in a KV memory so small that requests
are preempted, and over another number of stages. Only rounding differs between these. Half of the
requests sample from all tokens, half with top-p 0.95.

Prints how many texts differ from the first; each number also to stderr as soon as it is known.
"""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Sequence

from benchmarks.cluster import running_cluster
from benchmarks.report import print_json, print_table
from coordinator.bench.prompts import fixed_prompts
from stagecoach.client import AsyncClient

NUM_PROMPT_TOKENS = 24
TIGHT_KV_MEMORY = "4MiB"
"""A stage of the demo model holds some prompts with it, and not what all of them grow to."""

Texts = list[list[int]]


async def generate(client: AsyncClient, index: int, options: argparse.Namespace) -> list[int]:
    """The tokens of one request."""
    prompt = fixed_prompts(options.requests, NUM_PROMPT_TOKENS)[index]
    done = await client.complete(
        prompt,
        max_tokens=options.tokens,
        ignore_eos=True,
        temperature=1.0,
        top_p=0.95 if index % 2 else 1.0,
        seed=index,
    )
    return list(done.token_ids)


async def one_at_a_time(client: AsyncClient, options: argparse.Namespace) -> Texts:
    """Every request alone."""
    return [await generate(client, index, options) for index in range(options.requests)]


async def all_at_once(client: AsyncClient, options: argparse.Namespace) -> Texts:
    """All requests together."""
    return await asyncio.gather(
        *(generate(client, index, options) for index in range(options.requests))
    )


async def with_a_loss(client: AsyncClient, options: argparse.Namespace) -> Texts:
    """All requests together, and a stage is killed in their middle."""
    running = asyncio.ensure_future(all_at_once(client, options))
    while True:
        await asyncio.sleep(0.05)
        status = await client.status()
        if status.num_running == options.requests and status.tokens_per_second > 0:
            break
        assert not running.done(), "the requests ended before a stage could be killed"
    pid = status.stages[1].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    return await running


def num_different(found: Texts, expected: Texts) -> int:
    """Texts that are not the same; all must be whole."""
    assert [len(one) for one in found] == [len(one) for one in expected], "a text ended early"
    return sum(one != other for one, other in zip(found, expected, strict=True))


async def measure(dtype: str, options: argparse.Namespace) -> dict[str, int]:
    """By what changed, the texts that did."""
    different: dict[str, int] = {}

    def note(what: str, found: Texts) -> None:
        different[what] = num_different(found, expected)
        print(f"{dtype}, {what}: {different[what]} differ", file=sys.stderr, flush=True)

    with running_cluster("demo", dtype=dtype, flags=options.flags) as address:
        async with AsyncClient(address) as client:
            expected = await one_at_a_time(client, options)
            note("in a batch", await all_at_once(client, options))
            note("replayed", await with_a_loss(client, options))
    tight = [*options.flags, "--kv-memory", TIGHT_KV_MEMORY]
    with running_cluster("demo", dtype=dtype, flags=tight) as address:
        async with AsyncClient(address) as client:
            preempted = await all_at_once(client, options)
            assert (await client.status()).num_preemptions > 0, "nothing was preempted"
    note("preempted", preempted)
    with running_cluster("demo", num_stages=2, dtype=dtype, flags=options.flags) as address:
        async with AsyncClient(address) as client:
            note("two stages", await all_at_once(client, options))
    return different


def parse_options() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtypes", default="float32,float16,bfloat16")
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    options.flags = ["--no-http", "--threads", "1"]
    return options


def table_rows(found: dict[str, dict[str, int]]) -> Sequence[Sequence[object]]:
    """A row for each dtype."""
    return [[dtype, *different.values()] for dtype, different in found.items()]


def main() -> None:
    """Prints the table."""
    options = parse_options()
    found = {dtype: asyncio.run(measure(dtype, options)) for dtype in options.dtypes.split(",")}
    if options.json:
        print_json({"requests": options.requests, "tokens": options.tokens, "different": found})
        return
    columns = list(next(iter(found.values())))
    print_table(
        f"Texts that differ, of {options.requests} with {options.tokens} tokens each: demo model, "
        "three stages on localhost",
        ["dtype", *columns],
        table_rows(found),
    )


if __name__ == "__main__":
    main()
