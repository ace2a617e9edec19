"""Time to the first token of a long prompt, of a second one with the same prefix, and of several.

Each repeat takes prefixes that were never seen. The cold request computes all of it; the warm one
has the same prefix and another question, and starts from the KV that the first one left. Then
requests with a further new prefix come at once; the time is that of the last to have its first
token. The times are the client's. Prints medians over the repeats, and their ratio.
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
from stagecoach.client import AsyncClient


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
    together_ms: float
    """Until the last of those that came at once had its first token."""
    together_ratio: float
    """That by cold, of the medians."""
    together_cached_tokens: int
    """Of all their prompts, the least of any repeat."""


async def measure(options: argparse.Namespace) -> PrefixGain:
    """Runs pairs of requests, one request after another."""
    flags = ["--threads", str(options.threads)] if options.threads else []
    if options.emulate:
        flags += ["--engine", "emulated", "--emulate", options.emulate]
    prefixes = fixed_prompts(options.repeats + 1, options.prefix_tokens)
    questions = fixed_prompts(2 * len(prefixes) + options.together, options.question_tokens)
    others = fixed_prompts(2 * len(prefixes), options.prefix_tokens)[len(prefixes) :]
    cold: list[FirstToken] = []
    warm: list[FirstToken] = []
    together: list[Sequence[FirstToken]] = []
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
                prompts = [[*others[index], *one] for one in questions[-options.together :]]
                together.append(
                    await asyncio.gather(*(first_token(client, prompt) for prompt in prompts))
                )
    # The first pair warmed the kernels up.
    assert all(request.num_cached_tokens == 0 for request in cold)
    cold_ms = median(request.time_to_first_token_ms for request in cold[1:])
    warm_ms = median(request.time_to_first_token_ms for request in warm[1:])
    together_ms = median(
        max(one.time_to_first_token_ms for one in requests) for requests in together[1:]
    )
    return PrefixGain(
        cold_ms=cold_ms,
        warm_ms=warm_ms,
        warm_cached_tokens=min(request.num_cached_tokens for request in warm),
        ratio=cold_ms / warm_ms,
        together_ms=together_ms,
        together_ratio=together_ms / cold_ms,
        together_cached_tokens=min(
            sum(one.num_cached_tokens for one in requests) for requests in together
        ),
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
    parser.add_argument("--emulate", help="GPU that the stages emulate instead of computing")
    parser.add_argument("--prefix-tokens", type=int, default=1000)
    parser.add_argument("--question-tokens", type=int, default=10)
    parser.add_argument("--together", type=int, default=8, help="requests that come at once")
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
            [f"{options.together} at once with a new prefix, the last", gain.together_ms],
            ["  tokens from the cache", gain.together_cached_tokens],
            ["ratio to one with a prefix not seen before", gain.together_ratio],
        ],
    )


if __name__ == "__main__":
    main()
