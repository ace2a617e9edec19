"""Time to the first token of a long prompt, and of a second one with the same prefix.

Each repeat takes a prefix that was never seen. The cold request computes all of it; the warm one
has the same prefix and another question, and starts from the KV that the first one left. The times
are the client's. Prints medians over the repeats, and their ratio.
"""

import argparse
import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median

from benchmarks.cluster import running_cluster
from benchmarks.report import print_json, print_table
from coordinator.bench.prompts import fixed_prompts
from coordinator.client import AsyncClient


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstToken:
    """When a request had its first token."""

    time_to_first_token_ms: float
    num_cached_tokens: int


async def first_token(client: AsyncClient, prompt: Sequence[int]) -> FirstToken:
    """Generates one token, which ends the request."""
    started_s = time.perf_counter()
    async with client.generate(prompt, max_tokens=1, ignore_eos=True) as stream:
        async for _ in stream:
            arrived_s = time.perf_counter()
        result = await stream.result()
    return FirstToken(
        time_to_first_token_ms=(arrived_s - started_s) * 1e3,
        num_cached_tokens=result.usage.num_cached_tokens,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixGain:
    """Medians over the repeats."""

    cold_ms: float
    warm_ms: float
    warm_cached_tokens: int
    """Of the prompt, in each warm request."""
    ratio: float
    """Cold by warm, of the medians."""


async def measure(options: argparse.Namespace) -> PrefixGain:
    """Runs pairs of requests, one request after another."""
    flags = ["--threads", str(options.threads)] if options.threads else []
    prefixes = fixed_prompts(options.repeats + 1, options.prefix_tokens)
    questions = fixed_prompts(2 * len(prefixes), options.question_tokens)
    cold: list[FirstToken] = []
    warm: list[FirstToken] = []
    with running_cluster(
        options.model,
        num_stages=options.stages,
        dtype=options.dtype,
        prefix_cache=True,
        flags=flags,
    ) as address:
        async with AsyncClient(address) as client:
            for index, prefix in enumerate(prefixes):
                cold.append(await first_token(client, [*prefix, *questions[2 * index]]))
                warm.append(await first_token(client, [*prefix, *questions[2 * index + 1]]))
    # The first pair warmed the kernels up.
    assert all(request.num_cached_tokens == 0 for request in cold)
    cold_ms = median(request.time_to_first_token_ms for request in cold[1:])
    warm_ms = median(request.time_to_first_token_ms for request in warm[1:])
    return PrefixGain(
        cold_ms=cold_ms,
        warm_ms=warm_ms,
        warm_cached_tokens=min(request.num_cached_tokens for request in warm),
        ratio=cold_ms / warm_ms,
    )


def parse_options() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo")
    parser.add_argument("--stages", type=int, default=3)
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--threads", type=int, help="CPU threads a stage")
    parser.add_argument("--prefix-tokens", type=int, default=1000)
    parser.add_argument("--question-tokens", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Prints both times and their ratio."""
    options = parse_options()
    gain = asyncio.run(measure(options))
    if options.json:
        print_json({"model": options.model, "stages": options.stages, **asdict(gain)})
        return
    print_table(
        f"Time to the first token, ms: {options.model}, {options.stages} stages on localhost, "
        f"{options.prefix_tokens} tokens of prefix and {options.question_tokens} of a question",
        ["", "value"],
        [
            ["prefix not seen before", gain.cold_ms],
            ["same prefix, another question", gain.warm_ms],
            ["  tokens from the cache", gain.warm_cached_tokens],
            ["ratio (target 8)", gain.ratio],
        ],
    )


if __name__ == "__main__":
    main()
